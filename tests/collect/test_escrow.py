"""Collecting with an escrow: two answers drawn, one served, none asked twice, kills included."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stillhouse.collect.run import collect, plan
from stillhouse.config import CollectSettings
from stillhouse.errors import ConfigError, DataError
from stillhouse.escrow import Escrow, check_pair, pair_key
from stillhouse.store import Store

TEACHER = "scripted:bigram"


def settings_for(
    folder: Path, count: int = 30, ask: str = "ask", **changes: object
) -> CollectSettings:
    prompts = folder / f"{ask}.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{ask} {n}"}) + "\n" for n in range(count)))
    plain = CollectSettings(
        prompts=(prompts,), max_tokens=12, top_logprobs=0, escrow=folder / "escrow"
    )
    return plain.model_copy(update=changes)


def check(folder: Path, count: int) -> None:
    """Every prompt was served one answer, whose twin lies in the escrow, as the coin says."""
    escrow = Escrow.open(folder / "escrow")
    with Store(folder / "served", "r") as store, Store(escrow.twins, "r") as kept:
        served = {pair_key(e): e for e in store}
        twins = {pair_key(e): e for e in kept}
        assert len(store) == len(kept) == count
    assert served.keys() == twins.keys()
    for pair, exchange in served.items():
        assert check_pair(escrow.nonce(exchange), exchange, twins[pair]) is None
    assert escrow.published()["pairs"] == count


def test_each_answer_is_drawn_twice_and_one_of_them_served(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, samples_per_prompt=2)
    before = plan(settings, teacher=TEACHER, store=tmp_path / "served")
    assert (before.requests, before.to_ask) == (120, 120)
    report = collect(settings, teacher=TEACHER, store=tmp_path / "served")
    assert (report.asked, report.exchanges) == (120, 60)
    check(tmp_path, 60)
    after = plan(settings, teacher=TEACHER, store=tmp_path / "served")
    assert (after.already_there, after.to_ask) == (120, 0)


def test_a_budget_counts_what_is_served(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, exchanges=7)
    assert collect(settings, teacher=TEACHER, store=tmp_path / "served").exchanges == 7
    check(tmp_path, 7)
    more = settings.model_copy(update={"exchanges": 9})
    assert collect(more, teacher=TEACHER, store=tmp_path / "served").asked == 4
    check(tmp_path, 9)


# ---- several stores, one escrow ----


def test_a_second_store_adds_its_pairs_to_those_of_the_first(tmp_path: Path) -> None:
    first = settings_for(tmp_path)
    second = settings_for(tmp_path, 9, "say", exchanges=7)
    collect(first, teacher=TEACHER, store=tmp_path / "served")
    assert plan(second, teacher=TEACHER, store=tmp_path / "more").to_ask == 14
    report = collect(second, teacher=TEACHER, store=tmp_path / "more")
    assert (report.exchanges, report.asked) == (7, 14)
    escrow = Escrow.open(tmp_path / "escrow")
    assert report.escrow == escrow.published()
    assert len(escrow.committed()) == 37
    lines = (tmp_path / "escrow" / "commitments.jsonl").read_bytes()
    for settings, store in ((first, "served"), (second, "more")):
        assert collect(settings, teacher=TEACHER, store=tmp_path / store).asked == 0
    assert (tmp_path / "escrow" / "commitments.jsonl").read_bytes() == lines


def test_a_budget_asks_only_for_what_a_half_asked_pair_lacks(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, exchanges=7)
    collect(settings, teacher=TEACHER, store=tmp_path / "served")
    (tmp_path / "escrow" / "commitments.jsonl").unlink()
    for number, gone in enumerate(("escrow/twins", "served")):
        alone = tmp_path / str(number)
        shutil.copytree(tmp_path / "escrow", alone / "escrow")
        shutil.copytree(tmp_path / "served", alone / "served")
        shutil.rmtree(alone / gone)
        again = settings.model_copy(update={"escrow": alone / "escrow"})
        assert plan(again, teacher=TEACHER, store=alone / "served").to_ask == 7
        assert collect(again, teacher=TEACHER, store=alone / "served").asked == 7


@pytest.mark.parametrize("seed", [7, 8])
def test_prompts_that_were_committed_to_are_not_asked_for_another_store(
    seed: int, tmp_path: Path
) -> None:
    collect(settings_for(tmp_path, 6), teacher=TEACHER, store=tmp_path / "served")
    again, escrow = settings_for(tmp_path, 8, seed=seed), Escrow.open(tmp_path / "escrow")
    published = escrow.published()
    for try_ in (plan, collect):
        with pytest.raises(DataError, match="a fresh folder for the escrow"):
            try_(again, teacher=TEACHER, store=tmp_path / "more")
    assert escrow.published() == published
    with Store(escrow.twins, "r") as twins:
        assert len(twins) == 6  # nothing was asked


def test_answers_that_were_committed_to_are_not_asked_for_again(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, 6)
    collect(settings, teacher=TEACHER, store=tmp_path / "served")
    shutil.rmtree(tmp_path / "served")
    for try_ in (plan, collect):
        with pytest.raises(DataError, match="what was published would no longer fit"):
            try_(settings, teacher=TEACHER, store=tmp_path / "served")


# ---- refusals and kills ----


@pytest.mark.parametrize("first", [True, False])
def test_a_store_begun_otherwise_is_refused(first: bool, tmp_path: Path) -> None:
    with_, without = settings_for(tmp_path), settings_for(tmp_path, escrow=None)
    collect(with_ if first else without, teacher=TEACHER, store=tmp_path / "served")
    other = settings_for(tmp_path, escrow=tmp_path / "another")
    for otherwise in (without if first else with_, other):
        for try_ in (plan, collect):
            with pytest.raises(ConfigError, match="escrow key"):
                try_(otherwise, teacher=TEACHER, store=tmp_path / "served")
    assert not (tmp_path / "another").exists()  # no key is made in vain


def test_a_plan_passes_the_gates_of_a_collection_and_makes_nothing(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert plan(settings, teacher=TEACHER, store=tmp_path / "served").to_ask == 60
    assert sorted(tmp_path.iterdir()) == before
    marked = settings_for(tmp_path, watermark=tmp_path / "mark.key")
    with pytest.raises(ConfigError, match="which others sample"):
        plan(marked, teacher=TEACHER, store=tmp_path / "served")
    (tmp_path / "escrow").mkdir()
    (tmp_path / "escrow" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="other files"):
        plan(settings, teacher=TEACHER, store=tmp_path / "served")


def test_a_store_of_marked_answers_is_planned_with_its_key_only(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, 2, escrow=None)
    collect(settings, teacher=TEACHER, store=tmp_path / "served")
    path = tmp_path / "served" / "collect.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"watermark": "another"}))
    for try_ in (plan, collect):
        with pytest.raises(ConfigError, match="watermark key"):
            try_(settings, teacher=TEACHER, store=tmp_path / "served")


def test_the_escrow_in_a_prompt_folder_is_no_prompt_file(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    folder = settings.model_copy(update={"prompts": (tmp_path,)})
    collect(folder, teacher=TEACHER, store=tmp_path / "served")
    report = collect(folder, teacher=TEACHER, store=tmp_path / "served")
    assert (report.prompts, report.asked) == (30, 0)


@pytest.mark.parametrize("wait", [0.9, 1.3, 1.7])
def test_killed_at_any_moment_no_coin_is_tossed_again(wait: float, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, 24)
    command = [
        sys.executable, "-m", "stillhouse.cli.main", "collect", "--teacher", "scripted:slow",
        "--prompts", str(settings.prompts[0]), "--out", str(tmp_path / "served"), "--escrow",
        str(tmp_path / "escrow"), "--max-tokens", "12", "--top-logprobs", "0",
    ]  # fmt: skip
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(wait)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    collect(settings, teacher="scripted:slow", store=tmp_path / "served")
    check(tmp_path, 24)


def test_pairs_that_a_kill_left_uncommitted_are_committed_to_by_the_next_collection(
    tmp_path: Path,
) -> None:
    settings = settings_for(tmp_path, 6)
    collect(settings, teacher=TEACHER, store=tmp_path / "served")
    commitments = tmp_path / "escrow" / "commitments.jsonl"
    committed = commitments.read_bytes()
    commitments.unlink()  # as a kill after the last answer would leave it
    assert collect(settings, teacher=TEACHER, store=tmp_path / "served").asked == 0
    assert commitments.read_bytes() == committed
