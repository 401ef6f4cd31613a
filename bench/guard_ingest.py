"""Logs to an events table: processes over byte ranges beside the same work in Daft.

    python bench/guard_ingest.py [--events 100000] [--workers 2] [--ways pool,daft_threads,...]

Prints one JSON object: seconds of wall clock and of processor, and peak memory, for each way, in a
process of its own. The log is made by the bench: LiteLLM lines of about 1 KB whose newest turn has
some 60 words drawn anew. In Daft the same rows are made by a batch function on lines of text: in
its threads, and in processes. Neither Daft way looks for duplicates or keeps byte offsets.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KEY = bytes(range(32))
WAYS = ("pool", "pool_1", "pool_gzip", "daft_threads", "daft_processes", "daft_count")
START = 1_762_000_000.0


def write_log(path: Path, events: int) -> None:
    """Lines whose fields repeat as a gateway's do, and whose texts do not."""
    draw = random.Random(7)
    words = [
        "".join(draw.choices("aeiounrstlmdpcbghk", k=draw.randint(2, 10))) for _ in range(5000)
    ]
    with path.open("w") as file:
        for number in range(events):
            asked = " ".join(draw.choices(words, k=60))
            row = {
                "id": f"chatcmpl-{number:012d}", "trace_id": f"trace-{number:012d}",
                "call_type": "acompletion", "stream": False, "status": "success",
                "custom_llm_provider": "openai", "prompt_tokens": 90, "completion_tokens": 40,
                "startTime": START + number, "endTime": START + number + 2, "model": "openai/big",
                "model_group": "big", "response_cost": 0.004, "cache_hit": False,
                "requester_ip_address": f"10.{draw.randrange(200)}.{draw.randrange(200)}.1",
                "user_agent": "OpenAI/Python 3.1", "model_parameters": {"temperature": 0.7},
                "messages": [
                    {"role": "system", "content": "You are a helpful assistant."},
                    {"role": "user", "content": asked},
                ],
                "response": {"choices": [{"message": {
                    "role": "assistant", "content": " ".join(draw.choices(words, k=12)),
                }}]},
                "metadata": {
                    "user_api_key_hash": f"{draw.randrange(max(1, events // 30)):064x}",
                    "user_api_key_team_id": f"team-{draw.randrange(500)}",
                    "user_api_key_auth_metadata": {
                        "payment_fingerprint": f"card-{draw.randrange(5000)}",
                        "signup_time": "2025-06-01T00:00:00Z",
                    },
                },
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")


def with_pool(log: Path, out: Path, workers: int) -> int:
    """What Stillhouse does."""
    from stillhouse.guard.ingest import ingest

    return ingest([log], out, KEY, workers=workers).events


def with_daft(log: Path, out: Path, workers: int, processes: bool) -> int:
    """The same rows, made by a batch function of Daft."""
    import daft
    import pyarrow as pa

    from stillhouse.guard.events import EVENTS
    from stillhouse.guard.rows import Rows
    from stillhouse.log_formats import read_record
    from stillhouse.log_records import parse

    plain = pa.struct([
        pa.field(f.name, pa.string() if pa.types.is_dictionary(f.type) else f.type) for f in EVENTS
    ])  # fmt: skip

    @daft.cls(max_concurrency=workers, use_process=processes)
    class Events:
        def __init__(self) -> None:
            self.rows = Rows(KEY)

        @daft.method.batch(return_dtype=daft.DataType.from_arrow_type(plain), batch_size=1024)
        def of(self, lines):
            for number, line in enumerate(lines.to_pylist()):
                self.rows.add(read_record(parse(line.encode())), 0, number)
            batch = self.rows.batch()
            columns = [c.cast(f.type) for c, f in zip(batch.columns, plain, strict=True)]
            return pa.StructArray.from_arrays(columns, fields=list(plain))

    table = daft.read_text(str(log)).select(Events().of(daft.col("text")).alias("row"))
    table = table.select(*[daft.col("row")[f.name].alias(f.name) for f in plain])
    table.write_parquet(str(out))
    return daft.read_parquet(f"{out}/*.parquet").count_rows()


def one_way(way: str, log: Path, workers: int) -> dict[str, float]:
    """Seconds, processor seconds and memory of one way, in this process and its children."""
    with tempfile.TemporaryDirectory() as folder:
        began, out = time.perf_counter(), Path(folder) / "out"
        if way == "daft_count":  # reading alone, without a row made
            import daft

            events = daft.read_text(str(log)).count_rows()
        elif way.startswith("daft"):
            events = with_daft(log, out, workers, way == "daft_processes")
        else:
            if way == "pool_gzip":
                log = log.with_suffix(".gz")
            events = with_pool(log, out, 1 if way == "pool_1" else workers)
        seconds = time.perf_counter() - began
    own, children = (resource.getrusage(who) for who in (
        resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    ))  # fmt: skip
    return {
        "events": events, "seconds": round(seconds, 2),
        "processor_seconds": round(sum(u.ru_utime + u.ru_stime for u in (own, children)), 2),
        "peak_mib_of_one_process": round(max(own.ru_maxrss, children.ru_maxrss) / 1024),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--log", type=Path, help="a log to use in the place of the bench's own")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one_way(given.one, given.log, given.workers)))
        return
    with tempfile.TemporaryDirectory() as folder:
        log = given.log or Path(folder) / "log.jsonl"
        if given.log is None:
            write_log(log, given.events)
        found: dict[str, object] = {
            "bytes": log.stat().st_size, "workers": given.workers, "processors": os.cpu_count(),
            "load_before": round(os.getloadavg()[0], 1),
        }  # fmt: skip
        for way in given.ways.split(","):
            if way == "pool_gzip":
                with log.with_suffix(".gz").open("wb") as packed:
                    subprocess.run(["gzip", "-1", "-c", str(log)], stdout=packed, check=True)
            command = [sys.executable, __file__, "--one", way, "--log", str(log)]
            command += ["--workers", str(given.workers)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            last = done.stdout.strip().splitlines()[-1:] or ["null"]
            found[way] = json.loads(last[0]) if not done.returncode else done.stderr[-400:]
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
