"""What a run tells while it works (`Progress`) and when it is done (`report.json`, `report.html`).

In: stages, counts and figures. Out: the protocol rooms report progress through, and the two report
files. Rooms never print; the command line draws.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """Where a room says what it does and how far it is. The command line draws it on stderr."""

    def start(self, stage: str, total: float | None = None, unit: str = "") -> None:
        """A stage begins: a short present participle ('collecting answers'), its size and unit."""
        ...

    def advance(self, done: float, note: str = "") -> None:
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

    def advance(self, done: float, note: str = "") -> None:
        """Nothing."""

    def finish(self, note: str = "") -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""
