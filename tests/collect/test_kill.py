"""Killing a collection at random moments: nothing acknowledged is lost, nothing is asked twice.

The collecting process is the command line in a process of its own; SIGKILL leaves it no time for
anything. What is counted: the store after each kill, and the requests that reached the server.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from stillhouse.store import Store
from tests.collect.teacher_server import teacher_server

Start = Callable[[list[str]], subprocess.Popen[str]]
EXAMPLES = Path(__file__).parents[2] / "examples" / "prompts"


def command(prompts: Path, store: Path, teacher: str, **flags: object) -> list[str]:
    flags = {"top-logprobs": 0, "concurrency": 8, "max-tokens": 24} | flags
    given = [part for key, value in flags.items() for part in (f"--{key}", str(value))]
    return [
        sys.executable, "-m", "stillhouse.cli.main", "collect", "--teacher", teacher,
        "--prompts", str(prompts), "--out", str(store), "--json", *given,
    ]  # fmt: skip


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a command; what still runs when the test is over, however it ends, is killed."""
    started: list[subprocess.Popen[str]] = []

    def begin(arguments: list[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
            # A shell's background job ignores interrupts, and its children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            kill(process)


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)


def asked_in(store: Path) -> list[str]:
    """The prompts whose answers the store holds."""
    if not (store / "store.json").exists():
        return []
    with Store(store, "r") as opened:
        return [row["prompt"][-1].text for row in opened.stream(["prompt"])]


def rows(store: Path) -> int:
    if not (store / "store.json").exists():
        return 0
    with Store(store, "r") as opened:
        return len(opened)


def written(folder: Path, count: int) -> tuple[Path, list[str]]:
    texts = [f"prompt {i}" for i in range(count)]
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return file, texts


def killed_again_and_again(
    start: Start, tmp_path: Path, *, count: int, kills: int, seed: int
) -> int:
    """Kills that fell into the middle of the asking; asserts what must hold after each."""
    rng = random.Random(seed)
    file, texts = written(tmp_path, count)
    store, landed = tmp_path / "store", 0
    with teacher_server(delay=0.02) as server:
        arguments = command(file, store, server.spec)
        for _ in range(kills):
            before = rows(store)
            process = start(arguments)
            # Wait for the first new answers, so that most kills fall into the middle.
            patience = time.monotonic() + 30
            while rows(store) <= before and process.poll() is None:
                assert time.monotonic() < patience
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.3))
            kill(process)
            there = asked_in(store)
            landed += before < len(there) < count
            assert max(Counter(there).values()) == 1
            settled = {text: server.asked[text] for text in there}
            if rng.random() < 0.5:  # in half of the cases, also look that a rerun leaves them alone
                rerun = start(arguments)
                time.sleep(rng.uniform(0.5, 1.5))
                kill(rerun)
                assert {text: server.asked[text] for text in there} == settled
                assert set(there) <= set(asked_in(store))
        there = asked_in(store)
        settled = {text: server.asked[text] for text in there}
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["already_there"] == len(there)
        assert report["asked"] == report["answered"] == count - len(there)
        assert Counter(asked_in(store)) == dict.fromkeys(texts, 1)
        assert {text: server.asked[text] for text in there} == settled
    return landed


def test_killed_twice_every_prompt_is_there_once_and_no_kept_answer_is_asked_for_again(
    start: Start, tmp_path: Path
) -> None:
    assert killed_again_and_again(start, tmp_path, count=300, kills=2, seed=1) >= 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_thirty_random_moments_every_prompt_is_there_once(
    start: Start, tmp_path: Path
) -> None:
    assert killed_again_and_again(start, tmp_path, count=6000, kills=30, seed=2) >= 20


def test_ctrl_c_ends_cleanly_with_exit_code_130(start: Start, tmp_path: Path) -> None:
    file, texts = written(tmp_path, 300)
    store = tmp_path / "store"
    with teacher_server(delay=1.5) as server:  # slow enough to be caught, however busy the cores
        process = start(command(file, store, server.spec))
        while rows(store) < 30:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 130, errors
        assert "Traceback" not in errors
        there = asked_in(store)
        assert 30 <= len(there) < 300
        server.delay = 0.0
        done = subprocess.run(command(file, store, server.spec), check=False, timeout=120)
        assert done.returncode == 0
        assert Counter(asked_in(store)) == dict.fromkeys(texts, 1)
        assert {server.asked[text] for text in there} == {1}


def test_a_full_disk_is_a_clear_error_and_the_next_run_goes_on(tmp_path: Path) -> None:
    file, texts = written(tmp_path, 200)
    store = tmp_path / "store"

    def small_disk() -> None:
        # A limit on the size of any one file: a write beyond it fails as on a full disk.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    with teacher_server() as server:
        arguments = command(file, store, server.spec)
        full = subprocess.run(
            arguments, capture_output=True, text=True, check=False, timeout=60,
            preexec_fn=small_disk,
        )  # fmt: skip
        assert full.returncode == 3, full.stderr
        assert str(store) in full.stderr
        assert "Traceback" not in full.stderr
        there = asked_in(store)
        assert 0 < len(there) < 200
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        assert Counter(asked_in(store)) == dict.fromkeys(texts, 1)
        assert {server.asked[text] for text in there} == {1}


# ---- the real teacher ----


def llama_children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def some_prompts(folder: Path, count: int) -> tuple[Path, int]:
    lines = (EXAMPLES / "train_a.jsonl").read_text().splitlines()[:count]
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file, len(lines)


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.timeout(600)
def test_the_real_teacher_survives_kills_of_the_collecting_process(
    start: Start, tmp_path: Path
) -> None:
    rng = random.Random(3)
    file, count = some_prompts(tmp_path, 48)
    store = tmp_path / "store"
    arguments = command(file, store, "smollm2-135m", **{"top-logprobs": 20, "concurrency": 16})
    landed = 0
    for _ in range(4):
        before = rows(store)
        process = start(arguments)
        patience = time.monotonic() + 200
        while rows(store) <= before and process.poll() is None:
            assert time.monotonic() < patience
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 2))
        children = llama_children(process)
        kill(process)
        landed += before < rows(store) < count
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive, "the server outlives the process that started it"
    with Store(store, "r") as opened:
        there = opened.ids()
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert landed >= 2
    with Store(store, "r") as opened:
        exchanges = list(opened)
        assert there <= opened.ids(), "an acknowledged answer is gone"
    assert len(exchanges) == len({exchange.key for exchange in exchanges}) == count
    assert json.loads(done.stdout)["already_there"] == len(there)
    for exchange in exchanges:
        assert exchange.logprobs is not None
        assert exchange.logprobs.top is not None
        assert exchange.logprobs.top.shape[1] == 20
        assert len(exchange.logprobs) == exchange.output_tokens


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.timeout(600)
def test_killing_the_llama_server_in_mid_collection_loses_nothing(
    start: Start, tmp_path: Path
) -> None:
    file, count = some_prompts(tmp_path, 20)
    store = tmp_path / "store"
    arguments = command(
        file, store, "smollm2-135m", **{"top-logprobs": 20, "concurrency": 8, "max-tokens": 12}
    )
    process = start(arguments)
    there: set[str] = set()
    for part in (0.2, 0.5):
        while rows(store) < part * count:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        with Store(store, "r") as opened:
            there |= opened.ids()
        children = [child for child in llama_children(process) if child.is_running()]
        assert children, "the embedded server is no child process"
        for child in children:
            os.kill(child.pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=500)
    if process.returncode == 4:  # a clear error is as good as a recovery, if running again goes on
        assert "run the same command again" in errors
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
    else:
        assert process.returncode == 0, errors
    with Store(store, "r") as opened:
        exchanges = list(opened)
        assert there <= opened.ids()
    assert len(exchanges) == len({exchange.key for exchange in exchanges}) == count
