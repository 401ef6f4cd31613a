"""What changed between two identity audits: intervals that hold, and what may not be compared."""

import copy
import json

import numpy as np
import pytest

from stillhouse.audit import words
from stillhouse.audit.identity import evidence
from stillhouse.audit.identity_change import compare, paired_share_difference
from stillhouse.errors import EvidenceError
from stillhouse.exchange import canonical_json
from tests.audit.identity_lines import always, lines_of, plan_with


def audit(says, *, day, **options):
    plan = plan_with(**options)
    return evidence(plan, lines_of(plan, {"suspect": says}, day=day), {})


def in_languages(*languages):
    return lambda key, question, sample: (
        "I am ChatGPT." if question["language"] in languages else "I am an assistant."
    )


# ---- the interval ----


def test_the_interval_is_agresti_and_mins_for_matched_pairs():
    # 40 pairs of one trial each: 12 say it only before, 4 only after. By hand: 12.5 and 4.5 of 42.
    first, second = [1.0] * 12 + [0.0] * 28, [0.0] * 12 + [1.0] * 4 + [0.0] * 24
    found = paired_share_difference(first, second)
    middle, spread = 8 / 42, (17 - 64 / 42) ** 0.5 / 42
    assert found.value == pytest.approx(0.2)
    assert found.low == pytest.approx(middle - 1.959964 * spread, abs=1e-6)
    assert found.high == pytest.approx(middle + 1.959964 * spread, abs=1e-6)
    assert found.n == 40


def test_questions_that_agree_do_not_give_an_interval_without_width():
    same = paired_share_difference([0.0] * 5, [0.0] * 5)
    assert same.low < -0.1 < 0.1 < same.high
    whole = paired_share_difference([1.0] * 60, [0.0] * 60)
    assert (whole.value, whole.high) == (1, 1)
    assert 0.9 < whole.low < 1


@pytest.mark.parametrize("questions", [5, 24, 60])
@pytest.mark.parametrize("before", [0.02, 0.3])
@pytest.mark.parametrize("after", [0.02, 0.6])
def test_the_interval_holds_the_true_difference_as_often_as_it_says(questions, before, after):
    rng = np.random.default_rng(3)
    draws, held = 400, 0
    truth = _mean_share(after) - _mean_share(before)
    for _ in range(draws):
        # Questions differ, and in the same way on both occasions; three answers to each.
        shift = rng.normal(0, 1, questions)

        def share(mean, shift=shift):
            odds = np.log(mean / (1 - mean)) + shift
            return rng.binomial(3, 1 / (1 + np.exp(-odds))) / 3

        found = paired_share_difference(share(after), share(before))
        held += found.low <= truth <= found.high
    # Binomial(400, 0.95) falls below 366 with probability 0.001.
    assert held >= 366


def _mean_share(mean):
    shifts = np.random.default_rng(0).normal(0, 1, 200_000)
    return float((1 / (1 + np.exp(-(np.log(mean / (1 - mean)) + shifts)))).mean())


# ---- two audits ----


def test_a_model_that_no_longer_says_it():
    before = audit(always("I am ChatGPT."), day=1)
    after = audit(always("I am Claude."), day=20)
    found = compare(json.loads(canonical_json(before)), json.loads(canonical_json(after)))
    first = found["changes"][0]
    assert (first["identity"], first["language"], first["kind"]) == ("openai", None, "neutral")
    assert first["difference"]["value"] == -1
    assert first["changed"]
    assert (first["earlier"]["value"], first["later"]["value"]) == (1, 0)
    other = next(change for change in found["changes"] if change["identity"] == "anthropic")
    assert other["difference"]["value"] == 1
    assert other["changed"]
    assert "on 2026-11-01 and 0.000 on 2026-11-20" in found["says"][0]
    assert "It changed." in found["says"][0]
    assert canonical_json(found)
    for sentence in [*found["says"], *found["cannot"]]:
        assert not any(word in sentence.lower() for word in words.FORBIDDEN)


def test_a_change_in_some_languages_is_found_there_and_in_the_whole():
    before = audit(in_languages("en", "de", "fr", "es"), day=1)
    after = audit(in_languages("de", "es"), day=2)
    found = compare(before, after)
    by_language = {c["language"]: c for c in found["changes"] if c["language"] is not None}
    assert len(by_language) == 12
    assert by_language["en"]["difference"]["value"] == -1
    assert by_language["de"]["difference"]["value"] == 0
    assert not by_language["de"]["changed"]
    assert found["changes"][0]["difference"]["value"] == pytest.approx(-2 / 12)
    assert found["changes"][0]["changed"]
    assert "99.6" in by_language["en"]["difference"]["method"]  # 1 - 0.05 / 13


def test_nothing_changed_is_said_so():
    says = in_languages("en", "zh")
    found = compare(audit(says, day=1), audit(says, day=2))
    assert not any(change["changed"] for change in found["changes"])
    assert "No change found beyond chance" in found["says"][0]
    assert "Of 13 further shares that were compared, 0 changed" in found["says"][1]


def test_a_new_name_of_the_model_that_answers_is_told():
    before, after = (audit(always("Hm."), day=day) for day in (1, 2))
    after["secondary"]["models"]["suspect"]["served_models"] = {"m-2": 252}
    assert "answered m before and m-2 now" in compare(before, after)["says"][-1]


def test_places_without_two_common_questions_are_left_out():
    def german(key, question, sample):
        return "I am ChatGPT." if question["language"] == "de" else ""

    found = compare(audit(german, day=1), audit(always("Hm."), day=2))
    assert {change["language"] for change in found["changes"]} == {None, "de"}
    assert found["changes"][0]["difference"]["n"] == 5


# ---- refusals ----


def test_audits_without_common_questions_are_refused():
    def only(language):
        return lambda key, question, sample: "Hm." if question["language"] == language else ""

    with pytest.raises(EvidenceError, match="0 questions answered on both sides"):
        compare(audit(only("de"), day=1), audit(only("fr"), day=2))


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("system", {"system": "Be brief."}), ("samples", {"samples_per_prompt": 4}),
        ("sampling", {"temperature": 0.5}), ("candidate", {"candidate": "anthropic"}),
        ("candidate", {"names": ("Orion",)}),
    ],
)  # fmt: skip
def test_audits_of_other_settings_are_not_compared(key, options):
    before = audit(always("Hm."), day=1)
    with pytest.raises(EvidenceError, match=f"comparison of identity audits, {key}"):
        compare(before, audit(always("Hm."), day=2, **options))


def test_another_battery_and_another_test_are_refused():
    before = audit(always("Hm."), day=1)
    after = copy.deepcopy(audit(always("Hm."), day=2))
    after["secondary"]["protocol"]["battery_hash"] = "sha256:0"
    with pytest.raises(EvidenceError, match="battery_hash"):
        compare(before, after)
    with pytest.raises(EvidenceError, match="the test: twin"):
        compare(before, {"test": "twin"})


def test_audits_in_the_wrong_order_or_at_one_time_are_refused():
    before, after = audit(always("Hm."), day=1), audit(always("Hm."), day=2)
    for pair in ((after, before), (before, before)):
        with pytest.raises(EvidenceError, match="Give the earlier audit first"):
            compare(*pair)
