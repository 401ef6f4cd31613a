"""A scan: logs in, accounts and campaigns out, in a folder that later logs are added to.

    OUT/events/, catalogue.json, rejects.jsonl   what was read, without text (see `ingest`)
    OUT.key                  the scan's secret, apart from what is hashed with it
    OUT/accounts.parquet     account, events, score, p_value, campaign, decision
    OUT/campaigns.json       one entry for each campaign
    OUT/substreams.parquet   where the events of campaigns stand in the logs
    OUT/scan.json            counts, settings, versions
    OUT/report.html          the page for an analyst

In: logs, settings. Out: these files, and what they say. The detector is `detect`'s; here files are
read, written and put together.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse import __version__
from stillhouse.errors import ConfigError, DataError
from stillhouse.files import write_whole
from stillhouse.guard.calibrate import Calibration
from stillhouse.guard.catalogue import Catalogue
from stillhouse.guard.detect import Scan, check_families, detect
from stillhouse.guard.detect import calibrate as calibrate_events
from stillhouse.guard.dossier import moment
from stillhouse.guard.ingest import Ingested, ingest
from stillhouse.guard.key import FieldHash, fingerprint, read_key, write_key
from stillhouse.guard.mapping import MappingSettings
from stillhouse.guard.page import write_page
from stillhouse.guard.reread import records_at
from stillhouse.guard.settings import MAX_REJECTED, GuardSettings
from stillhouse.guard.skeleton import ends, skeletons
from stillhouse.guard.sources import files_of
from stillhouse.guard.turns import newest_turn
from stillhouse.progress import Progress, Silent

__all__ = ["ScanResult", "guard_calibrate", "guard_scan"]

_SILENT = Silent()
_TEXTS = 120  # requests of a campaign that are read again for its skeleton
_SHOWN = 30  # campaigns whose skeleton is made


@dataclass(frozen=True)
class ScanResult:
    """What a scan found, and where it lies."""

    folder: Path
    accounts: pa.Table
    campaigns: list[dict[str, Any]]
    facts: dict[str, Any] = field(default_factory=dict)


def guard_scan(
    settings: GuardSettings,
    *,
    logs: Sequence[Path],
    out: Path,
    calibration: Path | None = None,
    key: Path | None = None,
    mapping: MappingSettings | None = None,
    max_rejected: float = MAX_REJECTED,
    progress: Progress = _SILENT,
) -> ScanResult:
    """Campaigns and accounts of some logs, and of those that were scanned into the folder before.

    Args:
        settings: of the detector.
        logs: files, stores or folders; what was read before is not read again.
        out: the scan's folder.
        calibration: a file of `guard_calibrate`, of benign traffic of the same window length.
        key: file of the secret that names are hashed with, which must be there. By default the
            calibration's, or the folder's: its name and `.key`, made where there is none.
        mapping: what columns mean, for logs of no known format.
        max_rejected: share of lines without an event from which the logs are refused.
        progress: told what happens.

    Raises:
        ConfigError: settings that cannot be.
        DataError: logs, key or calibration that cannot be read.
        EvidenceError: too little to judge.
    """
    check_families(settings)  # before logs are read for it
    clock = _Clock(progress)
    frozen = None if calibration is None else Calibration.load(calibration)
    _check_given(logs, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    # under a fresh secret a calibration would know nothing of the scan, so its own has to be there
    secret = _key(key or (None if calibration is None else _beside(calibration)), out)
    if frozen is not None:
        frozen.check_key(secret)
    with clock.of("reading logs"):
        read = _ingest(logs, out, secret, mapping, max_rejected, progress)
    scan = detect(out, _with_hashed_names(settings, secret), frozen, clock.stage)
    scan.campaigns.sort(key=lambda one: (one["decision"] != "review", one["p_value"]))
    clock.stage("writing")
    _skeletons(scan, out, logs)
    facts = {**scan.facts, "read": _told(read), "held": _held(out),
             "settings": settings.model_dump(mode="json"), "stillhouse": __version__}  # fmt: skip
    for name, table in (("accounts", scan.accounts), ("substreams", scan.substreams)):
        aside = out / f".{name}.parquet.new"
        pq.write_table(table, aside)
        aside.replace(out / f"{name}.parquet")
    listed = scan.campaigns
    write_whole(out / "campaigns.json", json.dumps(listed, indent=1, ensure_ascii=False) + "\n")
    write_page(out, listed, scan.accounts, facts)
    clock.end()
    facts["seconds"] = {name: round(took, 2) for name, took in clock.took.items()}
    write_whole(out / "scan.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    return ScanResult(out, scan.accounts, listed, facts)


def guard_calibrate(
    settings: GuardSettings,
    *,
    logs: Sequence[Path],
    out: Path,
    key: Path | None = None,
    mapping: MappingSettings | None = None,
    max_rejected: float = MAX_REJECTED,
    progress: Progress = _SILENT,
) -> dict[str, Any]:
    """Facts of a calibration from logs that are known to be benign; it is written to `out`.

    The events it was made from are not kept.

    Args:
        settings: of the detector.
        logs: files, stores or folders, of as many days as will be scanned.
        out: the calibration's file.
        key: as for `guard_scan`; by default the calibration's name and `.key`. To scan a folder
            further that was scanned without a calibration, name that folder's.
        mapping: as for `guard_scan`.
        max_rejected: as for `guard_scan`.
        progress: told what happens.

    Raises:
        ConfigError: settings that cannot be, or a folder in the place of the file.
        DataError: logs or key that cannot be read.
        EvidenceError: too few accounts.
    """
    if out.is_dir():
        raise ConfigError(f"--out {out}", "a folder", "a file", "Name a file for the calibration")
    check_families(settings)
    clock = _Clock(progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    secret = _key(key, out)
    events = out.with_name(f".{out.name}.events")
    shutil.rmtree(events, ignore_errors=True)
    try:
        with clock.of("reading logs"):
            read = _ingest(logs, events, secret, mapping, max_rejected, progress)
        made = calibrate_events(events, settings, clock.stage)
    finally:
        shutil.rmtree(events, ignore_errors=True)
    made = replace(made, key=fingerprint(secret))
    made.save(out)
    clock.end()
    return {
        "out": str(out), "accounts": made.accounts, "hours": made.hours,
        "strongest_benign_cluster": made.strongest, "least_p_values": made.least_p_values,
        "read": _told(read), "seconds": {n: round(took, 2) for n, took in clock.took.items()},
    }  # fmt: skip


# ---- parts ----


def _check_given(logs: Sequence[Path], out: Path) -> None:
    """Nothing, where there is something to scan; before a folder and a secret are made for it."""
    if not logs and not (out / "catalogue.json").exists():
        raise DataError(
            str(out), "no logs given, and none were read into it before", "logs to scan",
            "Name log files, stores or folders",
        )  # fmt: skip


def _key(named: Path | None, beside: Path) -> bytes:
    """The secret in the file that was named, which must be there; else the one beside what it is
    for, made where there is none.
    """
    path = named or _beside(beside)
    return read_key(path) if named or path.exists() else write_key(path)


def _beside(path: Path) -> Path:
    whole = path.resolve() if path.name in ("", "..") else path  # `.` has no name
    return whole.with_name(f"{whole.name}.key")


def _with_hashed_names(settings: GuardSettings, key: bytes) -> GuardSettings:
    """The settings with organisations as events have them."""
    hashed = FieldHash(key, "organisation")
    found = [int.from_bytes(hashed.name(name), "little") for name in settings.allow_organisations]
    return settings.model_copy(update={"allow_organisations": tuple(f"{h:016x}" for h in found)})


def _ingest(
    logs: Iterable[Path], into: Path, key: bytes, mapping: MappingSettings | None,
    max_rejected: float, progress: Progress,
) -> Ingested:  # fmt: skip
    progress.start("reading logs", None, "pieces")
    done = ingest(
        logs, into, key, mapping=mapping, max_rejected=max_rejected,
        progress=lambda read, of: progress.advance(read, f"of {of} pieces"),
    )  # fmt: skip
    progress.finish(f"{done.events:,} events, {done.rejects.total():,} lines are none")
    return done


def _told(read: Ingested) -> dict[str, Any]:
    return {
        "events_added": read.events, "duplicates": read.duplicates, "files": read.files,
        "rejects": dict(read.rejects), "notes": dict(read.notes),
    }  # fmt: skip


def _held(folder: Path) -> dict[str, Any]:
    """What all ingests into a folder came to; `_told` is of the last one."""
    catalogue = Catalogue.open(folder, None)
    first, last = catalogue.first, catalogue.last
    return {
        "logs": len(catalogue.logs), "events": sum(catalogue.parts.values()),
        "rejects": catalogue.rejects,
        "first": None if first is None else moment(first),
        "last": None if last is None else moment(last),
    }  # fmt: skip


def _skeletons(scan: Scan, folder: Path, logs: Sequence[Path]) -> None:
    """Write the templates' skeletons into the campaigns; of logs that are gone, that is said.

    All campaigns' requests are read in one go: a compressed log has no other way than through it.
    """
    table = scan.substreams
    names = table["campaign"].to_numpy(zero_copy_only=False)
    of: dict[tuple[int, int], tuple[str, int]] = {}  # an account, so its event, is of one campaign
    for campaign in scan.campaigns[:_SHOWN]:
        rows = np.flatnonzero(names == campaign["id"])
        some = table.take(rows[:: max(1, len(rows) // _TEXTS)][:_TEXTS])
        refs = zip(some["file"].to_pylist(), some["offset"].to_pylist(), strict=True)
        whose = ((campaign["id"], customer) for customer in some["customer"].to_pylist())
        of.update(zip(refs, whose, strict=True))
    texts: dict[str, list[tuple[int, str]]] = {name: [] for name, _ in of.values()}
    unread: set[int] = set()
    given = list(files_of(logs))
    for file, offset, record in records_at(folder, of, given, unread):
        name, customer = of[file, offset]
        texts[name].append((customer, ends(newest_turn(record.messages, record.system).text)))
    for campaign in scan.campaigns[:_SHOWN]:
        needed = {file for (file, _), (name, _) in of.items() if name == campaign["id"]}
        campaign["template"] = _template(texts.get(campaign["id"], []), needed, unread)


def _template(
    texts: Sequence[tuple[int, str]], needed: set[int], unread: set[int]
) -> dict[str, Any]:
    """What a campaign's entry says of its template."""
    shown = [
        {"text": one.text, "texts": one.texts, "customers": one.customers}
        for one in skeletons(texts)
    ]
    why = None if shown else "no text in the logs, or nothing that enough customers share"
    if not shown and needed <= unread:
        why = (
            "the logs are not where they were read, or changed; name them to `guard scan` where "
            "they lie now (what was read is not read twice)"
        )
    return {
        "skeletons": shown, "why_none": why, "read": len(texts), "logs": len(needed),
        "logs_read": len(needed - unread),
    }  # fmt: skip


class _Clock:
    """Tells stages to the progress and measures them."""

    def __init__(self, progress: Progress) -> None:
        self.took: dict[str, float] = {}
        self._progress, self._name, self._began = progress, "", time.perf_counter()

    def stage(self, name: str) -> None:
        """A stage begins; the one before it has ended."""
        self.end()
        self._name, self._began = name, time.perf_counter()
        self._progress.start(name)

    @contextmanager
    def of(self, name: str) -> Any:
        """A stage whose progress is told elsewhere."""
        began = time.perf_counter()
        yield
        self.took[name] = self.took.get(name, 0.0) + time.perf_counter() - began

    def end(self) -> None:
        """The last stage has ended."""
        if self._name:
            self._progress.finish()
            name = re.sub(r"\d+ ", "", self._name)  # "testing 162 clusters" and 87 are one stage
            self.took[name] = self.took.get(name, 0.0) + time.perf_counter() - self._began
        self._name = ""
