"""Logs that somebody broke, or broke on purpose: counted, bounded, never hidden, seldom fatal."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stillhouse.errors import DataError
from stillhouse.guard.ingest import Ingested, ingest
from stillhouse.guard.parts import open_events
from stillhouse.log_formats import read_record
from tests.guard.conftest import KEY
from tests.guard.log_lines import START, line, write, write_log
from tests.guard.test_turns import JSON

Take = Callable[..., Ingested]
Rows = Callable[..., list[dict[str, Any]]]


def test_bad_lines_are_kept_apart_with_place_and_reason(
    tmp_path: Path, take: Take, rows: Rows
) -> None:
    bad = {
        b"{broken": "no JSON", b"[1, 2]": "no JSON object",
        b'{"a": "\xff\xfe"}': "not UTF-8", b'{"a":' + b"[" * 200_000: "nested too deeply",
        b'{"hello": 1}': "format not recognised",
        json.dumps(line(1, metadata={})).encode(): "no account",
        json.dumps(line(1, startTime=5)).encode(): "time out of range",
    }  # fmt: skip
    log = write(tmp_path / "a.jsonl", [line(n) for n in range(5)] + list(bad) + [line(5)])
    done = take(log, max_rejected=0.9)
    assert done.events == 6
    assert done.rejects.total() == len(bad)
    listed = [
        json.loads(row) for row in (tmp_path / "scan" / "rejects.jsonl").read_text().splitlines()
    ]
    data = log.read_bytes()
    for row, (content, reason) in zip(listed, bad.items(), strict=True):
        assert row["reason"].startswith(reason)
        assert data[row["offset"] :][: row["bytes"]] == content
        assert row["log"] == str(log)
    assert [row["account"] for row in rows("account")][-1] == "account-5"


def test_too_many_bad_lines_are_an_error_and_nothing_is_added(
    tmp_path: Path, take: Take, into: Path
) -> None:
    take(write_log(tmp_path / "a.jsonl", 3))
    before = (into / "catalogue.json").read_bytes()
    log = write(tmp_path / "b.jsonl", [line(n) for n in range(3, 100)] + [b"{", b"{"])
    with pytest.raises(DataError, match=r"2 of 99 lines .* most \(2\): no JSON; one at"):
        take(log)
    assert (into / "catalogue.json").read_bytes() == before
    assert len(list((into / "events").iterdir())) == 1
    assert not (into / "staging").exists()
    assert take(log, max_rejected=0.03).events == 97


def test_many_bad_lines_are_counted_and_the_first_listed(
    tmp_path: Path, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillhouse.guard.reading._KEPT_REJECTS", 5)
    done = take(write(tmp_path / "a.jsonl", [line(0)] + [b"{"] * 50), max_rejected=1)
    assert done.rejects == {"no JSON": 50}
    assert len((tmp_path / "scan" / "rejects.jsonl").read_text().splitlines()) == 5


def test_lines_over_the_limit_are_passed_over(tmp_path: Path, take: Take) -> None:
    long = line(1, messages="x" * 5000)
    done = take(
        write(tmp_path / "a.jsonl", [line(0), long, line(2)]), max_line=3000, max_rejected=1
    )
    assert (done.events, done.rejects) == (2, {"a line over 3000 bytes": 1})


@pytest.mark.slow
def test_a_line_of_gigabytes_takes_no_more_memory_than_others(tmp_path: Path) -> None:
    log = write_log(tmp_path / "a.jsonl", 5)
    with log.open("r+b") as file:
        file.seek(3 * 2**30)  # a hole of zeros, then the line's end
        file.write(b"\n" + json.dumps(line(5)).encode() + b"\n")
    code = (
        "import sys, resource; from pathlib import Path\n"
        "from stillhouse.guard.ingest import ingest\n"
        f"done = ingest([Path({str(log)!r})], Path({str(tmp_path / 'scan')!r}), bytes(32),"
        " workers=1, max_rejected=1)\n"
        "print(done.events, done.rejects.total(),"
        " resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    events, bad, kilobytes = map(int, out.stdout.split())
    assert (events, bad) == (6, 1)
    assert kilobytes < 400_000


def test_dense_json_takes_bounded_memory(tmp_path: Path) -> None:
    """The worst line allowed: nothing but small objects."""
    log = write(tmp_path / "a.jsonl", [
        line(0), b'{"a": [' + b"{}," * (4 * 2**20 // 3) + b"{}]}", line(1),
    ])  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = ingest([log], tmp_path / "scan", KEY, workers=1, max_rejected=1)
    assert (done.events, done.rejects.total()) == (2, 1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000


NAMES = [
    "<script>alert(1)</script>", "\x1b[2J\x1b[31mred", "a\nb", "' OR 1=1 --", "=cmd()",
    "\u202eevil", "../../etc/passwd", "\0", "名前", "\ud800half", "None", "💥" * 60,
]  # fmt: skip


def test_account_names_are_kept_as_they_are(tmp_path: Path, take: Take, rows: Rows) -> None:
    take(write(tmp_path / "a.jsonl", [
        line(n, metadata={"user_api_key_hash": name}) for n, name in enumerate(NAMES)
    ]))  # fmt: skip
    found = [row["account"] for row in rows("account")]
    assert found == [name.encode("utf-8", "replace").decode() for name in NAMES]


def test_logs_out_of_order_and_clocks_that_jump_are_told_of(
    tmp_path: Path, take: Take, rows: Rows
) -> None:
    numbers = list(range(200))
    random.Random(1).shuffle(numbers)
    done = take(write(tmp_path / "a.jsonl", [line(n) for n in numbers]))
    assert done.events == 200
    assert done.notes["clock went back by over an hour"] > 10
    assert done.first is not None
    assert done.first.timestamp() == START
    assert sorted(row["account"] for row in rows("account")) == sorted(
        f"account-{n % 10}" for n in range(200)
    )
    jumps = [0.0, 4e9, -5.0, START, 1e18]
    again = take(
        write(tmp_path / "b.jsonl", [line(300 + n, startTime=t) for n, t in enumerate(jumps)]),
        max_rejected=1,
    )
    assert (again.events, again.rejects.total()) == (1, 4)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(messages=JSON, sent=JSON, agent=JSON, model=JSON)
def test_nothing_a_requester_sends_hides_the_request(
    tmp_path_factory: pytest.TempPathFactory, messages: Any, sent: Any, agent: Any, model: Any
) -> None:
    folder = tmp_path_factory.mktemp("hostile")
    rows = [
        line(0, messages=messages, model_parameters=sent, user_agent=agent, model_group=model),
        line(1, messages=[{"role": "user", "content": messages}], model_parameters={"tools": sent}),
    ]
    done = ingest([write(folder / "a.jsonl", rows)], folder / "scan", KEY, workers=1)
    assert (done.events, done.rejects.total()) == (2, 0)
    assert len(open_events(folder / "scan").to_table()) == 2


OPENAI = {"object": "chat.completion", "usage": {"prompt_tokens": 5, "completion_tokens": 7}}
ANTHROPIC = {"type": "message", "usage": {"input_tokens": 5, "output_tokens": 7}}


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=JSON, sent=JSON, who=JSON.filter(lambda name: name not in (None, "")), model=JSON)
@pytest.mark.parametrize("answer", [OPENAI, ANTHROPIC])
def test_nothing_a_requester_sends_hides_a_request_in_other_forms(
    tmp_path_factory: pytest.TempPathFactory,
    answer: Any,
    text: Any,
    sent: Any,
    who: Any,
    model: Any,
) -> None:
    folder = tmp_path_factory.mktemp("hostile")
    odd = {
        "model": model, "messages": text, "system": sent, "tools": sent, "max_tokens": sent,
        "body": sent, "safety_identifier": who, "user": sent, "metadata": {"user_id": sent},
    }  # fmt: skip
    asked = [
        {"account": "a", "request": odd, "headers": {"User-Agent": sent}},
        {"request": odd}, {"request": {"headers": {"user-agent": sent}, "body": odd}},
        {"request": {"messages": text, "metadata": {"user_id": who}}},
    ]  # fmt: skip
    rows = [
        {"time": START, **row, "response": {"id": f"r{at}", **answer}}
        for at, row in enumerate(asked)
    ]
    done = ingest([write(folder / "a.jsonl", rows)], folder / "scan", KEY, workers=1)
    assert (done.events, done.rejects.total()) == (4, 0)
    for row in rows:
        assert len(read_record(row).account.encode()) <= 256


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=400))
def test_noise_is_counted(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    folder = tmp_path_factory.mktemp("noise")
    (folder / "a.jsonl").write_bytes(json.dumps(line(0)).encode() + b"\n" + noise + b"\n")
    done = ingest([folder / "a.jsonl"], folder / "scan", KEY, workers=1, max_rejected=1)
    lines = [row for row in noise.split(b"\n") if row and not row.isspace()]
    assert done.events == 1
    assert done.rejects.total() == len(lines)


def test_a_log_cut_anywhere_loses_its_last_line_only(tmp_path: Path) -> None:
    whole = write_log(tmp_path / "a.jsonl", 4).read_bytes()
    for cut in range(0, len(whole), 97):
        path = tmp_path / f"{cut}.jsonl"
        path.write_bytes(whole[:cut])
        done = ingest([path], tmp_path / f"scan{cut}", KEY, workers=1)
        assert done.events in (whole[:cut].count(b"\n"), whole[: cut + 1].count(b"\n"))
        assert done.rejects.total() == 0


def test_an_empty_log_is_nothing_new(tmp_path: Path, take: Take) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    done = take(tmp_path / "a.jsonl")
    assert (done.events, done.files, done.notes["logs with nothing new"]) == (0, 0, 1)
    (tmp_path / "a.jsonl").write_bytes(json.dumps(line(0)).encode() + b"\n")
    assert take(tmp_path / "a.jsonl").events == 1
