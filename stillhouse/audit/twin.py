"""The twin test: does a suspect lean to the answers that were served, against equally likely ones?

In: raw lines of an audit (pairs of answers, what suspect and teacher made of them) and the plan
fixed before. Out: the evidence, by a pure function that verification repeats. For a served answer y
and its twin y', drawn from the same teacher with the same settings and not served, an innocent
suspect cannot tell which is which: the sign of its preference is a fair coin, whatever the suspect
is. Every exclusion here is a symmetric function of the two: exchanging them everywhere turns the
sign of each difference and nothing else. Nothing here asks a model.

Source: ours; the paired, randomised form as STAMP's (arXiv 2504.13416), with the
teacher's own sampling in the place of rephrasing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stillhouse.audit import words
from stillhouse.audit.gates import changed, teacher_gate, unsteady
from stillhouse.audit.overlap import overlap
from stillhouse.audit.pair_checks import SIDES, check_escrow, check_models, has_texts, pairs_of
from stillhouse.audit.selection import choose, draw_of
from stillhouse.errors import EvidenceError
from stillhouse.exact import SignedRank, share_bound, signed_rank
from stillhouse.stats import clopper_pearson, ratio_of_sums

__all__ = [
    "FEWEST_PAIRS", "difference", "evidence", "left_out", "level_of", "refuse_too_few",
]  # fmt: skip

Line = Mapping[str, Any]
Lines = Mapping[str, Sequence[Line]]

FEWEST_PAIRS = 20
"""Fewer pairs are refused: five signs out of five have p = .03, and an interval says nothing."""


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
    if reason := left_out(pair):
        return reason
    likes = [_liking(suspect.get(side)) for side in SIDES]
    expected = [0.0, 0.0] if teacher is None else [_liking(teacher.get(side)) for side in SIDES]
    if None in likes or None in expected:
        return "an answer that could not be scored"
    # In this form exchanging the sides negates the result exactly, rounding included.
    gap = (likes[0] - likes[1]) - (expected[0] - expected[1])  # type: ignore[operator]
    return gap if np.isfinite(gap) else "an answer held impossible"


def left_out(pair: Line) -> str | None:
    """Why a pair tells nothing whatever a suspect makes of it; None where it may tell something."""
    if "missing" in pair:
        return pair["missing"]
    if "withheld" in pair:
        return pair["withheld"]
    told = [(_rest(pair, side), _ended(pair, side)) for side in SIDES]
    if told[0] == told[1]:
        return "served answer and twin are the same"
    if any(ended == "content_filter" for _, ended in told):
        return "an answer was cut by a content filter"
    return None


def _rest(pair: Line, side: str) -> str:
    """What of an answer stands after the prefix that both share; all where there is none."""
    return pair["rest"][side] if "rest" in pair else pair[side]["response"].get("text") or ""


def _ended(pair: Line, side: str) -> str | None:
    return pair[side].get("finish_reason")


def _liking(given: Any) -> float | None:
    """Mean log-probability a token; None of no tokens. A likeness stands as it is."""
    if given is None or (isinstance(given, list) and not given):
        return None
    if isinstance(given, list):  # null stands for a token held impossible, which JSON cannot write
        return float("-inf") if None in given else float(np.mean(given))
    return float(given)


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
    if plan["draw"] != draw_of(lines["candidates"], plan["escrow"]):
        raise EvidenceError(
            "plan.json, draw", plan["draw"], "what follows from the escrow or the candidates",
            "Take the bundle from its source again",
        )  # fmt: skip
    chosen, excluded = choose(
        lines["candidates"], pairs=plan["pairs"], draw=plan["draw"], spent=plan["spent"]
    )
    pairs = pairs_of(lines, chosen)
    check_models(lines, pairs)
    escrowed = plan["twins"] == "escrowed"
    committed = check_escrow(plan, lines, pairs, reveal) if escrowed else None
    counted = Counter(excluded)
    if plan["outside"]:
        counted["outside the conditions"] = plan["outside"]
    told = _likings(plan, lines)
    gaps: dict[str, float] = {}
    for name in chosen:
        teacher = told["teacher"].get(name, {}) if plan["taken_off"] else None
        gap = difference(pairs[name], told["suspect"].get(name, {}), teacher)
        if isinstance(gap, str):
            counted[gap] += 1
        else:
            gaps[name] = gap
    gate = None if escrowed else teacher_gate(_signs_of_change(pairs, told["teacher"]))
    refusal = changed(gate) or unsteady(lines)
    masked = sum(bool(pair.get("masked")) for pair in pairs.values())
    found = _report(plan, gaps, dict(sorted(counted.items())), refusal, masked)
    found["secondary"] |= {"teacher_gate": gate, "committed_pairs": committed}
    return found


def _signs_of_change(
    pairs: Mapping[str, Line], teacher: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[float]]:
    """Quantity -> served less twin, of every pair that has both: none of them asks the suspect."""
    both = [pair for pair in pairs.values() if has_texts(pair)]
    lengths = [len(_rest(pair, "served")) - len(_rest(pair, "twin")) for pair in both]
    stops = [(_ended(p, "served") == "stop") - (_ended(p, "twin") == "stop") for p in both]
    likes = [[_liking(sides.get(side)) for side in SIDES] for sides in teacher.values()]
    gaps = [a - b for a, b in likes if a is not None and b is not None and np.isfinite(a - b)]
    return {
        "the length of answers": [float(v) for v in lengths],
        "how answers end": [float(v) for v in stops],
        "the teacher's own log-probabilities": gaps,
    }


def _likings(plan: Mapping[str, Any], lines: Lines) -> dict[str, dict[str, dict[str, Any]]]:
    """Role -> exchange -> side -> what that role made of the answer."""
    told: dict[str, dict[str, dict[str, Any]]] = {"suspect": {}, "teacher": {}, "repeat": {}}
    for line in lines.get("scores", ()):
        told[line["role"]].setdefault(line["exchange"], {})[line["side"]] = line["logprobs"]
    if plan["access"] == "text":
        texts: dict[str, list[str]] = {}
        for line in lines.get("continuations", ()):
            if line["round"] == 1:
                texts.setdefault(line["exchange"], []).append(line["text"])
        for pair in lines["pairs"]:
            said = texts.get(pair["exchange"])
            if said and len(said) == plan["samples"] and left_out(pair) is None:
                told["suspect"][pair["exchange"]] = {
                    side: float(np.mean([overlap(text, _rest(pair, side)) for text in said]))
                    for side in SIDES
                }
    return told


# ---- what it says ----


def refuse_too_few(signed: int, without: int, excluded: Mapping[str, int]) -> None:
    """Nothing, where enough pairs have a sign.

    Raises:
        EvidenceError: fewer than `FEWEST_PAIRS`, with the reasons for the others.
    """
    if signed < FEWEST_PAIRS:
        listed = "; ".join(f"{count} {reason}" for reason, count in excluded.items()) or "none"
        raise EvidenceError(
            "twin test", f"{signed} pairs with a sign (left out: {listed}; without a sign: "
            f"{without})",
            f"at least {FEWEST_PAIRS}",
            "Test more exchanges: `--power` says how many an effect needs",
        )  # fmt: skip


def _report(
    plan: Mapping[str, Any],
    gaps: Mapping[str, float],
    excluded: Mapping[str, int],
    refusal: str | None,
    masked: int,
) -> dict[str, Any]:
    values = list(gaps.values())
    signed = sum(value != 0 for value in values)
    refuse_too_few(signed, len(values) - signed, excluded)
    test = signed_rank(values)
    level = level_of(plan)
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
        "says": _says(test, verdict, refusal),
        "cannot": _cannot(plan, masked),
        "secondary": {
            "sign_p_value": None if refusal else test.sign_p_value,
            "rank_biserial": test.standardised,
            "mean_difference": {"name": f"mean difference, {unit}", **size.to_dict()},
            "share_upper_bound": share_bound(test.positive, test.n),
            "level": level,
            "refusal": refusal,
        },
        "differences": dict(gaps),
    }


_ACCESS = {
    "logprobs": "log-probabilities of given text",
    "text": "text only: the suspect's own answers, compared with both",
}


def level_of(plan: Mapping[str, Any]) -> float:
    """The level of one test: shared among those declared, or those begun where these are more."""
    return plan["alpha"] / max(plan["looks"], plan["begun"])


def _says(test: SignedRank, verdict: str, refusal: str | None) -> list[str]:
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


def _cannot(plan: Mapping[str, Any], masked: int) -> list[str]:
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
    if plan["reached"] == "batch":
        lines.append(
            "Whoever ran the suspect on the file saw both answers of each pair: who kept the "
            "served ones could tell them apart, and answer otherwise than the model would."
        )
    if masked:
        lines.append(
            f"{masked} prompts are masked: that these answers are the ones drawn for them cannot "
            "be seen from this bundle."
        )
    if plan["begun"] > 1:
        lines.append(
            f"{plan['begun']} audits of this suspect were begun on these exchanges, by the log "
            "beside them; a log can be left out by whoever keeps it."
        )
    if plan.get("where"):
        lines.append(f"It is about the exchanges with {', '.join(plan['where'])}, no others.")
    return lines
