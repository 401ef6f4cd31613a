"""Anybody's JSONL, CSV and Parquet, read by a mapping that says what the columns mean."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.errors import ConfigError, DataError
from stillhouse.guard.ingest import Ingested
from stillhouse.guard.mapping import FIELDS, MappingSettings, load_mapping
from stillhouse.guard.reread import records_at
from tests.guard.log_lines import START, text

Take = Callable[..., Ingested]
Rows = Callable[..., list[dict[str, Any]]]

COLUMNS = {
    "account": ["who.key", "fallback"], "time": "at", "messages": "prompt", "request": "rid",
    "input_tokens": "tin", "temperature": "temp", "address": "who.ip", "model": "m",
}  # fmt: skip


def row(number: int) -> dict[str, Any]:
    return {
        "who": {"key": f"k{number % 3}", "ip": "10.0.0.1"}, "at": int((START + number) * 1000),
        "prompt": f"{text(number)}, \"quoted\"\nsecond line", "rid": f"r{number}", "tin": 5,
        "temp": 0.5, "m": "big", "unused": [1],
    }  # fmt: skip


def mapping(tmp_path: Path, **more: Any) -> MappingSettings:
    path = tmp_path / "mapping.yaml"
    path.write_text(json.dumps({"columns": COLUMNS, "time_unit": "ms", **more}))  # JSON is YAML
    return load_mapping(path)


def check(found: list[dict[str, Any]]) -> None:
    assert [r["account"] for r in found] == [f"k{n % 3}" for n in range(len(found))]
    assert found[1]["time"] == datetime.fromtimestamp(START + 1, UTC)
    assert (found[0]["input_tokens"], found[0]["temperature"]) == (5, 0.5)
    assert found[0]["turn_bytes"] == len(row(0)["prompt"])
    assert found[0]["network"] != 0
    assert len({r["request"] for r in found}) == len(found)


def test_jsonl_by_mapping(tmp_path: Path, take: Take, rows: Rows) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row(n)) + "\n" for n in range(9)))
    take(tmp_path / "a.jsonl", mapping=mapping(tmp_path))
    check(rows())


def flat(number: int) -> dict[str, Any]:
    nested = row(number)
    return {**nested, "who": json.dumps(nested["who"]), "unused": None}


@pytest.mark.parametrize("packed", [False, True])
def test_csv_by_mapping(tmp_path: Path, take: Take, rows: Rows, packed: bool) -> None:
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(flat(0)), delimiter=";")
        writer.writeheader()
        writer.writerows(flat(n) for n in range(9))
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    take(path, mapping=mapping(tmp_path, format="csv", delimiter=";"))
    check(rows())


def test_a_csv_that_grew_is_read_on(tmp_path: Path, take: Take, rows: Rows) -> None:
    path, how = tmp_path / "a.csv", mapping(tmp_path, format="csv")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(flat(0)))
        writer.writeheader()
        writer.writerows(flat(n) for n in range(5))
    take(path, mapping=how)
    with path.open("a", newline="") as file:
        csv.DictWriter(file, list(flat(0))).writerows(flat(n) for n in range(5, 9))
    done = take(path, mapping=how)
    assert (done.events, done.duplicates) == (4, 0)
    check(rows())


def plain_csv(path: Path, rows: int, end: str = "\n") -> MappingSettings:
    path.write_text("who,at,q\n" + "\n".join(f"k,{1762000000 + n},text {n}" for n in range(rows)))
    with path.open("a") as file:
        file.write(end)
    columns = {"account": "who", "time": "at", "messages": "q"}
    return MappingSettings(format="csv", columns=columns)


def test_a_csv_without_a_last_newline_is_read_once(tmp_path: Path, take: Take, rows: Rows) -> None:
    path = tmp_path / "a.csv"
    how = plain_csv(path, 3, end="")
    first = take(path, mapping=how)
    assert (first.events, first.rejects.total(), first.notes["unfinished last line"]) == (2, 0, 1)
    assert take(path, mapping=how).events == 1  # it did not grow, so its last row is whole
    assert (take(path, mapping=how).events, len(rows("offset"))) == (0, 3)
    plain_csv(path, 5)
    assert (take(path, mapping=how).events, len(rows("offset"))) == (2, 5)
    assert {row["file"] for row in rows("file")} == {0}


@pytest.mark.parametrize("cut", [1, 3, 8, 16, 20])
def test_a_half_written_row_of_a_csv_waits_for_its_rest(
    tmp_path: Path, take: Take, rows: Rows, cut: int
) -> None:
    path = tmp_path / "a.csv"
    how = plain_csv(path, 3)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    first = take(path, mapping=how)
    assert (first.events, first.rejects.total()) == (2, 0)
    path.write_bytes(whole)
    assert (take(path, mapping=how).events, take(path, mapping=how).events) == (1, 0)
    assert [row["turn_bytes"] for row in rows("turn_bytes")] == [len("text 0")] * 3


def test_a_quoted_value_of_a_csv_waits_for_its_end(tmp_path: Path, take: Take, rows: Rows) -> None:
    path = tmp_path / "a.csv"
    how = plain_csv(path, 1)
    start = path.read_bytes()
    path.write_bytes(start + b'k,1762000001,"one\n')
    assert take(path, mapping=how).events == 1
    path.write_bytes(start + b'k,1762000001,"one\ntwo"\nk,1762000002,"three\n')
    assert take(path, mapping=how).events == 1
    assert rows("turn_bytes")[1]["turn_bytes"] == len("one\ntwo")
    done = take(path, mapping=how, max_rejected=1)  # nothing came any more
    assert (done.events, done.rejects) == (0, {"no CSV": 1})


def test_a_compressed_csv_is_whole(tmp_path: Path, take: Take, rows: Rows) -> None:
    path = tmp_path / "a.csv"
    how = plain_csv(path, 3, end="")
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert (take(path, mapping=how).events, take(path, mapping=how).events) == (3, 0)


def test_a_quoted_value_may_lie_across_blocks(
    tmp_path: Path, take: Take, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillhouse.log_files._BLOCK_BYTES", 16)
    path = tmp_path / "a.csv"
    how = plain_csv(path, 0)
    with path.open("a") as file:
        file.write('k,1762000001,"one line\nand another\nand one more"\n')
    take(path, mapping=how)
    assert rows("turn_bytes")[0]["turn_bytes"] == len("one line\nand another\nand one more")


def test_bad_rows_of_a_csv_are_counted(tmp_path: Path, take: Take, rows: Rows) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b"who,at\nk1,1762000000\n\nk2\nk3,soon\nk\xff,1762000000\nk4,1762000001\n"
        b'k5,"1762000001"x\nk6,1762000002\n'
    )
    how = MappingSettings(format="csv", columns={"account": "who", "time": "at"})
    done = take(path, mapping=how, max_rejected=1)
    assert [r["account"] for r in rows("account")] == ["k1", "k4", "k6"]
    assert done.rejects == {
        "another number of columns than the header's": 1, "time unreadable": 1,
        "not UTF-8, or too long": 1, "no CSV": 1,
    }  # fmt: skip


def test_parquet_by_mapping(tmp_path: Path, take: Take, rows: Rows) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([row(n) for n in range(9)]), path)
    how = mapping(tmp_path, format="parquet")
    take(path, mapping=how)
    check(rows())
    assert [r["offset"] for r in rows("offset")] == list(range(9))
    assert take(path, mapping=how).events == 0


def test_a_parquet_file_is_known_wherever_it_lies(
    tmp_path: Path, take: Take, rows: Rows, into: Path
) -> None:
    path, how = tmp_path / "a.parquet", mapping(tmp_path, format="parquet")
    pq.write_table(pa.Table.from_pylist([row(n) for n in range(9)]), path)
    take(path, mapping=how)
    path.rename(tmp_path / "renamed.parquet")
    done = take(tmp_path / "renamed.parquet", mapping=how)
    assert (done.events, done.duplicates) == (0, 0)
    (tmp_path / "copy").write_bytes((tmp_path / "renamed.parquet").read_bytes())
    (tmp_path / "renamed.parquet").unlink()
    refs = [(r["file"], r["offset"]) for r in rows("file", "offset")]
    (tmp_path / "log.gz").write_bytes(gzip.compress(b"{}"))
    moved = [tmp_path / "log.gz", tmp_path / "copy"]
    assert len(list(records_at(into, refs, moved))) == 9
    pq.write_table(pa.Table.from_pylist([row(n) for n in range(9, 18)]), tmp_path / "copy")
    with pytest.raises(DataError, match="is not the one that was read"):
        list(records_at(into, refs, moved))


def test_parquet_times_may_be_timestamps(tmp_path: Path, take: Take, rows: Rows) -> None:
    path = tmp_path / "a.parquet"
    when = datetime(2025, 11, 1, 12, tzinfo=UTC)
    pq.write_table(pa.table({"who": ["k"], "at": pa.array([when])}), path)
    take(path, mapping=MappingSettings(format="parquet", columns={"account": "who", "time": "at"}))
    assert rows("time") == [{"time": when}]


def test_parquet_times_may_have_nanoseconds(tmp_path: Path, take: Take, rows: Rows) -> None:
    path, number = tmp_path / "a.parquet", int(START) * 10**9 + 1_234_567
    times = pa.array([number], pa.timestamp("ns", "UTC"))
    deep = pa.StructArray.from_arrays([times], ["signup"])
    many = pa.array([[number]], pa.list_(pa.timestamp("ns")))
    table = pa.table({"who": ["k"], "at": times, "deep": deep, "q": many,
                      "tools": pa.array([[("a", number)]], pa.map_(pa.string(), pa.time64("ns"))),
                      "system": pa.array([[number]], pa.list_(pa.duration("ns"), 1)),
                      "more": pa.array([[number]], pa.large_list(pa.timestamp("ns")))})  # fmt: skip
    pq.write_table(table, path)
    columns = {"account": "who", "time": "at", "signup": "deep.signup", "messages": "q",
               "tools": "tools", "system": "system", "answer": "more"}  # fmt: skip
    take(path, mapping=MappingSettings(format="parquet", columns=columns))
    when = datetime.fromtimestamp(START, UTC).replace(microsecond=1234)
    assert rows("time", "signup") == [{"time": when, "signup": when}]


@pytest.mark.parametrize(("unit", "scale"), [("s", 1), ("ms", 1000), ("ns", 10**9)])
def test_signups_are_in_the_unit_of_times_and_may_be_old(
    tmp_path: Path, take: Take, rows: Rows, unit: Any, scale: int
) -> None:
    made = datetime(2012, 5, 1, tzinfo=UTC)
    given = [int(made.timestamp()) * scale, made.isoformat(), 0, 10**400]
    held = [{"who": "k", "at": int(START) * scale, "made": signup} for signup in given]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    columns = {"account": "who", "time": "at", "signup": "made"}
    done = take(tmp_path / "a.jsonl", mapping=MappingSettings(columns=columns, time_unit=unit))
    assert [row["signup"] for row in rows("signup")] == [made, made, None, None]
    assert done.notes["signup time unreadable"] == 2


def test_a_column_that_is_not_there_is_an_error(tmp_path: Path, take: Take) -> None:
    how = {"columns": {"account": "who", "time": "whenn"}}
    (tmp_path / "a.csv").write_text("who,when\nk,1762000000\n")
    with pytest.raises(DataError, match="no column 'whenn', mapped to 'time'"):
        take(tmp_path / "a.csv", mapping=MappingSettings(format="csv", **how))
    pq.write_table(pa.table({"who": ["k"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column 'whenn'"):
        take(tmp_path / "a.parquet", mapping=MappingSettings(format="parquet", **how))


def test_a_damaged_parquet_file_is_an_error(tmp_path: Path, take: Take) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="a whole Parquet file"):
        take(tmp_path / "a.parquet", mapping=mapping(tmp_path, format="parquet"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("columns: {account: a, time: t, acount: b}", "no such field.*Did you mean 'account'"),
        ("columns: {account: a}", "no column for 'time'"),
        ("colums: {account: a, time: t}", "no 'columns'"),
        ("columns: {account: a, time: t}\nformatt: csv", "Did you mean 'format'"),
        ("columns: {account: a, time: t}\ndelimiter: ';;'", "one character"),
        ("columns: {account: a, time: t}\nformat: xml", "jsonl"),
        ("- 1", "settings as `key: value`"), ("{", "a mapping in YAML"),
    ],
)  # fmt: skip
def test_a_wrong_mapping_is_an_error(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "m.yaml").write_text(content)
    with pytest.raises(ConfigError, match=said):
        load_mapping(tmp_path / "m.yaml")


def test_a_missing_mapping_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_mapping(tmp_path / "none.yaml")


def test_every_field_can_be_mapped(tmp_path: Path, take: Take, rows: Rows) -> None:
    given = {name: f"column {name}" for name in FIELDS}
    values: dict[str, Any] = dict.fromkeys(given.values(), "7")
    values |= {
        "column time": START, "column messages": '[{"role": "user", "content": "hello there"}]',
        "column tools": '[{"name": "f"}]', "column parameters": '{"seed": 1, "top_k": 4}',
        "column address": "10.1.2.3", "column signup": "2025-01-01",
    }  # fmt: skip
    (tmp_path / "a.jsonl").write_text(json.dumps(values) + "\n")
    take(tmp_path / "a.jsonl", mapping=MappingSettings(columns=given))
    [found] = rows()
    empty = {name for name, value in found.items() if not value}
    assert empty <= {"turns", "file", "offset"}
