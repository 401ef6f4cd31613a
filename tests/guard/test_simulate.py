"""The simulated range: files, labels, determinism, and metadata that tells nothing."""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from stillhouse.errors import ConfigError, DataError, StoreError
from stillhouse.exchange import Exchange, Response, Sampling, Tool, message
from stillhouse.guard.simulate import planned, simulate
from stillhouse.guard.simulate_accounts import KINDS
from stillhouse.guard.simulate_settings import SimulateSettings, read_spec
from stillhouse.log_exchanges import asked_of
from stillhouse.log_formats import read_record
from stillhouse.settings import make
from stillhouse.store import Store

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "guard"
CAMPAIGN = {"name": "north", "accounts": 12, "exchanges_per_day": 20}


def spec(**changes: Any) -> SimulateSettings:
    data = {"days": 3, "benign": {"accounts": 300}, "campaigns": [CAMPAIGN]} | changes
    return make(SimulateSettings, data, where="test")


def lines(folder: Path) -> list[dict[str, Any]]:
    files = sorted((folder / "logs").iterdir())
    return [json.loads(line) for path in files for line in path.read_bytes().splitlines()]


def account(line: dict[str, Any]) -> str:
    return line["metadata"]["user_api_key_hash"]


def own(folder: Path) -> set[str]:
    return set(pq.read_table(folder / "exchanges.parquet")["request"].to_pylist())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("range") / "out"
    simulate(spec(), folder)
    return folder


def test_every_account_of_the_log_has_one_label_and_every_label_is_in_the_log(made: Path) -> None:
    truth = pq.read_table(made / "truth.parquet")
    assert truth.column_names == ["account", "kind", "campaign", "capability"]
    assert sorted(truth["account"].to_pylist()) == sorted({account(line) for line in lines(made)})
    rows = truth.to_pylist()
    assert {row["kind"] for row in rows} == {kind.name for kind in KINDS} | {"campaign"}
    for row in rows:
        campaign = row["kind"] == "campaign"
        assert row["campaign"] == ("north" if campaign else None)
        assert row["capability"] == ("reasoning_elicitation" if campaign else None)


def test_a_line_is_a_gateways_payload(made: Path) -> None:
    for line in lines(made)[:200]:
        assert line["total_tokens"] == line["prompt_tokens"] + line["completion_tokens"]
        assert line["startTime"] < line["completionStartTime"] < line["endTime"]
        assert line["messages"][-1]["role"] in ("user", "tool")
        assert line["requester_ip_address"].startswith(("24", "25", "2001:db8:"))
        auth = line["metadata"]["user_api_key_auth_metadata"]
        signup = datetime.fromisoformat(auth["signup_time"]).timestamp()
        assert signup <= line["startTime"]


def test_days_are_in_order_of_time_and_ids_are_unique(made: Path) -> None:
    names: list[str] = []
    for path in sorted((made / "logs").iterdir()):
        day = [json.loads(line) for line in path.read_bytes().splitlines()]
        times = [line["startTime"] for line in day]
        assert times == sorted(times)
        dates = {datetime.fromtimestamp(t, UTC).date().isoformat() for t in times}
        assert dates == {path.name.removesuffix(".jsonl")}
        names += [line["id"] for line in day]
    assert len(names) == len(set(names))


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(
    made: Path, tmp_path: Path
) -> None:
    def content(folder: Path) -> list[bytes]:
        return [path.read_bytes() for path in sorted(folder.rglob("*.*")) if path.is_file()]

    simulate(spec(), tmp_path / "again")
    simulate(spec(seed=8), tmp_path / "other")
    assert content(tmp_path / "again") == content(made)
    assert content(tmp_path / "other") != content(made)


def test_benign_traffic_is_the_same_whatever_campaigns_are_added(
    made: Path, tmp_path: Path
) -> None:
    simulate(spec(campaigns=[]), tmp_path / "benign")
    truth = pq.read_table(made / "truth.parquet").to_pylist()
    attackers = {row["account"] for row in truth if row["campaign"]}
    assert [line for line in lines(made) if account(line) not in attackers] == lines(
        tmp_path / "benign"
    )
    second = CAMPAIGN | {"name": "south"}
    simulate(spec(campaigns=[second, CAMPAIGN]), tmp_path / "two")
    assert own(made) <= own(tmp_path / "two")


def test_another_week_has_the_same_accounts_and_products_and_other_requests(
    made: Path, tmp_path: Path
) -> None:
    simulate(spec(week=1), tmp_path / "next")
    first, second = lines(made), lines(tmp_path / "next")
    assert second[0]["startTime"] - first[0]["startTime"] > 6 * 86_400
    assert not {line["id"] for line in first} & {line["id"] for line in second}
    there = {account(line) for line in first}
    both = there & {account(line) for line in second}
    assert len(both) > 0.8 * len(there)  # some stay silent for three days
    products = [
        {m["content"] for line in week for m in line["messages"] if m["role"] == "system"}
        for week in (first, second)
    ]
    assert len(products[0] & products[1]) > 0.5 * len(products[0])
    asked = [{str(line["messages"][-1]["content"]) for line in week} for week in (first, second)]
    assert len(asked[0] & asked[1]) < 0.1 * len(asked[0])


def test_text_can_be_left_out_and_nothing_else_changes(made: Path, tmp_path: Path) -> None:
    simulate(spec(text=False, gzip=True), tmp_path / "bare")
    bare = [
        json.loads(line)
        for path in sorted((tmp_path / "bare" / "logs").glob("*.jsonl.gz"))
        for line in gzip.decompress(path.read_bytes()).splitlines()
    ]
    full = lines(made)
    assert len(bare) == len(full)
    for one, other in zip(bare, full, strict=True):
        assert one["messages"] is None
        one["model_parameters"].pop("tools", None)
        other["model_parameters"].pop("tools", None)
        assert one | {"messages": other["messages"]} == other
    assert not (tmp_path / "bare" / "prompts").exists()


def test_what_a_campaign_asked_is_written_down_and_matches_its_lines(made: Path) -> None:
    asked = [json.loads(x) for x in (made / "prompts" / "north.jsonl").read_bytes().splitlines()]
    by_id = {line["id"]: line for line in lines(made)}
    assert {item["id"] for item in asked} == own(made)
    assert all(by_id[item["id"]]["messages"] == item["messages"] for item in asked)


def test_answers_of_a_store_are_given_to_the_prompts_they_answer(
    made: Path, tmp_path: Path
) -> None:
    asked = [json.loads(x) for x in (made / "prompts" / "north.jsonl").read_bytes().splitlines()]
    keep_answers(tmp_path / "store", asked[::2])
    done = simulate(spec(answers=str(tmp_path / "store")), tmp_path / "out")
    answered = [line for line in lines(tmp_path / "out") if line["response"]]
    assert done.answered == len(answered) >= len(asked) // 2
    assert {line["id"] for line in answered} <= own(made)
    for line in answered:
        assert "answer to" in line["response"]["choices"][0]["message"]["content"]
        assert line["completion_tokens"] == 7


def test_a_line_with_an_answer_has_the_tools_that_its_answer_was_asked_with(tmp_path: Path) -> None:
    """Else `guard export --served` would not find what was served to whom."""
    campaign = CAMPAIGN | {"capability": "tool_use", "structured_tools": True}
    simulate(spec(days=1, campaigns=[campaign]), tmp_path / "first")
    file = tmp_path / "first" / "prompts" / "north.jsonl"
    asked = [json.loads(x) for x in file.read_bytes().splitlines()]
    assert all(item["tools"] for item in asked)  # they are part of this campaign's task
    tool = Tool(name="look_up", description="Finds.", parameters='{"type": "object"}')
    keep_answers(tmp_path / "store", asked[:-10], (tool,), tools_of={asked[0]["id"]})
    simulate(spec(days=1, campaigns=[campaign], answers=str(tmp_path / "store")), tmp_path / "out")
    first = {line["id"]: line for line in lines(tmp_path / "first")}
    with Store(tmp_path / "store", "r") as store:
        served = {exchange.prompt: exchange.tools for exchange in store}
    changed = 0
    for line in lines(tmp_path / "out"):
        prompt, tools = asked_of(read_record(line))
        if line["response"] is None:
            assert line == first[line["id"]]
        else:
            assert tools == served[prompt]
            changed += line["model_parameters"] != first[line["id"]]["model_parameters"]
    assert changed > len(asked) / 2
    assert (tool,) in served.values()


def keep_answers(
    path: Path, asked: list[dict[str, Any]], tools: tuple[Tool, ...] = (),
    tools_of: AbstractSet[str] = frozenset(),
) -> None:  # fmt: skip
    with Store(path) as store:
        for item in asked:
            prompt = tuple(message(m["role"], m["content"] or "") for m in item["messages"])
            store.append(Exchange(
                time=datetime(2026, 9, 1, tzinfo=UTC), model="t", prompt=prompt,
                tools=tools if item["id"] in tools_of else (), sampling=Sampling(),
                response=Response(text=f"answer to {item['id']}"), output_tokens=7,
            ))  # fmt: skip


def test_the_dry_run_comes_near_what_is_written(made: Path) -> None:
    plan, found = planned(spec(days=7)), len(lines(made))
    short = planned(spec())
    assert plan.accounts == short.accounts == 312
    assert 0.6 < short.events / found < 1.6
    size = sum(path.stat().st_size for path in (made / "logs").iterdir())
    assert 0.5 < short.bytes / size < 2
    assert plan.seconds > short.seconds > 0


class Told:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.done: list[float] = []
        self.notes: list[str] = []

    def start(self, stage: str, total: float | None = None, unit: str = "") -> None:
        self.stages.append(f"{stage}, {unit}")

    def advance(self, done: float, note: str = "", left_seconds: float | None = None) -> None:
        self.done.append(done)

    def finish(self, note: str = "") -> None:
        self.notes.append(note)

    def say(self, line: str) -> None:
        self.notes.append(line)


def test_progress_is_told_while_it_writes(tmp_path: Path) -> None:
    told = Told()
    done = simulate(spec(text=False), tmp_path / "o", told)
    assert told.stages == ["simulating traffic, events"]
    assert told.done == sorted(told.done)
    assert told.done
    assert f"{done.events} events" in told.notes[-1]
    assert done.campaign_events == len(own(tmp_path / "o"))
    assert done.accounts == sum(done.kinds.values())


class Stopping(Told):
    def advance(self, done: float, note: str = "", left_seconds: float | None = None) -> None:
        raise KeyboardInterrupt


def test_a_range_that_is_stopped_leaves_nothing_that_would_be_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        simulate(spec(text=False), tmp_path / "o", Stopping())
    assert not (tmp_path / "o").exists()


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(ConfigError, match="something is there"):
        simulate(spec(), tmp_path)


def test_a_disk_that_refuses_is_named_and_leaves_nothing_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DataError, match=r"2026-09-07\.jsonl.*No space left"):
        simulate(spec(campaigns=[]), tmp_path / "out")
    monkeypatch.undo()
    assert simulate(spec(campaigns=[]), tmp_path / "out").events  # half a range is not in the way


def test_a_store_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        simulate(spec(answers=str(tmp_path / "nothing")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- specs ----


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: p.stem)
def test_examples_are_specs(path: Path) -> None:
    assert planned(path).events > 10_000


def test_unknown_keys_are_refused_with_the_nearest_one(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("campaigns:\n  - {name: a, acounts: 3}\n")
    with pytest.raises(ConfigError, match="Did you mean 'accounts'"):
        read_spec(path)
    path.write_text("benign: {hard_negatives: {ofice: 0.1}}\n")
    with pytest.raises(ConfigError, match="Did you mean 'office'"):
        read_spec(path)
    path.write_text("- 1\n")
    with pytest.raises(ConfigError, match="simulation spec"):
        read_spec(path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"campaigns": [CAMPAIGN, CAMPAIGN]}, "two are called"),
        ({"campaigns": [CAMPAIGN | {"start_day": 2, "days": 2}]}, "days within the window"),
        ({"release_day": 3}, "a day before 3"),
        ({"answers": "x", "campaigns": []}, "no campaign's text"),
        ({"campaigns": [CAMPAIGN | {"name": "../up"}]}, "name"),
        ({"campaigns": [CAMPAIGN | {"cover": 1.0}]}, "cover"),
        ({"campaigns": [CAMPAIGN | {"languages": {"xx": 1}}]}, "languages"),
    ],
)
def test_what_cannot_be_simulated_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        spec(**changes)


# ---- what one event says ----


def features(line: dict[str, Any], codes: dict[str, dict[Any, int]]) -> list[float]:
    """Everything that one event says without its text."""

    def code(field: str, value: Any) -> int:
        return codes[field].setdefault(value, len(codes[field]))

    sent, auth = line["model_parameters"], line["metadata"]["user_api_key_auth_metadata"]
    return [
        code("model", line["model"]), sent.get("temperature", -1), sent.get("max_tokens", -1),
        sent.get("top_p", -1), line["stream"], line["prompt_tokens"], line["completion_tokens"],
        line["response_cost"], line["startTime"] / 3600 % 24, line["startTime"] // 86400 % 7,
        code("agent", line["user_agent"]), code("channel", auth["channel"]),
        code("address", line["requester_ip_address"].split(".")[0].split(":")[0]),
        line["metadata"]["user_api_key_org_id"] is not None, "payment_fingerprint" in auth,
        "device" in auth, line["end_user"] != "",
    ]  # fmt: skip


def test_a_classifier_of_single_events_without_text_stays_near_chance(tmp_path: Path) -> None:
    sklearn = pytest.importorskip("sklearn")
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold
    from threadpoolctl import threadpool_limits

    assert sklearn
    campaign = CAMPAIGN | {"accounts": 300, "exchanges_per_day": 26}
    simulate(
        spec(seed=3, text=False, benign={"accounts": 5000}, days=2, campaigns=[campaign]),
        tmp_path / "o",
    )
    truth = {
        r["account"]: r["kind"] for r in pq.read_table(tmp_path / "o/truth.parquet").to_pylist()
    }
    mine, codes = own(tmp_path / "o"), defaultdict[str, dict[Any, int]](dict)
    rows, labels, groups = [], [], []
    for line in lines(tmp_path / "o"):
        if truth[account(line)] != "campaign" or line["id"] in mine:  # cover is neither
            rows.append(features(line, codes))
            labels.append(line["id"] in mine)
            groups.append(codes["account"].setdefault(account(line), len(codes["account"])))
    x, y, scores = np.array(rows, float), np.array(labels), np.zeros(len(rows))
    with threadpool_limits(1):  # threads that wait for a busy core cost minutes
        for train, test in GroupKFold(3).split(x, y, groups):
            model = HistGradientBoostingClassifier(max_iter=60, random_state=0)
            model.fit(x[train], y[train])
            scores[test] = model.predict_proba(x[test])[:, 1]
    assert y.sum() > 5000
    assert roc_auc_score(y, scores) <= 0.55


# ---- campaigns ----


def test_volumes_cover_and_lifetimes_are_those_of_the_settings(tmp_path: Path) -> None:
    steady = {"name": "steady", "accounts": 30, "exchanges_per_day": 20, "cover": 0.8}
    rotating = steady | {"name": "rotating", "cover": 0, "lifetime_days": 1.0}
    tailed = steady | {"name": "tailed", "cover": 0, "volume_spread": 1.5}
    simulate(spec(text=False, campaigns=[steady, rotating, tailed]), tmp_path / "o")
    rows = pq.read_table(tmp_path / "o" / "exchanges.parquet").to_pylist()
    per_account: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        per_account[row["campaign"]][row["account"]] += 1
    assert abs(sum(per_account["steady"].values()) / (30 * 4 * 3) - 1) < 0.35
    assert len(per_account["steady"]) == 30
    assert 60 < len(per_account["rotating"]) < 180
    spread = {name: np.std(np.log(list(c.values()))) for name, c in per_account.items()}
    assert spread["steady"] < 0.3 < 1.0 < spread["tailed"]


def test_infrastructure_is_shared_only_where_asked(tmp_path: Path) -> None:
    campaigns = [
        {"name": "clean", "accounts": 60},
        {"name": "shared", "accounts": 60, "shared_infrastructure": 1.0},
    ]
    simulate(spec(text=False, campaigns=campaigns), tmp_path / "o")
    truth = {
        r["account"]: r["campaign"] for r in pq.read_table(tmp_path / "o/truth.parquet").to_pylist()
    }
    cards: dict[str | None, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for line in lines(tmp_path / "o"):
        auth = line["metadata"]["user_api_key_auth_metadata"]
        if "payment_fingerprint" in auth:
            cards[truth[account(line)]][auth["payment_fingerprint"]].add(account(line))
    assert all(len(users) == 1 for users in cards["clean"].values())
    assert max(len(users) for users in cards["shared"].values()) > 8


def test_a_pivoting_campaign_moves_to_the_new_model_within_a_day(tmp_path: Path) -> None:
    pivot = CAMPAIGN | {"pivot_share": 0.5, "exchanges_per_day": 40, "accounts": 30}
    simulate(spec(text=False, release_day=0, campaigns=[pivot]), tmp_path / "o")
    mine = own(tmp_path / "o")
    late = [
        line["model"] for line in lines(tmp_path / "o")
        if line["id"] in mine and line["startTime"] > 1788714000 + 2 * 86_400
    ]  # fmt: skip
    assert 0.4 < np.mean([model == "orrery-5-large" for model in late]) < 0.8
