"""What the commands show: progress on stderr, results on stdout.

On a terminal a live bar with the time left; elsewhere (a log file, CI) a plain line at each
stage's start and end and every ten seconds between. Nothing here decides anything.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from stillhouse.errors import ConfigError
from stillhouse.progress import Progress, Silent, duration

__all__ = ["Common", "all_given", "duration", "emit", "make_progress", "plainly", "table"]

_LINE_EVERY_SECONDS = 10.0


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    """Options every command takes."""

    json: Annotated[bool, Parameter(help="Print the result as JSON on stdout.")] = False
    quiet: Annotated[bool, Parameter(help="No progress on stderr.")] = False


def all_given(command: str, given: Mapping[str, Any], expected: str) -> None:
    """Nothing, where every option of a command has a value.

    Args:
        command: its verb.
        given: option -> value; what is empty is missing.
        expected: all of them, as they are written.

    Raises:
        ConfigError: names all that are missing at once.
    """
    missing = [name for name, value in given.items() if not value]
    if missing:
        raise ConfigError(
            f"stillhouse {command}", f"no {', '.join(missing)}", expected,
            f"Add what is missing; `stillhouse {command} --help` shows an example",
        )  # fmt: skip


def emit(result: Mapping[str, Any], lines: Iterable[str], *, as_json: bool) -> None:
    """The result on stdout: as JSON, or in the given lines."""
    if as_json:
        print(json.dumps(result, ensure_ascii=False, indent=2, default=str))
    else:
        for line in lines:
            print(line)


def plainly(result: Mapping[str, Any]) -> list[str]:
    """A line for each figure that is known; what is long stands in the JSON only."""
    lines: list[str] = []
    for name, value in result.items():
        if isinstance(value, Mapping):
            parts = [f"{k} {v}" for k, v in value.items() if isinstance(v, str | int | float)]
            lines.append(f"{name}: {', '.join(parts) or 'none'}")
        elif value is not None and not isinstance(value, list | tuple):
            lines.append(f"{name}: {f'{value:.4g}' if isinstance(value, float) else value}")
    return lines


def table(rows: list[list[str]]) -> list[str]:
    """Lines of left-aligned columns; the first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def make_progress(*, quiet: bool) -> Progress:
    """A bar on a terminal, lines elsewhere, silence when asked for."""
    if quiet:
        return Silent()
    return _Bar() if sys.stderr.isatty() else _Lines()


class _Stage:
    """Where a stage is, and how long it still takes."""

    def __init__(self, name: str, total: float | None, unit: str) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.began = time.monotonic()
        self._first: float | None = None

    def words(self, done: float, note: str, left_seconds: float | None) -> list[str]:
        """The note, and the time left: the room's own forecast, or a straight line."""
        if self._first is None:
            self._first, self.began = done, time.monotonic()
        made = done - self._first  # a resumed stage starts with work it did not do now
        if left_seconds is None and self.total and made > 0:
            left_seconds = (time.monotonic() - self.began) * (self.total - done) / made
        left = "" if left_seconds is None else f"about {duration(left_seconds)} left"
        return [word for word in (left, note) if word]

    def done(self, note: str) -> str:
        """How long it took, and what came out."""
        took = duration(time.monotonic() - self.began)
        return f"{took}; {note}" if note else took


class _Lines:
    """Progress as plain lines on stderr."""

    def __init__(self) -> None:
        self._stage = _Stage("", None, "")
        self._spoke = 0.0

    def start(self, stage: str, total: float | None = None, unit: str = "") -> None:
        self._stage = _Stage(stage, total, unit)
        self._spoke = time.monotonic()
        size = f" ({total:g} {unit})" if total else ""
        self.say(f"  {stage}{size} ...")

    def advance(self, done: float, note: str = "", left_seconds: float | None = None) -> None:
        stage = self._stage
        words = stage.words(done, note, left_seconds)
        if time.monotonic() - self._spoke < _LINE_EVERY_SECONDS:
            return
        self._spoke = time.monotonic()
        share = f"{done / stage.total:4.0%}, " if stage.total else ""
        of = f" of {stage.total:g}" if stage.total else ""
        count = f"{done:g}{of} {stage.unit}".strip()
        self.say(f"  {stage.name}: {share}" + ", ".join([count, *words]))

    def finish(self, note: str = "") -> None:
        self.say(f"  {self._stage.name}: done in {self._stage.done(note)}")

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


class _Bar:
    """Progress as one live line on stderr, left behind as a plain line when a stage is done."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._stage = _Stage("", None, "")
        self._bar: Any = None
        self._task: Any = None

    def start(self, stage: str, total: float | None = None, unit: str = "") -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._close()
        self._stage = _Stage(stage, total, unit)
        counts = [TextColumn("{task.completed:g}/{task.total:g} " + unit)] if total else []
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            *counts,
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task(stage, total=total, note="")
        self._bar.start()

    def advance(self, done: float, note: str = "", left_seconds: float | None = None) -> None:
        if self._bar is not None:
            words = ", ".join(self._stage.words(done, note, left_seconds))
            self._bar.update(self._task, completed=done, note=words)

    def finish(self, note: str = "") -> None:
        self._close()
        self.say(f"  ✓ {self._stage.name} ({self._stage.done(note)})")

    def say(self, line: str) -> None:
        self._console.print(line, markup=False)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
