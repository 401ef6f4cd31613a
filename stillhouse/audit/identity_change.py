"""What changed between two identity audits of one suspect: a model that no longer says it.

In: the evidence of an earlier and of a later audit with the same battery, candidate and settings.
Out: differences of shares, question by question, with intervals, and which of them exclude zero.
Why a model changed is not in its answers.

Source: Agresti and Min (2005), Simple improved confidence intervals for comparing matched
proportions, Statistics in Medicine 24.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from statistics import NormalDist
from typing import Any

import numpy as np

from stillhouse.errors import EvidenceError
from stillhouse.stats import Estimate, clustered_share

__all__ = ["compare", "paired_share_difference"]

Evidence = Mapping[str, Any]
Counts = Mapping[str, tuple[int, int]]
"""Question -> answers that claimed an identity, and answers."""

_LEVEL = 0.95


def paired_share_difference(
    first: Sequence[float], second: Sequence[float], *, level: float = _LEVEL
) -> Estimate:
    """The mean of first - second over questions, each side's share of its answers to a question.

    Agresti and Min's adjusted Wald interval, a question's difference of shares in the place of a
    matched pair's: two pairs are added, half of one to each outcome, so that questions which all
    agree do not give an interval without width.

    Raises:
        EvidenceError: fewer than two questions.
    """
    gaps = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    if len(gaps) < 2:
        raise EvidenceError(
            "paired difference over questions", f"{len(gaps)} questions answered on both sides",
            "at least two", "Compare audits whose answers cover the same questions",
        )  # fmt: skip
    pairs, z = len(gaps) + 2, NormalDist().inv_cdf((1 + level) / 2)
    middle = float(gaps.sum()) / pairs
    spread = (float((gaps**2).sum()) + 1) / pairs - middle**2
    half = z * math.sqrt(spread / pairs)
    value = float(gaps.mean())
    method = f"paired difference over questions, Agresti-Min, {100 * level:g} %"
    low, high = max(-1.0, middle - half), min(1.0, middle + half)
    return Estimate(value, min(low, value), max(high, value), len(gaps), method)


def compare(earlier: Evidence, later: Evidence) -> dict[str, Any]:
    """What changed in who a suspect says it is.

    The first of `changes` is the candidate's share over all languages, at 95 %. The others (each
    language, pressing questions, other identities) share one error rate of 5 %: their intervals are
    widened by Bonferroni. `changed` means that the interval excludes zero.

    Raises:
        EvidenceError: evidence of another test, candidate, battery or settings; audits that
            overlap in time; or too few questions in common.
    """
    _comparable(earlier, later)
    candidate = later["secondary"]["candidate"]["id"]
    names = {**earlier["secondary"]["names"], **later["secondary"]["names"]}
    first, *others = _places(candidate, (earlier, later))
    others = [place for place in others if len(_both(earlier, later, place)) >= 2]
    level = 1 - (1 - _LEVEL) / max(1, len(others))
    changes = [_change(earlier, later, first, names, _LEVEL)]
    changes += [_change(earlier, later, place, names, level) for place in others]
    return {
        "suspect": {"earlier": earlier["suspect"], "later": later["suspect"]},
        "candidate": candidate,
        "asked": {"earlier": _asked(earlier), "later": _asked(later)},
        "served_models": {
            "earlier": earlier["secondary"]["models"]["suspect"]["served_models"],
            "later": later["secondary"]["models"]["suspect"]["served_models"],
        },
        "changes": changes,
        "says": _says(earlier, later, changes),
        "cannot": [
            "Why it changed cannot be seen: the model, the prompt that its provider puts before a "
            "question, or whatever serves it may be another one now.",
            "A name that is no longer given says nothing about what the model was trained on: "
            "names are easily trained away, or hidden by a prompt.",
        ],
    }


Place = tuple[str, str | None, str]
"""Identity, language (None: all of them) and kind of question."""


def _places(candidate: str, audits: Sequence[Evidence]) -> list[Place]:
    """Everything that is compared, the candidate over all languages first."""
    entries = [pair for audit in audits for pair in audit["secondary"]["questions"].items()]
    languages = sorted({_parts(question)[0] for question, _ in entries})
    said = {identity for _, entry in entries for identity in entry["claimed"]}
    return [
        (candidate, None, "neutral"),
        (candidate, None, "pressing"),
        *((candidate, language, "neutral") for language in languages),
        *((identity, None, "neutral") for identity in sorted(said - {candidate})),
    ]


def _parts(question: str) -> tuple[str, str]:
    """Language and kind in a question's id ('en-neutral-1')."""
    language, kind, _ = question.rsplit("-", 2)
    return language, kind


def _both(earlier: Evidence, later: Evidence, place: Place) -> list[str]:
    """The questions that were answered in both audits."""
    before, after = _counts(earlier, place), _counts(later, place)
    return sorted(before.keys() & after.keys())


def _change(
    earlier: Evidence, later: Evidence, place: Place, names: Mapping[str, str], level: float
) -> dict[str, Any]:
    """One difference, later less earlier."""
    before, after = _counts(earlier, place), _counts(later, place)
    both = _both(earlier, later, place)
    identity, language, kind = place
    difference = paired_share_difference(
        [after[q][0] / after[q][1] for q in both], [before[q][0] / before[q][1] for q in both],
        level=level,
    )  # fmt: skip
    return {
        "identity": identity,
        "name": names[identity],
        "language": language,
        "kind": kind,
        "earlier": _share(before, both),
        "later": _share(after, both),
        "difference": difference.to_dict(),
        "changed": difference.low > 0 or difference.high < 0,
    }


def _counts(audit: Evidence, place: Place) -> dict[str, tuple[int, int]]:
    identity, language, kind = place
    return {
        question: (entry["claimed"].get(identity, 0), entry["answers"])
        for question, entry in audit["secondary"]["questions"].items()
        if _parts(question) == (language or _parts(question)[0], kind)
    }


def _share(counts: Counts, both: Sequence[str]) -> dict[str, Any]:
    hits, trials = zip(*(counts[question] for question in both), strict=True)
    return clustered_share(hits, trials).to_dict()


# ---- what may be compared ----


def _comparable(earlier: Evidence, later: Evidence) -> None:
    for audit in (earlier, later):
        if audit["test"] != "identity":
            raise _unlike("the test", audit["test"], "identity")
    sides = [
        {**audit["secondary"]["protocol"], "candidate": audit["secondary"]["candidate"]}
        for audit in (earlier, later)
    ]
    for key, before in sides[0].items():
        if sides[1].get(key) != before:
            raise _unlike(key, f"{sides[1].get(key)!r:.80}", f"{before!r:.80}, as before")
    ended, began = _asked(earlier)["last"], _asked(later)["first"]
    if datetime.fromisoformat(began) <= datetime.fromisoformat(ended):
        raise EvidenceError(
            "comparison of identity audits", f"a later audit that began on {began}",
            f"one that began after {ended}, when the earlier one ended",
            "Give the earlier audit first; audits that overlap show no change",
        )  # fmt: skip


def _unlike(what: str, found: str, expected: str) -> EvidenceError:
    return EvidenceError(
        f"comparison of identity audits, {what}", found, expected,
        "Repeat the audit with the battery, candidate and settings of the earlier one",
    )  # fmt: skip


def _asked(audit: Evidence) -> Mapping[str, str]:
    return audit["secondary"]["models"]["suspect"]["asked"]


# ---- what it says ----


def _says(earlier: Evidence, later: Evidence, changes: Sequence[Mapping[str, Any]]) -> list[str]:
    first, *others = changes
    days = [datetime.fromisoformat(_asked(audit)["last"]).date() for audit in (earlier, later)]
    gap = first["difference"]
    lines = [
        f"The share of answers to neutral questions that name {first['name']} outside a negated "
        f"clause was {first['earlier']['value']:.3f} on {days[0]} and {first['later']['value']:.3f}"
        f" on {days[1]}: a difference of {gap['value']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}"
        f"] over {gap['n']} questions. "
        + ("It changed." if first["changed"] else "No change found beyond chance.")
    ]
    moved = [change for change in others if change["changed"]]
    for change in moved:
        where = "" if change["language"] is None else f" in questions in '{change['language']}'"
        gap = change["difference"]
        lines.append(
            f"{change['name']}, {change['kind']} questions{where}: {gap['value']:+.3f} "
            f"[{gap['low']:+.3f}, {gap['high']:+.3f}]."
        )
    lines.append(
        f"Of {len(others)} further shares that were compared, {len(moved)} changed (intervals "
        "widened so that one in twenty such comparisons as a whole finds a change by chance)."
    )
    before, after = (set(a["secondary"]["models"]["suspect"]["served_models"])
                     for a in (earlier, later))  # fmt: skip
    if before != after:
        lines.append(
            f"The endpoint called the model that answered {', '.join(sorted(before)) or 'nothing'} "
            f"before and {', '.join(sorted(after)) or 'nothing'} now."
        )
    return lines
