"""What a room tells while it works. Rooms never print; the command line draws.

In: stages and counts. Out: a protocol, a listener that says nothing, and how durations are written.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "Silent", "duration"]


class Progress(Protocol):
    """Where a room says what it does and how far it is. The command line draws it on stderr."""

    def start(self, stage: str, total: float | None = None, unit: str = "") -> None:
        """A stage begins: a short present participle ('collecting answers'), its size and unit."""
        ...

    def advance(self, done: float, note: str = "", left_seconds: float | None = None) -> None:
        """`done` of the stage's total so far (absolute, not a difference), with a short figure
        beside it.
        """
        ...

    def finish(self, note: str = "") -> None:
        """The stage is done; `note` says what came out, e.g. '450 exchanges, 3 rejected'."""
        ...

    def say(self, line: str) -> None:
        """One line a person should read: a decision taken, something kept, something dropped."""
        ...


class Silent:
    """A progress that says nothing: the default of library calls."""

    def start(self, stage: str, total: float | None = None, unit: str = "") -> None:
        """Nothing."""

    def advance(self, done: float, note: str = "", left_seconds: float | None = None) -> None:
        """Nothing."""

    def finish(self, note: str = "") -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""


def duration(seconds: float) -> str:
    """`7 s`, `2 min 05 s`, `1 h 12 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
