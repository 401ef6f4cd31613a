"""Numbers with their uncertainty: an `Estimate` never travels without its interval and n.

In: totals per prompt (or per question, or per repeat). Out: `Estimate`s. Nothing here knows what
the figures mean.

What was sampled independently is the *cluster*: a prompt, not a token. Answers differ in length,
so a mean per token is a ratio of two sums over prompts, and its interval comes from drawing whole
prompts again (`cluster_bootstrap`). Shares of few trials get exact or Wilson intervals; medians of
repeated timings get order-statistic intervals. Every random function takes a generator; too little
data is an EvidenceError, never a number.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from stillhouse.errors import EvidenceError

__all__ = [
    "MIN_CLUSTERS",
    "Estimate",
    "clopper_pearson",
    "cluster_bootstrap",
    "clustered_share",
    "median_estimate",
    "ratio_difference",
    "ratio_of_sums",
    "wilson",
]

Array = npt.NDArray[np.float64]

# Below five clusters a resample repeats one of them so often that the interval says more about
# chance than about the data: with four, one resample in 64 is a single cluster four times over.
MIN_CLUSTERS = 5

# (draws, N) resampling counts held at once: 4 million int64 are 32 MB.
_COUNTS_AT_ONCE = 4_000_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number, its interval, the independent units it rests on, and how the interval was made."""

    value: float
    low: float
    high: float
    n: int
    method: str
    """E.g. 'bootstrap over prompts, 2000 draws, 95 %'."""

    def __str__(self) -> str:
        """`0.633 [0.621, 0.645] (n = 80)`."""
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}] (n = {self.n})"

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return dataclasses.asdict(self)


# ---- bootstrap over clusters ----


def cluster_bootstrap(
    totals: npt.ArrayLike,
    statistic: Callable[[Array], Array],
    rng: np.random.Generator,
    *,
    draws: int = 2000,
    level: float = 0.95,
    unit: str = "prompts",
) -> Estimate:
    """A statistic of summed totals, with its BCa interval from drawing whole clusters again.

    The interval is bias-corrected and accelerated: percentiles of the resampled statistic, shifted
    by its median bias and by how much its spread changes with its value (jackknife over clusters).

    Args:
        totals: (N, C), each cluster's sums.
        statistic: maps summed totals (..., C) to (...); it is called on all resamples at once.
        rng: the seeded generator the resamples come from.
        draws: how many resamples.
        level: nominal coverage.
        unit: what a cluster is, for `Estimate.method`.

    Raises:
        EvidenceError: fewer than `MIN_CLUSTERS` clusters, or the statistic is not finite on some
        resample.

    Source: Efron (1987), Better bootstrap confidence intervals, JASA 82.
    """
    totals = np.atleast_2d(np.asarray(totals, dtype=np.float64))  # (N, C)
    clusters = len(totals)
    _enough(clusters, MIN_CLUSTERS, unit)
    _finite(totals, unit)
    value = float(statistic(totals.sum(axis=0)))
    resampled = np.sort(_resample(totals, statistic, rng, draws))  # (draws,)
    left_out = statistic(totals.sum(axis=0) - totals)  # (N,) jackknife
    _finite(np.concatenate([[value], resampled, left_out]), unit)
    low, high = _bca(value, resampled, left_out, level)
    method = f"bootstrap over {unit}, BCa, {draws} draws, {100 * level:g} %"
    return Estimate(value, low, high, clusters, method)


def _resample(
    totals: Array, statistic: Callable[[Array], Array], rng: np.random.Generator, draws: int
) -> Array:
    """(draws,) the statistic on resampled clusters."""
    clusters = len(totals)
    share = np.full(clusters, 1 / clusters)
    step = max(1, _COUNTS_AT_ONCE // clusters)
    parts: list[Array] = []
    for start in range(0, draws, step):
        counts = rng.multinomial(clusters, share, size=min(step, draws - start))  # (step, N)
        parts.append(np.asarray(statistic(counts @ totals), dtype=np.float64))
    return np.concatenate(parts)


def _bca(value: float, resampled: Array, left_out: Array, level: float) -> tuple[float, float]:
    """Bounds of the BCa interval; `resampled` is sorted."""
    if resampled[0] == resampled[-1]:  # nothing varies: every cluster says the same
        return value, value
    normal, draws = NormalDist(), len(resampled)
    below = (np.sum(resampled < value) + 0.5 * np.sum(resampled == value)) / draws
    bias = normal.inv_cdf(float(np.clip(below, 1 / (draws + 1), draws / (draws + 1))))
    lean = left_out.mean() - left_out
    spread = float(np.sum(lean**2))
    acceleration = float(np.sum(lean**3)) / (6 * spread**1.5) if spread > 0 else 0.0
    bounds: list[float] = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        z = bias + normal.inv_cdf(tail)
        shifted = normal.cdf(bias + z / (1 - acceleration * z))
        bounds.append(float(np.quantile(resampled, shifted)))
    # Where a statistic is biased upwards (a mean of absolute gaps) the shifted interval can end
    # below the value itself; it is widened to hold it.
    return min(bounds[0], value), max(bounds[1], value)


def ratio_of_sums(
    numerator: npt.ArrayLike,
    denominator: npt.ArrayLike,
    rng: np.random.Generator,
    *,
    draws: int = 2000,
    unit: str = "prompts",
) -> Estimate:
    """sum(numerator) / sum(denominator), e.g. nats per token, with its bootstrap interval.

    Args:
        numerator: (N,), each cluster's sum.
        denominator: (N,), each cluster's count.
        rng: the seeded generator the resamples come from.
        draws: how many resamples.
        unit: what a cluster is, for `Estimate.method`.

    Raises:
        EvidenceError: too few clusters, or nothing was counted.
    """
    totals = np.column_stack([numerator, denominator])
    _counted(totals[:, 1], unit)
    return cluster_bootstrap(totals, lambda t: t[..., 0] / t[..., 1], rng, draws=draws, unit=unit)


def ratio_difference(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    denominator: npt.ArrayLike,
    rng: np.random.Generator,
    *,
    draws: int = 2000,
    unit: str = "prompts",
) -> Estimate:
    """(sum(first) - sum(second)) / sum(denominator) on the same clusters, with its interval.

    Both were measured on the same clusters, so what is hard about a prompt cancels: the interval
    is that of the paired difference, not of two separate figures.

    Raises:
        EvidenceError: too few clusters, or nothing was counted.
    """
    gap = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    paired = ratio_of_sums(gap, denominator, rng, draws=draws, unit=unit)
    return dataclasses.replace(paired, method=f"paired difference, {paired.method}")


# ---- shares ----


def wilson(successes: float, trials: float, *, level: float = 0.95) -> tuple[float, float]:
    """Bounds of the Wilson score interval of a share; both counts may be fractional (effective).

    Raises:
        EvidenceError: no trials, or more successes than trials.

    Source: Wilson (1927), Probable inference, JASA 22.
    """
    _share_counts(successes, trials)
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / trials
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
    half /= 1 + z * z / trials
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    high = 1.0 if successes == trials else min(1.0, middle + half)
    return low, high


def clopper_pearson(
    successes: int, trials: int, *, level: float = 0.95, unit: str = "trials"
) -> Estimate:
    """A share of independent trials with its exact binomial interval.

    Raises:
        EvidenceError: no trials, or more successes than trials.

    Source: Clopper and Pearson (1934), Biometrika 26.
    """
    _share_counts(successes, trials)
    low, high = _exact(successes, trials, level=level)
    method = f"Clopper-Pearson over {unit}, {100 * level:g} %"
    return Estimate(successes / trials, low, high, trials, method)


def _exact(successes: float, trials: float, *, level: float) -> tuple[float, float]:
    """Bounds of the Clopper-Pearson interval; both counts may be fractional (effective)."""
    from scipy.special import (
        betaincinv,
    )  # about 0.2 s to import; most callers need no exact interval

    tail, failures = (1 - level) / 2, max(0.0, trials - successes)
    low = 0.0 if successes == 0 else float(betaincinv(successes, failures + 1, tail))
    high = 1.0 if failures == 0 else float(betaincinv(successes + 1, failures, 1 - tail))
    return low, high


def clustered_share(
    successes: npt.ArrayLike,
    trials: npt.ArrayLike,
    *,
    level: float = 0.95,
    unit: str = "questions",
    exact: bool = False,
) -> Estimate:
    """A share of trials that come in clusters, with a Wilson interval at their effective number.

    Trials of one cluster (samples of one question) resemble each other. Their intra-class
    correlation rho, estimated by analysis of variance, divides the number of trials by 1 + (m - 1)
    rho for clusters of m. Where all trials agree rho cannot be estimated and is taken as 1: n is
    then the number of clusters.

    Args:
        successes: (N,), in each cluster.
        trials: (N,), in each cluster.
        level: nominal coverage.
        unit: what a cluster is, for `Estimate.method`.
        exact: take the Clopper-Pearson interval instead, which keeps its level for shares near 0
            and 1, too. Source: Korn and Graubard (1998), Survey Methodology 24.

    Raises:
        EvidenceError: fewer than two clusters, no trials, or more successes than trials.
    """
    hits = np.asarray(successes, dtype=np.float64)
    sizes = np.asarray(trials, dtype=np.float64)
    _enough(len(hits), 2, unit)
    _share_counts(float(hits.sum()), float(sizes.sum()))
    if (sizes < 1).any() or (hits > sizes).any():
        _share_counts(1, 0)
    share, rho = hits.sum() / sizes.sum(), _intraclass(hits, sizes)
    mean_size = float((sizes**2).sum() / sizes.sum())  # size of the cluster a trial lies in
    effective = float(sizes.sum()) / (1 + (mean_size - 1) * rho)
    interval, name = (_exact, "Clopper-Pearson") if exact else (wilson, "Wilson")
    low, high = interval(share * effective, effective, level=level)
    method = f"{name}, clustered by {unit} (effective n {effective:.1f}), {100 * level:g} %"
    return Estimate(float(share), low, high, len(hits), method)


def _intraclass(hits: Array, sizes: Array) -> float:
    """Intra-class correlation of 0/1 trials in [0, 1]; 1 where it cannot be told.

    Source: the analysis-of-variance estimator; Ridout, Demetrio and Firth (1999), Biometrics 55.
    """
    clusters, total = len(hits), float(sizes.sum())
    share = float(hits.sum()) / total
    if share in (0.0, 1.0) or total == clusters:
        return 1.0
    rates = hits / sizes
    between = float((sizes * (rates - share) ** 2).sum()) / (clusters - 1)
    within = float((hits * (1 - rates)).sum()) / (total - clusters)
    typical = (total - float((sizes**2).sum()) / total) / (clusters - 1)
    spread = between + (typical - 1) * within
    return min(1.0, max(0.0, (between - within) / spread)) if spread > 0 else 1.0


# ---- repeated measurements ----


def median_estimate(
    values: Sequence[float], *, level: float = 0.95, unit: str = "repeats"
) -> Estimate:
    """The median of repeats with the narrowest order-statistic interval that reaches `level`.

    No shape is assumed: the interval between the k-th smallest and the k-th largest misses the
    median with the probability that fewer than k of n fair coins fall on one side.

    Raises:
        EvidenceError: too few repeats for `level` (95 % takes six), or one that is not finite.
    """
    ordered, n = sorted(float(v) for v in values), len(values)
    if not all(math.isfinite(v) for v in ordered):
        raise EvidenceError(
            f"median over {unit}", "a value that is not finite", "finite values",
            "Look at what was measured",
        )  # fmt: skip
    best, missed = 0, 0.0
    for k in range(1, n // 2 + 1):
        miss = 2 * sum(math.comb(n, j) for j in range(k)) / 2**n
        if miss <= 1 - level:
            best, missed = k, miss
    if best == 0:
        _enough(n, math.ceil(1 - math.log2(1 - level)), unit)
    middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    method = f"median of {n} {unit}, order statistics, {100 * (1 - missed):.1f} %"
    return Estimate(middle, ordered[best - 1], ordered[n - best], n, method)


# ---- refusals ----


def _enough(found: int, needed: int, unit: str) -> None:
    if found < needed:
        raise EvidenceError(
            f"interval over {unit}", f"{found} {unit}", f"at least {needed}",
            f"Measure on more {unit}",
        )  # fmt: skip


def _finite(values: Array, unit: str) -> None:
    if not np.isfinite(values).all():
        raise EvidenceError(
            f"bootstrap over {unit}", "a total or a resampled statistic that is not finite",
            f"finite values whichever {unit} are drawn",
            f"Look for an infinite or empty one, or measure on more {unit}",
        )  # fmt: skip


def _counted(counts: Array, unit: str) -> None:
    if not counts.sum() > 0:
        raise EvidenceError(
            f"mean over {unit}", "nothing was counted", "a positive number of tokens or trials",
            "Look for empty answers: a mean over nothing is not zero",
        )  # fmt: skip


def _share_counts(successes: float, trials: float) -> None:
    if not (trials > 0 and 0 <= successes <= trials * (1 + 1e-12)):
        raise EvidenceError(
            "interval of a share", f"{successes:g} of {trials:g}",
            "0 <= successes <= trials, and trials > 0",
            "Count again: a share of nothing is not zero",
        )  # fmt: skip
