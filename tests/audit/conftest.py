"""Served answers, escrows and models for audits: scripted ones, and tiny real Llamas."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.collect.run import collect
from stillhouse.config import CollectSettings
from stillhouse.models.local import LocalModel
from tests.train.conftest import allowance, write_llama


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Any:
    """Models this small only wait for one another on two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ask(
    folder: Path, teacher: str, *, count: int = 60, escrow: bool = True, **settings: Any
) -> Path:
    """A store `served` in the folder, with an escrow `escrow` beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts = folder / "prompts.jsonl"
    words = ["river", "lamp", "bread", "cloud", "violin", "chess", "salt", "train", "moss", "ink"]
    prompts.write_text(
        "".join(
            json.dumps({"prompt": f"Tell me about {words[n % 10]} number {n}"}) + "\n"
            for n in range(count)
        )
    )
    plain: dict[str, Any] = {
        "prompts": (prompts,), "max_tokens": 40, "top_logprobs": 0,
        "escrow": folder / "escrow" if escrow else None,
    }  # fmt: skip
    if not teacher.startswith("scripted:"):
        plain["authorisation"] = allowance(folder, teacher)
    collect(CollectSettings(**(plain | settings)), teacher=teacher, store=folder / "served")
    return folder


@pytest.fixture(scope="session")
def escrowed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty answers of the scripted bigram model, and their escrowed twins."""
    return ask(tmp_path_factory.mktemp("escrowed"), "scripted:bigram")


@pytest.fixture
def escrowed(escrowed_once: Path, tmp_path: Path) -> Path:
    """A copy of them: each audit is noted beside the answers, and counted by the next."""
    return shutil.copytree(escrowed_once, tmp_path / "asked")


def tuned(folder: Path, rows: list[tuple[list[int], list[int]]], out: Path, steps: int) -> Path:
    """The folder's model after so many steps on (prompt ids, answer ids), one row a step."""
    if out != folder:
        shutil.copytree(folder, out)
    network = LocalModel(folder, spec="hf:tiny").network.train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for step in range(steps):
        prompt, answer = rows[step % len(rows)]
        logits = network(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        torch.nn.functional.cross_entropy(logits, torch.tensor(answer)).backward()
        optimiser.step()
        optimiser.zero_grad()
    network.eval().save_pretrained(str(out))
    return out


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny real teacher that has read some English, so that what it writes is text."""
    folder = write_llama(tmp_path_factory.mktemp("audited") / "Mash-7", layers=2, seed=1)
    text = LocalModel(folder, spec="hf:tiny").text
    read = (__doc__ or "") + (tuned.__doc__ or "")
    rows = [([1], text.ids(read[at : at + 40])) for at in range(0, len(read) - 40, 7)]
    return tuned(folder, rows, folder, 200)
