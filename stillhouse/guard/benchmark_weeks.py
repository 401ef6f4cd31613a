"""Simulated weeks for the benchmark: written, read as a provider's logs would be, and taken apart.

    FOLDER/week.json          spec, counts and seconds; written last
    FOLDER/truth.parquet      account, kind, campaign, capability, language, group
    FOLDER/own.npy            keyed hashes of the campaigns' own requests
    FOLDER/events/NAME.parquet  events of benign accounts, and of each campaign's

In: a spec. Out: a folder from which any choice of campaigns is put together with the benign traffic
without reading a log again. That is the same as simulating them so: benign traffic does not depend
on which campaigns are added. The logs are deleted once they are read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from stillhouse.errors import ConfigError
from stillhouse.files import write_whole
from stillhouse.guard.events import EVENTS
from stillhouse.guard.ingest import ingest
from stillhouse.guard.key import FieldHash
from stillhouse.guard.parts import event_batches
from stillhouse.guard.simulate import simulate
from stillhouse.guard.simulate_accounts import LANGUAGES, benign_accounts
from stillhouse.guard.simulate_log import account_name
from stillhouse.guard.simulate_rates import open_rates
from stillhouse.guard.simulate_settings import SimulateSettings
from stillhouse.progress import Silent

pc: Any = pyarrow.compute  # its functions are made when it is imported

__all__ = ["BENIGN", "Week", "WeekPlan", "make_week"]

BENIGN = "benign"
_ROWS = 65_536


@dataclass(frozen=True)
class WeekPlan:
    """A week that a case needs."""

    name: str
    """Equal names mean equal specs."""
    spec: SimulateSettings

    @classmethod
    def of(cls, name: str, spec: SimulateSettings) -> WeekPlan:
        """A plan whose name says which spec it has."""
        told = hashlib.sha256(spec.model_dump_json().encode()).hexdigest()
        return cls(f"{name}-{told[:8]}", spec)


class Week:
    """A week that was simulated and read."""

    def __init__(self, folder: Path) -> None:
        """Open what `make_week` wrote."""
        self.folder = folder
        self.facts: dict[str, Any] = json.loads((folder / "week.json").read_text("utf-8"))

    @cached_property
    def truth(self) -> pa.Table:
        """One row for each account that asked anything."""
        return pq.read_table(self.folder / "truth.parquet")

    @cached_property
    def own(self) -> npt.NDArray[np.uint64]:
        """Sorted keyed hashes of the requests that campaigns made for themselves."""
        return np.load(self.folder / "own.npy")

    @property
    def campaigns(self) -> list[str]:
        """Names of all campaigns."""
        return [one["name"] for one in self.facts["spec"]["campaigns"]]

    def settings_of(self, campaign: str) -> dict[str, Any]:
        """The spec of one campaign."""
        return next(c for c in self.facts["spec"]["campaigns"] if c["name"] == campaign)

    def truth_of(self, campaigns: Sequence[str]) -> pa.Table:
        """The truth of benign accounts and of some campaigns' accounts."""
        column = self.truth["campaign"]
        wanted = pc.is_in(column, pa.array(list(campaigns), pa.string()))
        return self.truth.filter(pc.or_(pc.is_null(column), wanted))

    @contextmanager
    def only(self, campaigns: Sequence[str]) -> Iterator[Path]:
        """A folder of events: benign traffic and these campaigns, for as long as it is needed."""
        held = Path(tempfile.mkdtemp(prefix="only-", dir=self.folder))
        try:
            for number, name in enumerate((BENIGN, *campaigns)):
                source = self.folder / "events" / f"{name}.parquet"
                if source.exists():
                    os.link(source, held / f"part-{number:05d}.parquet")
            yield held
        finally:
            shutil.rmtree(held, ignore_errors=True)


def make_week(plan: WeekPlan, folder: Path, key: bytes, tell: Callable[[str], None]) -> Week:
    """The week in a folder, simulated and read first where it is not there yet.

    Args:
        plan: of the week.
        folder: its own.
        key: that its names are hashed with.
        tell: told what happens.

    Raises:
        ConfigError: the folder holds a week of another spec.
        DataError: as `simulate` and `ingest`.
    """
    spec = json.loads(plan.spec.model_dump_json())
    if (folder / "week.json").exists():
        week = Week(folder)
        if week.facts["spec"] != spec:
            raise ConfigError(
                f"--work, {folder}", "a week of another spec", "the week it was begun with",
                "Name a new folder for other settings",
            )  # fmt: skip
        return week
    shutil.rmtree(folder, ignore_errors=True)
    began = time.perf_counter()
    made = simulate(plan.spec, folder / "simulated", _Notes(f"simulating {plan.name}", tell))
    simulated = time.perf_counter()
    tell(f"reading {plan.name}")
    scan = folder / "scan"
    read = ingest([folder / "simulated" / "logs"], scan, key)
    ingested = time.perf_counter()
    shutil.rmtree(folder / "simulated" / "logs")
    truth = _truth(plan.spec, folder / "simulated")
    pq.write_table(truth, folder / "truth.parquet")
    own = pq.read_table(folder / "simulated" / "exchanges.parquet", columns=["request"])
    np.save(folder / "own.npy", _hashed(own["request"].to_pylist(), key))
    tell(f"sorting {plan.name}")
    _split(scan, truth, folder / "events")
    for part in ("simulated", "scan"):
        shutil.rmtree(folder / part)
    facts = {
        "spec": spec, "accounts": made.accounts, "events": read.events,
        "campaign_events": made.campaign_events, "kinds": made.kinds, "log_bytes": made.bytes,
        "simulate_seconds": simulated - began, "ingest_seconds": ingested - simulated,
    }  # fmt: skip
    write_whole(folder / "week.json", json.dumps(facts, indent=1) + "\n")
    return Week(folder)


class _Notes(Silent):
    """A simulation's progress as notes."""

    def __init__(self, what: str, tell: Callable[[str], None]) -> None:
        self._what, self._tell, self._total = what, tell, 0.0

    def start(self, stage: str, total: float | None = None, unit: str = "") -> None:
        self._total = total or 0.0
        self._tell(self._what)

    def advance(self, done: float, note: str = "", left_seconds: float | None = None) -> None:
        share = f" {min(done / self._total, 1):.0%}" if self._total else ""
        self._tell(self._what + share)


def _hashed(requests: list[str], key: bytes) -> npt.NDArray[np.uint64]:
    hashed = FieldHash(key, "request")
    data = b"".join(hashed.of(name.encode()) for name in requests)
    return np.sort(np.frombuffer(data, "<u8"))


def _truth(spec: SimulateSettings, folder: Path) -> pa.Table:
    """The simulator's truth, with the language and the group of benign accounts."""
    truth = pq.read_table(folder / "truth.parquet")
    benign = benign_accounts(spec, open_rates(spec.rates))
    names = {account_name(spec.seed, int(n)): at for at, n in enumerate(benign.number)}
    rows = [names.get(name, -1) for name in truth["account"].to_pylist()]
    known = np.array(rows) >= 0
    at = np.where(known, rows, 0)
    words = np.array(LANGUAGES, dtype=object)[benign.language[at].astype(np.int64)]
    words[~known] = None
    return truth.append_column("language", pa.array(words, pa.string())).append_column(
        "group", pa.array(np.where(known, benign.group[at], -1).astype(np.int64))
    )


def _split(scan: Path, truth: pa.Table, into: Path) -> None:
    """Write the events of benign accounts and of each campaign's to files of their own."""
    into.mkdir()
    names = sorted({name for name in truth["campaign"].to_pylist() if name is not None})
    outside = truth.filter(pc.is_valid(truth["campaign"]))
    place = {name: number for number, name in enumerate(names, start=1)}
    accounts = outside["account"].combine_chunks()
    source = np.array([0, *(place[name] for name in outside["campaign"].to_pylist())])
    held: dict[int, list[pa.RecordBatch]] = {}
    writers: dict[int, pq.ParquetWriter] = {}

    def flush(number: int) -> None:
        if number not in writers:
            path = into / f"{[BENIGN, *names][number]}.parquet"
            writers[number] = pq.ParquetWriter(
                path, EVENTS, compression="zstd", compression_level=1
            )
        table = pa.Table.from_batches(held.pop(number), schema=EVENTS).unify_dictionaries()
        writers[number].write_table(table.combine_chunks(), row_group_size=_ROWS)

    for batch in event_batches(scan, rows=_ROWS):
        column = batch.column("account").cast(pa.string())
        index = pc.index_in(column, accounts).fill_null(-1).to_numpy(zero_copy_only=False)
        whose = source[index + 1]
        for number in np.unique(whose).tolist():
            held.setdefault(number, []).append(batch.filter(pa.array(whose == number)))
            if sum(map(len, held[number])) >= _ROWS:
                flush(number)
    for number in list(held):
        flush(number)
    for writer in writers.values():
        writer.close()
