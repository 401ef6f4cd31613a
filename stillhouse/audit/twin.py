"""The twin test: does a suspect lean to the answers that were served, against equally likely ones?

In: raw lines of an audit (pairs of answers, what suspect and teacher made of them) and the plan
fixed before. Out: the evidence, by a pure function that verification repeats. For a served answer y
and its twin y', drawn from the same teacher with the same settings and not served, an innocent
suspect cannot tell which is which: the sign of its preference is a fair coin, whatever the suspect
is. Every exclusion here is a symmetric function of the two: exchanging them everywhere turns the
sign of each difference and nothing else. Nothing here asks a model.

Source: DESIGN, 'The twin test'; the paired, randomised form as STAMP's (arXiv 2504.13416), with the
teacher's own sampling in the place of rephrasing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stillhouse.audit import words
from stillhouse.audit.overlap import overlap
from stillhouse.audit.selection import choose
from stillhouse.errors import EvidenceError
from stillhouse.escrow import check_pair, check_published, commitment
from stillhouse.exact import SignedRank, share_bound, signed_rank
from stillhouse.exchange import from_dict
from stillhouse.stats import clopper_pearson, ratio_of_sums

__all__ = ["FEWEST_PAIRS", "SIDES", "difference", "evidence"]

Line = Mapping[str, Any]
Lines = Mapping[str, Sequence[Line]]

SIDES = ("served", "twin")

FEWEST_PAIRS = 20
"""Fewer pairs are refused: five signs out of five have p = .03, and an interval says nothing."""

# A teacher whose own scores tell its served answers from fresh ones, in either direction, is not
# the one that answered. Two-sided, and strict: each refusal of an unchanged teacher loses an audit.
_CHANGED_LEVEL = 1e-3

# Nats a token by which a repeated score may differ: kernels and batching move it by up to .01.
_REPEAT_SLACK = 0.05


# ---- one pair ----


def difference(
    pair: Line, suspect: Mapping[str, Any], teacher: Mapping[str, Any] | None
) -> float | str:
    """How much more the suspect likes the served answer than its twin, or why that is not told.

    Args:
        pair: `served` and `twin`, exchanges in their JSON form.
        suspect: side -> log-probabilities of its tokens (nats), or its likeness to the suspect's
            own continuations in [0, 1].
        teacher: side -> log-probabilities; None where the teacher is not at hand.
    """
    told = [(_rest(pair, side), _ended(pair, side)) for side in SIDES]
    if told[0] == told[1]:
        return "served answer and twin are the same"
    if any(ended == "content_filter" for _, ended in told):
        return "an answer was cut by a content filter"
    likes = [_liking(suspect.get(side)) for side in SIDES]
    expected = [0.0, 0.0] if teacher is None else [_liking(teacher.get(side)) for side in SIDES]
    if None in likes or None in expected:
        return "an answer that could not be scored"
    # In this form exchanging the sides negates the result exactly, rounding included.
    gap = (likes[0] - likes[1]) - (expected[0] - expected[1])  # type: ignore[operator]
    return gap if np.isfinite(gap) else "an answer held impossible"


def _rest(pair: Line, side: str) -> str:
    """What of an answer stands after the prefix that both share; all where there is none."""
    return pair["rest"][side] if "rest" in pair else pair[side]["response"].get("text") or ""


def _ended(pair: Line, side: str) -> str | None:
    return pair[side].get("finish_reason")


def _liking(given: Any) -> float | None:
    """Mean log-probability a token; None of no tokens. A likeness stands as it is."""
    if given is None or (isinstance(given, list) and not given):
        return None
    return float(np.mean(given)) if isinstance(given, list) else float(given)


# ---- all pairs ----


def evidence(plan: Mapping[str, Any], lines: Lines, reveal: Mapping[str, Any]) -> dict[str, Any]:
    """The evidence of a twin test, from its raw lines.

    Args:
        plan: as `twin_audit.py` writes it.
        lines: `candidates`, `pairs`, `scores` or `continuations`, as `twin_audit.py` writes them.
        reveal: `nonces`, where the twins were escrowed: the JSON text of exchange -> hex.

    Raises:
        EvidenceError: fewer than `FEWEST_PAIRS` pairs, or raw lines that do not fit the plan.
    """
    chosen, excluded = choose(
        lines["candidates"], pairs=plan["pairs"], seed=plan["seed"], spent=plan["spent"]
    )
    pairs = {pair["exchange"]: pair for pair in lines["pairs"]}
    strangers = set(pairs) - set(chosen)
    if strangers:
        raise EvidenceError(
            "pairs.jsonl", f"{len(strangers)} pairs that the draw did not choose",
            "pairs of the exchanges chosen by the plan", "Take the bundle from its source again",
        )  # fmt: skip
    if plan["twins"] == "escrowed":
        _check_escrow(plan, lines, reveal)
    counted = Counter(excluded)
    told = _likings(plan, lines)
    gaps: dict[str, float] = {}
    teachers: list[float] = []
    for name in chosen:
        pair = pairs.get(name)
        gap = "no twin that was kept" if pair is None else _withheld(pair)
        if gap is None and pair is not None:
            teacher = told["teacher"].get(name, {}) if plan["teacher"] else None
            gap = difference(pair, told["suspect"].get(name, {}), teacher)
            if teacher and all(teacher.get(side) for side in SIDES):
                teachers.append(np.mean(teacher["served"]) - np.mean(teacher["twin"]))
        if isinstance(gap, str):
            counted[gap] += 1
        elif gap is not None:
            gaps[name] = gap
    return _report(plan, lines, gaps, dict(sorted(counted.items())), teachers)


def _check_escrow(plan: Mapping[str, Any], lines: Lines, reveal: Mapping[str, Any]) -> None:
    """Hold each pair against its revealed coin, and both against what was published before.

    Raises:
        EvidenceError: a coin says otherwise, or a pair was not committed to.
    """
    proofs = {line["exchange"]: line for line in lines["escrow"]}
    nonces = json.loads(reveal["nonces"])
    for pair in lines["pairs"]:
        name = pair["exchange"]
        served, twin = (from_dict(pair[side], f"pair of {name}") for side in SIDES)
        nonce = bytes.fromhex(nonces[name])
        problem = check_pair(nonce, served, twin) or check_published(
            proofs[name], commitment(nonce, served.id, twin.id), plan["escrow"]
        )
        if problem:
            raise EvidenceError(
                f"pair of {name}", problem, "the pair that the escrow committed to",
                "Take store and escrow from their sources again",
            )  # fmt: skip


def _withheld(pair: Line) -> str | None:
    return pair.get("withheld")


def _likings(plan: Mapping[str, Any], lines: Lines) -> dict[str, dict[str, dict[str, Any]]]:
    """Role -> exchange -> side -> what that role made of the answer."""
    told: dict[str, dict[str, dict[str, Any]]] = {"suspect": {}, "teacher": {}, "repeat": {}}
    for line in lines.get("scores", ()):
        told[line["role"]].setdefault(line["exchange"], {})[line["side"]] = line["logprobs"]
    if plan["access"] == "text":
        texts: dict[str, list[str]] = {}
        for line in lines.get("continuations", ()):
            texts.setdefault(line["exchange"], []).append(line["text"])
        for pair in lines["pairs"]:
            said = texts.get(pair["exchange"])
            if said and len(said) == plan["samples"] and not _withheld(pair):
                told["suspect"][pair["exchange"]] = {
                    side: float(np.mean([overlap(text, _rest(pair, side)) for text in said]))
                    for side in SIDES
                }
    return told


# ---- what it says ----


def _report(
    plan: Mapping[str, Any],
    lines: Lines,
    gaps: Mapping[str, float],
    excluded: Mapping[str, int],
    teachers: Sequence[float],
) -> dict[str, Any]:
    values = list(gaps.values())
    signed = sum(value != 0 for value in values)
    if signed < FEWEST_PAIRS:
        raise EvidenceError(
            "twin test", f"{signed} pairs with a sign (left out: {_listed(excluded)}; without a "
            f"sign: {len(values) - signed})",
            f"at least {FEWEST_PAIRS}",
            "Test more exchanges: `--power` says how many an effect needs",
        )  # fmt: skip
    test = signed_rank(values)
    refusal = _changed(plan, teachers) or _unsteady(lines)
    level = plan["alpha"] / plan["looks"]
    if refusal:
        verdict = words.REFUSED
    elif 0.5**test.n > level:
        verdict = words.NOT_ENOUGH
    else:
        verdict = words.EVIDENCE if test.p_value <= level else words.NONE_FOUND
    share = clopper_pearson(test.positive, test.n, unit="pairs")
    size = ratio_of_sums(values, np.ones(len(values)), np.random.default_rng(0), unit="pairs")
    unit = "likeness" if plan["access"] == "text" else "nats a token"
    return {
        "test": "twin",
        "basis": "design-based",
        "suspect": plan["suspect"],
        "access": _ACCESS[plan["access"]],
        "n": test.n,
        "excluded": dict(excluded) | ({"no sign": test.zeros} if test.zeros else {}),
        "statistic": {"name": "signed-rank sum of the served answers", "value": test.rank_sum},
        "p_value": None if refusal else test.p_value,
        "effect": {"name": "share of pairs that lean to the served answer", **share.to_dict()},
        "verdict": verdict,
        "says": _says(plan, test, verdict, refusal),
        "cannot": _cannot(plan),
        "secondary": {
            "sign_p_value": None if refusal else test.sign_p_value,
            "rank_biserial": test.standardised,
            "mean_difference": {"name": f"mean difference, {unit}", **size.to_dict()},
            "share_upper_bound": share_bound(test.positive, test.n),
            "level": level,
            "teacher_gate": _gate(teachers) if plan["twins"] != "escrowed" else None,
            "refusal": refusal,
        },
        "differences": dict(gaps),
    }


_ACCESS = {
    "logprobs": "log-probabilities of given text",
    "text": "text only: the suspect's own answers, compared with both",
}


def _gate(teachers: Sequence[float]) -> dict[str, Any] | None:
    """How the teacher of today sees its own served answers against fresh ones: two-sided."""
    if sum(value != 0 for value in teachers) < FEWEST_PAIRS:
        return None
    up = signed_rank(teachers).p_value
    down = signed_rank([-value for value in teachers]).p_value
    return {"n": len(teachers), "p_value": min(1.0, 2 * min(up, down)), "level": _CHANGED_LEVEL}


def _changed(plan: Mapping[str, Any], teachers: Sequence[float]) -> str | None:
    gate = _gate(teachers) if plan["twins"] != "escrowed" else None
    if gate is None or gate["p_value"] > gate["level"]:
        return None
    return (
        "the teacher of today tells its served answers from fresh ones "
        f"(p = {gate['p_value']:.2g}): it is not the one that answered, or not with these settings"
    )


def _unsteady(lines: Lines) -> str | None:
    """Why the suspect is not one model: what was asked twice was not answered alike."""
    first: dict[tuple[str, str], Any] = {}
    worst, repeats = 0.0, 0
    for line in lines.get("scores", ()):
        place = (line["exchange"], line["side"])
        if line["role"] == "suspect":
            first[place] = line["logprobs"]
    for line in lines.get("scores", ()):
        place = (line["exchange"], line["side"])
        if line["role"] == "repeat" and place in first:
            before, after = _liking(first[place]), _liking(line["logprobs"])
            if before is not None and after is not None:
                repeats += 1
                worst = max(worst, abs(before - after))
    names = {line["served_model"] for line in lines.get("continuations", ())}
    if len(names) > 1:
        return f"answers came from several models: {', '.join(sorted(map(str, names)))}"
    if worst <= _REPEAT_SLACK:
        return None
    return (
        f"the suspect scored the same text differently when asked again (by up to {worst:.2g} "
        f"nats a token in {repeats} repeats): more than one model answers under this name"
    )


def _says(
    plan: Mapping[str, Any], test: SignedRank, verdict: str, refusal: str | None
) -> list[str]:
    if refusal:
        return [f"Refused: {refusal}."]
    bound = share_bound(test.positive, test.n)
    lean = (
        f"{test.positive} of {test.n} pairs lean to the answer that was served. If the suspect "
        "never trained on the served answers, so strong a lean or a stronger one has probability "
        f"{test.p_value:.2g} (exact signed-rank test; sign test {test.sign_p_value:.2g})."
    )
    if verdict == words.EVIDENCE:
        return [
            lean,
            "Evidence, at the level fixed beforehand, that the suspect was trained on these served "
            "answers, or on text that contains them.",
        ]
    if verdict == words.NOT_ENOUGH:
        return [lean, f"{test.n} pairs are too few for any outcome to reach the level."]
    return [
        lean,
        "No evidence found that the suspect was trained on these served answers. The share of "
        f"pairs that lean to the served answer is at most {bound:.3f} (95 %, one-sided).",
    ]


def _cannot(plan: Mapping[str, Any]) -> list[str]:
    lines = [
        words.INTENT,
        "A suspect trained on other answers of the same teacher passes this test, rightly: it "
        "asks about these answers only.",
        words.NOT_INNOCENT,
        "No dose is given: how lean and share of training data go together was not measured for "
        "this kind of model.",
    ]
    if plan["twins"] != "escrowed":
        lines.append(
            "The twins were not escrowed. That they are equally likely assumes the same weights, "
            "engine, precision, template and settings as the served answers; where the teacher's "
            "own scores are at hand a gate beside the figures would see a large change, not every "
            "small one, and otherwise nothing would."
        )
    if plan["access"] == "text":
        lines.append("Text alone carries less than log-probabilities: small effects go unseen.")
    if plan.get("where"):
        lines.append(f"It is about the exchanges with {', '.join(plan['where'])}, no others.")
    return lines


def _listed(excluded: Mapping[str, int]) -> str:
    return "; ".join(f"{count} {reason}" for reason, count in excluded.items()) or "none"
