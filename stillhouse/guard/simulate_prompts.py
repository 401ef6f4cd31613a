"""Real prompts for a simulated range, and real answers to a campaign's prompts.

In: files or folders of prompts (JSONL, CSV or text), a store of exchanges. Out: distinct texts in a
fixed order; for messages, the exchange that asked exactly them. Nothing is asked of a model.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from stillhouse.errors import DataError
from stillhouse.exchange import Exchange
from stillhouse.log_records import parsed_text
from stillhouse.messages import tool_form
from stillhouse.store import Store

__all__ = ["Answers", "offered", "read_pool"]

_FIELDS = ("prompt", "question", "instruction", "text")
_LONGEST_CELL = 16 << 20  # of a CSV file: whole documents occur among prompts
_KINDS = (".jsonl", ".csv", ".txt")
LONGEST_PROMPT_BYTES = 1200
"""Longer ones are passed over: a range's prompts stay short (docs/guard-simulate.md)."""


def read_pool(paths: Iterable[Path]) -> tuple[str, ...]:
    """The distinct prompts of all files, in the order of the files.

    Raises:
        DataError: a path that names nothing, a file of another kind, a line that is not JSON, or
            files without any prompt.
    """
    found: dict[str, None] = {}
    paths = list(paths)
    for path in _files(paths):
        for text in _texts(path):
            text = text.strip()
            if text and len(text.encode("utf-8", "replace")) <= LONGEST_PROMPT_BYTES:
                found.setdefault(text)
    if paths and not found:
        raise DataError(
            ", ".join(map(str, paths)), "no prompt",
            f"records with one of the fields {', '.join(_FIELDS)}", "Name other files",
        )  # fmt: skip
    return tuple(found)


def _files(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(f for f in path.iterdir() if f.suffix in _KINDS)
        elif not path.is_file():
            raise DataError(str(path), "no such file", "a file or folder", "Check the path")
        elif path.suffix not in _KINDS:
            raise DataError(
                str(path), f"a file of kind '{path.suffix}'", f"one of {', '.join(_KINDS)}",
                "Convert it, or leave it out",
            )  # fmt: skip
        else:
            yield path


def _texts(path: Path) -> Iterator[str]:
    limit = csv.field_size_limit(_LONGEST_CELL)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                for row in csv.DictReader(file):
                    yield _text_of(row)
                return
            for number, line in enumerate(file, 1):
                if path.suffix == ".txt":
                    yield line
                elif line.strip():
                    yield _text_of(_object(line, f"{path}, line {number}"))
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise DataError(
            str(path), str(problem), "a readable file in UTF-8", "Correct it or leave it out"
        ) from problem
    finally:
        csv.field_size_limit(limit)


def _object(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as problem:
        raise DataError(
            where, f"no JSON ({problem})", "one JSON object", "Correct or remove the line"
        ) from problem


def _text_of(record: Any) -> str:
    if not isinstance(record, dict):
        return ""
    return next((record[f] for f in _FIELDS if isinstance(record.get(f), str)), "")


class Answers:
    """A store's answers, by the messages that were asked."""

    def __init__(self, path: Path) -> None:
        """Read the store.

        Raises:
            StoreError: it is none.
        """
        with Store(path, "r") as store:
            self._by_prompt = {
                tuple((m.role, m.text) for m in exchange.prompt): exchange for exchange in store
            }
        self.given = 0
        """Answers found so far."""

    def __len__(self) -> int:
        """Prompts that have one."""
        return len(self._by_prompt)

    def of(self, messages: list[dict[str, Any]]) -> Exchange | None:
        """The exchange that asked exactly these messages, if there is one."""
        asked = tuple((m["role"], m["content"]) for m in messages)
        exchange = None if any(type(t) is not str for _, t in asked) else self._by_prompt.get(asked)
        self.given += exchange is not None
        return exchange


def offered(answer: Exchange) -> list[dict[str, Any]]:
    """The tools that were offered when this was answered, in chat form."""
    return [tool_form(tool, parsed_text) for tool in answer.tools]
