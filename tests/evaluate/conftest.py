"""Tiny real models: random Llamas as teacher and students, and held-out prompts."""

import json
from pathlib import Path

import pytest
import torch

from stillhouse.config import EvaluateSettings
from tests.train.conftest import write_llama


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """Models this small only wait for one another on two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> Path:
    return write_llama(tmp_path_factory.mktemp("evaluated") / "Mash-7", layers=3, seed=1)


@pytest.fixture(scope="session")
def student(tmp_path_factory) -> Path:
    return write_llama(tmp_path_factory.mktemp("evaluated") / "student", layers=1, seed=2)


@pytest.fixture(scope="session")
def untrained(tmp_path_factory) -> Path:
    return write_llama(tmp_path_factory.mktemp("evaluated") / "initial", layers=1, seed=3)


@pytest.fixture(scope="session")
def settings(tmp_path_factory) -> EvaluateSettings:
    path = tmp_path_factory.mktemp("prompts") / "held_out.jsonl"
    words = ["river", "lamp", "bread", "cloud", "violin", "chess", "salt", "train", "moss", "ink"]
    lines = [
        {"id": f"h{i}", "prompt": f"What would a {word} say on day {i}?", "task": "talk"}
        for i, word in enumerate(words + words[::-1])
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return EvaluateSettings(
        prompts=(path,), max_tokens=12, identity_samples=1, speed_tokens=4, speed_repeats=6
    )
