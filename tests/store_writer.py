"""A process that appends to a store until it is killed, for the kill tests.

Run as a program it is the root of such processes: it has imported everything once, and forks a
writer for each line `PATH FIRST TOKENS TOP ROWS` on its standard input, whose process number it
answers. The writer appends exchanges FIRST, FIRST + 1, ... and names each on the pipe given as the
second argument once the store has acknowledged it.
"""

from __future__ import annotations

import os
import struct
import sys

import pyarrow.parquet  # noqa: F401  -- so that no writer has to

from stillhouse.store import Store
from tests.exchanges import numbered

ACKNOWLEDGED = struct.Struct("<I")


def write(path: str, first: int, tokens: int, top: int, rows: int, many: int) -> None:
    """Append without end; every second append is one of `many` exchanges."""
    pipe = int(sys.argv[1])
    with Store(path, segment_rows=rows) as store:
        index = first
        while True:
            for size in (1, many):
                these = range(index, index + size)
                store.append_many([numbered(i, tokens, top) for i in these])
                os.write(pipe, b"".join(ACKNOWLEDGED.pack(i) for i in these))
                index = these.stop


def serve() -> None:
    """Fork a writer for each line; reap those that have been killed."""
    for line in sys.stdin:
        path, *numbers = line.rstrip("\n").split("\t")
        child = os.fork()
        if child == 0:
            sys.stdin.close()
            write(path, *map(int, numbers))
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        os.waitpid(child, 0)
        sys.stdout.write("reaped\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
