"""Checkpoints: whole or not there, refused when they are another run's."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stillhouse.errors import DataError
from stillhouse.train.checkpoint import (
    Checkpoint,
    load,
    optimiser_tensors,
    restore_optimiser,
    save,
    write_atomically,
)


def checkpoint(step: int = 3, size: int = 10) -> Checkpoint:
    return Checkpoint(step, "f1:mine", {"w": torch.arange(size).float() * step}, {"tokens": step})


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path):
    path = tmp_path / "deep" / "state"
    assert load(path, "f1:mine") is None
    save(path, checkpoint())
    found = load(path, "f1:mine")
    assert found is not None
    assert (found.step, found.plain) == (3, {"tokens": 3})
    assert torch.equal(found.tensors["w"], checkpoint().tensors["w"])
    assert [p.name for p in path.parent.iterdir()] == ["state"]


def test_another_runs_and_damaged_checkpoints_are_refused(tmp_path: Path):
    path = tmp_path / "state"
    save(path, checkpoint())
    with pytest.raises(DataError, match="other exchanges"):
        load(path, "f1:another")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match="not readable"):
        load(path, "f1:mine")
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(1)}, path)
    with pytest.raises(DataError, match="not readable"):
        load(path, "f1:mine")


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from stillhouse.errors import DataError
from stillhouse.train.checkpoint import Checkpoint, save
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
save(path, Checkpoint(1, "f1:mine", {"w": torch.ones(10)}, {}))
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    save(path, Checkpoint(2, "f1:mine", {"w": torch.ones(1_000_000)}, {}))
except DataError as problem:
    print(problem)
"""


def test_a_disk_that_refuses_leaves_the_previous_checkpoint(tmp_path: Path):
    path = tmp_path / "state"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=True
    )
    assert "could not be written" in done.stdout
    assert "last checkpoint" in done.stdout
    found = load(path, "f1:mine")
    assert found is not None
    assert found.step == 1
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 50_000


def test_a_folder_takes_the_place_of_the_old_one_as_a_whole(tmp_path: Path):
    path = tmp_path / "student"

    def write(text: str, name: str):
        def into(partial: Path) -> None:
            partial.mkdir()
            (partial / name).write_text(text)

        return into

    write_atomically(path, write("one", "a"))
    write_atomically(path, write("two", "b"))
    assert {p.name: p.read_text() for p in path.iterdir()} == {"b": "two"}


def test_an_optimiser_goes_on_as_if_it_had_never_stopped():
    def make() -> tuple[torch.nn.Linear, torch.optim.AdamW]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)

    def step(layer: torch.nn.Linear, optimiser: torch.optim.AdamW, seed: int) -> None:
        torch.manual_seed(seed)
        layer(torch.randn(4, 3)).pow(2).sum().backward()
        optimiser.step()
        optimiser.zero_grad()

    def names(layer: torch.nn.Linear) -> dict[int, str]:
        return {id(p): name for name, p in layer.named_parameters()}

    whole, whole_optimiser = make()
    for seed in range(6):
        step(whole, whole_optimiser, seed)
    first, first_optimiser = make()
    for seed in range(3):
        step(first, first_optimiser, seed)
    second, second_optimiser = make()
    second.load_state_dict(first.state_dict())
    tensors = optimiser_tensors(first_optimiser, names(first))
    restore_optimiser(second_optimiser, names(second), tensors)
    for seed in range(3, 6):
        step(second, second_optimiser, seed)
    assert torch.equal(whole.weight, second.weight)
    assert torch.equal(whole.bias, second.bias)
