"""Bundles of an audit: how many of 1,000 changed bytes verification finds, and how long it takes.

    python bench/audit_bundle.py [--changes 1000] [--quick] [--pairs 200] [--tokens 150]

Prints one JSON object. The bundle has the size of a real twin test: for each pair, the
log-probabilities of both answers under suspect and teacher. Its evidence is an exact sign test over
these lines. Each change replaces one byte, drawn by file, place and value with a fixed seed, and is
taken back after it was looked for; processor seconds are what a busy machine cannot inflate. Beside
these, once each: files cut, renamed, added, taken away, and lines moved. Whole command lines are
timed from outside, the interpreter's start included.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.audit.bundle import Bundle
from stillhouse.audit.verify import Verification, verify

ROOT = Path(__file__).parent.parent
KEY = "5f" * 32
GOAL_SECONDS = 2.0


def sign_test(
    plan: Mapping[str, Any],
    lines: Mapping[str, Sequence[Mapping[str, Any]]],
    reveal: Mapping[str, Any],
) -> dict[str, Any]:
    """The exact one-sided sign test of mean log-likelihood differences, less the teacher's."""
    gaps = [
        math.fsum(
            sign * (math.fsum(row["served"]) / len(row["served"])
                    - math.fsum(row["twin"]) / len(row["twin"]))
            for sign, row in ((1, pair["suspect"]), (-1, pair["teacher"]))
        )
        for pair in lines["pairs"]
    ]  # fmt: skip
    n, positive = sum(g != 0 for g in gaps), sum(g > 0 for g in gaps)
    tail = sum(math.comb(n, k) for k in range(positive, n + 1))
    return {
        "test": plan["test"], "n": n, "excluded": {"equal": len(gaps) - n},
        "statistic": {"name": "positive differences", "value": positive},
        "p_value": tail / 2**n, "asked": len(lines["asked"]), "key": reveal["key"],
        "secondary": {"mean_gap_nats": math.fsum(gaps) / len(gaps), "gaps_nats": gaps},
    }  # fmt: skip


FUNCTIONS = {"sign": sign_test}


def make(folder: Path, pairs: int, tokens: int) -> dict[str, Any]:
    """Begin, append and seal a bundle; how long that took, and its size."""
    draw = np.random.default_rng(7)
    words = [f"word{i}" for i in range(2000)]
    plan = {"test": "sign", "alpha": 0.01, "pairs": pairs, "suspect": "bench"}
    asked = [
        {"id": i, "prompt": " ".join(words[w] for w in draw.integers(0, 2000, 20))}
        for i in range(pairs)
    ]

    def scored(lean: float) -> dict[str, list[float]]:
        means = {"served": 1.5 - lean, "twin": 1.5}
        return {side: (-draw.exponential(mean, tokens)).tolist() for side, mean in means.items()}

    rows = [{"id": i, "suspect": scored(0.1), "teacher": scored(0.0)} for i in range(pairs)]
    began = time.perf_counter()
    bundle = Bundle.begin(folder, plan, before={"asked": asked}, secrets={"key": KEY})
    for row in rows:
        bundle.append("pairs", [row])
    appended = time.perf_counter()
    lines = {name: bundle.lines(name) for name in ("asked", "pairs")}
    bundle.seal(sign_test(plan, lines, {"key": KEY}), reveal={"key": KEY})
    sizes = {p.name: p.stat().st_size for p in sorted((folder / "sealed").iterdir())}
    return {
        "pairs": pairs, "tokens": tokens, "bytes": sum(sizes.values()), "bytes_by_file": sizes,
        "append_ms_each": round(1000 * (appended - began) / pairs, 2),
        "seal_seconds": round(time.perf_counter() - appended, 3),
    }  # fmt: skip


def times(seconds: Sequence[float]) -> dict[str, Any]:
    """n, median and largest."""
    return {
        "n": len(seconds),
        "median": round(statistics.median(seconds), 4),
        "max": round(max(seconds), 4),
    }


@contextmanager
def holding(path: Path, data: bytes) -> Iterator[None]:
    """The file holds other bytes while the block runs."""
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


def noticed(result: Verification, name: str) -> bool:
    """Whether a change was found, and what was found concerns the file, or the seal of it."""
    told = " ".join(result.differences)
    return not result.ok and not result.seal_holds and (name in told or name == "seal.json")


def change_bytes(folder: Path, changes: int, seed: int) -> dict[str, Any]:
    """Single-byte changes: how many were made and found, by file, and how long each look took."""
    draw = random.Random(seed)
    files = sorted((folder / "sealed").iterdir())
    made, missed = Counter[str](), list[dict[str, Any]]()
    seconds, processor = list[float](), list[float]()
    for _ in range(changes):
        path = draw.choice(files)
        data = bytearray(path.read_bytes())
        at = draw.randrange(len(data))
        other = draw.choice([value for value in range(256) if value != data[at]])
        was, data[at] = data[at], other
        with holding(path, bytes(data)):
            began = time.perf_counter(), time.process_time()
            result = verify(folder, FUNCTIONS)
            seconds.append(time.perf_counter() - began[0])
            processor.append(time.process_time() - began[1])
        made[path.name] += 1
        if not noticed(result, path.name):
            missed.append({"file": path.name, "at": at, "was": was, "is": other})
    return {
        "seed": seed, "made": changes, "found": changes - len(missed), "missed": missed,
        "made_by_file": dict(sorted(made.items())), "seconds": times(seconds),
        "processor_seconds": times(processor),
    }  # fmt: skip


def other_changes(folder: Path) -> dict[str, bool]:
    """Whether larger changes, each made to a copy, were found."""

    def edit(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], Any]:
        return lambda sealed: (sealed / name).write_bytes(change((sealed / name).read_bytes()))

    def lines(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Path], Any]:
        return edit("pairs.jsonl", lambda data: b"".join(change(data.splitlines(keepends=True))))

    kinds: dict[str, Callable[[Path], Any]] = {
        "a line taken away": lines(lambda rows: rows[:-1]),
        "two lines swapped": lines(lambda rows: [rows[1], rows[0], *rows[2:]]),
        "a line twice": lines(lambda rows: [*rows, rows[-1]]),
        "a file cut in half": edit("pairs.jsonl", lambda data: data[: len(data) // 2]),
        "a file emptied": edit("pairs.jsonl", lambda data: b""),
        "a line feed more": edit("evidence.json", lambda data: data + b"\n"),
        "a space in JSON": edit("plan.json", lambda data: data.replace(b":", b": ", 1)),
        "a file missing": lambda sealed: (sealed / "pairs.jsonl").unlink(),
        "the seal missing": lambda sealed: (sealed / "seal.json").unlink(),
        "a file renamed": lambda sealed: (sealed / "pairs.jsonl").rename(sealed / "twins.jsonl"),
        "a file more": lambda sealed: (sealed / "more.jsonl").write_bytes(b""),
        "a folder more": lambda sealed: (sealed / "more").mkdir(),
        "a file linked": lambda sealed: (
            (sealed / "pairs.jsonl").rename(sealed.parent / "p")
            and (sealed / "pairs.jsonl").symlink_to(sealed.parent / "p")
        ),
    }
    found: dict[str, bool] = {}
    for kind, change in kinds.items():
        copy = folder.parent / "copy"
        shutil.copytree(folder, copy)
        change(copy / "sealed")
        found[kind] = not verify(copy, FUNCTIONS).ok
        shutil.rmtree(copy)
    return found


def command_lines(folder: Path, runs: int) -> list[float]:
    """Seconds of whole processes that verify the bundle and say so by their exit code."""
    code = (
        "import sys; from pathlib import Path; from bench.audit_bundle import FUNCTIONS\n"
        "from stillhouse.audit.verify import verify\n"
        "result = verify(Path(sys.argv[1]), FUNCTIONS); print(*result.sentences(), sep='\\n')\n"
        "sys.exit(0 if result.ok else 3)"
    )
    seconds: list[float] = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", code, str(folder)], check=True, capture_output=True, cwd=ROOT
        )
        seconds.append(time.perf_counter() - began)
    return seconds


def main() -> None:
    """Build, change, time."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--changes", type=int, default=1000)
    options.add_argument("--quick", action="store_true", help="50 changes")
    options.add_argument("--pairs", type=int, default=200)
    options.add_argument("--tokens", type=int, default=150)
    options.add_argument("--seed", type=int, default=20260)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "audit"
        found: dict[str, Any] = {"bundle": make(folder, given.pairs, given.tokens)}
        intact = [verify(folder, FUNCTIONS) for _ in range(20)]
        assert all(result.ok for result in intact), intact[0].differences
        found["intact_seconds"] = times([result.seconds for result in intact])
        found["changes"] = change_bytes(folder, 50 if given.quick else given.changes, given.seed)
        found["other_changes_found"] = other_changes(folder)
        assert verify(folder, FUNCTIONS).ok, "a change was not taken back"
        found["command_line_seconds"] = times(command_lines(folder, 10))
    slowest = max(found[part]["max"] for part in ("intact_seconds", "command_line_seconds"))
    slowest = max(slowest, found["changes"]["seconds"]["max"])
    found["all_found"] = not found["changes"]["missed"] and all(
        found["other_changes_found"].values()
    )
    found["under_two_seconds"] = slowest < GOAL_SECONDS
    found |= {"python": platform.python_version(), "machine": platform.machine()}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
