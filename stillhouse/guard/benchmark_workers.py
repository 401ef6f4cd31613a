"""The benchmark's steps, done by one process or by several side by side.

In: steps, a folder. Out: their counts in WORK/results, and word of what happens. Steps that share a
simulated week go to one process, in order; so no process waits for another, and each deletes only
weeks of its own.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

from stillhouse.errors import DataError, EvidenceError, StillhouseError
from stillhouse.files import write_whole
from stillhouse.guard.benchmark_weeks import Week, WeekPlan, make_week
from stillhouse.guard.benchmark_work import Unit
from stillhouse.guard.key import read_key
from stillhouse.memory import give_back_memory

__all__ = ["as_json", "result_path", "run_side_by_side", "sharing_weeks"]

_LOOKED_AFTER_SECONDS = 1.0

Told = Callable[[str | None], None]
"""Takes a note, or None after each step."""


def run_side_by_side(
    units: list[Unit], work: Path, workers: int, *, keep: frozenset[str]
) -> Iterator[str | None]:
    """Notes of what happens, and None after each step whose counts were written.

    Args:
        units: steps that are not done yet.
        work: the benchmark's folder; its key is there.
        workers: processes at most.
        keep: names of weeks that are left there; others go when no step needs them any more.

    Raises:
        DataError: a process was killed, or what a step raises.
    """
    groups = sharing_weeks(units)
    context = get_context("spawn")
    todo: Any = context.Queue()
    told: Any = context.Queue()
    for group in groups:
        todo.put(group)
    count = min(workers, len(groups))
    started = [context.Process(target=_work, args=(todo, told, work, keep)) for _ in range(count)]
    for process in started:
        todo.put(None)
        process.start()
    try:
        yield from _heard(told, started)
    finally:
        for process in started:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGINT)  # its own processes end with it
            process.join()


def _heard(told: Any, started: list[Any]) -> Iterator[str | None]:
    """What the processes tell, until all are through."""
    running = len(started)
    while running:
        try:
            note = told.get(timeout=_LOOKED_AFTER_SECONDS)
        except queue.Empty:
            killed = [process.exitcode for process in started if process.exitcode]
            if killed:
                raise DataError(
                    "the benchmark", f"one of its processes ended with {killed[0]}", "3 GiB and a "
                    "processor for each (below 0: it was killed, for want of memory perhaps)",
                    "Run the same command again with fewer --workers: it goes on",
                ) from None  # fmt: skip
            continue
        if isinstance(note, BaseException):
            raise note
        if note == _THROUGH:
            running -= 1
        else:
            yield note


_THROUGH = ""


def _work(todo: Any, told: Any, work: Path, keep: frozenset[str]) -> None:
    """Take groups of steps until there are none left."""
    # What a script starts in the background ignores interrupts; these processes end by one.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    Thread(target=_end_with_caller, daemon=True).start()
    try:
        while (group := todo.get()) is not None:
            _run_group(group, work, told.put, keep=keep)
        told.put(_THROUGH)
    except KeyboardInterrupt:
        pass
    except StillhouseError as problem:  # anything else is a defect of ours, and ends the process
        told.put(problem)


def _end_with_caller() -> None:
    """Where the caller is killed, so is its lock of the folder: nobody else may work there."""
    caller = parent_process()
    if caller is not None:
        caller.join()
        os.kill(os.getpid(), signal.SIGINT)


def _run_group(units: list[Unit], work: Path, told: Told, *, keep: frozenset[str]) -> None:
    desk = _Desk(work, units, told)
    for number, unit in enumerate(units):
        desk.attend(f"{unit.case} {unit.name}")
        _run(desk, unit, work)
        told(None)
        desk.forget(units[number + 1 :], keep=keep)


def sharing_weeks(units: list[Unit]) -> list[list[Unit]]:
    """The steps in groups that have no week in common, in the order they came."""
    groups: list[tuple[set[str], list[Unit]]] = []
    for unit in units:
        names = {plan.name for plan in unit.weeks}
        sharing = [group for group in groups if group[0] & names]
        if not sharing:
            groups.append((names, [unit]))
            continue
        first, *others = sharing
        for group in others:
            names |= group[0]
            first[1].extend(group[1])
            groups.remove(group)
        first[0].update(names)
        first[1].append(unit)
    return [members for _, members in groups]


class _Desk:
    """The weeks of a group of steps, made when they are first needed."""

    def __init__(self, work: Path, units: list[Unit], told: Told) -> None:
        self.key, self.scratch = work / "key", work / "scratch"
        self._secret = read_key(self.key)
        self._folder = work / "weeks"
        self._own = {plan.name for unit in units for plan in unit.weeks}
        self._open: dict[str, Week] = {}
        self._told, self._what = told, ""

    def attend(self, what: str) -> None:
        """Another step begins."""
        self._what = what
        self._told(what)

    def tell(self, note: str) -> None:
        """What happens now."""
        self._told(f"{self._what}: {note}")

    def week(self, plan: WeekPlan) -> Week:
        """The week, made where it is not there yet."""
        if plan.name not in self._open:
            made = make_week(plan, self._folder / plan.name, self._secret, self.tell)
            self._open[plan.name] = made
        return self._open[plan.name]

    def forget(self, pending: list[Unit], *, keep: frozenset[str]) -> None:
        """Weeks that no step to come needs are deleted; those to be kept are only closed."""
        over = self._own - {plan.name for unit in pending for plan in unit.weeks}
        for name in over:
            self._open.pop(name, None)
            if name not in keep:
                shutil.rmtree(self._folder / name, ignore_errors=True)
        self._own -= over
        give_back_memory()


def _run(desk: _Desk, unit: Unit, work: Path) -> None:
    """Do one step and keep its counts; that there is too little to judge is a result, too."""
    began = time.perf_counter()
    try:
        counts = unit.work(desk, unit)
    except EvidenceError as problem:
        counts = {"insufficient": str(problem)}
    row = {"case": unit.case, "unit": unit.name, "seed": unit.seed, "note": unit.note}
    path = result_path(work, unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, as_json(row | counts | {"step_seconds": time.perf_counter() - began}))


def result_path(work: Path, unit: Unit) -> Path:
    """Where a step's counts are kept."""
    return work / "results" / unit.case / f"{unit.name}.json"


def as_json(value: Any) -> str:
    """Text of a file."""
    return json.dumps(value, ensure_ascii=False, indent=1, default=str) + "\n"
