"""Rates of clients: the fitted model has the shape of the table it was fitted to."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.errors import DataError
from stillhouse.guard.simulate_rates import FITTED, WINDOWS, Rates, fit, open_rates

TABLE = Path(__file__).resolve().parents[3] / "shared/data/traffic/servegen_clients.parquet"
needs_table = pytest.mark.skipif(not TABLE.exists(), reason="needs ../shared/data/traffic")


def table(path: Path, clients: int = 30, days: int = 2) -> Path:
    """A made-up table of the same form."""
    rng, windows = np.random.default_rng(1), WINDOWS * days
    mean = np.exp(rng.normal(0, 1.5, clients))
    rate = (
        mean[:, None] * (rng.random((clients, windows)) < 0.6) * rng.exponential(size=(clients, 1))
    )
    pq.write_table(
        pa.table({
            "kind": ["language"] * rate.size, "workload": ["w"] * rate.size,
            "client": np.repeat(np.arange(clients), windows),
            "start_s": np.tile(np.arange(windows) * 600.0, clients),
            "rate_rps": rate.ravel(), "cv": np.full(rate.size, 1.5),
        }),
        path,
    )  # fmt: skip
    return path


def both(tmp_path: Path) -> list[Rates]:
    return [open_rates(None), open_rates(table(tmp_path / "t.parquet"))]


def test_rates_average_to_one_and_volumes_are_heavy_tailed(tmp_path: Path) -> None:
    for rates in both(tmp_path):
        rng = np.random.default_rng(0)
        clients, volume = rates.clients(2000, rng)
        assert volume.mean() == pytest.approx(1)
        assert np.sort(volume)[-200:].sum() / volume.sum() > 0.4
        days = [rates.day(clients, np.zeros(2000), day, rng) for day in range(3)]
        rate = np.concatenate([one for one, _ in days], axis=1)
        assert rate.shape == (2000, 3 * WINDOWS)
        assert rate.mean() == pytest.approx(1, abs=0.15)
        assert all((cv > 0).all() and cv.max() <= 8 for _, cv in days)


def test_the_busiest_tenth_of_the_fitted_model_sends_what_was_measured() -> None:
    _, volume = open_rates(None).clients(5000, np.random.default_rng(3))
    assert 0.66 < np.sort(volume)[-500:].sum() / volume.sum() < 0.82


@needs_table
def test_the_constants_are_those_of_the_table() -> None:
    found = asdict(fit(TABLE))
    for name, value in asdict(FITTED).items():
        assert found[name] == pytest.approx(value, rel=0.02), name


@needs_table
def test_measured_clients_are_drawn_from_the_table() -> None:
    rates, rng = open_rates(TABLE), np.random.default_rng(0)
    clients, volume = rates.clients(3000, rng)
    assert len(set(clients.tolist())) > 300
    assert 0.66 < np.sort(volume)[-300:].sum() / volume.sum() < 0.85


def test_tables_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Parquet with columns"):
        open_rates(tmp_path / "missing.parquet")
    pq.write_table(pa.table({"kind": ["language"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column workload"):
        open_rates(tmp_path / "a.parquet")
    short = table(tmp_path / "b.parquet", days=1)
    pq.write_table(pq.read_table(short).slice(0, 100), tmp_path / "c.parquet")
    with pytest.raises(DataError, match="no complete grid"):
        open_rates(tmp_path / "c.parquet")
