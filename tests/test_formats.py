"""JSON lines: out, in again, and refusals by line number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.errors import DataError
from stillhouse.exchange import Exchange, canonical_json, to_dict
from stillhouse.formats import from_jsonl, to_jsonl
from stillhouse.store import Store
from tests.exchanges import exchanges, frozen, numbered


@settings(max_examples=40, deadline=None)
@given(st.lists(exchanges(), max_size=3))
def test_json_lines_give_back_the_same_exchanges(
    tmp_path_factory: pytest.TempPathFactory, made: list[Exchange]
) -> None:
    path = tmp_path_factory.mktemp("lines") / "all.jsonl"
    assert to_jsonl(made, path) == len(made)
    assert list(from_jsonl(path)) == made


def test_a_store_goes_through_json_lines_into_another(tmp_path: Path) -> None:
    with Store(tmp_path / "one") as store:
        store.append_many(frozen())
        assert to_jsonl(store, tmp_path / "all.jsonl") == 4
    with Store(tmp_path / "two") as store:
        assert store.append_many(from_jsonl(tmp_path / "all.jsonl")) == 4
        assert store.append_many(from_jsonl(tmp_path / "all.jsonl")) == 0
        assert list(store) == frozen()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b"{", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[1]", r"\[1\]"),
        (b'{"version": 3}', "format version 3"),
        (b'{"version": 1, "model": "m"}', "`prompt` is missing"),
    ],
)
def test_a_line_that_is_no_exchange_is_refused_by_its_number(
    tmp_path: Path, line: bytes, found: str
) -> None:
    good = canonical_json(to_dict(numbered(1))).encode()
    path = tmp_path / "some.jsonl"
    path.write_bytes(good + b"\n\n" + line + b"\n" + good + b"\n")
    lines = from_jsonl(path)
    assert next(lines) == numbered(1)
    with pytest.raises(DataError, match=rf"some\.jsonl, line 3.*{found}"):
        next(lines)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl: cannot be read"):
        list(from_jsonl(tmp_path / "gone.jsonl"))


def test_an_export_that_fails_leaves_what_stood_there(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    to_jsonl([numbered(1)], path)
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError):
        to_jsonl((numbered(1 // n) for n in (1, 0)), path)
    assert path.read_bytes() == before
    with pytest.raises(DataError, match="writing failed"):
        to_jsonl([numbered(1)], tmp_path / "no" / "such" / "folder.jsonl")
    assert json.loads(path.read_text())["model"] == "scripted:numbers"
