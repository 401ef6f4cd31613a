"""Decisions: what is said of each account and of each cluster, and what false alarms to expect.

    scores + evidence + calibration -> accounts table, campaigns, sub-streams, facts

In: everything measured. Out: `allow`, `insufficient`, `observe` or `review` for each account. A
cluster is called for review where its q-value is small, two families speak, its payloads are not
shared, and no benign cluster of the calibration was as strong. The allow-list is applied last, and
what it excused is listed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stillhouse.errors import ConfigError
from stillhouse.guard.calibrate import Calibration
from stillhouse.guard.dossier import Said, describe, identity
from stillhouse.guard.evidence import Evidence
from stillhouse.guard.hashing import Ints
from stillhouse.guard.membership import Membership
from stillhouse.guard.population import Population
from stillhouse.guard.settings import GuardSettings

__all__ = ["DECISIONS", "Scan", "decide"]

DECISIONS = ("allow", "insufficient", "observe", "review")
_OBSERVED = 0.01
"""p-value of a cluster from which it is listed and watched."""
_WEEK_HOURS = 168.0


@dataclass(frozen=True)
class Scan:
    """What a scan found."""

    accounts: pa.Table
    """account, events, score, p_value, campaign, decision; one row each, in order of names."""
    campaigns: list[dict[str, Any]]
    """Strongest first; as `dossier.describe` makes each."""
    substreams: pa.Table
    """campaign, account, time, file, offset: where a campaign's events stand in the logs."""
    facts: dict[str, Any]
    """Counts, whether calibrated, expected false alarms a week, what was excused."""


def decide(
    population: Population,
    weighed: list[Evidence],
    membership: Membership,
    calibration: Calibration | None,
    settings: GuardSettings,
) -> Scan:
    """All decisions of a scan."""
    held_back = [_held_back(e, calibration, settings) for e in weighed]
    called = [_of_cluster(e, why) for e, why in zip(weighed, held_back, strict=True)]
    p = _account_p(population, weighed, membership, calibration)
    decision = _of_accounts(population, membership, called, p, calibration, settings)
    excused = _excused(population, settings)
    listed = [
        {"account": str(population.traffic.names[a]), "decision": str(decision[a])}
        for a in np.flatnonzero(excused & np.isin(decision, ["observe", "review"]))
    ]
    decision[excused] = "allow"
    campaigns, ids = [], np.full(len(decision), None, dtype=object)
    order = sorted(range(len(weighed)), key=lambda i: (weighed[i].p_value, identity(
        weighed[i].cluster)))  # fmt: skip
    for number in order:
        members = np.flatnonzero(membership.cluster == number)
        if called[number] == "allow" or not len(members):
            continue
        verdict = "allow" if excused[members].all() else called[number]
        if verdict != "allow":  # whoever is excused stands in no list of suspects
            members = members[~excused[members]]
        ids[members] = identity(weighed[number].cluster)
        said = Said(verdict, tuple(held_back[number]), decision, p, calibration is not None)
        campaigns.append(describe(weighed[number], members, said, settings))
    return Scan(
        _accounts_table(population, membership, p, ids, decision), campaigns,
        _substreams(population, weighed, ids),
        _facts(population, campaigns, decision, listed, calibration, settings),
    )  # fmt: skip


def _held_back(
    evidence: Evidence, calibration: Calibration | None, settings: GuardSettings
) -> list[str]:
    """What keeps a cluster from review; nothing where nothing does."""
    why = evidence.missing(settings)
    if evidence.q_value > settings.false_discovery_rate:
        why.append(
            f"q is {evidence.q_value:.2g}: too many clusters were tested for evidence of its kind"
        )
    if calibration is not None and evidence.strength <= calibration.strongest:
        p = 10.0**-calibration.strongest
        why.append(f"a benign cluster of the calibration was as strong (p = {p:.2g} there)")
    return why


def _of_cluster(evidence: Evidence, held_back: list[str]) -> str:
    """Review, observe or allow (nothing to say)."""
    if not held_back:
        return "review"
    return "observe" if evidence.p_value <= _OBSERVED else "allow"


def _account_p(
    population: Population, weighed: list[Evidence], membership: Membership,
    calibration: Calibration | None,
) -> npt.NDArray[np.float64]:  # fmt: skip
    """(accounts,) conformal p-values; without a calibration that of the account's cluster."""
    if calibration is not None:
        return calibration.p_values(population, membership.score)
    own = np.array([*(e.p_value for e in weighed), 1.0])
    return own[membership.cluster]


def _of_accounts(
    population: Population, membership: Membership, called: list[str],
    p: npt.NDArray[np.float64], calibration: Calibration | None, settings: GuardSettings,
) -> npt.NDArray[np.object_]:  # fmt: skip
    cluster = np.array([*called, "allow"], dtype=object)[membership.cluster]
    unknown = population.traffic.events_of < settings.fewest_events
    unknown |= ~population.linkable
    decision = np.where(unknown & (cluster == "allow"), "insufficient", cluster).astype(object)
    if calibration is None:
        return decision
    blunt = calibration.least_p(population) > settings.account_level
    unsure = (decision == "review") & (p > settings.account_level) & ~blunt
    decision[unsure] = "observe"
    # a stratum too small to reach the level cannot call anybody: that is said, not hidden
    decision[(decision == "review") & blunt] = "insufficient"
    return decision


def _excused(population: Population, settings: GuardSettings) -> npt.NDArray[np.bool_]:
    """(accounts,) on the allow-list.

    Raises:
        ConfigError: an organisation that is no keyed hash.
    """
    try:
        hashes = [int(word, 16) for word in settings.allow_organisations]
        organisations = np.array(hashes, dtype=np.uint64)
    except (ValueError, OverflowError):
        raise ConfigError(
            "allow_organisations", f"{', '.join(settings.allow_organisations)!r:.80}",
            "keyed hashes of 16 hexadecimal digits",
            "Give names to `guard_scan`, which hashes them",
        ) from None  # fmt: skip
    own = population.traffic.first_known("organisation")
    # numpy's own strings drop NULs at the end, and have all names take as much as the longest
    allowed, names = frozenset(settings.allow_accounts), population.traffic.names
    named = np.fromiter((name in allowed for name in names), dtype=np.bool_, count=len(names))
    return (np.isin(own, organisations) & (own != 0)) | named


def _accounts_table(
    population: Population, membership: Membership, p: npt.NDArray[np.float64],
    ids: npt.NDArray[np.object_], decision: npt.NDArray[np.object_],
) -> pa.Table:  # fmt: skip
    names = population.traffic.names
    order = np.argsort(names, kind="stable")  # as objects: see `_excused`
    return pa.table({
        "account": pa.array(names[order], pa.string()),
        "events": pa.array(population.traffic.events_of[order], pa.int64()),
        "score": pa.array(membership.score[order], pa.float64()),
        "p_value": pa.array(p[order], pa.float64()),
        "campaign": pa.array(ids[order], pa.string()),
        "decision": pa.array(decision[order], pa.string()),
    })  # fmt: skip


def _substreams(
    population: Population, weighed: list[Evidence], ids: npt.NDArray[np.object_]
) -> pa.Table:
    """Where the events of listed campaigns stand in the logs."""
    traffic = population.traffic
    rows: list[Ints] = []
    names: list[str] = []
    for evidence in weighed:
        name = identity(evidence.cluster)
        events = evidence.cluster.events
        events = events[ids[traffic.account[events]] == name]
        rows.append(events)
        names += [name] * len(events)
    at = np.concatenate([np.zeros(0, dtype=np.int64), *rows])
    return pa.table({
        "campaign": pa.array(names, pa.string()),
        "account": pa.array(traffic.names[traffic.account[at]], pa.string()),
        "customer": pa.array(population.customer[at], pa.int32()),
        "time": pa.array(traffic.time[at], pa.timestamp("us", tz="UTC")),
        "file": pa.array(traffic.columns["file"][at], pa.uint16()),
        "offset": pa.array(traffic.columns["offset"][at], pa.uint64()),
    })  # fmt: skip


def _facts(
    population: Population, campaigns: list[dict[str, Any]], decision: npt.NDArray[np.object_],
    excused: list[dict[str, str]], calibration: Calibration | None, settings: GuardSettings,
) -> dict[str, Any]:  # fmt: skip
    first, last = population.traffic.span
    weeks = max((last - first) / 3.6e9 / _WEEK_HOURS, 1e-9)
    accounts = len(population.traffic.names)
    return {
        "events": len(population.traffic),
        "accounts": accounts,
        "customers": population.customers,
        "hours": (last - first) / 3.6e9,
        "without_text": int((population.traffic.columns["whole"] == 0).sum()),
        "unlinkable_accounts": int((~population.linkable).sum()),
        "strays": population.traffic.strays,
        "older": population.traffic.older,
        "campaigns": {
            word: sum(c["decision"] == word for c in campaigns)
            for word in ("review", "observe", "allow")
        },
        "decisions": {word: int((decision == word).sum()) for word in DECISIONS},
        "calibrated": calibration is not None,
        "calibration_accounts": None if calibration is None else calibration.accounts,
        "strongest_benign_cluster": None if calibration is None else calibration.strongest,
        # Without benign traffic to hold it against, a rate of permutations is no rate of alarms.
        "expected_false_campaigns_a_week": None if calibration is None
        else settings.false_discovery_rate / weeks,
        "expected_false_accounts_a_week": None if calibration is None
        else settings.account_level * accounts / weeks,
        "excused": excused,
    }  # fmt: skip
