"""What a scan's folder holds: which logs were read, how far, and which parts of events are whole.

    catalogue.json        this; written last, so that what it does not name does not count
    rejects.jsonl         place and reason of lines that are no events, up to a limit
    events/part-*.parquet the events table
    lock                  held (flock) by the one that adds to it

In: a folder. Out: what it holds. No text of a log stands here, but their paths do; which log a file
is says `known`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from stillhouse.errors import DataError
from stillhouse.files import alone, write_whole
from stillhouse.guard.key import fingerprint
from stillhouse.guard.known import Log

__all__ = ["Catalogue", "adding"]

VERSION = 1


@dataclass(slots=True)
class Catalogue:
    """What a folder holds."""

    key: str
    """Fingerprint of the key."""
    logs: list[Log] = field(default_factory=list)
    parts: dict[str, int] = field(default_factory=dict)
    """Part -> its events."""
    rejects: dict[str, int] = field(default_factory=dict)
    """Reason -> lines, of all ingests."""
    first: int | None = None
    """Earliest event, microseconds since 1970."""
    last: int | None = None

    @classmethod
    def open(cls, folder: Path, key: bytes | None) -> Catalogue:
        """The catalogue of a folder; an empty one where there is none yet.

        Args:
            folder: the scan's.
            key: the scan's; None does not check it (and there must be a catalogue).

        Raises:
            DataError: it cannot be read, is of another version, or was made with another key.
        """
        where = str(folder / "catalogue.json")
        try:
            found = json.loads((folder / "catalogue.json").read_text("utf-8"))
            if found["version"] != VERSION:
                raise ValueError(f"version {found['version']}")
            logs = [Log(**log) for log in found.pop("logs")]
            for log in logs:
                if log.kind in ("store", "parquet") and log.read and not log.head_bytes:
                    raise ValueError(f"a {log.kind} noted by its path, as is done no more")
            found.pop("version")
            catalogue = cls(logs=logs, **found)
        except FileNotFoundError:
            if key is not None:
                return cls(key=fingerprint(key))
            raise DataError(
                where, "no such file", "a folder that `ingest` wrote", "Check the path"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise DataError(
                where, f"cannot be read ({problem!s:.120})", f"a catalogue of version {VERSION}",
                "Put it back from a copy, or scan into a new folder",
            ) from problem  # fmt: skip
        if key is not None and catalogue.key != fingerprint(key):
            raise DataError(
                where, "events of another key", "the key they were hashed with",
                f"Calibrate and scan with --key {folder}.key, or scan into a new folder",
            )  # fmt: skip
        return catalogue

    def save(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        text = json.dumps({"version": VERSION, **asdict(self)}, indent=1) + "\n"
        write_whole(folder / "catalogue.json", text)


@contextmanager
def adding(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, so that one process at a time adds to it.

    Raises:
        DataError: the folder holds something else, or another process adds to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    foreign = sorted({p.name for p in folder.iterdir()} - {"lock", "events", "staging"})
    if foreign and not (folder / "catalogue.json").exists() and foreign != [".catalogue.json.new"]:
        raise DataError(
            str(folder), f"{foreign[0]!r} lies there, and no catalogue.json",
            "a scan's folder, or an empty one", "Choose another folder",
        )  # fmt: skip
    with alone(folder):
        yield
