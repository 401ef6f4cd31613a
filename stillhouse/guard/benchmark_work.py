"""What one step of the benchmark does: calibrate, scan, compare with the truth.

In: a `Desk` with weeks, and a unit. Out: counts as JSON. A scan's numbers come from `detect`, as a
user's would; what reading logs costs is measured by the timed scans, which run the command itself.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stillhouse.errors import DataError
from stillhouse.guard.benchmark_baselines import METHODS, rule_fires, scored
from stillhouse.guard.benchmark_events import read_requests
from stillhouse.guard.benchmark_measures import LEVELS, above, outcome, own_exchanges, threshold_at
from stillhouse.guard.benchmark_memory import peak_of
from stillhouse.guard.benchmark_queries import mmd_windows
from stillhouse.guard.benchmark_weeks import Week, WeekPlan
from stillhouse.guard.calibrate import Calibration
from stillhouse.guard.detect import calibrate, detect
from stillhouse.guard.parts import open_events
from stillhouse.guard.settings import FAMILIES, GuardSettings
from stillhouse.guard.simulate import simulate
from stillhouse.guard.simulate_settings import SimulateSettings

__all__ = ["Desk", "Unit", "Work", "compare_baselines", "scan_counts", "scan_timed", "scan_without"]

_WINDOW_LEVEL = 0.01


class Desk(Protocol):
    """Where a unit finds its weeks."""

    key: Path
    """File of the secret that all weeks are hashed with."""
    scratch: Path
    """A folder for what is not kept."""

    def week(self, plan: WeekPlan) -> Week:
        """The week, made where it is not there yet."""
        ...

    def tell(self, note: str) -> None:
        """What happens now."""
        ...


@dataclass(frozen=True)
class Unit:
    """One step of a case, whose counts are kept."""

    case: str
    name: str
    seed: int
    weeks: tuple[WeekPlan, ...]
    """The calibration's first, then the one under test."""
    work: Work
    note: dict[str, Any]
    """What tells it from the case's other units."""


Work = Callable[[Desk, Unit], dict[str, Any]]
"""Gives a unit's counts."""


def scan_counts(desk: Desk, unit: Unit) -> dict[str, Any]:
    """Counts of one scan under the usual settings."""
    return _scan(desk, unit, GuardSettings())


def scan_without(desk: Desk, unit: Unit) -> dict[str, Any]:
    """Counts of one scan with a family off, in calibration and scan."""
    left = tuple(family for family in FAMILIES if family != unit.note["off"])
    return _scan(desk, unit, GuardSettings(families=left))


def _scan(desk: Desk, unit: Unit, settings: GuardSettings) -> dict[str, Any]:
    benign, test = (desk.week(plan) for plan in unit.weeks)
    campaigns: list[str] = unit.note["campaigns"]
    calibration = _calibration(benign, settings, desk.tell)
    began = time.perf_counter()
    with test.only(campaigns) as events:
        scan = detect(events, settings, calibration, desk.tell)
        took = time.perf_counter() - began
        counts = outcome(scan.accounts, scan.campaigns, test.truth_of(campaigns))
        if campaigns:
            places = open_events(events).to_table(columns=["file", "offset", "request"])
            counts["exchanges"] = own_exchanges(scan.substreams, counts["found"], places, test.own)
    facts = scan.facts
    return counts | {
        "events": facts["events"], "accounts": facts["accounts"],
        "calibration_accounts": calibration.accounts,
        "clusters_tested": facts["clusters_tested"], "decisions": facts["decisions"],
        "seconds": took,
        "specs": {name: test.settings_of(name) for name in campaigns},
    }  # fmt: skip


def _calibration(week: Week, settings: GuardSettings, tell: Callable[[str], None]) -> Calibration:
    """Of a benign week; kept beside it, one for each choice of families."""
    return Calibration.load(_calibrated(week, settings, tell))


def _calibrated(week: Week, settings: GuardSettings, tell: Callable[[str], None]) -> Path:
    path = week.folder / f"calibration-{'-'.join(sorted(settings.families))}.npz"
    if not path.exists():
        tell("calibrating")
        with week.only([]) as events:
            calibrate(events, settings, tell).save(path)
    return path


def compare_baselines(desk: Desk, unit: Unit) -> dict[str, Any]:
    """Counts of every other method on the same events."""
    benign_week, test_week = (desk.week(plan) for plan in unit.weeks)
    campaigns: list[str] = unit.note["campaigns"]
    with benign_week.only([]) as events:
        benign = read_requests(events)
    with test_week.only(campaigns) as events:
        test = read_requests(events)
    truth = test_week.truth_of(campaigns)
    own = dict(zip(truth["account"].to_pylist(), truth["campaign"].to_pylist(), strict=True))
    theirs = np.array([own[name] is not None for name in test.names])
    out: dict[str, Any] = {"benign": int((~theirs).sum()), "campaign": int(theirs.sum())}
    methods: dict[str, Any] = {}
    for name in METHODS:
        desk.tell(f"baseline {name}")
        began = time.perf_counter()
        p, score = scored(name, benign, test, unit.seed)
        methods[name] = {
            "seconds": time.perf_counter() - began,
            "called": {f"{v:g}": int((p[theirs] <= v).sum()) for v in LEVELS},
            "false": {f"{v:g}": int((p[~theirs] <= v).sum()) for v in LEVELS},
            "roc": {
                f"{v:g}": int(above(score[theirs], threshold_at(score[~theirs], v)).sum())
                for v in LEVELS
            },
        }
    fires = rule_fires(test)
    methods["volume_rule"] |= {
        "rule_called": int(fires[theirs].sum()),
        "rule_false": int(fires[~theirs].sum()),
    }
    desk.tell("baseline MMD on pooled windows")
    rng = np.random.default_rng([unit.seed, 6])
    size = unit.note["windows"]
    windows = mmd_windows(benign, test, theirs[test.account], size, _WINDOW_LEVEL, rng)
    return out | {"methods": methods, "windows": windows | {"level": _WINDOW_LEVEL}}


def scan_timed(desk: Desk, unit: Unit) -> dict[str, Any]:
    """Seconds and memory of `stillhouse guard scan` on fresh text logs, calibration given.

    The command runs in a process of its own; memory is that of it and its children together.

    Raises:
        DataError: the command failed.
    """
    week = desk.week(unit.weeks[0])
    calibration = _calibrated(week, GuardSettings(), desk.tell)
    folder = desk.scratch / unit.name
    shutil.rmtree(folder, ignore_errors=True)
    try:
        desk.tell("simulating text logs")
        made = simulate(SimulateSettings.model_validate(unit.note["week"]), folder / "range")
        command = [
            sys.executable, "-m", "stillhouse.cli.main", "guard", "scan",
            str(folder / "range" / "logs"), "--out", str(folder / "scan"), "--quiet",
            "--calibration", str(calibration), "--key", str(desk.key),
        ]  # fmt: skip
        desk.tell(f"scanning {made.events:,} events")
        began = time.perf_counter()
        with (
            (folder / "said").open("wb") as said,
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said) as child,
        ):
            peak = peak_of(child)
        took = time.perf_counter() - began
        if child.returncode:
            words = (folder / "said").read_text("utf-8", "replace")[-300:]
            raise DataError(
                "benchmark, timed scan", f"exit code {child.returncode}: {words}",
                "a scan that runs to its end", "Run the command by itself and look",
            )  # fmt: skip
        facts = json.loads((folder / "scan" / "scan.json").read_text("utf-8"))
        report = (folder / "scan" / "report.html").stat().st_size
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "events": facts["events"], "log_bytes": made.bytes, "seconds": took,
        "peak_bytes": peak, "stages": facts["seconds"], "report_bytes": report,
        "decisions": facts["decisions"],
    }  # fmt: skip
