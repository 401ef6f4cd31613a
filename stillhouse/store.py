"""Exchanges kept: a folder of Parquet segments and one open segment that survives kill -9.

    store.json             what this folder is, and in which version of the format
    lock                   held (flock) by the one writer
    000001-16384.parquet   a sealed segment: its number and rows; it never changes again
    000002.open            the segment being written: a frame for each acknowledged append

In: exchanges. Out: the same, in the order they arrived, each once, bit for bit. An append returns
when its frame is on the disk. A frame that a crash cut off is dropped and counted; any other
damage is an error that names file and offset. Sealing writes the Parquet file under another name,
renames it, and only then removes the open segment: where both are found, the Parquet file holds.
The bytes of both kinds are the business of `journal.py` and `parquet.py`.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, overload

from stillhouse import parquet
from stillhouse.errors import StoreError
from stillhouse.exchange import FORMAT_VERSION, Exchange
from stillhouse.files import sync_folder
from stillhouse.journal import (
    Entry,
    Journal,
    JournalWriter,
    check_kind,
    claim,
    encode,
    quiet,
)
from stillhouse.record import fits

__all__ = ["Store"]

_SEALED = re.compile(r"(\d{6,})-(\d+)\.parquet")
_OPEN = re.compile(r"(\d{6,})\.open")

# A segment is sealed when it has this many rows or bytes. Ours: sealing then takes a second or two
# and some hundred megabytes of memory, and a million exchanges make some tens of files.
SEGMENT_ROWS = 16_384
SEGMENT_BYTES = 64 << 20
# An append of many shares one frame, and one fsync, up to this size.
_FRAME_BYTES = 16 << 20


class _Segment(NamedTuple):
    path: Path
    rows: int


class Store:
    """A store of exchanges: one writer at a time, any number of readers beside it.

    Mode "a" makes the folder where there is none, finishes what a crash interrupted, and refuses
    while another one writes. Mode "r" changes nothing and sees what has been acknowledged. Methods
    that write may be called from several threads.
    """

    def __init__(
        self,
        path: str | Path,
        mode: Literal["a", "r"] = "a",
        *,
        segment_rows: int = SEGMENT_ROWS,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        """Open it.

        Args:
            path: the store's folder.
            mode: "a" to append and read, "r" to read.
            segment_rows: exchanges after which a segment is sealed.
            segment_bytes: bytes after which a segment is sealed.

        Raises:
            StoreError: no store, another version's, in use by another writer, or damaged.
        """
        self.path, self.mode = Path(path), mode
        if mode not in ("a", "r"):
            raise self._error(f"mode {mode!r}", "'a' or 'r'", "Open it to append or to read")
        self.torn = 0
        """Appends that a crash had cut off, dropped on opening; none of them was acknowledged."""
        self._limits = segment_rows, segment_bytes
        self._turn = threading.RLock()
        self._lock: int | None = None
        self._writer: JournalWriter | None = None
        self._number = 0
        self._sealed: parquet.SealedIds | None = None
        if mode == "r":
            check_kind(self.path)
            self.torn = sum(journal.torn for journal in self._snapshot()[1])
            return
        with ExitStack() as undo, self._disk("opening it to append"):
            undo.callback(self.close)
            self._open_to_append()
            undo.pop_all()

    # ---- writing ----

    def append(self, exchange: Exchange) -> None:
        """Nothing; when it returns, the exchange is on the disk.

        Raises:
            StoreError: it could not be written, and is not kept.
        """
        self.append_many((exchange,))

    def append_many(self, exchanges: Iterable[Exchange]) -> int:
        """How many were new: exchanges that are here already are kept once.

        They share one frame, all or none, and one fsync, up to 16 MiB at a time.

        Raises:
            StoreError: the disk did not take them all. Append them again: none is kept twice.
        """
        with self._turn:
            writer = self._writing()
            kept, waiting, size = 0, dict[bytes, Entry](), 0
            for exchange in exchanges:
                entry = encode(exchange)
                if entry.id in waiting or entry.id in writer.ids or entry.id in self._sealed_ids():
                    continue
                if waiting and size + entry.size > _FRAME_BYTES:
                    kept += self._write(list(waiting.values()))
                    writer, waiting, size = self._writing(), {}, 0
                waiting[entry.id] = entry
                size += entry.size
            return kept + (self._write(list(waiting.values())) if waiting else 0)

    def seal(self) -> None:
        """Nothing; the open segment, if it holds anything, has become a Parquet file.

        Raises:
            StoreError: the disk did not take it; the open segment stays as it was.
        """
        with self._turn, self._disk("sealing a segment"):
            if self._writing().rows:
                self._seal()

    def close(self) -> None:
        """Nothing; files and the lock are given back, and what was acknowledged stays."""
        with self._turn:
            if self._writer is not None:
                self._writer.close()
            if self._lock is not None:
                os.close(self._lock)
            self._writer = self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ---- reading ----

    def __iter__(self) -> Iterator[Exchange]:
        """The exchanges, in the order they arrived."""
        return self.stream()

    @overload
    def stream(self, columns: None = None, *, batch: int = 256) -> Iterator[Exchange]: ...
    @overload
    def stream(self, columns: Sequence[str], *, batch: int = 256) -> Iterator[dict[str, Any]]: ...
    def stream(
        self, columns: Sequence[str] | None = None, *, batch: int = 256
    ) -> Iterator[Exchange] | Iterator[dict[str, Any]]:
        """What is in the store at the first step, in order; `batch` rows in memory at a time.

        Args:
            columns: fields of an exchange, `id` or `key`: then dicts of only these are read.
            batch: rows decoded at a time.

        Raises:
            StoreError: a damaged segment, or no such column.
        """
        fields = [name for name, _, _ in fits(Exchange)]
        known = ["id", "key", *fields]
        for name in set(columns or ()) - set(known):
            found, expected = f"column {name!r}", f"one of {', '.join(known)}"
            raise self._error(found, expected, "Correct the name")
        names = fields if columns is None else list(columns)
        return self._stream(names, batch, whole=columns is None)

    def _stream(self, names: list[str], batch: int, *, whole: bool) -> Iterator[Any]:
        fit = {name: fit for name, _, fit in fits(Exchange)}
        for where, form in self._forms(names, batch):
            if whole:
                yield Exchange.build(form, where)
            else:
                values = ((name, form.get(name)) for name in names)
                yield {
                    name: fit[name](value) if name in fit and value is not None else value
                    for name, value in values
                }

    def __len__(self) -> int:
        """Exchanges in the store."""
        if self._writer is not None:
            return sum(s.rows for s in self._listing()[0].values()) + self._writer.rows
        sealed, journals = self._snapshot()
        return sum(s.rows for s in sealed) + sum(j.rows for j in journals)

    def keys(self) -> set[str]:
        """The `key` of every exchange: what a collection need not ask again."""
        return set(self._texts("key"))

    def ids(self) -> set[str]:
        """The `id` of every exchange."""
        return set(self._texts("id"))

    def verify(self) -> int:
        """How many exchanges there are, after reading every byte.

        Raises:
            StoreError: one whose content does not have its id, one kept twice, or a damaged file.
        """
        seen: set[str] = set()
        for where, form in self._forms(["id", "key", *(n for n, *_ in fits(Exchange))], 256):
            claimed, key = form.pop("id"), form.pop("key")
            exchange = Exchange.build(form, where)
            if (exchange.id, exchange.key) != (claimed, key) or claimed in seen:
                fault = "is kept twice" if claimed in seen else "is not that of the content"
                raise StoreError(
                    where, f"id {claimed} {fault}", "each exchange once, under its own id",
                    "The file was changed after it was written; take it from a copy",
                )  # fmt: skip
            seen.add(claimed)
        return len(seen)

    def describe(self) -> dict[str, Any]:
        """Plain figures for listings: where, how many, how large, torn, first and last time."""
        sealed, journals = self._snapshot()
        times = [t for s in sealed if s.rows for t in parquet.time_range(s.path, s.rows)]
        times += [entry.time for journal in journals for entry in journal.entries()]
        return {
            "path": str(self.path),
            "version": FORMAT_VERSION,
            "segments": len(sealed),
            "rows": sum(s.rows for s in sealed) + sum(j.rows for j in journals),
            "open_rows": sum(j.rows for j in journals),
            "bytes": sum(s.path.stat().st_size for s in sealed) + sum(j.end for j in journals),
            "torn": self.torn,
            "first": min(times).isoformat() if times else None,
            "last": max(times).isoformat() if times else None,
        }

    def _forms(self, names: Sequence[str], batch: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """(place, plain form) of every exchange."""
        sealed, journals = self._snapshot()
        for segment in sealed:
            forms = parquet.read_forms(segment.path, segment.rows, names, batch)
            for row, form in enumerate(forms):
                yield f"{segment.path}, row {row}", form
        for journal in journals:
            for row, form in enumerate(journal.forms()):
                yield f"{journal.path}, entry {row}", {n: form[n] for n in names if n in form}

    def _texts(self, name: Literal["id", "key"]) -> Iterator[str]:
        sealed, journals = self._snapshot()
        for segment in sealed:
            yield from parquet.read_texts(segment.path, segment.rows, name)
        for journal in journals:
            yield from journal.texts(name)

    # ---- the folder ----

    def _listing(self) -> tuple[dict[int, _Segment], dict[int, Path]]:
        """Sealed segments, and open ones that are not sealed yet, by number."""
        sealed, found = dict[int, _Segment](), dict[int, Path]()
        with self._disk("listing it"):
            names = sorted(path.name for path in self.path.iterdir())
        for name in names:
            if match := _SEALED.fullmatch(name):
                sealed[int(match[1])] = _Segment(self.path / name, int(match[2]))
            elif match := _OPEN.fullmatch(name):
                found[int(match[1])] = self.path / name
            elif name.endswith((".parquet", ".open")):
                raise self._error(
                    f"the foreign file {name}", "names like 000001-16384.parquet", "Move it away"
                )
        return sealed, {n: path for n, path in found.items() if n not in sealed}

    def _snapshot(self) -> tuple[list[_Segment], list[Journal]]:
        """What there is at this moment, in order; a reader sees what is acknowledged."""
        with self._disk("reading"):
            while True:
                before = self._listing()
                with suppress(FileNotFoundError):  # sealed since the listing
                    with quiet(self.path, own=self._lock is not None) as still:
                        whole = still and self._writer is None  # what a crash left: judge it all
                        journals = [
                            Journal(path, acknowledged_only=not whole)
                            for path in before[1].values()
                        ]
                    if self._listing() == before:
                        break
        numbers = sorted([*before[0], *before[1]])
        missing = sorted(set(range(1, numbers[-1] if numbers else 1)) - set(numbers))
        if missing:
            raise self._error(
                f"segment {missing[0]:06d} is missing", "every segment from 000001 on",
                "Put the file back from a copy",
            )  # fmt: skip
        return [before[0][n] for n in sorted(before[0])], journals

    def _open_to_append(self) -> None:
        """Lock it, and finish what a crash interrupted: making the folder, appending, sealing."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = claim(self.path)
        for left in self.path.glob("*.tmp"):
            left.unlink()
        for number in self._listing()[0]:
            (self.path / f"{number:06d}.open").unlink(missing_ok=True)
        sealed, journals = self._snapshot()
        self._number = len(sealed) + 1
        self._writer = JournalWriter(self.path / f"{self._number:06d}.open")
        self.torn = self._writer.torn
        for _ in journals[1:]:  # a crash came between making the next one and sealing this one
            self._seal()

    def _writing(self) -> JournalWriter:
        if self._writer is None:
            raise self._error(
                "not open to append", 'a store opened with mode "a"', "Open it so, and only once"
            )
        return self._writer

    def _write(self, entries: list[Entry]) -> int:
        with self._disk("appending"):
            writer = self._writing()
            if writer.rows and (writer.rows >= self._limits[0] or writer.end >= self._limits[1]):
                self._seal()  # before, not after: then an append that is done cannot fail
            self._writing().append(entries)
        return len(entries)

    def _seal(self) -> None:
        old, after = self._writing(), self.path / f"{self._number + 1:06d}.open"
        forms = list(Journal(old.path).forms())
        if len(forms) != old.rows:
            raise self._error(
                f"{old.path.name} holds {len(forms)} entries", f"the {old.rows} acknowledged",
                "Close the store; something else has changed the file",
            )  # fmt: skip
        target = self.path / f"{self._number:06d}-{old.rows}.parquet"
        begun = target.with_suffix(".parquet.tmp")
        with ExitStack() as undo:
            undo.callback(begun.unlink, missing_ok=True)
            parquet.write_forms(begun, forms)
            writer = JournalWriter(after)
            undo.callback(writer.close)
            self._writer = None  # interrupted here, the store is closed: which file holds is open
            try:
                begun.rename(target)
            except OSError:
                self._writer = old
                raise
            undo.pop_all()
        # From here on the Parquet file holds, whatever becomes of the old one.
        self._number, self._writer = self._number + 1, writer
        self.torn += writer.torn
        if self._sealed is not None:
            self._sealed.add(old.ids)
        old.close()
        sync_folder(self.path)
        old.path.unlink()

    def _sealed_ids(self) -> parquet.SealedIds:
        if self._sealed is None:
            self._sealed = parquet.SealedIds()
            segments = self._listing()[0].values()
            texts = (parquet.read_texts(s.path, s.rows, "id") for s in segments)
            self._sealed.add(bytes.fromhex(id_[3:]) for some in texts for id_ in some)
        return self._sealed

    @contextmanager
    def _disk(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            raise self._error(
                f"{doing} failed ({problem.strerror or problem})", "a folder to write to",
                "Correct the path or make room, then do it again; what was acknowledged is safe",
            ) from problem  # fmt: skip

    def _error(self, found: str, expected: str, todo: str) -> StoreError:
        return StoreError(f"store {self.path}", found, expected, todo)
