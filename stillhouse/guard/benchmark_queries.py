"""Two published tests of query streams, on sketches: the MMD window test and PRADA.

In: requests of a benign week and of a week under test. Out: scores of accounts, and of windows of
pooled traffic. Both methods compare embedded queries. There is no text in an events table, so what
stands for the embedding is the sketch: its slots, hashed into a vector, so that inner products
estimate the similarity of byte n-grams, with the capability's code beside it for the topic. A
semantic embedding could see paraphrase better; no figure here speaks about one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import shapiro

from stillhouse.guard.benchmark_events import Requests
from stillhouse.guard.events import CAPABILITIES, SKETCH_SLOTS
from stillhouse.guard.hashing import mix

__all__ = ["embedded", "mmd2_unbiased", "mmd_scores", "mmd_windows", "prada_scores", "prada_w"]

_BUCKETS = 512
_TOPIC = 0.5  # squared norm of the topic beside 1 of the sketch; ours
_POOL = 6000  # benign queries that the null distribution of windows is drawn from
_REFERENCE = 500  # benign queries that accounts are compared with
_MOST_OF_ACCOUNT = 200  # queries of the week; 26 a day are 182
_FEWEST = 20  # queries of an account below which neither test says anything
_OUTLIER = 3.0  # standard deviations beyond which PRADA drops a distance
_NULL = 500
_DISTANCES = 300  # of an account, as it grows: most that PRADA looks at

Floats = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.float32]


def embedded(log: Requests, rows: npt.NDArray[np.integer]) -> Vectors:
    """(rows, dimensions) vectors of some requests; sketches have norm 1, topics 0.5."""
    sketch = log.sketch[rows].astype(np.uint64)
    slot = np.arange(SKETCH_SLOTS, dtype=np.uint64) << np.uint64(32)
    hashed = mix(sketch ^ slot)
    bucket = (hashed % np.uint64(_BUCKETS)).astype(np.int64)
    sign = np.where(hashed >> np.uint64(63), 1.0, -1.0) / np.sqrt(SKETCH_SLOTS)
    sign[~sketch.any(axis=1)] = 0.0  # no text
    out = np.zeros((len(rows), _BUCKETS + len(CAPABILITIES)), np.float32)
    np.add.at(out, (np.arange(len(rows))[:, None], bucket), sign)
    topic = np.minimum(log.columns["capability"][rows], len(CAPABILITIES) - 1).astype(np.int64)
    out[np.arange(len(rows)), _BUCKETS + topic] = np.sqrt(_TOPIC)
    return out


def _squared(x: Vectors, y: Vectors) -> Floats:
    norms = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None, :]
    return np.maximum(norms - 2 * (x @ y.T), 0).astype(np.float64)


def mmd2_unbiased(x: Vectors, y: Vectors, bandwidth: float, within_y: float | None = None) -> float:
    """Unbiased squared maximum mean discrepancy under a Gaussian kernel.

    Args:
        x: (n, d), at least two rows.
        y: (m, d), at least two rows.
        bandwidth: sigma.
        within_y: mean kernel of y's pairs, where it is known.

    Source: Gretton et al. (2012), A kernel two-sample test, JMLR 13.
    """
    if within_y is None:
        within_y = _within(y, bandwidth)
    across = float(np.exp(-_squared(x, y) / (2 * bandwidth**2)).mean())
    return _within(x, bandwidth) + within_y - 2 * across


def _within(x: Vectors, bandwidth: float) -> float:
    kernel = np.exp(-_squared(x, x) / (2 * bandwidth**2))
    return float((kernel.sum() - np.trace(kernel)) / (len(x) * (len(x) - 1)))


def _median_distance(x: Vectors) -> float:
    """The median heuristic."""
    some = x[:500]
    upper = _squared(some, some)[np.triu_indices(len(some), 1)]
    return max(float(np.sqrt(np.median(upper))), 1e-6)


def _some(count: int, most: int, rng: np.random.Generator) -> npt.NDArray[np.integer]:
    return np.sort(rng.choice(count, min(most, count), replace=False))


def mmd_scores(benign: Requests, logs: list[Requests], rng: np.random.Generator) -> list[Floats]:
    """(accounts,) of each log: the statistic of each account's queries against benign ones.

    Accounts of fewer than 20 queries score below all others: their windows are never filled.

    Source: arXiv 2606.05725; there, windows of 100 to 1,500 queries of a user or of all of them.
    """
    reference = embedded(benign, _some(len(benign.account), _REFERENCE, rng))
    bandwidth = _median_distance(reference)
    within = _within(reference, bandwidth)
    out: list[Floats] = []
    for log in logs:
        scores = np.full(len(log.names), -1.0)
        for who in np.flatnonzero(log.events_of >= _FEWEST):
            rows = log.starts[who] + _some(int(log.events_of[who]), _MOST_OF_ACCOUNT, rng)
            scores[who] = mmd2_unbiased(embedded(log, rows), reference, bandwidth, within)
        out.append(scores)
    return out


def mmd_windows(
    benign: Requests,
    test: Requests,
    own: npt.NDArray[np.bool_],
    size: int,
    level: float,
    rng: np.random.Generator,
) -> dict[str, int]:
    """Windows of all accounts' queries in order of time, and how many the test flags: of the benign
    week, of the week under test without the campaign, and of all of it.

    Flagged in two ways: `_sampled` beyond the (1 - level) quantile of random benign samples, as in
    the source; `_ordered` beyond that quantile of the benign week's own windows, since windows in
    order of time hold the bursts of a few accounts and are no random samples.

    Args:
        benign: the benign week.
        test: the week under test.
        own: (events of test,) of campaign accounts.
        size: queries of a window.
        level: stated false-positive rate of windows.
        rng: draws samples.
    """
    pool = embedded(benign, _some(len(benign.account), _POOL, rng))
    pool = pool[rng.permutation(len(pool))]
    bandwidth = _median_distance(pool)
    size = min(size, len(pool) // 2)
    null = np.empty(_NULL)
    # one kernel of the whole pool: samples of it are sums of its entries
    kernel = np.exp(-_squared(pool, pool) / (2 * bandwidth**2)).astype(np.float32)
    for draw in range(_NULL):
        both = rng.permutation(len(pool))[: 2 * size]
        null[draw] = _of_kernel(kernel, both[:size], both[size:])
    reference = pool[:size]
    within = _within(reference, bandwidth)

    def statistics(log: Requests, rows: npt.NDArray[np.integer]) -> Floats:
        rows = rows[np.argsort(log.time[rows], kind="stable")]
        starts = range(0, len(rows) - size + 1, size)
        each = [
            mmd2_unbiased(embedded(log, rows[at : at + size]), reference, bandwidth, within)
            for at in starts
        ]
        return np.array(each)

    found = {
        "benign": statistics(benign, np.arange(len(benign.account))),
        "test_benign": statistics(test, np.flatnonzero(~own)),
        "test": statistics(test, np.arange(len(test.account))),
    }
    sampled = float(np.quantile(null, 1 - level))
    ordered = float(np.quantile(found["benign"], 1 - level)) if len(found["benign"]) else np.inf
    counts: dict[str, int] = {}
    for name, values in found.items():
        counts |= {
            f"{name}_windows": len(values), f"{name}_sampled": int((values > sampled).sum()),
            f"{name}_ordered": int((values > ordered).sum()),
        }  # fmt: skip
    return counts


def _of_kernel(
    kernel: npt.NDArray[np.float32], x: npt.NDArray[np.integer], y: npt.NDArray[np.integer]
) -> float:
    n = len(x)
    own = [kernel[np.ix_(z, z)] for z in (x, y)]
    pairs = sum((float(k.sum()) - float(np.trace(k))) / (n * (n - 1)) for k in own)
    return pairs - 2 * float(kernel[np.ix_(x, y)].mean())


def prada_w(distances: Floats) -> float:
    """Shapiro and Wilk's W of the distances, those beyond three deviations left out; 1 (as normal
    as can be) where they are all alike.
    """
    spread = distances.std()
    kept = distances[np.abs(distances - distances.mean()) <= _OUTLIER * spread]
    if len(kept) < 3 or kept.max() == kept.min():
        return 1.0
    return float(shapiro(kept).statistic)


def prada_scores(log: Requests) -> Floats:
    """(accounts,) 1 - W of each query's distance to the nearest earlier one of the same account.

    Accounts of fewer than 20 queries score below all others.

    Source: Juuti et al. (2019), PRADA, EuroS&P. It keeps queries by predicted class; here, as in
    the adaptation of arXiv 2606.05725, all of a stream are one class.
    """
    out = np.full(len(log.names), -1.0)
    for who in np.flatnonzero(log.events_of >= _FEWEST):
        first = log.starts[who]
        sketch = log.sketch[first : first + min(int(log.events_of[who]), _DISTANCES)]
        alike = np.zeros((len(sketch), len(sketch)), np.int16)
        for slot in range(SKETCH_SLOTS):
            alike += sketch[:, slot, None] == sketch[None, :, slot]
        nearest = np.array([alike[at, :at].max() for at in range(1, len(sketch))])
        out[who] = 1 - prada_w(1 - nearest / SKETCH_SLOTS)
    return out
