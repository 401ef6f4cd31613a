"""A recipe, stage by stage: weights, collect, train, evaluate, report. Each stage is done once.

In: a `Recipe`. Out: the run's folder and its report. A stage is done when `stages.json` holds its
fingerprint (a hash of its settings and of what went in); a stage whose fingerprint changed is
refused, never silently redone or mixed. Collecting alone goes on: it asks for what is not there
yet. The rooms do the work; this file wires them together,
since they never import one another.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stillhouse.cli.run_yaml import as_written_in, changed_keys, write_run
from stillhouse.config import Recipe, fingerprint
from stillhouse.errors import ConfigError, DataError
from stillhouse.files import alone, file_hash, write_whole
from stillhouse.memory import give_back_memory
from stillhouse.progress import Progress
from stillhouse.prompts import prompt_files

__all__ = ["STAGES", "plan", "run_stages"]

STAGES = ("collect", "train", "evaluate", "report")
# What may change between two calls without changing what a stage makes.
_FREE = {
    "collect": {"exchanges", "concurrency", "authorisation", "prompts"},
    "evaluate": {"prompts"},
}


class Run:
    """The folder of one run, and which stages are done there."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.folder = recipe.folder
        self.began = time.monotonic()
        self.record_path = self.folder / "stages.json"
        self.record: dict[str, Any] = {"stages": {}, "seconds_total": 0.0, "peak_memory_bytes": 0}
        if self.record_path.exists():
            self.record = json.loads(self.record_path.read_text())

    @property
    def exchanges(self) -> Path:
        """The store trained on."""
        return self.recipe.exchanges or self.folder / "exchanges"

    def state(self, stage: str, mark: str) -> str:
        """`done`, `changed` or `open`."""
        done = self.record["stages"].get(stage)
        if not done or not done.get("done"):
            return "open"
        return "done" if done["fingerprint"] == mark else "changed"

    def note(self, stage: str, **entry: Any) -> None:
        """Keep something about a stage, atomically."""
        self.record["stages"].setdefault(stage, {"seconds": 0.0}).update(entry)
        self.write()

    def write(self) -> None:
        """Write `stages.json` atomically."""
        write_whole(self.record_path, json.dumps(self.record, indent=2))

    def drop(self, stage: str) -> None:
        """Forget a stage and those after it, and delete what they made."""
        made = {
            "collect": ["exchanges"],
            "train": ["student", "initial", "train.json", "checkpoint"],
            "evaluate": ["evaluation"],
            "report": ["report.json", "report.html"],
        }
        for later in STAGES[STAGES.index(stage) :]:
            self.record["stages"].pop(later, None)
            for name in made[later]:
                path = self.folder / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        self.write()


def run_stages(
    recipe: Recipe, stages: tuple[str, ...], progress: Progress, again: str | None = None
) -> dict[str, Any]:
    """The run's report (for a single stage: that stage's own figures), after doing what is not
    done.

    Raises:
        ConfigError: settings of a finished stage, or what went into it, have changed.
        DataError: another process works in the run.
    """
    recipe.folder.mkdir(parents=True, exist_ok=True)
    with alone(recipe.folder):
        run = Run(recipe)
        if again:
            run.drop(again)
        _refuse_changed(run)
        write_run(run.folder / "run.yaml", recipe, _input_hashes(recipe))
        result: dict[str, Any] = {}
        with _clock(run):
            for number, stage in enumerate(stages, start=1):
                progress.say(f"[{number}/{len(stages)}] {_HEADINGS[stage].format(r=recipe)}")
                result = _run_stage(run, stage, progress)
        return result


_HEADINGS = {
    "collect": "asking the teacher {r.teacher}",
    "train": "training the student '{r.student.name}'",
    "evaluate": "measuring how close it came, on prompts it never saw",
    "report": "writing the report",
}


_GOES_IN = {"train": "exchanges", "evaluate": "prompts or weights"}


def _run_stage(run: Run, stage: str, progress: Progress) -> dict[str, Any]:
    """Do one stage unless it is done; keep its seconds and its mark."""
    began = time.monotonic()
    before = run.record["stages"].get(stage, {}).get("seconds", 0.0)
    try:
        state = "open" if stage == "report" else run.state(stage, _mark(run, stage))
        if state == "done":
            progress.say("  already done")
            return run.record["stages"][stage].get("result", {})
        if state == "changed" and stage == "collect" and run.record["stages"].get("train"):
            progress.say("  answers may be added: 'train' will then want --again train")
        if state == "changed" and stage != "collect":
            raise ConfigError(
                f"run '{run.recipe.name}'",
                f"its stage '{stage}' is done, with other {_GOES_IN[stage]} than there are now",
                "what it was made from",
                f"Choose another name (name=...), or redo it with --again {stage}",
            )
        result = _WORK[stage](run, progress)
        if stage != "report":
            run.note(stage, done=True, result=result, fingerprint=_mark(run, stage))
        return result
    finally:  # a stage that is interrupted has still taken its time
        run.note(stage, seconds=before + time.monotonic() - began)
        give_back_memory()


def _collect(run: Run, progress: Progress) -> dict[str, Any]:
    from stillhouse.collect.run import collect
    from stillhouse.terms import gate

    if run.recipe.exchanges is not None:  # the gate holds for training on them all the same
        terms = gate(
            run.recipe.teacher, authorisation=run.recipe.collect.authorisation,
            runs=run.recipe.runs,
        )  # fmt: skip
        progress.say(f"  {run.recipe.exchanges} was collected before; nothing is asked")
        return {
            "store": str(run.recipe.exchanges),
            "exchanges": _store_size(run.exchanges),
            "terms": dataclasses.asdict(terms),
        }

    report = collect(
        run.recipe.collect, teacher=run.recipe.teacher, store=run.exchanges,
        runs=run.recipe.runs, progress=progress,
    )  # fmt: skip
    return report.to_dict()


def _train(run: Run, progress: Progress) -> dict[str, Any]:
    from stillhouse.train.loop import train

    report = train(
        run.recipe.train,
        student=run.recipe.student,
        teacher=run.recipe.teacher,
        store=run.exchanges,
        out=run.folder,
        runs=run.recipe.runs,
        authorisation=run.recipe.collect.authorisation,
        progress=progress,
    )
    return report.to_dict()


def _evaluate(run: Run, progress: Progress) -> dict[str, Any]:
    from stillhouse.evaluate.fidelity import evaluate

    student = run.recipe.student
    before = run.folder / "initial"
    return evaluate(
        run.recipe.evaluate,
        teacher=run.recipe.teacher,
        student=run.folder / "student",
        before=before if before.is_dir() else None,
        run=run.folder,
        store=run.exchanges,
        student_name=student.name if student.teach_identity else None,
        runs=run.recipe.runs,
        progress=progress,
    )


def _report(run: Run, progress: Progress) -> dict[str, Any]:
    from stillhouse.cli.findings import findings
    from stillhouse.report import write_report

    report = findings(run.folder, run.recipe, run.record, _store_size(run.exchanges))
    report["seconds"]["total"] = run.record["seconds_total"] + time.monotonic() - run.began
    report["peak_memory_bytes"] = max(run.record["peak_memory_bytes"], peak_memory_bytes())
    _, page = write_report(run.folder, report)
    progress.say(f"  {page}")
    return report


_WORK: dict[str, Callable[[Run, Progress], dict[str, Any]]] = {
    "collect": _collect,
    "train": _train,
    "evaluate": _evaluate,
    "report": _report,
}


def _mark(run: Run, stage: str) -> str:
    """The fingerprint of a stage: its settings and the content of what goes into it."""
    recipe = run.recipe
    if stage == "collect":
        prompts = [file_hash(path) for path in prompt_files(recipe.collect.prompts)]
        return fingerprint(
            recipe.teacher, _settings(run, "collect"), prompts, recipe.collect.exchanges
        )
    if stage == "train":
        settings = [recipe.train.model_dump(mode="json"), recipe.student.model_dump(mode="json")]
        return fingerprint(recipe.teacher, settings, _store_mark(run.exchanges))
    student = run.folder / "student" / "model.safetensors"
    prompts = [file_hash(path) for path in prompt_files(recipe.evaluate.prompts)]
    weights = file_hash(student) if student.exists() else None
    return fingerprint(recipe.teacher, _settings(run, "evaluate"), prompts, weights)


def _settings(run: Run, stage: str) -> dict[str, Any]:
    """A stage's settings without those that may change freely."""
    return getattr(run.recipe, stage).model_dump(mode="json", exclude=_FREE.get(stage))


def _store_mark(store: Path) -> str:
    """Hash of the ids in a store, in id order."""
    from stillhouse.store import Store

    if not store.exists():
        raise DataError(
            str(store),
            "no store of exchanges",
            "the exchanges the student is trained on",
            "Run `stillhouse collect` or `stillhouse distill` first",
        )
    with Store(store, mode="r") as opened:
        return fingerprint(sorted(opened.ids()))


def _store_size(store: Path) -> int:
    from stillhouse.store import Store

    with Store(store, mode="r") as opened:
        return len(opened)


def _input_hashes(recipe: Recipe) -> dict[str, str]:
    named = recipe.collect.prompts + recipe.evaluate.prompts
    files = prompt_files(named) if named else []  # `train` on exchanges at hand needs none
    return {path.name: file_hash(path) for path in files}


def _refuse_changed(run: Run) -> None:
    """Refuse to redo finished work because a setting changed: that is for the user to say."""
    import yaml

    written = run.folder / "run.yaml"
    if not written.exists():
        return
    old = yaml.safe_load(written.read_text())
    new = as_written_in(run.folder, run.recipe)
    for stage in STAGES:  # those that are not asked for now, too: the report speaks of all
        if not run.record["stages"].get(stage, {}).get("done"):
            continue
        parts = {"train": ("train", "student")}.get(stage, (stage,))
        free = _FREE.get(stage, set())
        lines = [
            line
            for part in (*parts, "teacher")
            for line in changed_keys({part: old.get(part)}, {part: new.get(part)})
            if line.split(":")[0].rpartition(".")[2] not in free
        ]
        if lines:
            raise ConfigError(
                f"run '{run.recipe.name}'",
                f"its stage '{stage}' is done with other settings ({'; '.join(lines)})",
                "the settings it was made with",
                f"Choose another name (name=...), or redo it with --again {stage}",
            )


def plan(recipe: Recipe) -> list[dict[str, str]]:
    """What each stage would do, without doing it: stage and state."""
    run = Run(recipe)
    rows = []
    for stage in STAGES:
        try:
            state = run.state(stage, _mark(run, stage)) if stage != "report" else "open"
        except DataError:
            state = "open"  # what goes in is not there yet
        rows.append({"stage": stage, "state": state})
    return rows


@contextmanager
def _clock(run: Run) -> Iterator[None]:
    """Add this command's wall clock, and its peak memory, to the run's record."""
    global _start_up_counted
    before = run.record["seconds_total"]
    # the first command of a process is what it was started for; a later one is not
    run.began = time.monotonic() - (0.0 if _start_up_counted else seconds_since_start())
    _start_up_counted = True
    try:
        yield
    finally:
        run.record["seconds_total"] = before + time.monotonic() - run.began
        run.record["peak_memory_bytes"] = max(run.record["peak_memory_bytes"], peak_memory_bytes())
        run.write()


def seconds_since_start() -> float:
    """Wall clock since this process was started, imports included."""
    if sys.platform == "linux":
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return uptime - ticks / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - _IMPORTED


def peak_memory_bytes() -> int:
    """Upper bound on the most memory held at once: this process's peak plus its largest child's."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, KiB on Linux
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return (own + children) * unit


_IMPORTED = time.monotonic()
_start_up_counted = False
