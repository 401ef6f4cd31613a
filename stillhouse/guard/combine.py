"""P-values together: valid whatever the dependence, unless independence is argued.

In: p-values. Out: p-values. Within a family the least is multiplied by how many were looked at
(Bonferroni). Between families the question is whether at least two speak, which is the partial
conjunction null and needs no independence. Tippett's minimum is used in one place only, where one
test is exact given the other's data. Nothing here knows what the p-values are of.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["at_least_two", "benjamini_hochberg", "bonferroni", "tippett"]


def bonferroni(p_values: Sequence[float]) -> float:
    """P-value of "some of these hypotheses is false", valid under any dependence; 1 for none."""
    return min(1.0, len(p_values) * min(p_values)) if p_values else 1.0


def tippett(first: float, second: float) -> float:
    """P-value of "one of two is false" from two p-values that are independent under the null: the
    smaller is at most x with probability 1 - (1 - x)^2.
    """
    least = min(first, second)
    return least * (2 - least)


def at_least_two(p_values: Sequence[float]) -> float:
    """P-value of "at least two of these n hypotheses are false": (n - 1) times the second least.

    Where at most one is false, n - 1 true ones hold the second least or something smaller, so
    Bonferroni over them bounds it, under any dependence. 1 where there are fewer than two.

    Source: Benjamini and Heller (2008), Screening for partial conjunction hypotheses, Biometrics
    64, with r = 2 and Bonferroni.
    """
    if len(p_values) < 2:
        return 1.0
    return min(1.0, (len(p_values) - 1) * sorted(p_values)[1])


def benjamini_hochberg(p_values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """(N,) q-values: the least false discovery rate at which each would be called.

    Source: Benjamini and Hochberg (1995), JRSS B 57; holds under positive dependence, too
    (Benjamini and Yekutieli 2001).
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not len(p):
        return p
    order = np.argsort(p, kind="stable")
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    out = np.empty(len(p))
    out[order] = np.minimum(1.0, np.minimum.accumulate(scaled[::-1])[::-1])
    return out
