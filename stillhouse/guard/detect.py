"""The detector: events of a scan in, accounts and campaigns out.

    read -> customers and halves -> clusters (finding half) -> tests (testing half) -> scores ->
    p-values -> decisions

In: a folder of events, settings, a calibration or none. Out: a `Scan`, or a `Calibration` where
the traffic is known to be benign. Reports and files are written elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from stillhouse.errors import ConfigError, nearest
from stillhouse.guard.calibrate import Calibration
from stillhouse.guard.clusters import find_clusters
from stillhouse.guard.evidence import Evidence, weigh
from stillhouse.guard.hashing import run_starts
from stillhouse.guard.joining import join_wordings, without_crumbs
from stillhouse.guard.keys import CONTENT, INFRASTRUCTURE, Frozen, shared_keys
from stillhouse.guard.membership import Membership, score_accounts
from stillhouse.guard.population import Population, populate
from stillhouse.guard.settings import FAMILIES, GuardSettings
from stillhouse.guard.traffic import read_traffic
from stillhouse.guard.verdict import Scan, decide

__all__ = ["Scan", "calibrate", "check_families", "detect"]

Tell = Callable[[str], None]
"""Told the name of each stage as it begins."""


def detect(
    events: Path,
    settings: GuardSettings,
    calibration: Calibration | None = None,
    progress: Tell | None = None,
) -> Scan:
    """Campaigns and account scores of the events in a folder.

    Args:
        events: the folder of parts that an ingest wrote.
        settings: of the detector; declared organisations as events have them, by keyed hash.
        calibration: of benign traffic of the same window length; without one, p-values of accounts
            are not known and the scan says so.
        progress: told the name of each stage.

    Raises:
        ConfigError: an unknown evidence family, fewer than two, or a calibration under others.
        DataError: events or calibration that cannot be used.
        EvidenceError: too little to judge.
    """
    tell = progress or (lambda stage: None)
    check_families(settings)
    population = _population(events, settings, tell)
    if calibration is not None:
        tell("fitting the calibration")
        calibration.check(population, settings)
    clusters, weighed, membership = _judge(population, settings, calibration, tell)
    tell("deciding")
    found = decide(population, weighed, membership, calibration, settings)
    found.facts["clusters_tested"] = clusters
    return found


def calibrate(events: Path, settings: GuardSettings, progress: Tell | None = None) -> Calibration:
    """A calibration from events that are known to be benign.

    Raises:
        ConfigError: an unknown evidence family, or fewer than two.
        DataError: events that cannot be used.
        EvidenceError: too few accounts.
    """
    tell = progress or (lambda stage: None)
    check_families(settings)
    population = _population(events, settings, tell)
    _, weighed, membership = _judge(population, settings, None, tell)
    tell("freezing frequencies")
    speaking = [e.strength for e in weighed if e.speaks(settings)]
    strong = np.array(speaking, dtype=np.float64)
    return Calibration.of_scores(
        population, membership.score, strong, _frequencies(population), settings
    )


def check_families(settings: GuardSettings) -> None:
    """Refuse unknown evidence families, and fewer than two.

    Raises:
        ConfigError: of those.
    """
    for family in settings.families:
        if family not in FAMILIES:
            raise ConfigError(
                "families", f"'{family}'", f"of {', '.join(FAMILIES)}", nearest(family, FAMILIES)
            )
    if len(set(settings.families)) < 2:
        raise ConfigError(
            "families", f"{len(set(settings.families))} of them",
            "at least two: one alone never decides", "Name another family",
        )  # fmt: skip


def _population(events: Path, settings: GuardSettings, tell: Tell) -> Population:
    tell("reading events")
    traffic = read_traffic(events, settings.days)
    tell("telling customers apart")
    return populate(traffic, settings)


def _judge(
    population: Population, settings: GuardSettings, known: Calibration | None, tell: Tell
) -> tuple[int, list[Evidence], Membership]:  # fmt: skip
    """How many clusters were tested, what came of them, and the accounts' scores."""
    tell("finding clusters")
    clusters = find_clusters(population, settings, known.frozen if known else None)
    tell(f"testing {len(clusters)} clusters")
    weighed = weigh(population, clusters, settings)
    beyond = known.strongest if known else 0.0
    weighed = join_wordings(population, without_crumbs(weighed, settings, beyond))
    tell("scoring accounts")
    return len(clusters), weighed, score_accounts(population, weighed, settings)


def _frequencies(population: Population) -> Frozen:
    """Keys that two benign customers or more have, and how many do."""
    table = shared_keys(population, (*CONTENT, *INFRASTRUCTURE), None, fewest=2)
    order = np.argsort(table.keys, kind="stable")
    keys, counts = table.keys[order], table.customers[order]
    first = run_starts(keys)  # 64-bit hashes of different kinds hardly ever meet
    return Frozen(keys[first], counts[first], population.customers)
