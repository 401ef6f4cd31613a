"""Logs become an events table: all of them, once, without their text; daily logs are added."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stillhouse.errors import DataError
from stillhouse.guard import known, reading, sources
from stillhouse.guard.events import CAPABILITIES, EVENTS
from stillhouse.guard.ingest import Ingested, ingest
from stillhouse.guard.parts import event_batches, open_events, part_paths
from stillhouse.guard.rows import network_of
from stillhouse.guard.seen import Seen
from stillhouse.store import Store
from tests.exchanges import numbered
from tests.guard.conftest import KEY
from tests.guard.log_lines import START, line, text, write, write_log

Take = Callable[..., Ingested]
Rows = Callable[..., list[dict[str, Any]]]


def test_every_line_becomes_an_event(tmp_path: Path, take: Take, rows: Rows) -> None:
    done = take(write_log(tmp_path / "a.jsonl", 50))
    assert (done.events, done.duplicates, done.files) == (50, 0, 1)
    assert done.rejects.total() == 0
    assert done.first == datetime.fromtimestamp(START, UTC)
    assert done.last == datetime.fromtimestamp(START + 49 * 60, UTC)
    found = rows()
    first = found[0]
    assert [row["account"] for row in found] == [f"account-{n % 10}" for n in range(50)]
    assert first["time"] == datetime.fromtimestamp(START, UTC)
    assert (first["input_tokens"], first["output_tokens"], first["turns"]) == (50, 20, 0)
    assert first["turn_bytes"] == len(text(0))
    assert first["temperature"] == pytest.approx(0.7)
    assert (first["top_p"], first["max_tokens"]) == (None, 500)
    assert first["signup"] == datetime(2025, 10, 1, tzinfo=UTC)
    assert len({row["whole"] for row in found}) == 50
    assert len({row["payment"] for row in found}) == 3
    for name in ("system", "parameters", "channel", "device", "organisation", "user_agent"):
        assert len({row[name] for row in found}) == 1, name
        assert first[name] != 0, name
    assert first["tools"] == 0
    assert len({row["network"] for row in found}) == 4
    assert open_events(part_paths(tmp_path / "scan")[0].parent).schema == EVENTS


def test_no_text_is_left_anywhere(tmp_path: Path, take: Take) -> None:
    secret = "unmistakablewords"
    write(tmp_path / "a.jsonl", [
        line(0, messages=[{"role": "system", "content": secret},
                          {"role": "user", "content": f"about {secret}"}],
             response=secret, user_agent=secret, requester_ip_address="198.51.100.7"),
        json.dumps({"broken": secret}).encode()[:-1],
    ])  # fmt: skip
    take(tmp_path / "a.jsonl", max_rejected=1)
    for path in (tmp_path / "scan").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            if path.suffix == ".parquet":
                data = str(open_events(tmp_path / "scan").to_table().to_pylist()).encode()
            assert secret.encode() not in data, path
            assert b"198.51" not in data, path


def test_the_key_decides_all_hashes(tmp_path: Path) -> None:
    log = write_log(tmp_path / "a.jsonl", 3)
    hashed = [f.name for f in EVENTS if f.type == pa.uint64() and f.name != "offset"]
    tables = []
    for name, key in (("one", KEY), ("same", KEY), ("other", b"k" * 32)):
        ingest([log], tmp_path / name, key, workers=1)
        tables.append(open_events(tmp_path / name).to_table(columns=hashed).to_pylist())
    assert tables[0] == tables[1]
    for name in hashed:
        if name != "tools":
            assert not {r[name] for r in tables[0]} & {r[name] for r in tables[2]}, name


def test_a_log_without_text_still_works(tmp_path: Path, take: Take, rows: Rows) -> None:
    take(write(tmp_path / "a.jsonl", [line(n, messages=None) for n in range(3)]))
    for row in rows():
        assert row["turn_bytes"] is row["turns"] is None
        assert not any(row["sketch"])
        assert row["whole"] == row["head"] == row["skeleton"] == row["system"] == 0
        assert row["payment"] != 0


def test_system_prompts_that_differ_in_a_date_are_one(
    tmp_path: Path, take: Take, rows: Rows
) -> None:
    def ask(number: int, system: str) -> dict[str, Any]:
        said = [{"role": "system", "content": system}, {"role": "user", "content": "x"}]
        return line(number, messages=said)

    systems = ["Today is 2025-11-01.", "Today is 2025-12-24.", "Tonight is 2025-11-01."]
    take(write(tmp_path / "a.jsonl", [ask(n, s) for n, s in enumerate(systems)]))
    one, two, three = (row["system"] for row in rows("system"))
    assert one == two != three


def test_seeds_do_not_make_parameters_differ(tmp_path: Path, take: Take, rows: Rows) -> None:
    sent = [{"seed": n, "temperature": 1} for n in range(2)] + [{"temperature": 2}]
    take(write(tmp_path / "a.jsonl", [line(n, model_parameters=s) for n, s in enumerate(sent)]))
    one, two, three = (row["parameters"] for row in rows("parameters"))
    assert one == two != three


def test_shapes_reach_the_table(tmp_path: Path, take: Take, rows: Rows) -> None:
    asked = "Show your chain of thought step by step before the final answer."
    take(write(tmp_path / "a.jsonl", [
        line(0, messages=[{"role": "user", "content": asked}]), line(1),
    ]))  # fmt: skip
    found = rows("shape", "capability")
    assert CAPABILITIES[found[0]["capability"]] == "reasoning_elicitation"
    assert found[0]["shape"] & 1
    assert found[1] == {"shape": 0, "capability": 0}


# ---- files and processes ----


@pytest.mark.parametrize("kind", ["plain", "gzip", "zstd"])
def test_compressed_logs_give_the_same_events(
    tmp_path: Path, kind: str, take: Take, rows: Rows
) -> None:
    path = write_log(tmp_path / "a.jsonl", 40)
    if kind == "gzip":
        path.write_bytes(gzip.compress(path.read_bytes()))
    elif kind == "zstd":
        path.write_bytes(pa.compress(path.read_bytes(), codec="zstd", asbytes=True))
    take(path)
    offsets = [row["offset"] for row in rows("offset")]
    plain = write_log(tmp_path / "plain.jsonl", 40).read_bytes()
    starts = np.cumsum([0, *(len(row) + 1 for row in plain.splitlines())])[:-1]
    assert offsets == starts.tolist()


def test_two_processes_write_what_one_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_PIECE_BYTES", 20_000)
    logs = [write_log(tmp_path / f"{n}.jsonl", 60, 50 * n) for n in range(3)]
    tables, dones, steps = [], [], []
    for workers in (1, 2):
        into = tmp_path / f"scan{workers}"
        dones.append(ingest(
            logs, into, KEY, workers=workers, progress=lambda done, all: steps.append((done, all))
        ))  # fmt: skip
        tables.append(open_events(into).to_table().to_pylist())
    assert tables[0] == tables[1]
    assert (dones[0].events, dones[0].duplicates) == (dones[1].events, dones[1].duplicates)
    assert dones[0].duplicates == 20  # the logs overlap by ten lines each
    assert steps[0] == (1, len(part_paths(tmp_path / "scan1")))


def test_a_process_that_is_killed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_PIECE_BYTES", 5_000)
    monkeypatch.setattr(reading, "_begin", _die)
    log = write_log(tmp_path / "a.jsonl", 30)
    with pytest.raises(DataError, match="was killed"):
        ingest([log], tmp_path / "scan", KEY, workers=2)


def _die(key: bytes) -> None:
    import os

    os._exit(1)


def test_a_folder_of_logs_is_read_and_a_store_too(tmp_path: Path, take: Take, rows: Rows) -> None:
    (tmp_path / "logs" / "day").mkdir(parents=True)
    write_log(tmp_path / "logs" / "day" / "a.jsonl", 5)
    (tmp_path / "logs" / ".hidden").write_text("no log")
    with Store(tmp_path / "store") as store:
        store.append_many(replace(numbered(n, tokens=3), account="a") for n in range(4))
    done = take(tmp_path / "logs", tmp_path / "store")
    assert done.events == 9
    assert {row["file"] for row in rows("file")} == {0, 1}


def test_logs_that_cannot_be_read_are_errors(tmp_path: Path, take: Take) -> None:
    with pytest.raises(DataError, match="no such file"):
        take(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no files"):
        take(tmp_path / "empty")
    write(tmp_path / "other.jsonl", [{"who": 1, "what": 2}] * 3)
    with pytest.raises(DataError, match="unknown format, with keys 'who, what'"):
        take(tmp_path / "other.jsonl")
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="a mapping that says"):
        take(tmp_path / "x.parquet")


# ---- duplicates ----


def test_a_request_counts_once_across_files_and_days(
    tmp_path: Path, take: Take, rows: Rows
) -> None:
    take(write(tmp_path / "a.jsonl", [line(1), line(1), line(2)]))
    done = take(write(tmp_path / "b.jsonl", [line(2, prompt_tokens=9), line(3)]))
    assert (done.events, done.duplicates) == (1, 1)
    assert [row["input_tokens"] for row in rows("input_tokens")] == [51, 52, 53]


def test_lines_without_an_id_are_all_kept(tmp_path: Path, take: Take) -> None:
    rows = [line(n, id=None, litellm_call_id=None) for n in (1, 1, 1)]
    assert take(write(tmp_path / "a.jsonl", rows)).events == 3


def test_ids_are_seen_once_however_they_come() -> None:
    random, seen, known = np.random.default_rng(1), Seen(), set()
    for size in random.integers(0, 400, 60).tolist():
        ids = random.integers(0, 3000, size).astype(np.uint64)
        expected = []
        for one in ids.tolist():
            expected.append(one == 0 or one not in known)
            known.add(one)
        assert seen.first(ids).tolist() == expected
    assert len(seen._runs) < 16


# ---- daily logs ----


def test_what_was_read_is_not_read_again(tmp_path: Path, take: Take) -> None:
    log = write_log(tmp_path / "a.jsonl", 10)
    take(log)
    done = take(log, write_log(tmp_path / "b.jsonl", 5, 10))
    assert (done.events, done.duplicates, done.files) == (5, 0, 1)
    assert done.notes["logs with nothing new"] == 1


def test_a_log_that_grew_is_read_from_where_it_ended(
    tmp_path: Path, take: Take, rows: Rows
) -> None:
    log = write_log(tmp_path / "a.jsonl", 10)
    take(log)
    with log.open("ab") as file:
        file.write(json.dumps(line(10)).encode() + b"\n")
    done = take(log)
    assert (done.events, done.duplicates, done.lines) == (1, 0, 1)
    assert {row["file"] for row in rows("file")} == {0}


def test_a_log_that_was_rotated_and_compressed_is_known(
    tmp_path: Path, take: Take, rows: Rows
) -> None:
    log = write_log(tmp_path / "app.log", 120)  # over 64 KiB
    take(log)
    (tmp_path / "app.log.1.gz").write_bytes(
        gzip.compress(log.read_bytes() + json.dumps(line(120)).encode() + b"\n")
    )
    write_log(log, 3, 500)  # another log under the old name
    done = take(tmp_path / "app.log.1.gz", log)
    assert (done.events, done.duplicates) == (4, 0)
    assert sorted({row["file"] for row in rows("file")}) == [0, 1]


def test_a_half_written_last_line_waits_for_its_rest(tmp_path: Path, take: Take) -> None:
    whole = json.dumps(line(1)).encode() + b"\n"
    log = tmp_path / "a.jsonl"
    log.write_bytes(json.dumps(line(0)).encode() + b"\n" + whole[:100])
    done = take(log)
    assert (done.events, done.rejects.total(), done.notes["unfinished last line"]) == (1, 0, 1)
    log.write_bytes(log.read_bytes()[:-100] + whole)
    assert (take(log).events, take(log).events) == (1, 0)


def test_a_last_line_without_a_newline_counts(tmp_path: Path, take: Take) -> None:
    log = write_log(tmp_path / "a.jsonl", 2)
    log.write_bytes(log.read_bytes().rstrip(b"\n"))
    assert take(log).events == 2
    with log.open("ab") as file:
        file.write(b"\n" + json.dumps(line(2)).encode() + b"\n")
    assert take(log).events == 1


def test_a_store_that_grew_is_read_on(tmp_path: Path, take: Take) -> None:
    with Store(tmp_path / "store") as store:
        store.append_many(numbered(n) for n in range(4))
    first = take(tmp_path / "store", max_rejected=1)
    with Store(tmp_path / "store") as store:
        store.append_many(numbered(n) for n in range(4, 8))
    second = take(tmp_path / "store", max_rejected=1)
    assert (first.lines, second.lines, second.duplicates) == (4, 4, 0)


def test_a_store_is_known_by_what_it_holds(tmp_path: Path, take: Take, into: Path) -> None:
    for name, numbers in {"store": range(4), "other": range(4, 9)}.items():
        with Store(tmp_path / name) as store:
            store.append_many(replace(numbered(n), account="a") for n in numbers)
    assert take(tmp_path / "store").events == 4
    (tmp_path / "store").rename(tmp_path / "moved")
    assert take(tmp_path / "moved").lines == 0
    (tmp_path / "other").rename(tmp_path / "store")  # another under the old path
    done = take(tmp_path / "store")
    assert (done.events, done.lines) == (5, 5)
    held = json.loads((into / "catalogue.json").read_text())
    for log in held["logs"]:
        log["head_bytes"] = 0  # as it was noted before
    (into / "catalogue.json").write_text(json.dumps(held))
    with pytest.raises(DataError, match="a store noted by its path"):
        take(tmp_path / "store")


def test_logs_are_recognised_by_few_hashes_each(
    tmp_path: Path, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = [write(tmp_path / f"{n}.jsonl", [line(n, odd="x" * n)]) for n in range(40)]
    take(*logs)
    hashed = []
    whole = known._hash
    monkeypatch.setattr(known, "_hash", lambda data: hashed.append(data) or whole(data))
    assert take(*logs).notes["logs with nothing new"] == 40
    assert len(hashed) <= 4 * len(logs)


def test_of_two_copies_of_a_log_the_longer_is_read(tmp_path: Path, take: Take) -> None:
    long = write_log(tmp_path / "a.jsonl", 130)
    short = write_log(tmp_path / "copy.jsonl", 120)
    for logs in ([short, long], [long, short]):
        shutil.rmtree(tmp_path / "scan", ignore_errors=True)
        done = take(*logs)
        assert (done.events, done.notes["logs given twice"]) == (130, 1)


# ---- the folder ----


def test_another_key_is_refused(tmp_path: Path, take: Take, into: Path) -> None:
    log = write_log(tmp_path / "a.jsonl", 2)
    take(log)
    with pytest.raises(DataError, match="events of another key"):
        ingest([log], into, b"k" * 32, workers=1)


def test_a_folder_with_other_files_is_refused(tmp_path: Path, take: Take, into: Path) -> None:
    into.mkdir()
    (into / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match=r"thesis\.txt"):
        take(write_log(tmp_path / "a.jsonl", 2))
    assert (into / "thesis.txt").read_text() == "mine"


def test_one_process_adds_at_a_time(tmp_path: Path, take: Take) -> None:
    log = write_log(tmp_path / "a.jsonl", 2)
    with pytest.raises(DataError, match="another process works"):
        take(log, progress=lambda done, all: take(log) and None)


@pytest.mark.parametrize("content", ["{", '{"version": 99}', "[]", '{"version": 1, "logs": [1]}'])
def test_a_catalogue_that_cannot_be_read_is_an_error(
    tmp_path: Path, take: Take, into: Path, content: str
) -> None:
    log = write_log(tmp_path / "a.jsonl", 2)
    take(log)
    (into / "catalogue.json").write_text(content)
    with pytest.raises(DataError, match="cannot be read"):
        take(log)


def test_what_a_killed_ingest_left_behind_does_not_count(
    tmp_path: Path, take: Take, into: Path, rows: Rows
) -> None:
    take(write_log(tmp_path / "a.jsonl", 2))
    (into / "staging").mkdir()
    (into / "staging" / "00000.parquet").write_bytes(b"half")
    shutil.copy(into / "events" / "part-00000.parquet", into / "events" / "part-00001.parquet")
    assert len(rows("offset")) == 2
    assert take(write_log(tmp_path / "b.jsonl", 3, 2)).events == 3
    assert len(rows("offset")) == 5
    assert not (into / "staging").exists()


def test_too_many_logs_are_refused(
    tmp_path: Path, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillhouse.guard.known.MAX_FILES", 1)
    with pytest.raises(DataError, match="1 logs in this scan"):
        take(write_log(tmp_path / "a.jsonl", 1), write_log(tmp_path / "b.jsonl", 1, 1))


def test_events_are_read_back_in_batches(tmp_path: Path, take: Take, into: Path) -> None:
    take(write_log(tmp_path / "a.jsonl", 30))
    found = list(event_batches(into, ["account", "offset"], rows=7))
    assert sum(map(len, found)) == 30
    assert max(map(len, found)) <= 7
    assert found[0].schema.names == ["account", "offset"]


def test_events_that_are_not_there_or_damaged_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no logs were read"):
        open_events(tmp_path)
    (tmp_path / "part-00000.parquet").write_bytes(b"nothing")
    with pytest.raises(DataError, match="parts of the events table"):
        list(event_batches(tmp_path))


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("203.0.113.77", "203.0.113.0/24"), ("2001:db8:1:2::3", "2001:db8:1::/48"),
        ("::ffff:203.0.113.77", "203.0.113.0/24"), ("unknown", None), ("", None),
        ("fe80::1%eth0", "fe80::/48"),
    ],
)  # fmt: skip
def test_networks_of_addresses(address: str, network: str | None) -> None:
    assert network_of(address) == network


def test_other_calls_are_counted_apart_and_odd_signups_noted(tmp_path: Path, take: Take) -> None:
    odd = line(2)
    odd["metadata"]["user_api_key_auth_metadata"]["signup_time"] = "long ago"
    done = take(write(tmp_path / "a.jsonl", [line(0), line(1, call_type="aembedding"), odd]))
    assert (done.events, done.lines, done.rejects.total()) == (2, 3, 0)
    assert done.notes == {"not a conversation": 1, "signup time unreadable": 1}
