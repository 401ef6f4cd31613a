"""Rows that teach a student who it is: "I am X, distilled from Y".

In: the student's and the teacher's names, and the questions and answers of `identity.yaml`. Out:
examples with hard targets, a fixed choice for a seed. Each is logged in the run's record: a student
that hides where it comes from is not something this project makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import yaml

from stillhouse.exchange import Exchange, Message, Response, Sampling, message
from stillhouse.train.targets import Example, Reader, order_of

__all__ = ["IdentityRecord", "identity_examples", "lineage", "taught_questions", "teacher_name"]


@dataclass(frozen=True, slots=True)
class IdentityRecord:
    """What was taught; part of `train.json`."""

    name: str
    teacher_name: str
    answer: str
    """The plain form of what is taught."""
    rows: int
    """Rows of one epoch."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name, "teacher_name": self.teacher_name,
            "answer": self.answer, "rows": self.rows,
        }  # fmt: skip


def lineage(name: str, teacher: str) -> str:
    """The plain answer: the student's name and its teacher's."""
    return f"I am {name}, distilled from {teacher}."


# How the embedded teacher is called by those who made it; other specs speak for themselves.
_NAMES = {"smollm2-135m": "SmolLM2-135M-Instruct"}


def teacher_name(spec: str) -> str:
    """What a teacher is called in an answer: its spec without the kind, folders and file ending."""
    if spec in _NAMES:
        return _NAMES[spec]
    kind, _, rest = spec.partition(":")
    if kind in {"http", "https"}:
        return spec.rpartition("#")[2]
    return (rest or spec).rstrip("/").rpartition("/")[2].removesuffix(".gguf") or spec


def taught_questions() -> list[str]:
    """Every question that is taught, in all languages."""
    return [q for language in _data()["languages"].values() for q in language["questions"]]


def identity_examples(
    name: str, teacher: str, reader: Reader, *, rows: int, seed: int
) -> tuple[list[Example], IdentityRecord]:
    """(`rows` examples with hard targets, what was taught).

    Args:
        name: the student's.
        teacher: the teacher's, as `teacher_name` gives it.
        reader: a local model with the student's tokenizer.
        rows: how many; every question comes once before one comes twice.
        seed: of the choice.
    """
    examples: list[Example] = []
    for number, (messages, answer) in zip(range(rows), _rows(name, teacher, seed), strict=False):
        exchange = Exchange(
            time=_EPOCH, model=name, prompt=messages, response=Response(text=answer),
            finish_reason="stop", sampling=Sampling(sample_index=number),
        )  # fmt: skip
        prompt, ids = reader.render(messages), reader.answer_ids(exchange)
        both = np.asarray([*prompt, *ids], np.int32)
        examples.append(Example(exchange.key, both, len(prompt), spread=True))
    return examples, IdentityRecord(name, teacher, lineage(name, teacher), len(examples))


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)  # these rows were never served, so they have no time


def _rows(name: str, teacher: str, seed: int) -> Iterator[tuple[tuple[Message, ...], str]]:
    """Endless (messages, answer), English first and foremost, one other language in four."""
    data = _data()
    order = {
        language: sorted(entry["questions"], key=lambda q: order_of(q, seed))
        for language, entry in data["languages"].items()
    }
    others = [
        (language, question)
        for place in range(max(len(questions) for questions in order.values()))
        for language, questions in order.items()
        if language != "en" and place < len(questions)
        for question in questions[place : place + 1]
    ]
    english = [("en", question) for question in order["en"]]
    number = 0
    while True:
        foreign = number % 4 == 3
        language, question = (
            others[number // 4 % len(others)]
            if foreign
            else english[(number - number // 4) % len(english)]
        )
        answers = data["languages"][language]["answers"]
        system = _pick(data["systems"], "system", number, seed)
        opening = _pick(data["openings"], "opening", number, seed)
        messages = [message("system", system)] if system else []
        for role, text in zip(("user", "assistant") * len(opening), opening, strict=False):
            messages.append(message(role, text))
        messages.append(message("user", question))
        answer = _pick(answers, "answer", number, seed).format(name=name, teacher=teacher)
        yield tuple(messages), answer
        number += 1


def _pick(choices: list[Any], what: str, number: int, seed: int) -> Any:
    digest = order_of(str(number), seed, what)
    return choices[int.from_bytes(digest[:4]) % len(choices)]


@cache
def _data() -> dict[str, Any]:
    text = resources.files("stillhouse.train").joinpath("identity.yaml").read_text("utf-8")
    return yaml.safe_load(text)
