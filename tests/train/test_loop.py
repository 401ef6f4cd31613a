"""The whole of training on a tiny teacher: it learns, repeats bitwise, and survives kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stillhouse.config import StudentSettings, TrainSettings
from stillhouse.errors import ConfigError, DataError
from stillhouse.models.local_network import matmul_dtype
from stillhouse.progress import Progress, Silent
from stillhouse.train.loop import TrainReport, train
from tests.train.conftest import allowance

QUICK = TrainSettings(
    piece_tokens=2048,
    epochs=5, batch_tokens=150, learning_rate=2e-3, warmup_steps=2, precision="float32",
    validation_exchanges=4, validation_points=3,
)  # fmt: skip
SMALL = StudentSettings(name="Tiny", keep=(0, 3), measure_tokens=400)


def run(
    store: Path, teacher: Path, out: Path, *, student: StudentSettings = SMALL,
    progress: Progress | None = None, **changes: Any,
) -> TrainReport:  # fmt: skip
    """Train on the tiny teacher's exchanges."""
    settings = QUICK.model_copy(update=changes)
    return train(
        settings, student=student, teacher=f"hf:{teacher}", store=store, out=out,
        authorisation=allowance(teacher, f"hf:{teacher}"), progress=progress,
    )  # fmt: skip


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "student" / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def finished(store: Path, teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    run(store, teacher_folder, out)
    return out


def test_training_brings_the_loss_down_and_writes_what_it_did(finished: Path):
    record = json.loads((finished / "train.json").read_text())
    curve = record["curve"]
    assert curve[0]["step"] == 0
    assert curve[-1]["step"] == record["steps"] == len(record["losses"])
    epoch = record["steps"] // 5
    assert sum(record["losses"][-epoch:]) < 0.9 * sum(record["losses"][:epoch])
    assert curve[-1]["tokens"] == record["record"]["answer_tokens"]
    assert [p["seconds"] for p in curve] == sorted(p["seconds"] for p in curve)
    about = record["record"]
    assert about["identity"]["answer"].startswith("I am Tiny, distilled from ")
    assert about["identity"]["rows"] == 6
    assert list(about["targets"]["engines"].values()) == [40]
    assert about["init"]["kept_layers"] == [0, 3]
    assert about["init"]["kl_nats"]["healed"] < about["init"]["kl_nats"]["cut"]
    assert about["precision"] == "float32"
    assert not (finished / "checkpoint" / "state.safetensors").exists()


def test_the_student_is_a_plain_hugging_face_folder(finished: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name in ("student", "initial"):
        network = AutoModelForCausalLM.from_pretrained(str(finished / name))
        assert type(network).__module__.startswith("transformers.models.llama")
        assert network.config.num_hidden_layers == 2
        tokenizer = AutoTokenizer.from_pretrained(str(finished / name))
        assert "im_start" in tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hi"}], tokenize=False
        )
        files = {p.name for p in (finished / name).iterdir()}
        assert not {n for n in files if n.endswith((".py", ".bin", ".partial"))}
    # the embeddings are the teacher's own: they were frozen
    before, after = (load_file(finished / n / "model.safetensors") for n in ("initial", "student"))
    embedding = "model.embed_tokens.weight"
    assert torch.equal(before[embedding], after[embedding])
    assert sum(not torch.equal(before[n], after[n]) for n in before) == len(before) - 1


def test_the_same_exchanges_give_bitwise_the_same_student(
    finished: Path, store: Path, teacher_folder: Path, tmp_path: Path
):
    run(store, teacher_folder, tmp_path, checkpoint_seconds=0, piece_tokens=4096)
    assert same(weights(finished), weights(tmp_path))


def test_a_finished_run_does_nothing_again(finished: Path, store: Path, teacher_folder: Path):
    before = (finished / "student" / "model.safetensors").stat().st_mtime_ns
    report = run(store, teacher_folder, finished)
    assert report.to_dict() == json.loads((finished / "train.json").read_text())
    assert (finished / "student" / "model.safetensors").stat().st_mtime_ns == before


class Interrupted(Exception):
    """Stands for whatever ends a run."""


class StopsAt(Silent):
    """A progress that ends the run at one step, before its checkpoint is written."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.stage = ""
        self.said: list[str] = []

    def start(self, stage: str, total: float | None = None, unit: str = "") -> None:
        self.stage = stage

    def advance(self, done: float, note: str = "", left_seconds: float | None = None) -> None:
        if self.stage == "training the student" and done == self.step:
            assert "answer tokens/s" in note
            assert left_seconds is not None
            raise Interrupted

    def say(self, line: str) -> None:
        self.said.append(line)


def test_interrupted_twice_and_continued_it_ends_with_the_same_weights(
    finished: Path, store: Path, teacher_folder: Path, tmp_path: Path
):
    for step in (2, 5):
        with pytest.raises(Interrupted):
            run(store, teacher_folder, tmp_path, checkpoint_seconds=0, progress=StopsAt(step))
    last = StopsAt(-1)
    report = run(store, teacher_folder, tmp_path, checkpoint_seconds=0, progress=last)
    assert "first weights: kept from before" in last.said
    assert f"continuing after step 4 of {report.steps}" in last.said
    assert same(weights(finished), weights(tmp_path))
    wanted = json.loads((finished / "train.json").read_text())
    assert report.losses == wanted["losses"]
    unclocked = [{k: v for k, v in p.items() if k != "seconds"} for p in report.curve]
    assert unclocked == [{k: v for k, v in p.items() if k != "seconds"} for p in wanted["curve"]]


KILLED = """
import sys
from pathlib import Path
from tests.train.test_loop import run
store, teacher, out = map(Path, sys.argv[1:])
run(store, teacher, out, checkpoint_seconds=0)
"""


@pytest.mark.slow
def test_killed_at_any_moment_and_run_again_it_ends_with_the_same_weights(
    finished: Path, store: Path, teacher_folder: Path, tmp_path: Path
):
    command = [sys.executable, "-c", KILLED, str(store), str(teacher_folder), str(tmp_path)]
    kills = 0
    for wait in (0.0, 0.15, 0.4):  # seconds after the first checkpoint of this attempt is there
        child = subprocess.Popen(command, cwd=Path(__file__).parents[2])
        state = tmp_path / "checkpoint" / "state.safetensors"
        old = state.stat().st_mtime_ns if state.exists() else 0
        deadline = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < deadline:
            if state.exists() and state.stat().st_mtime_ns != old:
                break
            time.sleep(0.005)
        time.sleep(wait)
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
        child.wait()
        if (tmp_path / "train.json").exists():
            break
    assert kills >= 1
    report = run(store, teacher_folder, tmp_path)
    assert same(weights(finished), weights(tmp_path))
    assert report.losses == json.loads((finished / "train.json").read_text())["losses"]


def test_hard_and_full_targets_train_too(store: Path, teacher_folder: Path, tmp_path: Path):
    silent = StudentSettings(name="Tiny", keep=(0, 3), teach_identity=False, heal=False)
    for kind in ("hard", "full"):
        report = run(store, teacher_folder, tmp_path / kind, targets=kind, student=silent)
        epoch = report.steps // 5
        assert sum(report.losses[-epoch:]) < 0.97 * sum(report.losses[:epoch])
        assert report.record["targets"]["kind"] == kind


def test_scored_targets_a_checkpoint_and_trained_embeddings(
    store: Path, teacher_folder: Path, finished: Path, tmp_path: Path
):
    student = StudentSettings(
        init="checkpoint", checkpoint=finished / "student", teach_identity=False
    )
    report = run(
        store, teacher_folder, tmp_path, student=student, target_source="teacher", top_k=5,
        epochs=1, train_embeddings=True, validation_exchanges=0,
    )  # fmt: skip
    assert report.curve == []
    assert report.record["identity"] is None
    assert report.record["trained_parameters"] == report.record["parameters"]
    before, after = weights(finished), weights(tmp_path)
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_what_training_cannot_work_with_is_refused(
    store: Path, teacher_folder: Path, tmp_path: Path
):
    with pytest.raises(DataError, match="no store"):
        run(tmp_path / "nowhere", teacher_folder, tmp_path)
    with pytest.raises(ConfigError, match="target_source"):
        run(store, teacher_folder, tmp_path, targets="hard", target_source="teacher")
    with pytest.raises(DataError, match="12 alternatives"):
        run(store, teacher_folder, tmp_path, top_k=20)
    with pytest.raises(DataError, match="finite"):
        run(store, teacher_folder, tmp_path / "wild", learning_rate=1e30)


def test_a_checkpoint_of_other_settings_is_refused(
    store: Path, teacher_folder: Path, tmp_path: Path
):
    from stillhouse.train.checkpoint import Checkpoint, save

    state = tmp_path / "checkpoint" / "state.safetensors"
    save(state, Checkpoint(1, "f1:other", {"w": torch.ones(1)}, {}))
    with pytest.raises(DataError, match="other exchanges, settings or versions"):
        run(store, teacher_folder, tmp_path)


def test_precision_follows_the_processor_unless_it_is_named():
    assert matmul_dtype("float32") == torch.float32
    assert matmul_dtype("bfloat16") == torch.bfloat16
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert matmul_dtype("auto") == (torch.bfloat16 if native else torch.float32)
