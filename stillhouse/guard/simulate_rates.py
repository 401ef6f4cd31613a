"""How busy API customers are: ten-minute windows of many clients, measured or from a fitted model.

In: a table of real clients (Parquet: kind, workload, client, start_s, rate_rps, cv, in ten-minute
windows), or nothing. Out: for each simulated customer a relative volume and, day by day, the
relative rate and the coefficient of variation of arrivals in each of 144 windows. Only the shape is
taken from the clients; how many requests there are is the spec's to say.

The fitted model, used where no table is given. Fitted by `fit` to the 314 language clients (14 days
each) of ServeGen (alibaba/ServeGen, Apache-2.0), workloads m-large, m-mid and m-small; a test
fits again where the table is at hand and compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.special import betaincinv, ndtr, ndtri

from stillhouse.errors import DataError

__all__ = ["WINDOWS", "FittedRates", "MeasuredRates", "RateModel", "Rates", "fit", "open_rates"]

WINDOWS = 144
"""Ten-minute windows of a day."""

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

# A client that was active in 0.1 % of windows, scaled to an account's whole volume, would send it
# all in a few minutes. Ours: nobody is active in less than this share, about half an hour a day.
_LEAST_ACTIVE = 0.02
_MOST_SD = 2.5  # the busiest of 314 clients; a tail beyond it was not measured
_MOST_CV = 8.0  # the table's 97th percentile; above it, a window holds too few requests to tell


@dataclass(frozen=True, slots=True)
class RateModel:
    """The fitted model's constants."""

    volume_sd: float
    """Of the log-normal of mean rates within a workload (nats): the one whose busiest tenth sends
    the share that the table's sends. The plain deviation (2.3) owes much to nearly silent clients
    and would make the top too heavy."""
    active_mean: float
    """Share of windows with any request: mean over clients."""
    active_variance: float
    """Its variance over clients; with the mean it gives a Beta distribution by moments."""
    volume_active: float
    """Correlation of log mean rate and active share (Gaussian copula)."""
    active_memory: float
    """Lag-one autocorrelation of being active: median over clients active in 5 to 95 %."""
    burst_sd: float
    """Log of the rate in active windows: standard deviation, median over clients (nats)."""
    burst_memory: float
    """Its lag-one autocorrelation, median over clients."""
    diurnal: float
    """Relative amplitude of the mean hour-of-day curve's first harmonic, over all clients."""
    peak_hour: float
    """Local hour of its peak."""
    cv_mean: float
    """Log of the arrivals' coefficient of variation in a window: mean over clients (nats)."""
    cv_sd_between: float
    """Its standard deviation between clients."""
    cv_sd_within: float
    """Its standard deviation between windows of one client, mean over clients."""


FITTED = RateModel(
    volume_sd=2.000, active_mean=0.390, active_variance=0.1605, volume_active=0.715,
    active_memory=0.840, burst_sd=1.302, burst_memory=0.857, diurnal=0.399, peak_hour=16.5,
    cv_mean=0.542, cv_sd_between=0.660, cv_sd_within=0.557,
)  # fmt: skip
"""`fit` of the ServeGen table."""


class Rates(Protocol):
    """A source of clients."""

    def clients(self, count: int, rng: np.random.Generator) -> tuple[Ints, Floats]:
        """(count,) clients drawn at random, and their relative volumes, of mean 1."""
        ...

    def day(
        self, clients: Ints, zones: Floats, day: int, rng: np.random.Generator
    ) -> tuple[Floats, Floats]:
        """Relative rates of mean 1 over time, and cv of arrivals, both (clients, WINDOWS), in UTC.

        Args:
            clients: of `clients`.
            zones: hours ahead of UTC of each; rates follow their clock.
            day: number of the day, asked in order from 0.
            rng: of the day.
        """
        ...


def open_rates(path: Path | None) -> Rates:
    """The clients of a table, or the fitted model's where there is none.

    Raises:
        DataError: no such file, columns missing, or no language client in it.
    """
    return FittedRates(FITTED) if path is None else MeasuredRates(*_table(path))


class FittedRates:
    """Clients of the fitted model. A client is the number its own constants are drawn from."""

    def __init__(self, model: RateModel) -> None:
        """Keep the constants."""
        self.model = model

    def clients(self, count: int, rng: np.random.Generator) -> tuple[Ints, Floats]:
        """(count,) seeds of clients, and their relative volumes."""
        seeds = rng.integers(1, 1 << 62, count)
        first, _, _ = self._normals(seeds)
        volume = np.exp(self.model.volume_sd * np.minimum(first, _MOST_SD))
        return seeds, volume / volume.mean() if count else volume

    def day(
        self, clients: Ints, zones: Floats, day: int, rng: np.random.Generator
    ) -> tuple[Floats, Floats]:
        """Rates and cv of one day; its first window is drawn afresh from the stationary state."""
        model, shape = self.model, (len(clients), WINDOWS)
        first, second, third = self._normals(clients)
        share = self._active(first, second)
        on, burst = np.empty(shape, bool), np.empty(shape)
        on[:, 0] = rng.random(len(clients)) < share
        burst[:, 0] = rng.standard_normal(len(clients))
        rest = np.sqrt(1 - model.burst_memory**2)
        coins, steps = rng.random(shape), rng.standard_normal(shape)
        for window in range(1, WINDOWS):
            before = on[:, window - 1]
            stay = share + (before - share) * model.active_memory
            on[:, window] = coins[:, window] < stay
            burst[:, window] = model.burst_memory * burst[:, window - 1] + rest * steps[:, window]
        hours = np.arange(WINDOWS) / 6 + np.asarray(zones)[:, None]
        clock = 1 + model.diurnal * np.cos((hours - model.peak_hour) * np.pi / 12)
        level = np.exp(model.burst_sd * burst - model.burst_sd**2 / 2)
        cv = model.cv_mean + model.cv_sd_between * third[:, None]
        cv = np.exp(cv + model.cv_sd_within * rng.standard_normal(shape))
        return on * level * clock / share[:, None], np.minimum(cv, _MOST_CV)

    def _active(self, first: Floats, second: Floats) -> Floats:
        model = self.model
        mean, rho = model.active_mean, model.volume_active
        total = mean * (1 - mean) / model.active_variance - 1
        rank = ndtr(rho * first + np.sqrt(1 - rho**2) * second)
        share = betaincinv(mean * total, (1 - mean) * total, rank)
        return np.clip(share, _LEAST_ACTIVE, 1)

    @staticmethod
    def _normals(seeds: Ints) -> tuple[Floats, Floats, Floats]:
        """Three standard normal numbers of each client, the same whenever asked."""
        found = []
        for salt in (1, 2, 3):
            mixed = (seeds.astype(np.uint64) + np.uint64(salt)) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            uniform = (mixed >> np.uint64(11)).astype(np.float64) / 2**53
            found.append(ndtri(np.clip(uniform, 1e-9, 1 - 1e-9)))
        return found[0], found[1], found[2]


class MeasuredRates:
    """Clients of a table, drawn with replacement; days wrap round where the table is shorter."""

    def __init__(self, rate: Floats, cv: Floats, volume: Floats) -> None:
        """Keep the clients.

        Args:
            rate: (clients, windows) requests a second.
            cv: (clients, windows) of arrivals; 0 where nothing came.
            volume: (clients,) mean rate relative to the client's workload.
        """
        active = (rate > 0).mean(axis=1, keepdims=True)
        thin = np.minimum(1, active / _LEAST_ACTIVE)  # what is left is spread over the day
        self._rate = rate / rate.mean(axis=1, keepdims=True) * thin + (1 - thin)
        self._cv, self._volume = np.minimum(cv, _MOST_CV), volume

    def clients(self, count: int, rng: np.random.Generator) -> tuple[Ints, Floats]:
        """(count,) rows of the table, and relative volumes.

        A volume is a measured one times a log-normal factor of sd 0.3: hundreds of customers of
        exactly equal volume, from one row, are a coordination that was never measured.
        """
        rows = rng.integers(0, len(self._rate), count)
        volume = self._volume[rows] * np.exp(0.3 * rng.standard_normal(count))
        return rows, volume / volume.mean() if count else volume

    def day(
        self, clients: Ints, zones: Floats, day: int, rng: np.random.Generator
    ) -> tuple[Floats, Floats]:
        """Rates and cv as measured. A table's clock is taken for its clients' own (they are least
        busy from three to six), and moved to each customer's.
        """
        span = self._rate.shape[1]
        ahead = (np.asarray(zones) * 6).astype(np.int64)
        windows = (np.arange(WINDOWS) + WINDOWS * day + ahead[:, None]) % span
        cv = np.maximum(self._cv[clients[:, None], windows], 0.5)
        return self._rate[clients[:, None], windows], cv


def fit(path: Path) -> RateModel:
    """The model's constants, from the language clients of a table.

    Raises:
        DataError: as `open_rates`.
    """
    rate, cv, volume = _table(path)
    on = rate > 0
    active = on.mean(axis=1)
    mixed = (active > 0.05) & (active < 0.95)
    level = np.log(np.where(on, rate, 1))
    spread, memory, persistence, cv_means, cv_sds = [], [], [], [], []
    for row in np.flatnonzero(on.sum(axis=1) > 20):
        values = level[row][on[row]]
        spread.append(values.std())
        both = on[row, 1:] & on[row, :-1]
        if both.sum() > 50:
            memory.append(np.corrcoef(level[row, 1:][both], level[row, :-1][both])[0, 1])
        if mixed[row]:
            persistence.append(np.corrcoef(on[row, 1:], on[row, :-1])[0, 1])
        logs = np.log(cv[row][cv[row] > 0])
        if len(logs) > 20:
            cv_means.append(logs.mean())
            cv_sds.append(logs.std())
    curve = (rate / rate.mean(axis=1, keepdims=True)).reshape(len(rate), -1, WINDOWS).mean((0, 1))
    wave = np.fft.rfft(curve / curve.mean())[1] * 2 / WINDOWS
    peak = (-np.angle(wave) * 12 / np.pi) % 24
    logs = np.log(volume)
    ordered = np.sort(volume)[::-1]
    top = ordered[: len(ordered) // 10].sum() / ordered.sum()
    return RateModel(
        volume_sd=float(ndtri(top) + ndtri(0.9)), active_mean=float(active.mean()),
        active_variance=float(active.var()),
        volume_active=float(np.corrcoef(logs, active)[0, 1]),
        active_memory=float(np.median(persistence)), burst_sd=float(np.median(spread)),
        burst_memory=float(np.nanmedian(memory)), diurnal=float(abs(wave)), peak_hour=float(peak),
        cv_mean=float(np.mean(cv_means)), cv_sd_between=float(np.std(cv_means)),
        cv_sd_within=float(np.mean(cv_sds)),
    )  # fmt: skip


def _table(path: Path) -> tuple[Floats, Floats, Floats]:
    """Rates, cv and relative volumes of the language clients that sent anything."""
    wanted = ["kind", "workload", "client", "start_s", "rate_rps", "cv"]
    try:
        missing = [name for name in wanted if name not in pq.read_schema(path).names]
        table = None if missing else pq.read_table(path, columns=wanted)
    except (OSError, pa.ArrowException) as problem:
        raise DataError(
            str(path), " ".join(str(problem).split()), f"Parquet with columns {', '.join(wanted)}",
            "Check the path, or leave the table out to use the fitted model",
        ) from problem  # fmt: skip
    if table is None:
        raise DataError(
            str(path), f"no column {', '.join(missing)}", f"columns {', '.join(wanted)}",
            "Check that this is the table of client rates",
        )  # fmt: skip
    table = table.filter(pc.field("kind") == "language")
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in wanted[1:]}
    rates, cvs, volumes = [], [], []
    for name in sorted(set(table["workload"].unique().to_pylist())):
        here = columns["workload"] == name
        order = np.lexsort((columns["start_s"][here], columns["client"][here]))
        width = len(np.unique(columns["start_s"][here])) // WINDOWS * WINDOWS
        rows = len(np.unique(columns["client"][here]))
        if width == 0 or here.sum() < rows * width:
            continue
        grid = {c: columns[c][here][order].reshape(rows, -1)[:, :width] for c in ("rate_rps", "cv")}
        mean = grid["rate_rps"].mean(axis=1)
        sent = mean > 0
        rates.append(grid["rate_rps"][sent])
        cvs.append(grid["cv"][sent])
        volumes.append(mean[sent] / np.exp(np.log(mean[sent]).mean()))
    if not rates or len({part.shape[1] for part in rates}) != 1:
        raise DataError(
            str(path), "no complete grid of language clients",
            "rows of kind 'language' over whole days of ten-minute windows",
            "Leave the table out to use the fitted model",
        )  # fmt: skip
    return np.concatenate(rates), np.concatenate(cvs), np.concatenate(volumes)
