"""A store of a million exchanges: how fast it is written, opened, streamed, and in how much memory.

    python bench/store.py [--rows 1000000] [--tokens 0] [--top 20] [--store DIR]

Prints one JSON object. The store is built through `Store.append_many`, as an import would; opening
and reading are each measured in a process of their own. With `--tokens`, every exchange carries
log-probabilities of that many answer tokens. `--store` keeps the store, or goes on with one.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from stillhouse.exchange import Exchange, Logprobs, Response, Sampling, message
from stillhouse.store import Store

START = datetime(2026, 1, 1, tzinfo=UTC)
WORDS = [f"word{i}" for i in range(5000)]


def exchanges(first: int, rows: int, tokens: int, top: int) -> Iterator[Exchange]:
    """Questions of some 20 words, answers of some 120, drawn anew for each row."""
    draw = np.random.default_rng([7, first])
    system = message("system", "You are a helpful assistant.")
    for index in range(first, rows):
        asked = draw.integers(0, len(WORDS), 20)
        answered = draw.integers(0, len(WORDS), 120)
        logprobs = None
        if tokens:
            values = np.sort(draw.uniform(-12, -np.log(top + 1), (tokens, top)))[:, ::-1]
            logprobs = Logprobs(
                tokenizer="t1:bench", engine="bench", token_ids=draw.integers(0, 49152, tokens),
                chosen=values[:, 0], top_ids=draw.integers(0, 49152, (tokens, top)), top=values,
            )  # fmt: skip
        yield Exchange(
            time=START + timedelta(milliseconds=index),
            account=f"account-{index % 1000}",
            model="bench",
            prompt=(system, message("user", " ".join(WORDS[i] for i in asked))),
            response=Response(text=" ".join(WORDS[i] for i in answered)),
            finish_reason="stop",
            sampling=Sampling(
                temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, max_tokens=160, seed=index,
                sample_index=0,
            ),
            input_tokens=30,
            output_tokens=tokens or 150,
            logprobs=logprobs,
            labels={"task": "bench"},
        )  # fmt: skip


def build(path: Path, rows: int, tokens: int, top: int) -> dict[str, float]:
    """Write it, and say how fast, the making of the exchanges left out."""
    with Store(path) as store:
        writing, first = 0.0, len(store)
        made = exchanges(first, rows, tokens, top)
        for _ in range(first, rows, 1000):
            some = [exchange for exchange, _ in zip(made, range(1000), strict=False)]
            began = time.perf_counter()
            store.append_many(some)
            writing += time.perf_counter() - began
    return {"written": rows - first, "write_rows_per_s": round((rows - first) / writing)}


def read(path: Path, what: str) -> dict[str, float]:
    """One measurement, in this process."""
    began = time.perf_counter()
    with Store(path, "a" if what == "open_to_append" else "r") as store:
        rows = len(store)
        opened = time.perf_counter() - began
        if what.startswith("open"):
            found = {f"{what}_seconds": round(opened, 4)}
        elif what == "stream":
            count = sum(1 for _ in store)
            assert count == rows
            seconds = time.perf_counter() - began
            found = {"stream_rows_per_s": round(count / seconds)}
        else:
            keys = store.keys()
            assert len(keys) == rows
            found = {"keys_seconds": round(time.perf_counter() - began, 2)}
    return {**found, f"{what}_peak_mib": round(peak_kib() / 1024)}


def peak_kib() -> int:
    """Peak resident memory of this process (getrusage counts the parent's, from before exec)."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Build, then measure in child processes."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--tokens", type=int, default=0)
    options.add_argument("--top", type=int, default=20)
    options.add_argument("--store", type=Path)
    options.add_argument("--read", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.read:
        print(json.dumps(read(given.store, given.read)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = given.store or Path(folder) / "store"
        found: dict[str, object] = {"rows": given.rows, "tokens": given.tokens, "top": given.top}
        with Store(path) as store:
            there = len(store)
        if there < given.rows:
            found |= build(path, given.rows, given.tokens, given.top)
        for what in ("open", "open_to_append", "stream", "keys"):
            command = [sys.executable, __file__, "--store", str(path), "--read", what]
            found |= json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        with Store(path, "r") as store:
            told = store.describe()
        found |= {"segments": told["segments"], "bytes": told["bytes"]}
        found |= {"python": platform.python_version(), "machine": platform.machine()}
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
