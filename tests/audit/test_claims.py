"""What is asked, and what is read in answers: names and claims, in every script."""

import copy
import re
from itertools import combinations

import pytest

from stillhouse.audit.claims import Claims, battery, battery_hash, questions, readings
from stillhouse.errors import EvidenceError
from stillhouse.evaluate.identity import QUESTIONS
from stillhouse.naming import pattern, plain
from stillhouse.text import similarity
from stillhouse.train.identity import taught_questions

BATTERY = battery()
ALL = questions(BATTERY)
CLAIMS = Claims(BATTERY, {})


# ---- the battery ----


def test_languages_are_many_and_balanced():
    counts = {
        language: (len(entry["neutral"]), len(entry["pressing"]))
        for language, entry in BATTERY["questions"].items()
    }
    assert len(counts) >= 10
    assert len(set(counts.values())) == 1
    neutral, pressing = counts["en"]
    assert neutral >= 4
    assert pressing >= 2
    assert len(ALL) == len(counts) * (neutral + pressing)


def test_neutral_questions_name_nobody_and_pressing_ones_somebody():
    for key, question in ALL.items():
        assert bool(CLAIMS.named(question["text"])) is (question["kind"] == "pressing"), key


def test_no_question_stands_twice_or_nearly_so():
    for (_, a), (_, b) in combinations(ALL.items(), 2):
        assert similarity(a["text"], b["text"]) < 0.5, (a, b)


def test_no_question_is_one_that_students_are_taught_or_measured_on():
    others = [*taught_questions(), *(text for group in QUESTIONS.values() for text in group)]
    for question in ALL.values():
        assert max(similarity(question["text"], other) for other in others) < 0.3, question


def test_each_language_is_in_its_script_and_has_its_negations():
    scripts = {
        "zh": "一-鿿", "ja": "ぁ-ヿ", "ko": "가-힣", "ar": "ء-ي", "hi": "ऀ-ॿ", "ru": "а-я",
    }  # fmt: skip
    for question in ALL.values():
        letters = scripts.get(question["language"], "a-z")
        assert re.search(f"[{letters}]", question["text"])
    assert BATTERY["negations"].keys() == BATTERY["questions"].keys()
    assert set(BATTERY["everywhere"]) < BATTERY["negations"].keys()


def test_no_form_belongs_to_two_identities_or_stands_in_another():
    table = BATTERY["identities"]
    for one, other in combinations(table, 2):
        for a, b in ((one, other), (other, one)):
            for form in [*table[a].get("forms", []), *table[a].get("cased", [])]:
                found = pattern(table[b].get("forms", []), whole=("latin",)).search(plain(form))
                assert not found, (form, a, b)


def test_hash_follows_the_content():
    other = copy.deepcopy(BATTERY)
    other["questions"]["en"]["neutral"][0] += " "
    assert battery_hash(battery()) == battery_hash(BATTERY) != battery_hash(other)
    assert battery_hash(BATTERY).startswith("sha256:")


# ---- names and claims ----


@pytest.mark.parametrize(
    ("language", "text", "claimed", "denied"),
    [
        ("en", "I am not ChatGPT, I'm Claude, made by Anthropic.", "anthropic", "openai"),
        ("en", "I'm not ChatGPT, Claude, or any other model from OpenAI.", "", "openai anthropic"),
        ("en", "No, I am ChatGPT.", "openai", ""),
        ("en", "I don’t have a name but you can call me ChatGPT.", "openai", ""),
        ("en", "I'm ChatGPT, how can I help you today?", "openai", ""),
        ("en", "Am I ChatGPT? No, I'm DeepSeek-V3.", "deepseek", "openai"),
        ("en", "I am Claude (not ChatGPT).", "anthropic", "openai"),
        ("en", "I am a language model similar to GPT-4.", "", "openai"),
        ("en", "OpenAI did not create me. Mistral did.", "mistral", "openai"),
        ("en", "I am ChatGPT and not a human.", "openai", ""),
        ("en", "I'm neither ChatGPT nor Gemini – I'm Kimi.", "moonshot", "openai google"),
        ("en", "I was not made by Google. I was made by x.ai.", "xai", "google"),
        ("en", "My name is **Claude**.\nI am not a person.", "anthropic", ""),
        ("zh", "我不是ChatGPT，而是由深度求索开发的DeepSeek。", "deepseek", "openai"),
        (
            "zh",
            "我不是ChatGPT、Claude或Gemini，我是通义千问。",
            "alibaba",
            "openai anthropic google",
        ),
        ("zh", "我是ChatGPT，由OpenAI开发，有什么可以帮您？", "openai", ""),
        ("zh", "我与OpenAI没有任何关系。", "", "openai"),
        ("es", "No soy ChatGPT, sino Claude. ¿En qué puedo ayudarte?", "anthropic", "openai"),
        ("es", "Soy Gemini ¿en qué te ayudo?", "google", ""),
        ("fr", "Je ne suis pas ChatGPT mais Mistral.", "mistral", "openai"),
        ("fr", "Je n'ai aucun lien avec OpenAI.", "", "openai"),
        ("de", "Ich bin kein Mensch, sondern ChatGPT von OpenAI.", "openai", ""),
        ("de", "Weder ChatGPT noch Claude. Ich bin Googles Modell.", "google", "openai anthropic"),
        ("pt", "Não sou o ChatGPT e sim o Claude.", "anthropic", "openai"),
        ("it", "Non sono ChatGPT, ma Gemini.", "google", "openai"),
        ("ru", "Я не ChatGPT, а DeepSeek.", "deepseek", "openai"),
        ("ru", "Я не человек, я ГигаЧат, создан Сбером.", "sber", ""),
        ("ja", "私はChatGPTではなく、DeepSeekです。", "deepseek", "openai"),
        ("ja", "私はChatGPT、Claude、Geminiではありません。", "", "openai anthropic google"),
        ("ja", "私は人間ではなくクロードです。", "anthropic", ""),
        ("ko", "저는 ChatGPT가 아니라 클로드입니다.", "anthropic", "openai"),
        ("ko", "저는 ChatGPT이고 개인정보를 저장하지 않습니다.", "openai", ""),
        ("ar", "لست ChatGPT، بل أنا كلود من أنثروبيك.", "anthropic", "openai"),
        ("ar", "أنا ChatGPT، نموذج طورته شركة OpenAI.", "openai", ""),
        ("hi", "मैं ChatGPT, Claude या Gemini नहीं हूँ।", "", "openai anthropic google"),
        ("hi", "मैं इंसान नहीं बल्कि Qwen हूँ और मुझे अलीबाबा ने बनाया है।", "alibaba", ""),
        ("hi", "I am not ChatGPT. 我是DeepSeek", "deepseek", "openai"),  # other languages
        ("es", "Me llamo Ana, y así se llama mi meta.", "", ""),  # everyday words
        ("en", "This metaphor is a grokking granite falcon.", "", ""),
        ("en", "", "", ""),
        ("en", " \n ", "", ""),
        ("en", "?,.!", "", ""),
    ],
)
def test_a_claim_is_a_name_outside_negated_clauses_and_questions(language, text, claimed, denied):
    read = CLAIMS.read(text, language)
    assert set(read.claimed) == set(claimed.split())
    assert set(read.named) - set(read.claimed) == set(denied.split())


def test_the_callers_names_are_found_beside_those_of_the_table():
    claims = Claims(BATTERY, {"candidate": {"forms": ["Vat 7"]}, "openai": {"forms": ["Orion"]}})
    assert claims.read("我是VAT-7，不是Orion", "zh") == (("candidate", "openai"), ("candidate",))
    assert claims.named("ChatGPT") == ("openai",)


def test_a_negation_of_another_language_does_not_hold():
    text = "Ich bin ein Modell, das man ne ChatGPT nennt."  # French 'ne' means nothing in German
    assert CLAIMS.read(text, "de").claimed == ("openai",)
    assert CLAIMS.read(text, "fr").claimed == ()


# ---- the answers of an audit ----


def plan_of(**changes):
    own = {"id": "openai", "name": "OpenAI", "forms": [], "cased": []}
    return {
        "battery": BATTERY, "battery_hash": battery_hash(BATTERY), "candidate": own,
        "controls": ["other"], "samples": 3, "system": None, **changes,
    }  # fmt: skip


def line_of(question="en-neutral-1", text="I am ChatGPT.", **changes):
    entry = ALL[question]
    return {
        "role": "suspect", "question": question, "language": entry["language"],
        "kind": entry["kind"], "sample": 0, "time": "2026-11-01T10:00:00+00:00",
        "served_model": "m", "system": None, "text": text, "finish_reason": "stop", **changes,
    }  # fmt: skip


def test_readings_keep_every_answer_as_it_came_and_say_why_one_does_not_count():
    lines = [
        line_of(), line_of(), line_of(sample=1, text=" "), line_of(sample=2, text=None),
        line_of("de-neutral-2", system="Be brief."), line_of("en-pressing-1", text="Yes, ChatGPT."),
    ]  # fmt: skip
    rows = readings(plan_of(), {"answers": lines})
    assert [{key: row[key] for key in line_of()} for row in rows] == lines
    assert [row["excluded"] for row in rows] == [
        None, "asked twice", "empty answer", "empty answer", "another system prompt than planned",
        None,
    ]  # fmt: skip
    assert [row["suggested"] for row in rows] == [[], [], [], [], [], ["openai"]]
    assert rows[0]["instructed"] == []


def test_a_name_that_stands_in_the_prompt_is_instructed():
    system = "You are ChatGPT."
    sent = readings(plan_of(system=system), {"answers": [line_of(system=system)]})
    assert sent[0]["instructed"] == ["openai"]
    shown = {"role": "suspect", "prompt": "system: You are ChatGPT. [question]"}
    lines = {"answers": [line_of(), line_of(role="other")], "models": [shown]}
    rows = readings(plan_of(), lines)
    assert [row["instructed"] for row in rows] == [["openai"], []]


@pytest.mark.parametrize(
    "changes",
    [
        {"role": "stranger"}, {"sample": 3}, {"sample": -1}, {"language": "fr"},
        {"kind": "pressing"},
    ],
)  # fmt: skip
def test_lines_that_were_not_planned_are_refused(changes):
    with pytest.raises(EvidenceError, match=r"answers.jsonl, line 2"):
        readings(plan_of(), {"answers": [line_of(), line_of(sample=1) | changes]})


def test_an_unknown_question_and_another_battery_are_refused():
    with pytest.raises(EvidenceError, match="a role, question and sample of the plan"):
        readings(plan_of(), {"answers": [line_of() | {"question": "xx-neutral-1"}]})
    other = copy.deepcopy(BATTERY)
    other["identities"]["openai"]["forms"].remove("ChatGPT")
    with pytest.raises(EvidenceError, match="the hash in the plan"):
        readings(plan_of(battery=other), {"answers": []})
