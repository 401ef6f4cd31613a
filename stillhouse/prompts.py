"""Prompts from files: JSONL, text, JSON and Parquet, folders of them and globs.

In: paths. Out: `Prompts`, each with an id, its messages, tools, labels and where it stood. A record
that is no prompt is kept with its reason in a rejects file and the rest goes on; above a stated
share the reading stops. Nothing here asks a model, and nothing is written beside the user's files.

    JSONL, JSON     {"messages": [...]} or {"prompt": "text"}, and where wished "id", "system",
                    "tools", "labels", "task", "domain" and other short fields (kept as labels)
    Parquet         the same as columns
    text            one prompt a line; empty lines are skipped
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from stillhouse.errors import DataError
from stillhouse.exchange import Message, Tool
from stillhouse.files import write_whole
from stillhouse.messages import Prompt, Unfit, prompt_of, with_own_id

__all__ = ["Prompt", "Prompts", "Reject", "prompt_files", "read_prompts", "write_rejects"]

# A share of fewer records than this says nothing; ours.
_SHARE_FROM = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """A record that is no prompt."""

    file: str
    line: int
    reason: str
    content: str
    """The record as it stood."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """What the files held."""

    prompts: tuple[Prompt, ...]
    """Usable and distinct, in the order of the files."""
    rejects: tuple[Reject, ...]
    duplicates: int
    """Records that asked the same as an earlier one; kept once."""
    renamed: Mapping[str, str]
    """Source -> id, where the given id already belonged to another prompt."""
    not_carried: Mapping[str, int]
    """Fields too long or too deep for a label -> in how many records."""
    files: tuple[Path, ...]


def read_prompts(
    paths: Sequence[Path | str],
    *,
    rejects: Path | None = None,
    max_rejected: float = 0.2,
    exclude: Collection[Path] = (),
) -> Prompts:
    """The distinct prompts of all files, in order.

    Args:
        paths: files, folders (read whole, sorted) and globs.
        rejects: where records that are no prompts are kept; None keeps them in the result only.
        max_rejected: the share of such records above which the reading stops (from 20 records on).
        exclude: folders that are left out of folders and globs, such as the store.

    Raises:
        DataError: a path without files, an unreadable or empty file, too large a share of rejects,
            or nothing usable.
    """
    files = prompt_files(paths, exclude)
    bad: list[Reject] = []
    kept: dict[tuple[tuple[Message, ...], tuple[Tool, ...]], Prompt] = {}
    owner: set[str] = set()
    renamed: dict[str, str] = {}
    not_carried: Counter[str] = Counter()
    duplicates = records = 0
    for path in files:
        before = records
        for line, raw, load in _records(path):
            records += 1
            try:
                prompt = prompt_of(load(), f"{path}:{line}", not_carried)
            except Unfit as unfit:
                bad.append(Reject(file=str(path), line=line, reason=str(unfit), content=raw))
                continue
            if (prompt.messages, prompt.tools) in kept:
                duplicates += 1
                continue
            if prompt.id in owner:
                prompt = with_own_id(prompt)
                renamed[prompt.source] = prompt.id
            owner.add(prompt.id)
            kept[prompt.messages, prompt.tools] = prompt
        if records == before:
            raise DataError(
                str(path), "an empty file", "at least one prompt", "Fill the file or leave it out"
            )
    if rejects is not None:
        write_rejects(rejects, bad, {str(path) for path in files})
    _judge(bad, records, max_rejected, rejects)
    return Prompts(
        prompts=tuple(kept.values()), rejects=tuple(bad), duplicates=duplicates, renamed=renamed,
        not_carried=dict(not_carried), files=tuple(files),
    )  # fmt: skip


def _judge(bad: list[Reject], records: int, max_rejected: float, rejects: Path | None) -> None:
    """Nothing, when enough of the records are prompts."""
    if len(bad) == records or (records >= _SHARE_FROM and len(bad) > max_rejected * records):
        first = bad[0]
        kept = f"all are listed with their reasons in {rejects}" if rejects else "see each reason"
        raise DataError(
            f"{first.file}:{first.line}",
            f"{first.reason} ({len(bad)} of {records} records are no prompts; {kept})",
            f"at most {max_rejected:.0%} of unusable records, and a usable one",
            'Write one {"prompt": "..."} or {"messages": [...]} a line, or raise `max_rejected`',
        )


def write_rejects(path: Path, rejects: Sequence[Reject], files: Collection[str]) -> None:
    """Replace what the rejects file says of `files`; what it says of others stays, and the file
    goes when nothing is left to say.
    """
    others = []
    if path.exists():
        lines = (json.loads(line) for line in path.read_text("utf-8").splitlines())
        others = [line for line in lines if line["file"] not in files]
    new = [
        {"file": bad.file, "line": bad.line, "reason": bad.reason, "content": bad.content}
        for bad in rejects
    ]
    if not others + new:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # ASCII escapes: what was rejected for half a surrogate pair can be written down too.
    write_whole(path, "".join(json.dumps(line) + "\n" for line in others + new))


# ---- which files ----


def prompt_files(paths: Sequence[Path | str], exclude: Collection[Path] = ()) -> list[Path]:
    """The files the paths stand for, each once, in the order given, folders sorted.

    Raises:
        DataError: a path that names nothing, a folder without prompt files, an unknown kind.
    """
    shut = [Path(folder).resolve() for folder in exclude]
    found: dict[Path, Path] = {}
    for given in paths:
        path = Path(given)
        if path.is_file():
            inside = [path]
        elif path.is_dir():
            inside = sorted(file for file in path.rglob("*") if _is_prompts(file, path))
        else:
            pattern = str(path.relative_to(path.anchor))
            inside = sorted(file for file in Path(path.anchor).glob(pattern) if file.is_file())
        if path not in inside:
            inside = [f for f in inside if not any(f.resolve().is_relative_to(s) for s in shut)]
        if not inside:
            raise _nothing_there(path)
        for file in inside:
            found.setdefault(file.resolve(), file)
    if not found:
        raise DataError(
            "prompts", "no prompt file was named", "at least one file, folder or glob",
            "Name one with --prompts, or under `collect.prompts` in the recipe",
        )  # fmt: skip
    for file in found.values():
        if file.suffix.lower() not in _READERS:
            raise DataError(
                str(file), f"a file of kind '{file.suffix}'", f"one of {', '.join(_READERS)}",
                "Convert it, or rename it by what it holds",
            )  # fmt: skip
    return list(found.values())


def _is_prompts(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.is_file() and not hidden and file.suffix.lower() in _READERS


def _nothing_there(path: Path) -> DataError:
    if path.is_dir():
        return DataError(
            str(path), "a folder without prompt files", f"files of kind {', '.join(_READERS)}",
            "Name the folder that holds them",
        )  # fmt: skip
    hint = f"There is no folder {path.parent}"
    if path.parent.is_dir():
        close = get_close_matches(path.name, [file.name for file in path.parent.iterdir()], n=1)
        hint = f"Did you mean '{close[0]}'?" if close else "Check the path"
    return DataError(str(path), "no such file", "a prompt file, folder or glob", hint)


# ---- records of a file: (line, the record as it stood, how to load it) ----

_Record = tuple[int, str, Callable[[], Any]]


def _records(path: Path) -> Iterator[_Record]:
    try:
        yield from _READERS[path.suffix.lower()](path)
    except OSError as problem:
        raise DataError(
            str(path), str(problem), "a readable file", "Check the path and its permissions"
        ) from problem


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Non-empty lines by number; only newline bytes end a line, never U+2028 and its like."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line  # a BOM
            if line.strip():
                yield number, line.strip()


def _jsonl(path: Path) -> Iterator[_Record]:
    for number, line in _lines(path):
        yield number, line.decode("utf-8", "backslashreplace"), partial(_from_json, line)


def _text(path: Path) -> Iterator[_Record]:
    for number, line in _lines(path):
        yield number, line.decode("utf-8", "backslashreplace"), partial(_from_text, line)


def _json(path: Path) -> Iterator[_Record]:
    try:
        rows = _from_json(path.read_bytes().removeprefix(b"\xef\xbb\xbf") or b"[]")
    except Unfit as unfit:
        raise DataError(
            str(path), str(unfit), "one JSON list of prompts",
            "Repair it; records of a line each belong in a .jsonl file",
        ) from unfit  # fmt: skip
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], 1):
        yield number, json.dumps(row), partial(_same, row)


def _parquet(path: Path) -> Iterator[_Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if not {"prompt", "messages"} & set(names):
                raise DataError(
                    str(path), f"columns {', '.join(names)}", "a column `prompt` or `messages`",
                    "Rename the column that holds what is to be asked",
                )  # fmt: skip
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    row = _without_nulls(row)
                    yield number, json.dumps(row, default=str), partial(_same, row)
    except pa.ArrowException as problem:
        raise DataError(
            str(path), str(problem), "a whole Parquet file", "Make or fetch the file again"
        ) from problem


_READERS: Mapping[str, Callable[[Path], Iterator[_Record]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".txt": _text,
    ".parquet": _parquet,
}


def _from_json(line: bytes) -> Any:
    try:
        return json.loads(line)
    except UnicodeDecodeError as problem:
        raise Unfit(f"not UTF-8 (byte {problem.start + 1})") from problem
    except json.JSONDecodeError as problem:
        raise Unfit(f"not JSON: {problem.msg} at character {problem.pos + 1}") from problem
    except (ValueError, RecursionError) as problem:  # a number or nesting beyond Python's limits
        raise Unfit(f"not JSON that can be read: {problem}") from problem


def _from_text(line: bytes) -> Any:
    try:
        return {"prompt": line.decode("utf-8")}
    except UnicodeDecodeError as problem:
        raise Unfit(f"not UTF-8 (byte {problem.start + 1})") from problem


def _same(row: Any) -> Any:
    return row


def _without_nulls(value: Any) -> Any:
    """Parquet fills the fields a struct does not have with nulls."""
    if isinstance(value, dict):
        return {k: _without_nulls(item) for k, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
