"""One file over HTTP, continued where it broke off.

In: a URL and where the file shall lie. Out: the file, whole as far as the server says; its sha256
is the caller's to check. What has arrived is never thrown away because of a broken connection.
"""

from __future__ import annotations

import errno
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

from stillhouse.errors import DataError, TransportError
from stillhouse.progress import Progress, Silent

if TYPE_CHECKING:
    import httpx

__all__ = ["download", "full_disk"]

_ATTEMPTS = 6
_FIRST_WAIT_SECONDS = 0.5  # doubled after each attempt that brought nothing


class _Broken(Exception):
    """The connection broke, or the server is in trouble: worth another attempt."""


def download(
    client: httpx.Client, url: str, target: Path, *, stage: str,
    progress: Progress = Silent(),  # noqa: B008
    first_wait_seconds: float = _FIRST_WAIT_SECONDS,
) -> None:  # fmt: skip
    """The file at `url` lies at `target`, continued from what `target` held before.

    Raises:
        TransportError: the server refused, or `_ATTEMPTS` attempts in a row brought nothing.
        DataError: the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    idle, found = 0, ""
    while idle < _ATTEMPTS:
        before = _size(target)
        try:
            _attempt(client, url, target, stage, progress)
            return
        except _Broken as problem:
            found = str(problem)
        except OSError as problem:
            raise full_disk(target, problem) from problem
        idle = 0 if _size(target) > before else idle + 1
        if idle < _ATTEMPTS:
            progress.say(f"{stage}: {found}; going on from {_size(target):,} bytes")
            time.sleep(first_wait_seconds * 2 ** max(0, idle - 1))
    raise TransportError(
        url, f"{found}, {_ATTEMPTS} times in a row", f"the file ({_size(target):,} bytes are kept)",
        "Check the network and run the command again: it goes on where it stopped",
    )  # fmt: skip


def full_disk(path: Path, problem: OSError) -> DataError:
    """The error for a file that cannot be written, in words for a full disk."""
    full = problem.errno in (errno.ENOSPC, errno.EDQUOT)
    found = "no space left on the disk" if full else f"cannot be written ({problem})"
    return DataError(
        str(path), found, "room to write the file",
        "Make room, or point STILLHOUSE_CACHE at another disk; what has arrived is kept",
    )  # fmt: skip


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _attempt(client: httpx.Client, url: str, target: Path, stage: str, progress: Progress) -> None:
    """One request for what is still missing."""
    import httpx

    have = _size(target)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with client.stream("GET", url, headers=headers) as response:
            status = response.status_code
            if status == 416:  # nothing beyond what we have: complete, or another file
                total = response.headers.get("Content-Range", "").rpartition("/")[2]
                if total == str(have):
                    return
                target.unlink()
                raise _Broken("what was kept is not part of this file, it is fetched anew")
            if status in (408, 425, 429) or status >= 500:
                raise _Broken(f"the server answered HTTP {status}")
            if status >= 400:
                raise TransportError(
                    url, f"HTTP {status}", "the file", "Check the package index in pip's settings"
                )
            goes_on = status == 206 and _begins(response) == have
            if have and not goes_on:
                progress.say(f"{stage}: the server cannot continue a download, it starts anew")
            with target.open("ab" if goes_on else "wb") as file:
                _receive(response, file, have if goes_on else 0, stage, progress)
    except httpx.TransportError as problem:
        raise _Broken(f"the connection broke ({type(problem).__name__}: {problem})") from problem


def _begins(response: httpx.Response) -> int | None:
    """The first byte a partial answer holds, from `Content-Range: bytes 5-9/10`."""
    first = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(first) if first.isdigit() else None


def _receive(
    response: httpx.Response, file: IO[bytes], have: int, stage: str, progress: Progress
) -> None:
    length = response.headers.get("Content-Length")
    total = have + int(length) if length is not None and length.isdigit() else None
    progress.start(stage, total, "bytes")
    for chunk in response.iter_raw():  # as it arrives: what is gathered first is lost in a cut
        file.write(chunk)
        have += len(chunk)
        progress.advance(have)
    if total is not None and have < total:
        raise _Broken(f"the connection ended after {have:,} of {total:,} bytes")
    progress.finish(f"{have:,} bytes")
