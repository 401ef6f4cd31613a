"""The benchmark's plan, its tables, and a run that is stopped and goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from stillhouse.errors import ConfigError, DataError
from stillhouse.guard.benchmark import benchmark, expected_minutes
from stillhouse.guard.benchmark_cases import CASES, planned_units
from stillhouse.guard.benchmark_memory import peak_of
from stillhouse.guard.benchmark_settings import (
    DEVELOPMENT_SEEDS,
    FINAL_SEEDS,
    BenchmarkSettings,
)
from stillhouse.guard.benchmark_tables import table_of
from stillhouse.guard.benchmark_weeks import WeekPlan
from stillhouse.guard.benchmark_work import Desk, Unit, Work
from stillhouse.guard.benchmark_workers import result_path, run_side_by_side, sharing_weeks
from stillhouse.guard.key import write_key
from stillhouse.guard.simulate_settings import SimulateSettings

QUICK = BenchmarkSettings(quick=True)


def test_the_published_seeds_are_kept_apart() -> None:
    assert not set(FINAL_SEEDS) & set(DEVELOPMENT_SEEDS)
    assert len(set(FINAL_SEEDS)) == 5
    assert set(QUICK.seeds) <= set(DEVELOPMENT_SEEDS)
    assert BenchmarkSettings().judged
    assert not QUICK.judged
    assert not BenchmarkSettings(seed=(1,)).judged


def test_a_plan_has_every_case_and_no_step_twice() -> None:
    units = planned_units(QUICK)
    assert {unit.case for unit in units} == {case.name for case in CASES}
    assert len({(unit.case, unit.name) for unit in units}) == len(units)


def test_weeks_of_a_seed_are_drawn_apart() -> None:
    plans = {plan.name: plan.spec for unit in planned_units(QUICK) for plan in unit.weeks}
    seeds = [(spec.seed, spec.week) for spec in plans.values()]
    twins = sum("metadata" in name for name in plans)  # the same weeks again, without text
    assert len(set(seeds)) == len(seeds) - twins


def test_a_scanned_week_is_the_calibrations_world_a_week_later() -> None:
    unit = next(u for u in planned_units(QUICK) if u.case == "recall")
    benign, scanned = (plan.spec for plan in unit.weeks)
    assert (benign.seed, benign.benign) == (scanned.seed, scanned.benign)
    assert (benign.week, scanned.week) == (0, 1)


def test_a_campaign_is_the_same_whatever_cases_run() -> None:
    (alone,) = planned_units(BenchmarkSettings(quick=True, only=("recall",)))
    together = next(u for u in planned_units(QUICK) if u.case == "recall")
    ours = {one.name: one for one in together.weeks[1].spec.campaigns}
    assert alone.weeks[0] == together.weeks[0]
    assert all(ours[one.name] == one for one in alone.weeks[1].spec.campaigns)
    assert alone.weeks[1].spec.seed == together.weeks[1].spec.seed


def test_an_unknown_case_is_refused() -> None:
    with pytest.raises(ConfigError, match="recal"):
        planned_units(BenchmarkSettings(only=("recal",)))


def test_a_scale_cuts_accounts_and_keeps_what_a_calibration_needs() -> None:
    sizes = BenchmarkSettings(scale=0.01).sizes
    assert sizes.large == 2500
    assert sizes.hydra == 25  # a hundredth of the benign accounts, as in the table
    assert BenchmarkSettings(scale=0.2).sizes.recall == (200, 200, 200, 200)
    assert sizes.by_size[-1][:2] == (240, 10_000)
    assert len({size[:2] for size in sizes.by_size}) == len(sizes.by_size)
    assert sizes.hard_weeks == 1


def test_minutes_are_expected_for_every_case() -> None:
    minutes = expected_minutes(BenchmarkSettings(quick=True, only=("recall", "benign")))
    assert list(minutes) == ["recall", "benign"]
    assert 0 < minutes["recall"] < 5


def row(**counts: Any) -> dict[str, Any]:
    return {"case": "", "unit": "1-x", "seed": 1, "note": {}} | counts


def scan(false: int, kind: str = "mixed") -> dict[str, Any]:
    found = [{"decision": "review", "campaign": None, "kind": "office"}] * false
    counts = {"accounts": 100, "clustered": {"review": [[1, 0, 100]]}}
    return row(note={"kind": kind}, found=found, events=1000, benign=counts)


def test_false_campaigns_are_counted_in_a_hundred_weeks() -> None:
    weeks = [scan(0)] * 49 + [scan(1)] + [scan(2, "office")]
    made = table_of("hard-negatives", weeks, judged=True)
    (goal,) = made["goals"]
    assert (goal["value"], goal["met"]) == (2.0, False)
    assert made["mixed"]["weeks_with_any"]["n"] == 50
    assert made["by_kind"]["office"]["of_kind"] == {"office": 2}


def test_goals_of_toy_runs_are_not_judged() -> None:
    (goal,) = table_of("hard-negatives", [scan(0)], judged=False)["goals"]
    assert goal["met"] is None


def test_too_little_to_judge_is_listed_and_not_counted() -> None:
    made = table_of("hard-negatives", [scan(0), row(insufficient="too few")], judged=True)
    assert made["mixed"]["weeks"] == 1
    assert made["insufficient"] == [{"unit": "1-x", "why": "too few"}]
    assert "mixed" not in table_of("hard-negatives", [row(insufficient="x")], judged=True)


def timed(events: int, seconds: float) -> dict[str, Any]:
    return row(
        events=events, seconds=seconds, peak_bytes=2**30, log_bytes=1, stages={}, report_bytes=1
    )


def test_speed_is_told_for_a_million_events_and_for_four_times_as_many() -> None:
    runs = [timed(4_400_000, 220.0), timed(1_000_000, 50.0)]
    goals = table_of("speed", runs, judged=True)["goals"]
    assert [goal["value"] for goal in goals] == [50.0, 1.0, pytest.approx(4.0)]
    assert all(goal["met"] for goal in goals)


def test_memory_of_a_process_and_its_children_is_added() -> None:
    code = (
        "import subprocess, sys, time\n"
        "held = bytearray(60_000_000)\n"
        "if len(sys.argv) > 1: subprocess.run([sys.executable, '-c', sys.argv[1]])\n"
        "else: time.sleep(1)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, code]) as child:
        peak = peak_of(child)
    assert peak is not None
    assert 100e6 < peak < 250e6


def test_steps_that_share_a_week_go_to_one_process() -> None:
    units = planned_units(BenchmarkSettings(seed=(1, 2), quick=True))
    groups = sharing_weeks(units)
    assert sorted(u.name for g in groups for u in g) == sorted(u.name for u in units)
    weeks = [{plan.name for unit in group for plan in unit.weeks} for group in groups]
    assert sum(map(len, weeks)) == len(set().union(*weeks))
    assert len(groups) == 6  # of each seed: its large weeks, its middle ones, those without text


def counted(desk: Desk, unit: Unit) -> dict[str, Any]:
    desk.tell("counting")
    return {"process": os.getpid()}


def failed(desk: Desk, unit: Unit) -> dict[str, Any]:
    raise DataError("here", "nothing", "something", "do something")


def slow(desk: Desk, unit: Unit) -> dict[str, Any]:
    (desk.key.parent / "begun").touch()
    time.sleep(60)
    (desk.key.parent / "ended").touch()
    return {}


def killed(desk: Desk, unit: Unit) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def steps(*works: Work) -> list[Unit]:
    spec = SimulateSettings()
    return [
        Unit("case", f"1-{at}", 1, (WeekPlan.of(f"week-{at}", spec),), work, {})
        for at, work in enumerate(works)
    ]


def test_steps_are_done_side_by_side(tmp_path: Path) -> None:
    write_key(tmp_path / "key")
    units = steps(counted, counted, counted)
    notes = list(run_side_by_side(units, tmp_path, 2, keep=frozenset()))
    assert notes.count(None) == 3
    assert "case 1-0: counting" in notes
    rows = [json.loads(result_path(tmp_path, unit).read_text("utf-8")) for unit in units]
    assert os.getpid() not in {row["process"] for row in rows}


def test_weeks_that_a_later_step_needs_are_left_there(tmp_path: Path) -> None:
    write_key(tmp_path / "key")
    units = steps(counted, counted)
    first, second = (tmp_path / "weeks" / unit.weeks[0].name for unit in units)
    for folder in (first, second):
        folder.mkdir(parents=True)
    list(run_side_by_side(units, tmp_path, 1, keep=frozenset({second.name})))
    assert not first.exists()
    assert second.exists()


def test_what_a_step_raises_ends_the_benchmark(tmp_path: Path) -> None:
    write_key(tmp_path / "key")
    with pytest.raises(DataError, match="do something"):
        list(run_side_by_side(steps(failed), tmp_path, 2, keep=frozenset()))


def test_a_process_that_is_killed_ends_the_benchmark(tmp_path: Path) -> None:
    write_key(tmp_path / "key")
    with pytest.raises(DataError, match="fewer --workers"):
        list(run_side_by_side(steps(killed), tmp_path, 2, keep=frozenset()))


@pytest.mark.parametrize("interrupts", ["default_int_handler", "SIG_IGN"])
def test_processes_end_with_the_one_that_began_them(tmp_path: Path, interrupts: str) -> None:
    write_key(tmp_path / "key")
    code = (
        f"import signal, sys\nsignal.signal(signal.SIGINT, signal.{interrupts})\n"
        "from pathlib import Path\n"
        "from stillhouse.guard.benchmark_workers import run_side_by_side\n"
        "from tests.guard.test_benchmark import slow, steps\n"
        "if __name__ == '__main__':\n"
        "    list(run_side_by_side(steps(slow), Path(sys.argv[1]), 1, keep=frozenset()))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) as caller:
        wait_for((tmp_path / "begun").exists)
        children = psutil.Process(caller.pid).children()
        caller.kill()
    assert children
    wait_for(lambda: not any(child.is_running() for child in children))
    assert not (tmp_path / "ended").exists()


def wait_for(ready: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not ready():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_a_benchmark_runs_to_its_table_and_goes_on_from_its_steps(tmp_path: Path) -> None:
    settings = BenchmarkSettings(quick=True, only=("recall",))
    made = benchmark(settings, tmp_path / "work")
    entry = made["cases"]["recall"]
    assert entry["traffic"] == "simulated"
    assert entry["campaigns"] == 4
    assert not list((tmp_path / "work" / "weeks").iterdir())
    again = benchmark(settings, tmp_path / "work")
    assert again == made
    with pytest.raises(ConfigError, match="begun with"):
        benchmark(BenchmarkSettings(scale=0.5), tmp_path / "work")
