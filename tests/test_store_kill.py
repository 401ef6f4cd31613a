"""A writer killed at any moment: what it acknowledged is there, once."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from stillhouse.store import Store
from tests.exchanges import numbered
from tests.store_writer import ACKNOWLEDGED

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Work:
    """What a writer appends: answers of so many tokens, one and then `many` at a time."""

    tokens: int
    top: int
    rows: int
    many: int


SMALL = Work(tokens=0, top=0, rows=12, many=5)
LARGE = Work(tokens=150, top=64, rows=12, many=5)  # 77 kB each
HUGE = Work(tokens=1000, top=64, rows=30, many=25)  # 12 MB in one append


@dataclass
class Writers:
    """Starts writers, one at a time, and kills them."""

    process: subprocess.Popen[str]
    pipe: int

    def run(self, work: Work, path: Path, first: int, patience: int, seconds: float) -> list[int]:
        """Let a writer acknowledge `patience` exchanges, some seconds more, and kill -9 it.

        The numbers it has acknowledged.
        """
        assert self.process.stdin
        assert self.process.stdout
        line = (path, first, work.tokens, work.top, work.rows, work.many)
        self.process.stdin.write("\t".join(map(str, line)) + "\n")
        self.process.stdin.flush()
        writer = int(self.process.stdout.readline())
        data, until = b"", time.monotonic() + 20
        while len(data) < patience * ACKNOWLEDGED.size and time.monotonic() < until:
            data += self._read(0.01)
        time.sleep(seconds)
        os.kill(writer, signal.SIGKILL)
        assert self.process.stdout.readline() == "reaped\n"
        while more := self._read(0):
            data += more
        return [number for (number,) in ACKNOWLEDGED.iter_unpack(data)]

    def _read(self, seconds: float) -> bytes:
        ready, _, _ = select.select([self.pipe], [], [], seconds)
        return os.read(self.pipe, 1 << 16) if ready else b""


@contextmanager
def writers() -> Iterator[Writers]:
    ours, theirs = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.store_writer", str(theirs)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[theirs], cwd=ROOT,
    )  # fmt: skip
    os.close(theirs)
    try:
        with process:
            yield Writers(process, ours)
            assert process.stdin
            process.stdin.close()
            assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@dataclass
class Seen:
    """What the kills left behind, over a whole test."""

    appends: int = 0
    torn: int = 0
    sealing: int = 0
    """Stores found half sealed: a Parquet file under way, or an open segment too many."""
    segments: int = 0


def kill_again_and_again(folder: Path, kills: int, work: Work, *, stores: int) -> Seen:
    """Kill a writer at random moments; after each, reopen the store and hold it to its word."""
    chance, seen = random.Random(7), Seen()
    promised: list[list[int]] = [[] for _ in range(stores)]
    with writers() as writer:
        for kill in range(kills):
            number = kill % stores
            path = folder / f"store-{number}"
            first = promised[number][-1] + 1000 if promised[number] else 0
            patience = chance.choice([0, 0, 1, chance.randrange(3 * work.rows)])
            acknowledged = writer.run(work, path, first, patience, chance.uniform(0, 0.02))
            seen.appends += len(acknowledged)
            promised[number] += acknowledged
            if not path.exists():
                continue  # killed before it had begun
            left = [p.name for p in path.iterdir()]
            seen.sealing += (
                any(name.endswith(".parquet.tmp") for name in left)
                or sum(name.endswith(".open") for name in left) > 1
            )
            with Store(path) as store:
                seen.torn += store.torn
                kept = [int(row["labels"]["index"]) for row in store.stream(["labels"])]
            assert len(set(kept)) == len(kept), "an exchange is there twice"
            missing = set(promised[number]) - set(kept)
            assert not missing, f"kill {kill}: acknowledged and lost: {sorted(missing)}"
            assert kept == sorted(kept), "not in the order of arrival"
            promised[number] = kept  # what is there without having been acknowledged stays, too
    for number in range(stores):
        with Store(folder / f"store-{number}") as store:
            assert store.torn == 0
            assert store.verify() == len(promised[number])
            for exchange, index in zip(store, promised[number], strict=True):
                assert exchange == numbered(index, work.tokens, work.top)
            seen.segments += store.describe()["segments"]
    return seen


def test_nothing_acknowledged_is_lost_in_20_kills(tmp_path: Path) -> None:
    seen = kill_again_and_again(tmp_path, 20, LARGE, stores=2)
    assert seen.appends > 20
    assert seen.segments > 1


@pytest.mark.slow
@pytest.mark.timeout(400)  # 45 seconds on two free cores
def test_nothing_acknowledged_is_lost_in_200_kills(tmp_path: Path) -> None:
    several = [
        kill_again_and_again(tmp_path / "small", 70, SMALL, stores=4),
        kill_again_and_again(tmp_path / "large", 70, LARGE, stores=4),
        kill_again_and_again(tmp_path / "huge", 60, HUGE, stores=4),
    ]
    assert sum(seen.sealing for seen in several) > 3, "no kill hit the sealing of a segment"
    assert sum(seen.segments for seen in several) > 50
    assert sum(seen.torn for seen in several) < 200  # a kill tears at most the append under way
