"""What a scan's folder holds: which logs were read, how far, and which parts of events are whole.

    catalogue.json        this; written last, so that what it does not name does not count
    rejects.jsonl         place and reason of lines that are no events, up to a limit
    events/part-*.parquet the events table
    lock                  held (flock) by the one that adds to it

In: paths. Out: which log a file is (one that grew, was renamed or rotated is known by its
beginning) and where to go on reading. No text of a log stands here, but their paths do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stillhouse import log_files
from stillhouse.errors import DataError
from stillhouse.files import alone, write_whole
from stillhouse.guard.key import fingerprint

__all__ = ["Catalogue", "Log", "adding", "is_still"]

VERSION = 1
MAX_FILES = 65_536
"""Of the 16 bits of `file` in the events table."""
_HEAD_BYTES, _TAIL_BYTES = 65_536, 4096


@dataclass(slots=True)
class Log:
    """One log that was read."""

    path: str
    kind: str
    head: str = ""
    """Hash of its first `head_bytes`."""
    head_bytes: int = 0
    tail: str = ""
    """Hash of up to 4 KiB before `read`; of plain lines only."""
    read: int = 0
    """How far it was read: bytes (uncompressed), rows or exchanges."""
    mapping: dict[str, Any] | None = None


@dataclass(slots=True)
class Catalogue:
    """What a folder holds."""

    key: str
    """Fingerprint of the key."""
    logs: list[Log] = field(default_factory=list)
    parts: dict[str, int] = field(default_factory=dict)
    """Part -> its events."""
    rejects: dict[str, int] = field(default_factory=dict)
    """Reason -> lines, of all ingests."""
    first: int | None = None
    """Earliest event, microseconds since 1970."""
    last: int | None = None

    @classmethod
    def open(cls, folder: Path, key: bytes | None) -> Catalogue:
        """The catalogue of a folder; an empty one where there is none yet.

        Args:
            folder: the scan's.
            key: the scan's; None does not check it (and there must be a catalogue).

        Raises:
            DataError: it cannot be read, is of another version, or was made with another key.
        """
        where = str(folder / "catalogue.json")
        try:
            found = json.loads((folder / "catalogue.json").read_text("utf-8"))
            if found["version"] != VERSION:
                raise ValueError(f"version {found['version']}")
            logs = [Log(**log) for log in found.pop("logs")]
            found.pop("version")
            catalogue = cls(logs=logs, **found)
        except FileNotFoundError:
            if key is not None:
                return cls(key=fingerprint(key))
            raise DataError(
                where, "no such file", "a folder that `ingest` wrote", "Check the path"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise DataError(
                where, f"cannot be read ({problem!s:.120})", f"a catalogue of version {VERSION}",
                "Put it back from a copy, or scan into a new folder",
            ) from problem  # fmt: skip
        if key is not None and catalogue.key != fingerprint(key):
            raise DataError(
                where, "events of another key", "the key they were hashed with",
                f"Calibrate and scan with --key {folder}.key, or scan into a new folder",
            )  # fmt: skip
        return catalogue

    def save(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        text = json.dumps({"version": VERSION, **asdict(self)}, indent=1) + "\n"
        write_whole(folder / "catalogue.json", text)

    def find(self, path: Path, kind: str, mapping: dict[str, Any] | None) -> int:
        """Index of a log among `logs`, entered there if it is new; its `path` is this one then.

        A log that was read before is known by its first 64 KiB, or by its path as long as it
        has fewer; a plain one also by the bytes before the place it was read to.

        Raises:
            DataError: too many logs, or the file cannot be read.
        """
        name = str(path.resolve())
        head = b"" if kind in ("store", "parquet") else _head(path)
        for index, log in enumerate(self.logs):
            if log.kind == kind and log.mapping == mapping and _is(log, name, path, head):
                return index
        if len(self.logs) >= MAX_FILES:
            raise DataError(
                name, f"{MAX_FILES} logs in this scan", "fewer", "Begin a new scan, or join logs"
            )
        first = _stamp(path) if kind == "parquet" else _hash(head)
        self.logs.append(Log(name, kind, first, len(head), mapping=mapping))
        return len(self.logs) - 1

    def done(self, index: int, path: Path, read: int) -> None:
        """Note that a log was read up to a place.

        Where it lies is noted anew if this is more of it than was known.
        """
        log = self.logs[index]
        if read > log.read or not Path(log.path).exists():
            log.path = str(path.resolve())
        if read <= log.read:
            return
        log.read = read
        if log.kind not in ("store", "parquet"):
            head = _head(path)[:read]
            log.head, log.head_bytes = _hash(head), len(head)
            plain = log_files.compression(path) is None
            log.tail = tail_of(path, read) if plain else ""


def is_still(log: Log, path: Path) -> bool:
    """Whether a path holds what was read of a log: to read it back there."""
    if log.kind in ("store", "parquet"):
        return (path / "store.json").exists() if log.kind == "store" else log.head == _stamp(path)
    head = b"" if path.is_dir() else _head(path)[: log.head_bytes]
    return len(head) == log.head_bytes and _hash(head) == log.head and _fits_tail(log, path)


def _is(log: Log, name: str, path: Path, head: bytes) -> bool:
    """Whether a path is a log that was read before, perhaps grown, renamed or rotated."""
    if log.kind in ("store", "parquet"):
        return log.path == name and (log.kind == "store" or log.head == _stamp(path))
    if len(head) < log.head_bytes or _hash(head[: log.head_bytes]) != log.head:
        return False
    if log.head_bytes < _HEAD_BYTES and log.path != name and len(head) != log.head_bytes:
        return False
    return _fits_tail(log, path)


def _fits_tail(log: Log, path: Path) -> bool:
    if not log.tail or log_files.compression(path) or path.stat().st_size < log.read:
        return True
    return tail_of(path, log.read) == log.tail


def _head(path: Path) -> bytes:
    head = b""
    with log_files.opened(path) as file:
        while len(head) < _HEAD_BYTES and (found := file.read(_HEAD_BYTES - len(head))):
            head += found
    return head


def tail_of(path: Path, read: int) -> str:
    """Hash of up to 4 KiB before an offset of a plain file."""
    start = max(0, read - _TAIL_BYTES)
    with log_files.opened(path, start) as file:
        return _hash(file.read(read - start))


def _stamp(path: Path) -> str:
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@contextmanager
def adding(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, so that one process at a time adds to it.

    Raises:
        DataError: the folder holds something else, or another process adds to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    foreign = sorted({p.name for p in folder.iterdir()} - {"lock", "events", "staging"})
    if foreign and not (folder / "catalogue.json").exists() and foreign != [".catalogue.json.new"]:
        raise DataError(
            str(folder), f"{foreign[0]!r} lies there, and no catalogue.json",
            "a scan's folder, or an empty one", "Choose another folder",
        )  # fmt: skip
    with alone(folder):
        yield
