"""The page of a scan: what its figures are of, and what they are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from stillhouse.guard.page import write_page
from stillhouse.pages import visible
from tests.html_page import Page, needs_nothing_but_itself

ACCOUNTS = pa.table({"account": ["a", "b"], "decision": ["review", "allow"]})
CAMPAIGN: dict[str, Any] = {
    "id": "c-1", "decision": "review", "accounts": 1, "decisions": {"review": 1}, "customers": 1,
    "exchanges": 40, "first_seen": "2026-09-07T00:00:00", "last_seen": "2026-09-08T00:00:00",
    "capability": "rubric_grading", "p_value": 1e-6, "q_value": 1e-4, "families": ["content"],
    "evidence": [], "disjoint_share": 1.0, "links": [], "held_back": [], "against": [],
    "next_step": "Read.", "timeline": [{"day": "2026-09-07", "exchanges": 40, "accounts": 1}],
    "members": [{"account": "a", "exchanges": 40, "events": 40, "strength": 0.9, "p_value": 1e-4,
                 "decision": "review"}],
    "volumes": {
        "exchanges_per_account": dict.fromkeys(("p5", "p25", "p50", "p75", "p95"), 40),
        "share_of_their_traffic": 1.0, "distinct_payloads": 40, "kinds": {},
        "models": {"big_model_1": 40}, "capabilities": {"rubric_grading": 40},
    },
    "estimate": {"input_tokens": 9, "output_tokens": 9, "events_with_tokens": 31,
                 "events_priced": 31, "usd": 12.0,
                 "basis": "tokens at the list price of the settings"},
    "template": {"skeletons": [], "why_none": "no text", "read": 3, "logs": 5, "logs_read": 2},
}  # fmt: skip
FACTS: dict[str, Any] = {
    "events": 1000, "accounts": 2000, "customers": 2000, "hours": 168.0, "without_text": 0,
    "unlinkable_accounts": 0, "strays": 0, "older": 0, "clusters_tested": 7,
    "decisions": {"review": 1}, "calibrated": True, "calibration_accounts": 2000,
    "expected_false_campaigns_a_week": 0.01, "expected_false_accounts_a_week": 2.0, "excused": [],
    "settings": {"families": ["content"], "account_level": 0.001}, "stillhouse": "0",
    "read": {"events_added": 100, "duplicates": 3, "files": 1, "rejects": {"no JSON": 4}},
    "held": {"logs": 7, "events": 12_345, "rejects": {"no JSON": 40, "no time": 2},
             "first": "2026-09-01T00:00:00", "last": "2026-09-13T00:00:00"},
}  # fmt: skip


def text_of(folder: Path, campaign: dict[str, Any] = CAMPAIGN, **facts: Any) -> str:
    page = write_page(folder, [campaign], ACCOUNTS, FACTS | facts).read_text("utf-8")
    needs_nothing_but_itself(page)
    return " ".join(Page(page).text.split())


def test_false_alarms_are_said_as_what_they_are(tmp_path: Path) -> None:
    assert (
        "At most 2 accounts a week have a p-value of 0.001 or less by themselves; they are called "
        "only inside a campaign" in text_of(tmp_path)
    )


def test_the_page_tells_of_all_that_was_read_and_of_what_was_added_now(tmp_path: Path) -> None:
    text = text_of(tmp_path)
    assert "12,345 of 7 logs, 2026-09-01 to 2026-09-13" in text
    assert "40 no JSON; 2 no time" in text
    assert "100 of 1 log; lines that are no events: 4 no JSON" in text


def test_a_value_says_of_how_many_exchanges_it_is(tmp_path: Path) -> None:
    text = text_of(tmp_path)
    assert "$12: tokens at the list price of the settings, from 31 of 40 exchanges." in text
    assert "from 31 of 40 exchanges of campaigns for review" in text


def test_a_small_value_is_not_none(tmp_path: Path) -> None:
    text = text_of(tmp_path, CAMPAIGN | {"estimate": CAMPAIGN["estimate"] | {"usd": 0.314}})
    assert "$0.31: tokens" in text
    assert "$0 " not in text


def test_a_campaign_without_a_task_is_not_headed_by_one(tmp_path: Path) -> None:
    assert "c-1: 1 accounts, rubric grading" in text_of(tmp_path)
    other = text_of(tmp_path, CAMPAIGN | {"capability": "other"})
    assert "c-1: 1 accounts 1 accounts of 1 unrelated customers" in other


def test_names_of_models_are_left_as_they_are(tmp_path: Path) -> None:
    text = text_of(tmp_path)
    assert "big_model_1" in text
    assert "rubric grading" in text
    assert "rubric_grading" not in text


def test_logs_that_were_gone_are_counted(tmp_path: Path) -> None:
    assert "2 of 5 logs read" in text_of(tmp_path)


@pytest.mark.parametrize(
    ("without", "says", "not_said"),
    [
        (1000, "none of 20 campaigns was found in simulation", "of the requests are logged"),
        (250, "25% of the requests are logged without", "none of 20 campaigns"),
        (0, "Language, region and nationality", "without their text"),
    ],
)
def test_what_metadata_alone_finds_is_said(
    tmp_path: Path, without: int, says: str, not_said: str
) -> None:
    text = text_of(tmp_path, without_text=without)
    assert says in text
    assert not_said not in text


@pytest.mark.parametrize("mark", ["\x80", "\x85", "\x9b", "\x9f", "\u061c", "\u200e", "\u200f"])
def test_marks_that_nobody_sees_are_shown(mark: str) -> None:
    assert visible(f"a{mark}b") == f"a<{ord(mark):04X}>b"
    assert visible("a\u00a0é\n\u200d") == "a\u00a0é\n\u200d"
