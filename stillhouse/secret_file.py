"""Files that only their owner may read: the keys of escrows, watermarks, scans and batches.

In: a path and bytes. Out: a new file of mode 600, on the disk when the call returns; its content,
where nobody else has rights on it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from stillhouse.errors import DataError

__all__ = ["read_secret", "write_secret"]

_LARGEST = 1 << 16


def write_secret(path: Path, content: bytes) -> None:
    """A new file that only its owner may read.

    Raises:
        DataError: there is a file already, which is never overwritten, since what was made with it
            would be lost; or it cannot be written.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise DataError(
            str(path), "a file of that name", "a new name",
            "Use the key that is there, or choose another path; a key is never overwritten",
        ) from None  # fmt: skip
    except OSError as problem:
        raise DataError(
            str(path), f"cannot be written ({problem.strerror or problem})",
            "a new file in a folder that can be written to", "Choose another path",
        ) from problem  # fmt: skip


def read_secret(path: Path, wanted: str, todo: str) -> bytes:
    """The first 64 KiB of a file that only its owner has rights on.

    Args:
        path: the file.
        wanted: what it should be, for an error message.
        todo: what to do where it is not to be had.

    Raises:
        DataError: it cannot be read, or others than its owner have rights on it.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(_LARGEST)
    except OSError as problem:
        raise DataError(
            str(path), f"cannot be read ({problem.strerror or problem})", wanted, todo
        ) from problem
    if mode & 0o077:
        raise DataError(
            str(path), f"others than its owner have rights on it (mode {mode:03o})", "mode 600",
            f"Run `chmod 600 {path}`; where others may have read it, take a new key",
        )  # fmt: skip
    return content
