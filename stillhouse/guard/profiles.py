"""Profiles: what a few events of one customer look like, thinned to equal numbers.

    events of some customers -> rows of counts: activity, coincidences, capabilities, repeats

In: a choice of events and whose they are. Out: for a number of events n, one row for each customer
that has n or more, made of n events drawn at random from theirs. Rows of equal n can be exchanged
for one another, so a group of them can be compared with random groups exactly. Nothing here tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from threading import Lock

import numpy as np
import numpy.typing as npt

from stillhouse.guard.events import CAPABILITIES
from stillhouse.guard.hashing import Ints, mix, run_starts
from stillhouse.guard.population import Population

__all__ = ["CLASSES", "Layout", "Streams"]

_SALT = 0x5711_1075

CLASSES = np.array([2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64])
"""Numbers of events that rows are thinned to; at most a third of a customer's events is left out,
until 64 are kept, which is enough to see a schedule."""


@dataclass(frozen=True)
class Layout:
    """Where things stand in a row."""

    bins: int

    @property
    def same_bin(self) -> int:
        """Ordered pairs of the row's events in one bin."""
        return self.bins

    @property
    def capabilities(self) -> slice:
        """Events by capability."""
        return slice(self.bins + 1, self.bins + 1 + len(CAPABILITIES))

    @property
    def repeats(self) -> int:
        """Events whose payload the customer sent before."""
        return self.bins + 1 + len(CAPABILITIES)

    @property
    def width(self) -> int:
        """Columns of a row."""
        return self.repeats + 1


class Streams:
    """The testing half of some customers' events, in random order within each customer."""

    def __init__(self, population: Population, events: Ints) -> None:
        """Take these events (row numbers), of whichever half; the finding half is dropped."""
        self.population = population
        events = events[population.testing[events]]
        who = population.customer[events]
        # a draw that neither names nor the order of events decide
        lot = mix(population.traffic.fingerprint[events] ^ np.uint64(_SALT))
        order = np.lexsort((lot, who))
        self._events, who = events[order], who[order]
        starts = run_starts(who)
        self.customers: npt.NDArray[np.int32] = who[starts]
        """Who has events here, ascending."""
        self.counts: Ints = np.diff(np.append(starts, len(who)))
        """(customers,) how many."""
        self._starts = starts
        self._rows: dict[int, tuple[Ints, npt.NDArray[np.float32]]] = {}
        self._building = Lock()

    @cached_property
    def layout(self) -> Layout:
        """Where things stand in a row."""
        return Layout(self.population.bins)

    @cached_property
    def days(self) -> Ints:
        """(customers,) blocks of the testing half with at least one event."""
        population = self.population
        owner = np.repeat(np.arange(len(self.customers)), self.counts)
        time = population.traffic.time[self._events]
        block = (time - population.begins) // int(population.block_hours * 3_600_000_000)
        pairs = owner * np.int64(1 << 20) + block
        pairs.sort()
        return np.bincount(pairs[run_starts(pairs)] >> 20, minlength=len(self.customers))

    def rows(self, size: int) -> tuple[Ints, npt.NDArray[np.float32]]:
        """Positions in `customers` of those with at least `size` events, and their rows."""
        with self._building:  # clusters that are tested at once ask for the same rows
            if size not in self._rows:
                self._rows[size] = self._build(size)
        return self._rows[size]

    def _build(self, size: int) -> tuple[Ints, npt.NDArray[np.float32]]:
        at = np.flatnonzero(self.counts >= size)
        layout, population = self.layout, self.population
        out = np.zeros((len(at), layout.width), dtype=np.float32)
        if not len(at):
            return at, out
        events = self._events[(self._starts[at][:, None] + np.arange(size)).ravel()]
        owner = np.repeat(np.arange(len(at)), size)
        flat = np.bincount(
            owner * layout.bins + population.bin[events], minlength=len(at) * layout.bins
        ).reshape(len(at), layout.bins)
        out[:, : layout.bins] = flat
        out[:, layout.same_bin] = (flat * (flat - 1)).sum(axis=1)
        columns = population.traffic.columns
        kinds = len(CAPABILITIES)
        out[:, layout.capabilities] = np.bincount(
            owner * kinds + np.minimum(columns["capability"][events], kinds - 1),
            minlength=len(at) * kinds,
        ).reshape(len(at), kinds)
        whole = np.sort(columns["whole"][events].reshape(len(at), size), axis=1)
        out[:, layout.repeats] = ((np.diff(whole, axis=1) == 0) & (whole[:, 1:] != 0)).sum(axis=1)
        return at, out
