"""Templates of a scan's campaigns: each log is read once, and those that are gone are told of."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from stillhouse.guard import reread
from stillhouse.guard.ingest import ingest
from stillhouse.guard.parts import open_events
from stillhouse.guard.scan import _skeletons
from tests.guard.conftest import KEY
from tests.guard.log_lines import line, write


def scan_of(folder: Path) -> Any:
    """Two campaigns, with requests in each of two logs."""
    wrappers = ("Solve this step by step: {}", "Grade the answer from 1 to 5: {}")
    for log in range(2):
        rows = [
            line(100 * log + n, messages=[{"role": "user", "content": wrappers[n % 2].format(n)}])
            for n in range(20)
        ]
        path = write(folder / f"{log}.jsonl", rows)
        path.write_bytes(gzip.compress(path.read_bytes()))
    ingest([folder / "0.jsonl", folder / "1.jsonl"], folder / "scan", KEY, workers=1)
    events = open_events(folder / "scan").to_table(columns=["file", "offset"])
    table = events.append_column("campaign", pa.array(["c-a", "c-b"] * 20))
    table = table.append_column("customer", pa.array(range(40), pa.int32()))
    return SimpleNamespace(substreams=table, campaigns=[{"id": "c-a"}, {"id": "c-b"}])


def test_all_campaigns_are_read_in_one_go(tmp_path: Path, monkeypatch: Any) -> None:
    scan, times, read = scan_of(tmp_path), Counter[str](), reread.read

    def counted(piece: Any) -> Any:
        times[piece.path.name] += 1
        return read(piece)

    monkeypatch.setattr(reread, "read", counted)
    _skeletons(scan, tmp_path / "scan", [])
    assert times == {"0.jsonl": 1, "1.jsonl": 1}
    first, second = (one["template"] for one in scan.campaigns)
    assert first["skeletons"][0]["text"].startswith("Solve this step by step:")
    assert second["skeletons"][0]["text"].startswith("Grade the answer from 1 to 5:")
    assert (first["read"], first["logs"], first["logs_read"]) == (20, 2, 2)


@pytest.mark.parametrize("named", [False, True])
def test_a_log_that_is_gone_takes_nothing_else_with_it(tmp_path: Path, named: bool) -> None:
    scan = scan_of(tmp_path)
    (tmp_path / "moved").mkdir()
    (tmp_path / "1.jsonl").rename(tmp_path / "moved" / "one.gz")
    _skeletons(scan, tmp_path / "scan", [tmp_path / "moved"] if named else [])
    for campaign in scan.campaigns:
        template = campaign["template"]
        assert (template["logs_read"], template["logs"]) == (2 if named else 1, 2)
        assert template["skeletons"][0]["texts"] == template["read"] == (20 if named else 10)


def test_where_all_logs_are_gone_the_advice_is_a_scans(tmp_path: Path) -> None:
    scan = scan_of(tmp_path)
    for log in tmp_path.glob("*.jsonl"):
        log.unlink()
    _skeletons(scan, tmp_path / "scan", [])
    template = scan.campaigns[0]["template"]
    assert (template["skeletons"], template["logs_read"]) == ([], 0)
    assert "name them to `guard scan`" in template["why_none"]
    assert "--log" not in template["why_none"]
