"""Tests of one cluster against random groups of unrelated customers.

    a cluster's sub-streams + everybody else's streams -> p-values and effects by family

The null of every test: given volume, kind and daily phase, the cluster's customers are to the rest
as any random group. What found a cluster never tests it: content and timing are compared on days
that found nothing, and the fixed traits
(payment, sign-up) only where they were not the link.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy.sparse as sparse

from stillhouse.exact import hypergeometric
from stillhouse.guard.combine import bonferroni, tippett
from stillhouse.guard.draws import FIRST_DRAWS, Candidates, Groups, count_p_values, counted
from stillhouse.guard.graph import pair_share
from stillhouse.guard.hashing import Ints
from stillhouse.guard.profiles import Layout, Streams
from stillhouse.guard.reference import SLOT, Held, Reference
from stillhouse.guard.settings import GuardSettings

__all__ = [
    "Effort", "Finding", "family_p_values", "load_balance", "model_switch", "profile_tests",
    "seen_again", "shared_test", "successions",
]  # fmt: skip

Floats = npt.NDArray[np.float64]
_FEWEST_ROWS = 5
_GROUPS_TO_COMPARE = 99
_KEYS_AT_ONCE = 1_000_000
_FEWEST_POOL = 100
"""Below so many customers to draw from, the least p-value says more of the pool than of the
cluster."""


@dataclass(frozen=True)
class Finding:
    """What one test of one cluster found."""

    family: str
    test: str
    p_value: float
    effect: float
    """In the test's own unit; `typical` is the same of random groups."""
    typical: float
    n: int
    """Customers that entered."""


@dataclass(frozen=True)
class Effort:
    """How much is drawn, and from which effects on a p-value counts."""

    settings: GuardSettings
    draws: int
    rng: np.random.Generator
    lot: tuple[int, ...]
    """Seed of which members enter, where they are many: the same at every stage of a test, as a
    second look at others would be a second try."""

    def some(self, members: Ints) -> Ints:
        """At most `most_tested` of them, at random, in ascending order."""
        most = self.settings.most_tested
        if len(members) <= most:
            return members
        return np.sort(np.random.default_rng(self.lot).choice(members, most, replace=False))


# ---- schedule, focus, repeats: rows of counts ----


def profile_tests(cluster: Streams, reference: Reference, effort: Effort) -> list[Finding]:
    """Schedule, focus and repeats of the sub-streams, against rows of equal size of others."""
    layout = cluster.layout
    sizes = reference.thinned_to(cluster.counts, _FEWEST_POOL)
    entering = effort.some(np.flatnonzero(sizes > 0))
    if len(entering) < _FEWEST_ROWS:
        return []
    tables: list[npt.NDArray[np.float32]] = []
    strata: list[tuple[int, Ints]] = []
    ours: list[Ints] = []
    base = 0
    for size in np.unique(sizes[entering]):
        at, rows = cluster.rows(int(size))
        chosen = np.isin(at, entering[sizes[entering] == size])
        pool = reference.pool(int(size))
        mine = base + len(pool.rows) + np.arange(int(chosen.sum()))
        groups = pool.candidates.matching(
            mine - base, reference.traits(cluster.customers[at[chosen]])
        )
        strata += [(count, rows_of + base) for count, rows_of in groups.strata]
        tables += [pool.rows, rows[chosen]]
        ours.append(mine)
        base += len(pool.rows) + len(mine)
    taken = sizes[entering].astype(np.float64)
    statistics = _profile_statistics(np.concatenate(tables), layout, taken)
    found = count_p_values(
        Groups(tuple(strata)), np.concatenate(ours), statistics, effort.draws, effort.rng
    )
    n, p = len(entering), found.p_values.tolist()
    seen, usual = found.observed, found.typical
    if np.exp(seen[0]) < effort.settings.same_schedule:  # significant, but no single schedule
        p[0] = 1.0
    return [
        Finding("timing", "one schedule", p[0], float(np.exp(seen[0])), float(np.exp(usual[0])), n),
        Finding("content", "narrow focus", p[1], float(seen[1]), float(usual[1]), n),
        Finding("content", "few repeats", p[2], float(-seen[2] / taken.sum()),
                float(-usual[2] / taken.sum()), n),
        Finding("content", "task in common", p[3], float(seen[3]), float(usual[3]), n),
    ]  # fmt: skip


def _profile_statistics(
    table: npt.NDArray[np.float32], layout: Layout, taken: Floats
) -> Callable[[Ints], Floats]:
    """Statistics of groups of rows: log ratio of coincidences between and within customers,
    Simpson index of capabilities, minus the number of repeats, and the excess of customers with
    some event of one capability. The last counts customers and not events: most wordings carry no
    mark of what they are for, so a campaign shows a rare capability in many customers, and one
    customer may have any amount of it.
    """
    has = (table[:, layout.capabilities] > 0).astype(np.float32)
    has[:, 0] = 0  # `other` is no task
    usual = len(taken) * has.mean(axis=0, dtype=np.float64)
    total, squares = taken.sum(), (taken**2).sum()
    pairs_within, pairs_between = (taken * (taken - 1)).sum(), total**2 - squares

    def statistics(index: Ints) -> Floats:
        sums = row_sums(table, index)
        bins = sums[:, : layout.bins]
        within = sums[:, layout.same_bin]
        between = (bins**2).sum(axis=1) - within - total
        ratio = np.log(np.maximum(between, 0.5) / pairs_between) - np.log(
            np.maximum(within, 0.5) / pairs_within
        )
        share = sums[:, layout.capabilities] / total
        task = ((row_sums(has, index) - usual) / np.sqrt(usual + 1)).max(axis=1)
        return np.column_stack([ratio, (share**2).sum(axis=1), -sums[:, layout.repeats], task])

    return statistics


def row_sums(table: npt.NDArray[np.float32], index: Ints) -> Floats:
    """(groups, columns) sums of the rows of each group; counts below 2**24 are exact."""
    groups, size = index.shape
    ones = np.ones(groups * size, dtype=np.float32)
    starts = np.arange(0, groups * size + 1, size)
    chosen = sparse.csr_matrix((ones, index.ravel(), starts), shape=(groups, len(table)))
    return np.asarray(chosen @ table, dtype=np.float64)


def seen_again(members: Ints, again: Ints, reference: Reference) -> list[Finding]:
    """Whether a template's customers send it on the other days, more than random ones do.

    Nothing is drawn: in random groups within strata the number who do is a sum of hypergeometric
    counts. `again` are all customers who sent it in the testing half, members or not.
    """
    if len(members) < _FEWEST_ROWS or len(reference.free) < _FEWEST_POOL:
        return []
    sent = np.zeros(reference.population.customers, dtype=np.int64)
    sent[again] = 1
    likely = np.ones(1)
    for count, rows in _groups_by_size(members, reference).strata:
        likely = np.convolve(likely, hypergeometric(len(rows), int(sent[rows].sum()), count))
    n, seen = len(members), int(sent[members].sum())
    usual = int(np.searchsorted(np.cumsum(likely), 0.5))
    p = min(1.0, max(float(likely[seen:].sum()), np.finfo(float).tiny))
    return [Finding("content", "template again", p, seen / n, usual / n, n)]


# ---- load balance ----


def load_balance(cluster: Streams, reference: Reference, effort: Effort) -> list[Finding]:
    """Whether the template's load is spread more evenly than customers' volumes are.

    Each random group's daily rates are scaled to the cluster's median and drawn as Poisson counts,
    so both sides carry the same noise of counting. The statistic is minus the spread of the
    logarithm of events per active day.
    """
    pool_rate, pool_days = reference.rates
    entering = effort.some(np.arange(len(cluster.customers)))
    if len(entering) < _FEWEST_ROWS or len(pool_rate) < _FEWEST_POOL:
        return []
    rate = cluster.counts[entering] / cluster.days[entering]
    expected = np.median(rate) * pool_rate / np.median(pool_rate) * pool_days
    expected, rng = np.minimum(expected, 1e6), effort.rng

    def statistics(index: Ints) -> Floats:
        return -_log_variance(rng.poisson(expected[index]), pool_days[index])[:, None]

    counts = cluster.counts[entering]
    seen = float(_log_variance(counts, cluster.days[entering]))
    groups = Groups(((len(entering), np.arange(len(pool_rate))),))
    noise = float(np.mean(1 / counts))  # variance of the logarithm of a Poisson count, about
    bars = effort.settings
    even = seen - noise <= bars.even_load**2 and np.median(counts) >= bars.counted
    draws = effort.draws if even else min(FIRST_DRAWS, effort.draws)
    found = counted(groups, np.array([-seen]), statistics, draws, rng)
    spread = np.sqrt(np.maximum(0.0, np.array([seen, -found.typical[0]]) - noise))
    p = float(found.p_values[0]) if even else 1.0
    return [Finding("timing", "load balance", p, float(spread[0]), float(spread[1]), len(entering))]


def _log_variance(counts: npt.NDArray[np.number], days: Ints) -> Floats:
    """Variance over the last axis of the logarithm of counts per day; zeros are left out."""
    there = counts > 0
    logs = np.log(np.where(there, counts, 1) / days) * there
    n = np.maximum(there.sum(axis=-1), 1)
    mean = logs.sum(axis=-1) / n
    return (logs**2).sum(axis=-1) / n - mean**2


# ---- keys in common ----


def shared_test(family: str, members: Ints, reference: Reference, effort: Effort) -> list[Finding]:
    """Whether a cluster's customers share keys that did not link them more than random ones do.

    The statistic adds, over keys, the rarity (the logarithm of all customers over the key's) times
    the customers beyond the first. Empty where no key of this family is recorded for them.
    """
    held = reference.held.get(family)
    members = effort.some(members)
    if held is None or len(members) < _FEWEST_ROWS or len(reference.free) < _FEWEST_POOL:
        return []

    # so many groups at once that their keys, or those of who is drawn, take some 30 MB
    strata = _groups_by_size(members, reference).strata
    keys = np.diff(held.incidence.indptr)
    each = len(members) + max(keys[members].sum(), sum(n * keys[rows].mean() for n, rows in strata))
    at_once = max(1, int(_KEYS_AT_ONCE / each))

    def statistics(index: Ints) -> Floats:
        pieces = [index[at : at + at_once] for at in range(0, len(index), at_once)]
        return np.concatenate([rarities(piece) for piece in pieces])

    def rarities(index: Ints) -> Floats:
        packed, _ = _held_by(index, held.incidence)
        packed.sort()
        which = packed[1:][packed[1:] == packed[:-1]]
        rarity = held.rarity[which % len(held.rarity)]
        sums = np.bincount(which // len(held.rarity), rarity, minlength=len(index))
        return sums.astype(np.float64)[:, None]

    found = _by_size(family, "keys in common", members, statistics, reference, effort, len(members))
    if found[0].p_value < 1 and not _belong_together(family, members, reference, effort):
        found = [replace(found[0], p_value=1.0)]
    return found


def _belong_together(family: str, members: Ints, reference: Reference, effort: Effort) -> bool:
    """Whether most are like one another, and not a few who belong together among many.

    Content: two at random have a template in common; colleagues of one language have phrases.
    """
    held = reference.held[family]
    if family == "content":
        return pair_share(held.incidence[members]) >= effort.settings.cohesion
    groups = _groups_by_size(members, reference)
    few = np.concatenate([members[None], groups.draw(_GROUPS_TO_COMPARE, effort.rng)])
    share = _sharers(few, held, reference.population.home) / len(members)
    return bool(share[0] - np.median(share[1:]) >= effort.settings.sharing)


def _held_by(index: Ints, incidence: sparse.csr_matrix) -> tuple[Ints, Ints]:
    """Group and key of each key that a customer of a group has, packed; how many each has."""
    starts, keys, kinds = incidence.indptr, incidence.indices, incidence.get_shape()[1]
    first = starts[index].astype(np.int64)
    lengths = (starts[index + 1] - first).ravel()
    group = np.repeat(np.arange(len(index)), lengths.reshape(index.shape).sum(axis=1))
    inner = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return group * kinds + keys[np.repeat(first.ravel(), lengths) + inner], lengths


def _sharers(index: Ints, held: Held, home: Ints) -> Ints:
    """(groups,) customers with a key of their own that another of their group has.

    Those at home in the group's commonest network do not count: one place may be an office or a
    campus, whose people have a card or a sign-up in common, too. A campaign's pools are several.
    """
    packed, lengths = _held_by(index, held.incidence)
    whose = np.repeat(np.arange(index.size), lengths)
    own = held.own[packed % len(held.rarity)]
    packed, whose = packed[own], whose[own]
    _, at, count = np.unique(packed, return_inverse=True, return_counts=True)
    some = np.zeros(index.size, dtype=np.bool_)
    some[whose[count[at] > 1]] = True
    some = some.reshape(index.shape)
    for row, where in enumerate(home[index]):
        places, count = np.unique(where[where >= 0], return_counts=True)
        if len(places) and count.max() > 1:
            some[row, where == places[count.argmax()]] = False
    return some.sum(axis=1)


def _groups_by_size(members: Ints, reference: Reference) -> Groups:
    return reference.by_size.matching(members, [reference.population.size_class[members]])


def _by_size(
    family: str, test: str, members: Ints, statistics: Callable[[Ints], Floats],
    reference: Reference, effort: Effort, per: float,
) -> list[Finding]:  # fmt: skip
    """One finding against random customers of equal volume."""
    groups = _groups_by_size(members, reference)
    found = count_p_values(groups, members, statistics, effort.draws, effort.rng)
    seen, usual = float(found.observed[0]) / per, float(found.typical[0]) / per
    return [Finding(family, test, float(found.p_values[0]), seen, usual, len(members))]


# ---- succession ----


def successions(members: Ints, reference: Reference, effort: Effort) -> list[Finding]:
    """Whether customers begin within a day of others' falling silent, more than random ones do.

    Empty where fewer than five members begin, or fewer than five fall silent, inside the window.
    """
    members = effort.some(members)
    if len(members) < _FEWEST_ROWS or len(reference.free) < _FEWEST_POOL:
        return []
    table, slots = reference.lives
    if min(table[members, :slots].sum(), table[members, slots:].sum()) < _FEWEST_ROWS:
        return []

    def statistics(index: Ints) -> Floats:
        sums = row_sums(table, index)
        births, deaths = sums[:, :slots], sums[:, slots:]
        after = births.copy()
        for later in range(1, int(24 // SLOT) + 1):
            after[:, :-later] += births[:, later:]
        return np.minimum(deaths, after).sum(axis=1)[:, None]

    return _by_size("succession", "hand-overs", members, statistics, reference, effort, 1.0)


# ---- new models ----


def model_switch(members: Ints, reference: Reference, effort: Effort) -> list[Finding]:
    """Whether customers took up a new model in the same hours, more than others who took it up did.

    Whoever takes up a model takes part, so a rush on the day of its release is in the null. Empty
    where no model came out inside the window or fewer than five members took it up.
    """
    table = reference.switches
    if table is None:
        return []
    took = table.sum(axis=1) > 0
    members = effort.some(members[took[members]])
    pool = reference.free[took[reference.free]]
    if len(members) < _FEWEST_ROWS or len(pool) < _FEWEST_POOL:
        return []

    def statistics(index: Ints) -> Floats:
        sums = row_sums(table, index)
        return (sums * (sums - 1)).sum(axis=1)[:, None]

    sizes = reference.population.size_class
    groups = Candidates(pool, [sizes[pool]]).matching(members, [sizes[members]])
    found = count_p_values(groups, members, statistics, effort.draws, effort.rng)
    pairs = len(members) * (len(members) - 1)
    seen, usual = float(found.observed[0]) / pairs, float(found.typical[0]) / pairs
    return [Finding("timing", "new model", float(found.p_values[0]), seen, usual, len(members))]


# ---- families ----


def family_p_values(findings: list[Finding]) -> dict[str, float]:
    """Family -> p-value, of the families that were tested.

    A new model taken up together counts as a test without effect (p = 1): an app's update to
    another default looks alike. In timing, the load test looks at counts only and the schedule test
    is exact given the counts, so their p-values are independent under the null, and that of the
    smaller is exact (Tippett).
    Not Fisher's product: it hides one that speaks where the other has no effect.
    """
    families: dict[str, list[float]] = {}
    pair = [f.p_value for f in findings if f.test in ("load balance", "one schedule")]
    for finding in findings:
        if len(pair) < 2 or finding.test not in ("load balance", "one schedule"):
            p = 1.0 if finding.test == "new model" else finding.p_value
            families.setdefault(finding.family, []).append(p)
    if len(pair) == 2:
        families.setdefault("timing", []).append(tippett(pair[0], pair[1]))
    return {family: bonferroni(p) for family, p in families.items()}
