"""The benchmark of the detector: what it finds, what it accuses wrongly, how fast it is.

    WORK/benchmark.json        what it was begun with
    WORK/key                   the secret that all weeks are hashed with
    WORK/weeks/                simulated weeks, while a step still needs them
    WORK/results/CASE/*.json   counts of each step; a step that is there is not done again
    WORK/table.json            the table so far

In: settings and a folder. Out: the table. Stop it at any time and run the same command: it goes on.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from pathlib import Path
from typing import Any

from stillhouse import __version__
from stillhouse.errors import ConfigError, EvidenceError
from stillhouse.files import alone, write_whole
from stillhouse.guard.benchmark_cases import CASES, planned_units
from stillhouse.guard.benchmark_settings import BenchmarkSettings
from stillhouse.guard.benchmark_tables import table_of
from stillhouse.guard.benchmark_weeks import Week, WeekPlan, make_week
from stillhouse.guard.benchmark_work import Unit
from stillhouse.guard.key import read_key, write_key
from stillhouse.guard.simulate import planned
from stillhouse.memory import give_back_memory
from stillhouse.report import Progress, Silent

__all__ = ["benchmark", "expected_minutes"]

# Seconds an event: simulating 75 us on one core, reading 45 on two, taking apart 8; scanning 20
# (docs of the simulator, of reading and of the detector, whose processor seconds were measured).
_WEEK_SECONDS = 75e-6 + 45e-6 + 8e-6
_SCAN_SECONDS = 20e-6
_BASELINES_SECONDS = 90e-6
_SILENT = Silent()


def benchmark(
    settings: BenchmarkSettings, work: Path, progress: Progress = _SILENT
) -> dict[str, Any]:
    """The table of the cases that were asked for.

    Args:
        settings: which cases, how large, which seeds.
        work: a folder for what is made on the way; a run that was stopped there goes on.
        progress: told about steps.

    Raises:
        ConfigError: an unknown case, or a folder that was begun with other settings.
        DataError: rates or prompts that cannot be read, a disk that refuses.
    """
    units = planned_units(settings)
    work.mkdir(parents=True, exist_ok=True)
    with alone(work):
        _check_begun(settings, work)
        desk = _Desk(work)
        pending = [unit for unit in units if not _result(work, unit).exists()]
        progress.start("benchmark", len(units), "steps")
        for number, unit in enumerate(pending):
            done = len(units) - len(pending) + number
            desk.attend(progress, done, f"{unit.case} {unit.name}")
            desk.forget(pending[number:], keep=settings.keep)
            _run(desk, unit, work)
            write_whole(work / "table.json", _as_json(_table(settings, units, work)))
        desk.forget([], keep=settings.keep)
        progress.finish(f"{len(units)} steps")
        table = _table(settings, units, work)
        write_whole(work / "table.json", _as_json(table))
    return table


def expected_minutes(settings: BenchmarkSettings) -> dict[str, float]:
    """Case -> minutes on two quiet cores; a week that two cases share counts for the first."""
    seen: set[str] = set()
    benign: dict[str, int] = {}
    minutes = {case.name: 0.0 for case in CASES if not settings.only or case.name in settings.only}
    for unit in planned_units(settings):
        seconds = 0.0
        for plan in unit.weeks:
            if plan.name not in seen:
                seen.add(plan.name)
                seconds += _WEEK_SECONDS * planned(plan.spec).events
                alone = plan.spec.model_copy(update={"campaigns": ()})
                benign[plan.name] = planned(alone).events
        if unit.case == "speed":
            seconds += (_WEEK_SECONDS + _SCAN_SECONDS) * unit.note["events"]
        else:
            cost = _BASELINES_SECONDS if unit.name.endswith("baselines") else _SCAN_SECONDS
            twice = 2 if unit.case == "ablation" else 1  # each choice of families is calibrated
            seconds += cost * benign[unit.weeks[1].name] * twice
        minutes[unit.case] += seconds / 60
    return minutes


# ---- parts ----


class _Desk:
    """The weeks of a run, made when they are first needed."""

    def __init__(self, work: Path) -> None:
        self.key, self.scratch = work / "key", work / "scratch"
        self._secret = read_key(self.key) if self.key.exists() else write_key(self.key)
        self._folder = work / "weeks"
        self._open: dict[str, Week] = {}
        self._progress: Progress = _SILENT
        self._done, self._what = 0, ""

    def attend(self, progress: Progress, done: int, what: str) -> None:
        """Another step begins."""
        self._progress, self._done, self._what = progress, done, what
        self.tell("")

    def tell(self, note: str) -> None:
        """What happens now."""
        self._progress.advance(self._done, f"{self._what}: {note}" if note else self._what)

    def week(self, plan: WeekPlan) -> Week:
        """The week, made where it is not there yet."""
        if plan.name not in self._open:
            made = make_week(plan, self._folder / plan.name, self._secret, self.tell)
            self._open[plan.name] = made
        return self._open[plan.name]

    def forget(self, pending: list[Unit], *, keep: bool) -> None:
        """Weeks that no step to come needs are deleted; those to be kept are only closed."""
        needed = {plan.name for unit in pending for plan in unit.weeks}
        for name in set(self._open) - needed:
            del self._open[name]
        if not keep and self._folder.exists():
            for folder in self._folder.iterdir():
                if folder.name not in needed:
                    shutil.rmtree(folder)
        give_back_memory()


def _run(desk: _Desk, unit: Unit, work: Path) -> None:
    """Do one step and keep its counts; that there is too little to judge is a result, too."""
    began = time.perf_counter()
    try:
        counts = unit.work(desk, unit)
    except EvidenceError as problem:
        counts = {"insufficient": str(problem)}
    row = {"case": unit.case, "unit": unit.name, "seed": unit.seed, "note": unit.note}
    path = _result(work, unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, _as_json(row | counts | {"step_seconds": time.perf_counter() - began}))


def _result(work: Path, unit: Unit) -> Path:
    return work / "results" / unit.case / f"{unit.name}.json"


def _table(settings: BenchmarkSettings, units: list[Unit], work: Path) -> dict[str, Any]:
    paths = [(unit.case, _result(work, unit)) for unit in units]
    rows = [(case, json.loads(path.read_text("utf-8"))) for case, path in paths if path.exists()]
    done = [case.name for case in CASES if any(name == case.name for name, _ in rows)]
    tables = {
        case: table_of(case, [row for name, row in rows if name == case], judged=settings.judged)
        for case in done
    }
    return {
        "stillhouse": __version__,
        "traffic": "simulated: every rate here is one of simulated traffic",
        "settings": settings.model_dump(mode="json"), "seeds": list(settings.seeds),
        "goals_judged": settings.judged,
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "steps": {"done": len(rows), "of": len(units)},
        "cases": tables,
    }  # fmt: skip


def _check_begun(settings: BenchmarkSettings, work: Path) -> None:
    """Nothing, where the folder is new or was begun with these settings, whatever the cases."""
    told = settings.model_dump(mode="json", exclude={"only", "keep"})
    path = work / "benchmark.json"
    if not path.exists():
        write_whole(path, _as_json(told))
        return
    begun = json.loads(path.read_text("utf-8"))
    if begun != told:
        other = next(k for k in {*begun, *told} if begun.get(k) != told.get(k))
        raise ConfigError(
            f"--work {work}", f"{other} {begun.get(other)}, not {told.get(other)}",
            "the settings it was begun with", "Name a new folder, or give the same settings",
        )  # fmt: skip


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1, default=str) + "\n"
