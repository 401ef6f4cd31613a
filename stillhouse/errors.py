"""The errors of Stillhouse: one root, branches by who must act.

    StillhouseError
    ├── ConfigError       exit 2   the person who wrote the recipe or the command line
    ├── DataError         exit 3   the person who owns the file
    │   └── StoreError             ... a store of exchanges
    ├── ModelError        exit 4   the person who runs the model or the network
    │   ├── CapabilityError        ... the model cannot do what was asked of it
    │   └── TransportError         ... it could not be reached, or stopped answering
    ├── TermsError        exit 5   the person who answers for the teacher's terms
    └── EvidenceError     exit 3   the person who reads the numbers: too little to conclude from

Every message has four parts: where, what was found, what was expected, what to do. To add one:
subclass the branch of the person who must act, raise it with all four parts, and write the test
that reaches the raise.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "CapabilityError",
    "ConfigError",
    "DataError",
    "EvidenceError",
    "ModelError",
    "StillhouseError",
    "StoreError",
    "TermsError",
    "TransportError",
    "nearest",
]

_SHOWN = 12


class StillhouseError(Exception):
    """Root of every error a user can act on; `cli.main` prints it on one line and exits with
    `exit_code`.
    """

    exit_code = 1

    def __init__(self, where: str, found: str, expected: str, todo: str) -> None:
        """Keep the four parts.

        Args:
            where: file and line, setting, or model spec the error is about.
            found: what stands there, the offending value included.
            expected: what would have been right.
            todo: the next action, as an imperative.
        """
        super().__init__(where, found, expected, todo)  # args hold all four, so the error pickles
        self.where, self.found, self.expected, self.todo = where, found, expected, todo

    def __str__(self) -> str:
        """One line: `where: found. Expected expected. todo.`"""
        found, expected, todo = (
            part.rstrip(". ") for part in (self.found, self.expected, self.todo)
        )
        end = "" if todo.endswith("?") else "."
        return f"{self.where}: {found}. Expected {expected}. {todo}{end}"


class ConfigError(StillhouseError, ValueError):
    """A setting, recipe or command line is wrong."""

    exit_code = 2


class DataError(StillhouseError, ValueError):
    """A file or a record in it is wrong."""

    exit_code = 3


class StoreError(DataError):
    """A store of exchanges cannot be opened, read or written."""


class ModelError(StillhouseError, RuntimeError):
    """A model cannot be loaded or does not behave."""

    exit_code = 4


class CapabilityError(ModelError):
    """A model was asked for what it cannot do."""


class TransportError(ModelError):
    """A server could not be reached, or stopped answering."""


class TermsError(StillhouseError):
    """The teacher's terms refuse this use, or are not known."""

    exit_code = 5


class EvidenceError(StillhouseError, ValueError):
    """Too little, or unfit, data for the number that was asked for."""

    exit_code = 3


def nearest(word: str, known: Iterable[str]) -> str:
    """A clause naming the known word nearest to `word`, or a dozen known ones when none is near."""
    known = sorted(known)
    close = get_close_matches(word, known, n=1, cutoff=0.55)
    if close:
        return f"Did you mean '{close[0]}'?"
    rest = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return f"Known: {', '.join(known[:_SHOWN])}{rest}"
