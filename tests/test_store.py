"""The store: what goes in comes out, once; damage, full disks and other writers are told apart."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.errors import StoreError
from stillhouse.exchange import Exchange
from stillhouse.journal import Journal, encode, quiet
from stillhouse.parquet import SealedIds, arrow_schema
from stillhouse.record import schema_fields
from stillhouse.store import Store
from tests.exchanges import exchanges, frozen, numbered

DATA = Path(__file__).parent / "data"
ROOT = DATA.parent.parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "exchanges"


def filled(path: Path, count: int, *, sealed: int = 0, tokens: int = 0) -> list[Exchange]:
    """A closed store of `count` exchanges, the first `sealed` of them in a Parquet segment."""
    made = [numbered(i, tokens, 4) for i in range(count)]
    with Store(path) as store:
        store.append_many(made[:sealed])
        if sealed:
            store.seal()
        for exchange in made[sealed:]:
            store.append(exchange)
    return made


def journal_of(path: Path) -> Path:
    (found,) = path.glob("*.open")
    return found


# ---- in and out ----


@settings(max_examples=25, deadline=None)
@given(st.lists(exchanges(), max_size=4, unique_by=lambda e: e.id))
def test_every_exchange_comes_back_bit_for_bit_open_and_sealed(
    tmp_path_factory: pytest.TempPathFactory, made: list[Exchange]
) -> None:
    path = tmp_path_factory.mktemp("any") / "store"
    with Store(path) as store:
        assert store.append_many(made) == len(made)
        for _ in ("open", "sealed"):
            assert list(store) == made
            assert store.verify() == len(made)
            assert store.ids() == {e.id for e in made}
            assert store.keys() == {e.key for e in made}
            store.seal()
    shutil.rmtree(path)


def test_a_store_of_version_1_still_reads(tmp_path: Path) -> None:
    with Store(DATA / "store-v1", "r") as store:
        assert list(store) == frozen()
        assert store.verify() == 4
        assert (store.describe()["segments"], store.describe()["open_rows"]) == (1, 1)
    path = shutil.copytree(DATA / "store-v1", tmp_path / "store")
    with Store(path) as store:
        store.append(numbered(9))
        assert list(store) == [*frozen(), numbered(9)]


def test_a_sealed_segment_reads_with_any_parquet_reader(folder: Path) -> None:
    filled(folder, 3, sealed=3, tokens=2)
    table = pq.read_table(folder / "000001-3.parquet")
    assert table.schema.names == ["id", "key", *(name for name, _, _ in schema_fields(Exchange))]
    row = table.to_pylist()[1]
    exchange = numbered(1, 2, 4)
    assert exchange.logprobs is not None
    assert exchange.logprobs.top is not None
    assert (row["id"], row["time"]) == (exchange.id, exchange.time)
    assert row["logprobs"]["top"] == exchange.logprobs.top.tolist()
    assert row["prompt"][0]["content"][0]["text"] == exchange.prompt[0].text


def test_arrays_that_come_back_are_the_readers_own(folder: Path) -> None:
    filled(folder, 2, sealed=1, tokens=3)
    with Store(folder, "r") as store:
        for exchange in store:
            assert exchange.logprobs is not None
            assert exchange.logprobs.top is not None
            assert exchange.logprobs.top.flags.writeable
            assert exchange.logprobs.top.flags.owndata or exchange.logprobs.top.base.flags.owndata


def test_segments_are_sealed_by_rows_and_by_bytes_and_keep_the_order(folder: Path) -> None:
    made = [numbered(i, 5, 4) for i in range(25)]
    with Store(folder, segment_rows=10) as store:
        for exchange in made:
            store.append(exchange)
        assert (store.describe()["segments"], len(store)) == (2, 25)
        assert list(store) == made
    with Store(folder, segment_bytes=1) as store:
        store.append_many([numbered(i) for i in range(30, 33)])
        store.append(numbered(33))
        assert store.describe()["segments"] == 4
        assert list(store)[:25] == made
    with Store(folder, "r") as store:
        assert len(store) == 29
        assert store.verify() == 29


def test_an_exchange_is_kept_once_wherever_it_lies(folder: Path) -> None:
    made = [numbered(i) for i in range(8)]
    with Store(folder, segment_rows=3) as store:
        assert store.append_many([made[0], made[0], made[1]]) == 2
        store.append(made[1])
        store.seal()
        assert store.append_many(made[:4]) == 2
        store.seal()
        assert store.append_many(made) == 4
    with Store(folder) as store:
        assert store.append_many(made) == 0
        store.seal()
        assert store.append_many(made) == 0
        assert list(store) == made
        assert store.ids() == {e.id for e in made}


def test_many_are_written_in_frames_of_bounded_size(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = encode(numbered(0, 50, 8)).size
    monkeypatch.setattr("stillhouse.store._FRAME_BYTES", 3 * one + 50)
    with Store(folder, segment_rows=4) as store:
        assert store.append_many(numbered(i, 50, 8) for i in range(10)) == 10
        assert [e.labels["index"] for e in store] == [str(i) for i in range(10)]
        assert store.describe()["segments"] == 1


def test_columns_are_read_without_the_rest(folder: Path) -> None:
    made = filled(folder, 4, sealed=2, tokens=3)
    with Store(folder, "r") as store:
        rows = list(store.stream(["labels", "id", "sampling", "account", "logprobs"], batch=1))
        assert [list(row) for row in rows] == [
            ["labels", "id", "sampling", "account", "logprobs"]
        ] * 4
        for row, exchange in zip(rows, made, strict=True):
            assert row == {name: getattr(exchange, name) for name in row}
        with pytest.raises(StoreError, match="column 'promt'"):
            store.stream(["promt"])


def test_what_is_appended_while_a_stream_is_read_is_not_in_it(folder: Path) -> None:
    made = filled(folder, 4, sealed=2)
    with Store(folder, segment_rows=2) as store:
        stream = iter(store)
        first = next(stream)
        store.append_many([numbered(i) for i in range(10, 15)])
        store.seal()
        assert [first, *stream] == made
        assert len(store) == 9


def test_describe_gives_plain_figures(folder: Path) -> None:
    with Store(folder) as store:
        empty = store.describe()
    assert (empty["rows"], empty["first"], empty["last"]) == (0, None, None)
    made = filled(folder, 5, sealed=3)
    with Store(folder, "r") as store:
        told = store.describe()
    assert json.loads(json.dumps(told)) == told
    assert told["bytes"] == sum(p.stat().st_size for p in folder.glob("0*"))
    assert {k: told[k] for k in ("path", "version", "segments", "rows", "open_rows", "torn")} == {
        "path": str(folder), "version": 1, "segments": 1, "rows": 5, "open_rows": 2, "torn": 0,
    }  # fmt: skip
    assert (told["first"], told["last"]) == (made[0].time.isoformat(), made[-1].time.isoformat())


def test_threads_may_append_at_once(folder: Path) -> None:
    with Store(folder, segment_rows=7) as store:
        workers = [
            threading.Thread(target=lambda s=s: [store.append(numbered(s + i)) for i in range(10)])
            for s in (0, 100, 200, 300)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert store.verify() == len(store) == 40


def test_digests_that_share_their_first_half_are_told_apart() -> None:
    known = SealedIds()
    assert b"\0" * 32 not in known
    known.add(bytes([1] * 8 + [n] * 24) for n in (5, 3, 9))
    known.add([bytes([0] * 8 + [3] * 24)])
    assert bytes([1] * 8 + [3] * 24) in known
    assert bytes([0] * 8 + [3] * 24) in known
    assert bytes([1] * 8 + [4] * 24) not in known


@pytest.mark.timed
def test_a_million_exchanges_open_in_under_a_second(folder: Path) -> None:
    made = [numbered(i) for i in range(1000)]
    with Store(folder) as store:
        store.append_many(made)
        store.seal()
        store.append(numbered(1000))
    (folder / "000002.open").rename(folder / "001001.open")
    for number in range(2, 1001):  # the same segment under a thousand names
        os.link(folder / "000001-1000.parquet", folder / f"{number:06d}-1000.parquet")
    for mode in ("r", "a"):
        took = []
        for _ in range(3):
            began = time.process_time()  # of this process alone: the machine may be busy
            with Store(folder, mode) as store:
                assert len(store) == 1_000_001
            took.append(time.process_time() - began)
        assert min(took) < 0.5


# ---- what a crash leaves ----


def test_a_last_record_cut_at_any_byte_is_dropped_and_counted(folder: Path) -> None:
    made = filled(folder, 3, tokens=2)
    whole = journal_of(folder).read_bytes()
    last = whole.rindex(b"\xffSHX")
    for cut in [*range(last + 1, last + 40), *range(last + 40, len(whole), 37), len(whole) - 1]:
        journal_of(folder).write_bytes(whole[:cut])
        with Store(folder, "r") as store:
            assert (store.torn, list(store)) == (1, made[:2])
        assert journal_of(folder).stat().st_size == cut, "a reader changes nothing"
        with Store(folder) as store:
            assert (store.torn, len(store), store.describe()["torn"]) == (1, 2, 1)
            assert list(store) == made[:2]
    with Store(folder) as store:
        assert store.torn == 0
        store.append(made[2])
    with Store(folder) as store:
        assert list(store) == made


@pytest.mark.parametrize("damage", ["zeros", "noise", "flipped"])
def test_a_last_record_that_never_reached_the_disk_is_dropped(folder: Path, damage: str) -> None:
    made = filled(folder, 3)
    whole = bytearray(journal_of(folder).read_bytes())
    last = whole.rindex(b"\xffSHX")
    if damage == "flipped":
        whole[-10] ^= 1
    else:
        size = len(whole) - last
        noise = np.random.default_rng(1).bytes(size)
        whole[last:] = bytes(size) if damage == "zeros" else noise
    journal_of(folder).write_bytes(whole)
    with Store(folder) as store:
        assert (store.torn, list(store)) == (1, made[:2])


def test_an_open_segment_that_had_hardly_begun_is_begun_again(folder: Path) -> None:
    made = filled(folder, 2, sealed=2)
    for left in (b"", b"still", b"stillhouse-log1\n", bytes(24)):
        journal_of(folder).write_bytes(left)
        with Store(folder, "r") as store:
            assert list(store) == made
        with Store(folder) as store:
            assert (store.torn, list(store)) == (0, made)


def test_damage_before_the_last_record_is_an_error_with_file_and_byte(folder: Path) -> None:
    filled(folder, 4)
    whole = journal_of(folder).read_bytes()
    frames = [match.start() for match in re.finditer(b"\xffSHX", whole)]
    for at in (frames[1], frames[1] + 5, frames[1] + 9, frames[1] + 13, frames[1] + 100):
        damaged = bytearray(whole)
        damaged[at] ^= 64
        journal_of(folder).write_bytes(damaged)
        for mode in ("r", "a"):
            with pytest.raises(StoreError) as caught:
                Store(folder, mode)
            assert caught.value.where == str(journal_of(folder))
            assert f"damaged frame at byte {frames[1]}, whole ones from {frames[2]}" in str(
                caught.value
            )
        assert journal_of(folder).read_bytes() == damaged, "nothing was cut away"


def test_text_that_looks_like_a_frame_does_not_pass_for_one(folder: Path) -> None:
    made = filled(folder, 1)
    inner = encode(made[0]).text
    mark = b"\xffSHX"
    assert mark not in inner
    whole = journal_of(folder).read_bytes()
    for noise in (mark + mark + b"\xff" * 30, mark + b"\0" * 20 + mark + b"\0" * 11):
        journal_of(folder).write_bytes(whole + noise)
        with Store(folder) as store:
            assert (store.torn, list(store)) == (1, made)


@pytest.mark.parametrize("missed", [False, True])
def test_a_reader_lists_again_when_a_segment_was_sealed_meanwhile(
    folder: Path, monkeypatch: pytest.MonkeyPatch, missed: bool
) -> None:
    made = filled(folder, 3)
    real = Store._listing

    def late(store: Store) -> Any:
        found = real(store)
        monkeypatch.setattr(Store, "_listing", real)
        with Store(folder) as writer:
            writer.seal()
        # a folder is not listed in one moment: both names of a segment may be missed
        return ({}, {}) if missed else found

    with Store(folder, "r") as store:
        monkeypatch.setattr(Store, "_listing", late)
        assert list(iter(store)) == made  # a list would ask for the length first


def test_a_seal_whose_rename_was_lost_is_done_again(folder: Path) -> None:
    made = filled(folder, 5, sealed=3)
    (folder / "000001-3.parquet").unlink()
    filled(folder / "again", 3)
    journal_of(folder / "again").rename(folder / "000001.open")
    with Store(folder, "r") as store:
        assert list(store) == made
    with Store(folder) as store:
        assert list(store) == made
        assert store.describe()["segments"] == 1
        assert store.append_many([*made, numbered(5)]) == 1
    assert journal_of(folder).name == "000002.open"


class Died(BaseException):
    """The process is dead: nothing it does from here on reaches the disk."""


@contextmanager
def dying(step: int, how: str) -> Iterator[list[int]]:
    """The calls that change a disk, of which number `step` (from 1) is the last, done or not."""
    done, patch = [0], pytest.MonkeyPatch()

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            done[0] += 1
            if done[0] < step:
                return real(*args, **kwargs)
            if done[0] == step and how == "after":
                real(*args, **kwargs)
            if done[0] == step and how == "within" and name == "pwrite":
                real(args[0], bytes(args[1])[: len(args[1]) // 2], args[2])
            raise Died

        return call

    for name in ("pwrite", "fsync", "ftruncate", "rename", "unlink", "mkdir"):
        patch.setattr(os, name, wrapped(name, getattr(os, name)))
    try:
        yield done
    except Died:
        done[0] = -1
    finally:
        patch.undo()


def test_a_crash_at_every_single_step_loses_nothing_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # only a power cut would tell
    made, crashes = [numbered(i, 3, 2) for i in range(6)], 0
    for how in ("before", "within", "after"):
        for step in range(1, 1000):
            path, acknowledged = tmp_path / f"{how}-{step}", 0
            with dying(step, how) as done, Store(path, segment_rows=3) as store:
                for some in (made[0:1], made[1:3], made[3:4]):
                    store.append_many(some)
                    acknowledged += len(some)
                store.seal()
            crashes += done[0] < 0
            with Store(path, segment_rows=3) as store:
                kept = list(store)
                assert kept == made[: len(kept)]
                assert len(kept) >= acknowledged, f"lost after dying {how} step {step}"
                assert store.torn <= 1
                store.append_many(made)
                assert list(store) == made
            assert not list(path.glob("*.tmp"))
            assert len(list(path.glob("*.open"))) == 1
            if done[0] >= 0:
                break
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
    assert crashes > 90


# ---- a full disk ----


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size`: the disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_refuses_clearly_and_keeps_what_was_acknowledged(folder: Path) -> None:
    made = [numbered(i, 50, 20) for i in range(40)]
    with Store(folder) as store:
        kept = 0
        with files_of_at_most(100_000):
            while True:
                try:
                    store.append(made[kept])
                except StoreError as problem:
                    told = str(problem)
                    break
                kept += 1
            assert "appending failed" in told
            assert "what was acknowledged is safe" in told
            assert Journal(journal_of(folder)).torn == 0, "half a frame was left there"
            assert 5 < kept < 40
            assert list(store) == made[:kept]
            with Store(folder, "r") as reader:
                assert list(reader) == made[:kept]
        store.append_many(made[kept:])  # there is room again
        assert list(store) == made
    with Store(folder) as store:
        assert (store.torn, list(store)) == (0, made)


def test_a_full_disk_while_sealing_leaves_the_open_segment(folder: Path) -> None:
    made = [numbered(i, 50, 20) for i in range(10)]
    with Store(folder, segment_rows=10) as store:
        store.append_many(made)
        with files_of_at_most(8_000):
            with pytest.raises(StoreError, match="sealing a segment failed"):
                store.seal()
            with pytest.raises(StoreError, match="appending failed"):
                store.append(numbered(10))
        assert not list(folder.glob("*.tmp"))
        assert list(store) == made
        store.append(numbered(10))
        assert store.describe()["segments"] == 1
        assert list(store) == [*made, numbered(10)]
    with Store(folder, "r") as store:
        assert store.verify() == 11


def test_a_store_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(StoreError, match="opening it to append failed"):
            Store(path)
        with pytest.raises(StoreError, match="no store is there"):
            Store(path, "r")


def test_an_open_segment_that_cannot_be_read_is_refused(folder: Path) -> None:
    filled(folder, 1)
    journal_of(folder).unlink()
    (folder / "000001.open").mkdir()
    for mode, doing in (("r", "reading"), ("a", "reading")):
        with pytest.raises(StoreError, match=f"{doing} failed"):
            Store(folder, mode)


def test_a_rename_that_fails_leaves_the_open_segment_in_use(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [numbered(i) for i in range(4)]

    def refuse(*paths: Any) -> None:
        raise OSError(28, "No space left on device")

    with Store(folder) as store:
        store.append_many(made[:2])
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", refuse)
            with pytest.raises(StoreError, match="No space left on device"):
                store.seal()
        store.append(made[2])
        store.seal()
        store.append(made[3])
        assert list(store) == made
    with Store(folder) as store:
        assert list(store) == made


def test_an_interrupted_seal_leaves_a_store_that_is_closed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [numbered(i) for i in range(2)]
    real = os.rename

    def interrupted(*paths: Any) -> None:
        real(*paths)
        raise KeyboardInterrupt

    with Store(folder) as store:
        store.append_many(made)
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", interrupted)
            with pytest.raises(KeyboardInterrupt):
                store.seal()
        with pytest.raises(StoreError, match="not open to append"):
            store.append(numbered(2))
        assert list(store) == made
    with Store(folder) as store:
        store.append(numbered(2))
        assert list(store) == [*made, numbered(2)]


# ---- several processes ----


def test_a_second_writer_is_refused_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillhouse.journal._LOCK_PATIENCE_SECONDS", 0.05)
    with Store(folder) as store:
        store.append(numbered(0))
        with pytest.raises(StoreError, match=rf"another writer \(process {os.getpid()}\)"):
            Store(folder)
        code = (
            "import sys; from stillhouse import journal, store\n"
            "journal._LOCK_PATIENCE_SECONDS = 0.05; store.Store(sys.argv[1])"
        )
        other = subprocess.run(
            [sys.executable, "-c", code, folder], capture_output=True, text=True, cwd=ROOT
        )
        assert f"in use by another writer (process {os.getpid()})" in other.stderr
        store.append(numbered(1))
    with Store(folder) as store:
        assert len(store) == 2


def test_a_writer_waits_for_a_reader_that_is_just_reading(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillhouse.journal._LOCK_PATIENCE_SECONDS", 60)
    filled(folder, 1)
    with quiet(folder, own=False) as still:
        assert still
        opening = threading.Thread(target=lambda: Store(folder).close())
        opening.start()
        time.sleep(0.05)
        assert opening.is_alive()
    opening.join(60)
    assert not opening.is_alive()


def test_a_reader_beside_a_writer_sees_what_is_acknowledged_and_no_more(folder: Path) -> None:
    made = [numbered(i) for i in range(3)]
    with Store(folder) as store, Store(folder, "r") as reader:
        store.append_many(made[:2])
        path = journal_of(folder)
        acknowledged = path.read_bytes()
        store.append(made[2])
        whole = path.read_bytes()
        # the moment between the frame and its acknowledgement
        path.write_bytes(acknowledged[:24] + whole[24:])
        assert (len(reader), list(reader), reader.torn) == (2, made[:2], 0)
        path.write_bytes(acknowledged[:24] + whole[24:-9])
        with Store(folder, "r") as another:
            assert (len(another), another.torn) == (2, 0)
        path.write_bytes(whole)
        assert list(reader) == made


def test_a_reader_follows_a_writer_through_its_sealing(folder: Path) -> None:
    stop, counts = threading.Event(), list[int]()
    with Store(folder, segment_rows=3) as store:

        def write() -> None:
            index = 0
            while not stop.is_set():
                store.append(numbered(index))
                index += 1

        writer = threading.Thread(target=write)
        writer.start()
        try:
            with Store(folder, "r") as reader:
                until = time.monotonic() + 30
                while time.monotonic() < until and (len(counts) < 40 or counts[-1] < 30):
                    seen = [int(row["labels"]["index"]) for row in reader.stream(["labels"])]
                    assert seen == list(range(len(seen)))
                    counts.append(len(seen))
        finally:
            stop.set()
            writer.join()
        assert counts == sorted(counts)
        assert store.describe()["segments"] > 5


def test_a_closed_store_and_a_reader_refuse_to_write(folder: Path) -> None:
    filled(folder, 1)
    store = Store(folder)
    store.close()
    store.close()
    assert len(store) == 1
    with Store(folder, "r") as reader:
        for one in (store, reader):
            with pytest.raises(StoreError, match="not open to append"):
                one.append(numbered(1))
            with pytest.raises(StoreError, match="not open to append"):
                one.seal()


# ---- what is no store, or another's ----


def test_an_unknown_mode_is_refused(folder: Path) -> None:
    with pytest.raises(StoreError, match="mode 'w'"):
        Store(folder, "w")  # pyright: ignore


def test_a_folder_of_other_things_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"'thesis\.txt' lies there, and no store\.json"):
        Store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_reading_where_nothing_is_says_so(folder: Path) -> None:
    with pytest.raises(StoreError, match="no store is there"):
        Store(folder, "r")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"format": "stillhouse exchanges", "version": 2}', "('stillhouse exchanges', 2)"),
        ('{"format": "other", "version": 1}', "('other', 1)"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ("{}", "cannot be read"),
    ],
)
def test_another_kind_of_folder_is_refused(folder: Path, text: str, found: str) -> None:
    filled(folder, 1)
    (folder / "store.json").write_text(text)
    for mode in ("r", "a"):
        with pytest.raises(StoreError) as caught:
            Store(folder, mode)
        assert found in caught.value.found


@pytest.mark.parametrize("head", [b"stillhouse-log2\n", b"PAR1" + b"\0" * 20, b"{}", b"\0" * 40])
def test_an_open_segment_of_another_kind_is_refused(folder: Path, head: bytes) -> None:
    filled(folder, 1)
    data = journal_of(folder).read_bytes()
    journal_of(folder).write_bytes(head + data[len(head) :] if len(head) > 3 else head)
    for mode in ("r", "a"):
        with pytest.raises(StoreError, match="begins with"):
            Store(folder, mode)


def rewritten(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda t: t.replace_schema_metadata({"stillhouse.exchange": "2"}), "format version 2"),
        (lambda t: t.replace_schema_metadata({}), "format version none"),
        (lambda t: t.slice(1), "1 rows"),
    ],
)
def test_a_sealed_segment_of_another_kind_is_refused(
    folder: Path, change: Callable[[pa.Table], pa.Table], found: str
) -> None:
    filled(folder, 2, sealed=2)
    rewritten(folder / "000001-2.parquet", change)
    with Store(folder, "r") as store, pytest.raises(StoreError, match=found):
        list(store)


def test_a_damaged_sealed_segment_is_refused(folder: Path) -> None:
    filled(folder, 2, sealed=2)
    path = folder / "000001-2.parquet"
    path.write_bytes(path.read_bytes()[:-30])
    with Store(folder, "r") as store:
        for read in (list, Store.keys, Store.verify, Store.describe):
            with pytest.raises(StoreError, match=r"000001-2\.parquet"):
                read(store)


def test_a_foreign_parquet_file_in_the_folder_is_refused(folder: Path) -> None:
    filled(folder, 1)
    (folder / "table.parquet").write_bytes(b"")
    with pytest.raises(StoreError, match=r"foreign file table\.parquet"):
        Store(folder, "r")


def test_a_missing_segment_is_named(folder: Path) -> None:
    with Store(folder, segment_rows=1) as store:
        for index in range(4):
            store.append(numbered(index))
    (folder / "000002-1.parquet").unlink()
    for mode in ("r", "a"):
        with pytest.raises(StoreError, match="segment 000002 is missing"):
            Store(folder, mode)


def test_content_that_was_changed_is_found_by_verifying(folder: Path) -> None:
    filled(folder, 2, sealed=2)

    def forge(table: pa.Table) -> pa.Table:
        index = table.schema.get_field_index("model")
        return table.set_column(index, "model", pa.array(["forged"] * len(table)))

    rewritten(folder / "000001-2.parquet", forge)
    with Store(folder, "r") as store, pytest.raises(StoreError, match="not that of the content"):
        store.verify()


def test_an_exchange_that_is_there_twice_is_found_by_verifying(folder: Path) -> None:
    filled(folder, 2, sealed=2)
    journal_of(folder).rename(folder / "000003.open")
    shutil.copy(folder / "000001-2.parquet", folder / "000002-2.parquet")
    with Store(folder, "r") as store, pytest.raises(StoreError, match="kept twice"):
        store.verify()


def test_an_open_segment_changed_behind_the_writers_back_is_not_sealed(folder: Path) -> None:
    with Store(folder) as store:
        store.append_many([numbered(0), numbered(1)])
        store.append(numbered(2))
        path = journal_of(folder)
        os.truncate(path, path.stat().st_size - 5)
        with pytest.raises(StoreError, match="holds 2 entries"):
            store.seal()


def test_the_arrow_schema_holds_every_declared_field() -> None:
    assert arrow_schema().names[2:] == [name for name, _, _ in schema_fields(Exchange)]
    assert str(arrow_schema().field("time").type) == "timestamp[us, tz=UTC]"


def test_a_journal_gives_entries_with_their_times(folder: Path) -> None:
    made = filled(folder, 3)
    entries = list(Journal(journal_of(folder)).entries())
    assert [entry.time for entry in entries] == [e.time for e in made]
    assert sum(entry.size for entry in entries) + 3 * 16 + 24 == journal_of(folder).stat().st_size


def test_a_source_that_fails_leaves_the_store_as_it_was(folder: Path) -> None:
    with Store(folder) as store, pytest.raises(OverflowError):
        store.append_many(numbered(i if i < 3 else 2**70) for i in range(5))
    with Store(folder) as store:
        assert len(store) == 0
