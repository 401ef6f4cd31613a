"""What a report needs of one campaign, as plain values.

In: a cluster with its evidence. Out: a dict that JSON takes: members with individual strength, the
keys that link them, a timeline, volumes, an estimate of value, what speaks against it, what to do
next. Hashes are keyed and shown in hexadecimal; no text is at hand. Nothing here decides.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from stillhouse.guard.clusters import Cluster
from stillhouse.guard.events import CAPABILITIES, SHAPES
from stillhouse.guard.evidence import Evidence
from stillhouse.guard.hashing import Ints
from stillhouse.guard.membership import strengths
from stillhouse.guard.population import KINDS
from stillhouse.guard.settings import GuardSettings
from stillhouse.guard.traffic import HOUR

__all__ = ["Said", "capability_of", "describe", "identity", "moment"]

Floats = npt.NDArray[np.float64]

_MOST_KEYS = 40
_FEWEST_FLAGGED, _LEAST_FLAGGED, _ENRICHED, _BESIDE = 5, 0.01, 3.0, 0.5


def identity(cluster: Cluster) -> str:
    """A campaign's id: the least of the keys that link it. Renamed accounts leave it as it is, and
    the next day's new keys mostly do.
    """
    return f"c-{int(cluster.keys.keys.min()):016x}"


def moment(microseconds: int) -> str:
    """ISO 8601, UTC, to the second."""
    return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat(timespec="seconds")


def capability_of(cluster: Cluster) -> str:
    """The capability its events lean to most, against the rest of the traffic.

    The largest share x log(share / share in the other traffic) among named ones with five events or
    more, a hundredth of all, and three times the usual share; else `other`. Most wordings have no
    mark by which they are known, so a small share says enough where hardly anybody else has any.
    Where half as many of its events or more bear the mark of a rarer capability beside, it is that:
    who asks for the code of an analysis wants the analysis.
    """
    columns = cluster.population.traffic.columns
    strongest = np.minimum(columns["capability"], len(CAPABILITIES) - 1)
    here = np.bincount(strongest[cluster.events], minlength=len(CAPABILITIES)).astype(np.float64)
    others = np.bincount(strongest, minlength=len(CAPABILITIES)) - here + 1.0
    share, usual = here / here.sum(), others / others.sum()
    leans = _leans(here, share, usual)
    leans[0] = False
    if not leans.any():
        return CAPABILITIES[0]
    weight = np.where(leans, share * np.log(np.maximum(share, 1e-12) / usual), -np.inf)
    named = int(np.argmax(weight)) - 1
    marked = _marked(columns["shape"][cluster.events])
    rest = _marked(columns["shape"]) - marked + 1.0
    share, usual = marked / len(cluster.events), rest / others.sum()
    beside = _leans(marked, share, usual) & (share >= _BESIDE * share[named])
    beside[named] = True
    return SHAPES[int(np.argmax(np.where(beside, share / usual, -np.inf)))]


def _leans(count: Floats, share: Floats, usual: Floats) -> npt.NDArray[np.bool_]:
    return (count >= _FEWEST_FLAGGED) & (share >= _LEAST_FLAGGED) & (share >= _ENRICHED * usual)


def _marked(shapes: npt.NDArray[np.uint16]) -> Floats:
    """(SHAPES,) events that have each shape, whatever else they have."""
    counts = np.bincount(shapes, minlength=1 << len(SHAPES))
    bits = np.arange(len(counts))[:, None] >> np.arange(len(SHAPES)) & 1
    return (counts @ bits).astype(np.float64)


@dataclass(frozen=True)
class Said:
    """What was decided of a cluster and of everybody."""

    decision: str
    """Of the cluster."""
    held_back: tuple[str, ...]
    """What keeps it from review, in words."""
    accounts: npt.NDArray[np.object_]
    """(accounts,) the decision of each."""
    p_value: Floats
    """(accounts,) of each."""
    calibrated: bool
    """Whether thresholds come from benign traffic."""


def describe(
    evidence: Evidence, members: Ints, said: Said, settings: GuardSettings
) -> dict[str, Any]:
    """The campaign's entry in campaigns.json.

    Args:
        evidence: of the cluster.
        members: accounts that were assigned to it and are not excused.
        said: what was decided.
        settings: of the scan.
    """
    cluster = evidence.cluster
    traffic = cluster.population.traffic
    events = cluster.events[np.isin(traffic.account[cluster.events], members)]
    time = traffic.time[events]
    return {
        "id": identity(cluster),
        "decision": said.decision,
        "accounts": len(members),
        "decisions": dict(sorted(Counter(map(str, said.accounts[members])).items())),
        "customers": len(np.unique(cluster.population.customer_of[members])),
        "exchanges": len(events),
        "first_seen": moment(int(time.min())),
        "last_seen": moment(int(time.max())),
        "capability": capability_of(cluster),
        "p_value": evidence.p_value,
        "q_value": evidence.q_value,
        "families": sorted(
            f for f, p in evidence.families.items() if p <= settings.family_level
        ),
        "evidence": [
            {"family": f.family, "test": f.test, "p_value": f.p_value, "effect": f.effect,
             "typical": f.typical, "n": f.n} for f in evidence.findings
        ],
        "family_p_values": evidence.families,
        "found_by": cluster.family,
        "wordings": evidence.wordings,
        "calibrated": said.calibrated,
        "disjoint_share": cluster.disjoint,
        "members": _members(evidence, members, said),
        "links": _links(cluster),
        "timeline": _timeline(cluster, events),
        "volumes": _volumes(cluster, events, members),
        "estimate": _estimate(cluster, events, settings),
        "held_back": list(said.held_back),
        "against": _against(evidence, members, said, settings),
        "next_step": _next_step(said, cluster.one_place >= settings.one_place),
    }  # fmt: skip


def _members(evidence: Evidence, members: Ints, said: Said) -> list[dict[str, Any]]:
    traffic = evidence.cluster.population.traffic
    who, counts, sure = strengths(evidence)
    inside = np.isin(who, members)
    order = np.flatnonzero(inside)[np.argsort(-counts[inside], kind="stable")]
    return [
        {"account": str(traffic.names[who[i]]), "exchanges": int(counts[i]),
         "events": int(traffic.events_of[who[i]]), "strength": round(float(sure[i]), 4),
         "p_value": float(said.p_value[who[i]]), "decision": str(said.accounts[who[i]])}
        for i in order
    ]  # fmt: skip


def _links(cluster: Cluster) -> list[dict[str, Any]]:
    table, everybody = cluster.keys, cluster.population.customers
    order = np.argsort(-table.customers, kind="stable")[:_MOST_KEYS]
    return [
        {"kind": table.kinds[table.kind[i]], "key": f"{int(table.keys[i]):016x}",
         "customers": int(table.customers[i]),
         "benign_customers": int(cluster.benign[i]) if len(cluster.benign) else None,
         "rarity_nats": round(float(np.log(everybody / table.customers[i])), 3),
         "disjoint_share": round(float(table.disjoint[i]), 4)}
        for i in order
    ]  # fmt: skip


def _timeline(cluster: Cluster, events: Ints) -> list[dict[str, Any]]:
    traffic = cluster.population.traffic
    day = traffic.time[events] // (24 * HOUR)
    return [
        {"day": moment(int(d) * 24 * HOUR)[:10], "exchanges": int((day == d).sum()),
         "accounts": len(np.unique(traffic.account[events[day == d]]))} for d in np.unique(day)
    ]  # fmt: skip


def _volumes(cluster: Cluster, events: Ints, members: Ints) -> dict[str, Any]:
    traffic = cluster.population.traffic
    each = np.bincount(np.searchsorted(members, traffic.account[events]), minlength=len(members))
    quarter = [int(q) for q in np.percentile(each, [5, 25, 50, 75, 95], method="nearest")]
    kinds = np.bincount(cluster.population.kind[cluster.population.customer_of[members]],
                        minlength=len(KINDS))  # fmt: skip
    models = np.bincount(traffic.columns["model"][events], minlength=len(traffic.models))
    capability = np.bincount(
        np.minimum(traffic.columns["capability"][events], len(CAPABILITIES) - 1),
        minlength=len(CAPABILITIES),
    )
    return {
        "exchanges_per_account": dict(zip(("p5", "p25", "p50", "p75", "p95"), quarter,
                                          strict=True)),
        "share_of_their_traffic": float(len(events) / traffic.events_of[members].sum()),
        "distinct_payloads": len(np.setdiff1d(traffic.columns["whole"][events], [0])),
        "kinds": {k: int(n) for k, n in zip(KINDS, kinds, strict=True) if n},
        "models": {m: int(n) for m, n in zip(traffic.models, models, strict=True) if n},
        "capabilities": {c: int(n) for c, n in zip(CAPABILITIES, capability, strict=True) if n},
    }  # fmt: skip


def _estimate(cluster: Cluster, events: Ints, settings: GuardSettings) -> dict[str, Any]:
    """Value at list price: as logged where every event states it, else from tokens."""
    columns = cluster.population.traffic.columns
    sent, got = (columns[n][events].astype(np.int64) for n in ("input_tokens", "output_tokens"))
    cost = columns["cost_usd"][events].astype(np.float64)
    counted = (sent >= 0) & (got >= 0)
    priced = (
        settings.input_usd_per_million_tokens * sent[counted].sum()
        + settings.output_usd_per_million_tokens * got[counted].sum()
    ) / 1e6
    logged = bool(len(cost)) and bool((cost >= 0).all())
    return {
        "input_tokens": int(sent[counted].sum()) if counted.any() else None,
        "output_tokens": int(got[counted].sum()) if counted.any() else None,
        "events_with_tokens": int(counted.sum()),
        "events_priced": len(cost) if logged else int(counted.sum()),
        "usd": float(cost.sum()) if logged else (float(priced) if counted.any() else None),
        "basis": "cost as logged" if logged else "tokens at the list price of the settings",
    }


def _against(
    evidence: Evidence, members: Ints, decided: Said, settings: GuardSettings
) -> list[str]:
    population = evidence.cluster.population
    said = [f"kept from review: {why}" for why in decided.held_back]
    for family, p in sorted(evidence.families.items()):
        if p > settings.family_level:
            said.append(f"{family} does not speak (p = {p:.2g})")
    untested = [f for f in settings.families if f not in evidence.families]
    if untested:
        said.append(f"not recorded or too few to test: {', '.join(untested)}")
    declared = population.traffic.first_known("organisation")[members]
    values, count = np.unique(declared[declared != 0], return_counts=True)
    if len(values) and count.max() > 0.2 * len(members):
        said.append(f"{count.max()} of {len(members)} accounts declare one organisation")
    _, counts, _ = strengths(evidence)
    once = int((counts == 1).sum())
    if once > 0.05 * len(counts):
        said.append(f"{once} accounts sent only one of its exchanges, which chance can do")
    if not decided.calibrated:
        said.append("no calibration: how often benign traffic looks like this is not known")
    return said


def _next_step(said: Said, one_place: bool) -> str:
    if said.decision == "review":
        return (
            "Read ten exchanges of five members in the logs; ask what product sends this template; "
            "if none is known, limit the cluster as a whole (not its accounts one by one) and step "
            "up verification. Suspension is a person's decision."
        )
    if said.decision == "allow":
        return "Nothing: the accounts are excused by the allow-list. Check that the list is right."
    if one_place:
        return (
            "Ask whose network it is that most of them send from. If an organisation answers for "
            "it, put its accounts on the allow-list; if nobody does, read ten exchanges."
        )
    return (
        "Watch it: scan again with the next days. What keeps it from review stands under what "
        "speaks against it; where only more days can tell, they will."
    )
