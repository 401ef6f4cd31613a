"""The evidence for one cluster: all its tests, by family, and one p-value for "two families speak".

    clusters + population -> Evidence of each

In: clusters that were found on the finding half. Out: findings, family p-values, the cluster's
p-value and q-value. Draws come in stages: a family that does not speak after few keeps that coarse
p-value, the others are drawn afresh with more. Each stage's p-value is valid, and what is below the
limit of a stage is a p-value of the next alone, so the last one is valid, too.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from stillhouse.guard.campaign_tests import (
    Effort,
    Finding,
    family_p_values,
    load_balance,
    model_switch,
    profile_tests,
    seen_again,
    shared_test,
    successions,
)
from stillhouse.guard.clusters import Cluster
from stillhouse.guard.combine import at_least_two, benjamini_hochberg
from stillhouse.guard.draws import FIRST_DRAWS
from stillhouse.guard.hashing import Ints
from stillhouse.guard.keys import CONTENT, ONBOARDING, STATIC, KeyTable, shared_keys
from stillhouse.guard.population import Population
from stillhouse.guard.profiles import Streams
from stillhouse.guard.reference import Reference
from stillhouse.guard.settings import GuardSettings

__all__ = ["Evidence", "weigh"]

_GIVEN_UP = 0.1
"""p-value of a family after the first draws from which it is not drawn again."""
_SECOND, _SECOND_DRAWS = 2, 9999
_LAST = 3
_MOST_THREADS = 8  # some 100 MB each
_NEAR_FLOOR = 20
"""A cluster is drawn a third time where two of its families are within this factor of the least
that the second draws can give: by p-values alone, so a small one is always the last draws'."""
_OPEN_SHARE = 0.5
_OF_TEMPLATES = ("narrow focus", "few repeats", "task in common")


@dataclass
class Evidence:
    """What speaks for a cluster."""

    cluster: Cluster
    findings: list[Finding]
    families: dict[str, float]
    """Family -> p-value, of those tested."""
    p_value: float
    """Of "fewer than two families speak"."""
    q_value: float = 1.0
    wordings: int = 1
    """Clusters that were joined to this one."""

    @property
    def strength(self) -> float:
        """-log10 of the p-value."""
        return float(-np.log10(self.p_value))

    def speaks(self, settings: GuardSettings) -> bool:
        """Whether two families speak, content among them, of payloads that hardly two share."""
        return not self.missing(settings)

    def missing(self, settings: GuardSettings) -> list[str]:
        """What it lacks to be called, in words for its page.

        Accounts that share networks and hours but nothing they ask for are an office; what content
        found and the other days do not show again is nothing; those who share exercises or a campus
        are a class. People who took up a new product together share a template and a sign-up:
        something else has to speak, too.
        """
        level = settings.family_level
        untested = 1.0 if self.cluster.family == "content" else 0.0
        said = {family for family, p in self.families.items() if p <= level}
        linked = self.cluster.family == "infrastructure"  # then it is not tested
        why = _unfit(self.cluster, settings)
        if len(said) < 2:
            alone = f"only {' and '.join(said)} speaks" if said else "no family of evidence speaks"
            why.append(f"{alone}: two must")
        elif self.families.get("content", untested) > level:
            why.append("what they ask for does not speak, and has to be one of the two")
        elif not linked and not said - {"content", "onboarding"}:
            why.append("a template and sign-ups speak: people who took up a product together have "
                       "both, so something else has to")  # fmt: skip
        return why


def _may_be_called(evidence: Evidence, settings: GuardSettings) -> bool:
    """Whether hardly two customers share a payload, most are not at one place, and it is no chance
    in what they send: all known from the finding half, before any test.
    """
    return not _unfit(evidence.cluster, settings)


def _unfit(cluster: Cluster, settings: GuardSettings) -> list[str]:
    why: list[str] = []
    if 0 < cluster.disjoint < settings.unshared:
        why.append(f"{1 - cluster.disjoint:.0%} of the texts its customers sent are another "
                   "customer's text again, as shared exercises or benchmarks are")  # fmt: skip
    if cluster.one_place >= settings.one_place:
        why.append(f"{cluster.one_place:.0%} of its customers send from one network, as those of "
                   "an office or a campus do")  # fmt: skip
    if cluster.share_of_traffic < settings.least_share:
        why.append(f"it is {cluster.share_of_traffic:.1%} of what its customers send, as phrases "
                   "that chance puts into much traffic are")  # fmt: skip
    return why


def weigh(
    population: Population,
    clusters: list[Cluster],
    settings: GuardSettings,
) -> list[Evidence]:
    """Evidence of each cluster, q-values over all of them included.

    Args:
        population: the customers.
        clusters: as `find_clusters` gives them.
        settings: of the scan. A calibration and the scans held against it draw equally often.
    """
    everybody = Reference(
        population, Streams(population, np.flatnonzero(population.testing)),
        np.ones(population.customers, dtype=np.bool_), _link_tables(population, settings),
    )  # fmt: skip
    references = {
        finder: everybody.without(_linked_by(population, clusters, finder))
        for finder in sorted({c.family for c in clusters})
    }

    def weighed(cluster: Cluster) -> Evidence:
        return _one(cluster, references[cluster.family], settings)

    # a cluster's generator is its own, and numpy counts without the interpreter's lock; the largest
    # first, so that none is left over at the end
    order = sorted(range(len(clusters)), key=lambda at: -len(clusters[at].customers))
    workers = min(_MOST_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as threads:
        done = dict(zip(order, threads.map(weighed, [clusters[at] for at in order]), strict=True))
    out = [done[at] for at in range(len(clusters))]
    _q_values(out, settings)
    return out


def _q_values(weighed: list[Evidence], settings: GuardSettings) -> None:
    """Benjamini-Hochberg among the clusters of one finder, times the number of finders: many
    shared networks do not hide a template. Clusters that cannot be called, known before any test,
    count for themselves only. Weights are the roots of the customers that found each, likewise
    known, so crumbs cost a large cluster little (Genovese, Roeder and Wasserman 2006).
    """
    finders = sorted({e.cluster.family for e in weighed})
    groups: dict[tuple[str, bool], list[Evidence]] = {}
    for evidence in weighed:
        group = evidence.cluster.family, _may_be_called(evidence, settings)
        groups.setdefault(group, []).append(evidence)
    for ours in groups.values():
        weight = np.sqrt([e.cluster.founders for e in ours])
        p = np.array([e.p_value for e in ours]) * weight.mean() / weight
        for evidence, q in zip(ours, benjamini_hochberg(p), strict=True):
            evidence.q_value = min(1.0, len(finders) * float(q))


def _linked_by(population: Population, clusters: list[Cluster], finder: str) -> Ints:
    """Customers of one finder's clusters, with whom none of its clusters is compared.

    Customers that another family linked stay in: they are part of what that family looks like in
    general, and without them every cluster would seem to share more than its due. Clusters of
    popular keys stay in where half of everybody would be gone.
    """
    out = np.zeros(population.customers, dtype=np.bool_)
    for cluster in sorted(clusters, key=lambda c: len(c.customers)):
        more = out.copy()
        more[cluster.customers] = True
        if cluster.family == finder and more.sum() <= (1 - _OPEN_SHARE) * population.customers:
            out = more
    return np.flatnonzero(out)


def _link_tables(population: Population, settings: GuardSettings) -> dict[str, KeyTable]:
    """Keys by family that may speak for clusters which another family found."""
    wanted = {"infrastructure": STATIC, "onboarding": ONBOARDING, "content": CONTENT}
    tables: dict[str, KeyTable] = {}
    for family, kinds in wanted.items():
        if family in settings.families:
            halves = population.testing if family == "content" else None
            table = shared_keys(population, kinds, halves, fewest=2, payloads=family == "content")
            keep = table.customers <= settings.popular(population.customers)
            if family == "content":
                keep &= table.disjoint >= settings.disjoint_share
            tables[family] = table.chosen(keep)
    return tables


def _one(cluster: Cluster, reference: Reference, settings: GuardSettings) -> Evidence:
    """A cluster's evidence, with few draws first."""
    findings = _findings(cluster, reference, settings, 1, FIRST_DRAWS, settings.families)
    families = family_p_values(findings)
    evidence = Evidence(cluster, findings, families, at_least_two(list(families.values())))
    if sum(p <= _GIVEN_UP for p in families.values()) >= 2:
        _redraw(evidence, reference, settings, _SECOND, _SECOND_DRAWS, _GIVEN_UP)
    if settings.permutations > _SECOND_DRAWS and _may_be_called(evidence, settings):
        limit = _NEAR_FLOOR / _SECOND_DRAWS
        _redraw(evidence, reference, settings, _LAST, settings.permutations, limit)
    return evidence


def _redraw(
    evidence: Evidence, reference: Reference, settings: GuardSettings, stage: int, draws: int,
    limit: float,
) -> None:  # fmt: skip
    """Draw the families at or below a limit afresh."""
    speaking = tuple(f for f, p in evidence.families.items() if p <= limit)
    if stage > _SECOND and len(speaking) < 2:  # the second least decides, and would stay
        return
    fresh = _findings(evidence.cluster, reference, settings, stage, draws, speaking)
    evidence.findings = [f for f in evidence.findings if f.family not in speaking] + fresh
    evidence.families = family_p_values(evidence.findings)
    evidence.p_value = at_least_two(list(evidence.families.values()))


def _findings(
    cluster: Cluster, reference: Reference, settings: GuardSettings, stage: int, draws: int,
    families: tuple[str, ...],
) -> list[Finding]:  # fmt: skip
    # seeded by the cluster's keys, so that renamed accounts and other clusters change nothing
    seed = int(np.bitwise_xor.reduce(cluster.keys.keys) & np.uint64(0xFFFFFFFF))
    rng = np.random.default_rng([settings.seed, seed, stage])
    effort = Effort(settings, draws, rng, (settings.seed, seed))
    members = cluster.customers.astype(np.int64)
    reference = reference.without(members)
    found: list[Finding] = []
    by_content = cluster.family == "content"
    if "timing" in families or (by_content and "content" in families):
        found += profile_tests(cluster.streams, reference, effort)
    if "timing" in families:
        # the smaller of schedule and load decides: what no draw reached, the load cannot better
        unreached = any(f.test == "one schedule" and f.p_value <= 1 / draws for f in found)
        less = replace(effort, draws=min(draws, _SECOND_DRAWS))
        found += load_balance(cluster.streams, reference, less if unreached else effort)
        found += model_switch(members, reference, effort)
    for family in reference.held:
        if family != cluster.family and family in families:
            found += shared_test(family, members, reference, effort)
    if "succession" in families:
        found += successions(members, reference, effort)
    if by_content and "content" in families:
        found += seen_again(members, cluster.again, reference)
    if not by_content:  # whole streams: nothing narrows them to one template
        found = [f for f in found if f.test not in _OF_TEMPLATES]
    return [f for f in found if f.family in families]
