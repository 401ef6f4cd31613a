"""Events of a scan for the baselines: plain columns, sorted by account and time, sketches kept.

In: a folder of parts. Out: `Requests`. The detector reads events in a way of its own; the baselines
share nothing with it but the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stillhouse.guard.events import SKETCH_SLOTS
from stillhouse.guard.hashing import Ints, run_starts
from stillhouse.guard.parts import open_events

__all__ = ["HOUR", "Requests", "read_requests"]

HOUR = 3_600_000_000
"""Microseconds."""
_COLUMNS = (
    "whole", "head", "tail", "skeleton", "system", "tools", "address", "network", "payment",
    "device", "input_tokens", "output_tokens", "turns", "capability",
)  # fmt: skip


@dataclass(frozen=True)
class Requests:
    """Events sorted by account and time."""

    names: npt.NDArray[Any]
    """(accounts,) in alphabetical order, as in a scan's accounts."""
    account: Ints
    """(events,) index into `names`."""
    time: Ints
    """(events,) microseconds since 1970."""
    columns: dict[str, npt.NDArray[Any]]
    """Hashes (0: nothing), numbers (-1: not recorded), `model` as a code."""
    sketch: npt.NDArray[np.uint32]
    """(events, SKETCH_SLOTS); all 0 where there is no text."""

    @cached_property
    def starts(self) -> Ints:
        """(accounts,) first event of each account."""
        return run_starts(self.account)

    @cached_property
    def events_of(self) -> Ints:
        """(accounts,) events of each account."""
        return np.diff(np.append(self.starts, len(self.account)))

    @property
    def span(self) -> tuple[int, int]:
        """First and last time, in microseconds."""
        return int(self.time.min()), int(self.time.max())


def read_requests(folder: Path) -> Requests:
    """The events in a folder.

    Raises:
        DataError: there are none, or a part is damaged.
    """
    data = open_events(folder)
    table = data.to_table(columns=["account", "time", "model", "sketch", *_COLUMNS])
    account, names = _codes(table["account"])
    time = table["time"].cast(pa.int64()).to_numpy()
    order = np.lexsort((time, account))
    columns = {name: _known(table[name]).to_numpy()[order] for name in _COLUMNS}
    columns["model"] = _codes(table["model"])[0][order]
    flat = table["sketch"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    sketch = np.asarray(flat, np.uint32).reshape(-1, SKETCH_SLOTS)
    return Requests(names, account[order], time[order], columns, sketch[order])


def _known(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column with -1, or 0 where numbers have no sign, for what is not recorded."""
    return column.fill_null(0 if pa.types.is_unsigned_integer(column.type) else -1)


def _codes(column: pa.ChunkedArray) -> tuple[Ints, npt.NDArray[Any]]:
    """Codes into the alphabetical list of the column's words."""
    coded = column.unify_dictionaries().combine_chunks()
    words = np.array(coded.dictionary.to_pylist(), dtype=object)
    codes = coded.indices.to_numpy(zero_copy_only=False)
    used, codes = np.unique(codes, return_inverse=True)
    order = np.argsort(words[used].astype(str), kind="stable")
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank[codes], words[used][order]
