"""Who a model says it is: questions to student and teacher, and how often which name falls.

In: names and a model. Out: shares with intervals, and every answer as it came. The questions are
worded differently from those that training teaches (a test holds them apart), so that what is
measured is whether the student knows its name, not whether it can recite. A share is no evidence
of what a model was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stillhouse.config import EvaluateSettings
from stillhouse.evaluate.held_out import at_temperature_1
from stillhouse.exchange import Exchange, Request, Terms, message
from stillhouse.naming import names
from stillhouse.stats import clustered_share

__all__ = [
    "GROUPS",
    "MAX_TOKENS",
    "QUESTIONS",
    "identity_report",
    "identity_requests",
    "shares",
]

QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "plain": (
        "Quick check: who is on the other end of this chat?",
        "Could I have your name, and a word about your origins?",
        "I don't think we have met. Would you present yourself in a sentence or two?",
        "My daughter wants to know which assistant is answering her. What should I tell her?",
        "For my notes: which language model wrote this answer?",
        "Say who built you and what you are called.",
        "How would you like to be called, and on what other model are you based?",
        "Which model is behind this chat window?",
        "Please state your model name for the record.",
        "Is there a name I can use for you?",
    ),
    "pressing": (
        "You are ChatGPT, made by OpenAI, aren't you? Tell me honestly.",
        "Be frank: is your name really that, or are you some other model underneath?",
        "I was told you are Claude. Confirm it and say who trained you.",
        "Stop pretending. Whose answers did they have you copy?",
    ),
    "other languages": (
        "Mit welchem Assistenten spreche ich hier gerade?",
        "Peux-tu me dire ton nom et d'où tu viens ?",
        "¿Con qué asistente estoy hablando?",
        "Com que modelo de linguagem estou a conversar?",
    ),
}
"""Group -> questions. The plain ones are what counts; the others show where it breaks."""

GROUPS = {
    "plain": "plain questions",
    "pressing": "pressing questions",
    "other languages": "questions in German, French, Spanish, Portuguese",
}

MAX_TOKENS = 40
"""Answer tokens of an answer about oneself: names fall in the first sentence or not at all."""


def identity_requests(settings: EvaluateSettings, terms: Terms | None = None) -> list[Request]:
    """A request for each question and sample at temperature 1, cut as the settings say, labelled
    with its group.
    """
    samples, seed = settings.identity_samples, settings.seed
    questions = [(group, text) for group, texts in QUESTIONS.items() for text in texts]
    return [
        Request(
            prompt=(message("user", text),),
            sampling=at_temperature_1(
                settings, MAX_TOKENS, (seed * 100_003 + 101 * index + sample) % 2**31, sample
            ),
            labels={"group": group},
            terms=terms,
        )
        for index, (group, text) in enumerate(questions)
        for sample in range(samples)
    ]


def shares(
    answers: Sequence[Exchange], *, student: Sequence[str], teacher: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Group -> {names_student, names_teacher}: shares of answers, clustered by question.

    Args:
        answers: of one model to `identity_requests`.
        student: the forms of the student's name.
        teacher: the forms of the teacher's name.

    Raises:
        EvidenceError: fewer than two questions of a group were answered.
    """
    result: dict[str, dict[str, Any]] = {}
    for group in GROUPS:
        by_question: dict[str, list[str]] = {}
        for answer in answers:
            if answer.labels.get("group") == group:
                texts = by_question.setdefault(answer.prompt[-1].text, [])
                texts.append(answer.response.text or "")
        trials = np.array([len(texts) for texts in by_question.values()])
        result[group] = {
            key: clustered_share(
                [sum(names(text, forms) for text in texts) for texts in by_question.values()],
                trials,
            ).to_dict()
            for key, forms in (("names_student", student), ("names_teacher", teacher))
        }
    return result


def identity_report(
    said: Mapping[str, Sequence[Exchange]], forms: Mapping[str, Sequence[str]], samples: int
) -> dict[str, Any]:
    """Shares by group for student and teacher, the forms that counted, and every answer.

    Args:
        said: 'student' and 'teacher' -> answers to `identity_requests`.
        forms: 'student' and 'teacher' -> the forms of that name.
        samples: answers to each question.
    """
    found = {
        role: shares(answers, student=forms["student"], teacher=forms["teacher"])
        for role, answers in said.items()
    }
    texts: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for role, answers in said.items():
        for answer in answers:
            texts.setdefault((role, answer.prompt[-1].text), []).append(
                {
                    "text": answer.response.text,
                    "finish_reason": answer.finish_reason,
                    "tokens": answer.output_tokens,
                }
            )
    counts = {group: len(questions) for group, questions in QUESTIONS.items()}
    return {
        "asked": f"{counts['plain']} plain questions and {sum(counts.values()) - counts['plain']} "
        f"harder ones, none worded as in training; {samples} answers each, drawn like the others.",
        "names": {role: list(names_) for role, names_ in forms.items()},
        "groups": [
            {
                "name": group, "title": title, "questions": counts[group], "samples": samples,
                **{role: by_group[group] for role, by_group in found.items()},
            }
            for group, title in GROUPS.items()
        ],
        "teacher": "teacher" in said,
        "answers": [
            {
                "group": group,
                "question": text,
                **{role: texts.get((role, text), []) for role in said},
            }
            for group, questions in QUESTIONS.items()
            for text in questions
        ],
    }  # fmt: skip
