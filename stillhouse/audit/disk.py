"""How a bundle's files reach the disk: whole or not at all, one writer at a time.

In: names and bytes. Out: files that a crash leaves whole, absent, or with a torn last line. What
the files mean is the business of `bundle.py`.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stillhouse.errors import ConfigError, DataError
from stillhouse.files import sync_folder

__all__ = ["check_size", "disk", "refuse_foreign", "turn", "write_at"]


@contextmanager
def disk(where: str, doing: str) -> Iterator[None]:
    """Nothing, but that what the disk refuses inside becomes an error with four parts.

    Raises:
        DataError: the disk refused.
    """
    try:
        yield
    except OSError as problem:
        raise DataError(
            where, f"{doing} failed ({problem})", "a disk that reads and writes",
            "Check space, permissions and paths, then go on: what was acknowledged is there",
        ) from problem  # fmt: skip


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Wait for whoever writes in the folder; others wait while the block runs."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write_at(path: Path, data: bytes, end: int) -> None:
    """Write at `end`, the file's end (0 makes the file); on the disk when this returns.

    Raises:
        DataError: the file does not end there: something else writes to it.
        OSError: the disk refused, and nothing of `data` is kept.
    """
    made, whole = not path.exists(), False
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        check_size(path, os.fstat(handle).st_size, end)
        try:
            _write(handle, data, end)
            whole = True
        finally:
            if not whole:
                with suppress(OSError):  # what remains is dropped as torn on reopening
                    os.ftruncate(handle, end)
    finally:
        os.close(handle)
    if made:
        sync_folder(path.parent)


def check_size(path: Path, found: int, expected: int) -> None:
    """Nothing, where a file of lines is as long as its writer left it.

    Raises:
        DataError: it is not.
    """
    if found != expected:
        raise DataError(
            str(path), f"{found} bytes, written by something else",
            f"{expected}, as this process left it",
            "Let one process write a bundle at a time, and begin it again to go on",
        )  # fmt: skip


def _write(handle: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, at)
        view, at = view[written:], at + written
    os.fsync(handle)


def refuse_foreign(where: str, folder: Path, names: Collection[str]) -> None:
    """Nothing, where the folder holds plain files of these names only.

    Raises:
        ConfigError: it holds something else.
    """
    for path in sorted(folder.iterdir()):
        kind = "file" if stat.S_ISREG(path.lstat().st_mode) else "folder, link or device"
        if path.name not in names or kind != "file":
            raise ConfigError(
                where, f"the {kind} {path.name!r} lies in {folder.name}/",
                "the files of a bundle and nothing else", "Move it away, or choose another folder",
            )  # fmt: skip
