"""What a scan got right: counts of one scan against the truth, and rates over many.

In: a `Scan` and the truth of its week. Out: plain counts (JSON), one entry for each campaign and
for each cluster that was called, and from many of these rates with their intervals. A false alarm
is a benign account that is called; a false campaign one that is called for review and has more
benign accounts than any campaign's. All rates are of simulated traffic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from stillhouse.errors import EvidenceError
from stillhouse.stats import Estimate, clopper_pearson, clustered_share

pc: Any = pyarrow.compute  # its functions are made when it is imported

__all__ = [
    "LEVELS", "above", "false_alarms", "found_share", "is_found", "outcome", "own_exchanges",
    "recall", "share", "spread", "threshold_at",
]  # fmt: skip

LEVELS = (1e-2, 1e-3, 1e-4)
"""Account false-positive rates."""
_HALF = 0.5  # of a campaign's accounts, from which it counts as found

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


# ---- one scan ----


def outcome(
    accounts: pa.Table, campaigns: Sequence[Mapping[str, Any]], truth: pa.Table
) -> dict[str, Any]:
    """Counts of one scan.

    Args:
        accounts: of a `Scan`: account, events, score, p_value, campaign, decision.
        campaigns: of a `Scan`.
        truth: account, kind, campaign, capability, language, group of every account in it.

    Raises:
        EvidenceError: accounts of the scan and of the truth are not the same.
    """
    truth = _in_order(accounts, truth)
    own = np.array(truth["campaign"].to_pylist(), dtype=object)
    benign = own == None  # noqa: E711  (elementwise)
    score, p = accounts["score"].to_numpy(), accounts["p_value"].to_numpy()
    decision = np.array(accounts["decision"].to_pylist(), dtype=object)
    cluster = np.array(accounts["campaign"].to_pylist(), dtype=object)
    beyond = {level: threshold_at(score[benign], level) for level in LEVELS}
    kinds = np.array(truth["kind"].to_pylist(), dtype=object)
    found = [_of_cluster(one, cluster == one["id"], own, kinds, benign) for one in campaigns]
    return {
        "benign": _of_benign(truth, benign, p, decision),
        "campaigns": [
            _of_campaign(name, own == name, accounts, p, score, beyond, found, campaigns, truth)
            for name in sorted({str(n) for n in own[~benign]})
        ],
        "found": found,
    }  # fmt: skip


def _in_order(accounts: pa.Table, truth: pa.Table) -> pa.Table:
    """The truth's rows in the order of the scan's accounts."""
    names = truth["account"].to_pylist()
    place = {name: at for at, name in enumerate(names)}
    wanted = accounts["account"].to_pylist()
    unknown = [name for name in wanted if name not in place]
    if unknown or len(wanted) != len(names):
        raise EvidenceError(
            "benchmark, accounts", f"{len(wanted)} in the scan, {len(unknown)} of them unknown",
            f"the {len(names)} accounts of the truth", "Simulate and read the week again",
        )  # fmt: skip
    return truth.take(pa.array([place[name] for name in wanted]))


def threshold_at(benign: Floats, level: float) -> float:
    """The largest benign score that may not be called for at most a share `level` to be called:
    what is above it is called. Minus infinity where all may be.
    """
    allowed = int(np.floor(level * len(benign)))
    if allowed >= len(benign):
        return -np.inf
    return float(np.sort(benign)[::-1][allowed])


def above(score: Floats, threshold: float) -> Bools:
    """What is called; ties with a benign account that may not be are not."""
    return score > threshold


def _of_benign(
    truth: pa.Table, benign: Bools, p: Floats, decision: npt.NDArray[Any]
) -> dict[str, Any]:
    rows = truth.filter(pa.array(benign))
    p, review = p[benign], decision[benign] == "review"
    hits = {f"{level:g}": p <= level for level in LEVELS} | {"review": review}
    group = rows["group"].to_numpy()
    alone = group < 0
    group = np.where(alone, group.max(initial=0) + 1 + np.arange(len(group)), group)
    out: dict[str, Any] = {"accounts": len(p), "clustered": {}}
    for name, hit in hits.items():
        sizes = np.bincount(group)
        counts = Counter(zip(sizes.tolist(), np.bincount(group, hit).astype(int).tolist(),
                             strict=True))  # fmt: skip
        counts.pop((0, 0), None)
        # (accounts of a group, those called, how many such groups)
        out["clustered"][name] = sorted([*key, n] for key, n in counts.items())
    for column in ("language", "kind"):
        words = np.array(rows[column].to_pylist(), dtype=object)
        out[column] = {
            str(word): {"accounts": int((words == word).sum())}
            | {name: int(hit[words == word].sum()) for name, hit in hits.items()}
            for word in sorted(set(words.tolist()))
        }
    return out


def _of_campaign(
    name: str, ours: Bools, accounts: pa.Table, p: Floats, score: Floats,
    beyond: dict[float, float], found: list[dict[str, Any]],
    campaigns: Sequence[Mapping[str, Any]], truth: pa.Table,
) -> dict[str, Any]:  # fmt: skip
    """Accounts that lie in a false campaign by accident count as called, not as found."""
    right = {c["id"] for c in found if c["decision"] == "review" and c["campaign"] == name}
    cluster = np.array(accounts["campaign"].to_pylist(), dtype=object)
    decision = np.array(accounts["decision"].to_pylist(), dtype=object)
    inside = ours & np.isin(cluster, list(right))
    pieces = Counter(str(c) for c in cluster[inside])
    best, held = pieces.most_common(1)[0] if pieces else (None, 0)
    named = next((one["capability"] for one in campaigns if one["id"] == best), None)
    return {
        "campaign": name, "accounts": int(ours.sum()),
        "capability": truth["capability"][int(np.flatnonzero(ours)[0])].as_py(),
        "hits": {f"{level:g}": int((p[ours] <= level).sum()) for level in LEVELS},
        "roc": {f"{level:g}": int(above(score[ours], t).sum()) for level, t in beyond.items()},
        "review": int((decision[ours] == "review").sum()),
        "observe": int((decision[ours] == "observe").sum()),
        "in_best": held, "in_any": int(inside.sum()), "pieces": len(pieces),
        "named": named, "events": int(accounts["events"].to_numpy()[ours].sum()),
    }  # fmt: skip


def _of_cluster(
    one: Mapping[str, Any], inside: Bools, own: npt.NDArray[Any], kinds: npt.NDArray[Any],
    benign: Bools,
) -> dict[str, Any]:  # fmt: skip
    campaigns = Counter(str(name) for name in own[inside & ~benign])
    innocent = Counter(str(kind) for kind in kinds[inside & benign])
    name, most = campaigns.most_common(1)[0] if campaigns else (None, 0)
    false = most < int((inside & benign).sum())
    return {
        "id": one["id"], "decision": one["decision"], "accounts": int(inside.sum()),
        "campaign": None if false else name, "of_campaign": most,
        "kind": innocent.most_common(1)[0][0] if false else None,
        "families": list(one["families"]), "exchanges": one["exchanges"],
        "p_value": one["p_value"], "q_value": one["q_value"],
    }  # fmt: skip


def own_exchanges(
    substreams: pa.Table, found: Sequence[Mapping[str, Any]], events: pa.Table,
    own: npt.NDArray[np.uint64],
) -> dict[str, int]:  # fmt: skip
    """How many exchanges of campaigns that were called for review are a campaign's own.

    Args:
        substreams: of a `Scan`.
        found: of `outcome`.
        events: file, offset and request of all events that were scanned.
        own: sorted keyed hashes of the requests that campaigns made for themselves.
    """
    right = [c["id"] for c in found if c["decision"] == "review" and c["campaign"] is not None]
    chosen = substreams.filter(pc.is_in(substreams["campaign"], pa.array(right, pa.string())))
    mine, all_of = _places(chosen), _places(events)
    order = np.argsort(all_of)
    at = np.minimum(np.searchsorted(all_of[order], mine), len(all_of) - 1)
    request = events["request"].to_numpy()
    hit = np.isin(request[order][at], own) if len(mine) else np.zeros(0, bool)
    return {
        "in_campaigns": len(mine), "own_among_them": int(hit.sum()),
        "own": int(np.isin(request, own).sum()),
    }  # fmt: skip


def _places(table: pa.Table) -> npt.NDArray[np.uint64]:
    file = table["file"].to_numpy().astype(np.uint64)
    return (file << np.uint64(48)) | table["offset"].to_numpy()


# ---- over many ----


def share(successes: int, trials: int, unit: str) -> dict[str, Any] | None:
    """A share of independent trials with its exact interval; None where there were none."""
    return clopper_pearson(successes, trials, unit=unit).to_dict() if trials else None


def found_share(hits: Sequence[float], sizes: Sequence[float], unit: str) -> dict[str, Any] | None:
    """A share of trials that come in clusters; None where there were none."""
    pairs = [(hit, size) for hit, size in zip(hits, sizes, strict=True) if size]
    if not pairs:
        return None
    if len(pairs) == 1:  # one cluster says nothing about others: the widest interval is honest
        hit, size = pairs[0]
        method = f"one of the {unit}: no interval"
        return Estimate(hit / size, 0.0, 1.0, 1, method).to_dict()
    hit, size = zip(*pairs, strict=True)
    return clustered_share(hit, size, unit=unit, exact=True).to_dict()


def recall(campaigns: Iterable[Mapping[str, Any]], of: str, at: str) -> dict[str, Any] | None:
    """Share of campaigns' accounts, clustered by campaign.

    Args:
        campaigns: entries of `outcome`, of all seeds.
        of: 'hits' (p-value), 'roc' (score, threshold on the same week), or a count's name.
        at: the level, where there are several.
    """
    listed = list(campaigns)
    hits = [one[of][at] if isinstance(one[of], Mapping) else one[of] for one in listed]
    return found_share(hits, [one["accounts"] for one in listed], "campaigns")


def false_alarms(outcomes: Iterable[Mapping[str, Any]], at: str) -> dict[str, Any] | None:
    """Share of benign accounts that are called, clustered by their groups (firms, classes,
    products; most accounts are a group of their own).
    """
    hits: list[int] = []
    sizes: list[int] = []
    for one in outcomes:
        for size, hit, count in one["benign"]["clustered"][at]:
            hits += [hit] * count
            sizes += [size] * count
    found = found_share(hits, sizes, "groups of accounts")
    if found is not None:
        called, accounts = int(sum(hits)), int(sum(sizes))
        alone = share(called, accounts, "accounts, taken as independent")
        found |= {"accounts": accounts, "called": called, "independent": alone}
    return found


def spread(
    outcomes: Iterable[Mapping[str, Any]], column: str, at: str
) -> dict[str, dict[str, Any] | None]:
    """Share of benign accounts that are called, by language or kind. Intervals take accounts as
    independent, which those of one firm or class are not: true ones are wider.
    """
    called: Counter[str] = Counter()
    accounts: Counter[str] = Counter()
    for one in outcomes:
        for word, counts in one["benign"][column].items():
            called[word] += counts[at]
            accounts[word] += counts["accounts"]
    return {
        word: share(called[word], accounts[word], "accounts, taken as independent")
        for word in sorted(accounts)
    }


def is_found(campaign: Mapping[str, Any]) -> bool:
    """Whether at least half of its accounts lie in campaigns that are called for review and are
    mostly its own: in a call of several campaigns only the largest of them is found.
    """
    return campaign["in_any"] >= _HALF * campaign["accounts"]
