"""The sealed segments of a store: Parquet files in the schema of an exchange.

In: plain forms (JSON's types, and arrays), as `journal.py` keeps them. Out: the same, or single
columns without the rest, a batch at a time; a StoreError that names the file when it is damaged,
foreign or of another version. pyarrow is imported on first use. Any Parquet reader reads these
files; the columns are in `docs/exchange-format.md`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillhouse.errors import StoreError
from stillhouse.exchange import FORMAT_VERSION, Exchange, Logprobs
from stillhouse.record import array_fields, arrow_type, schema_fields

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = ["SealedIds", "arrow_schema", "read_forms", "read_texts", "time_range", "write_forms"]

_VERSION = b"stillhouse.exchange"
# Rows of one text column read at a time, when only ids or keys are wanted.
_TEXT_ROWS = 65_536


def arrow_schema() -> pa.Schema:
    """Id and key, then the declared fields of an exchange; the format's version as metadata."""
    import pyarrow as pa

    fields = [(name, arrow_type(kind)) for name, kind, _ in schema_fields(Exchange)]
    return pa.schema(
        [("id", pa.string()), ("key", pa.string()), *fields],
        metadata={_VERSION: str(FORMAT_VERSION)},
    )


# ---- writing ----


def write_forms(path: Path, forms: Sequence[dict[str, Any]]) -> None:
    """Write plain forms, with id and key, as one file; durable on return.

    Raises:
        OSError: the disk refuses.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = arrow_schema()
    columns: dict[str, Any] = {name: [form.get(name) for form in forms] for name in schema.names}
    columns["time"] = [datetime.fromisoformat(text) for text in columns["time"]]
    columns["labels"] = [list(labels.items()) for labels in columns["labels"]]
    logprobs = _logprobs_column(columns.pop("logprobs"), schema.field("logprobs").type)
    arrays = [
        logprobs if field.name == "logprobs" else pa.array(columns[field.name], field.type)
        for field in schema
    ]
    leaves = list(_leaves("", pa.struct(list(schema))))
    numbers = [leaf for leaf, kind in leaves if kind in (pa.float32(), pa.int32())]
    texts = [leaf for leaf, _ in leaves if leaf not in {"id", "key", *numbers}]
    with path.open("wb") as file:
        pq.write_table(
            pa.Table.from_arrays(arrays, schema=schema), file, row_group_size=max(1, len(forms)),
            compression="zstd", compression_level=3,
            write_statistics=["time"],  # pyright: ignore[reportArgumentType]  # a list is meant
            # ids and keys never repeat; of log-probabilities, bytes of like weight compress best
            use_dictionary=texts,  # pyright: ignore[reportArgumentType]
            column_encoding=dict.fromkeys(numbers, "BYTE_STREAM_SPLIT"),
        )  # fmt: skip
        file.flush()
        os.fsync(file.fileno())


def _leaves(path: str, kind: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    """(path, type) of the columns a Parquet file has for a type, as Parquet names them."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        for field in kind:
            yield from _leaves(f"{path}.{field.name}".lstrip("."), field.type)
    elif pa.types.is_map(kind):
        yield from ((f"{path}.key_value.{part}", pa.string()) for part in ("key", "value"))
    elif pa.types.is_list(kind):
        yield from _leaves(f"{path}.list.element", kind.value_type)
    else:
        yield path, kind


def _logprobs_column(rows: list[dict[str, Any] | None], kind: pa.StructType) -> pa.StructArray:
    """The struct column; arrays go in whole, not number by number."""
    import pyarrow as pa

    axes = {name: axes for name, _, axes in array_fields(Logprobs)}
    children = []
    for field in kind:
        values = [row and row.get(field.name) for row in rows]
        whole = field.name in axes
        children.append(_lists(values, field.type) if whole else pa.array(values, field.type))
    return pa.StructArray.from_arrays(
        children, fields=list(kind), mask=pa.array([row is None for row in rows], pa.bool_())
    )


def _lists(rows: list[Any], kind: pa.ListType) -> pa.ListArray:
    """Arrays of one or two axes as a column of lists, or of lists of lists."""
    import pyarrow as pa

    arrays = [row for row in rows if row is not None]
    leaf = kind.value_type.value_type if pa.types.is_list(kind.value_type) else kind.value_type
    flat = [array.ravel() for array in arrays]
    values = pa.array(np.concatenate(flat) if flat else [], leaf)
    if leaf != kind.value_type:
        widths = [np.full(len(array), array.shape[1]) for array in arrays]
        values = pa.ListArray.from_arrays(_offsets(np.concatenate([[], *widths])), values)
    lengths = np.array([0 if row is None else len(row) for row in rows])
    missing = pa.array([row is None for row in rows], pa.bool_())
    return pa.ListArray.from_arrays(_offsets(lengths), values, type=kind, mask=missing)


def _offsets(lengths: np.ndarray[Any, Any]) -> pa.Array:
    import pyarrow as pa

    return pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


# ---- reading ----


@contextmanager
def _opened(path: Path, rows: int) -> Iterator[pq.ParquetFile]:
    """The file, checked: of this version, and with the rows its name says.

    Raises:
        StoreError: it is not, or it turns out to be damaged while it is read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            version = (file.schema_arrow.metadata or {}).get(_VERSION, b"none").decode()
            if version != str(FORMAT_VERSION):
                raise StoreError(
                    str(path), f"format version {version}", f"version {FORMAT_VERSION}",
                    "Move a foreign file away; read a newer store with the release that wrote it",
                )  # fmt: skip
            if file.metadata.num_rows != rows:
                raise StoreError(
                    str(path), f"{file.metadata.num_rows} rows", f"the {rows} its name says",
                    "Give the file its own name back",
                )  # fmt: skip
            yield file
    except (OSError, pa.ArrowException) as problem:
        raise StoreError(
            str(path), str(problem), "a whole Parquet file",
            "Take the file from a copy; the disk is suspect",
        ) from problem  # fmt: skip


def read_forms(path: Path, rows: int, names: Sequence[str], batch: int) -> Iterator[dict[str, Any]]:
    """The plain forms of the rows, reduced to some columns; `batch` rows in memory at a time."""
    with _opened(path, rows) as file:
        for found in file.iter_batches(batch_size=batch, columns=list(names)):
            yield from _forms(found)


def _forms(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    import pyarrow as pa

    arrays: dict[str, Iterator[np.ndarray[Any, Any] | None]] = {}
    if "logprobs" in batch.schema.names:
        index = batch.schema.get_field_index("logprobs")
        column = batch.column(index)
        parts = dict(zip((f.name for f in column.type), column.flatten(), strict=True))
        arrays = {name: _arrays(parts.pop(name)) for name, _, _ in array_fields(Logprobs)}
        light = pa.StructArray.from_arrays(
            list(parts.values()), names=list(parts), mask=column.is_null()
        )
        batch = batch.set_column(index, "logprobs", light)
    for form in batch.to_pylist():
        whole = {name: next(column) for name, column in arrays.items()}
        if form.get("logprobs") is not None:
            form["logprobs"].update(whole)
        if "labels" in form:
            form["labels"] = dict(form["labels"])
        yield form


def _arrays(column: pa.ListArray) -> Iterator[np.ndarray[Any, Any] | None]:
    """Each row's array, a copy of its own: one that is kept holds no batch in memory."""
    import pyarrow as pa

    outer, values, inner = column.offsets.to_numpy(), column.values, None
    if pa.types.is_list(values.type):
        inner, values = values.offsets.to_numpy(), values.values
    numbers = values.to_numpy(zero_copy_only=False)
    for valid, start, stop in zip(
        column.is_valid().to_pylist(), outer[:-1].tolist(), outer[1:].tolist(), strict=True
    ):
        if not valid:
            yield None
        elif inner is None:
            yield numbers[start:stop].copy()
        else:
            cells = numbers[inner[start] : inner[stop]].copy()
            yield cells.reshape(stop - start, cells.size // max(1, stop - start))


def read_texts(path: Path, rows: int, name: str) -> Iterator[str]:
    """One text column, in order."""
    with _opened(path, rows) as file:
        for found in file.iter_batches(batch_size=_TEXT_ROWS, columns=[name]):
            yield from found.column(0).to_pylist()


class SealedIds:
    """Which exchanges are in sealed segments, by the first 16 of their digests' 32 bytes.

    Two different exchanges share these with a chance of 1e-27 among a million.
    """

    def __init__(self) -> None:
        self._high = self._low = np.empty(0, np.uint64)

    def add(self, digests: Iterable[bytes]) -> None:
        """Take in the digests of one segment."""
        found = np.frombuffer(b"".join(digest[:16] for digest in digests), ">u8").reshape(-1, 2)
        high, low = (
            np.concatenate([a, b]) for a, b in zip((self._high, self._low), found.T, strict=True)
        )
        order = np.argsort(high)
        self._high, self._low = high[order], low[order]

    def __contains__(self, digest: bytes) -> bool:
        high, low = np.frombuffer(digest[:16], ">u8").astype(np.uint64)
        start, stop = np.searchsorted(self._high, high), np.searchsorted(self._high, high, "right")
        return bool((self._low[start:stop] == low).any())


def time_range(path: Path, rows: int) -> tuple[datetime, datetime]:
    """(earliest, latest) time of the exchanges, from the file's statistics."""
    with _opened(path, rows) as file:
        column = file.schema_arrow.names.index("time")
        ends = file.metadata.row_group(0).column(column).statistics  # one group a segment
        return ends.min, ends.max
