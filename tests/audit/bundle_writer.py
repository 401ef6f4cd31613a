"""A process that makes bundles until it is killed, for the kill test.

It has imported everything once, and forks a writer for each `FOLDER CALLS` on its standard input,
whose process number it answers. The writer begins a bundle there or goes on with it, appends lines,
and names each on the pipe given as its argument once it is acknowledged; a bundle of `LINES` lines
is sealed. It kills itself with the CALLS-th time it writes, syncs or renames; with CALLS 0 it
waits to be killed.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
from pathlib import Path
from typing import Any

from stillhouse.audit.bundle import Bundle

ACKNOWLEDGED = struct.Struct("<I")
SEALED = LINES = 12  # what the pipe says once the bundle is sealed
PLAN = {"test": "count", "lines": LINES}
BEFORE = {"asked": [{"index": i, "text": "why? " * 4000} for i in range(LINES)]}
SECRETS = {"key": "0123456789abcdef"}


def deadly(calls: int) -> None:
    """Die in the `calls`-th call that changes the disk, of writes in the middle of their bytes."""
    left = [calls]

    def hooked(call: Any) -> Any:
        def instead(*given: Any, **named: Any) -> Any:
            left[0] -= 1
            if call is pwrite:
                given = (given[0], given[1][: 1 << 14], given[2])  # as a disk that takes less
            result = call(*given, **named) if left[0] or call is pwrite else None
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return instead

    pwrite = os.pwrite
    os.pwrite, os.fsync, os.replace = hooked(os.pwrite), hooked(os.fsync), hooked(os.replace)


def line(index: int) -> dict[str, Any]:
    """About 200 kB: a dozen writes."""
    return {"index": index, "text": f"{index} because. " * 15_000}


def count(plan: Any, lines: Any, reveal: Any) -> dict[str, Any]:
    """Evidence that reads every line."""
    kept = [row["index"] for row in lines["answers"]]
    return {"test": "count", "n": len(kept), "order": kept, "key": reveal["key"]}


def begin(folder: Path) -> Bundle:
    """The bundle in a folder."""
    return Bundle.begin(folder, PLAN, before=BEFORE, secrets=SECRETS)


def write(folder: Path, pipe: int) -> None:
    """Append what is missing, and seal."""
    bundle = begin(folder)
    for index in range(len(bundle.lines("answers")), LINES):
        bundle.append("answers", [line(index)])
        os.write(pipe, ACKNOWLEDGED.pack(index))
    seal(bundle)
    os.write(pipe, ACKNOWLEDGED.pack(SEALED))


def seal(bundle: Bundle) -> None:
    """Seal it with its own evidence."""
    lines = {"answers": bundle.lines("answers")}
    bundle.seal(count(bundle.plan, lines, SECRETS), reveal=SECRETS)


def serve() -> None:
    """Fork a writer for each line; reap it."""
    for asked in sys.stdin:
        folder, calls = asked.rstrip("\n").split("\t")
        child = os.fork()
        if child == 0:
            sys.stdin.close()
            if int(calls):
                deadly(int(calls))
            write(Path(folder), int(sys.argv[1]))
            if int(calls):
                os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        os.waitpid(child, 0)
        sys.stdout.write("reaped\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
