"""How close a student came to its teacher: the whole evaluation of a run, in one call.

In: a teacher, a student (and what it was before training), held-out prompts. Out: the figures,
answers and samples of the report. The teacher answers the held-out prompts at temperature 1; then
all models read the same answers, a group at a time, and only sums per answer are kept. A killed
evaluation goes on where it was. How two distributions are compared stands in `compare.py`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.config import EvaluateSettings
from stillhouse.errors import DataError, EvidenceError
from stillhouse.evaluate.compare import Row, change, compare, figures, teacher_figures
from stillhouse.evaluate.held_out import (
    HeldOut,
    draw,
    held_out_prompts,
    requests_for,
    sampling_words,
)
from stillhouse.evaluate.identity import identity_report, identity_requests
from stillhouse.evaluate.kept import Rows, kept, weights_bytes, weights_hash, weights_parameters
from stillhouse.evaluate.speed import compare_speed
from stillhouse.exchange import Exchange
from stillhouse.models import open_model
from stillhouse.models.base import Model, Need, Scored
from stillhouse.models.local_network import matmul_dtype
from stillhouse.naming import aliases, names
from stillhouse.progress import Progress, Silent
from stillhouse.terms import check

__all__ = ["evaluate", "fidelity"]

# Answer tokens whose whole distributions are held at once: 1,024 x 49,152 float32 are 192 MiB.
_GROUP_TOKENS = 1024

# Answers of the untrained student that are shown, to see where it came from.
_SAMPLES_BEFORE = 12

_NEED = Need(text=True, scoring=True, full_logits=True)


def evaluate(
    settings: EvaluateSettings,
    *,
    teacher: str,
    student: Path,
    run: Path,
    before: Path | None = None,
    store: Path | None = None,
    student_name: str | None = None,
    runs: Path = Path("runs"),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The figures of a student, in the fields of `report.json` that docs/evaluate.md lists.

    Answers and sums are kept in `run/evaluation`: called again, nothing is asked or computed twice.

    Args:
        settings: held-out prompts, lengths, seeds, timings.
        teacher: model spec; it must give whole distributions.
        student: its Hugging Face folder.
        run: the run's folder.
        before: the folder of the student before training; None leaves that side out.
        store: the exchanges trained on, to find held-out prompts among them; None leaves that
            unchecked, and the report says so.
        student_name: what it was taught to call itself; None leaves identity unmeasured.
        runs: where `run:NAME` is looked up.
        progress: told what is done.

    Raises:
        EvidenceError: too few prompts, all of them seen in training, or models that do not share
            a vocabulary.
        DataError: a folder without a model, or prompt files that cannot be read.
        CapabilityError: the teacher cannot give whole distributions.
    """
    progress = progress or Silent()
    _check_folders(student, before)
    with ExitStack() as opened:
        held_out = held_out_prompts(settings, store)
        _say(held_out, progress)
        work = _Evaluation(settings, run / "evaluation", runs, progress)
        work.open(opened, "teacher", teacher)
        work.open(opened, "student", f"hf:{student}")
        if before is not None:
            work.open(opened, "before", f"hf:{before}")
        with work.drawing:
            answers = work.answers("teacher", held_out)
            samples = work.samples(held_out, answers)
            identity = work.identity(student_name) if student_name else None
        return {
            "teacher": work.described("teacher"),
            "student": {"name": student_name} | work.described("student"),
            "held_out": work.fidelity(answers) | {
                "prompts": len(answers), "max_tokens": settings.max_tokens, "temperature": 1.0,
                "sampling": sampling_words(settings), "overlap": held_out.overlap(),
            },
            "speed": work.speed(), "identity": identity, "samples": samples,
            "seeds": {"evaluate": settings.seed}, "seconds": work.seconds,
        }  # fmt: skip


def _check_folders(*folders: Path | None) -> None:
    for folder in folders:
        if folder is not None and not (folder / "config.json").is_file():
            raise DataError(
                str(folder), "no model there", "the folder of a trained student",
                "Train it first: stillhouse train RECIPE.yaml",
            )  # fmt: skip


def _say(held_out: HeldOut, progress: Progress) -> None:
    for pair in held_out.left_out:
        how = "asks the same as" if pair.exact else f"is {pair.similarity:.2f} similar to"
        progress.say(f"left out: held-out prompt {pair.prompt_id} {how} a training prompt")


def _timed(part: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds the seconds of a method to `self.seconds[part]`; of nested parts, the outer one."""

    def around(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def timed(self: _Evaluation, *args: Any) -> Any:
            if self.inside:
                return method(self, *args)
            began, self.inside = time.monotonic(), True
            try:
                return method(self, *args)
            finally:
                self.seconds[part] = time.monotonic() - began
                self.inside = False

        return timed

    return around


class _Evaluation:
    """The models of one evaluation, by role, and where its parts are kept."""

    def __init__(
        self, settings: EvaluateSettings, folder: Path, runs: Path, progress: Progress
    ) -> None:
        self.settings, self.folder, self.runs, self.progress = settings, folder, runs, progress
        self.models: dict[str, Model] = {}
        self.drawers: dict[str, Model] = {}
        self.drawing = ExitStack()
        self.marks: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.inside = False

    def open(self, opened: ExitStack, role: str, spec: str) -> None:
        """Open a model for a role; it is closed with `opened`."""
        model = opened.enter_context(
            open_model(spec, need=_NEED, runs=self.runs, progress=self.progress)
        )
        self.models[role] = model
        folder = getattr(model, "folder", None)
        self.marks[role] = weights_hash(folder) if folder is not None else f"spec:{spec}"
        self.terms = check(spec, runs=self.runs) if role == "teacher" else self.terms

    def drawer(self, role: str) -> Model:
        """The model of a role to draw answers with, open until `drawing` is closed: in the fast
        precision of this processor, where torch computes it. Figures are computed in float32.
        """
        model = self.models[role]
        fast = matmul_dtype("auto")
        if getattr(model, "folder", None) is None or fast == matmul_dtype("float32"):
            return model
        if role not in self.drawers:
            self.drawers[role] = self.drawing.enter_context(
                open_model(
                    model.spec,
                    need=_NEED,
                    runs=self.runs,
                    precision="auto",
                    progress=self.progress,
                )
            )
        return self.drawers[role]

    def described(self, role: str) -> dict[str, Any]:
        """Spec, name, size and hash of a model."""
        model = self.models[role]
        folder = getattr(model, "folder", None)
        return {
            **({"spec": model.spec, "name": model.name} if role == "teacher" else {}),
            "parameters": weights_parameters(folder) if folder is not None else None,
            "size_bytes": weights_bytes(folder) if folder is not None else None,
            "hash": self.marks[role],
        }

    def store(self, role: str, what: str) -> Path:
        """Where a model's answers are kept: other weights, another store."""
        return self.folder / f"{what}-{role}-{self.marks[role].rpartition(':')[2][:12]}"

    @_timed("held-out answers")
    def answers(self, role: str, held_out: HeldOut) -> list[Exchange]:
        """A model's answers to the held-out prompts."""
        requests = requests_for(
            held_out.prompts, self.settings, terms=self.terms if role == "teacher" else None
        )
        if role == "before":
            requests = requests[:_SAMPLES_BEFORE]
        stage = {
            "teacher": "drawing the teacher's held-out answers",
            "student": "drawing the student's answers",
            "before": "drawing the untrained student's answers",
        }[role]
        found, _ = draw(
            self.drawer(role), requests, self.store(role, "answers"), self.progress, stage,
            top_logprobs=1,
        )  # fmt: skip
        return found

    @_timed("student's answers")
    def samples(self, held_out: HeldOut, answers: Sequence[Exchange]) -> list[dict[str, Any]]:
        """Prompt and answers side by side, for each held-out prompt."""
        sides = {"teacher": {e.labels["prompt_id"]: e for e in answers}}
        for role in ("student", "before"):
            if role in self.models:
                sides[role] = {e.labels["prompt_id"]: e for e in self.answers(role, held_out)}
        return [
            {
                "prompt_id": prompt.id,
                "task": prompt.labels.get("task"),
                "domain": prompt.labels.get("domain"),
                "prompt": [{"role": m.role, "text": m.text} for m in prompt.messages],
                **{role: answer_fields(found.get(prompt.id)) for role, found in sides.items()},
            }
            for prompt in held_out.prompts
        ]

    @_timed("identity")
    def identity(self, student_name: str) -> dict[str, Any]:
        """What student and teacher say of themselves, and how often which name falls."""
        teacher_name = self.models["teacher"].name
        own = aliases(student_name) or (student_name,)
        forms = {"student": own, "teacher": aliases(teacher_name)}
        # a form that both names hold tells nothing apart
        forms["teacher"] = tuple(f for f in forms["teacher"] if not names(student_name, [f]))
        requests = identity_requests(self.settings)
        said = {
            role: draw(
                self.drawer(role), requests, self.store(role, "identity"), self.progress,
                f"asking the {role} who it is",
            )[0]
            for role in ("student", "teacher")
        }  # fmt: skip
        return identity_report(said, forms, self.settings.identity_samples)

    @_timed("fidelity")
    def fidelity(self, answers: Sequence[Exchange]) -> dict[str, Any]:
        """Figures before and after, their difference, and the teacher's own."""
        students = {
            role: self.models[role] for role in ("before", "student") if role in self.models
        }
        found = fidelity(
            answers, self.models["teacher"], students, Rows(self.folder / "rows.jsonl"),
            marks=self.marks, progress=self.progress,
        )  # fmt: skip
        seed, after = self.settings.seed, found["student"]
        before = found.get("before")
        return {
            "before": figures(before, seed) if before is not None else None,
            "after": figures(after, seed),
            "teacher": teacher_figures(after, seed),
            "change": change(before, after, seed) if before is not None else None,
        }

    @_timed("speed")
    def speed(self) -> dict[str, Any] | None:
        """Decoding speed of teacher and student; None for a teacher that is no torch model."""
        slow, fast = (getattr(self.models[role], "engine", None) for role in ("teacher", "student"))
        if slow is None or fast is None:
            self.progress.say("speed was not measured: both must be local models")
            return None
        inputs = {
            "teacher": self.marks["teacher"], "student": self.marks["student"],
            "tokens": self.settings.speed_tokens, "repeats": self.settings.speed_repeats,
            "batch": self.settings.speed_batch,
        }  # fmt: skip
        return kept(
            self.folder / "speed.json", inputs,
            lambda: compare_speed(slow, fast, self.settings, self.progress),
        )  # fmt: skip


def answer_fields(answer: Exchange | None) -> dict[str, Any] | None:
    """Text, end and length of an answer, as the report shows it."""
    if answer is None:
        return None
    return {
        "text": answer.response.text, "finish_reason": answer.finish_reason,
        "tokens": answer.output_tokens,
    }  # fmt: skip


def fidelity(
    answers: Sequence[Exchange],
    teacher: Model,
    students: Mapping[str, Model],
    rows: Rows,
    *,
    marks: Mapping[str, str],
    progress: Progress,
) -> dict[str, Row]:
    """Role -> (N, COLUMNS) sums of each answer, all students on the same answers in the same order.

    The answers are read in groups of like length; the teacher's distributions of a group are
    computed once and every student is compared with them as its own come.

    Args:
        answers: the teacher's.
        teacher: gives whole distributions.
        students: role -> model.
        rows: where sums are kept; what it holds is not computed again.
        marks: role -> hash of the weights, 'teacher' included.
        progress: told about answer tokens read.

    Raises:
        EvidenceError: a student of another tokenizer.
    """
    key = {
        (role, answer.id): f"{marks['teacher']} {marks[role]} {answer.id}"
        for role in students
        for answer in answers
    }
    waiting = [a for a in answers if any(key[role, a.id] not in rows for role in students)]
    total = sum(answer.output_tokens or 0 for answer in waiting)
    if waiting:
        progress.start("reading the answers with all models", total, "answer tokens")
    done = 0
    for group in _groups(waiting):
        reference = _distributions(teacher, group)
        for role, model in students.items():
            fresh: dict[str, Row] = {}
            for scored in model.distributions(group):
                theirs = reference[scored.index]
                _same_tokens(theirs, scored, role)
                row = compare(theirs.token_ids, theirs.logprobs, [scored.logprobs])[0]
                fresh[key[role, group[scored.index].id]] = row
            rows.add(fresh)
        done += sum(answer.output_tokens or 0 for answer in group)
        progress.advance(done)
    if waiting:
        progress.finish(f"{total} answer tokens, {1 + len(students)} models")
    return {role: np.stack([rows[key[role, a.id]] for a in answers]) for role in students}


def _groups(answers: Sequence[Exchange]) -> Iterator[list[Exchange]]:
    """Answers of like length, longest first, up to `_GROUP_TOKENS` tokens (or one answer)."""
    group: list[Exchange] = []
    size = 0
    for answer in sorted(answers, key=_length, reverse=True):
        tokens = answer.output_tokens or 0
        if group and size + tokens > _GROUP_TOKENS:
            yield group
            group, size = [], 0
        group.append(answer)
        size += tokens
    if group:
        yield group


def _length(answer: Exchange) -> int:
    return (answer.input_tokens or 0) + (answer.output_tokens or 0)


def _distributions(model: Model, group: Sequence[Exchange]) -> list[Scored]:
    found: dict[int, Scored] = {scored.index: scored for scored in model.distributions(group)}
    return [found[index] for index in range(len(group))]


def _same_tokens(teacher: Scored, student: Scored, role: str) -> None:
    if not np.array_equal(teacher.token_ids, student.token_ids):
        raise EvidenceError(
            f"comparison of teacher and {role}", "they cut the same answer into different tokens",
            "models of one tokenizer", "Compare models that share a vocabulary",
        )  # fmt: skip
