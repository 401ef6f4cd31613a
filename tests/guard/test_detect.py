"""The detector end to end: planted campaigns found, hard negatives not, names without effect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.errors import ConfigError, DataError, EvidenceError
from stillhouse.guard.calibrate import Calibration
from stillhouse.guard.detect import Scan, calibrate, detect
from stillhouse.guard.settings import GuardSettings
from stillhouse.guard.verdict import DECISIONS
from tests.guard.traffic_writer import Traffic
from tests.guard.weeks import benign_week, decisions

SETTINGS = GuardSettings(permutations=19_999)


def scan_of(
    week: Traffic, folder: Path, calibration: Calibration | None = None, **changes: Any
) -> Scan:
    settings = SETTINGS.model_copy(update=changes)
    return detect(week.write(folder), settings, calibration)


def called(scan: Scan, week: Traffic) -> dict[str, float]:
    """Kind -> share of accounts called for review."""
    return {
        kind: words.get("review", 0) / sum(words.values())
        for kind, words in decisions(scan, week).items()
    }


# ---- campaigns ----


SHAPES: dict[str, dict[str, Any]] = {
    "half cover": {"count": 100, "cover": 0.5},
    "hydra": {"count": 300, "cover": 0.9, "rewordings": 20},
    "one wording for each account": {"count": 200, "cover": 0.8, "rewordings": 6, "each": True},
    "shared infrastructure": {"count": 100, "cover": 0.5, "shared": True},
    "twenty accounts": {"count": 20, "cover": 0.5},
    "rotating accounts": {"count": 100, "cover": 0.5, "lifetime": 2.0},
    "uneven load": {"count": 100, "cover": 0.5, "spread": 1.2},
    "a fifth of everybody": {"count": 600, "cover": 0.5},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_planted_campaigns_are_found_whole_and_pure(tmp_path: Path, shape: dict[str, Any]) -> None:
    week = benign_week(21)
    week.campaign(**shape)
    scan = scan_of(week, tmp_path)
    share = called(scan, week)
    assert share.pop("campaign") >= 0.9
    assert not any(share.values())
    first = scan.campaigns[0]
    assert first["decision"] == "review"
    assert first["capability"] == "reasoning_elicitation"
    assert len(first["families"]) >= 2
    assert first["q_value"] <= 0.01
    members = [week.truth[m["account"]] for m in first["members"]]
    assert members.count("campaign") >= 0.95 * len(members)
    assert first["accounts"] >= 0.85 * shape["count"]


def test_a_report_says_what_keeps_a_cluster_from_review(tmp_path: Path) -> None:
    week = benign_week(21)
    week.campaign(100, cover=0.5)
    first = scan_of(week, tmp_path, least_share=0.9).campaigns[0]
    assert first["decision"] == "observe"
    assert any("% of what its customers send" in said for said in first["against"])


def test_members_rank_above_everybody_else(tmp_path: Path) -> None:
    week = benign_week(22)
    week.campaign(200, cover=0.9, rewordings=20)
    scan = scan_of(week, tmp_path)
    kind = np.array([week.truth[a] for a in scan.accounts["account"].to_pylist()])
    score = scan.accounts["score"].to_numpy()
    threshold = np.sort(score[kind != "campaign"])[::-1][int(1e-3 * (kind != "campaign").sum())]
    assert (score[kind == "campaign"] > threshold).mean() >= 0.95


def test_one_request_each_through_a_common_exit_hides_no_campaign(tmp_path: Path) -> None:
    week = benign_week(27)
    members = week.campaign(100, cover=0.5, shared=True)
    exit_ = np.full(len(members), 77, dtype=np.uint64)
    time = week.rng.uniform(0, week.days * 86_400, len(members))
    week.add(members, time, address=exit_, network=exit_)
    assert called(scan_of(week, tmp_path), week)["campaign"] >= 0.9


def test_a_campus_with_a_new_tool_is_not_called(tmp_path: Path) -> None:
    week = benign_week(28)
    exits = np.repeat(np.arange(1, 5), 15).astype(np.uint64)  # one network, four addresses
    week.client(
        week.people(60, "campus", network=np.full(60, 77, dtype=np.uint64), address=exits),
        focus=0.9,
    )
    scan = scan_of(week, tmp_path)
    assert not any(called(scan, week).values())


def test_strangers_who_share_a_phrase_with_members_are_not_called(tmp_path: Path) -> None:
    week = benign_week(26)
    strangers = week.people(3, "stranger")
    members = week.campaign(100, cover=0.5, shared=True)
    owner = np.repeat(np.concatenate([strangers, members[:4]]), 12)
    phrase = np.full(len(owner), week.hashes(1)[0])
    week.add(owner, week.rng.uniform(0, week.days * 86_400, len(owner)), head=phrase)
    share = called(scan_of(week, tmp_path), week)
    assert share["campaign"] >= 0.95
    assert share["stranger"] == 0


def test_heavy_customers_who_hit_one_phrase_by_chance_are_not_called(tmp_path: Path) -> None:
    """A dozen of eight hundred requests, spread over the days as a queue's are."""
    week = benign_week(33)
    firms = week.people(60, "firm")
    busy = np.repeat(firms, 800)
    week.add(busy, week.rng.uniform(0, week.days * 86_400, len(busy)))
    owner = np.repeat(firms, 12)
    phrase = np.full(len(owner), week.hashes(1)[0])
    week.add(owner, week.rng.uniform(0, week.days * 86_400, len(owner)), head=phrase)
    path = tmp_path / "week"
    assert called(scan_of(week, path), week)["firm"] == 0
    assert called(scan_of(week, path, least_share=0.0), week)["firm"] > 0.5


def test_strangers_who_often_end_as_members_now_and_then_do_are_not_called(tmp_path: Path) -> None:
    """As teams of translators: however much they send, no phrase of theirs is most members'."""
    week = benign_week(31)
    strangers = week.people(4, "stranger")
    members = week.campaign(14, cover=0.0)
    phrases = week.hashes(12)
    owner = np.repeat(np.concatenate([strangers, members]), [40] * 4 + [12] * 14)
    tail = phrases[week.rng.integers(0, 12, len(owner))]
    head = np.where(owner >= members[0], _head_of(week, members), week.hashes(len(owner)))
    week.add(owner, week.rng.uniform(0, week.days * 86_400, len(owner)), head=head, tail=tail)
    share = called(scan_of(week, tmp_path), week)
    assert share["campaign"] == 1
    assert share["stranger"] == 0


def _head_of(week: Traffic, members: np.ndarray) -> np.uint64:
    """The head of a campaign of one wording."""
    heads = np.concatenate([part["head"][np.isin(part["owner"], members)] for part in week.parts])
    values, count = np.unique(heads, return_counts=True)
    return values[count.argmax()]


def test_guests_whose_only_link_is_on_the_days_that_are_tested_join_no_cluster(
    tmp_path: Path,
) -> None:
    """Eight organisers at a venue's exits, and forty guests in a workshop there on one day."""
    week = Traffic(3)
    week.benign(900)
    organisers, guests = week.people(8, "organiser"), week.people(40, "guest")
    owner = np.repeat(np.concatenate([organisers, guests]), 15)
    week.add(owner, week.human_times(owner))
    exits = week.hashes(3)
    owner = np.repeat(organisers, 12)
    day = week.rng.choice([0, 2], len(owner))  # of the finding half
    at = exits[week.rng.integers(0, 3, len(owner))]
    hours = week.rng.uniform(9, 18, len(owner))
    week.add(owner, (day * 24 + hours) * 3600, network=at, address=at)
    owner = np.repeat(guests, 8)
    at = exits[week.rng.integers(0, 3, len(owner))]
    wrapper = np.full(len(owner), week.hashes(1)[0])
    hours = 72 + week.rng.uniform(10, 15, len(owner))  # of the testing half
    week.add(owner, hours * 3600, network=at, address=at, head=wrapper)
    assert not any(called(scan_of(week, tmp_path), week).values())


def test_an_office_with_evidence_of_its_own_ranks_below_a_campaign(tmp_path: Path) -> None:
    week = benign_week(25)
    week.office(80)
    week.campaign(60, cover=0.5)
    scan = scan_of(week, tmp_path)
    kind = np.array([week.truth[a] for a in scan.accounts["account"].to_pylist()])
    score = scan.accounts["score"].to_numpy()
    assert score[kind == "campaign"].min() > 2 > score[kind == "office"].max()


def test_with_a_calibration_members_have_the_least_p_values(
    tmp_path: Path, calibration: Calibration
) -> None:
    week = benign_week(23)
    week.campaign(150, cover=0.8, rewordings=5)
    scan = scan_of(week, tmp_path, calibration, account_level=0.005)
    share = called(scan, week)
    assert share.pop("campaign") >= 0.9
    assert not any(share.values())
    assert scan.facts["calibrated"]
    assert scan.facts["strongest_benign_cluster"] is not None
    assert scan.campaigns[0]["links"][0]["benign_customers"] == 0


def test_a_stratum_too_small_for_the_level_calls_nobody_and_says_so(
    tmp_path: Path, calibration: Calibration
) -> None:
    week = benign_week(23)
    week.campaign(100, cover=0.5)
    scan = scan_of(week, tmp_path, calibration, account_level=1e-5)
    assert decisions(scan, week)["campaign"] == {"insufficient": 100}


@pytest.mark.parametrize("left", [None, "whole", "payment", "device", "network"])
def test_accounts_of_which_nothing_could_be_linked_are_insufficient(
    tmp_path: Path, left: str | None
) -> None:
    week = benign_week(27)
    owner = np.repeat(week.people(20, "bare"), 30)
    names = ("whole", "head", "tail", "skeleton", "payment", "device", "network", "address")
    nothing = {n: np.zeros(len(owner), np.uint64) for n in names if n != left}
    week.add(owner, week.human_times(owner), **nothing)
    scan = scan_of(week, tmp_path)
    assert decisions(scan, week)["bare"] == {"allow" if left else "insufficient": 20}
    assert scan.facts["unlinkable_accounts"] == (0 if left else 20)


def test_scores_of_fresh_benign_accounts_give_p_values_that_keep_their_level(
    tmp_path: Path, calibration: Calibration
) -> None:
    scan = scan_of(benign_week(24), tmp_path, calibration)
    p = scan.accounts["p_value"].to_numpy()
    for level in (0.01, 0.05, 0.2):
        assert (p <= level).mean() <= level + 4 * np.sqrt(level * (1 - level) / len(p))


# ---- what is no campaign ----


@pytest.mark.parametrize("seed", range(31, 36))
def test_weeks_without_a_campaign_call_nobody(tmp_path: Path, seed: int) -> None:
    week = benign_week(seed)
    scan = scan_of(week, tmp_path)
    assert not any(called(scan, week).values())
    assert not [c for c in scan.campaigns if c["decision"] == "review"]
    assert scan.facts["clusters_tested"] > 0


def test_one_organisation_with_one_template_is_one_customer(tmp_path: Path) -> None:
    week = benign_week(41)
    week.service(60, mean=100)
    assert not any(called(scan_of(week, tmp_path), week).values())


# ---- nothing depends on names or order ----


def test_renamed_accounts_and_shuffled_events_change_nothing(tmp_path: Path) -> None:
    week = benign_week(51, accounts=800)
    week.campaign(60, cover=0.5)
    table = week.table()
    rng = np.random.default_rng(1)
    old = [f"a{i:07d}" for i in range(len(week.accounts))]
    new = dict(zip(old, [f"z{i:05d}" for i in rng.permutation(len(old))], strict=True))
    accounts = pa.array([new[a] for a in table["account"].to_pylist()]).dictionary_encode()
    renamed = table.set_column(0, table.schema.field(0), accounts).take(rng.permutation(len(table)))
    scans: list[Scan] = []
    for name, rows, parts in (("one", table, 1), ("two", renamed, 4)):
        folder = tmp_path / name
        folder.mkdir()
        step = -(-len(rows) // parts)
        for part in range(parts):
            pq.write_table(rows.slice(part * step, step), folder / f"part-{part:05d}.parquet")
        scans.append(detect(folder, SETTINGS))
    first, second = scans
    back = {name: was for was, name in new.items()}

    def by_name(scan: Scan, names: dict[str, str] | None) -> dict[str, tuple[Any, ...]]:
        rows = scan.accounts.to_pylist()
        return {
            (names[r["account"]] if names else r["account"]): tuple(list(r.values())[1:])
            for r in rows
        }

    assert by_name(first, None) == by_name(second, back)
    assert [c["id"] for c in first.campaigns] == [c["id"] for c in second.campaigns]
    assert [c["p_value"] for c in first.campaigns] == [c["p_value"] for c in second.campaigns]


# ---- what a scan hands over ----


def test_a_scan_is_plain_values_and_points_into_the_logs(tmp_path: Path) -> None:
    week = benign_week(61)
    week.campaign(80, cover=0.5)
    stages: list[str] = []
    scan = detect(week.write(tmp_path), SETTINGS, None, stages.append)
    assert len(stages) >= 5
    entry = json.loads(json.dumps(scan.campaigns))[0]
    assert sum(day["exchanges"] for day in entry["timeline"]) == entry["exchanges"]
    assert entry["estimate"]["usd"] > 0
    assert entry["members"][0]["strength"] > 0.9
    assert any("no calibration" in word for word in entry["against"])
    assert entry["first_seen"] < entry["last_seen"]
    assert entry["volumes"]["distinct_payloads"] == entry["exchanges"]
    assert set(scan.accounts["decision"].to_pylist()) <= set(DECISIONS)
    assert scan.accounts["account"].to_pylist() == sorted(scan.accounts["account"].to_pylist())
    rows = scan.substreams.filter(pa.compute.equal(scan.substreams["campaign"], entry["id"]))
    assert len(rows) == entry["exchanges"]
    offsets = set(rows["offset"].to_pylist())
    assert len(offsets) == len(rows)


def test_excused_accounts_are_scored_and_listed(tmp_path: Path) -> None:
    week = Traffic(62)
    week.benign(1200)
    ids = week.campaign(60, cover=0.5)
    names = tuple(f"a{i:07d}" for i in ids)
    scan = scan_of(week, tmp_path, allow_accounts=names)
    assert decisions(scan, week)["campaign"] == {"allow": 60}
    assert {e["account"] for e in scan.facts["excused"]} == set(names)
    assert scan.campaigns[0]["decision"] == "allow"
    assert "excused" in scan.campaigns[0]["next_step"]


def test_without_text_nothing_is_called_by_content(tmp_path: Path) -> None:
    week = benign_week(63)
    week.campaign(100, cover=0.5)
    for part in week.parts:
        for name in ("whole", "head", "tail", "skeleton", "system", "tools"):
            part[name] = np.zeros_like(part[name])
        part["sketch"] = np.zeros_like(part["sketch"])
    week.write(tmp_path)
    scan = detect(tmp_path, SETTINGS)
    assert all(c["found_by"] == "infrastructure" for c in scan.campaigns)
    assert not any(called(scan, week).get(kind, 0) for kind in ("benign", "office", "class"))


@pytest.mark.parametrize("family", ["infrastructure", "onboarding", "succession"])
def test_a_family_can_be_left_out(tmp_path: Path, family: str) -> None:
    week = benign_week(64)
    week.campaign(100, cover=0.5, shared=True)
    left = tuple(f for f in GuardSettings().families if f != family)
    scan = scan_of(week, tmp_path, families=left)
    assert called(scan, week)["campaign"] >= 0.9
    assert family not in scan.campaigns[0]["family_p_values"]


# ---- refusals ----


def test_an_unknown_family_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'timing'"):
        detect(tmp_path, GuardSettings(families=("content", "timings")))


def test_one_family_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least two"):
        detect(tmp_path, GuardSettings(families=("content", "content")))


def test_a_folder_without_events_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no logs were read"):
        detect(tmp_path, SETTINGS)


def test_events_without_rows_are_refused(tmp_path: Path) -> None:
    week = Traffic(1)
    week.benign(5)
    pq.write_table(week.table().slice(0, 0), tmp_path / "part-00000.parquet")
    with pytest.raises(EvidenceError, match="no events"):
        detect(tmp_path, SETTINGS)


def test_a_part_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "part-00000.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="part of an events table"):
        detect(tmp_path, SETTINGS)


def test_a_part_with_other_columns_is_refused(tmp_path: Path) -> None:
    week = Traffic(1)
    week.benign(5)
    table = week.table().drop_columns(["sketch"])
    pq.write_table(table, tmp_path / "part-00000.parquet")
    with pytest.raises(DataError, match="sketch"):
        detect(tmp_path, SETTINGS)


def test_an_event_without_a_time_is_refused(tmp_path: Path) -> None:
    week = Traffic(1)
    week.benign(5)
    table = week.table()
    at = table.schema.get_field_index("time")
    table = table.set_column(at, table.schema.field("time"),
                             pa.nulls(len(table), table.schema.field("time").type))  # fmt: skip
    pq.write_table(table, tmp_path / "part-00000.parquet")
    with pytest.raises(DataError, match="without account or time"):
        detect(tmp_path, SETTINGS)


def test_a_window_that_cannot_be_halved_is_refused(tmp_path: Path) -> None:
    week = Traffic(1, days=0.05)
    week.benign(50)
    with pytest.raises(EvidenceError, match="at least 3 hours"):
        scan_of(week, tmp_path)


def test_an_organisation_that_is_no_hash_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="16 hexadecimal digits"):
        scan_of(benign_week(1, 300), tmp_path, allow_organisations=("Example GmbH",))


def test_a_calibration_of_too_few_accounts_is_refused(tmp_path: Path) -> None:
    week = Traffic(1)
    week.benign(50)
    with pytest.raises(EvidenceError, match="at least 1000"):
        calibrate(week.write(tmp_path), SETTINGS)
