"""One campaign under several wordings: clusters whose texts resemble one another become one.

    Evidence of clusters -> the same, joined

In: weighed clusters. Out: those that content found, that look like campaigns, and whose sketches
agree nearly as well between two of them as inside each, joined to one; the others as they were.
Accounts that keep to one wording each share no key, so nothing else would join them. What decides
whether anything is a campaign was decided before; this only says how many there are.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix, csr_matrix, diags_array
from scipy.sparse.csgraph import connected_components

from stillhouse.guard.clusters import Cluster
from stillhouse.guard.evidence import Evidence
from stillhouse.guard.hashing import Ints
from stillhouse.guard.keys import KeyTable
from stillhouse.guard.population import Population
from stillhouse.guard.settings import GuardSettings

__all__ = ["join_wordings", "without_crumbs"]

_SUSPECT = 0.01
"""p-value of a cluster from which it may be part of a campaign."""
_RESEMBLING = 0.3
"""Least agreement of sketches between two clusters, as a share of that inside them (geometric
mean). One: the same template. Different templates agree as far as their payloads do."""
_BEYOND_ALL = 3.0
"""And as a multiple of each cluster's agreement with all traffic: a language is no campaign."""
_MADE_UP = 0.9
"""Share of a cluster's customers that make it up: who has them has the cluster."""
_SAMPLE = 1000
_NOTHING = np.uint32(0xFFFFFFFF)


def without_crumbs(
    weighed: list[Evidence], settings: GuardSettings, strongest: float
) -> list[Evidence]:
    """Clusters that are something beyond the stronger ones: without their customers, enough are
    left. A phrase that some accounts of a campaign have in common with a few strangers is called
    for what the campaign does, and is left out.

    Args:
        weighed: clusters.
        settings: of the scan.
        strongest: -log10 p that a campaign has to pass, of benign traffic.
    """
    kept: list[Evidence] = []
    claimed = np.zeros(0, dtype=np.int64)
    for evidence in sorted(weighed, key=lambda e: (e.q_value, e.p_value, -e.cluster.founders)):
        calls = evidence.q_value <= settings.false_discovery_rate and evidence.speaks(settings)
        calls = calls and evidence.strength > strongest
        own = np.setdiff1d(evidence.cluster.customers, claimed)
        if 0 < len(own) < settings.fewest_customers:  # of none it is a part, and joined later
            continue
        kept.append(evidence)
        if calls and evidence.cluster.family == "content":
            claimed = np.union1d(claimed, evidence.cluster.customers)
    return kept


def join_wordings(population: Population, weighed: list[Evidence]) -> list[Evidence]:
    """Clusters, with those of one campaign joined: first those of the same customers, whatever they
    say; then, of what is left, those whose texts resemble one another. A part has few events and
    rarer words than the whole, so resemblance to a part would join what the wholes do not.
    """
    suspects = [e for e in weighed if e.cluster.family == "content" and e.p_value <= _SUSPECT]
    if len(suspects) < 2:
        return weighed
    wholes = _with_parts(suspects)
    label = _resembling(population, [parts[0] for parts in wholes])
    joined = [
        _joined(
            [e for parts, mark in zip(wholes, label, strict=True) if mark == one for e in parts]
        )
        for one in range(int(label.max()) + 1)
    ]
    return joined + [e for e in weighed if not any(e is s for s in suspects)]


def _with_parts(suspects: list[Evidence]) -> list[list[Evidence]]:
    """Each cluster with the weaker ones whose customers are its own, itself first."""
    wholes: list[list[Evidence]] = []
    for evidence in sorted(suspects, key=lambda e: (e.q_value, e.p_value, -e.cluster.founders)):
        ours = evidence.cluster.customers
        for parts in wholes:
            if np.isin(ours, parts[0].cluster.customers).mean() >= _MADE_UP:
                parts.append(evidence)
                break
        else:
            wholes.append([evidence])
    return wholes


def _resembling(population: Population, clusters: list[Evidence]) -> Ints:
    """(clusters,) number of the campaign that each belongs to, by its sketches."""
    traffic = population.traffic
    lot = np.argsort(traffic.fingerprint, kind="stable")  # at random, whatever the accounts' names
    everybody = traffic.sketches(lot[: 5 * _SAMPLE])
    chosen = [_some(population, e.cluster.events) for e in clusters]
    together = traffic.sketches(np.concatenate(chosen))  # all at once: the parts are read each time
    samples = np.split(together, np.cumsum([len(some) for some in chosen])[:-1])
    halves = [*(s[::2] for s in samples), *(s[1::2] for s in samples)]
    often = _how_often([*halves, everybody])
    count, sizes = len(samples), np.array([len(half) for half in halves])
    one, other, all_traffic = often[:count], often[count:-1], often[-1]
    share = sizes[:count] / (sizes[:count] + sizes[count:])
    own = diags_array(share) @ one + diags_array(1 - share) @ other
    between = (own @ own.T).toarray()
    inside = np.asarray(one.multiply(other).sum(axis=1)).ravel()
    usual = (own @ all_traffic.T).toarray().ravel()
    alike = between >= _RESEMBLING * np.sqrt(np.outer(inside, inside))
    beyond = between >= _BEYOND_ALL * np.maximum.outer(usual, usual)
    row, column = np.nonzero(np.triu((between > 0) & alike & beyond, 1))
    graph = coo_matrix((np.ones(len(row)), (row, column)), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def _some(population: Population, events: Ints) -> Ints:
    """At most a thousand of its events, by a lot that no name decides."""
    lot = np.argsort(population.traffic.fingerprint[events], kind="stable")
    return events[lot[:_SAMPLE]]


def _how_often(samples: list[npt.NDArray[np.uint32]]) -> csr_matrix:
    """(samples, values of slots) how often each value comes in the events of each sample.

    The product of two rows is the mean resemblance (Jaccard's, as MinHash estimates it) of an event
    of the one and an event of the other.
    """
    sizes = [len(sample) for sample in samples]
    values = np.concatenate(samples)
    slots = values.shape[1]
    known = values != _NOTHING
    keys = (np.arange(slots, dtype=np.uint64) << np.uint64(32)) | values
    _, column = np.unique(keys[known], return_inverse=True)
    sample = np.repeat(np.repeat(np.arange(len(sizes)), sizes), known.sum(axis=1))
    share = 1 / (np.maximum(sizes, 1)[sample] * np.sqrt(slots))
    shape = (len(sizes), int(column.max(initial=-1)) + 1)
    return csr_matrix((share, (sample, column)), shape=shape)


def _joined(parts: list[Evidence]) -> Evidence:
    """One cluster from several, with the evidence of the weakest of those that make it up: the
    strongest parts that have nine tenths of its customers. What is said of the whole then holds for
    each of them, and a crumb of the same accounts takes nothing away.
    """
    if len(parts) == 1:
        return parts[0]
    parts = sorted(parts, key=lambda e: (e.q_value, e.p_value, -len(e.cluster.events)))
    everybody = np.unique(np.concatenate([e.cluster.customers for e in parts]))
    weakest, covered = parts[0], parts[0].cluster.customers
    for part in parts[1:]:
        if len(covered) >= _MADE_UP * len(everybody):
            break
        if len(np.setdiff1d(part.cluster.customers, covered)):
            weakest, covered = part, np.union1d(covered, part.cluster.customers)
    cluster = Cluster(
        weakest.cluster.population,
        weakest.cluster.family,
        KeyTable.together([e.cluster.keys for e in parts]),
        np.unique(np.concatenate([e.cluster.events for e in parts])),
        np.concatenate([e.cluster.benign for e in parts]),
    )
    return replace(weakest, cluster=cluster, wordings=len(parts))
