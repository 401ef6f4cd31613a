"""The records of one log, whatever kind of file or folder it is, with the place of each.

In: a path, its kind, and where to begin. Out: (offset, record or the reason why there is none,
bytes). Offsets are bytes into the uncompressed file for lines and CSV, row numbers for Parquet,
positions for a store. Lines are read in pieces that other processes can take.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stillhouse import log_files
from stillhouse.errors import DataError
from stillhouse.exchange import FORMAT_VERSION, Exchange, schema_fields
from stillhouse.guard.mapping import MappingSettings, mapped
from stillhouse.log_formats import read_record
from stillhouse.log_records import BadLine, LogRecord, parse
from stillhouse.record import plain
from stillhouse.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Found", "Piece", "Unfinished", "files_of", "kind_of", "pieces", "read"]

_PIECE_BYTES = 32 * 2**20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


UNFINISHED = "unfinished last line"


class Unfinished(BadLine):
    """The last line of a log that is being written: it counts when it is whole."""


class Found(NamedTuple):
    """A record, or why there is none."""

    offset: int
    record: LogRecord | BadLine
    size: int
    """Bytes of the line; 0 where a record is no line."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of one log."""

    file: int
    """Index in the scan's list of files."""
    path: Path
    kind: str
    """lines, csv, parquet or store."""
    start: int = 0
    stop: int | None = None
    mapping: MappingSettings | None = None
    max_line: int = log_files.MAX_LINE_BYTES
    ended: bool = False
    """Of CSV: whether a last row without a newline is whole, because the log does not grow."""


def files_of(logs: Iterable[Path]) -> Iterator[Path]:
    """The files and stores that the named paths stand for, folders sorted.

    Raises:
        DataError: a path that is not there, or a folder without files.
    """
    for path in logs:
        if path.is_dir() and not (path / "store.json").exists():
            inside = (p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
            found = sorted(inside)
            if not found:
                raise DataError(str(path), "no files", "log files, or a store", "Check the path")
            yield from found
        elif path.exists():
            yield path
        else:
            raise DataError(str(path), "no such file", "a log file or a store", "Check the path")


def kind_of(path: Path, mapping: MappingSettings | None) -> str:
    """Which kind of log a path is.

    Raises:
        DataError: a folder that is no store, or a kind that only a mapping makes readable.
    """
    if path.is_dir():
        return "store"
    if mapping is not None:
        return "lines" if mapping.format == "jsonl" else mapping.format
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as problem:
        raise DataError(
            str(path), f"cannot be read ({problem.strerror or problem})", "a log file or a store",
            "Check the path",
        ) from problem  # fmt: skip
    if head == b"PAR1":
        raise DataError(
            str(path), "a Parquet file", "a mapping that says what its columns mean",
            "Write one (docs/guard-ingest.md shows how) and give it with the log",
        )  # fmt: skip
    return "lines"


def pieces(whole: Piece) -> list[Piece]:
    """The parts that can be read by processes of their own, in order."""
    if whole.kind != "lines":
        return [whole]
    cuts = log_files.ranges(whole.path, whole.start, _PIECE_BYTES)
    return [replace(whole, start=start, stop=stop) for start, stop in cuts]


def read(piece: Piece) -> Iterator[Found]:
    """All that a piece holds, in order.

    Raises:
        DataError: the file cannot be read, or a mapped column is not there.
    """
    readers = {"lines": _lines, "csv": _rows_of_csv, "parquet": _rows_of_parquet, "store": _store}
    return readers[piece.kind](piece)


# ---- lines ----


def _lines(piece: Piece) -> Iterator[Found]:
    mapping = piece.mapping
    paths = mapping.paths if mapping else {}
    found = log_files.blocks(piece.path, piece.start, piece.stop, max_line=piece.max_line)
    for block in found:
        if block.skipped:
            yield Found(block.offset, _too_long(piece.max_line), block.skipped)
            continue
        offset, end = block.offset, block.offset + len(block.data)
        for line in block.data.split(b"\n"):
            size = len(line)
            if size and not line.isspace():
                if offset == 0 and line.startswith(_BYTE_ORDER_MARK):
                    line = line[3:]
                record: LogRecord | BadLine
                try:
                    if size > piece.max_line:
                        raise _too_long(piece.max_line)
                    held = parse(line)
                    record = (
                        mapped(held, paths, mapping.time_unit) if mapping else read_record(held)
                    )
                except BadLine as problem:
                    record = problem
                    if offset + size == end and size <= piece.max_line:
                        record = Unfinished(UNFINISHED)
                yield Found(offset, record, size)
            offset += size + 1


def _too_long(limit: int) -> BadLine:
    return BadLine(f"a line over {limit} bytes")


# ---- CSV ----


class _Offsets:
    """Decoded lines of a file for `csv.reader`, remembering where the last one began."""

    def __init__(self, piece: Piece, start: int) -> None:
        self._blocks = log_files.blocks(piece.path, start, None, max_line=piece.max_line)
        self.next = start
        self.unfit = False
        """Whether a line since this was last set to False was no text, or too long."""
        self.open = False
        """Whether the file ended within the row: its last line has no newline, or a quoted value
        goes on."""

    def __iter__(self) -> Iterator[str]:
        for block in self._blocks:
            self.next = block.offset
            if block.skipped:
                self.next += block.skipped
                self.unfit = True
                yield "\n"
            *whole, rest = block.data.split(b"\n")
            for line in whole:
                self.next += len(line) + 1
                yield self._text(line)
            if rest:  # the file's last line
                self.next += len(rest)
                self.open = True
                yield self._text(rest)
        self.open = True

    def _text(self, line: bytes) -> str:
        try:
            return line.decode().removeprefix("\ufeff") + "\n"
        except UnicodeDecodeError:
            self.unfit = True
            return "\n"


def _rows_of_csv(piece: Piece) -> Iterator[Found]:
    mapping = piece.mapping
    assert mapping is not None
    csv.field_size_limit(piece.max_line)
    top = _Offsets(piece, 0)
    names = next(csv.reader(iter(top), delimiter=mapping.delimiter), [])
    _check_columns(piece.path, mapping, names)
    lines = _Offsets(piece, max(piece.start, top.next))
    rows = csv.reader(iter(lines), delimiter=mapping.delimiter, strict=True)
    paths = mapping.paths
    # What is compressed was written to its end.
    ended = piece.ended or log_files.compression(piece.path) is not None
    while True:
        begin = lines.next
        record: LogRecord | BadLine
        try:
            lines.unfit = False
            row = next(rows)
            if lines.unfit:
                raise BadLine("not UTF-8, or too long")
            if not row:
                continue
            if len(row) != len(names):
                raise BadLine("another number of columns than the header's")
            record = mapped(dict(zip(names, row, strict=True)), paths, mapping.time_unit)
        except StopIteration:
            return
        except csv.Error:
            record = BadLine("no CSV")
        except BadLine as problem:
            record = problem
        if lines.open and not ended:  # a value that is cut off looks like a whole one
            record = Unfinished(UNFINISHED)
        yield Found(begin, record, lines.next - begin)


def _check_columns(path: Path, mapping: MappingSettings, names: Sequence[str]) -> None:
    """Each mapped field has a column of the file, or of a nested one."""
    for field, paths in mapping.paths.items():
        if not any(place[0] in names for place in paths):
            asked = mapping.columns[field]
            raise DataError(
                str(path), f"no column {asked!r}, mapped to '{field}'",
                f"columns of the file: {', '.join(names)[:300]}", "Correct the mapping",
            )  # fmt: skip


# ---- Parquet ----


def _rows_of_parquet(piece: Piece) -> Iterator[Found]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    mapping = piece.mapping
    assert mapping is not None
    paths, number = mapping.paths, 0
    try:
        with pq.ParquetFile(piece.path) as file:
            names = file.schema_arrow.names
            _check_columns(piece.path, mapping, names)
            wanted = {place[0] for tried in paths.values() for place in tried} & set(names)
            for batch in file.iter_batches(batch_size=1024, columns=sorted(wanted)):
                for row in _python(batch):
                    if number >= piece.start:
                        yield Found(number, _record(row, mapping, paths), 0)
                    number += 1
    except (OSError, pa.ArrowException) as problem:
        raise DataError(
            str(piece.path), " ".join(str(problem).split())[:200], "a whole Parquet file",
            "Take the file from a copy, or leave it out",
        ) from problem  # fmt: skip


def _python(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows as Python has them: in microseconds, to which pyarrow does not cut finer times."""
    import pyarrow as pa

    fields = [field.with_type(_in_microseconds(field.type)) for field in batch.schema]
    schema = pa.schema(fields)
    if schema == batch.schema:
        return batch.to_pylist()
    return pa.Table.from_batches([batch]).cast(schema, safe=False).to_pylist()


def _in_microseconds(kind: pa.DataType) -> pa.DataType:
    """The type with times of nanoseconds in microseconds, nested ones too."""
    import pyarrow as pa

    def inner(field: pa.Field) -> pa.Field:
        return field.with_type(_in_microseconds(field.type))

    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz) if kind.unit == "ns" else kind
    if pa.types.is_time64(kind):
        return pa.time64("us")
    if pa.types.is_duration(kind):
        return pa.duration("us") if kind.unit == "ns" else kind
    if pa.types.is_struct(kind):
        return pa.struct([inner(kind.field(at)) for at in range(kind.num_fields)])
    if pa.types.is_map(kind):
        return pa.map_(_in_microseconds(kind.key_type), inner(kind.item_field))
    if pa.types.is_large_list(kind):
        return pa.large_list(inner(kind.value_field))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(inner(kind.value_field), kind.list_size)
    return pa.list_(inner(kind.value_field)) if pa.types.is_list(kind) else kind


def _record(row: dict[str, Any], mapping: MappingSettings, paths: Any) -> LogRecord | BadLine:
    try:
        return mapped(row, paths, mapping.time_unit)
    except BadLine as problem:
        return problem


# ---- a store ----


def _store(piece: Piece) -> Iterator[Found]:
    names = [name for name, _, _ in schema_fields(Exchange) if name != "logprobs"]
    with Store(piece.path, "r") as store:
        for number, row in enumerate(store.stream(["id", *names])):
            if number >= piece.start:
                form = {name: plain(value) for name, value in row.items() if value is not None}
                yield Found(number, _exchange(form), 0)


def _exchange(form: dict[str, Any]) -> LogRecord | BadLine:
    try:
        return read_record({"version": FORMAT_VERSION, **form})
    except BadLine as problem:
        return problem
