"""Logs to an events table: read once, sketched, forgotten; daily logs are added to what is there.

In: log files and stores, a key. Out: a folder with parts of the events table, a catalogue of what
was read, and the places of lines that are no events. Either all of an ingest counts or nothing: the
catalogue is written last. Nothing here decides who is suspicious.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stillhouse import log_files
from stillhouse.errors import DataError
from stillhouse.files import write_whole
from stillhouse.guard.catalogue import Catalogue, adding
from stillhouse.guard.known import Known, note
from stillhouse.guard.mapping import MappingSettings
from stillhouse.guard.reading import PieceRead, read_all, write_part
from stillhouse.guard.seen import Seen
from stillhouse.guard.settings import MAX_REJECTED
from stillhouse.guard.sources import Piece, files_of, kind_of, pieces
from stillhouse.log_formats import recognise
from stillhouse.log_records import BadLine, parse

__all__ = ["Ingested", "ingest"]

_LISTED_REJECTS = 10_000
_SNIFFED_LINES = 50


@dataclass(slots=True)
class Ingested:
    """What one ingest did."""

    folder: Path
    events: int = 0
    """Added by it."""
    duplicates: int = 0
    """Left out: their request id was seen before."""
    rejects: Counter[str] = field(default_factory=Counter)
    """Reason -> lines that are no events."""
    notes: Counter[str] = field(default_factory=Counter)
    """What is worth knowing and no reject: calls that are no conversation, clocks that went back,
    logs that held nothing new."""
    files: int = 0
    """Logs that something was read of."""
    first: datetime | None = None
    """Earliest event added, UTC."""
    last: datetime | None = None

    @property
    def lines(self) -> int:
        """All that were looked at."""
        return (
            self.events + self.duplicates + self.rejects.total() + self.notes["not a conversation"]
        )


def ingest(
    logs: Iterable[Path], into: Path, key: bytes, *, mapping: MappingSettings | None = None,
    max_rejected: float = MAX_REJECTED, max_line: int = log_files.MAX_LINE_BYTES,
    workers: int | None = None, progress: Callable[[int, int], None] | None = None,
) -> Ingested:  # fmt: skip
    """Add logs to the events in a folder.

    Args:
        logs: files, stores, or folders of files. What was read before is not read again.
        into: the scan's folder; made where there is none.
        key: of `read_key`; the same for all ingests into a folder.
        mapping: what columns mean, for logs of no known format.
        max_rejected: share of lines without an event from which the ingest is refused.
        max_line: bytes of the longest line that is read.
        workers: processes; None takes one for each processor. With more than one, a script's own
            work must stand under `if __name__ == "__main__":`.
        progress: called with (pieces done, pieces in all).

    Raises:
        DataError: a log cannot be read or recognised, too many lines are no events, or the folder
            belongs to another key or is in use. Nothing was added then.
    """
    with adding(into):
        catalogue = Catalogue.open(into, key)
        done = Ingested(into)
        staging = into / "staging"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            work = _plan(files_of(logs), catalogue, mapping, max_line, done)
            run = _Run(catalogue, into, staging, done)
            workers = workers or os.cpu_count() or 1
            for number, read in enumerate(read_all(work, key, staging, workers), 1):
                run.take(read)
                if progress is not None:
                    progress(number, len(work))
            run.check(max_rejected)
            run.commit()
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return done


# ---- what is to be read ----


def _plan(
    files: Iterable[Path], catalogue: Catalogue, mapping: MappingSettings | None, max_line: int,
    done: Ingested,
) -> list[Piece]:  # fmt: skip
    """The pieces of all logs that hold something new; of copies of a log, the longest."""
    chosen: dict[int, Piece] = {}
    known = Known(catalogue.logs)
    for path in files:
        kind = kind_of(path, mapping)
        used = mapping.model_dump(mode="json") if mapping and kind != "store" else None
        index = known.find(path, kind, used)
        log = catalogue.logs[index]
        other = chosen.get(index)
        if other is not None:
            done.notes["logs given twice"] += 1
            if other.path.stat().st_size >= path.stat().st_size:
                continue
        ended = log.read < log.seen == path.stat().st_size  # it waited, and did not grow
        piece = Piece(index, path, kind, log.read, None, mapping, max_line, ended)
        if log.read == 0 and kind == "lines" and mapping is None:
            _check_recognised(path, max_line)
        chosen[index] = piece
    work = []
    for piece in chosen.values():
        parts = pieces(piece)
        if not parts:
            done.notes["logs with nothing new"] += 1
        work += parts
    return work


def _check_recognised(path: Path, max_line: int) -> None:
    """Nothing, where one of the first lines is of a known format, or none is JSON at all.

    Raises:
        DataError: they are JSON objects of another kind.
    """
    keys: list[str] = []
    for block in log_files.blocks(path, max_line=max_line):
        for line in block.data.split(b"\n")[:_SNIFFED_LINES]:
            try:
                found = parse(line) if line.strip() else {}
            except BadLine:
                continue
            if recognise(found) is not None:
                return
            keys = keys or list(found)
        break
    if keys:
        raise DataError(
            str(path), f"lines of an unknown format, with keys {', '.join(keys)[:200]!r}",
            "LiteLLM payloads, requests with responses in OpenAI's or Anthropic's form, exchanges",
            "Say what the columns mean in a mapping (docs/guard-ingest.md)",
        )  # fmt: skip


# ---- what came of it ----


class _Run:
    """An ingest under way: takes what was read, in order, and makes it count at the end."""

    def __init__(self, catalogue: Catalogue, into: Path, staging: Path, done: Ingested) -> None:
        self._catalogue, self._into, self._staging, self._done = catalogue, into, staging, done
        self._seen = Seen()
        self._parts: list[tuple[Path, int]] = []
        self._places: list[dict[str, Any]] = []
        self._reads: dict[int, tuple[Path, int, int]] = {}
        for part in catalogue.parts:
            column = pq.read_table(into / "events" / part, columns=["request"])["request"]
            self._seen.first(column.to_numpy())

    def take(self, read: PieceRead) -> None:
        """One piece: its duplicates are taken out, its rejects listed."""
        done, piece = self._done, read.piece
        first = self._seen.first(read.requests)
        kept = int(first.sum())
        done.events += kept
        done.duplicates += first.size - kept
        done.rejects.update(read.rejects)
        done.notes.update(read.notes)
        if piece.file not in self._reads:
            done.files += 1
        self._reads[piece.file] = (piece.path, read.read, read.seen)
        for place in read.places[: _LISTED_REJECTS - len(self._places)]:
            names = ("offset", "bytes", "reason")
            row = {"log": str(piece.path), **dict(zip(names, place, strict=True))}
            self._places.append(row)
        if kept == first.size:
            part = read.part
        else:
            part = read.part.with_suffix(".once")
            write_part(read.part, part, first)
            read.part.unlink()
        if kept:
            self._parts.append((part, kept))
        if read.first is not None and read.last is not None:
            self._span(read.first, read.last)

    def _span(self, first: int, last: int) -> None:
        catalogue, done = self._catalogue, self._done
        begin, end = (datetime.fromtimestamp(us / 1e6, UTC) for us in (first, last))
        done.first = begin if done.first is None else min(begin, done.first)
        done.last = end if done.last is None else max(end, done.last)
        catalogue.first = first if catalogue.first is None else min(first, catalogue.first)
        catalogue.last = last if catalogue.last is None else max(last, catalogue.last)

    def check(self, max_rejected: float) -> None:
        """Nothing, where few enough lines were bad."""
        bad, lines = self._done.rejects.total(), self._done.lines
        if bad <= max_rejected * lines:
            return
        reason, number = self._done.rejects.most_common(1)[0]
        place = next((p for p in self._places if p["reason"] == reason), None)
        example = f"; one at byte {place['offset']} of {place['log']}" if place else ""
        raise DataError(
            f"{self._done.files} logs",
            f"{bad} of {lines} lines are no events, most ({number}): {reason}{example}",
            f"at most a share of {max_rejected:g}",
            "Correct the logs or the mapping (formats: docs/guard-ingest.md), or raise "
            "--max-rejected",
        )  # fmt: skip

    def commit(self) -> None:
        """Make all of it count."""
        catalogue, events = self._catalogue, self._into / "events"
        events.mkdir(exist_ok=True)
        for stray in events.glob("part-*.parquet"):  # of an ingest that was killed right here
            if stray.name not in catalogue.parts:
                stray.unlink()
        number = 1 + max((int(name[5:-8]) for name in catalogue.parts), default=-1)
        for at, (part, rows) in enumerate(self._parts, number):
            name = f"part-{at:05d}.parquet"
            part.rename(events / name)
            catalogue.parts[name] = rows
        for index, (path, read, seen) in self._reads.items():
            note(catalogue.logs[index], path, read, seen)
        for reason, count in self._done.rejects.items():
            catalogue.rejects[reason] = catalogue.rejects.get(reason, 0) + count
        listed = self._into / "rejects.jsonl"
        before = listed.read_bytes() if listed.exists() else b""
        lines = [json.dumps(place).encode() + b"\n" for place in self._places]
        write_whole(listed, before + b"".join(lines))
        catalogue.save(self._into)
