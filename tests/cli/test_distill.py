"""The main job through the command line, on a tiny real teacher: prompts in, report out,
resumable.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from stillhouse.cli.main import main
from stillhouse.store import Store
from tests.html_page import needs_nothing_but_itself
from tests.train.conftest import allowance, write_llama

ROOT = Path(__file__).resolve().parent.parent.parent
ESTIMATES = ("kl_nats", "top1_agreement", "nll_nats", "ece")


def write_prompts(path: Path, count: int, subject: str) -> None:
    lines = [
        json.dumps({"prompt": f"{subject} number {i}: what is {i} times {i + 3}?"})
        for i in range(count)
    ]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher, prompts, an authorisation (nobody knows this teacher) and a
    recipe.
    """
    folder = tmp_path_factory.mktemp("workshop")
    teacher = f"hf:{write_llama(folder / 'teacher')}"
    write_prompts(folder / "train.jsonl", 40, "Sum")
    write_prompts(folder / "held_out.jsonl", 12, "Riddle")
    allowance(folder, teacher)
    recipe: dict[str, Any] = {
        "name": "tiny",
        "teacher": teacher,
        "runs": str(folder / "runs"),
        "student": {"name": "Tiny", "keep": [0, 2, 4, 5], "measure_tokens": 300},
        "collect": {
            "prompts": ["train.jsonl"], "authorisation": "authorisation.yaml", "max_tokens": 24,
            "top_logprobs": 20,
        },
        "train": {
            "epochs": 3, "batch_tokens": 200, "checkpoint_seconds": 0, "precision": "float32",
        },
        "evaluate": {
            "prompts": ["held_out.jsonl"], "max_tokens": 16, "speed_tokens": 4, "speed_repeats": 6,
        },
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture(scope="module")
def finished(workshop: Path) -> Path:
    assert main(["distill", str(workshop / "recipe.yaml"), "--quiet"]) == 0
    return workshop / "runs" / "tiny"


def stages(run: Path) -> dict[str, Any]:
    return json.loads((run / "stages.json").read_text())


def test_the_report_has_every_field_that_is_promised(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    assert report["teacher"]["spec"].startswith("hf:")
    assert report["student"]["parameters"] < report["teacher"]["parameters"]
    assert report["student"]["size_bytes"] > 0
    for side in ("before", "after"):
        assert report["held_out"][side]["n_tokens"] > 0
        for name in ESTIMATES:
            found = report["held_out"][side][name]
            assert found["low"] <= found["value"] <= found["high"]
            assert found["n"] == 12
    assert report["speed"]["teacher_tokens_per_s"] > 0
    assert report["speed"]["student_tokens_per_s"] > 0
    assert {"collect", "train", "evaluate", "total"} <= report["seconds"].keys()
    assert report["peak_memory_bytes"] > 2**26
    assert report["exchanges"] == 40
    assert report["terms"]["authorised_by"].startswith("A. Tester")
    assert report["student"]["kept_layers"] == [0, 2, 4, 5]
    assert len(report["samples"]) == 12
    assert report["curve"][-1]["loss"] > 0


def test_the_page_is_self_contained(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert "Tiny" in page
    needs_nothing_but_itself(page)


def test_a_finished_run_is_not_done_again(
    finished: Path, workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [finished / "student" / "model.safetensors", finished / "train.json"]
    began, spent = time.monotonic(), stages(finished)["seconds_total"]
    before = [path.stat().st_mtime_ns for path in made]
    with Store(finished / "exchanges", "r") as store:
        ids = store.ids()
    assert main(["distill", str(workshop / "recipe.yaml"), "--json"]) == 0
    streams = capsys.readouterr()
    assert streams.err.count("already done") == 3
    assert json.loads(streams.out)["held_out"]["after"]["kl_nats"]["n"] == 12
    assert [path.stat().st_mtime_ns for path in made] == before
    with Store(finished / "exchanges", "r") as store:
        assert store.ids() == ids
    # this command's time, and not again that of all that this process did before
    assert 0 < stages(finished)["seconds_total"] - spent <= time.monotonic() - began


def test_a_changed_setting_of_a_finished_stage_is_refused(
    finished: Path, workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", str(workshop / "recipe.yaml"), "train.learning_rate=0.01"]) == 2
    words = capsys.readouterr().err
    assert "train.learning_rate: 0.0002 -> 0.01" in words
    assert "--again train" in words


def test_a_dry_run_says_what_is_done_and_does_nothing(
    finished: Path, workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", str(workshop / "recipe.yaml"), "--dry-run", "--json"]) == 0
    plan = {row["stage"]: row["state"] for row in json.loads(capsys.readouterr().out)["plan"]}
    assert plan == {"collect": "done", "train": "done", "evaluate": "done", "report": "open"}
    arguments = [str(workshop / "recipe.yaml"), "name=never", "--dry-run", "--json"]
    assert main(["distill", *arguments]) == 0
    assert not (workshop / "runs" / "never").exists()


def test_a_second_command_in_the_same_run_is_refused(
    finished: Path, workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import fcntl

    with (finished / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(["distill", str(workshop / "recipe.yaml")]) == 3
    assert "another process works in it" in capsys.readouterr().err


def test_the_report_can_be_written_again_by_name(
    finished: Path, workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / "report.html").unlink()
    assert main(["report", "tiny", "--runs", str(workshop / "runs"), "--quiet"]) == 0
    assert (finished / "report.html").exists()
    assert "KL(teacher || student)" in capsys.readouterr().out


def test_a_run_of_relative_paths_is_found_again(
    finished: Path, workshop: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """As the README does it: recipe and run named from the current folder, from any folder."""
    for start in (workshop, workshop.parent):
        monkeypatch.chdir(start)
        recipe = os.path.relpath(workshop / "recipe.yaml")
        runs = os.path.relpath(workshop / "runs")
        assert main(["distill", recipe, f"runs={runs}", "--quiet"]) == 0, capsys.readouterr().err
        assert main(["report", "tiny", "--runs", runs, "--quiet"]) == 0, capsys.readouterr().err
        again = [str(finished / "run.yaml"), f"runs={runs}", "name=tiny", "--dry-run"]
        assert main(["distill", *again]) == 0, capsys.readouterr().err


def test_a_finished_run_can_be_talked_to(
    finished: Path, workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = str(workshop / "runs")
    arguments = [
        "chat",
        "tiny",
        "--runs",
        runs,
        "--message",
        "Hello?",
        "--max-tokens",
        "8",
        "--json",
    ]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "run:tiny"
    assert isinstance(found["answer"], str)


def test_a_stage_whose_input_is_missing_says_what_to_run(
    workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(workshop / "recipe.yaml"), "name=empty"]) == 3
    assert "stillhouse collect" in capsys.readouterr().err


def test_a_recipe_that_names_its_exchanges_asks_nothing(
    finished: Path, workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Store(finished / "exchanges", "r") as store:
        ids = store.ids()
    more = workshop / "more.jsonl"
    write_prompts(more, 3, "Another")
    arguments = [f"exchanges={finished / 'exchanges'}", f"collect.prompts={more}", "train.epochs=1"]
    assert main(["distill", str(workshop / "recipe.yaml"), "name=given", *arguments]) == 0
    assert "nothing is asked" in capsys.readouterr().err
    with Store(finished / "exchanges", "r") as store:
        assert store.ids() == ids


def test_exchanges_at_hand_are_trained_on_without_any_prompts(
    finished: Path, workshop: Path, tmp_path: Path
) -> None:
    recipe = yaml.safe_load((workshop / "recipe.yaml").read_text())
    del recipe["evaluate"], recipe["collect"]["prompts"]
    recipe["collect"]["authorisation"] = str(workshop / "authorisation.yaml")
    recipe |= {"exchanges": str(finished / "exchanges"), "runs": str(tmp_path), "name": "bare"}
    recipe["train"]["epochs"] = 1
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", str(tmp_path / "bare.yaml"), "--quiet"]) == 0
    assert (tmp_path / "bare" / "student" / "config.json").exists()


def test_a_stage_whose_input_changed_is_refused_and_not_redone(
    finished: Path, workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(finished / "exchanges", tmp_path / "exchanges")
    arguments = [str(workshop / "recipe.yaml"), "name=grows", f"exchanges={copy}", "train.epochs=1"]
    assert main(["train", *arguments, "--quiet"]) == 0
    student = workshop / "runs" / "grows" / "student" / "model.safetensors"
    made = student.read_bytes()
    with Store(copy) as store:
        store.append_many([replace(next(iter(store)), account="another")])
    assert main(["train", *arguments, "--quiet"]) == 2
    assert "other exchanges than there are now" in capsys.readouterr().err
    assert student.read_bytes() == made
    assert main(["train", *arguments, "--quiet", "--again"]) == 0


def test_an_unknown_teacher_is_refused_before_the_first_request(
    workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(workshop / "recipe.yaml"), "name=refused", "collect.authorisation=null"]
    assert main(["distill", *arguments]) == 5
    assert "unknown" in capsys.readouterr().err
    assert not (workshop / "runs/refused/exchanges").exists()


def test_an_unknown_teachers_exchanges_are_not_trained_on_either(
    finished: Path, workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(workshop / "recipe.yaml"), "name=refused", "collect.authorisation=null"]
    arguments.append(f"exchanges={finished / 'exchanges'}")
    assert main(["train", *arguments, "--quiet"]) == 5
    assert "collect.authorisation" in capsys.readouterr().err
    assert not (workshop / "runs/refused/student").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_student(workshop: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "stillhouse.cli.main",
        "distill",
        str(workshop / "recipe.yaml"),
    ]
    moments, kills = random.Random(5), 0
    while True:
        process = subprocess.Popen(
            [*command, "name=killed"],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + moments.uniform(2.5, 12.0 + 4 * kills)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if process.poll() is not None:
            assert process.returncode == 0
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills > 0
    runs = workshop / "runs"
    with Store(runs / "killed" / "exchanges", "r") as store:
        asked = [exchange.key for exchange in store]
    assert len(asked) == len(set(asked)) == 40
    again = [*command, "name=straight", f"exchanges={runs / 'killed' / 'exchanges'}", "--quiet"]
    subprocess.run(again, cwd=ROOT, check=True)
    one, other = (load_file(runs / n / "student/model.safetensors") for n in ("killed", "straight"))
    assert one.keys() == other.keys()
    assert all(bool((one[name] == other[name]).all()) for name in one)
