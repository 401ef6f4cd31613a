"""How strongly each account belongs to a campaign: one score, larger is more suspicious.

    Evidence of clusters + population -> score and cluster of each account

In: weighed clusters. Out: for each account the cluster it belongs to most, and a score in three
bands. Above 2: a cluster in which two families speak, content among them; its evidence beyond
p = 0.01 times the strength of membership. From 1 to 2: a cluster with evidence of another kind (an
office is one). Below 1: how much the account shares rare keys with unrelated customers, which ranks
those that no cluster has. The score needs no calibration; what it means does (calibrate.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stillhouse.guard.evidence import Evidence
from stillhouse.guard.hashing import Ints, mixed_with, run_starts
from stillhouse.guard.keys import CONTENT, shared_keys
from stillhouse.guard.population import Population
from stillhouse.guard.settings import GuardSettings

__all__ = ["Membership", "score_accounts", "strengths"]

_FLOOR = 2.0
"""-log10 p of a cluster from which it counts: in benign traffic one in a hundred clusters."""
_HALF = 20.0
"""Shared rarity (nats) at which the lower part is 1 - 1/e."""


@dataclass(frozen=True)
class Membership:
    """(accounts,) each."""

    score: npt.NDArray[np.float64]
    cluster: Ints
    """Index into the evidence; -1: none."""
    events: Ints
    """Events of the account in that cluster's sub-stream."""


def strengths(evidence: Evidence) -> tuple[Ints, Ints, npt.NDArray[np.float64]]:
    """Accounts of a cluster, their events in its sub-stream, and how surely they belong, in (0, 1).

    k events on keys that benign customers hardly have: k / (k + 1), so one event is even odds.
    """
    traffic = evidence.cluster.population.traffic
    accounts, counts = np.unique(traffic.account[evidence.cluster.events], return_counts=True)
    return accounts.astype(np.int64), counts, counts / (counts + 1.0)


def score_accounts(
    population: Population, weighed: list[Evidence], settings: GuardSettings
) -> Membership:
    """Scores of all accounts; where several clusters have an account, one by content is preferred
    to one by infrastructure, which would split a campaign along its networks.
    """
    accounts = len(population.traffic.names)
    best, of = np.zeros(accounts), np.full(accounts, -1, dtype=np.int64)
    rank, events = np.full(accounts, -1.0), np.zeros(accounts, dtype=np.int64)
    for number, evidence in enumerate(weighed):
        who, count, sure = strengths(evidence)
        value = sure * max(0.0, evidence.strength - _FLOOR)
        if evidence.strength > _FLOOR:
            speaks = evidence.speaks(settings)
            value = 2 + value if speaks else 1 + np.minimum(0.99, value / 10)
        preferred = value + 1e-6 * sure
        if evidence.cluster.family == "content" and evidence.strength > _FLOOR:
            preferred = preferred + 1000
        better = preferred > rank[who]
        rank[who[better]], of[who[better]] = preferred[better], number
        best[who], events[who[better]] = np.maximum(best[who], value), count[better]
    score = np.where(best > 0, best, 0.999 * _sharing(population))
    return Membership(score, of, events)


def _sharing(population: Population) -> npt.NDArray[np.float64]:
    """(accounts,) in [0, 1): rarity of the template keys that an account shares with at least two
    unrelated customers, and, beside it, how often it repeats its own heads.
    """
    table = shared_keys(population, CONTENT, None, fewest=3, payloads=True)
    table = table.chosen(table.disjoint >= 0.5)
    rarity = np.log(population.customers / np.maximum(table.customers, 1))
    shared = np.bincount(
        table.pair_customer, rarity[table.pair_key], minlength=population.customers
    )[population.customer_of]
    return 0.8 * (1 - np.exp(-shared / _HALF)) + 0.19 * _own_repetition(population)


def _own_repetition(population: Population) -> npt.NDArray[np.float64]:
    """(accounts,) probability that two of an account's events have the same head."""
    traffic = population.traffic
    head = traffic.columns["head"]
    known = head != 0
    account = traffic.account[known].astype(np.uint64)
    pairs = np.sort((account << np.uint64(32)) | (mixed_with(head[known], 1) >> np.uint64(32)))
    starts = run_starts(pairs)
    count = np.diff(np.append(starts, len(pairs))).astype(np.float64)
    who = (pairs[starts] >> np.uint64(32)).astype(np.int64)
    total = np.bincount(who, count, len(traffic.names))
    same = np.bincount(who, count * (count - 1), len(traffic.names))
    return same / np.maximum(total * (total - 1), 1)
