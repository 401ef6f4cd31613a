"""Request ids that were seen, as 64-bit hashes: eight bytes each.

In: hashes, a batch at a time, in the order of the logs. Out: which of them come for the first time.
Two different ids share a hash with a chance of 3e-8 among a million, 3e-4 among a hundred million.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["Seen"]


class Seen:
    """A growing set. Sorted runs of doubling sizes: an id is moved about log2(batches) times."""

    def __init__(self) -> None:
        self._runs: list[npt.NDArray[np.uint64]] = []

    def first(self, ids: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Whether each is seen for the first time; 0 (no id) always is. They are seen from now."""
        known, place = np.unique(ids, return_index=True)
        new = np.ones(known.size, bool)
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, known), run.size - 1)
            new &= run[at] != known
        first = np.zeros(ids.size, bool)
        first[place[new]] = True
        first[ids == 0] = True
        self._keep(known[new & (known != 0)])
        return first

    def _keep(self, run: npt.NDArray[np.uint64]) -> None:
        if not run.size:
            return
        while self._runs and self._runs[-1].size <= 2 * run.size:
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")
        self._runs.append(run)
