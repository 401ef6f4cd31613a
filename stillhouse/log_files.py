"""The lines of log files of any size, plain or compressed, in bounded memory.

In: a path, and which bytes of it. Out: blocks of whole lines with their offsets; lines longer than
a limit are passed over, and told of. gzip and zstd are recognised by their first bytes, not by a
name; offsets count uncompressed bytes. Nothing here knows what a line says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stillhouse.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["MAX_LINE_BYTES", "Block", "blocks", "compression", "line_at", "opened", "ranges"]

MAX_LINE_BYTES = 16 * 2**20
"""Longest line that is read. A million tokens of text are about 5 MB; a line of dense JSON takes
some twenty times its length while it is parsed. Ours, by hand."""

_BLOCK_BYTES = 2**20
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


class Block(NamedTuple):
    """Whole lines, or the place of one that is too long."""

    offset: int
    """Of its first byte in the uncompressed file."""
    data: bytes
    """Lines with their newlines; the file's last may lack one. Empty: a line that is too long."""
    skipped: int
    """Bytes of the line that is too long, its newline included; else 0."""


def compression(path: Path) -> str | None:
    """'gzip', 'zstd', or None for a plain file.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as problem:
        raise _unreadable(path, problem) from problem
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


@contextmanager
def opened(path: Path, start: int = 0) -> Iterator[pa.NativeFile]:
    """The uncompressed bytes of a file, from an offset on.

    A compressed file is decompressed up to there.

    Raises:
        DataError: it cannot be read, or its compressed stream is damaged.
    """
    import pyarrow as pa

    kind = compression(path)
    try:
        with pa.OSFile(str(path)) as plain:
            if kind is None:
                plain.seek(start)
                yield plain
                return
            with pa.CompressedInputStream(plain, kind) as stream:
                left = start
                while left > 0:
                    passed = stream.read(min(left, _BLOCK_BYTES))
                    if not passed:
                        break
                    left -= len(passed)
                yield stream
    except (OSError, pa.ArrowException) as problem:
        raise _unreadable(path, problem) from problem


def blocks(
    path: Path, start: int = 0, stop: int | None = None, *, max_line: int = MAX_LINE_BYTES
) -> Iterator[Block]:
    """The lines between two offsets, each of which begins a line; `stop` None reads to the end.

    Memory: the longest line allowed and a block, whatever the file holds.

    Raises:
        DataError: as `opened`.
    """
    with opened(path, start) as file:
        offset, rest, ahead = start, b"", b""
        while True:
            here = offset + len(rest)
            want = _BLOCK_BYTES if stop is None else min(_BLOCK_BYTES, stop - here)
            found, ahead = ahead or (file.read(want) if want > 0 else b""), b""
            cut = found.rfind(b"\n") + 1
            if cut or not found:
                data = rest + found[:cut]
                if data:
                    yield Block(offset, data, 0)
                offset, rest = offset + len(data), found[cut:]
                if not found:
                    return
            else:
                rest += found
            if len(rest) > max_line:
                more, ahead = _to_newline(file, here + len(found), stop)
                skipped = len(rest) + more
                yield Block(offset, b"", skipped)
                offset, rest = offset + skipped, b""


def _to_newline(file: Any, here: int, stop: int | None) -> tuple[int, bytes]:
    """(bytes up to and with the next newline, what was read behind it)."""
    passed = 0
    while True:
        want = _BLOCK_BYTES if stop is None else min(_BLOCK_BYTES, stop - here - passed)
        found = file.read(want) if want > 0 else b""
        end = found.find(b"\n") + 1
        if end or not found:
            return passed + end, found[end:]
        passed += len(found)


def ranges(path: Path, start: int, size: int) -> list[tuple[int, int | None]]:
    """(start, stop) of pieces of about `size` bytes that begin and end with lines.

    A compressed file is one piece: there is no way into its middle.

    Raises:
        DataError: the file cannot be read.
    """
    if compression(path) is not None:
        return [(start, None)]
    pieces: list[tuple[int, int | None]] = []
    end = path.stat().st_size
    with opened(path) as file:
        while start < end:
            stop = start + size
            if stop < end:
                file.seek(stop)
                stop += _to_newline(file, stop, None)[0]
            pieces.append((start, min(stop, end)))
            start = stop
    return pieces


def line_at(file: Any, offset: int, max_line: int = MAX_LINE_BYTES) -> bytes:
    """The line that begins at an offset of an open plain file, without its newline."""
    file.seek(offset)
    line = b""
    while len(line) <= max_line:
        found = file.read(_BLOCK_BYTES // 16)
        end = found.find(b"\n")
        if end >= 0 or not found:
            return line + found[: end if end >= 0 else None]
        line += found
    return line


def _unreadable(path: Path, problem: Exception) -> DataError:
    told = " ".join(str(getattr(problem, "strerror", None) or problem).split())
    return DataError(
        str(path), f"cannot be read ({told:.200})", "a log file, plain or compressed whole",
        "Check the path, take the file from a copy, or leave it out",
    )  # fmt: skip
