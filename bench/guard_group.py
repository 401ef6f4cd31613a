"""Distinct customers of each template key: numpy's sorts beside pyarrow's and Daft's group-bys.

    python bench/guard_group.py [--events 1000000] [--repeats 3]

The work is the detector's heaviest group-by: of a million events, the keys that at least three
customers share, and how many customers each has. Nine in ten keys are had by one event alone, as
heads of prompts are. Prints JSON: wall and processor seconds, the least of the repeats, and whether
all three gave the same answer.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.guard.hashing import run_starts

FEWEST = 3
BUCKETS = 1 << 22


def traffic(events: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    keys = rng.integers(1, 2**63, events, dtype=np.uint64)
    shared = rng.random(events) < 0.1
    keys[shared] = rng.zipf(1.3, int(shared.sum())).clip(0, 10**6).astype(np.uint64)
    return keys, rng.integers(0, events // 10, events).astype(np.int64)


def by_numpy(keys: np.ndarray, customers: np.ndarray) -> dict[int, int]:
    bucket = (keys & np.uint64(BUCKETS - 1)).astype(np.int32)
    at = np.flatnonzero((np.bincount(bucket, minlength=BUCKETS) >= FEWEST)[bucket])
    order = at[np.argsort(keys[at], kind="stable")]
    starts = run_starts(keys[order])
    number = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(order))))
    packed = (number.astype(np.uint64) << np.uint64(32)) | customers[order].astype(np.uint64)
    packed.sort()
    pairs = packed[run_starts(packed)] >> np.uint64(32)
    count = np.bincount(pairs.astype(np.int64), minlength=len(starts))
    keep = count >= FEWEST
    return dict(zip(keys[order][starts][keep].tolist(), count[keep].tolist(), strict=True))


def by_pyarrow(keys: np.ndarray, customers: np.ndarray) -> dict[int, int]:
    table = pa.table({"key": keys, "customer": customers})
    found = table.group_by("key").aggregate([("customer", "count_distinct")])
    found = found.filter(pc.greater_equal(found["customer_count_distinct"], FEWEST))
    return dict(zip(found["key"].to_pylist(), found["customer_count_distinct"].to_pylist(),
                    strict=True))  # fmt: skip


def by_daft(keys: np.ndarray, customers: np.ndarray) -> dict[int, int]:
    import daft

    frame = daft.from_arrow(pa.table({"key": keys, "customer": customers}))
    found = frame.groupby("key").agg(daft.col("customer").count_distinct().alias("n"))
    rows = found.where(daft.col("n") >= FEWEST).to_arrow()
    return dict(zip(rows["key"].to_pylist(), rows["n"].to_pylist(), strict=True))


def by_daft_filtered(keys: np.ndarray, customers: np.ndarray) -> dict[int, int]:
    """With the linear pass first, which is the detector's own idea and helps any engine."""
    bucket = (keys & np.uint64(BUCKETS - 1)).astype(np.int32)
    keep = (np.bincount(bucket, minlength=BUCKETS) >= FEWEST)[bucket]
    return by_daft(keys[keep], customers[keep])


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    wall, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    work()
    done = resource.getrusage(resource.RUSAGE_SELF)
    spent = done.ru_utime + done.ru_stime - used.ru_utime - used.ru_stime
    return time.perf_counter() - wall, spent


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    keys, customers = traffic(asked.events)
    ways = (by_numpy, by_pyarrow, by_daft, by_daft_filtered)
    answers = [way(keys, customers) for way in ways]  # and warms up
    rows = {}
    for way in ways:
        spent = [seconds(lambda way=way: way(keys, customers)) for _ in range(asked.repeats)]
        rows[way.__name__] = {
            "wall_seconds": round(min(w for w, _ in spent), 3),
            "processor_seconds": round(min(p for _, p in spent), 3),
        }
    print(json.dumps({
        "events": asked.events, "cores": os.cpu_count(), "load": os.getloadavg()[0],
        "shared_keys": len(answers[0]), "same_answer": all(a == answers[0] for a in answers),
        "ways": rows,
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
