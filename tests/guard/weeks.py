"""Whole weeks for the detector's tests: everything that must not be called, and room for more."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stillhouse.guard.detect import Scan
from tests.guard.traffic_writer import Traffic


def benign_week(seed: int, accounts: int = 2000) -> Traffic:
    """People and programs with every hard negative."""
    week = Traffic(seed)
    ids = week.benign(accounts)
    rng = np.random.default_rng(seed)
    week.client(rng.choice(ids, accounts // 20, replace=False), product=1)
    week.client(rng.choice(ids, 40, replace=False))
    week.course(30)
    week.service(12)
    week.service(8, nightly=True)
    week.office(20)
    week.office(40)
    week.release()
    return week


def decisions(scan: Scan, week: Traffic) -> dict[str, dict[str, int]]:
    """Kind of account -> decision -> how many."""
    out: dict[str, dict[str, int]] = {}
    for account, decision in zip(
        scan.accounts["account"].to_pylist(), scan.accounts["decision"].to_pylist(), strict=True
    ):
        kind = out.setdefault(week.truth[account], {})
        kind[decision] = kind.get(decision, 0) + 1
    return out


def written(week: Traffic, folder: Path) -> Path:
    """Where its events stand."""
    return week.write(folder / "events")
