"""From counts to the table: rates, intervals, goals.

In: the counts of all units that ran. Out: one entry for each case, as JSON. Each rate says how it
was made; each goal says whether the measured value reaches it, where goals are judged at all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from stillhouse.guard.benchmark_measures import (
    LEVELS,
    false_alarms,
    found_share,
    is_found,
    recall,
    share,
    spread,
)

__all__ = ["Rows", "table_of"]

Rows = list[dict[str, Any]]
"""Counts of units: `case`, `unit`, `seed`, `note`, and what the unit gave."""

_MINIMUM_1E4 = 10_000  # calibration accounts from which a rate of 1e-4 can be kept
_BASELINES_AT = "0.001"


def table_of(case: str, rows: Rows, *, judged: bool) -> dict[str, Any]:
    """The entry of one case; rows that found too little to judge are listed, not counted."""
    short = [{"unit": r["unit"], "why": r["insufficient"]} for r in rows if "insufficient" in r]
    whole = [row for row in rows if "insufficient" not in row]
    entry: dict[str, Any] = {
        "traffic": "simulated",
        "seeds": sorted({row["seed"] for row in rows}),
        "units": len(rows),
        "minutes": sum(row.get("step_seconds", 0.0) for row in rows) / 60,
    }
    if short:
        entry["insufficient"] = short
    if whole:
        entry |= _TABLES[case](whole)
    if not judged:
        for one in entry.get("goals", []):
            one["met"] = None
    return entry


def _goal(what: str, found: Mapping[str, Any] | None, bound: float, *, most: bool = False) -> Any:
    """A goal, and whether the value reaches it (its interval may not)."""
    value = None if found is None else found["value"]
    met = None if value is None else (value <= bound if most else value >= bound)
    return {"what": what, "at_most" if most else "at_least": bound, "value": value, "met": met}


def _levels(campaigns: Rows, of: str) -> dict[str, Any]:
    return {f"{level:g}": recall(campaigns, of, f"{level:g}") for level in LEVELS}


def _campaigns(rows: Iterable[Mapping[str, Any]]) -> Rows:
    return [
        one | {"seed": row["seed"], "spec": row["specs"][one["campaign"]]}
        for row in rows for one in row["campaigns"]
    ]  # fmt: skip


def _detection(rows: Rows) -> dict[str, Any]:
    """Recall, purity, completeness and names of some scans' campaigns."""
    campaigns = _campaigns(rows)
    found = [one for one in campaigns if is_found(one)]
    called = [one for row in rows for one in row["found"] if one["decision"] == "review"]
    right = sum(one["named"] == one["capability"] for one in found)
    exchanges = [row["exchanges"] for row in rows if "exchanges" in row]
    mine = [one["in_campaigns"] for one in exchanges]
    theirs = [one["own_among_them"] for one in exchanges]
    return {
        "campaigns": len(campaigns),
        "recall": _levels(campaigns, "hits"),
        "recall_by_score": _levels(campaigns, "roc"),
        "recall_by_review": recall(campaigns, "review", ""),
        "false_positive_rate": {
            at: false_alarms(rows, at) for at in (*(f"{v:g}" for v in LEVELS), "review")
        },
        "campaigns_found": share(len(found), len(campaigns), "campaigns"),
        "purity": found_share(
            [one["of_campaign"] for one in called], [one["accounts"] for one in called],
            "called campaigns",
        ),
        "completeness": found_share(
            [one["in_best"] for one in found], [one["accounts"] for one in found],
            "found campaigns",
        ),
        "completeness_in_all_pieces": found_share(
            [one["in_any"] for one in found], [one["accounts"] for one in found],
            "found campaigns",
        ),
        "pieces": dict(sorted(Counter(one["pieces"] for one in campaigns).items())),
        "capability_named": share(right, len(found), "found campaigns"),
        "named": sorted([one["capability"], one["named"]] for one in found),
        "exchanges_own": found_share(theirs, mine, "scans"),
        "exchanges_covered": found_share(theirs, [one["own"] for one in exchanges], "scans"),
        "false_campaigns": sum(one["campaign"] is None for one in called),
    }  # fmt: skip


def _recall(rows: Rows) -> dict[str, Any]:
    made = _detection(rows)
    goals = [
        _goal("account recall at 1e-3", made["recall"]["0.001"], 0.95),
        _goal("account recall at 1e-4", made["recall"]["0.0001"], 0.85),
        _goal("campaign purity", made["purity"], 0.95),
        _goal("campaign completeness", made["completeness"], 0.85),
        _goal("capability named correctly", made["capability_named"], 0.9),
    ]
    kinds = _grouped(_campaigns(rows), lambda one: one["campaign"])
    each = {name: _brief(group) for name, group in kinds.items()}
    return {"goals": goals} | made | {"by_campaign": each}


def _brief(campaigns: Rows) -> dict[str, Any]:
    """What a line of a longer table says."""
    return {
        "campaigns": len(campaigns),
        "recall": _levels(campaigns, "hits"),
        "recall_by_score": recall(campaigns, "roc", "0.001"),
        "recall_by_review": recall(campaigns, "review", ""),
        "found": share(sum(map(is_found, campaigns)), len(campaigns), "campaigns"),
    }


def _hydra(rows: Rows) -> dict[str, Any]:
    scans = [row for row in rows if "found" in row]
    others = [row for row in rows if "methods" in row]
    made: dict[str, Any] = _detection(scans) if scans else {}
    if scans:
        made["goals"] = [_goal("hydra, account recall at 1e-3", made["recall"]["0.001"], 0.8)]
    if others:
        made["baselines"] = {name: _baseline(others, name) for name in others[0]["methods"]}
        made["baselines"]["mmd"]["pooled_windows"] = _windows(others)
    return made


def _baseline(rows: Rows, name: str) -> dict[str, Any]:
    each = [row["methods"][name] for row in rows]
    campaign = [row["campaign"] for row in rows]
    benign = [row["benign"] for row in rows]
    at = _BASELINES_AT
    out = {
        "recall": found_share([one["called"][at] for one in each], campaign, "campaigns"),
        "false_positive_rate": found_share([one["false"][at] for one in each], benign, "weeks"),
        "recall_by_score": found_share([one["roc"][at] for one in each], campaign, "campaigns"),
        "seconds": [round(one["seconds"], 1) for one in each],
    }
    if "rule_called" in each[0]:
        out["as_shipped"] = {
            "recall": found_share([one["rule_called"] for one in each], campaign, "campaigns"),
            "false_positive_rate": found_share(
                [one["rule_false"] for one in each], benign, "weeks"
            ),
        }
    return out


def _windows(rows: Rows) -> dict[str, Any]:
    total: Counter[str] = Counter()
    for row in rows:
        total.update({k: v for k, v in row["windows"].items() if k != "level"})
    return {"stated_rate": rows[0]["windows"]["level"]} | {
        f"{name}_flagged_{rule}": share(
            total[f"{name}_{rule}"], total[f"{name}_windows"], "windows"
        ) for rule in ("sampled", "ordered") for name in ("benign", "test_benign", "test")
    }  # fmt: skip


def _sizes(rows: Rows) -> dict[str, Any]:
    def size(one: Mapping[str, Any]) -> str:
        _, accounts, exchanges, _ = one["campaign"].split("-")
        return f"{accounts} accounts, {exchanges} exchanges"

    groups = _grouped(_campaigns(rows), size)
    order = sorted(groups, key=lambda words: [int(w) for w in words.split() if w.isdigit()])
    scans = _grouped(rows, lambda row: "several" if row["unit"].endswith("-small") else "one")
    told = ("purity", "capability_named", "false_positive_rate", "false_campaigns")
    return {
        "by_size": {words: _brief(groups[words]) for words in order},
        "by_campaigns_in_a_scan": {
            many: {name: value for name, value in _detection(some).items() if name in told}
            for many, some in scans.items()
        },
    }


def _benign(rows: Rows) -> dict[str, Any]:
    rates = {f"{level:g}": false_alarms(rows, f"{level:g}") for level in LEVELS}
    least = min(row["calibration_accounts"] for row in rows)
    goals = [
        _goal(f"realised false-positive rate at {level:g}", rates[f"{level:g}"], level, most=True)
        for level in LEVELS
        if level > 1e-4 or least >= _MINIMUM_1E4
    ]
    languages = {f"{v:g}": spread(rows, "language", f"{v:g}") for v in LEVELS}
    goals += [
        _goal(f"languages above the stated rate of {level:g}", {"value": sum(
            one is not None and one["value"] > level for one in languages[f"{level:g}"].values()
        )}, 0, most=True)
        for level in LEVELS
    ]  # fmt: skip
    return {
        "goals": goals, "calibration_accounts": least,
        "false_positive_rate": rates | {"review": false_alarms(rows, "review")},
        "by_seed": {str(row["seed"]): {
            f"{level:g}": false_alarms([row], f"{level:g}") for level in LEVELS} for row in rows},
        "by_language": languages,
        "by_kind": {f"{v:g}": spread(rows, "kind", f"{v:g}") for v in LEVELS},
        "false_campaigns": sum(
            one["decision"] == "review" for row in rows for one in row["found"]),
    }  # fmt: skip


def _hard_negatives(rows: Rows) -> dict[str, Any]:
    def weeks(chosen: Rows) -> dict[str, Any]:
        false = [[o for o in row["found"] if o["decision"] == "review"] for row in chosen]
        return {
            "weeks": len(chosen), "events": [row["events"] for row in chosen],
            "false_campaigns": sum(map(len, false)),
            "weeks_with_any": share(sum(map(bool, false)), len(chosen), "weeks"),
            "observed": sum(o["decision"] == "observe" for row in chosen for o in row["found"]),
            "of_kind": dict(Counter(o["kind"] for listed in false for o in listed)),
            "accounts_for_review": false_alarms(chosen, "review"),
        }  # fmt: skip

    groups = _grouped(rows, lambda row: row["note"]["kind"])
    mixed = weeks(groups.pop("mixed")) if "mixed" in groups else None
    goals = []
    if mixed is not None:
        each = {"value": 100 * mixed["false_campaigns"] / mixed["weeks"]}
        goals = [_goal("false campaigns in 100 benign weeks", each, 1, most=True)]
    return {"goals": goals, "mixed": mixed, "by_kind": {k: weeks(v) for k, v in groups.items()}}


def _ablation(rows: Rows) -> dict[str, Any]:
    groups = _grouped(rows, lambda row: row["note"]["off"])
    out = {off: _brief(_campaigns(group)) for off, group in groups.items()}
    goals = []
    if {"nothing", "infrastructure"} <= out.keys():
        all_of, without = (out[o]["recall"]["0.001"]["value"] for o in
                           ("nothing", "infrastructure"))  # fmt: skip
        lost = {"value": 1 - without / all_of} if all_of else None
        goals = [_goal("recall lost without infrastructure", lost, 1 / 3, most=True)]
    return {"goals": goals, "without": out}


def _evasion(rows: Rows) -> dict[str, Any]:
    cells = _grouped(rows, lambda row: row["unit"].partition("-")[2])
    return {
        "grid": [group[0]["note"]["cell"] | _brief(_campaigns(group)) for group in cells.values()]
    }


def _speed(rows: Rows) -> dict[str, Any]:
    ordered = sorted(rows, key=lambda row: row["events"])
    names = ("events", "log_bytes", "seconds", "peak_bytes", "stages", "report_bytes")
    runs = [{name: row[name] for name in names} for row in ordered]
    first, last = ordered[0], ordered[-1]
    per_million = first["events"] / 1e6
    goals = [
        _goal("seconds for a million events", {"value": first["seconds"] / per_million}, 60,
              most=True),
        _goal("GiB for a million events", {"value": (first["peak_bytes"] or 0) / 2**30}, 3,
              most=True),
    ]  # fmt: skip
    if len(ordered) > 1:
        # traffic is random: four times as many events are wanted, about as many come
        grown = (last["seconds"] / first["seconds"]) * 4 * first["events"] / last["events"]
        goals.append(_goal("seconds for four times as many events", {"value": grown}, 4.4,
                           most=True))  # fmt: skip
    return {"goals": goals, "runs": runs}


def _grouped(rows: Iterable[Any], key: Callable[[Any], str]) -> dict[str, Rows]:
    groups: defaultdict[str, Rows] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return dict(groups)


def _metadata(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return _detection(list(rows))  # type: ignore[arg-type]


_TABLES: dict[str, Callable[[Rows], dict[str, Any]]] = {
    "recall": _recall, "hydra": _hydra, "sizes": _sizes, "benign": _benign, "ablation": _ablation,
    "evasion": _evasion, "metadata": _metadata, "hard-negatives": _hard_negatives,
    "speed": _speed,
}  # fmt: skip
