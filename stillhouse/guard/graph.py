"""Templates: keys whose customers are the same people, grouped without gluing.

    KeyTable -> groups of keys

In: the bipartite graph of customers and keys (star edges: as many as pairs). Out: a group number
for each key. Two keys are linked where their customers correlate (phi), not where they merely
meet: a key that a fifth of everybody has correlates with nothing rare, so no popular key can glue.
Loose components are cut by modularity. Clusters that one campaign's keys were scattered over are
joined by the same measure. Nothing here tests.
"""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
import scipy.sparse as sparse
from scipy.sparse.csgraph import connected_components

from stillhouse.guard.hashing import Ints
from stillhouse.guard.keys import KeyTable

__all__ = ["communities", "group_keys", "pair_share", "phi_links"]

_MOST_KEYS_OF_A_CUSTOMER = 400
"""A customer with more shared keys is a hub (a reseller, an aggregator) and links nothing: pairs of
keys grow with the square. Their events still count once a template is known."""
_LEAST_COMMON = 3
"""Customers that two linked keys have in common at least: with two, chance suffices."""
_DENSE = 0.3
"""Share of possible links from which a component is one block and is not cut."""

_COMPARED = 1000
"""Rows of which every pair is looked at: cost grows with the square."""

_TIGHT = 0.4
"""phi from which keys of a loose component are tight. Accidental phrases reach it in pairs, never
with a template's keys."""


def phi_links(
    incidence: sparse.csr_matrix, sizes: Ints, linked: float, popular: npt.NDArray[np.bool_]
) -> sparse.csr_matrix:
    """(keys, keys) phi of the customers of two keys, where at least `linked`; symmetric.

    Args:
        incidence: (customers, keys) 0 or 1.
        sizes: (keys,) customers of each key in the whole graph.
        linked: the least phi kept.
        popular: (keys,) linked to one another only.
    """
    customers, keys = len(incidence.indptr) - 1, len(sizes)
    degree = np.diff(incidence.indptr)
    light = incidence[np.flatnonzero((degree > 1) & (degree <= _MOST_KEYS_OF_A_CUSTOMER))]
    if keys == 0 or light.nnz == 0:
        return sparse.csr_matrix((keys, keys), dtype=np.float32)
    common = sparse.triu(light.T @ light, k=1, format="coo")
    enough = common.data >= _LEAST_COMMON
    row, col, both = common.row[enough], common.col[enough], common.data[enough].astype(np.float64)
    first, second = sizes[row].astype(np.float64), sizes[col].astype(np.float64)
    spread = np.sqrt(first * (customers - first) * second * (customers - second))
    phi = (both * customers - first * second) / np.maximum(spread, 1)
    keep = (phi >= linked) & (popular[row] == popular[col])
    links = sparse.csr_matrix((phi[keep], (row[keep], col[keep])), shape=(keys, keys))
    return (links + links.T).tocsr()


def pair_share(incidence: sparse.csr_matrix) -> float:
    """Probability that two rows of an incidence have a column in common; 0 of fewer than two.

    One for a template, a little less for many wordings of one. Phrases of which each is shared by
    a few, and others by a few of those, are a chain: through the writers of a language, say.
    """
    rows = len(incidence.indptr) - 1
    if rows > _COMPARED:  # every so many, in whatever order they come
        incidence = incidence[np.linspace(0, rows - 1, _COMPARED).astype(np.int64)]
        rows = _COMPARED
    common = (incidence @ incidence.T).count_nonzero()
    own = np.count_nonzero(np.diff(incidence.indptr))
    return float((common - own) / max(1, rows * (rows - 1)))


def group_keys(
    table: KeyTable, customers: int, linked: float, popular: npt.NDArray[np.bool_], seed: int
) -> npt.NDArray[np.int64]:
    """(keys,) number of the template that each key belongs to, without gaps."""
    return communities(table.incidence(customers), table.customers, linked, popular, seed)


def communities(
    incidence: sparse.csr_matrix, sizes: Ints, linked: float, popular: npt.NDArray[np.bool_],
    seed: int,
) -> npt.NDArray[np.int64]:  # fmt: skip
    """(columns,) number of the community of each column of an incidence, without gaps.

    Components are taken first. What is tight in a loose one is taken out of it before the rest is
    cut: a template whose keys have the same customers is not lost among phrases that a few people
    have in common.
    """
    links = phi_links(incidence, sizes, linked, popular)
    count, label = connected_components(links, directed=False)
    loose = _loose(links, label, count)[label]
    if not loose.any():
        return label.astype(np.int64)
    tight = links.copy()
    tight.data[tight.data < _TIGHT] = 0
    tight.eliminate_zeros()
    label = label.astype(np.int64)
    alone = loose & (np.diff(tight.indptr) == 0)
    for inside, graph in ((loose & ~alone, tight), (alone, links)):
        at = np.flatnonzero(inside)
        if len(at):
            label[at] = label.max() + 1 + _parts(graph[at][:, at], seed)
    return np.unique(label, return_inverse=True)[1]


def _loose(
    links: sparse.csr_matrix, label: npt.NDArray[np.generic], count: int
) -> npt.NDArray[np.bool_]:
    """(components,) which have too few of their links to be one block."""
    sizes = np.bincount(label, minlength=count)
    edges = np.bincount(label, np.diff(links.indptr), count)
    return (sizes > 3) & (edges < _DENSE * sizes * (sizes - 1))


def _parts(links: sparse.csr_matrix, seed: int) -> npt.NDArray[np.int64]:
    """Components, loose ones cut by modularity."""
    count, label = connected_components(links, directed=False)
    label = label.astype(np.int64)
    for component in np.flatnonzero(_loose(links, label, count)):
        inside = np.flatnonzero(label == component)
        label[inside] = label.max() + 1 + _cut(links[inside][:, inside], seed)
    return np.unique(label, return_inverse=True)[1]


def _cut(links: sparse.csr_matrix, seed: int) -> npt.NDArray[np.int64]:
    """Communities of a loose component."""
    with warnings.catch_warnings():  # scikit-network 0.33 warns of its own sparse types
        warnings.simplefilter("ignore")
        from sknetwork.clustering import Louvain

        return np.asarray(Louvain(random_state=seed).fit_predict(links), dtype=np.int64)
