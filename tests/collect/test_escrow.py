"""Collecting with an escrow: two answers drawn, one served, none asked twice, kills included."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stillhouse.collect.run import collect, plan
from stillhouse.config import CollectSettings
from stillhouse.errors import ConfigError
from stillhouse.escrow import Escrow, check_pair, pair_key
from stillhouse.store import Store

TEACHER = "scripted:bigram"


def settings_for(folder: Path, count: int = 30, **changes: object) -> CollectSettings:
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"ask {n}"}) + "\n" for n in range(count)))
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


@pytest.mark.parametrize("first", [True, False])
def test_a_store_begun_otherwise_is_refused(first: bool, tmp_path: Path) -> None:
    with_, without = settings_for(tmp_path), settings_for(tmp_path, escrow=None)
    collect(with_ if first else without, teacher=TEACHER, store=tmp_path / "served")
    with pytest.raises(ConfigError, match="escrow key"):
        collect(without if first else with_, teacher=TEACHER, store=tmp_path / "served")
    other = settings_for(tmp_path, escrow=tmp_path / "another")
    with pytest.raises(ConfigError, match="escrow key"):
        collect(other, teacher=TEACHER, store=tmp_path / "served")


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
