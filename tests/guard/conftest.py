"""What the tests of guard share: an ingest in this process, and a benign week's calibration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.guard.calibrate import Calibration
from stillhouse.guard.detect import calibrate
from stillhouse.guard.ingest import Ingested, ingest
from stillhouse.guard.parts import open_events
from stillhouse.guard.settings import GuardSettings
from tests.guard.weeks import benign_week

KEY = bytes(range(32))


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "scan"


@pytest.fixture
def take(into: Path) -> Callable[..., Ingested]:
    """Ingest in this process."""

    def run(*logs: Path, **how: Any) -> Ingested:
        return ingest(logs, into, KEY, **{"workers": 1, **how})

    return run


@pytest.fixture
def rows(into: Path) -> Callable[..., list[dict[str, Any]]]:
    """The events as plain rows."""

    def read(*columns: str) -> list[dict[str, Any]]:
        return open_events(into).to_table(columns=list(columns) or None).to_pylist()

    return read


@pytest.fixture(scope="session")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    """Of a benign week, made once."""
    folder: Path = tmp_path_factory.mktemp("calibration")
    return calibrate(
        benign_week(1, accounts=2500).write(folder), GuardSettings(permutations=19_999)
    )
