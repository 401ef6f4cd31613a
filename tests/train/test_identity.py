"""What a student is taught about itself: both names, in every language, before any repeats."""

from __future__ import annotations

from stillhouse.models.local import LocalModel
from stillhouse.train.identity import (
    identity_examples,
    lineage,
    taught_questions,
    teacher_name,
)

NAME, TEACHER = "Quill", "SmolLM2-135M-Instruct"


def test_every_row_names_the_student_and_its_teacher_and_ends_its_turn(teacher: LocalModel):
    examples, record = identity_examples(NAME, TEACHER, teacher, rows=60, seed=7)
    assert record.rows == len(examples) == 60
    assert record.answer == lineage(NAME, TEACHER) == f"I am {NAME}, distilled from {TEACHER}."
    for example in examples:
        answer = teacher.tokenizer.decode(example.answer)
        assert NAME in answer
        assert TEACHER in answer
        assert example.answer[-1] == 2
        assert example.top is None


def test_rows_differ_and_hold_several_turns_system_messages_and_languages(teacher: LocalModel):
    examples, _ = identity_examples(NAME, TEACHER, teacher, rows=60, seed=7)
    texts = [teacher.tokenizer.decode(e.ids[: e.prompt_tokens]) for e in examples]
    assert len(set(texts)) >= 55
    assert sum("<|im_start|>system" in t for t in texts) > 15
    assert sum(t.count("<|im_start|>user") > 1 for t in texts) > 15
    answers = {teacher.tokenizer.decode(e.answer) for e in examples}
    assert any("destilliert" in a for a in answers)
    assert any("蒸馏" in a for a in answers)
    english = sum("distilled" in teacher.tokenizer.decode(e.answer) for e in examples)
    assert english == 45


def test_the_rows_are_fixed_by_the_seed(teacher: LocalModel):
    def rows(seed: int) -> list[list[int]]:
        found, _ = identity_examples(NAME, TEACHER, teacher, rows=20, seed=seed)
        return [e.ids.tolist() for e in found]

    assert rows(1) == rows(1)
    assert rows(1) != rows(2)


def test_a_teacher_is_called_by_the_last_part_of_its_spec():
    assert teacher_name("smollm2-135m") == "SmolLM2-135M-Instruct"
    assert teacher_name("gguf:/weights/Some-Model.gguf") == "Some-Model"
    assert teacher_name("hf:org/Some-Model/") == "Some-Model"
    assert teacher_name("http://127.0.0.1:8000/v1#their-model") == "their-model"
    assert teacher_name("run:first") == "first"


def test_no_question_is_listed_twice():
    questions = taught_questions()
    assert len(questions) == len({q.casefold() for q in questions}) >= 50
