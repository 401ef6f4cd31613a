"""Exact tests of coins and urns: whether signs lean further than fair coins do, how many marked
balls are drawn, and Holm's correction.

In: differences or counts. Out: p-values that hold at every sample size, without a normal
approximation, and bounds of a share. Nothing here knows what the differences are of. Random
numbers are not used: the same input gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stillhouse.errors import EvidenceError

__all__ = [
    "MOST_PAIRS",
    "SignedRank",
    "binomial_tail",
    "critical_count",
    "holm",
    "hypergeometric",
    "rank_quantile",
    "rank_tail",
    "share_bound",
    "signed_rank",
    "signed_rank_sides",
]

Array = npt.NDArray[np.float64]

MOST_PAIRS = 2000
"""The exact null of so many pairs takes about two seconds; the cost grows with the cube."""


@dataclass(frozen=True, slots=True)
class SignedRank:
    """Wilcoxon's signed-rank test with its exact null, and the sign test beside it."""

    n: int
    """Differences with a sign."""
    zeros: int
    """Differences without one, left out."""
    positive: int
    rank_sum: float
    """Sum of the ranks (of absolute size, ties sharing their mean) of the positive ones."""
    p_value: float
    """P(rank sum at least this large | signs are fair coins)."""
    sign_p_value: float
    """P(at least so many positive | signs are fair coins)."""

    @property
    def standardised(self) -> float:
        """(2 W - S) / S in [-1, 1], S the sum of all ranks: the rank-biserial correlation."""
        whole = self.n * (self.n + 1) / 2
        return (2 * self.rank_sum - whole) / whole


def signed_rank(differences: npt.ArrayLike) -> SignedRank:
    """Whether differences lean to the positive side, one-sided.

    Given their absolute sizes, the signs are independent fair coins under the null. The
    distribution of the rank sum follows by convolution over exactly these ranks, ties included.

    Args:
        differences: (N,), finite.

    Raises:
        EvidenceError: a difference that is not finite, none with a sign, or more than
            `MOST_PAIRS` of them.

    Source: Wilcoxon (1945), Biometrics Bulletin 1; ties as in Pratt and Gibbons (1981), without
    zeros.
    """
    ranks, rank_sum, positive, zeros = _ranked(differences)
    return SignedRank(
        n=len(ranks), zeros=zeros, positive=positive, rank_sum=rank_sum / 2,
        p_value=_observed(rank_tail(ranks, rank_sum), len(ranks)),
        sign_p_value=binomial_tail(positive, len(ranks)),
    )  # fmt: skip


def _ranked(differences: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], int, int, int]:
    """(doubled ranks, their sum over the positive ones, how many are positive, zeros)."""
    values = np.asarray(differences, dtype=np.float64)
    signed = values[values != 0]
    if not np.isfinite(values).all():
        raise _unfit("a difference that is not finite", "finite differences")
    if not len(signed):
        raise _unfit(f"{len(values)} differences, none with a sign", "at least one with a sign")
    if len(signed) > MOST_PAIRS:
        raise _unfit(f"{len(signed)} differences", f"at most {MOST_PAIRS}, drawn at random")
    ranks = _doubled_ranks(np.abs(signed))
    positive = signed > 0
    return ranks, int(ranks[positive].sum()), int(positive.sum()), len(values) - len(signed)


def signed_rank_sides(differences: npt.ArrayLike) -> tuple[float, float]:
    """(p that they lean to the positive side, p that they lean to the negative), both exact.

    Raises:
        EvidenceError: as `signed_rank`.
    """
    ranks, rank_sum, _, _ = _ranked(differences)
    shared = int(np.gcd.reduce(ranks))
    chance, at = _sum_chances(ranks // shared), rank_sum // shared
    up, down = float(chance[at:].sum()), float(chance[: at + 1].sum())
    return _observed(up, len(ranks)), _observed(down, len(ranks))


def _observed(chance: float, pairs: int) -> float:
    """A tail that holds what was observed: at least one outcome of all; long products underflow."""
    return min(1.0, max(chance, 2.0 ** -min(pairs, 1000)))


def _unfit(found: str, expected: str) -> EvidenceError:
    return EvidenceError(
        "signed-rank test", found, expected, "Look at what was measured, or draw fewer pairs"
    )


def _doubled_ranks(sizes: Array) -> npt.NDArray[np.int64]:
    """(N,) twice the rank of each size, 1-based; equal sizes share the mean of their ranks."""
    _, inverse, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)  # the highest rank of each group of equals
    return (2 * last - counts + 1)[inverse].astype(np.int64)


def rank_tail(ranks: npt.NDArray[np.int64], at_least: int) -> float:
    """P(sum of the ranks whose fair coin shows heads >= `at_least`), by convolution.

    Args:
        ranks: (N,) positive whole numbers.
        at_least: the sum observed.
    """
    shared = int(np.gcd.reduce(ranks))  # 2 where nothing is tied: half the work
    chance = _sum_chances(ranks // shared)
    return float(min(1.0, chance[max(0, -(-at_least // shared)) :].sum()))


def rank_quantile(pairs: int, level: float) -> int | None:
    """The smallest rank sum of untied pairs whose tail is at most `level`; None where none is."""
    chance = _sum_chances(np.arange(1, pairs + 1))
    tails = np.cumsum(chance[::-1])[::-1]
    at = int(np.argmax(tails <= level))
    return at if tails[at] <= level else None


def _sum_chances(ranks: npt.NDArray[np.int64]) -> Array:
    """(S + 1,) the chance of each sum of the ranks whose fair coins show heads."""
    chance = np.zeros(int(ranks.sum()) + 1)
    chance[0], reach = 1.0, 0
    for rank in np.sort(ranks).tolist():  # small ones first, so that little is shifted for long
        chance[: reach + 1] /= 2
        chance[rank : reach + rank + 1] += chance[: reach + 1].copy()
        reach += rank
    return chance


def binomial_tail(successes: int, trials: int, chance: float = 0.5) -> float:
    """P(X >= successes) for X binomial, through the regularised incomplete beta function."""
    from scipy.special import betainc

    return 1.0 if successes <= 0 else float(betainc(successes, trials - successes + 1, chance))


def critical_count(trials: int, level: float, chance: float = 0.5) -> int:
    """The fewest successes whose tail is at most the level; `trials` + 1 where none are enough."""
    low, high = 0, trials + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (
            (low, middle) if binomial_tail(middle, trials, chance) <= level else (middle + 1, high)
        )
    return low


def share_bound(successes: int, trials: int, *, level: float = 0.95) -> float:
    """The exact one-sided upper bound of a share: Clopper and Pearson's, one tail.

    Raises:
        EvidenceError: no trials, or more successes than trials.
    """
    if not 0 <= successes <= trials or not trials:
        raise EvidenceError(
            "bound of a share", f"{successes} of {trials}", "successes among at least one trial",
            "Count again",
        )  # fmt: skip
    from scipy.special import betaincinv

    if successes == trials:
        return 1.0
    return float(betaincinv(successes + 1, trials - successes, level))


def hypergeometric(balls: int, marked: int, drawn: int) -> Array:
    """(drawn + 1,) chances of each number of marked balls among those drawn without replacement."""
    from scipy.special import betaln

    def log_choose(n: int, k: Array) -> Array:
        return -np.log(n + 1) - betaln(n - k + 1, k + 1)

    found = np.arange(drawn + 1, dtype=np.float64)
    possible = (found <= marked) & (drawn - found <= balls - marked)
    k, out = found[possible], np.zeros(drawn + 1)
    ways = log_choose(marked, k) + log_choose(balls - marked, drawn - k)
    out[possible] = np.exp(ways - log_choose(balls, np.array(float(drawn))))
    return out


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given: each may be held against the level of the family.

    Source: Holm (1979), Scandinavian Journal of Statistics 6.
    """
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    adjusted, highest = [1.0] * len(p_values), 0.0
    for place, at in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[at]))
        adjusted[at] = highest
    return adjusted
