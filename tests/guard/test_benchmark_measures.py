"""Counts of a scan against hand-worked truth, and rates over many."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stillhouse.errors import EvidenceError
from stillhouse.guard.benchmark_measures import (
    above,
    false_alarms,
    found_share,
    is_found,
    outcome,
    own_exchanges,
    recall,
    share,
    spread,
    threshold_at,
)

# eight benign accounts (two of one firm), four of campaign x; the scan calls x1, x2, x3 and b1
NAMES = ["b1", "b2", "b3", "b4", "b5", "b6", "b7", "b8", "x1", "x2", "x3", "x4"]


def truth(order: list[str] = NAMES) -> pa.Table:
    ours = [name[0] == "x" for name in order]
    return pa.table({
        "account": order,
        "kind": ["campaign" if c else ("office" if n in "b1b2" else "light_user")
                 for n, c in zip(order, ours, strict=True)],
        "campaign": pa.array(["x" if c else None for c in ours], pa.string()),
        "capability": pa.array(["code" if c else None for c in ours], pa.string()),
        "language": pa.array([None if c else ("zh" if n == "b1" else "en")
                              for n, c in zip(order, ours, strict=True)], pa.string()),
        "group": [0 if n in ("b1", "b2") else -1 for n in order],
    })  # fmt: skip


def accounts() -> pa.Table:
    return pa.table({
        "account": NAMES,
        "events": [1] * 8 + [10] * 4,
        "score": [3.0, 0.2, 0.1, 0.1, 0.0, 0.0, 0.0, 0.0, 5.0, 4.0, 2.5, 0.1],
        "p_value": [0.0005, 0.02, 0.5, 0.5, 1, 1, 1, 1, 0.00005, 0.0005, 0.005, 0.5],
        "campaign": pa.array(["c1"] + [None] * 7 + ["c1", "c1", "c2", None], pa.string()),
        "decision": ["review"] + ["allow"] * 7 + ["review", "review", "review", "allow"],
    })  # fmt: skip


def campaign(name: str, decision: str = "review", capability: str = "code") -> dict[str, Any]:
    return {
        "id": name, "decision": decision, "capability": capability, "families": ["content"],
        "exchanges": 7, "p_value": 1e-6, "q_value": 1e-5,
    }  # fmt: skip


def worked() -> dict[str, Any]:
    # the truth in another order, as files have it
    return outcome(accounts(), [campaign("c1"), campaign("c2")], truth(NAMES[::-1]))


def test_counts_of_a_campaign_are_as_worked_by_hand() -> None:
    (one,) = worked()["campaigns"]
    assert one["accounts"] == 4
    assert one["capability"] == one["named"] == "code"
    assert one["hits"] == {"0.01": 3, "0.001": 2, "0.0001": 1}
    assert one["roc"] == {"0.01": 2, "0.001": 2, "0.0001": 2}  # no benign account may be above 3.0
    assert (one["review"], one["in_best"], one["in_any"], one["pieces"]) == (3, 2, 3, 2)
    assert one["events"] == 40
    assert is_found(one)


def test_counts_of_called_clusters_are_as_worked_by_hand() -> None:
    first, second = worked()["found"]
    assert (first["accounts"], first["of_campaign"], first["campaign"]) == (3, 2, "x")
    assert (second["accounts"], second["of_campaign"]) == (1, 1)
    assert first["kind"] is None


def test_a_cluster_of_benign_accounts_is_a_false_campaign_of_their_kind() -> None:
    made = outcome(
        accounts().set_column(4, "campaign", pa.array(["f", "f", "f"] + [None] * 9, pa.string())),
        [campaign("f")], truth(),
    )  # fmt: skip
    (one,) = made["found"]
    assert one["campaign"] is None
    assert one["kind"] == "office"
    assert not is_found(made["campaigns"][0])


def test_what_is_only_observed_is_not_found() -> None:
    made = outcome(accounts(), [campaign("c1", "observe"), campaign("c2")], truth())
    (one,) = made["campaigns"]
    assert (one["in_best"], one["in_any"], one["pieces"]) == (1, 1, 1)


def test_false_alarms_are_counted_by_group_language_and_kind() -> None:
    made = worked()["benign"]
    assert made["accounts"] == 8
    assert made["clustered"]["0.001"] == [[1, 0, 6], [2, 1, 1]]  # six alone, one firm of two
    assert made["language"]["zh"] == {
        "accounts": 1, "0.01": 1, "0.001": 1, "0.0001": 0, "review": 1,
    }  # fmt: skip
    assert made["kind"]["office"]["0.001"] == 1
    rate = false_alarms([worked(), worked()], "0.001")
    assert rate is not None
    assert (rate["accounts"], rate["called"], rate["n"]) == (16, 2, 14)
    assert rate["value"] == pytest.approx(1 / 8)
    by = spread([worked()], "language", "0.001")
    assert by["en"] is not None
    assert by["en"]["value"] == 0.0


def test_a_scan_of_other_accounts_is_refused() -> None:
    with pytest.raises(EvidenceError, match="unknown"):
        outcome(accounts(), [], truth([*NAMES[:-1], "x5"]))


def test_a_threshold_lets_no_more_than_the_level_through() -> None:
    scores = np.arange(10.0)
    assert threshold_at(scores, 0.2) == 7.0
    assert above(scores, 7.0).sum() == 2
    assert threshold_at(scores, 0.05) == 9.0
    assert above(scores, 9.0).sum() == 0
    assert threshold_at(scores, 1.0) == -np.inf
    assert above(np.ones(10), threshold_at(np.ones(10), 0.2)).sum() == 0  # ties are not called


def test_rates_have_intervals_by_campaign() -> None:
    rate = recall([*worked()["campaigns"], *worked()["campaigns"]], "hits", "0.001")
    assert rate is not None
    assert (rate["value"], rate["n"]) == (0.5, 2)
    assert rate["method"].startswith("Clopper-Pearson, clustered by campaigns")
    assert recall(worked()["campaigns"], "review", "")["value"] == 0.75  # type: ignore[index]


def test_one_cluster_has_no_interval_and_none_has_no_rate() -> None:
    one = found_share([3], [4], "campaigns")
    assert one is not None
    assert (one["value"], one["low"], one["high"], one["n"]) == (0.75, 0.0, 1.0, 1)
    assert found_share([], [], "campaigns") is None
    assert found_share([0], [0], "campaigns") is None
    assert share(0, 0, "weeks") is None
    assert share(0, 100, "weeks")["high"] == pytest.approx(0.0362, abs=1e-4)  # type: ignore[index]


def test_exchanges_of_found_campaigns_are_counted_against_their_own() -> None:
    events = pa.table({
        "file": pa.array([0, 0, 1, 1], pa.uint16()), "offset": pa.array([0, 9, 0, 9], pa.uint64()),
        "request": pa.array([11, 12, 13, 14], pa.uint64()),
    })  # fmt: skip
    streams = pa.table({
        "campaign": ["c1", "c1", "f"], "file": pa.array([1, 0, 0], pa.uint16()),
        "offset": pa.array([9, 9, 0], pa.uint64()),
    })  # fmt: skip
    found = [
        {"id": "c1", "decision": "review", "campaign": "x"},
        {"id": "f", "decision": "review", "campaign": None},
    ]
    own = np.array([13, 14], np.uint64)
    assert own_exchanges(streams, found, events, own) == {
        "in_campaigns": 2, "own_among_them": 1, "own": 2,
    }  # fmt: skip
