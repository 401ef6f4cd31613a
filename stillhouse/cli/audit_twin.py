"""`stillhouse audit twin`: does a suspect lean to the answers that were served?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from stillhouse.audit.settings import TwinSettings
from stillhouse.cli.audit_bundle import told
from stillhouse.cli.terminal import Common, all_given, emit, make_progress, plainly, table

if TYPE_CHECKING:
    from stillhouse.audit.batch import Waiting
    from stillhouse.audit.twin_audit import Begun

__all__ = ["twin"]

_DEFAULTS = TwinSettings.defaults()
_USAGE = "--suspect SPEC --exchanges STORE (--twins ESCROW | --teacher SPEC) --out DIR"


def twin(
    *,
    suspect: tuple[str, ...] = (),
    exchanges: Path | None = None,
    out: Path | None = None,
    teacher: str | None = None,
    twins: Path | None = None,
    power: bool = False,
    dry_run: bool = False,
    begin: bool = False,
    ledger: Path | None = None,
    runs: Path = Path("runs"),
    settings: Annotated[TwinSettings, Parameter(name="*")] = _DEFAULTS,
    common: Common = Common(),  # noqa: B008  (frozen)
) -> None:
    """Test whether a suspect leans to the answers that were served, against their twins.

    Parameters
    ----------
    suspect
        Model spec: smollm2-135m, gguf:PATH, hf:PATH_OR_ID, run:NAME, http://host:port/v1#MODEL; or
        batch:FOLDER for a suspect that someone else runs.
    exchanges
        The store of exchanges that were served.
    out
        Folder of the bundle.
    teacher
        Model spec: draws twins where none are given; is taken off the suspect's scores.
    twins
        The escrow made by `collect --escrow`, or a store of answers that were not served.
    power
        Say how many exchanges an effect needs, and ask nothing.
    dry_run
        Say which exchanges would be tested, and ask nothing.
    begin
        Fix everything, print what to publish, and ask nothing; without it, go on.
    ledger
        File of the exchanges shown in earlier audits; they are left out.
    runs
        Where runs are kept.
    """
    if power:
        return _power(settings, as_json=common.json)
    given = {"--exchanges": exchanges, "--out": out or dry_run, "--suspect": suspect or dry_run}
    all_given("audit twin", given, _USAGE)
    assert exchanges is not None
    from stillhouse.audit.twin_audit import planned, twin_audit

    if dry_run:
        plan = planned(
            settings, exchanges=exchanges, teacher=teacher, twins=twins, ledger=ledger, out=out
        )
        return emit(plan, plainly(plan), as_json=common.json)
    assert out is not None
    found = twin_audit(
        settings, suspects=suspect, exchanges=exchanges, out=out, teacher=teacher, twins=twins,
        ledger=ledger, begin=begin, runs=runs, progress=make_progress(quiet=common.quiet),
    )  # fmt: skip
    return _show(found, out, as_json=common.json)


def _show(found: Sequence[dict[str, Any] | Waiting | Begun], out: Path, *, as_json: bool) -> None:
    folders = [out / str(n + 1) for n in range(len(found))] if len(found) > 1 else [out]
    both = list(zip(found, folders, strict=True))
    results = [{**_plain(one), "out": str(folder)} for one, folder in both]
    shown = results[0] if len(results) == 1 else {"suspects": results}
    emit(shown, [line for one, folder in both for line in _lines(one, folder)], as_json=as_json)


def _plain(one: dict[str, Any] | Waiting | Begun) -> dict[str, Any]:
    from stillhouse.audit.twin_audit import Begun

    if isinstance(one, dict):
        return {key: value for key, value in one.items() if key != "differences"}
    if isinstance(one, Begun):
        return dataclasses.asdict(one) | {"folder": str(one.folder)}
    return {
        "waiting": str(one.answers), "requests": str(one.requests), "count": one.count,
        "discloses": one.discloses,
    }  # fmt: skip


def _lines(one: dict[str, Any] | Waiting | Begun, folder: Path) -> list[str]:
    from stillhouse.audit.twin_audit import Begun

    if isinstance(one, Begun):
        root = f"Escrow root {one.escrow_root}." if one.escrow_root else "No escrow."
        return [
            f"{one.suspect}: {one.pairs} pairs are fixed in {one.folder}; nothing was asked.",
            f"Commitment {one.commitment}. {root}",
            "Publish these, then run the same command without --begin.",
        ]
    if not isinstance(one, dict):
        return [
            f"{one.count} requests are in {one.requests}.",
            f"Whoever gets that file learns {one.discloses}.",
            f"Put the answers in {one.answers}, then run the same command again.",
        ]
    return told(one, folder)


def _power(settings: TwinSettings, *, as_json: bool) -> None:
    from stillhouse.audit.power import LEVELS, POWER, power_table

    level = settings.level / settings.looks
    rows = power_table(levels=tuple(dict.fromkeys([level, LEVELS[-1]])))
    head = ["share leaning to the served answer", "level", "pairs", "pairs, signs only"]
    cells = [
        [f"{r.share:.2f}", f"{r.level:g}", str(r.signed_rank or "over 2,000"),
         str(r.sign_test or "over 200,000")]
        for r in rows
    ]  # fmt: skip
    lines = [
        f"Pairs needed to find an effect with probability {POWER:g}:",
        *table([head, *cells]),
        "An innocent suspect leans in 0.50 of pairs. Twins and prompts must be distinct.",
    ]
    emit({"power": POWER, "rows": [r.to_dict() for r in rows]}, lines, as_json=as_json)
