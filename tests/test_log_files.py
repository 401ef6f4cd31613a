"""Lines of files of any size: whole, with their offsets, in bounded memory."""

from __future__ import annotations

import gzip
import random
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse import log_files
from stillhouse.errors import DataError
from stillhouse.log_files import blocks, compression, line_at, opened, ranges


def lines_of(path: Path, start: int = 0, stop: int | None = None, **how: int) -> list[bytes]:
    """All lines, with an entry b'LONG' for each that was passed over."""
    found = []
    for block in blocks(path, start, stop, **how):
        found += [b"LONG"] if block.skipped else block.data.splitlines(keepends=True)
    return found


def compressed(data: bytes, kind: str) -> bytes:
    return bytes(pa.compress(data, codec=kind, asbytes=True))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "_BLOCK_BYTES", 64)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 200), max_size=40), newline=st.booleans(),
    size=st.integers(1, 500),
)  # fmt: skip
def test_pieces_hold_every_line_once_whatever_their_size(
    lengths: list[int], newline: bool, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    data = b"\n".join(bytes([97 + i % 26]) * n for i, n in enumerate(lengths))
    path.write_bytes(data + (b"\n" if newline else b""))
    whole = path.read_bytes().splitlines(keepends=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_files, "_BLOCK_BYTES", 64)
        assert lines_of(path) == whole
        parts = ranges(path, 0, size)
        assert [row for part in parts for row in lines_of(path, *part)] == whole


@pytest.mark.usefixtures("small_blocks")
def test_offsets_lead_back_to_the_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    rows = [b"x" * n for n in (3, 500, 0, 64, 1)]
    path.write_bytes(b"\n".join(rows))
    at = 0
    with opened(path) as file:
        for row in rows:
            assert line_at(file, at) == row
            at += len(row) + 1


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_compression_is_known_by_the_first_bytes_and_joined_streams_are_read(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes(compressed(b"one\ntwo\n", kind) + compressed(b"three\n", kind))
    assert compression(path) == kind
    assert lines_of(path) == [b"one\n", b"two\n", b"three\n"]
    assert lines_of(path, 4) == [b"two\n", b"three\n"]
    assert ranges(path, 4, 2) == [(4, None)]
    assert lines_of(path, 400) == []


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", [None, "gzip"])
def test_a_line_over_the_limit_is_passed_over_and_told_of(tmp_path: Path, kind: str | None) -> None:
    path = tmp_path / "log"
    data = b"short\n" + b"x" * 1000 + b"\nnext\n" + b"y" * 999
    path.write_bytes(compressed(data, kind) if kind else data)
    assert lines_of(path, max_line=100) == [b"short\n", b"LONG", b"next\n", b"LONG"]
    long = [(b.offset, b.skipped) for b in blocks(path, max_line=100) if b.skipped]
    assert long == [(6, 1001), (1012, 999)]


@pytest.mark.parametrize("size", [2**26, pytest.param(2**30, marks=pytest.mark.slow)])
def test_a_gigabyte_without_a_newline_takes_little_memory(tmp_path: Path, size: int) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        file.write(b"a\n")
        file.seek(size)  # a hole: it takes no room on the disk
        file.write(b"\nb\n")
    tracemalloc.start()
    try:
        assert lines_of(path, max_line=2**20) == [b"a\n", b"LONG", b"b\n"]
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_a_damaged_stream_is_an_error_that_names_the_file(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "log.gz"
    noise = random.Random(1).randbytes(5000)
    whole = gzip.compress(noise)
    path.write_bytes(whole[:2000] if damage == "cut" else whole[:1000] + noise[:900])
    with pytest.raises(DataError, match=r"log\.gz: cannot be read"):
        lines_of(path)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        compression(tmp_path / "none")
