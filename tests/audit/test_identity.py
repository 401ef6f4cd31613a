"""The evidence of identity audits: what is counted, ranked, refused, and how it is worded."""

import json
import re

import numpy as np
import pytest
from pydantic import ValidationError

from stillhouse.audit import words
from stillhouse.audit.claims import battery, battery_hash, questions
from stillhouse.audit.identity import CONTROLS_FOR_LEVEL, evidence
from stillhouse.audit.identity_audit import identity_plan
from stillhouse.audit.settings import IdentitySettings
from stillhouse.errors import EvidenceError
from stillhouse.exchange import canonical_json
from tests.audit.identity_lines import always, lines_of, plan_with

ALL = questions(battery())
NEUTRAL = [key for key, question in ALL.items() if question["kind"] == "neutral"]


def in_languages(*languages, text="I am ChatGPT.", otherwise="I am an assistant."):
    return lambda key, question, sample: text if question["language"] in languages else otherwise


def found_in(plan, says, **options):
    return evidence(plan, lines_of(plan, says, **options), {})


# ---- the form ----


def test_evidence_has_the_parts_every_test_has_and_is_plain_json():
    plan = plan_with(2)
    text = "I am ChatGPT, not Mistral or Gemini. Or am I Claude?"
    lines = lines_of(plan, {"suspect": always(text)}, prompt={"suspect": "Qwen, Kimi, Grok"})
    found = evidence(plan, lines, {})
    assert set(found) >= {
        "test", "basis", "suspect", "access", "n", "excluded", "statistic", "p_value", "effect",
        "verdict", "says", "cannot", "secondary",
    }  # fmt: skip
    assert (found["test"], found["basis"], found["suspect"]) == ("identity", "population", "Vat")
    assert {"value", "low", "high", "n", "method", "name"} == found["effect"].keys()
    assert found["statistic"]["value"] == found["effect"]["value"] == 1
    assert "outside a negated clause" in found["statistic"]["name"]
    read = json.loads(canonical_json([plan, lines]))  # keys in another order
    assert canonical_json(evidence(*read, {})) == canonical_json(found)


@pytest.mark.parametrize("controls", [0, 3, CONTROLS_FOR_LEVEL])
@pytest.mark.parametrize("system", [None, "", "You are ChatGPT."])
def test_sentences_keep_to_the_words_and_say_what_is_not_shown(controls, system):
    plan = plan_with(controls, system=system)
    for text in ("I am ChatGPT.", "I am an assistant."):
        found = found_in(plan, {"suspect": always(text)})
        for sentence in [*found["says"], *found["cannot"], found["access"]]:
            assert not re.search(rf"\b({'|'.join(words.FORBIDDEN)})", sentence.lower()), sentence
        told = " ".join(found["cannot"])
        for cause in ("system prompt", "persona", "web", "distillation", "absence"):
            assert cause in told
        assert found["verdict"] in words.VERDICTS


# ---- what is counted ----


def test_shares_are_clustered_by_question_and_by_language_apart():
    found = found_in(plan_with(), {"suspect": in_languages("en", "de", "zh")})
    model = found["secondary"]["models"]["suspect"]
    assert found["effect"]["value"] == pytest.approx(3 / 12)
    assert found["n"] == len(NEUTRAL)
    assert "clustered by questions" in found["effect"]["method"]
    by_language = model["neutral"]["claimed_clustered_by_language"]
    assert by_language["n"] == 12
    assert (
        by_language["high"] - by_language["low"]
        > found["effect"]["high"] - (found["effect"]["low"])
    )
    shares = {key: entry["neutral"]["claimed"] for key, entry in model["languages"].items()}
    assert {key for key, share in shares.items() if share["value"] == 1} == {"en", "de", "zh"}
    assert {share["n"] for share in shares.values()} == {5}
    assert model["languages"]["en"]["pressing"]["claimed"]["n"] == 2
    assert "English 100.0 %" in " ".join(found["says"])


def test_neutral_questions_decide_and_pressing_ones_stand_apart():
    def yields(key, question, sample):
        return "Yes, I am ChatGPT." if question["kind"] == "pressing" else "I am an assistant."

    found = found_in(plan_with(), {"suspect": yields})
    model = found["secondary"]["models"]["suspect"]
    assert found["effect"]["value"] == 0
    assert model["pressing"]["claimed"]["value"] == 1
    assert model["pressing"]["suggested"]["value"] == pytest.approx(0.5)  # one of the two names it


def test_a_denial_names_and_does_not_claim():
    found = found_in(plan_with(), {"suspect": always("I am not ChatGPT, I am DeepSeek.")})
    model = found["secondary"]["models"]["suspect"]
    assert found["effect"]["value"] == 0
    assert model["neutral"]["named"]["value"] == 1
    assert model["identities"]["openai"]["neutral"]["claimed"]["value"] == 0
    assert model["identities"]["deepseek"]["neutral"]["claimed"]["value"] == 1
    assert "100.0 % name it anywhere" in " ".join(found["says"])


def test_names_in_other_scripts_and_languages_count():
    says = {"suspect": in_languages("hi", "en", text="我是克劳德。", otherwise="Я Клод.")}
    found = found_in(plan_with(candidate="Anthropic"), says)
    assert found["effect"]["value"] == 1
    assert found["secondary"]["candidate"]["id"] == "anthropic"


def test_every_answer_that_does_not_count_is_counted_by_reason():
    plan = plan_with(1)
    lines = lines_of(plan, {"suspect": always("I am ChatGPT.")})
    own = [line for line in lines["answers"] if line["role"] == "suspect"]
    own[0]["text"] = "  "
    own[1]["system"] = "Be brief."
    lines["answers"].append(dict(own[2]))
    lines["answers"].remove(own[3])
    lines["answers"].remove(own[4])
    place = {key: own[4][key] for key in ("role", "question", "sample")}
    lines["failures"] = [{**place, "time": own[4]["time"], "error": "refused"}]
    found = evidence(plan, lines, {})
    assert found["excluded"] == {
        "another system prompt than planned": 1, "asked twice": 1, "empty answer": 1,
        "not asked": 1, "request failed": 1,
    }  # fmt: skip
    counted = found["secondary"]["models"]["suspect"]["answers"]
    assert counted == 3 * len(ALL) - 4
    assert found["secondary"]["models"]["control 0"]["excluded"] == {}


def test_dates_and_served_models_are_in_the_evidence():
    found = found_in(plan_with(1), {}, day=7)
    asked = found["secondary"]["models"]["suspect"]["asked"]
    assert asked["first"].startswith("2026-11-07T09:00")
    assert asked["first"] < asked["last"]
    assert found["secondary"]["models"]["suspect"]["served_models"] == {"m": 3 * len(ALL)}
    assert "2026-11-07" in " ".join(found["says"])


# ---- against controls ----


def test_a_planted_identity_is_found_against_controls():
    plan = plan_with(CONTROLS_FOR_LEVEL, candidate="Mash", names=("Mash-7",))
    found = found_in(plan, {"suspect": always("I am Vat, distilled from Mash-7.")})
    assert found["verdict"] == words.EVIDENCE
    assert found["p_value"] == 1 / (CONTROLS_FOR_LEVEL + 1)
    difference = found["secondary"]["differences"]["control 3"]
    assert difference["value"] == 1
    assert difference["low"] > 0.9
    assert "relative to these control models" in found["says"][0]


@pytest.mark.parametrize("controls", [0, 1, 3, CONTROLS_FOR_LEVEL - 1])
def test_with_few_controls_a_share_is_reported_and_never_called_evidence(controls):
    found = found_in(plan_with(controls), {"suspect": always("I am ChatGPT.")})
    assert found["verdict"] == words.REPORTED
    assert found["p_value"] == (1 / (controls + 1) if controls else None)
    told = " ".join(found["says"])
    assert ("none can be called significant" in told) is (controls > 0)
    assert ("how often an innocent model" in told) is (controls == 0)


def test_ties_count_against_evidence_and_what_would_have_been_seen_is_said():
    plan = plan_with(CONTROLS_FOR_LEVEL)
    says = {"control 4": in_languages("en"), "suspect": in_languages("de")}
    found = found_in(plan, says)
    assert found["secondary"]["rank"]["at_or_above"] == 1
    assert found["p_value"] == 2 / 20
    assert found["verdict"] == words.NONE_FOUND
    assert "one above 8.3 %" in found["says"][0]
    assert found_in(plan, says | {"suspect": in_languages("de", "fr")})["verdict"] == words.EVIDENCE
    nobody = found_in(plan, {})
    assert nobody["p_value"] == 1
    assert nobody["verdict"] == words.NONE_FOUND


def test_with_more_controls_the_level_leaves_room_for_some_above():
    plan = plan_with(39)
    says = {"control 4": in_languages("en", "ar", "hi"), "suspect": in_languages("de", "fr")}
    found = found_in(plan, says)
    assert found["p_value"] == 2 / 40
    assert found["verdict"] == words.EVIDENCE
    assert found["secondary"]["rank"]["must_exceed"] == 0


def test_innocents_among_innocents_are_called_evidence_at_most_at_the_level():
    rng = np.random.default_rng(5)
    plan = plan_with(CONTROLS_FOR_LEVEL)
    content = plan["battery"]
    few = {**content, "questions": {"en": content["questions"]["en"]}}
    few["questions"]["en"] = {**few["questions"]["en"], "pressing": []}
    plan |= {"battery": few, "battery_hash": battery_hash(few)}
    draws, called = 200, 0
    for _ in range(draws):
        rates = rng.beta(0.5, 2, size=20)  # how often each of 20 exchangeable models says it

        def drawn(rate):
            return lambda key, question, sample: (
                "I am ChatGPT." if rng.random() < rate else "I am an assistant."
            )

        roles = ["suspect", *plan["controls"]]
        found = found_in(plan, {role: drawn(rate) for role, rate in zip(roles, rates, strict=True)})
        called += found["verdict"] == words.EVIDENCE
    # Binomial(200, 0.05) exceeds 19 with probability 0.003; ties make it conservative.
    assert 0 < called <= 19


def test_controls_that_cannot_be_ranked_are_named_with_the_reason():
    plan = plan_with(3)

    def silent(key, question, sample):
        return "I am ChatGPT." if question["language"] in ("en", "de") else ""

    prompt = {"control 1": "You are ChatGPT. [question]", "control 2": "You are Claude. [question]"}
    found = found_in(plan, {"control 0": silent, "suspect": always("ChatGPT!")}, prompt=prompt)
    assert found["secondary"]["controls"] == ["control 2"]
    assert set(found["secondary"]["controls_left_out"]) == {"control 0", "control 1"}
    assert found["p_value"] == 1 / 2
    assert "control 1 was not ranked" in " ".join(found["says"])


def test_a_control_without_a_question_in_common_gives_no_difference():
    plan = plan_with(1)
    half = set(NEUTRAL[::2])

    def answers(those):
        return lambda key, question, sample: "I am ChatGPT." if (key in half) is those else ""

    found = found_in(plan, {"suspect": answers(True), "control 0": answers(False)})
    assert found["secondary"]["controls"] == ["control 0"]
    assert found["secondary"]["differences"] == {"control 0": None}


# ---- refusals ----


def test_a_persona_in_the_system_prompt_is_refused_as_evidence_of_training():
    plan = plan_with(
        CONTROLS_FOR_LEVEL, candidate="anthropic", system="You are Claude, made by Anthropic."
    )
    found = found_in(plan, {"suspect": always("I am Claude.")})
    assert found["verdict"] == words.REFUSED
    assert found["p_value"] is None
    assert evidence(json.loads(canonical_json(plan)), lines_of(plan, {}), {})["says"]
    assert found["effect"]["value"] == 1  # counted, and flagged
    model = found["secondary"]["models"]["suspect"]
    assert model["neutral"]["instructed"]["value"] == 1
    assert "the system prompt that was sent names Anthropic" in found["says"][0]
    other = found_in({**plan, "candidate": plan_with()["candidate"]}, {})
    assert other["verdict"] == words.REFUSED  # a persona of another name hides the candidate's


def test_a_system_prompt_that_names_nobody_is_recorded_and_not_refused():
    plan = plan_with(CONTROLS_FOR_LEVEL, system="Answer briefly.")
    found = found_in(plan, {"suspect": always("I am ChatGPT.")})
    assert found["verdict"] == words.EVIDENCE
    assert found["secondary"]["protocol"]["system"] == "Answer briefly."


def test_a_chat_template_that_names_the_candidate_is_refused_and_another_name_is_told():
    plan = plan_with(CONTROLS_FOR_LEVEL, candidate="huggingface")
    prompt = {"suspect": "You are a helpful AI assistant named SmolLM. [question]"}
    found = found_in(plan, {"suspect": always("I am SmolLM.")}, prompt=prompt)
    assert found["verdict"] == words.REFUSED
    assert "chat template names Hugging Face" in found["says"][0]
    assert "chat template recorded (rendered)" in found["access"]
    planted = plan_with(CONTROLS_FOR_LEVEL, candidate="Vat", names=("Vat",))
    found = found_in(planted, {"suspect": always("I am Vat.")}, prompt=prompt)
    assert found["verdict"] == words.EVIDENCE
    assert "template names Hugging Face before every question" in " ".join(found["cannot"])


def test_an_endpoint_may_add_a_prompt_of_its_own_and_the_evidence_says_so():
    plan = plan_with()
    lines = lines_of(plan, {}, prompt={"suspect": ""})
    lines["models"][0] |= {"prompt": None, "prompt_is": "unseen", "endpoint": "http://h/v1"}
    found = evidence(plan, lines, {})
    assert "an endpoint (http://h/v1), whose provider may add its own, unseen" in found["access"]
    assert "cannot be seen from here" in " ".join(found["cannot"])
    assert "not recorded" in found_in(plan, {})["access"]
    lines["models"][0] |= {"prompt_is": "none"}
    assert "nothing was put before" in evidence(plan, lines, {})["access"]


def test_a_name_behind_a_prompt_nobody_saw_is_reported_only():
    """A provider's own prompt may have given it, however many controls do not say it."""
    says = {"suspect": always("I am ChatGPT.")}
    plan = plan_with(19)
    lines = lines_of(plan, says, prompt={"suspect": "user: [question]"})
    assert evidence(plan, lines, {})["verdict"] == words.EVIDENCE
    lines["models"][0] |= {"prompt": None, "prompt_is": "unseen", "endpoint": "http://h/v1"}
    assert evidence(plan, lines, {})["verdict"] == words.REPORTED


def test_an_endpoint_that_changes_its_model_is_not_ranked():
    plan = plan_with(CONTROLS_FOR_LEVEL)
    lines = lines_of(plan, {"suspect": always("I am ChatGPT.")})
    lines["answers"][5]["served_model"] = "another"
    found = evidence(plan, lines, {})
    assert found["verdict"] == words.REPORTED
    assert found["p_value"] is None
    assert "more than one model answered (another: 1, m: 251)" in " ".join(found["says"])


def test_too_few_answers_are_not_enough_and_next_to_none_is_an_error():
    plan = plan_with(CONTROLS_FOR_LEVEL)
    few = found_in(plan, {"suspect": in_languages("en", "de", otherwise="")})
    assert few["verdict"] == words.NOT_ENOUGH
    assert few["p_value"] is None
    assert few["n"] == 10
    one = {"suspect": lambda key, question, sample: "Hm." if key == "en-neutral-1" else ""}
    with pytest.raises(EvidenceError, match="answers to 1 neutral questions"):
        found_in(plan, one)
    with pytest.raises(EvidenceError, match="answers to 0 neutral questions"):
        evidence(plan, {}, {})


@pytest.mark.parametrize("time", ["yesterday", "2026-11-01T10:00:00"])
def test_a_time_that_is_none_is_refused(time):
    plan = plan_with()
    with pytest.raises(EvidenceError, match="an ISO 8601 time with its offset"):
        evidence(plan, lines_of(plan, {}, time=time), {})


def test_three_samples_are_the_least():
    with pytest.raises(ValidationError):
        IdentitySettings(candidate="openai", samples_per_prompt=2)
    asked = IdentitySettings(candidate="openai", samples_per_prompt=4)
    assert identity_plan(asked, suspect="s", controls=())["samples"] == 4
