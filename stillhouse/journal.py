"""The open segment of a store: a file of frames, one for each acknowledged append.

In: exchanges. Out: the same as plain forms that `Exchange.build` reads; what a crash cut off is
dropped and counted, other damage is a StoreError with file and offset. Here too are the two small
files that say what a store's folder is, and who writes to it. When a segment is sealed into
Parquet (`parquet.py`) is decided in `store.py`. The layout, byte for byte, is described in
`docs/exchange-format.md`.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from struct import Struct
from typing import Any, Literal, NamedTuple

import numpy as np

from stillhouse.errors import StoreError
from stillhouse.exchange import FORMAT_VERSION, Exchange, Logprobs, canonical_json
from stillhouse.files import sync_folder
from stillhouse.record import array_fields, plain

__all__ = [
    "Entry",
    "Journal",
    "JournalWriter",
    "check_kind",
    "claim",
    "decode",
    "encode",
    "quiet",
]

_FORMAT = "stillhouse exchanges"
_MAGIC = b"stillhouse-log1\n"
# Magic, and how far the file is acknowledged: readers beside a writer look no further.
_HEAD = Struct("<16sQ")
# 0xFF occurs in no UTF-8 text, so that a stored text cannot pass for a frame.
_FRAME_MARK = b"\xffSHX"
_FRAME = Struct("<4sIII")  # mark, bytes of payload, entries, CRC-32 of the two and the payload
_ENTRY = Struct("<32s32sqII")  # id, key, microseconds since 1970, bytes of text, of columns
# A reader holds the lock for the milliseconds in which it reads an open segment. Ours.
_LOCK_PATIENCE_SECONDS = 2.0
_TAGS: dict[Literal["id", "key"], str] = {"id": "x1:", "key": "k1:"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Entry(NamedTuple):
    """One exchange as it lies in the open segment."""

    id: bytes
    """SHA-256, the id without its tag."""
    key: bytes
    time_us: int
    text: bytes
    """Canonical JSON; arrays stand as their shapes."""
    columns: bytes
    """The arrays, one after the other."""

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return _ENTRY.size + len(self.text) + len(self.columns)

    @property
    def time(self) -> datetime:
        """When the answer was complete, UTC."""
        return _EPOCH + timedelta(microseconds=self.time_us)


def encode(exchange: Exchange) -> Entry:
    """The entry of an exchange."""
    columns: list[bytes] = []

    def shape(array: np.ndarray[Any, Any]) -> tuple[int, ...]:
        columns.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        return array.shape

    text = canonical_json(plain(exchange, shape)).encode()
    id_, key = (bytes.fromhex(tagged[3:]) for tagged in (exchange.id, exchange.key))
    time_us = (exchange.time - _EPOCH) // timedelta(microseconds=1)
    return Entry(id_, key, time_us, text, b"".join(columns))


def decode(entry: Entry) -> dict[str, Any]:
    """The plain form of an entry: JSON's types, and arrays."""
    form = json.loads(entry.text)
    logprobs, at = form.get("logprobs", {}), 0
    for name, dtype, _ in array_fields(Logprobs):
        if name in logprobs:
            shape = logprobs[name]
            array = np.frombuffer(entry.columns, dtype.newbyteorder("<"), math.prod(shape), at)
            logprobs[name] = array.reshape(shape).copy()
            at += array.nbytes
    return form


class Journal:
    """What an open segment holds, read at one moment."""

    def __init__(self, path: Path, *, acknowledged_only: bool = False) -> None:
        """Read it whole (segments are sealed at a size that fits in memory).

        Raises:
            StoreError: a foreign file, another version's, or damage before the last frame.
        """
        self.path = path
        self.data = path.read_bytes()
        head = self.data[: _HEAD.size].ljust(_HEAD.size, b"\0")
        magic, acknowledged = _HEAD.unpack(head)
        begun = len(self.data) <= _HEAD.size and _MAGIC.startswith(magic.rstrip(b"\0"))
        if magic != _MAGIC and not begun:
            raise StoreError(
                str(path), f"begins with {magic!r}", f"{_MAGIC!r}",
                "Move a foreign file away; read a newer store with the release that wrote it",
            )  # fmt: skip
        if acknowledged_only:
            self.data = self.data[:acknowledged]
        self._frames: list[tuple[int, int]] = []
        self.rows, self.torn, self.end = 0, 0, _HEAD.size
        while self.end < len(self.data):
            frame = self._frame_at(self.end)
            if frame is None:
                self._judge_damage()
                break
            stop, rows = frame
            self._frames.append((self.end + _FRAME.size, stop))
            self.end, self.rows = stop, self.rows + rows

    def _frame_at(self, at: int) -> tuple[int, int] | None:
        """(end, entries) of the frame at an offset; None when there is no whole one."""
        if len(self.data) - at < _FRAME.size:
            return None
        mark, size, rows, crc = _FRAME.unpack_from(self.data, at)
        stop = at + _FRAME.size + size
        if mark != _FRAME_MARK or stop > len(self.data):
            return None
        body = memoryview(self.data)[at + _FRAME.size : stop]
        return (stop, rows) if _crc(size, rows, body) == crc else None

    def _judge_damage(self) -> None:
        """A frame cut off at the end is torn; damage that whole frames follow is an error."""
        later = self.data.find(_FRAME_MARK, self.end + 1)
        while later >= 0 and self._frame_at(later) is None:
            later = self.data.find(_FRAME_MARK, later + 1)
        if later >= 0:
            raise StoreError(
                str(self.path), f"damaged frame at byte {self.end}, whole ones from {later}",
                "frames whose checksums match", "Take the file from a copy; the disk is suspect",
            )  # fmt: skip
        self.torn = 1

    def entries(self) -> Iterator[Entry]:
        """The entries, in the order they were appended."""
        for at, stop in self._frames:
            while at < stop:
                id_, key, time_us, text, columns = _ENTRY.unpack_from(self.data, at)
                middle = at + _ENTRY.size + text
                yield Entry(
                    id_, key, time_us,
                    self.data[middle - text : middle], self.data[middle : middle + columns],
                )  # fmt: skip
                at = middle + columns

    def texts(self, name: Literal["id", "key"]) -> Iterator[str]:
        """The ids or keys."""
        for entry in self.entries():
            yield _TAGS[name] + getattr(entry, name).hex()

    def forms(self) -> Iterator[dict[str, Any]]:
        """The plain forms, id and key included."""
        for entry in self.entries():
            tagged = {name: tag + getattr(entry, name).hex() for name, tag in _TAGS.items()}
            yield {**tagged, **decode(entry)}


class JournalWriter:
    """The one writer of an open segment."""

    def __init__(self, path: Path) -> None:
        """Open or make it; what a crash cut off is dropped.

        Raises:
            StoreError: as `Journal`.
            OSError: the disk refuses.
        """
        self.path = path
        made = not path.exists()
        with ExitStack() as undo:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            undo.callback(os.close, self._file)
            found = Journal(path)
            self.torn, self.rows, self.end = found.torn, found.rows, found.end
            self.ids = {entry.id for entry in found.entries()}
            os.ftruncate(self._file, min(self.end, len(found.data)))
            self._write(_HEAD.pack(_MAGIC, self.end), 0)
            os.fsync(self._file)
            if made:
                sync_folder(path.parent)
            undo.pop_all()

    def append(self, entries: Sequence[Entry]) -> None:
        """Write one frame; when this returns it is on the disk.

        Raises:
            OSError: it is not, and nothing of it is kept.
        """
        parts = [(_ENTRY.pack(*e[:3], len(e.text), len(e.columns)), *e[3:]) for e in entries]
        body = b"".join(piece for part in parts for piece in part)
        crc = _crc(len(body), len(entries), body)
        frame = _FRAME.pack(_FRAME_MARK, len(body), len(entries), crc) + body
        try:
            self._write(frame, self.end)
            os.fsync(self._file)
        except OSError:
            with suppress(OSError):  # what remains is overwritten by the next, or dropped as torn
                os.ftruncate(self._file, self.end)
            raise
        self.end += len(frame)
        self.rows += len(entries)
        self.ids.update(entry.id for entry in entries)
        with suppress(OSError):  # the frame is safe; readers see it with the next at the latest
            self._write(_HEAD.pack(_MAGIC, self.end), 0)

    def _write(self, data: bytes, at: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._file, view, at)
            view, at = view[written:], at + written

    def close(self) -> None:
        """Give the file back."""
        os.close(self._file)


def _crc(size: int, rows: int, body: bytes | memoryview) -> int:
    return zlib.crc32(body, zlib.crc32(size.to_bytes(4, "little") + rows.to_bytes(4, "little")))


# ---- the folder's two small files: what it is, and who writes ----


def check_kind(folder: Path) -> None:
    """Nothing, where the folder is a store of this version.

    Raises:
        StoreError: it is not.
    """
    where, kind = f"store {folder}", (_FORMAT, FORMAT_VERSION)
    try:
        found = json.loads((folder / "store.json").read_bytes())
        found = found["format"], found["version"]
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(
            where, "no store is there", "a folder with a store.json",
            "Check the path, or collect exchanges first",
        ) from None  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise StoreError(
            where, f"store.json cannot be read ({problem})", f"{kind}",
            "Check that this is a store's folder, and put the file back from a copy",
        ) from problem  # fmt: skip
    if found != kind:
        raise StoreError(
            where, f"store.json says {found}", f"{kind}",
            "Move a foreign folder away; read a newer store with the release that wrote it",
        )  # fmt: skip


def claim(folder: Path) -> int:
    """The file handle that holds the lock of a store, made where the folder was empty.

    The lock lasts until the handle is closed or its process ends.

    Raises:
        StoreError: something else lies there, or another writer holds it.
    """
    mark, begun = folder / "store.json", folder / "store.json.tmp"
    foreign = sorted({path.name for path in folder.iterdir()} - {"lock", begun.name})
    if foreign and not mark.exists():
        raise StoreError(
            f"store {folder}", f"{foreign[0]!r} lies there, and no store.json",
            "a store, or an empty folder", "Choose another folder",
        )  # fmt: skip
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    with ExitStack() as undo:
        undo.callback(os.close, handle)
        _await_lock(folder, handle)
        if not mark.exists():
            with begun.open("w") as file:
                file.write(json.dumps({"format": _FORMAT, "version": FORMAT_VERSION}) + "\n")
                file.flush()
                os.fsync(file.fileno())
            begun.rename(mark)
            sync_folder(folder)
        check_kind(folder)
        undo.pop_all()
    return handle


def _await_lock(folder: Path, handle: int) -> None:
    until = time.monotonic() + _LOCK_PATIENCE_SECONDS
    while not _locked(handle, fcntl.LOCK_EX):
        if time.monotonic() > until:
            holder = os.pread(handle, 20, 0).decode("ascii", "replace") or "unknown"
            raise StoreError(
                f"store {folder}", f"in use by another writer (process {holder})",
                "one writer at a time", "Wait until it is done, or read with mode 'r'",
            )  # fmt: skip
        time.sleep(0.01)
    os.ftruncate(handle, 0)
    os.pwrite(handle, str(os.getpid()).encode(), 0)


@contextmanager
def quiet(folder: Path, *, own: bool) -> Iterator[bool]:
    """Whether no other process writes while the block runs; one that is about to open waits.

    Args:
        folder: the store's.
        own: the caller holds the lock.
    """
    handle = None
    with suppress(FileNotFoundError):
        if not own:
            handle = os.open(folder / "lock", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield handle is None or _locked(handle, fcntl.LOCK_SH)
    finally:
        if handle is not None:
            os.close(handle)


def _locked(handle: int, how: int) -> bool:
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
