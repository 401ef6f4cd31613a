"""One piece of a log to one part of the events table: the work that processes share.

In: a piece, the key, where parts are staged. Out: a Parquet file of events, still with duplicates,
and what the ingest needs to know of it. Memory: one block of lines and one row group, whatever the
log holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.errors import DataError
from stillhouse.guard.events import EVENTS
from stillhouse.guard.rows import Rows
from stillhouse.guard.sources import Found, Piece, Unfinished, read
from stillhouse.log_records import BadLine, NotAChat

__all__ = ["PieceRead", "read_all", "write_part"]

_GROUP_ROWS = 65_536
_KEPT_REJECTS = 1000
_HOUR_US = 3_600_000_000


@dataclass(slots=True)
class PieceRead:
    """What came of a piece."""

    piece: Piece
    part: Path
    requests: npt.NDArray[np.uint64]
    """The `request` column of the part."""
    read: int
    """Where the next reading begins."""
    seen: int = 0
    """Where a last line that waits for its rest ends, as yet."""
    rejects: Counter[str] = field(default_factory=Counter)
    places: list[tuple[int, int, str]] = field(default_factory=list)
    """(offset, bytes, reason) of the first of them."""
    notes: Counter[str] = field(default_factory=Counter)
    first: int | None = None
    last: int | None = None


def read_all(work: list[Piece], key: bytes, staging: Path, workers: int) -> Iterator[PieceRead]:
    """What came of each piece, in order, read by so many processes (1: this one)."""
    jobs = [(piece, staging / f"{number:05d}.parquet") for number, piece in enumerate(work)]
    if workers == 1 or len(work) <= 1:
        rows = Rows(key)
        for piece, part in jobs:
            yield _read_piece(piece, part, rows)
        return
    # spawned: a fork would copy locks that threads of pyarrow hold
    pool = ProcessPoolExecutor(min(workers, len(work)), get_context("spawn"), _begin, (key,))
    try:
        yield from pool.map(_job, jobs)
    except BrokenProcessPool:
        raise DataError(
            "reading logs", "a process that reads them was killed, for want of memory perhaps",
            "2 GiB and a processor for each", "Free memory, or read with fewer workers; a script "
            "of your own needs `if __name__ == '__main__':` around its calls",
        ) from None  # fmt: skip
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_rows: Rows | None = None


def _begin(key: bytes) -> None:
    global _rows
    pa.set_cpu_count(1)
    _rows = Rows(key)


def _job(job: tuple[Piece, Path]) -> PieceRead:
    assert _rows is not None
    return _read_piece(*job, _rows)


def _read_piece(piece: Piece, part: Path, rows: Rows) -> PieceRead:
    out = PieceRead(piece, part, np.zeros(0, np.uint64), piece.start)
    batches: list[pa.RecordBatch] = []
    requests: list[npt.NDArray[np.uint64]] = []
    rows.notes = out.notes
    with _writer(part) as writer:
        before, end = 0, piece.stop
        for found in read(piece):
            if not isinstance(found.record, BadLine):
                now = found.record.time_us
                if now < before - _HOUR_US:
                    out.notes["clock went back by over an hour"] += 1
                before = now
                out.first = now if out.first is None else min(now, out.first)
                out.last = now if out.last is None else max(now, out.last)
                rows.add(found.record, piece.file, found.offset)
                if rows.full:
                    batches.append(rows.batch())
                    if sum(map(len, batches)) >= _GROUP_ROWS:
                        requests.append(_write(writer, batches))
            elif isinstance(found.record, Unfinished):
                out.notes[str(found.record)] += 1
                end, out.seen = found.offset, found.offset + found.size
                break
            else:
                _note_bad(found, found.record, out)
            out.read = found.offset + max(found.size, 1)
        out.read = out.read if end is None else end
        if len(rows):
            batches.append(rows.batch())
        if batches:
            requests.append(_write(writer, batches))
    if requests:
        out.requests = np.concatenate(requests)
    return out


def _note_bad(found: Found, why: BadLine, out: PieceRead) -> None:
    reason = str(why)
    if isinstance(why, NotAChat):
        out.notes[reason] += 1
        return
    out.rejects[reason] += 1
    if len(out.places) < _KEPT_REJECTS:
        out.places.append((found.offset, found.size, reason))


def _writer(path: Path) -> pq.ParquetWriter:
    names = [name for name in EVENTS.names if pa.types.is_dictionary(EVENTS.field(name).type)]
    return pq.ParquetWriter(
        path, EVENTS, compression="zstd", compression_level=1,
        use_dictionary=[  # pyright: ignore[reportArgumentType]  # a list is meant
            *names, "organisation", "parameters", "system", "tools", "network", "payment",
        ],
    )  # fmt: skip


def _write(writer: pq.ParquetWriter, batches: list[pa.RecordBatch]) -> npt.NDArray[np.uint64]:
    """The `request` column of what was written; the batches are forgotten."""
    table = pa.Table.from_batches(batches, schema=EVENTS).unify_dictionaries().combine_chunks()
    batches.clear()
    writer.write_table(table, row_group_size=_GROUP_ROWS)
    return table.column("request").to_numpy()


def write_part(source: Path, path: Path, keep: npt.NDArray[np.bool_]) -> None:
    """Write those rows of a part that are to be kept, a row group in memory at a time."""
    at = 0
    with pq.ParquetFile(source) as file, _writer(path) as writer:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            chosen = keep[at : at + table.num_rows]
            at += table.num_rows
            writer.write_table(table.filter(pa.array(chosen)))
