"""Exports: chosen by what was asked alone, and refused where nothing would be written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.cli.main import main
from stillhouse.errors import DataError
from stillhouse.exchange import Exchange, to_dict
from stillhouse.guard.export import guard_export
from stillhouse.guard.ingest import ingest
from stillhouse.guard.parts import open_events
from stillhouse.guard.reread import read_back
from stillhouse.store import Store
from tests.guard.conftest import KEY
from tests.guard.log_lines import line, write

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": [2]}}}


def scan_of(folder: Path, lines: list[Any]) -> Path:
    """A scan's folder in which all lines are of one campaign."""
    ingest([write(folder.with_suffix(".jsonl"), lines)], folder, KEY, workers=1)
    events = open_events(folder).to_table(columns=["file", "offset"])
    names = pa.array(["c-1"] * events.num_rows)
    pq.write_table(events.append_column("campaign", names), folder / "substreams.parquet")
    return folder


def exchanges_of(scan: Path) -> list[Exchange]:
    table = pq.read_table(scan / "substreams.parquet")
    refs = zip(table["file"].to_pylist(), table["offset"].to_pylist(), strict=True)
    return list(read_back(scan, refs))


def store_of(path: Path, exchanges: list[Exchange]) -> Path:
    with Store(path) as store:
        store.append_many(exchanges)
    return path


def ids_of(path: Path) -> set[str]:
    with Store(path, "r") as store:
        return store.ids()


def test_an_export_that_finds_nothing_is_refused(tmp_path: Path) -> None:
    bare = [line(n, response=None) for n in range(5)] + [line(5, messages=None)]
    scan = scan_of(tmp_path / "scan", bare)
    with pytest.raises(DataError, match=r"none of its 6 .*\(5\): the log keeps no answer") as found:
        guard_export(scan, "c-1", out=tmp_path / "out")
    assert "--served" in str(found.value)
    asked = ["guard", "export", str(scan), "c-1", "--out", str(tmp_path / "out"), "--quiet"]
    assert main(asked) == 3
    assert not (tmp_path / "out").exists()
    whole = scan_of(tmp_path / "whole", [line(n) for n in range(100, 103)])
    served = store_of(tmp_path / "served", exchanges_of(whole))
    with pytest.raises(DataError, match=r"\(5\): asked nothing that the store"):
        guard_export(scan, "c-1", out=tmp_path / "out", served=served)
    assert not (tmp_path / "out").exists()


def test_what_was_served_is_chosen_whatever_the_logs_say_of_answers(tmp_path: Path) -> None:
    given = [line(n, model_parameters={"tools": [TOOL]}) for n in range(9)]
    unlike: list[Any] = [None, {"choices": [{"message": 3, "finish_reason": []}]}, "cut off",
                         {"content": [7]}]  # fmt: skip
    bare = [one | {"response": unlike[n % 4]} if n % 3 else one for n, one in enumerate(given)]
    scans = [scan_of(tmp_path / name, lines) for name, lines in (("a", given), ("b", bare))]
    answers = [replace(e, session="its own") for e in exchanges_of(scans[0])[:7]]
    served = store_of(tmp_path / "served", answers)
    for scan in scans:
        out = tmp_path / f"{scan.name}-out"
        count, left_out = guard_export(scan, "c-1", out=out, served=served)
        assert (count, sum(left_out.values())) == (7, 2)
        assert ids_of(out) == {one.id for one in answers}


def test_logged_exchanges_are_matched_whatever_their_answers_are(tmp_path: Path) -> None:
    """Of logs that are exchanges the prompt is read strictly, media and all."""
    prompt = ({"role": "user", "content": [{"kind": "audio", "uri": "s1:a"}, {"kind": "text"}]},)
    form = to_dict(exchanges_of(scan_of(tmp_path / "any", [line(0)]))[0])
    form = form | {"prompt": prompt, "id": None}
    served = store_of(tmp_path / "served", [Exchange.build(_without(form), "exchange")])
    scan = scan_of(tmp_path / "scan", [form | {"response": {"no": "such field"}}])
    assert guard_export(scan, "c-1", out=tmp_path / "out", served=served) == (1, {})


def _without(form: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in form.items() if name not in ("version", "id")}


def test_tools_are_part_of_what_was_asked(tmp_path: Path) -> None:
    scan = scan_of(tmp_path / "scan", [line(0, model_parameters={"tools": [TOOL]})])
    (one,) = exchanges_of(scan)
    (tool,) = one.tools
    spaced = replace(one, tools=(replace(tool, parameters='{"a":[2],  "b":1}'),))
    other = replace(one, tools=(replace(tool, name="g"),))
    served = store_of(tmp_path / "served", [spaced, other, replace(one, tools=())])
    assert guard_export(scan, "c-1", out=tmp_path / "out", served=served)[0] == 1
    assert ids_of(tmp_path / "out") == {spaced.id}


def test_what_was_served_to_other_accounts_is_left_out(tmp_path: Path) -> None:
    asked = line(0)["messages"]
    scan = scan_of(tmp_path / "scan", [line(n, messages=asked) for n in range(3)])
    first, second, third = exchanges_of(scan)
    stranger = replace(first, account="somebody else")
    served = store_of(tmp_path / "served", [first, second, stranger])
    count, left_out = guard_export(scan, "c-1", out=tmp_path / "out", served=served)
    assert ids_of(tmp_path / "out") == {first.id, second.id}
    assert count == 2
    assert left_out == {"asked what the store of what was served has for other accounts only": 1}
    nameless = store_of(tmp_path / "nameless", [replace(third, account=None)])
    assert guard_export(scan, "c-1", out=tmp_path / "all", served=nameless) == (1, {})
