"""`stillhouse audit verify|redact|reveal`: bundles of evidence, and what an escrow may show."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillhouse.cli.terminal import Common, emit
from stillhouse.errors import ConfigError, EvidenceError

__all__ = ["redact", "reveal", "told", "verify"]


def told(found: Mapping[str, Any], folder: Path) -> list[str]:
    """Evidence as lines for people: what cannot be concluded stands beside what can."""
    effect, p, family = found.get("effect"), found["p_value"], found.get("family")
    corrected = f"; Holm over {family['tests']}: {family['holm_p_value']:.3g}" if family else ""
    figures = f"n = {found['n']}; p = {'not given' if p is None else f'{p:.3g}'}{corrected}"
    if effect:
        interval = f"[{effect['low']:.3f}, {effect['high']:.3f}]"
        figures = f"{effect['name']}: {effect['value']:.3f} {interval} ({figures})"
    return [
        f"{found['suspect']}: {found['verdict']}",
        *(f"  {line}" for line in found["says"]),
        f"  {figures}",
        *(f"  left out: {count} {reason}" for reason, count in found["excluded"].items()),
        "What cannot be concluded:",
        *(f"  {line}" for line in found["cannot"]),
        f"Read {folder / 'report.html'}; check it with: stillhouse audit verify {folder}",
    ]


def verify(
    bundle: Path,
    *,
    root: str | None = None,
    commitment: str | None = None,
    escrow_root: str | None = None,
    common: Common = Common(),  # noqa: B008  (frozen)
) -> None:
    """Recompute every number of a bundle from its raw lines; exit code 3 on any difference.

    Needs neither a model nor a network.

    Parameters
    ----------
    bundle
        The folder that an audit wrote.
    root
        The root that was published with the bundle, where you know it.
    commitment
        The commitment that was published before the test, where you know it.
    escrow_root
        The escrow's root that was published when its answers were collected, where you know it.
    """
    from stillhouse.audit.verify import verify as check

    found = check(bundle, root=root, commitment=commitment, escrow_root=escrow_root)
    result = {
        "ok": found.ok, "seal_holds": found.seal_holds, "numbers_hold": found.numbers_hold,
        "differences": list(found.differences), "withheld": dict(found.withheld),
        "answers": [answer.to_dict() for answer in found.answers], "root": found.root,
        "commitment": found.commitment, "time": found.time, "seconds": found.seconds,
    }  # fmt: skip
    lines = [
        *found.sentences(),
        f"Committed to at {found.time}, by the word of whoever made it. "
        f"Commitment {found.commitment}, root {found.root}.",
    ]
    emit(result, lines, as_json=common.json)
    if not found.ok:
        why = found.differences[0] if found.differences else str(found.not_recomputed)
        raise EvidenceError(
            f"bundle {bundle}", why.rstrip("."), "a bundle whose every byte and number holds",
            "Do not rely on it; ask whoever made it for the original",
        )  # fmt: skip


def redact(
    bundle: Path,
    *,
    out: Path,
    matching: str,
    secrets: bool = False,
    common: Common = Common(),  # noqa: B008  (frozen)
) -> None:
    """Copy a bundle with some raw lines shown by their hash only: its seal still holds.

    Parameters
    ----------
    bundle
        The sealed bundle.
    out
        A new folder for the copy.
    matching
        Regular expression: raw lines it matches are withheld.
    secrets
        Withhold the secrets revealed, too.
    """
    from stillhouse.audit.redact import redact as copy
    from stillhouse.exchange import canonical_json

    try:
        pattern = re.compile(matching)
    except re.error as problem:
        raise ConfigError(
            f"--matching {matching}", str(problem), "a regular expression", "Correct it"
        ) from None
    withheld = copy(
        bundle, out, lambda _, line: bool(pattern.search(canonical_json(line))), secrets=secrets
    )
    emit(
        {"withheld": withheld, "out": str(out)},
        [f"{withheld} lines are withheld in {out}; the seal still holds, the numbers cannot be "
         "recomputed from the copy."],
        as_json=common.json,
    )  # fmt: skip


def reveal(
    escrow: Path,
    exchanges: Path,
    exchange: tuple[str, ...],
    *,
    common: Common = Common(),  # noqa: B008  (frozen)
) -> None:
    """Show the coins of some exchanges, with the proofs that they were committed to.

    Parameters
    ----------
    escrow
        The folder made by `collect --escrow`.
    exchanges
        The store of exchanges that were served.
    exchange
        Ids of the exchanges; no other pair is revealed.
    """
    from stillhouse.escrow import Escrow
    from stillhouse.exchange import canonical_json, to_dict
    from stillhouse.store import Store

    opened = Escrow.open(escrow)
    with Store(exchanges, "r") as store:
        served = [one for one in store if one.id in set(exchange)]
    unknown = sorted(set(exchange) - {one.id for one in served})
    if unknown or not served:
        raise ConfigError(
            f"store {exchanges}", f"no exchange {unknown[0] if unknown else 'was named'}",
            "ids of exchanges in the store", "Take them from the store or from a bundle",
        )  # fmt: skip
    proofs, twins = opened.proofs(served), opened.twins_of(served)
    shown = [
        {
            "exchange": one.id, "nonce": opened.nonce(one).hex(), **proofs.get(one.id, {}),
            "served": to_dict(one),
            "twin": to_dict(twins[one.id]) if one.id in twins else None,
        }
        for one in served
    ]  # fmt: skip
    result = {"published": opened.published(), "pairs": shown}
    emit(result, [canonical_json(line) for line in shown], as_json=common.json)
