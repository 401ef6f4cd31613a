"""What is published or in use, on the same logs: a score for each account from each method.

In: the events of a benign week and of the week under test. Out: for each method a p-value of each
account, by the rule that is the detector's own: conformal against the benign week's accounts of
about as many events. So every method gets a threshold from benign traffic alone, and its false
alarms are measured beside its recall. None of them is told more than an events table holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stillhouse.guard.benchmark_events import HOUR, Requests
from stillhouse.guard.benchmark_queries import mmd_scores, prada_scores
from stillhouse.guard.calibrate import conformal
from stillhouse.guard.events import CAPABILITIES
from stillhouse.guard.hashing import Ints, mixed_with, run_starts

__all__ = [
    "METHODS", "account_features", "busiest_hour", "link_scores", "p_values", "rule_fires",
    "scored",
]  # fmt: skip

VOLUME_RULE = 500
"""Calls of one principal within an hour: Elastic's rule for single-model probing (Bedrock)."""
_STRATA = (8, 64, 512)  # events at which the detector's strata part, too
_FEWEST = 1000  # benign accounts of a stratum; smaller ones take the next smaller volume's along
_POPULAR = 0.02  # a key of more accounts links nothing, as in the detector
_TEMPLATE = ("head", "tail", "skeleton")
_INFRASTRUCTURE = ("payment", "device", "address", "network")
_TREES, _SAMPLES = 200, 1024

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """(accounts,) of the benign week and of the week under test; larger is more suspicious."""

    benign: Floats
    test: Floats


def _isolation_forest(benign: Requests, test: Requests, seed: int) -> Scores:
    """Source: Liu, Ting and Zhou (2008), Isolation Forest; fitted to the benign accounts."""
    from sklearn.ensemble import IsolationForest

    ours, others = account_features(benign), account_features(test)
    most: Any = min(_SAMPLES, len(ours))  # the stub knows 'auto' only
    forest = IsolationForest(n_estimators=_TREES, max_samples=most, random_state=seed).fit(ours)
    return Scores(-forest.score_samples(ours), -forest.score_samples(others))


def _volume(benign: Requests, test: Requests, seed: int) -> Scores:
    return Scores(busiest_hour(benign), busiest_hour(test))


def _template(benign: Requests, test: Requests, seed: int) -> Scores:
    return _linking(benign, test, _TEMPLATE)


def _infrastructure(benign: Requests, test: Requests, seed: int) -> Scores:
    return _linking(benign, test, _INFRASTRUCTURE)


def _linking(benign: Requests, test: Requests, columns: tuple[str, ...]) -> Scores:
    """Keys that the benign week knows link nothing in the other; itself it is scored with all, as
    the detector's calibration is, which can only raise the threshold.
    """
    return Scores(link_scores(benign, columns), link_scores(test, columns, benign))


def _prada(benign: Requests, test: Requests, seed: int) -> Scores:
    return Scores(prada_scores(benign), prada_scores(test))


def _mmd(benign: Requests, test: Requests, seed: int) -> Scores:
    reference = np.random.default_rng([seed, 5])
    ours, others = mmd_scores(benign, [benign, test], reference)
    return Scores(ours, others)


METHODS: dict[str, Callable[[Requests, Requests, int], Scores]] = {
    "mmd": _mmd, "prada": _prada, "isolation_forest": _isolation_forest, "volume_rule": _volume,
    "template_linking": _template, "infrastructure_linking": _infrastructure,
}  # fmt: skip
"""Name -> scores of both weeks' accounts, from their traffic and a seed."""


def scored(name: str, benign: Requests, test: Requests, seed: int) -> tuple[Floats, Floats]:
    """p-values and scores of the test week's accounts under one method."""
    scores = METHODS[name](benign, test, seed)
    p = p_values(scores.benign, benign.events_of, scores.test, test.events_of)
    return p, scores.test


def p_values(benign: Floats, benign_events: Ints, test: Floats, test_events: Ints) -> Floats:
    """Conformal p-values within strata of volume; strata below a thousand benign accounts take the
    accounts of the next smaller volume along.
    """
    ours = np.searchsorted(_STRATA, benign_events, side="right")
    others = np.searchsorted(_STRATA, test_events, side="right")
    out = np.ones(len(test))
    for stratum in range(len(_STRATA) + 1):
        least = stratum
        while least > 0 and ((ours >= least) & (ours <= stratum)).sum() < _FEWEST:
            least -= 1
        held = np.sort(benign[(ours >= least) & (ours <= stratum)])
        chosen = others == stratum
        out[chosen] = conformal(test[chosen], held)
    return out


# ---- scores ----


def busiest_hour(log: Requests) -> Floats:
    """(accounts,) most events within any sixty minutes."""
    step = np.int64(log.span[1] - log.span[0] + 2 * HOUR)
    at = log.account.astype(np.int64) * step + (log.time - log.span[0])
    within = np.searchsorted(at, at + HOUR, side="left") - np.arange(len(at))
    return np.maximum.reduceat(within, log.starts).astype(np.float64)


def link_scores(log: Requests, columns: tuple[str, ...], known: Requests | None = None) -> Floats:
    """(accounts,) logarithm of how many accounts share an account's most shared key; keys that
    more than a fiftieth of all accounts have do not count, nor do keys nobody shares.

    Args:
        log: whose accounts are scored.
        columns: of the keys.
        known: a log whose keys do not count.
    """
    accounts = len(log.names)
    best = np.ones(accounts)
    for number, name in enumerate(columns):
        values = log.columns[name]
        counts = values != 0
        if known is not None:
            counts &= ~np.isin(values, known.columns[name])
        key, who = mixed_with(values[counts], number), log.account[counts]
        order = np.lexsort((who, key))
        key, who = key[order], who[order]
        new = np.ones(len(key), dtype=np.bool_)
        new[1:] = (key[1:] != key[:-1]) | (who[1:] != who[:-1])
        key, who = key[new], who[new]
        sharers = np.diff(np.append(run_starts(key), len(key)))
        counted = np.where(sharers > max(_POPULAR * accounts, 2), 1, sharers)
        np.maximum.at(best, who, np.repeat(counted, sharers))
    return np.log(best)


def account_features(log: Requests) -> Floats:
    """(accounts, features): volume, sizes, repetition, hours, capabilities, infrastructure."""
    starts, events = log.starts, log.events_of.astype(np.float64)
    columns, who, accounts = log.columns, log.account, len(log.names)

    def mean(values: npt.NDArray[Any]) -> Floats:
        return np.add.reduceat(values.astype(np.float64), starts) / events

    def distinct(values: npt.NDArray[Any]) -> Floats:
        order = np.lexsort((values, who))
        first = run_starts(mixed_with(values[order].astype(np.uint64) + np.uint64(1), who[order]))
        return np.bincount(who[order][first], minlength=accounts).astype(np.float64)

    hour = log.time // HOUR
    turn = log.time % (24 * HOUR) * (2 * np.pi / (24 * HOUR))
    gaps = np.diff(log.time, prepend=log.time[:1]) / HOUR
    gaps[starts] = 0.0
    spread = np.sqrt(np.maximum(mean(gaps**2) - mean(gaps) ** 2, 0)) / np.maximum(mean(gaps), 1e-9)
    parts = [
        np.log1p(events), np.log1p(busiest_hour(log)), distinct(hour) / events, spread,
        np.hypot(mean(np.cos(turn)), mean(np.sin(turn))),
        mean(np.log1p(np.maximum(columns["input_tokens"], 0))),
        mean(np.log1p(np.maximum(columns["output_tokens"], 0))),
        mean(columns["turns"] > 0), mean(columns["tools"] != 0), mean(columns["system"] != 0),
        distinct(columns["whole"]) / events, distinct(columns["head"]) / events,
        distinct(columns["address"]), distinct(columns["network"]), distinct(columns["model"]),
    ]  # fmt: skip
    kinds = [mean(columns["capability"] == code) for code in range(len(CAPABILITIES))]
    return np.column_stack([*parts, *kinds])


def rule_fires(log: Requests) -> npt.NDArray[np.bool_]:
    """(accounts,) whether the volume rule as it is shipped calls an account."""
    return busiest_hour(log) >= VOLUME_RULE
