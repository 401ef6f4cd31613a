"""Which log a file or store is: one that was read before, perhaps grown, renamed or rotated.

In: a path, and what a catalogue notes of the logs that were read. Out: the log it is, or a new one.
Lines and CSV are known by their beginning, Parquet files by their beginning and footer, stores by
the ids of their first exchanges; what can grow also by what stood before the place it was read to.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from stillhouse import log_files
from stillhouse.errors import DataError
from stillhouse.store import Store

__all__ = ["Known", "Log", "is_still", "note"]

MAX_FILES = 65_536
"""Of the 16 bits of `file` in the events table."""
_HEAD_BYTES, _TAIL_BYTES = 65_536, 4096
_FOOTER_BYTES = 16 * 2**20
"""Of a Parquet file's footer that are looked at; those of 1,000 columns have fewer."""


@dataclass(slots=True)
class Log:
    """One log that was read."""

    path: str
    kind: str
    head: str = ""
    """Hash of the first `head_bytes` of its `_beginning`."""
    head_bytes: int = 0
    tail: str = ""
    """Hash of up to 4 KiB before `read`, of plain lines and CSV; of the id before it in a store."""
    read: int = 0
    """How far it was read: bytes (uncompressed), rows or exchanges."""
    seen: int = 0
    """How far it was looked at: beyond `read` for a last line that waits for its rest."""
    mapping: dict[str, Any] | None = None


class Known:
    """The logs of a catalogue, found by their beginnings."""

    def __init__(self, logs: list[Log]) -> None:
        """The list is the catalogue's; new logs are appended to it."""
        self._logs = logs
        self._heads: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        self._paths: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        for index in range(len(logs)):
            self._enter(index)

    def find(self, path: Path, kind: str, mapping: dict[str, Any] | None) -> int:
        """Index of a log in the list, appended if it is new; its `path` is this one then.

        A log that was read before is known by its first 64 KiB, or by its path as long as it
        has fewer, or by being the same.

        Raises:
            DataError: too many logs, or the file cannot be read.
        """
        name, used = str(path.resolve()), json.dumps(mapping, sort_keys=True)
        head = _Head(path, kind)
        likely = set(self._paths[kind, used, name])
        for size in {head.size, _HEAD_BYTES}:
            if size <= head.size:
                likely.update(self._heads[kind, used, head.hash(size)])
        for index in sorted(likely):
            if _is(self._logs[index], name, path, head):
                return index
        if len(self._logs) >= MAX_FILES:
            raise DataError(
                name, f"{MAX_FILES} logs in this scan", "fewer", "Begin a new scan, or join logs"
            )
        self._logs.append(Log(name, kind, head.hash(head.size), head.size, mapping=mapping))
        self._enter(len(self._logs) - 1)
        return len(self._logs) - 1

    def _enter(self, index: int) -> None:
        log = self._logs[index]
        used = json.dumps(log.mapping, sort_keys=True)
        self._heads[log.kind, used, log.head].append(index)
        self._paths[log.kind, used, log.path].append(index)


def note(log: Log, path: Path, read: int, seen: int) -> None:
    """Note that a log was read up to a place, and looked at up to another.

    Where it lies is noted anew if this is more of it than was known.
    """
    if read > log.read or not Path(log.path).exists():
        log.path = str(path.resolve())
    if read < log.read:
        return
    log.seen = max(read, seen)
    if read == log.read:
        return
    log.read = read
    if log.kind == "parquet":
        return
    head = _first_ids(path, read) if log.kind == "store" else _beginning(path, log.kind)[:read]
    log.head, log.head_bytes = _hash(head), len(head)
    log.tail = _tail(log, path) or ""


def is_still(log: Log, path: Path) -> bool:
    """Whether a path holds what was read of a log: to read it back there."""
    store = (path / "store.json").exists()
    if store != (log.kind == "store") or (path.is_dir() and not store):
        return False
    head = _beginning(path, log.kind)[: log.head_bytes]
    return len(head) == log.head_bytes and _hash(head) == log.head and _fits_tail(log, path)


class _Head:
    """The beginning of a file or store, hashed once for each size that is asked for."""

    def __init__(self, path: Path, kind: str) -> None:
        self._data = _beginning(path, kind)
        self._hashes: dict[int, str] = {}
        self.size = len(self._data)

    def hash(self, size: int) -> str:
        """Of its first bytes."""
        if size not in self._hashes:
            self._hashes[size] = _hash(self._data[:size])
        return self._hashes[size]


def _is(log: Log, name: str, path: Path, head: _Head) -> bool:
    """Whether a path is a log that was read before, perhaps grown, renamed or rotated."""
    if head.size < log.head_bytes or head.hash(log.head_bytes) != log.head:
        return False
    if log.head_bytes < _HEAD_BYTES and log.path != name and head.size != log.head_bytes:
        return False
    return _fits_tail(log, path)


def _fits_tail(log: Log, path: Path) -> bool:
    found = _tail(log, path) if log.tail else None
    return found is None or found == log.tail


def _tail(log: Log, path: Path) -> str | None:
    """Hash of what stands before the place a log was read to; None where that tells nothing."""
    if log.kind == "store":
        with Store(path, "r") as store:
            last = next(islice(store.stream(["id"]), log.read - 1, None), None)
        return None if last is None else _hash(last["id"].encode())
    if log_files.compression(path) is not None or path.stat().st_size < log.read:
        return None
    start = max(0, log.read - _TAIL_BYTES)
    with log_files.opened(path, start) as file:
        return _hash(file.read(log.read - start))


def _beginning(path: Path, kind: str) -> bytes:
    """What a log is known by: up to 64 KiB of a file, or of a store's ids; a Parquet file, which
    never grows, by a hash of its size, its first 64 KiB and its footer.
    """
    if kind == "store":
        return _first_ids(path)
    head = b""
    with log_files.opened(path) as file:
        while len(head) < _HEAD_BYTES and (found := file.read(_HEAD_BYTES - len(head))):
            head += found
        if kind != "parquet" or log_files.compression(path) is not None:
            return head
        size = path.stat().st_size
        file.seek(max(0, size - 8))
        footer = min(int.from_bytes(file.read(4), "little"), _FOOTER_BYTES)
        file.seek(max(0, size - 8 - footer))
        return _hash(b"%d %d " % (size, len(head)) + head + file.read()).encode()


def _first_ids(path: Path, count: int | None = None) -> bytes:
    """The ids of a store's first exchanges, up to so many, or to 64 KiB."""
    found = b""
    with Store(path, "r") as store:
        for row in islice(store.stream(["id"]), count):
            found += row["id"].encode()
            if len(found) >= _HEAD_BYTES:
                break
    return found[:_HEAD_BYTES]


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
