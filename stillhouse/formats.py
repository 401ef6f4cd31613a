"""Exchanges in files of other kinds than a store: JSON lines, one exchange a line.

In: exchanges, or files. Out: files, or exchanges; a line that holds none is a DataError with its
number. The form of a line is `docs/exchange-format.md`'s. Logs of other systems are read by
`log_formats.py`: what cannot be mapped is refused or counted, never guessed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from stillhouse.errors import DataError
from stillhouse.exchange import Exchange, canonical_json, from_dict, to_dict

__all__ = ["from_jsonl", "to_jsonl"]


def to_jsonl(exchanges: Iterable[Exchange], path: Path) -> int:
    """How many exchanges were written, a line each; a file of that name is replaced at the end.

    Raises:
        DataError: the disk refuses; what stood there before still stands.
    """
    begun, count = path.with_name(path.name + ".tmp"), 0
    try:
        with begun.open("w", encoding="utf-8") as file:
            for exchange in exchanges:
                file.write(canonical_json(to_dict(exchange)) + "\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        begun.replace(path)
    except OSError as problem:
        begun.unlink(missing_ok=True)
        raise DataError(
            str(path), f"writing failed ({problem.strerror or problem})", "a disk that takes it",
            "Make room or choose another place, then export again",
        ) from problem  # fmt: skip
    return count


def from_jsonl(path: Path) -> Iterator[Exchange]:
    """The exchanges of a file, one line in memory at a time; empty lines are passed over.

    Raises:
        DataError: no such file, or a line that is no exchange, with its number.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    where = f"{path}, line {number}"
                    yield from_dict(_object(line, where), where)
    except OSError as problem:
        raise DataError(
            str(path), f"cannot be read ({problem.strerror or problem})",
            "a file of exchanges, one JSON object a line", "Check the path",
        ) from problem  # fmt: skip


def _object(line: bytes, where: str) -> dict[str, object]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as problem:
        found = problem
    if not isinstance(found, dict):
        told = f"no JSON ({found})" if isinstance(found, Exception) else f"{found!r:.80}"
        raise DataError(
            where, told, "one exchange as a JSON object", "Correct or remove the line, import again"
        )
    return found
