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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stillhouse import __version__
from stillhouse.errors import ConfigError
from stillhouse.files import alone, write_whole
from stillhouse.guard.benchmark_cases import CASES, planned_units
from stillhouse.guard.benchmark_settings import BenchmarkSettings
from stillhouse.guard.benchmark_tables import table_of
from stillhouse.guard.benchmark_work import Unit
from stillhouse.guard.benchmark_workers import as_json, result_path, run_side_by_side
from stillhouse.guard.key import write_key
from stillhouse.guard.simulate import planned
from stillhouse.progress import Progress, Silent

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
        pending = [unit for unit in units if not result_path(work, unit).exists()]
        if any(unit.name.endswith("baselines") for unit in pending):
            import sklearn  # noqa: F401  # what is not installed is said now, not hours later
        progress.start("benchmark", len(units), "steps")
        done = len(units) - len(pending)
        for note in _worked(settings, pending, work):
            if note is None:
                done += 1
                write_whole(work / "table.json", as_json(_table(settings, units, work)))
            else:
                progress.advance(done, note)
        if not settings.keep:
            shutil.rmtree(work / "weeks", ignore_errors=True)
        progress.finish(f"{len(units)} steps")
        table = _table(settings, units, work)
        write_whole(work / "table.json", as_json(table))
    return table


def _worked(settings: BenchmarkSettings, pending: list[Unit], work: Path) -> Iterator[str | None]:
    """What happens, and None after each step. What is timed runs last and alone."""
    key = work / "key"
    if not key.exists():
        write_key(key)
    timed = [unit for unit in pending if unit.case == "speed"]
    others = [unit for unit in pending if unit.case != "speed"]
    spared = pending if settings.keep else timed
    keep = frozenset(plan.name for unit in spared for plan in unit.weeks)
    yield from run_side_by_side(others, work, settings.workers, keep=keep)
    yield from run_side_by_side(timed, work, 1, keep=keep)


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


def _table(settings: BenchmarkSettings, units: list[Unit], work: Path) -> dict[str, Any]:
    paths = [(unit.case, result_path(work, unit)) for unit in units]
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
    told = settings.model_dump(mode="json", exclude={"only", "keep", "workers"})
    path = work / "benchmark.json"
    if not path.exists():
        write_whole(path, as_json(told))
        return
    begun = json.loads(path.read_text("utf-8"))
    if begun != told:
        other = next(k for k in {*begun, *told} if begun.get(k) != told.get(k))
        raise ConfigError(
            f"--work {work}", f"{other} {begun.get(other)}, not {told.get(other)}",
            "the settings it was begun with", "Name a new folder, or give the same settings",
        )  # fmt: skip
