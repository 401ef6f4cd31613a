"""Events' lines are found again and become exchanges; another line is never given instead."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.errors import DataError
from stillhouse.guard.ingest import Ingested
from stillhouse.guard.mapping import MappingSettings
from stillhouse.guard.reread import read_back, records_at
from stillhouse.store import Store
from tests.exchanges import numbered
from tests.guard.log_lines import line, text, write, write_log

Take = Callable[..., Ingested]
Rows = Callable[..., list[dict[str, Any]]]


def refs(rows: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(row["file"], row["offset"]) for row in rows]


@pytest.mark.parametrize("packed", [False, True])
def test_exchanges_of_events_are_read_back(
    tmp_path: Path, take: Take, rows: Rows, into: Path, packed: bool
) -> None:
    path = write_log(tmp_path / "a.jsonl", 200)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    take(path)
    wanted = [row for row in rows() if row["account"] == "account-3"]
    found = list(read_back(into, reversed(refs(wanted) * 2)))
    assert len(found) == 20
    for number, exchange in enumerate(found):
        assert exchange.account == "account-3"
        assert exchange.prompt[1].text == text(10 * number + 3)
        assert exchange.response.text == f"Answer {10 * number + 3}."
        assert exchange.served_model == "big-1-0701"
        assert exchange.sampling.temperature == 0.7
        assert exchange.time == wanted[number]["time"]


def test_rows_and_stores_are_read_back(tmp_path: Path, take: Take, rows: Rows, into: Path) -> None:
    given = [replace(numbered(n, tokens=2), account="a") for n in range(6)]
    with Store(tmp_path / "store") as store:
        store.append_many(given)
    take(tmp_path / "store")
    table = pa.Table.from_pylist(
        [{"who": "k", "at": 1762000000 + n, "q": f"q{n}", "a": f"a{n}"} for n in range(5)]
    )
    pq.write_table(table, tmp_path / "a.parquet")
    columns = {"account": "who", "time": "at", "messages": "q", "answer": "a"}
    take(tmp_path / "a.parquet", mapping=MappingSettings(format="parquet", columns=columns))
    found = list(read_back(into, [(0, 4), (0, 1), (1, 3)]))
    assert [e.id for e in found[:2]] == [given[1].id, given[4].id]
    assert (found[2].prompt[0].text, found[2].response.text) == ("q3", "a3")
    assert len(list(records_at(into, refs(rows())))) == 11


def test_another_store_is_never_given_in_the_place_of_one(
    tmp_path: Path, take: Take, rows: Rows, into: Path
) -> None:
    given = [replace(numbered(n, tokens=2), account="a") for n in range(6)]
    for name, some in {
        "store": given, "other": given[3:] + given[:3], "ends_otherwise": [*given[:5], numbered(9)],
        "grown": [*given, numbered(8)],
    }.items():  # fmt: skip
        with Store(tmp_path / name) as store:
            store.append_many(some)
    take(tmp_path / "store")
    (tmp_path / "store").rename(tmp_path / "moved")
    for name in ("other", "ends_otherwise"):
        with pytest.raises(DataError, match="is not the one that was read"):
            list(read_back(into, refs(rows()), [tmp_path / name]))
    for name in ("moved", "grown"):
        found = list(read_back(into, refs(rows()), [tmp_path / "other", tmp_path / name]))
        assert [e.id for e in found] == [e.id for e in given]
    (tmp_path / "other").rename(tmp_path / "store")  # under the old path, too
    with pytest.raises(DataError, match="is not the one that was read"):
        list(read_back(into, refs(rows())))


def test_csv_rows_are_read_back(tmp_path: Path, take: Take, rows: Rows, into: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "who,at,q,a\n" + "".join(f'k,{1762000000 + n},"q\n{n}",a{n}\n' for n in range(5))
    )
    columns = {"account": "who", "time": "at", "messages": "q", "answer": "a"}
    take(tmp_path / "a.csv", mapping=MappingSettings(format="csv", columns=columns))
    found = list(read_back(into, refs(rows())[3:]))
    assert [e.prompt[0].text for e in found] == ["q\n3", "q\n4"]


def test_a_log_that_moved_is_found_where_it_is_named(
    tmp_path: Path, take: Take, rows: Rows, into: Path
) -> None:
    path = write_log(tmp_path / "a.jsonl", 3)
    take(path)
    moved = tmp_path / "moved.gz"
    moved.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    with pytest.raises(DataError, match="the log is not there"):
        list(read_back(into, refs(rows())))
    assert len(list(read_back(into, refs(rows()), [tmp_path / "none", moved]))) == 3


def test_a_log_that_changed_is_an_error(tmp_path: Path, take: Take, rows: Rows, into: Path) -> None:
    path = write_log(tmp_path / "a.jsonl", 3)
    take(path)
    write_log(path, 3, 50)
    with pytest.raises(DataError, match="is not the one that was read"):
        list(read_back(into, refs(rows())))


def test_what_is_no_event_of_the_scan_is_an_error(tmp_path: Path, take: Take, into: Path) -> None:
    take(write_log(tmp_path / "a.jsonl", 3))
    with pytest.raises(DataError, match="no event at 5"):
        list(read_back(into, [(0, 5)]))
    with pytest.raises(DataError, match="no log 7"):
        list(read_back(into, [(7, 0)]))
    with pytest.raises(DataError, match=r"catalogue\.json: no such file"):
        list(read_back(tmp_path, [(0, 0)]))


def test_a_line_without_text_or_answer_makes_no_exchange(
    tmp_path: Path, take: Take, rows: Rows, into: Path
) -> None:
    bare = [line(0, messages=None), line(1, response=None)]
    take(write(tmp_path / "a.jsonl", bare))
    for ref, reason in zip(refs(rows()), ("keeps no text", "keeps no answer"), strict=True):
        with pytest.raises(DataError, match=reason):
            list(read_back(into, [ref]))
    left_out: Counter[str] = Counter()
    assert list(read_back(into, refs(rows()), left_out=left_out)) == []
    assert left_out == {"the log keeps no text": 1, "the log keeps no answer": 1}


def test_json_numbers_of_the_scan_are_plain(tmp_path: Path, take: Take, into: Path) -> None:
    take(write_log(tmp_path / "a.jsonl", 3))
    found = json.loads((into / "catalogue.json").read_text())
    assert found["parts"] == {"part-00000.parquet": 3}
    assert found["logs"][0]["read"] == (tmp_path / "a.jsonl").stat().st_size
