"""Random groups of customers within strata, and p-values counted over them.

In: who is tested, who they are drawn against, strata, a statistic of groups. Out: p-values with
resolution 1 / (draws + 1). The observed group is one of the draws that the null could have given,
hence the + 1. Nothing here knows what the statistic means.

Source: Phipson and Smyth (2010), Permutation p-values should never be zero; Besag and Clifford
(1991), Sequential Monte Carlo p-values, Biometrika 78.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["FIRST_DRAWS", "Candidates", "Counted", "Groups", "count_p_values", "counted"]

FIRST_DRAWS = 99
"""Draws before it is decided whether a cluster is worth the full number."""
_AT_ONCE = 500_000
"""Row numbers drawn at once: 4 MB, which stays in a cache."""
_LARGE = 20
"""From so many times the group on, drawing with and without replacement differ by under 5 % of
the variance of a mean, and drawing with replacement is cheap."""
_FEWEST = 30
"""Candidates that a stratum has at least."""

Index = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Groups:
    """Groups like the tested one: as many rows from each stratum, its own rows among them."""

    strata: tuple[tuple[int, Index], ...]
    """(how many, candidate rows) of each stratum."""

    @property
    def size(self) -> int:
        """Rows in a group."""
        return sum(count for count, _ in self.strata)

    def draw(self, groups: int, rng: np.random.Generator) -> Index:
        """(groups, size) row numbers; no row twice in a group, unless candidates are many."""
        return np.concatenate(
            [_pick(rows, count, groups, rng) for count, rows in self.strata], axis=1
        )


class Candidates:
    """Rows to draw from, in strata of traits that the candidates alone decide.

    A tree: at each level neighbouring values of one trait are joined until a stratum has enough
    candidates. Members are then put into it. As the strata do not depend on who is a member, a
    group is exchangeable with its draws inside each of them.
    """

    def __init__(self, rows: Index, traits: Sequence[npt.NDArray[np.integer]]) -> None:
        """Build the tree.

        Args:
            rows: (candidates,) row numbers.
            traits: each (candidates,); the most important first, as the last are joined first.
        """
        self._rows = rows
        self._upper: Index = np.zeros(0, dtype=np.int64)
        self._children: list[Candidates] = []
        if traits:
            values, count = np.unique(traits[0], return_counts=True)
            first = 0
            for last in range(len(values)):
                rest = int(count[last + 1 :].sum())
                enough = int(count[first : last + 1].sum()) >= _FEWEST
                if last == len(values) - 1 or (enough and rest >= _FEWEST):
                    ours = (traits[0] >= values[first]) & (traits[0] <= values[last])
                    self._upper = np.append(self._upper, values[last])
                    self._children.append(Candidates(rows[ours], [t[ours] for t in traits[1:]]))
                    first = last + 1

    def matching(self, rows: Index, traits: Sequence[npt.NDArray[np.integer]]) -> Groups:
        """Groups with as many rows from each stratum as these have there, themselves included."""
        if not traits or not self._children:
            return Groups(((len(rows), np.concatenate([self._rows, rows])),))
        at = np.minimum(np.searchsorted(self._upper, traits[0]), len(self._children) - 1)
        strata: list[tuple[int, Index]] = []
        for number in np.unique(at):
            ours = at == number
            inner = self._children[number].matching(rows[ours], [t[ours] for t in traits[1:]])
            strata += inner.strata
        return Groups(tuple(strata))


def _pick(rows: Index, count: int, groups: int, rng: np.random.Generator) -> Index:
    if len(rows) >= _LARGE * count:
        return rows[rng.integers(len(rows), size=(groups, count))]
    if 2 * count > len(rows):
        keys = rng.random((groups, len(rows)), dtype=np.float32)
        return rows[np.argsort(keys, axis=1)[:, :count]]
    # Repeats are drawn again until none is left: rows are interchangeable, so every set of `count`
    # rows stays equally likely.
    at = np.sort(rng.integers(len(rows), size=(groups, count)), axis=1)
    while True:
        twice = at[:, 1:] == at[:, :-1]
        left = np.flatnonzero(twice.any(axis=1))
        if not len(left):
            return rows[at]
        again = at[left]
        here = np.nonzero(twice[left])
        again[here[0], here[1]] = rng.integers(len(rows), size=len(here[0]))
        at[left] = np.sort(again, axis=1)


@dataclass(frozen=True)
class Counted:
    """(tests,) each."""

    observed: Floats
    p_values: Floats
    typical: Floats
    """Median of the random groups."""


def count_p_values(
    groups: Groups,
    members: Index,
    statistics: Callable[[Index], Floats],
    draws: int,
    rng: np.random.Generator,
) -> Counted:
    """Share of groups whose statistic is at least the observed one, itself included.

    Args:
        groups: what is drawn.
        members: rows of the tested group.
        statistics: (groups, size) row numbers to (groups, tests); larger is more suspicious.
        draws: how many groups.
        rng: the seeded generator.
    """
    observed = statistics(members[None, :])[0]
    return counted(groups, observed, statistics, draws, rng)


def counted(
    groups: Groups, observed: Floats, statistics: Callable[[Index], Floats], draws: int,
    rng: np.random.Generator,
) -> Counted:  # fmt: skip
    """The same, for a statistic that the members' rows alone do not give."""
    beyond, left, typical = np.zeros(len(observed)), draws, observed
    step = max(1, _AT_ONCE // max(1, groups.size))
    while left > 0:
        values = statistics(groups.draw(min(step, left), rng))
        if left == draws:
            typical = np.median(values, axis=0)
        beyond += (values >= observed - 1e-12).sum(axis=0)
        left -= len(values)
    return Counted(observed, (1 + beyond) / (draws + 1), typical)
