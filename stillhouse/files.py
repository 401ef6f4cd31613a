"""Files that a kill leaves whole: replaced at once, appended to in lines, secret.

In: paths and bytes. Out: what was asked for on the disk when the call returns, or what stood there
before. What the files mean is their writers' business.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stillhouse.errors import DataError

__all__ = [
    "alone",
    "append_lines",
    "file_hash",
    "model_hash",
    "read_secret",
    "sha256",
    "sync_folder",
    "whole_lines",
    "write_secret",
    "write_whole",
]

_LARGEST_SECRET = 1 << 16

# What decides a model's answers; optimizer states, cards and logs beside them do not.
_OF_A_MODEL = {".safetensors", ".bin", ".gguf", ".json", ".jinja", ".model"}
_VOCABULARY = {"merges.txt", "vocab.txt"}


def write_whole(path: Path, content: bytes | str, aside: Path | None = None) -> Path:
    """The path, once the file is there: whole, or as it was before.

    Args:
        path: where it belongs.
        content: its bytes; text is written as UTF-8.
        aside: a folder of the same file system in which it is written first, if not beside it.

    Raises:
        OSError: the disk refused.
    """
    if isinstance(content, str):
        # A lone surrogate in a model's text has no UTF-8 form; its escape is JSON's name for it.
        content = content.encode("utf-8", "backslashreplace")
    begun = (aside or path.parent) / f".{path.name}.new"
    with begun.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    begun.replace(path)
    sync_folder(path.parent)
    return path


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_hash(path: Path) -> str:
    """The same with its tag, as records have it."""
    return f"sha256:{sha256(path)}"


def model_hash(path: Path) -> str:
    """Tagged hash of a model: of its file, or ('w1:') of the names and contents of its folder's
    weights and settings. The same in a report and in a bundle of evidence.
    """
    if path.is_file():
        return file_hash(path)
    files = sorted(
        x
        for x in path.iterdir()
        if x.is_file() and (x.suffix in _OF_A_MODEL or x.name in _VOCABULARY)
    )
    listed = "".join(f"{file_hash(file)} {file.name}\n" for file in files)
    return "w1:" + hashlib.sha256(listed.encode()).hexdigest()


def sync_folder(folder: Path) -> None:
    """Make names that were given or taken away in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder's lock while the block runs; it goes with its process, however that ends.

    Raises:
        DataError: another process holds it.
    """
    with (folder / "lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                str(folder), "another process works in it", "one at a time",
                "Wait until it is done, or name another folder",
            ) from None  # fmt: skip
        yield


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file of JSON lines; a last one that a kill cut short is left out, and one that
    only lacks its newline, as editors leave it, is not. Empty where there is no file.
    """
    *lines, last = (path.read_bytes() if path.exists() else b"").split(b"\n")
    return [*lines, last] if last and _is_json(last) else lines


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Add JSON lines to a file; they are on the disk when this returns.

    A last line that was cut short is cut off first, so that no line is written onto it.

    Raises:
        OSError: the disk refused.
    """
    with path.open("a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                content = path.read_bytes()
                kept = content.rfind(b"\n") + 1
                if _is_json(content[kept:]):
                    file.write(b"\n")
                else:
                    file.truncate(kept)
        file.write("".join(f"{line}\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def write_secret(path: Path, content: bytes) -> None:
    """A new file that only its owner may read.

    Raises:
        DataError: there is a file already, which is never overwritten, since what was made with it
            would be lost; or it cannot be written.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise DataError(
            str(path), "a file of that name", "a new name",
            "Use the key that is there, or choose another path; a key is never overwritten",
        ) from None  # fmt: skip
    except OSError as problem:
        raise _unwritten(path, problem) from problem
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
    except OSError as problem:
        path.unlink(missing_ok=True)
        raise _unwritten(path, problem) from problem


def _unwritten(path: Path, problem: OSError) -> DataError:
    return DataError(
        str(path), f"cannot be written ({problem.strerror or problem})",
        "a new file in a folder that can be written to", "Choose another path",
    )  # fmt: skip


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
            content = file.read(_LARGEST_SECRET)
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
