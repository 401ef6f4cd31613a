"""How many exchanges an effect needs, before anybody is asked.

In: an effect, as the share of pairs that lean to the served answer, a level and a power. Out: the
number of pairs. The sign test's numbers are exact; the signed-rank test's come from simulated
normal differences with that share, whose sizes carry information as well as their signs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from stillhouse.exact import MOST_PAIRS, binomial_tail, critical_count, rank_quantile

__all__ = ["LEVELS", "SHARES", "PowerRow", "pairs_needed", "power_table", "smallest_share"]

SHARES = (0.52, 0.55, 0.6, 0.65, 0.7, 0.8, 0.9)
"""Effects of the table: a student trained for one epoch leans in 0.7 to 0.9 of pairs, a diluted one
in less (docs/audit.md)."""
LEVELS = (0.01, 1e-6)
POWER = 0.9

_DRAWS = 2000  # simulated tests: a power of .9 is known to within .013
_MOST_SIGNS = 200_000


@dataclass(frozen=True, slots=True)
class PowerRow:
    """What one effect needs at one level."""

    share: float
    level: float
    power: float
    sign_test: int | None
    """Pairs, exact; None where more than 200,000."""
    signed_rank: int | None
    """Pairs, simulated; None where more than the exact test takes."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


def power_table(
    shares: Sequence[float] = SHARES, levels: Sequence[float] = LEVELS, power: float = POWER
) -> list[PowerRow]:
    """A row for each share and level."""
    return [
        PowerRow(share, level, power, _signs_needed(share, level, power),
                 pairs_needed(share, level, power))
        for level in levels
        for share in shares
    ]  # fmt: skip


def _signs_needed(share: float, level: float, power: float) -> int | None:
    """The smallest number of pairs from which the exact sign test has the power."""
    return _search(lambda n: _sign_power(n, share, level) >= power, _MOST_SIGNS)


def _sign_power(pairs: int, share: float, level: float) -> float:
    fewest = critical_count(pairs, level)
    return 0.0 if fewest > pairs else binomial_tail(fewest, pairs, share)


def pairs_needed(share: float, level: float, power: float = POWER) -> int | None:
    """The number of pairs from which the exact signed-rank test has the power."""
    signs = _signs_needed(share, level, power)
    # It takes about two thirds of the sign test's pairs (pi / 2 for small normal shifts).
    if signs is None or signs > 2 * MOST_PAIRS:
        return None
    return _search(lambda n: _rank_power(n, share, level) >= power, MOST_PAIRS, signs // 2)


def _rank_power(pairs: int, share: float, level: float) -> float:
    critical = rank_quantile(pairs, level)
    if critical is None:
        return 0.0
    shift = NormalDist().inv_cdf(share)
    rng, hits = np.random.default_rng(pairs), 0
    step = max(1, 2_000_000 // pairs)
    for start in range(0, _DRAWS, step):
        drawn = rng.normal(shift, 1.0, (min(step, _DRAWS - start), pairs))
        order = np.abs(drawn).argsort(axis=1)  # the rank of a difference is its place here
        positive = np.take_along_axis(drawn > 0, order, axis=1)
        hits += int((positive @ np.arange(1, pairs + 1) >= critical).sum())
    return hits / _DRAWS


def _search(enough: Callable[[int], bool], most: int, guess: int = 5) -> int | None:
    """The smallest n up to `most` that is enough, where more is never less (but for rounding)."""
    low, high = 5, min(most, max(5, guess))
    while not enough(high):
        if high >= most:
            return None
        low, high = high + 1, min(most, 2 * high)
    while low < high:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle + 1
    return high


def smallest_share(pairs: int, level: float, power: float = POWER) -> float | None:
    """The smallest share that this many pairs would find with the power; None where no share is."""
    if _rank_power(pairs, 0.999, level) < power:
        return None
    low, high = 0.5, 0.999
    while high - low > 0.002:
        middle = (low + high) / 2
        if _rank_power(pairs, middle, level) >= power:
            high = middle
        else:
            low = middle
    return high
