"""Questions about who a model is, and shares by group with their intervals."""

from datetime import UTC, datetime

import pytest

from stillhouse.config import EvaluateSettings
from stillhouse.errors import EvidenceError
from stillhouse.evaluate.identity import (
    QUESTIONS,
    identity_report,
    identity_requests,
    shares,
)
from stillhouse.exchange import Exchange, Response
from stillhouse.naming import names
from stillhouse.text import similarity
from stillhouse.train.identity import taught_questions


def answer(request, text):
    return Exchange(
        time=datetime(2026, 1, 1, tzinfo=UTC), model="m", prompt=request.prompt,
        sampling=request.sampling, response=Response(text=text), labels=request.labels,
    )  # fmt: skip


def test_questions_are_distinct_and_name_no_answer():
    texts = [text for group in QUESTIONS.values() for text in group]
    assert len(set(texts)) == len(texts)
    for text in texts:
        assert not names(text, ["Stillhouse", "SmolLM"])


def test_no_question_is_one_that_training_teaches_or_nearly_so():
    taught = taught_questions()
    assert len(taught) > 30
    for text in (text for group in QUESTIONS.values() for text in group):
        assert max(similarity(text, other) for other in taught) < 0.3, text


def test_requests_ask_each_question_with_fresh_seeds_and_stay_the_same():
    requests = identity_requests(EvaluateSettings(identity_samples=3, seed=11))
    questions = sum(len(group) for group in QUESTIONS.values())
    assert len(requests) == 3 * questions
    assert len({request.key for request in requests}) == len(requests)
    assert len({request.sampling.seed for request in requests}) == len(requests)
    assert [r.key for r in identity_requests(EvaluateSettings(identity_samples=3, seed=11))] == [
        r.key for r in requests
    ]
    assert {r.sampling.temperature for r in requests} == {1.0}


def test_shares_are_counted_by_group_and_clustered_by_question():
    requests = identity_requests(EvaluateSettings(identity_samples=2, seed=1))
    texts = []
    for request in requests:
        plain = request.labels["group"] == "plain"
        both = plain and request.sampling.sample_index == 0
        texts.append("I am Vat, distilled from Mash." if both else "I am Mash." if plain else "Hm.")
    answers = [answer(*pair) for pair in zip(requests, texts, strict=True)]
    found = shares(answers, student=["Vat"], teacher=["Mash"])
    assert found["plain"]["names_student"]["value"] == 0.5
    assert found["plain"]["names_teacher"]["value"] == 1.0
    assert found["pressing"]["names_student"]["value"] == 0.0
    assert found["plain"]["names_student"]["n"] == len(QUESTIONS["plain"])
    assert found["plain"]["names_teacher"]["low"] < 0.8  # ten unanimous questions are still ten
    assert "clustered by questions" in found["plain"]["names_student"]["method"]


def test_report_keeps_every_answer_of_both_models():
    requests = identity_requests(EvaluateSettings(identity_samples=2, seed=1))
    said = {
        role: [answer(request, f"{role} {i}") for i, request in enumerate(requests)]
        for role in ("student", "teacher")
    }
    report = identity_report(said, {"student": ["Vat"], "teacher": ["Mash"]}, samples=2)
    kept = [a["text"] for q in report["answers"] for a in q["student"] + q["teacher"]]
    assert sorted(kept) == sorted(e.response.text or "" for side in said.values() for e in side)
    assert [group["name"] for group in report["groups"]] == list(QUESTIONS)
    assert report["groups"][0]["teacher"]["names_teacher"]["value"] == 0


def test_unanswered_questions_give_no_share():
    with pytest.raises(EvidenceError, match="questions"):
        shares([], student=["Vat"], teacher=["Mash"])
