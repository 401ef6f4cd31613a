"""Scans from logs to files: what is written, read again, exported, refused."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stillhouse.cli.main import main
from stillhouse.collect.run import collect
from stillhouse.config import CollectSettings
from stillhouse.errors import DataError
from stillhouse.guard.export import guard_export
from stillhouse.guard.key import write_key
from stillhouse.guard.page import write_page
from stillhouse.guard.scan import ScanResult, guard_calibrate, guard_scan
from stillhouse.guard.settings import GuardSettings
from stillhouse.guard.simulate import simulate
from stillhouse.guard.simulate_settings import SimulateSettings
from stillhouse.store import Store
from tests.html_page import Page, claims_no_more_than_it_can, needs_nothing_but_itself

SETTINGS = GuardSettings(permutations=19_999, stratum_accounts=1000)


def spec(seed: int, **campaign: Any) -> SimulateSettings:
    plain = {
        "name": "north", "accounts": 14, "capability": "rubric_grading", "cover": 0.0,
        "paraphrase": "none", "synchrony": 0.5, "shaping": "flat",
    }  # fmt: skip
    return SimulateSettings(
        seed=seed,
        week=1,
        days=4,
        benign={"accounts": 1200},
        campaigns=[plain | campaign],  # type: ignore[list-item]
    )


@pytest.fixture(scope="module")
def range_(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("range")
    simulate(spec(3), folder / "traffic")
    simulate(spec(3).model_copy(update={"week": 0, "campaigns": ()}), folder / "benign")
    return folder


@pytest.fixture(scope="module")
def scanned(range_: Path) -> ScanResult:
    key, benign = range_ / "scan.key", range_ / "first.cal"
    write_key(key)
    guard_calibrate(SETTINGS, logs=[range_ / "benign" / "logs"], out=benign, key=key)
    return guard_scan(
        SETTINGS, logs=[range_ / "traffic" / "logs"], out=range_ / "scan", calibration=benign,
        key=key,
    )  # fmt: skip


def test_a_scan_writes_the_files_that_the_interface_names(scanned: ScanResult) -> None:
    table = pq.read_table(scanned.folder / "accounts.parquet")
    assert table.column_names == ["account", "events", "score", "p_value", "campaign", "decision"]
    assert set(table["decision"].to_pylist()) <= {"allow", "insufficient", "observe", "review"}
    listed = json.loads((scanned.folder / "campaigns.json").read_text())
    assert [one["decision"] for one in listed].count("review") == 1
    assert listed[0]["decision"] == "review"
    needed = {"id", "accounts", "exchanges", "first_seen", "last_seen", "capability", "p_value",
              "q_value", "families", "evidence"}  # fmt: skip
    assert all(needed <= one.keys() for one in listed)
    facts = json.loads((scanned.folder / "scan.json").read_text())
    assert facts["calibrated"] is True
    assert facts["seconds"]["reading logs"] > 0
    key = scanned.folder.with_name("scan.key")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_the_planted_campaign_is_called_whole_and_nobody_else(
    scanned: ScanResult, range_: Path
) -> None:
    truth = pq.read_table(range_ / "traffic" / "truth.parquet").to_pylist()
    planted = {row["account"] for row in truth if row["campaign"]}
    called = {row["account"] for row in scanned.accounts.to_pylist() if row["decision"] == "review"}
    assert called == planted


def test_no_text_of_a_benign_request_is_kept(scanned: ScanResult, range_: Path) -> None:
    """Of a campaign's there is the skeleton: what most of its accounts share."""
    truth = pq.read_table(range_ / "traffic" / "truth.parquet").to_pylist()
    planted = {row["account"] for row in truth if row["campaign"]}
    lines = [
        json.loads(line)
        for line in next((range_ / "traffic" / "logs").glob("*.jsonl")).read_text().splitlines()
    ]
    said = [
        line["messages"][-1]["content"]
        for line in lines
        if line["metadata"]["user_api_key_hash"] not in planted
    ]
    words = [text for text in said if isinstance(text, str) and len(text) > 60][:300]
    assert len(words) > 100
    everything = b"".join(path.read_bytes() for path in scanned.folder.rglob("*.*"))
    assert not any(text[20:60].encode() in everything for text in words)


def test_organisations_are_allowed_by_their_names(range_: Path, tmp_path: Path) -> None:
    texts = [path.read_text() for path in (range_ / "traffic" / "logs").glob("*.jsonl")]
    said = [json.loads(line)["metadata"] for text in texts for line in text.splitlines()]
    owner = {one["user_api_key_hash"]: one["user_api_key_org_id"] for one in said}
    name = next(organisation for organisation in owner.values() if organisation)
    settings = SETTINGS.model_copy(update={"allow_organisations": (name, "nobody of that name")})
    logs = [range_ / "traffic" / "logs"]
    scan = guard_scan(settings, logs=logs, out=tmp_path / "scan")
    calls = dict(zip(scan.accounts["account"].to_pylist(),
                     scan.accounts["decision"].to_pylist(), strict=True))  # fmt: skip
    assert {calls[a] for a, organisation in owner.items() if organisation == name} == {"allow"}
    assert scan.facts["settings"]["allow_organisations"] == [name, "nobody of that name"]


def test_logs_are_added_to_a_scan_and_not_read_twice(range_: Path, tmp_path: Path) -> None:
    days = sorted((range_ / "traffic" / "logs").iterdir())
    first = guard_scan(SETTINGS, logs=days[:2], out=tmp_path / "scan")
    both = guard_scan(SETTINGS, logs=days, out=tmp_path / "scan")
    assert both.facts["events"] > first.facts["events"]
    assert both.facts["read"]["events_added"] == both.facts["events"] - first.facts["events"]
    assert both.facts["held"]["events"] == both.facts["events"]
    assert both.facts["held"]["logs"] == len(days)
    assert both.facts["held"]["first"] == first.facts["held"]["first"]
    assert both.facts["held"]["last"] > first.facts["held"]["last"]
    again = guard_scan(SETTINGS, logs=[], out=tmp_path / "scan")
    assert again.facts["events"] == both.facts["events"]
    assert again.campaigns == both.campaigns


def test_a_calibration_makes_p_values_of_accounts_and_keeps_no_events(
    range_: Path, tmp_path: Path
) -> None:
    made = guard_calibrate(SETTINGS, logs=[range_ / "benign" / "logs"], out=tmp_path / "benign.cal")
    assert made["accounts"] > 100
    assert {p.name for p in tmp_path.iterdir()} == {"benign.cal", "benign.cal.key"}
    found = guard_scan(
        SETTINGS, logs=[range_ / "traffic" / "logs"], out=tmp_path / "scan",
        calibration=tmp_path / "benign.cal",
    )  # fmt: skip
    assert found.facts["calibrated"]
    assert "Uncalibrated" not in (tmp_path / "scan" / "report.html").read_text()


def test_a_campaigns_exchanges_are_exported_from_the_logs(range_: Path, tmp_path: Path) -> None:
    """A teacher answers what the campaign asks; the log holds its answers; they come out again."""
    prompts = range_ / "traffic" / "prompts" / "north.jsonl"
    collect(
        CollectSettings(prompts=(prompts,), max_tokens=8, top_logprobs=0),
        teacher="scripted:bigram", store=tmp_path / "answers",
    )  # fmt: skip
    simulate(spec(3).model_copy(update={"answers": tmp_path / "answers"}), tmp_path / "traffic")
    found = guard_scan(SETTINGS, logs=[tmp_path / "traffic" / "logs"], out=tmp_path / "scan")
    truth = pq.read_table(tmp_path / "traffic" / "truth.parquet").to_pylist()
    planted = {row["account"] for row in truth if row["campaign"]}
    one = max(
        found.campaigns,
        key=lambda each: len(planted & {member["account"] for member in each["members"]}),
    )
    count, left_out = guard_export(found.folder, one["id"], out=tmp_path / "store")
    assert count + sum(left_out.values()) == one["exchanges"]
    with Store(tmp_path / "store", "r") as store:
        got = list(store)
    with Store(tmp_path / "answers", "r") as store:
        given = {exchange.response.text for exchange in store}
    own = [exchange for exchange in got if exchange.response.text in given]
    asked = pq.read_table(tmp_path / "traffic" / "exchanges.parquet").num_rows
    assert len(own) > 0.8 * asked
    assert {e.account for e in own} <= planted
    again, missing = guard_export(
        found.folder, one["id"], out=tmp_path / "as-served", served=tmp_path / "answers"
    )
    prompts_asked = {exchange.prompt for exchange in got}
    with Store(tmp_path / "as-served", "r") as store, Store(tmp_path / "answers", "r") as answers:
        ids, given_all = store.ids(), list(answers)
    # the provider's own, settings and all
    assert ids == {exchange.id for exchange in given_all if exchange.prompt in prompts_asked}
    assert again == len(ids) > 0
    known = {exchange.prompt for exchange in given_all}
    assert sum(missing.values()) == sum(left_out.values()) + sum(e.prompt not in known for e in got)
    # answers that no log holds: were a pair chosen by its answer, a coin would have chosen it
    collect(
        CollectSettings(
            prompts=(prompts,), max_tokens=9, top_logprobs=0, seed=8, samples_per_prompt=2
        ),
        teacher="scripted:bigram", store=tmp_path / "unlike",
    )  # fmt: skip
    guard_export(found.folder, one["id"], out=tmp_path / "out", served=tmp_path / "unlike")
    with Store(tmp_path / "out", "r") as store, Store(tmp_path / "unlike", "r") as unlike:
        assert store.ids() == {e.id for e in unlike if e.prompt in prompts_asked}
    with pytest.raises(DataError, match="no-store"):
        guard_export(found.folder, one["id"], out=tmp_path / "none", served=tmp_path / "no-store")
    with pytest.raises(DataError, match="no-logs"):
        guard_export(found.folder, one["id"], out=tmp_path / "none", logs=[tmp_path / "no-logs"])
    assert not (tmp_path / "none").exists()
    shutil.move(tmp_path / "traffic" / "logs", tmp_path / "moved")
    with pytest.raises(DataError, match="Name where it lies now with --log"):
        guard_export(found.folder, one["id"], out=tmp_path / "late")
    late, _ = guard_export(
        found.folder, one["id"], out=tmp_path / "late", logs=[tmp_path / "moved"]
    )
    assert late == count


def test_the_page_says_first_what_cannot_be_concluded(scanned: ScanResult) -> None:
    written = (scanned.folder / "report.html").read_text("utf-8")
    needs_nothing_but_itself(written)
    claims_no_more_than_it_can(written)
    text = Page(written).text
    assert text.index("What cannot be concluded") < text.index("Accounts for review")


def test_who_is_excused_or_not_called_does_not_count_as_called(
    scanned: ScanResult, range_: Path, tmp_path: Path
) -> None:
    members = [one["account"] for one in scanned.campaigns[0]["members"]]
    settings = SETTINGS.model_copy(update={"allow_accounts": tuple(members[:2])})
    scan = guard_scan(
        settings, logs=[range_ / "traffic" / "logs"], out=tmp_path / "scan",
        calibration=range_ / "first.cal", key=range_ / "scan.key",
    )  # fmt: skip
    first = scan.campaigns[0]
    assert {one["account"] for one in first["members"]} == set(members[2:])
    assert first["decisions"] == {"review": len(members) - 2}
    assert {one["account"] for one in scan.facts["excused"]} == set(members[:2])
    of = dict(zip(scan.accounts["account"].to_pylist(), scan.accounts["campaign"].to_pylist(),
                  strict=True))  # fmt: skip
    assert {of[account] for account in members[:2]} == {None}
    first["members"][0]["decision"] = "observe"
    first["decisions"] = {"observe": 1, "review": len(members) - 3}
    text = Page(write_page(tmp_path, [first], scan.accounts, scan.facts).read_text("utf-8")).text
    assert f": {len(members) - 3} accounts that obtained" in text
    assert "1 account of them is not called" in text


@pytest.mark.usefixtures("scanned")
def test_a_calibration_is_used_with_its_own_secret(range_: Path, tmp_path: Path) -> None:
    logs = [range_ / "traffic" / "logs"]
    write_key(tmp_path / "other.key")
    with pytest.raises(DataError, match="made with another secret"):
        guard_scan(SETTINGS, logs=logs, out=tmp_path / "scan", key=tmp_path / "other.key",
                   calibration=range_ / "first.cal")  # fmt: skip
    shutil.copy(range_ / "first.cal", tmp_path / "moved.cal")
    with pytest.raises(DataError, match=r"moved\.cal\.key"):
        guard_scan(SETTINGS, logs=logs, out=tmp_path / "scan", calibration=tmp_path / "moved.cal")
    assert not (tmp_path / "scan").exists()


@pytest.mark.parametrize("name", ['<img src=x onerror="a()">', "\x1b[31mred\x1b[0m", "a‮b"])
def test_hostile_names_are_escaped(scanned: ScanResult, name: str, tmp_path: Path) -> None:
    assert scanned.campaigns
    one = json.loads(json.dumps(scanned.campaigns[0]))
    one["members"][0]["account"] = name
    one["volumes"]["models"] = {name: 3}
    facts = scanned.facts | {"excused": [{"account": name, "decision": "review"}]}
    page = write_page(tmp_path, [one], scanned.accounts, facts).read_text("utf-8")
    assert name not in page
    assert "\x1b" not in page
    assert "<script" not in page


@pytest.mark.parametrize(
    ("test", "words"), [("one schedule", "one schedule"), ("load balance", "equal loads")]
)
def test_the_page_says_which_timing_speaks(
    scanned: ScanResult, test: str, words: str, tmp_path: Path
) -> None:
    one = json.loads(json.dumps(scanned.campaigns[0]))
    timing = {"family": "timing", "effect": 1.0, "typical": 0.2, "n": 14}
    one["families"] = ["content", "timing"]
    one["evidence"] = [
        timing | {"test": name, "p_value": 1e-6 if name == test else 1.0}
        for name in ("one schedule", "load balance", "new model")
    ]
    page = write_page(tmp_path, [one], scanned.accounts, scanned.facts).read_text("utf-8")
    assert f"timing: {words}." in page


# ---- the command line ----


def run(capsys: Any, *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["guard", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_line_goes_from_a_spec_to_a_store(tmp_path: Path, capsys: Any) -> None:
    text = tmp_path / "spec.yaml"
    text.write_text(
        "seed: 3\ndays: 4\nbenign: {accounts: 1200}\ncampaigns:\n  - {name: north, accounts: 14, "
        "capability: rubric_grading, cover: 0.0, synchrony: 0.5, shaping: flat, "
        "shared_infrastructure: 1.0}\n"
    )
    place = str(tmp_path / "range")
    code, out, _ = run(capsys, "simulate", str(text), "--dry-run")
    assert code == 0, out
    assert not (tmp_path / "range").exists()
    assert run(capsys, "simulate", str(text), "--out", place, "--quiet")[0] == 0
    collect(
        CollectSettings(
            prompts=(tmp_path / "range" / "prompts" / "north.jsonl",), max_tokens=8, top_logprobs=0
        ),
        teacher="scripted:bigram", store=tmp_path / "answers",
    )  # fmt: skip
    place = str(tmp_path / "answered")
    code, _, err = run(capsys, "simulate", str(text), "--out", place, "--answers",
                       str(tmp_path / "answers"), "--quiet")  # fmt: skip
    assert code == 0, err
    scan = ["scan", f"{place}/logs", "--out", str(tmp_path / "scan"), "--quiet", "--permutations",
            "9999", "--json"]  # fmt: skip
    code, out, err = run(capsys, *scan)
    assert code == 0, err
    found = json.loads(out)
    assert found["campaigns"]
    name = found["campaigns"][0]["id"]
    export = ["export", str(tmp_path / "scan"), name, "--out", str(tmp_path / "store"), "--json",
              "--quiet"]  # fmt: skip
    told = []
    for _ in range(2):  # what is there already is kept once
        code, out, err = run(capsys, *export)
        assert code == 0, err
        told.append(json.loads(out))
    assert told[0]["exchanges"] == told[0]["added"] == told[1]["exchanges"] > 100
    assert told[1]["added"] == 0


def test_answers_without_text_to_answer_are_refused(tmp_path: Path, capsys: Any) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("text: false\nprompts: [own.jsonl]\ncampaigns: [{name: north, accounts: 5}]\n")
    asked = ["simulate", str(spec), "--answers", str(tmp_path / "answers"), "--dry-run"]
    code, _, err = run(capsys, *asked)
    assert code == 2, err
    assert "no campaign's text to answer" in err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["scan", "nothing-here", "--out", "s"], 3, "nothing-here"),
        (["scan", "nothing-here", "--out", "."], 3, "nothing-here"),
        (["scan", "--out", "new/empty"], 3, "no logs given, and none were read into it"),
        (["scan", "--out", "s", "--calibration", "none.cal"], 3, "none.cal"),
        (["scan", "--out", "s", "--familys", "content"], 2, "Did you mean --families?"),
        (["scan", "--out", "s", "--families", "contnt"], 2, "Did you mean 'content'?"),
        (["scan", "x", "--out", "s", "--key", "mistyped.key"], 3, "mistyped.key"),
        (["calibrate", "--out", "c"], 2, "no logs"),
        (["calibrate", "x", "--out", "c", "--allow-accounts", "a"], 2, "--allow-accounts"),
        (["export", "nothing-here", "c-1", "--out", "s"], 3, "guard scan"),
        (["simulate", "nothing.yaml", "--out", "s"], 2, "nothing.yaml"),
    ],
)
def test_wrong_input_is_named(
    arguments: list[str], code: int, says: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    found, _, err = run(capsys, *arguments)
    assert found == code, err
    assert says in err
    assert "Traceback" not in err
    assert not (tmp_path / "new").exists()
