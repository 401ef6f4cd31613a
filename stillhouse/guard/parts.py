"""The events of a scan, read back: whole columns, or a batch at a time.

In: a scan's folder, or a folder of parts. Out: pyarrow's dataset or batches in the schema `EVENTS`.
Where a catalogue says which parts count, no others are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds

from stillhouse.errors import DataError
from stillhouse.guard.catalogue import Catalogue
from stillhouse.guard.events import EVENTS

__all__ = ["event_batches", "open_events", "part_paths"]


def part_paths(folder: Path) -> list[Path]:
    """The parts that count, in order.

    Args:
        folder: a scan's, or its `events`.

    Raises:
        DataError: there are none.
    """
    events = folder / "events" if (folder / "events").is_dir() else folder
    if (events.parent / "catalogue.json").exists():
        paths = [events / name for name in sorted(Catalogue.open(events.parent, None).parts)]
    else:
        paths = sorted(events.glob("part-*.parquet"))
    if not paths:
        raise DataError(
            str(folder),
            "no logs were read into it",
            "the folder of a scan",
            "Name log files or folders, to be read into it",
        )
    return paths


def open_events(folder: Path) -> ds.Dataset:
    """All events as one dataset; nothing is read yet.

    Raises:
        DataError: there are none, or a part is damaged or of another schema.
    """
    paths = part_paths(folder)
    try:
        return ds.dataset([str(path) for path in paths], schema=EVENTS, format="parquet")
    except (OSError, pa.ArrowException) as problem:
        raise _damaged(folder, problem) from problem


def event_batches(
    folder: Path, columns: Sequence[str] | None = None, rows: int = 65_536
) -> Iterator[pa.RecordBatch]:
    """The events, or some columns of them, in the order of the parts.

    Raises:
        DataError: as `open_events`.
    """
    try:
        yield from open_events(folder).to_batches(
            columns=None if columns is None else list(columns), batch_size=rows
        )
    except (OSError, pa.ArrowException) as problem:
        raise _damaged(folder, problem) from problem


def _damaged(folder: Path, problem: Exception) -> DataError:
    return DataError(
        str(folder), " ".join(str(problem).split())[:200], "parts of the events table",
        "Ingest the logs again into a new folder",
    )  # fmt: skip
