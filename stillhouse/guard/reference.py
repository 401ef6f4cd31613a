"""Everybody a cluster is compared with: streams, rates, lives and keys of customers in no cluster.

In: a population and who is free. Out: what random groups are drawn from, made once for all
clusters. A customer of any cluster under test is not drawn, so that one campaign, or one part of
it, does not stand in the null of another. Nothing here tests.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock

import numpy as np
import numpy.typing as npt
import scipy.sparse as sparse

from stillhouse.guard.draws import Candidates
from stillhouse.guard.hashing import Ints, run_starts
from stillhouse.guard.keys import KeyTable
from stillhouse.guard.population import Population
from stillhouse.guard.profiles import CLASSES, Streams
from stillhouse.guard.traffic import HOUR

__all__ = ["SLOT", "Pool", "Reference"]

SLOT = 12.0
"""Hours of the bins in which customers begin and fall silent."""
_QUIET_HOURS = 48.0
"""Without events for so long from the window's begin, a customer began inside it; until its end, it
fell silent. An account with eighteen events a week is quiet for two days once in 170 weeks."""

_SWITCH_HOURS = 6.0
"""Bins in which customers take up a new model; one reported campaign moved half of its traffic
within a day."""
_FEWEST_TOOK = 5
"""Customers, of all, who take up a new model; a name that fewer use is a fine-tune of their own."""

_ANYBODYS = "network"
"""The kind of key that strangers have in common: who writes one language lives in a few regions and
shares their networks. It has a weight in the statistic, but nobody belongs together by it alone."""


@dataclass(frozen=True)
class Held:
    """Keys of one family, by customer."""

    incidence: sparse.csr_matrix
    """(customers, keys) who has what."""
    rarity: npt.NDArray[np.float64]
    """(keys,) logarithm of all customers over the key's."""
    own: npt.NDArray[np.bool_]
    """(keys,) whether sharing it means to belong together."""


@dataclass(frozen=True)
class Pool:
    """Rows of one size to draw from."""

    rows: npt.NDArray[np.float32]
    candidates: Candidates


@dataclass
class Reference:
    """What random groups are drawn from."""

    population: Population
    streams: Streams
    """Of all customers."""
    open: npt.NDArray[np.bool_]
    """(customers,) whether a customer may be drawn."""
    tables: dict[str, KeyTable]
    """Family -> keys that may speak for clusters found by another."""
    _pools: dict[int, Pool] = field(default_factory=dict)
    _building: Lock = field(default_factory=Lock)

    def without(self, members: Ints) -> Reference:
        """The same, where none of these is drawn."""
        if not self.open[members].any():
            return self
        free = self.open.copy()
        free[members] = False
        other = Reference(self.population, self.streams, free, self.tables)
        for made in ("held", "lives", "switches"):  # of all customers, whoever may be drawn
            other.__dict__[made] = getattr(self, made)
        return other

    def traits(self, customers: npt.NDArray[np.integer]) -> list[npt.NDArray[np.integer]]:
        """Volume in the testing half, phase and kind; kind is given up first.

        Volume is the customer's whole, whatever a row is thinned to: eight events left of three
        hundred are less crowded in time than somebody's only eight.
        """
        kinds = self.population.kind[customers]
        return [self._volume_class[customers], self.population.phase[customers], kinds]

    @cached_property
    def _volume_class(self) -> npt.NDArray[np.int64]:
        """(customers,) of the events in the testing half: as rows are thinned, then by doubling."""
        steps = np.concatenate([CLASSES, 64 * 2 ** np.arange(1, 30)])
        volume = np.zeros(self.population.customers, dtype=np.int64)
        volume[self.streams.customers] = self.streams.counts
        return np.searchsorted(steps, volume, side="right")

    def pool(self, size: int) -> Pool:
        """Rows of customers with at least `size` events."""
        with self._building:  # clusters that are tested at once ask for the same pools
            if size not in self._pools:
                at, rows = self.streams.rows(size)
                free = self.open[self.streams.customers[at]]
                who = self.streams.customers[at][free]
                strata = Candidates(np.arange(len(who)), self.traits(who))
                self._pools[size] = Pool(rows[free], strata)
        return self._pools[size]

    def thinned_to(self, counts: Ints, fewest: int) -> Ints:
        """Size of row for each number of events; 0 where fewer than so many others have as many."""
        fitting = CLASSES[counts.max(initial=0) >= CLASSES].tolist()
        usable = [0, *(size for size in fitting if len(self.pool(size).rows) >= fewest)]
        at = np.searchsorted(np.array(usable), counts, side="right") - 1
        return np.array(usable)[at]

    @cached_property
    def free(self) -> Ints:
        """Customers that may be drawn."""
        return np.flatnonzero(self.open)

    @cached_property
    def by_size(self) -> Candidates:
        """Customers that may be drawn, by volume."""
        return Candidates(self.free, [self.population.size_class[self.free]])

    @cached_property
    def rates(self) -> tuple[npt.NDArray[np.float64], Ints]:
        """Events per active day, and active days, of those with events in the testing half."""
        free = self.open[self.streams.customers]
        days = self.streams.days[free]
        return self.streams.counts[free] / days, days

    @cached_property
    def held(self) -> dict[str, Held]:
        """Family -> what each customer has of it."""
        out: dict[str, Held] = {}
        for family, table in self.tables.items():
            if len(table.keys):
                out[family] = Held(
                    table.incidence(self.population.customers),
                    np.log(self.population.customers / table.customers),
                    np.array(table.kinds)[table.kind] != _ANYBODYS,
                )  # fmt: skip
        return out

    @cached_property
    def lives(self) -> tuple[npt.NDArray[np.float32], int]:
        """(customers, 2 slots) 1 where a customer begins and where it falls silent, and slots."""
        population = self.population
        first, last = population.lives
        begins, ends = population.traffic.span
        quiet, slot = int(_QUIET_HOURS * HOUR), int(SLOT * HOUR)
        slots = int((ends - begins) // slot) + 2
        table = np.zeros((population.customers, 2 * slots), dtype=np.float32)
        born = np.flatnonzero(first > begins + quiet)
        gone = np.flatnonzero(last < ends - quiet)
        table[born, (first[born] - begins) // slot] = 1
        table[gone, slots + (last[gone] - begins) // slot] = 1
        return table, slots

    @cached_property
    def switches(self) -> npt.NDArray[np.float32] | None:
        """(customers, new models x slots) 1 where a customer first used a model that came out
        inside the window; None where none did.
        """
        population, traffic = self.population, self.population.traffic
        begins, ends = traffic.span
        slot = int(_SWITCH_HOURS * HOUR)
        slots = int((ends - begins) // slot) + 1
        model, pieces = traffic.columns["model"], []
        order = np.argsort(model, kind="stable")
        for used in np.split(order, run_starts(model[order])[1:]):
            if traffic.time[used].min() < begins + int(24 * HOUR):
                continue
            first = np.full(population.customers, np.iinfo(np.int64).max)
            np.minimum.at(first, population.customer[used], traffic.time[used])
            took = np.flatnonzero((first <= ends) & (population.lives[0] < first))
            if len(took) < _FEWEST_TOOK:
                continue
            table = np.zeros((population.customers, slots), dtype=np.float32)
            table[took, (first[took] - begins) // slot] = 1
            pieces.append(table)
        return np.concatenate(pieces, axis=1) if pieces else None
