"""The events of a scan as numpy columns, in an order that no name decides.

    events/part-*.parquet -> Traffic

In: a folder of parts with the schema `events.EVENTS`. Out: columns sorted by account and time.
Accounts are numbered by a fingerprint of what they sent, never by their names, so that renaming
them, or reading the events in another order, changes no number that follows. Sketches are folded
into bands part by part. Nothing here judges.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.errors import DataError, EvidenceError
from stillhouse.guard.events import EVENTS, SKETCH_SLOTS
from stillhouse.guard.hashing import Hashes, Ints, mix, mixed_with, run_starts
from stillhouse.guard.parts import part_paths

__all__ = ["BANDS", "HOUR", "Traffic", "read_traffic"]

HOUR = 3_600_000_000
"""Microseconds."""
BANDS = 8
"""Bands of the sketch, of four slots each: texts that share a half of their n-grams share a band
with probability 1 - (1 - 1/16)**8 = 0.40, texts that share a twentieth with 5e-5."""

_HASHES = (
    "organisation", "whole", "head", "tail", "skeleton", "system", "tools", "address", "network",
    "payment", "device", "channel",
)  # fmt: skip
_NUMBERS = {
    "input_tokens": -1, "output_tokens": -1, "turns": -1, "shape": 0, "capability": 0,
    "cost_usd": -1.0,
}  # fmt: skip
_EMPTY_DAYS = 3
_NO_TIME = np.iinfo(np.int64).min
_EMPTY_SLOT = np.uint32(0xFFFFFFFF)


@dataclass(frozen=True)
class Traffic:
    """Events sorted by account and time; all arrays of `columns` have the same length."""

    names: npt.NDArray[Any]
    """(accounts,) as the log names them."""
    models: tuple[str, ...]
    """In alphabetical order."""
    account: npt.NDArray[np.int32]
    """(events,) index into `names`."""
    time: Ints
    """(events,) microseconds since 1970, UTC."""
    columns: dict[str, npt.NDArray[Any]]
    """Hashes (0: nothing), numbers (-1: not recorded), `model`, `signup`, `bands`, `file`,
    `offset`, and `row`, where the event stands in the parts."""
    fingerprint: Hashes
    """(events,) of what was sent and when; orders and thins events without looking at names."""
    parts: tuple[tuple[Path, int], ...]
    """Files that were read, and events in each; `row` counts through all of them."""
    strays: int = 0
    """Events that lie days apart from all others and were set aside."""
    older: int = 0
    """Events before the days that were asked for."""

    def __len__(self) -> int:
        """How many events."""
        return len(self.account)

    @cached_property
    def starts(self) -> Ints:
        """(accounts,) first event of each account."""
        return run_starts(self.account)

    @cached_property
    def events_of(self) -> Ints:
        """(accounts,) events of each account."""
        return np.diff(np.append(self.starts, len(self)))

    @cached_property
    def span(self) -> tuple[int, int]:
        """First and last time, in microseconds."""
        return int(self.time.min()), int(self.time.max())

    def sketches(self, events: Ints) -> npt.NDArray[np.uint32]:
        """(events, SKETCH_SLOTS) of some events, read from the parts again; all bits set where
        there is nothing.

        Raises:
            DataError: the parts changed since they were read.
        """
        rows = self.columns["row"][events]
        out = np.zeros((len(events), SKETCH_SLOTS), dtype=np.uint32)
        first = 0
        for path, count in self.parts:
            at = np.flatnonzero((rows >= first) & (rows < first + count))
            if len(at):
                column = pq.read_table(path, columns=["sketch"])["sketch"]
                if len(column) != count:
                    raise DataError(
                        str(path), "another number of events than before", "parts that stay as "
                        "they are while a scan runs", "Scan again once the ingest has finished",
                    )  # fmt: skip
                taken = column.take(pa.array(rows[at] - first)).combine_chunks()
                out[at] = _slots(taken)
            first += count
        return out

    def first_known(self, name: str) -> Hashes:
        """(accounts,) the most frequent recorded value of a column that hardly changes."""
        values, out = self.columns[name], np.zeros(len(self.names), dtype=np.uint64)
        known = values != 0
        if known.any():
            account, value = self.account[known], values[known]
            order = np.lexsort((value, account))
            account, value = account[order], value[order]
            pair = run_starts(account.astype(np.uint64) ^ mix(value))
            count = np.diff(np.append(pair, len(account)))
            best = np.lexsort((value[pair], count, account[pair]))  # the last one wins
            out[account[pair][best]] = value[pair][best]
        return out


def read_traffic(events: Path, days: float | None = None) -> Traffic:
    """The events of a folder.

    Args:
        events: the folder of parts that an ingest wrote.
        days: only those of the last so many days; all by default.

    Raises:
        DataError: no parts, a part with other columns, or a time that is missing.
        EvidenceError: no events.
    """
    files = part_paths(events)
    times = [_times(path) for path in files]
    sizes = tuple((path, len(time)) for path, time in zip(files, times, strict=True))
    time = np.concatenate(times)
    if not len(time):
        raise EvidenceError(
            f"events {events}", "no events", "at least one", "Look at what the ingest rejected"
        )
    begin, end = _bulk(time)
    strays = int(((time < begin) | (time > end)).sum())
    begin = begin if days is None else max(begin, end - int(days * 24 * HOUR))
    inside = (time >= begin) & (time <= end)
    del time, times  # of all that the folder holds, while the days that are asked for are loaded
    parts, first = [], 0
    for path, count in sizes:  # a folder holds more days than are asked for, and than memory does
        wanted = inside[first : first + count]
        first += count
        if wanted.any():
            parts.append(_read_part(path, wanted))
    account, names = _united([part.pop("account") for part in parts])
    model, models = _united([part.pop("model") for part in parts])
    columns = {}
    for name in list(parts[0]):
        pieces = [part.pop(name) for part in parts]
        columns[name] = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    columns["row"] = np.flatnonzero(inside).astype(np.uint32)
    older = int((~inside).sum()) - strays
    del inside
    made = _canonical(account, names, model, models, columns, sizes)
    return replace(made, strays=strays, older=older)


def _bulk(time: Ints) -> tuple[int, int]:
    """First and last time without strays: days with a thousandth of the events or less, with three
    empty ones between them and the rest. A clock that was wrong once would else stretch a week to
    years, and every model would be new in it.
    """
    day = time // (24 * HOUR)
    counts = np.bincount(day - day.min())
    used = np.flatnonzero(counts)
    before = np.cumsum(counts[used])
    few = len(time) // 1000
    far = np.flatnonzero(np.diff(used) > _EMPTY_DAYS)
    early, late = far[before[far] <= few], far[len(time) - before[far] <= few]
    first = used[early[-1] + 1] if len(early) else used[0]
    last = used[late[0]] if len(late) else used[-1]
    inside = time[(day >= day.min() + first) & (day <= day.min() + last)]
    return int(inside.min()), int(inside.max())


def _times(path: Path) -> Ints:
    """When the events of one part were; the part's columns are looked at, too."""
    return _read(path, ["time"])["time"].cast(pa.int64()).to_numpy()


def _read(
    path: Path, columns: list[str] | None = None, wanted: npt.NDArray[np.bool_] | None = None
) -> pa.Table:
    """Columns of one part (all by default), of all rows or of those that are wanted."""
    known = ["account", "time", "model", "sketch", "signup", "file", "offset"]
    known += [*_HASHES, *_NUMBERS]
    try:
        stands = pq.read_schema(path)
        wrong = [
            name for name in known
            if name not in stands.names or stands.field(name).type != EVENTS.field(name).type
        ]  # fmt: skip
        table = None if wrong else pq.read_table(path, columns=columns or known)
        if table is not None and wanted is not None and not wanted.all():
            table = table.filter(pa.array(wanted))
    except (OSError, pa.ArrowInvalid) as problem:
        raise DataError(
            str(path), " ".join(str(problem).split())[:200], "a part of an events table",
            "Read the logs again",
        ) from None  # fmt: skip
    if table is None:
        raise DataError(
            str(path), f"columns missing or of another type: {', '.join(wrong)}",
            "the columns of guard/events.py", "Read the logs again with this release",
        )  # fmt: skip
    if any(table[name].null_count for name in ("time", "account") if name in table.column_names):
        raise DataError(
            str(path), "an event without account or time", "both in every row",
            "Read the logs again: an ingest rejects such lines",
        )  # fmt: skip
    return table


def _read_part(path: Path, wanted: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """The columns of the wanted events of one part, sketches folded into bands."""
    table = _read(path, wanted=wanted)
    out: dict[str, Any] = {
        "account": table["account"].combine_chunks(),
        "model": table["model"].combine_chunks(),
        "time": table["time"].cast(pa.int64()).to_numpy(),
        "signup": table["signup"].cast(pa.int64()).fill_null(_NO_TIME).to_numpy(),
        "bands": _bands(table["sketch"]),
    }
    for name in (*_HASHES, "file", "offset"):
        out[name] = table[name].fill_null(0).to_numpy()
    for name, nothing in _NUMBERS.items():
        out[name] = table[name].fill_null(nothing).to_numpy()
    return out


def _slots(sketch: pa.FixedSizeListArray) -> npt.NDArray[np.uint32]:
    """(rows, SKETCH_SLOTS); the mark of an empty slot all over where there is no text, which a log
    says by zeros or (not read back by pyarrow 25, apache/arrow 35692) by nothing.
    """
    there = np.asarray(sketch.is_valid())
    out = np.full((len(sketch), SKETCH_SLOTS), _EMPTY_SLOT, dtype=np.uint32)
    flat = sketch.drop_null().flatten().fill_null(int(_EMPTY_SLOT))
    out[there] = np.asarray(flat).reshape(-1, SKETCH_SLOTS)
    out[~out.any(axis=1)] = _EMPTY_SLOT
    return out


def _bands(sketch: pa.ChunkedArray) -> Hashes:
    """(events, BANDS) hashes of four slots each; 0 where there is no text or a slot is empty."""
    rows = SKETCH_SLOTS // BANDS
    pieces: list[Hashes] = [np.zeros((0, BANDS), dtype=np.uint64)]
    for chunk in sketch.chunks:
        slots = _slots(chunk).reshape(-1, BANDS, rows)
        folded = np.zeros(slots.shape[:2], dtype=np.uint64)
        for row in range(rows):
            folded = mix((folded << np.uint64(1)) ^ slots[:, :, row] ^ np.uint64(row + 1))
        folded[(slots == _EMPTY_SLOT).any(axis=2)] = 0
        pieces.append(folded)
    return np.concatenate(pieces)


def _united(pieces: list[pa.Array]) -> tuple[npt.NDArray[np.int32], npt.NDArray[Any]]:
    """Codes into one alphabetical list of words, over parts with dictionaries of their own."""
    arrays = [p if isinstance(p, pa.DictionaryArray) else p.dictionary_encode() for p in pieces]
    joined = pa.chunked_array(arrays).unify_dictionaries().combine_chunks()
    if isinstance(joined, pa.ChunkedArray):
        joined = joined.chunk(0)
    words = joined.dictionary.fill_null("").to_pylist()
    codes = joined.indices.fill_null(len(words)).to_numpy(zero_copy_only=False)
    words = np.array([*words, ""], dtype=object)
    used, codes = np.unique(codes, return_inverse=True)
    order = np.argsort(words[used], kind="stable")
    rank = np.empty(len(order), dtype=np.int32)
    rank[order] = np.arange(len(order))
    return rank[codes], words[used][order]


def _canonical(
    account: npt.NDArray[np.int32],
    names: npt.NDArray[Any],
    model: npt.NDArray[np.int32],
    models: npt.NDArray[Any],
    columns: dict[str, npt.NDArray[Any]],
    parts: tuple[tuple[Path, int], ...],
) -> Traffic:
    """Accounts numbered by fingerprint, events sorted by account, time and fingerprint."""
    time = columns.pop("time")
    print_of = mix(time.astype(np.uint64) ^ (model.astype(np.uint64) << np.uint64(56)))
    for name in ("whole", "head", "system", "payment", "address", "device"):
        print_of = mix(print_of ^ mixed_with(columns[name], len(name)))
    size = columns["input_tokens"].astype(np.int64) * 65_537 + columns["output_tokens"]
    print_of = mix(print_of ^ size.astype(np.uint64))
    order = np.argsort(account, kind="stable")
    heads = run_starts(account[order])
    with np.errstate(over="ignore"):
        sums = mix(np.add.reduceat(print_of[order], heads))
    by_print = np.argsort(sums, kind="stable")  # ties: streams that are equal event by event
    rank = np.empty(len(names), dtype=np.int32)
    rank[by_print] = np.arange(len(names))
    account = rank[account]
    order = np.lexsort((print_of, time, account))
    columns["model"] = model
    for name in list(columns):
        columns[name] = columns[name][order]
    return Traffic(
        names=names[by_print], models=tuple(map(str, models)), account=account[order],
        time=time[order], columns=columns, fingerprint=print_of[order], parts=parts,
    )  # fmt: skip
