"""The twin test on raw lines: antisymmetry through every exclusion, size, refusals, escrow."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.audit import twin as twin_test
from stillhouse.audit import words
from stillhouse.audit.overlap import overlap
from stillhouse.audit.pair_checks import SIDES
from stillhouse.audit.selection import draw_of, facts
from stillhouse.audit.twin import FEWEST_PAIRS, difference
from stillhouse.errors import EvidenceError
from stillhouse.exchange import Exchange, Response, Sampling, message, to_dict

PLAN: dict[str, Any] = {
    "test": "twin", "suspect": "s", "access": "logprobs", "teacher": None, "twins": "of a store",
    "escrow": None, "where": [], "pairs": 500, "samples": 2, "alpha": 0.01, "looks": 1, "seed": 7,
    "spent": [], "reached": "hf", "taken_off": False, "outside": 0, "begun": 1,
}  # fmt: skip


def evidence(plan: dict[str, Any], lines: Any, reveal: dict[str, Any]) -> dict[str, Any]:
    """The evidence, with the draw that follows from the lines."""
    drawn = {"draw": draw_of(lines["candidates"], plan["escrow"])}
    return twin_test.evidence(drawn | plan, lines, reveal)


def answer(prompt: int, text: str, index: int, finish: str = "stop") -> Exchange:
    return Exchange(
        time=datetime(2026, 11, 1, tzinfo=UTC), model="m",
        prompt=(message("user", f"question {prompt}"),), response=Response(text=text),
        finish_reason=finish,
        sampling=Sampling(temperature=1.0, max_tokens=9, seed=index, sample_index=index),
    )  # fmt: skip


def raw(gaps: list[float], teacher: list[float] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Raw lines of an audit in which the suspect's mean log-probabilities differ by `gaps`."""
    lines: dict[str, list[dict[str, Any]]] = {"candidates": [], "pairs": [], "scores": []}
    for number, gap in enumerate(gaps):
        served, twin = answer(number, "served", 0), answer(number, "a twin", 1)
        lines["candidates"].append(facts(served, 1))
        lines["pairs"].append(
            {"exchange": served.id, "served": to_dict(served), "twin": to_dict(twin)}
        )
        roles = {"suspect": gap} | ({"teacher": teacher[number]} if teacher else {})
        for role, by in roles.items():
            for side, value in zip(SIDES, (by - 1.0, -1.0), strict=True):
                lines["scores"].append(
                    {"role": role, "exchange": served.id, "side": side, "logprobs": [value] * 3}
                )
    return lines


def leaning(n: int, by: float, seed: int = 0) -> list[float]:
    return np.random.default_rng(seed).normal(by, 1.0, n).tolist()


# ---- one pair ----

texts = st.sampled_from(["a", "b", ""])
finishes = st.sampled_from(["stop", "length", "content_filter"])
scores = st.one_of(
    st.none(), st.just([]),
    st.lists(st.floats(-60, 0, allow_subnormal=False), min_size=1, max_size=4),
    st.just([float("-inf")]),
)  # fmt: skip


@given(
    st.tuples(texts, texts), st.tuples(finishes, finishes), st.tuples(scores, scores),
    st.one_of(st.none(), st.tuples(scores, scores)), st.booleans(),
)  # fmt: skip
@settings(max_examples=400)
def test_exchanging_served_and_twin_negates_the_difference_exactly(
    said: Any, ended: Any, suspect: Any, teacher: Any, prefixed: bool
) -> None:
    def of(order: tuple[int, int]) -> float | str:
        pair: dict[str, Any] = {
            side: to_dict(answer(0, said[at], 0, ended[at]))
            for side, at in zip(SIDES, order, strict=True)
        }
        if prefixed:
            pair["rest"] = {side: said[at] for side, at in zip(SIDES, order, strict=True)}
        told = [
            None if s is None else {x: s[at] for x, at in zip(SIDES, order, strict=True)}
            for s in (suspect, teacher)
        ]
        return difference(pair, told[0] or {}, told[1])

    there, back = of((0, 1)), of((1, 0))
    if isinstance(there, str):
        assert back == there  # left out either way, for the same reason
    else:
        assert isinstance(back, float)
        assert back == -there


# ---- the whole evidence ----


KINDS = st.sampled_from([
    "plain", "plain", "plain", "same text", "filtered", "withheld", "missing", "unread suspect",
    "unread teacher", "impossible", "greedy", "again", "no twin", "no settings", "equal liking",
])  # fmt: skip


def everywhere(kinds: list[str], gaps: list[float], mirrored: bool) -> dict[str, Any]:
    """Raw lines with an exclusion of every kind; mirrored: what was the twin was served."""
    lines: dict[str, Any] = {"candidates": [], "pairs": [], "scores": []}
    for number, (kind, gap) in enumerate(zip(kinds, gaps, strict=True)):
        texts = ("one", "one" if kind == "same text" else "another")
        ends = ("content_filter" if kind == "filtered" else "stop", "length")
        both = [answer(number, texts[i], i, ends[i] if kind != "same text" else "stop")
                for i in (0, 1)]  # fmt: skip
        if kind in ("greedy", "no settings"):
            bare = Sampling() if kind == "no settings" else Sampling(temperature=0.0)
            both = [replace(each, sampling=bare) for each in both]
        likes = [{"suspect": gap - 1.5, "teacher": -1.0}, {"suspect": -1.5, "teacher": -1.25}]
        order = (1, 0) if mirrored else (0, 1)
        served, twin = both[order[0]], both[order[1]]
        lines["candidates"].append(facts(served, int(kind != "no twin")))
        if kind == "again":  # the same prompt, a later sample
            later = replace(served.sampling, sample_index=4)
            lines["candidates"].append(facts(replace(served, sampling=later), 1))
        if kind in ("greedy", "no settings", "no twin"):
            continue
        pair: dict[str, Any] = {"exchange": served.id}
        if kind == "missing":
            lines["pairs"].append(pair | {"missing": "the teacher gave no twin"})
            continue
        pair |= {"served": to_dict(served), "twin": to_dict(twin)}
        lines["pairs"].append(pair | ({"withheld": "masked"} if kind == "withheld" else {}))
        for side, at in zip(SIDES, order, strict=True):
            for role in ("suspect", "teacher"):
                values: Any = [likes[at][role]] * 3
                if kind == f"unread {role}" and at == 0:
                    values = []
                if kind == "impossible" and at == 1 and role == "suspect":
                    values = [None]
                if kind == "equal liking":
                    values = [-1.0]
                lines["scores"].append(
                    {"role": role, "exchange": served.id, "side": side, "logprobs": values}
                )
    return lines


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_exchanging_served_and_twin_everywhere_negates_every_difference_and_counts_the_same(
    data: st.DataObject,
) -> None:
    kinds = ["plain"] * 28 + data.draw(st.lists(KINDS, min_size=12, max_size=20))
    kinds = [k for n, k in enumerate(kinds) if k != "missing" or n < 30]  # over a tenth is refused
    gaps = data.draw(
        st.lists(st.sampled_from([-2.0, -0.7, -0.1, 0.05, 0.3, 1.1, 2.5]), min_size=len(kinds),
                 max_size=len(kinds))
    )  # fmt: skip
    plan = PLAN | {"teacher": "t", "taken_off": True, "twins": "drawn later"}
    found = []
    for mirrored in (False, True):
        lines = everywhere(kinds, gaps, mirrored)
        prompts = {row["exchange"]: row["prompt"] for row in lines["candidates"]}
        told = evidence(plan, lines, {})
        found.append((told, {prompts[e]: gap for e, gap in told["differences"].items()}))
    (there, ours), (back, theirs) = found
    assert {prompt: -gap for prompt, gap in ours.items()} == theirs
    assert there["excluded"] == back["excluded"]
    whole = there["n"] * (there["n"] + 1) / 2
    assert there["statistic"]["value"] == whole - back["statistic"]["value"]
    assert there["secondary"]["teacher_gate"] == back["secondary"]["teacher_gate"]


def test_a_leaning_suspect_is_evidence_and_a_fair_one_is_not() -> None:
    leans, fair = (evidence(PLAN, raw(leaning(120, by)), {}) for by in (0.9, 0.0))
    assert leans["verdict"] == words.EVIDENCE
    assert leans["p_value"] < 1e-6
    assert fair["verdict"] == words.NONE_FOUND
    assert fair["p_value"] > 0.01
    assert fair["secondary"]["share_upper_bound"] > fair["effect"]["value"]
    assert "at most" in " ".join(fair["says"])
    assert leans["basis"] == "design-based"


def test_the_p_value_of_innocents_is_uniform() -> None:
    p = [evidence(PLAN, raw(leaning(25, 0.0, seed)), {})["p_value"] for seed in range(200)]
    for level in (0.05, 0.2, 0.5):
        share = float(np.mean(np.array(p) <= level))
        assert abs(share - level) < 3 * (level * (1 - level) / 200) ** 0.5


def test_a_choice_by_answers_breaks_the_size() -> None:
    """Why conditions on answers are refused: keep the pairs whose served answer is the likelier."""
    rng = np.random.default_rng(5)
    wrong = 0
    for _ in range(100):
        likes = rng.normal(0, 1, (120, 2))
        kept = likes[likes[:, 0] > np.median(likes)][:40]  # "long", "good", "fluent" answers
        wrong += evidence(PLAN, raw((kept[:, 0] - kept[:, 1]).tolist()), {})["p_value"] <= 0.05
    assert wrong > 90


def test_taking_off_the_teachers_own_preference_shows_what_it_drowned() -> None:
    own = leaning(60, 0.0)
    suspect = [
        value + 0.1 + extra / 10 for value, extra in zip(own, leaning(60, 0, 9), strict=True)
    ]
    assert evidence(PLAN, raw(suspect), {})["p_value"] > 0.01
    assert evidence(PLAN | {"taken_off": True}, raw(suspect, own), {})["p_value"] < 1e-4


def test_the_level_is_shared_among_the_looks_declared() -> None:
    lines = raw(leaning(60, 0.4, 3))
    found = evidence(PLAN, lines, {})
    assert 0.0001 < found["p_value"] <= 0.01
    assert found["verdict"] == words.EVIDENCE
    assert evidence(PLAN | {"looks": 100}, lines, {})["verdict"] == words.NONE_FOUND


def test_too_few_pairs_are_refused_with_the_reasons_for_the_others() -> None:
    lines = raw(leaning(FEWEST_PAIRS, 0.0))
    lines["pairs"][0]["twin"] = to_dict(answer(0, "served", 1))
    with pytest.raises(EvidenceError, match=r"19 pairs with a sign .*1 served answer and twin"):
        evidence(PLAN, lines, {})


def test_a_level_that_no_outcome_reaches_is_not_enough_evidence() -> None:
    found = evidence(PLAN | {"alpha": 1e-9}, raw(leaning(FEWEST_PAIRS, 5.0)), {})
    assert found["verdict"] == words.NOT_ENOUGH


def test_a_pair_that_was_not_drawn_is_refused() -> None:
    lines = raw(leaning(30, 0.0))
    lines["candidates"].pop()
    with pytest.raises(EvidenceError, match="1 of exchanges that the draw did not choose"):
        evidence(PLAN, lines, {})


def test_a_changed_teacher_is_refused_and_an_unchanged_one_is_not() -> None:
    plan = PLAN | {"teacher": "t", "twins": "drawn later"}
    suspect = leaning(80, 0.8)
    for seen in (1.0, -1.0):  # it likes its fresh answers more, or the old ones
        found = evidence(plan, raw(suspect, leaning(80, seen, 1)), {})
        assert found["verdict"] == words.REFUSED
        assert found["p_value"] is None
        assert "not the one that answered" in found["says"][0]
        assert found["secondary"]["teacher_gate"]["p_value"] < 1e-3
    fair = evidence(plan, raw(suspect, leaning(80, 0.0, 1)), {})
    assert fair["verdict"] == words.EVIDENCE
    assert any("not escrowed" in line for line in fair["cannot"])


def test_a_suspect_that_scores_the_same_text_otherwise_later_is_refused() -> None:
    lines = raw(leaning(40, 0.9))
    again = dict(lines["scores"][0]) | {"role": "repeat"}
    lines["scores"].append(again)
    assert evidence(PLAN, lines, {})["verdict"] == words.EVIDENCE
    again["logprobs"] = [value - 0.2 for value in again["logprobs"]]
    found = evidence(PLAN, lines, {})
    assert found["verdict"] == words.REFUSED
    assert "more than one model" in found["says"][0]


# ---- text only ----


def test_with_text_only_the_suspects_answers_are_held_against_both() -> None:
    lines = raw([0.0] * 30)
    del lines["scores"]
    lines["continuations"] = [
        {
            "exchange": p["exchange"],
            "sample": s,
            "round": 1,
            "text": "served indeed" if n < 27 else "one more a twin",
            "served_model": "x",
            "time": "2026-11-01",
        }
        for n, p in enumerate(lines["pairs"])
        for s in range(2)
    ]
    found = evidence(PLAN | {"access": "text"}, lines, {})
    assert (found["n"], found["verdict"]) == (30, words.EVIDENCE)
    assert found["effect"]["value"] == 0.9
    lines["continuations"].pop()  # one answer failed for good: its pair is left out
    assert evidence(PLAN | {"access": "text"}, lines, {})["excluded"] == {
        "an answer that could not be scored": 1
    }
    lines["continuations"][0]["served_model"] = "y"
    assert evidence(PLAN | {"access": "text"}, lines, {})["verdict"] == words.REFUSED


def test_overlap_by_hand() -> None:
    assert overlap("abcdefg", "abcdefg") == 1.0
    assert overlap("abc", "xyz") == overlap("", "abc") == 0.0
    # "ab" and "ac": one of two single characters shared, none of the pairs
    assert overlap("ab", "ac") == pytest.approx(0.5 / 6)
    assert overlap("a  b\nc", "a b c") == overlap("a b c", "a b c")


@given(st.text(max_size=30), st.text(max_size=30))
def test_overlap_is_symmetric_and_a_share(first: str, second: str) -> None:
    assert overlap(first, second) == overlap(second, first)
    assert 0 <= overlap(first, second) <= 1


# ---- words ----


def test_no_report_uses_a_forbidden_word() -> None:
    found = [
        evidence(
            PLAN | {"twins": kind, "teacher": "t"}, raw(leaning(40, by), leaning(40, 0, 1)), {}
        )
        for kind in ("of a store", "drawn later")
        for by in (0.0, 2.0)
    ]
    for one in found:
        text = " ".join([one["verdict"], *one["says"], *one["cannot"]]).casefold()
        assert one["verdict"] in words.VERDICTS
        assert not [word for word in words.FORBIDDEN if f" {word}" in f" {text}"]
