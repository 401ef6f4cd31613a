"""Clusters of customers, found on one half of the days.

    Population + frozen frequencies -> clusters: template keys and their sub-streams, or shared
    infrastructure and its customers

In: a population. Out: clusters that are worth a test: enough unrelated customers, enough events of
the template in each, payloads that are not shared. All of that is looked at in the finding half.
The sub-stream of a cluster is every event with one of its keys, so cover traffic is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import scipy.sparse as sparse

from stillhouse.guard.graph import communities, group_keys, pair_share
from stillhouse.guard.hashing import Hashes, Ints, distinct_per_group, mixed_with, run_starts
from stillhouse.guard.keys import (
    CONTENT,
    INFRASTRUCTURE,
    Frozen,
    KeyTable,
    event_keys,
    shared_keys,
)
from stillhouse.guard.population import Population, home_network
from stillhouse.guard.profiles import Streams
from stillhouse.guard.settings import GuardSettings

__all__ = ["Cluster", "find_clusters"]

_FEWEST_OF_A_KEY = 3
"""Customers of a key that may join a template: fewer are chance."""
_SAME_PEOPLE = 0.4
"""phi of the customers of two groups from which they are one."""
_CARRYING = 0.1
"""Share of a template's customers that a key of it has at least."""
_PASSING = 0.1
"""Share of the median of a template's regular customers below which a customer is a passer-by."""
_CENTRAL = 0.25
"""Share of how common a template's median event is below which a customer stands at its edge. The
development range's members have 0.65 and more where ten or more are found, and 0.3 in crumbs;
strangers whom a chance phrase links have 0.01 to 0.03."""
_LOOKUP = 1 << 22


@dataclass(frozen=True)
class Cluster:
    """Customers that keys of one family link, and what they send under them."""

    population: Population
    family: str
    """Which family found it: content or infrastructure."""
    keys: KeyTable
    events: Ints
    """Rows of its events in both halves, ascending."""
    benign: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """(keys,) benign customers of each key in the calibration."""
    again: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Customers, at home in it or not, who have an event with one of its keys in the testing
    half."""

    @cached_property
    def customers(self) -> npt.NDArray[np.int32]:
        """Who has at least one of its events."""
        return np.unique(self.population.customer[self.events])

    @cached_property
    def streams(self) -> Streams:
        """Its sub-streams in the testing half."""
        return Streams(self.population, self.events)

    @cached_property
    def founders(self) -> int:
        """Customers who have its events in the finding half."""
        events = self.events[~self.population.testing[self.events]]
        return max(1, len(np.unique(self.population.customer[events])))

    @cached_property
    def cohesion(self) -> float:
        """Probability that two of its customers have a key of it in common, in the finding half."""
        return pair_share(self.keys.incidence(self.population.customers)[self.customers])

    @cached_property
    def one_place(self) -> float:
        """Share of its customers who send most of its events in the finding half from one network:
        an office's or a campus' share is near one.
        """
        events = self.events[~self.population.testing[self.events]]
        who, at = np.unique(self.population.customer[events], return_inverse=True)
        network = self.population.traffic.columns["network"][events]
        home = home_network(network, at, len(who))
        if not (home >= 0).any():
            return 0.0
        return float(np.bincount(home[home >= 0]).max() / len(who))

    @cached_property
    def share_of_traffic(self) -> float:
        """Median share of a founder's events that are the cluster's, in the finding half. A phrase
        that heavy customers hit by chance is some thousandths of what they send.
        """
        finding = ~self.population.testing
        mine = self.population.customer[self.events[finding[self.events]]]
        who, count = np.unique(mine, return_counts=True)
        if not len(who):
            return 0.0
        return float(np.median(count / self.population.founding[who]))

    @cached_property
    def disjoint(self) -> float:
        """Share of its payloads that one customer only sent, in the finding half; 0 where no text
        is known.
        """
        events = self.events[~self.population.testing[self.events]]
        whole = self.population.traffic.columns["whole"][events]
        known = whole != 0
        whole, who = whole[known], self.population.customer[events][known]
        if not len(whole):
            return 0.0
        one = np.zeros(len(whole), dtype=np.int64)
        sent = distinct_per_group(one, whole, 1)[0]
        return float(sent / distinct_per_group(one, mixed_with(whole, who), 1)[0])


def find_clusters(
    population: Population, settings: GuardSettings, frozen: Frozen | None
) -> list[Cluster]:
    """Clusters by content, then by infrastructure, each by its own family alone."""
    found: list[Cluster] = []
    if "content" in settings.families:
        found += _by_content(population, settings, frozen)
    if "infrastructure" in settings.families:
        found += _by_infrastructure(population, settings, frozen)
    return found


def _unknown(table: KeyTable, frozen: Frozen | None, settings: GuardSettings) -> KeyTable:
    """Without the keys that benign customers are known to have."""
    if frozen is None:
        return table
    most = max(1.0, settings.known_share * frozen.customers)
    return table.chosen(frozen.of(table.keys) <= most)


def _by_content(
    population: Population, settings: GuardSettings, frozen: Frozen | None
) -> list[Cluster]:
    table = shared_keys(
        population, CONTENT, ~population.testing, fewest=_FEWEST_OF_A_KEY, payloads=True
    )
    table = _unknown(table.chosen(table.disjoint >= settings.disjoint_share), frozen, settings)
    if not len(table.keys):
        return []
    group = _grouped(table, population, settings, frozen)
    table, group = _enough_customers(table, group, population, settings)
    pairs = _cores(population, _events_of_groups(population, table, group), settings)
    group, pairs = _joined(population, group, pairs, settings, frozen)
    keys = _carrying(population, table, group, pairs)
    table, group = table.chosen(keys), group[keys]
    everybody = _events_of_groups(population, table, group)
    pairs = _cores(population, _central(population, table, group, everybody), settings)
    keep = _worth_testing(population, pairs, settings)
    found = _as_clusters(population, "content", table, group, pairs, keep, frozen)
    return [
        replace(cluster, again=_again(population, everybody, number))
        for number, cluster in zip(keep.tolist(), found, strict=True)
        if cluster.cohesion >= settings.cohesion
    ]


def _by_infrastructure(
    population: Population, settings: GuardSettings, frozen: Frozen | None
) -> list[Cluster]:
    table = shared_keys(population, INFRASTRUCTURE, ~population.testing, fewest=_FEWEST_OF_A_KEY)
    rare = table.customers <= settings.popular(population.customers)
    table = _unknown(table.chosen(rare), frozen, settings)
    if not len(table.keys):
        return []
    group = _grouped(table, population, settings, frozen)
    table, group = _enough_customers(table, group, population, settings)
    pairs = _founded(population, _events_of_groups(population, table, group))
    group, pairs = _joined(population, group, pairs, settings, frozen)
    keep = np.unique(group)
    return _as_clusters(population, "infrastructure", table, group, pairs, keep, frozen)


def _grouped(
    table: KeyTable, population: Population, settings: GuardSettings, frozen: Frozen | None
) -> npt.NDArray[np.int64]:
    popular = _popular(table.customers, population, settings, frozen)
    return group_keys(table, population.customers, settings.linked, popular, settings.seed)


def _popular(
    sizes: Ints, population: Population, settings: GuardSettings, frozen: Frozen | None
) -> npt.NDArray[np.bool_]:
    """Which keys or groups link to their like only; with a calibration what is popular is known to
    it and was left out, and what it does not know is what is looked for.
    """
    if frozen is not None:
        return np.zeros(len(sizes), dtype=np.bool_)
    return sizes > settings.popular(population.customers)


def _enough_customers(
    table: KeyTable, group: npt.NDArray[np.int64], population: Population, settings: GuardSettings
) -> tuple[KeyTable, npt.NDArray[np.int64]]:
    """Only the keys of groups with enough customers."""
    packed = group[table.pair_key].astype(np.int64) * population.customers + table.pair_customer
    packed.sort()
    of = packed[run_starts(packed)] // population.customers
    enough = np.bincount(of, minlength=int(group.max()) + 1) >= settings.fewest_customers
    keep = enough[group]
    return table.chosen(keep), np.unique(group[keep], return_inverse=True)[1]


def _events_of_groups(
    population: Population, table: KeyTable, group: npt.NDArray[np.int64]
) -> Hashes:
    """Sorted (group << 32 | event) of both halves, each pair once."""
    pieces: list[Hashes] = [np.zeros(0, dtype=np.uint64)]
    for number, kind in enumerate(table.kinds):
        ours = np.flatnonzero(table.kind == number)
        if not len(ours):
            continue
        order = ours[np.argsort(table.keys[ours])]
        known = table.keys[order]
        may = np.zeros(_LOOKUP, dtype=np.bool_)
        may[(known & np.uint64(_LOOKUP - 1)).astype(np.int64)] = True
        keys = event_keys(population, kind, None)
        rows = np.flatnonzero(may[(keys & np.uint64(_LOOKUP - 1)).astype(np.int64)])
        at = np.minimum(np.searchsorted(known, keys[rows]), len(known) - 1)
        hit = known[at] == keys[rows]
        which = group[order[at[hit]]].astype(np.uint64)
        pieces.append((which << np.uint64(32)) | rows[hit].astype(np.uint64))
    packed = np.sort(np.concatenate(pieces))
    return packed[run_starts(packed)]


def _joined(
    population: Population, group: npt.NDArray[np.int64], pairs: Hashes, settings: GuardSettings,
    frozen: Frozen | None,
) -> tuple[npt.NDArray[np.int64], Hashes]:  # fmt: skip
    """Groups whose customers are the same people become one."""
    groups = int(group.max()) + 1 if len(group) else 0
    of = (pairs >> np.uint64(32)).astype(np.int64)
    who = population.customer[(pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)].astype(np.int64)
    packed = np.sort(who * groups + of) if groups else who
    packed = packed[run_starts(packed)]
    shape = (population.customers, max(groups, 1))
    incidence = sparse.csr_matrix(
        (np.ones(len(packed), dtype=np.float32), (packed // shape[1], packed % shape[1])), shape
    )
    sizes = np.bincount(packed % shape[1], minlength=shape[1])
    popular = _popular(sizes, population, settings, frozen)
    label = communities(incidence, sizes, _SAME_PEOPLE, popular, settings.seed)
    again = (label[of].astype(np.uint64) << np.uint64(32)) | (pairs & np.uint64(0xFFFFFFFF))
    again.sort()
    return label[group].astype(np.int64), again[run_starts(again)]


def _carrying(
    population: Population, table: KeyTable, group: npt.NDArray[np.int64], pairs: Hashes
) -> npt.NDArray[np.bool_]:
    """(keys,) those that a tenth of their group's customers have, or a quarter as many as its
    largest key where that is less: phrases that three people happen to share fall off.
    """
    groups = int(group.max()) + 1 if len(group) else 0
    of = (pairs >> np.uint64(32)).astype(np.int64)
    who = population.customer[(pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)]
    members = distinct_per_group(of, np.uint64(1) + who.astype(np.uint64), groups)
    largest = np.zeros(groups, dtype=np.int64)
    np.maximum.at(largest, group, table.customers)
    return table.customers >= np.minimum(_CARRYING * members, largest / 4)[group]


def _central(
    population: Population, table: KeyTable, group: npt.NDArray[np.int64], pairs: Hashes
) -> Hashes:
    """Only the events of customers whose events have keys that many of their group use.

    A key counts its customers, each by the share of its events in the group that have the key; an
    event is as common as its most common key, a customer as its events are on average. So neither
    volume nor a popular phrase that many send now and then makes anybody a member: strangers who
    touch a template by such phrases fall off, however much they send. In the finding half.
    """
    sender, home, own = _senders(population, pairs)
    events = (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)
    finding = np.flatnonzero(~population.testing[events])
    events, sender_of = events[finding], sender[finding]
    of, each = home[sender_of], 1 / own[sender_of]
    common = np.zeros(len(events))
    for number, kind in enumerate(table.kinds):
        ours = np.flatnonzero(table.kind == number)
        if not len(ours):
            continue
        order = ours[np.argsort(table.keys[ours])]
        values = event_keys(population, kind, events)
        at = np.minimum(np.searchsorted(table.keys[order], values), len(order) - 1)
        has = (table.keys[order[at]] == values) & (group[order[at]] == of)
        customers = np.bincount(at[has], each[has], len(order))
        common = np.maximum(common, np.where(has, customers[at], 0.0))
    mean = np.bincount(sender_of, common, len(home)) / np.maximum(own, 1)
    usual = _middles(of, common, home)
    return pairs[(mean >= _CENTRAL * usual)[sender] & (own > 0)[sender]]


def _senders(population: Population, pairs: Hashes) -> tuple[Ints, Ints, Ints]:
    """Who sends in which group: (pairs,) the sender of each pair; (senders,) the sender's group,
    and its events there in the finding half.
    """
    events = (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)
    of = (pairs >> np.uint64(32)).astype(np.int64)
    slots, at = np.unique(
        of * population.customers + population.customer[events], return_inverse=True
    )
    own = np.bincount(at[~population.testing[events]], minlength=len(slots))
    return at, slots // population.customers, own


def _middles(
    of: Ints, values: Ints | npt.NDArray[np.float64], home: Ints
) -> npt.NDArray[np.float64]:
    """For each of `home`, a group, the upper median of the values of that group; 0 without any."""
    if not len(values):
        return np.zeros(len(home))
    order = np.lexsort((values, of))
    first, last = (np.searchsorted(of[order], home, side) for side in ("left", "right"))
    middle = values[order][np.minimum((first + last) // 2, len(order) - 1)]
    return np.where(last > first, middle, 0.0)


def _founded(population: Population, pairs: Hashes) -> Hashes:
    """Only the events of customers with one of the group in the finding half: whoever is linked by
    days that are tested would be selected by what is tested.
    """
    sender, _, own = _senders(population, pairs)
    return pairs[(own > 0)[sender]]


def _again(population: Population, pairs: Hashes, group: int) -> Ints:
    """Customers with an event of a group in the testing half."""
    first, last = np.searchsorted(pairs, np.array([group, group + 1], dtype=np.uint64) << 32)
    events = (pairs[first:last] & np.uint64(0xFFFFFFFF)).astype(np.int64)
    return np.unique(population.customer[events[population.testing[events]]]).astype(np.int64)


def _cores(population: Population, pairs: Hashes, settings: GuardSettings) -> Hashes:
    """Only the events of customers who are at home in a group: who sent a phrase of it once, or a
    tenth of what its customers usually send, is a passer-by. Counted in the finding half.
    """
    sender, home, own = _senders(population, pairs)
    regular = own >= settings.per_customer
    usual = _middles(home[regular], own[regular], home)
    return pairs[(regular & (own >= _PASSING * usual))[sender]]


def _worth_testing(population: Population, pairs: Hashes, settings: GuardSettings) -> Ints:
    """Groups with enough customers, events and unshared payloads in the finding half."""
    events = (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)
    finding = ~population.testing[events]
    events, of = events[finding], (pairs[finding] >> np.uint64(32)).astype(np.int64)
    groups = int(of.max()) + 1 if len(of) else 0
    who = population.customer[events]
    mixed = np.uint64(1) + who.astype(np.uint64)
    customers = distinct_per_group(of, mixed, groups)
    count = np.bincount(of, minlength=groups)
    whole = population.traffic.columns["whole"][events]
    known = whole != 0
    sent = distinct_per_group(of[known], whole[known], groups)
    owned = distinct_per_group(of[known], mixed_with(whole, who)[known], groups)
    return np.flatnonzero(
        (customers >= settings.fewest_customers)
        & (count >= settings.per_customer * customers)
        & (sent >= settings.disjoint_share * np.maximum(owned, 1))
    )


def _as_clusters(
    population: Population, family: str, table: KeyTable, group: npt.NDArray[np.int64],
    pairs: Hashes, keep: Ints, frozen: Frozen | None,
) -> list[Cluster]:  # fmt: skip
    of = (pairs >> np.uint64(32)).astype(np.int64)
    found: list[Cluster] = []
    for number in keep:
        first, last = np.searchsorted(of, [number, number + 1])
        keys = table.chosen(group == number)
        events = (pairs[first:last] & np.uint64(0xFFFFFFFF)).astype(np.int64)
        known = frozen.of(keys.keys) if frozen is not None else np.zeros(0, dtype=np.int64)
        found.append(Cluster(population, family, keys, events, known))
    return found
