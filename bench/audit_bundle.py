"""Bundles of an audit: how many of 1,000 changed bytes verification finds, and how long it takes.

    python bench/audit_bundle.py [--changes 1000] [--quick] [--pairs 500] [--tokens 150]

Prints one JSON object. The bundle is one of `audit twin`: a scripted model answers with an escrow,
and is tested itself, with the settings' own number of pairs out of twice as many committed to. Each
change replaces one byte, drawn by file, place and value with a fixed seed, and is taken back after
it was looked for; processor seconds are what a busy machine cannot inflate. Beside these, once
each: files cut, renamed, added, taken away, and lines moved. The command line is timed from
outside, the interpreter's start included.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stillhouse.audit.functions import FUNCTIONS
from stillhouse.audit.settings import TwinSettings
from stillhouse.audit.twin_audit import twin_audit
from stillhouse.audit.verify import Verification, verify
from stillhouse.collect.run import collect
from stillhouse.config import CollectSettings

MODEL = "scripted:bigram"
GOAL_SECONDS = 2.0


def make(folder: Path, pairs: int, tokens: int) -> dict[str, Any]:
    """Collect with an escrow, audit, seal; how long the audit took, and the bundle's size."""
    place = folder.parent
    prompts = place / "prompts.jsonl"
    prompts.write_text(
        "".join(
            json.dumps({"prompt": f"Tell me about number {n}"}) + "\n" for n in range(2 * pairs)
        )
    )
    collect(
        CollectSettings(prompts=(prompts,), max_tokens=tokens, top_logprobs=0,
                        escrow=place / "escrow"),
        teacher=MODEL, store=place / "served",
    )  # fmt: skip
    began = time.perf_counter()
    twin_audit(
        TwinSettings(pairs=pairs), suspects=[MODEL], exchanges=place / "served",
        twins=place / "escrow", out=folder,
    )  # fmt: skip
    sizes = {p.name: p.stat().st_size for p in sorted((folder / "sealed").iterdir())}
    return {
        "pairs": pairs, "committed": 2 * pairs, "tokens": tokens, "bytes": sum(sizes.values()),
        "bytes_by_file": sizes, "audit_seconds": round(time.perf_counter() - began, 2),
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
    """Seconds of `stillhouse audit verify`, from the shell's side."""
    seconds: list[float] = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "stillhouse.cli.main", "audit", "verify", str(folder)],
            check=True, capture_output=True,
        )  # fmt: skip
        seconds.append(time.perf_counter() - began)
    return seconds


def main() -> None:
    """Build, change, time."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--changes", type=int, default=1000)
    options.add_argument("--quick", action="store_true", help="50 changes")
    options.add_argument("--pairs", type=int, default=500)
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
