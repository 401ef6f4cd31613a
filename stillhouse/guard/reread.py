"""Events' log lines again, while the logs are there: for exports, and for a template's skeleton.

In: a scan's folder and (file, offset) of events, as its table has them. Out: the records, or the
exchanges, in the order they are asked for by file and offset. A log that moved, or is no longer
what was read, is a DataError: another line is never given in the place of the one that was meant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from stillhouse import log_files
from stillhouse.errors import DataError
from stillhouse.exchange import Exchange
from stillhouse.guard.catalogue import Catalogue
from stillhouse.guard.known import Log, is_still
from stillhouse.guard.mapping import MappingSettings
from stillhouse.guard.sources import Piece, read
from stillhouse.log_exchanges import exchange_of
from stillhouse.log_records import BadLine, LogRecord
from stillhouse.settings import make

__all__ = ["read_back", "records_at"]


def read_back(
    folder: Path,
    refs: Iterable[tuple[int, int]],
    logs: Iterable[Path] = (),
    left_out: Counter[str] | None = None,
) -> Iterator[Exchange]:
    """The exchanges of events.

    Args:
        folder: the scan's.
        refs: (file, offset) of each event.
        logs: where logs lie now, if they were moved.
        left_out: where to count, by reason, requests that make no exchange, such as failed ones
            without an answer; None raises at the first.

    Raises:
        DataError: a log is not there or changed, or a line makes no exchange.
    """
    for file, offset, record in records_at(folder, refs, logs):
        try:
            yield exchange_of(record)
        except BadLine as problem:
            if left_out is not None:
                left_out[str(problem)] += 1
                continue
            raise DataError(
                f"log {file}, offset {offset}", str(problem), "a request with its answer",
                "Export from logs that keep both",
            ) from None  # fmt: skip


def records_at(
    folder: Path,
    refs: Iterable[tuple[int, int]],
    logs: Iterable[Path] = (),
    unread: set[int] | None = None,
) -> Iterator[tuple[int, int, LogRecord]]:
    """(file, offset, record) of events, by file and offset; each once.

    Args:
        folder: the scan's.
        refs: (file, offset) of each event.
        logs: where logs lie now, if they were moved.
        unread: where to note the numbers of logs that are not there or changed, which are passed
            over; None raises at the first.

    Raises:
        DataError: a log is not there or changed.
    """
    catalogue, given = Catalogue.open(folder, None), list(logs)
    for file, group in groupby(sorted(set(refs)), key=lambda ref: ref[0]):
        if file >= len(catalogue.logs):
            raise DataError(
                str(folder), f"no log {file}", f"one of {len(catalogue.logs)}",
                "Ask for events of this scan",
            )  # fmt: skip
        log = catalogue.logs[file]
        offsets = [offset for _, offset in group]
        try:
            for offset, record in _in_log(log, _where(log, given), offsets):
                yield file, offset, record
        except DataError:
            if unread is None:
                raise
            unread.add(file)


def _where(log: Log, given: list[Path]) -> Path:
    name = Path(log.path).name
    likely = sorted(given, key=lambda path: path.name != name)  # moved logs mostly keep their names
    for path in [Path(log.path), *likely]:
        if path.exists() and is_still(log, path):
            return path
    raise DataError(
        log.path, "the log is not there, or is not the one that was read", "the log as it was",
        "Name where it lies now with --log; plain, gzip and zstd are the same to us",
    )  # fmt: skip


def _in_log(log: Log, path: Path, offsets: list[int]) -> Iterator[tuple[int, LogRecord]]:
    mapping = make(MappingSettings, log.mapping, where=log.path) if log.mapping else None
    if log.kind != "lines" or log_files.compression(path) is not None:
        yield from _wanted(Piece(0, path, log.kind, mapping=mapping, ended=True), offsets)
        return
    with log_files.opened(path) as file:
        stops = [o + len(log_files.line_at(file, o)) + 1 for o in offsets]
    for offset, stop in zip(offsets, stops, strict=True):
        yield from _wanted(Piece(0, path, "lines", offset, stop, mapping), [offset])


def _wanted(piece: Piece, offsets: list[int]) -> Iterator[tuple[int, LogRecord]]:
    left = iter(offsets)
    wanted = next(left, None)
    for found in read(piece):
        if wanted is None:
            return
        if found.offset > wanted:
            break
        if found.offset == wanted and isinstance(found.record, LogRecord):
            yield wanted, found.record
            wanted = next(left, None)
    if wanted is not None:
        raise DataError(
            str(piece.path), f"no event at {wanted}", "the log as it was read", "Name the right log"
        )
