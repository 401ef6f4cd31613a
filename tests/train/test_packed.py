"""Packed batches: the same hidden states and gradients as padded ones, and no trace is saved."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from stillhouse.models.local import LocalModel
from stillhouse.train import packed
from stillhouse.train.batches import Batch, collate
from stillhouse.train.layers import precision
from stillhouse.train.packed import attention, hidden_states, read_packed
from stillhouse.train.prepare import save_folder
from stillhouse.train.targets import Example


def batch_of(*rows: tuple[list[int], int]) -> Batch:
    """Token ids and how many of them are the prompt."""
    return collate([Example(str(n), np.array(ids), p) for n, (ids, p) in enumerate(rows)])


def example(start: list[int], count: int, seed: int) -> list[int]:
    own = np.random.default_rng(seed).integers(3, 60, count)
    return [*start, *own.tolist()]


SHARED = [1, 9, 8, 7, 6, 5]
BATCHES = {
    "a common beginning": batch_of(
        (example(SHARED, 9, 1), 9), (example(SHARED, 14, 2), 8), (example(SHARED, 3, 3), 8)
    ),
    "none": batch_of(([4, *example([], 6, 4)], 3), ([5, *example([], 11, 5)], 2)),
    "one example": batch_of((example(SHARED, 10, 6), 8)),
    "the same example twice": batch_of((example(SHARED, 10, 7), 8), (example(SHARED, 10, 7), 8)),
    "answers that begin alike": batch_of(
        (example([*SHARED, 3, 3], 5, 8), 6), (example([*SHARED, 3, 3], 8, 9), 6)
    ),
}


def read(network: Any, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """Hidden states, and the gradients of a sum of them with fixed weights."""
    hidden = hidden_states(network, batch)
    weights = torch.sin(torch.arange(hidden.numel()).float()).view_as(hidden)
    network.zero_grad()
    (hidden * weights).sum().backward()
    grads = [p.grad for p in network.base_model.parameters() if p.grad is not None]
    return hidden.detach(), [g.clone() for g in grads]


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES.keys())
def test_packed_is_padded(teacher: LocalModel, batch: Batch) -> None:
    plain = copy.deepcopy(teacher.network).float()
    changed = copy.deepcopy(plain)
    read_packed(changed)
    (hidden, grads), (ours, our_grads) = read(plain, batch), read(changed, batch)
    assert torch.allclose(hidden, ours, atol=2e-5)
    assert len(grads) == len(our_grads) > 0
    for theirs, mine in zip(grads, our_grads, strict=True):
        assert float((theirs - mine).norm()) <= 1e-4 * float(theirs.norm()) + 1e-6


def test_common_tokens_are_read_once_and_padding_never(
    teacher: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = copy.deepcopy(teacher.network)
    read_packed(changed)
    seen: list[int] = []
    changed.model.norm.register_forward_hook(lambda _m, _a, out: seen.append(out.shape[1]))
    batch = BATCHES["a common beginning"]
    hidden_states(changed, batch)
    # behind the six shared tokens, all of each example but its last
    assert seen == [len(SHARED) + 8 + 13 + 2]
    monkeypatch.setattr(packed, "_LONGEST", 10)
    padded = hidden_states(changed, batch)  # longer rows stay padded, and give the same
    assert seen[1:] == [batch.input_ids.shape[1]]
    monkeypatch.undo()
    assert torch.allclose(padded, hidden_states(changed, batch), atol=2e-5)


@pytest.mark.parametrize("last", [7, 4, 1])
def test_attention_is_torchs(last: int) -> None:
    generator = torch.Generator().manual_seed(last)
    q = torch.randn(2, last, 6, 8, generator=generator)
    k, v = torch.randn(2, 2, 7, 3, 8, generator=generator)
    parts = [t.double().requires_grad_() for t in (q, k, v)]
    mask = torch.ones(last, 7, dtype=torch.bool).tril(7 - last)
    queries, keys, values = (t.transpose(1, 2) for t in parts)
    wanted = functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, enable_gqa=True, scale=1.0
    ).transpose(1, 2)
    wanted.square().sum().backward()
    ours = [t.detach().clone().requires_grad_() for t in (q, k, v)]
    found = attention(*ours)
    found.square().sum().backward()
    assert torch.allclose(found.double(), wanted, atol=1e-5)
    for mine, theirs in zip(ours, parts, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert torch.allclose(mine.grad.double(), theirs.grad, atol=1e-4)


def test_scores_stay_float32_under_bfloat16() -> None:
    """A score of 40.1 among scores of 40 is lost in bfloat16, whose next number is 40.25."""
    q = torch.tensor([1.0, 0.1]).view(1, 1, 1, 2)
    k = torch.tensor([[40.0, 0.0], [40.0, 1.0]]).view(1, 2, 1, 2)
    v = torch.tensor([[0.0], [1.0]]).view(1, 2, 1, 1).expand(1, 2, 1, 2)
    with precision(torch.bfloat16):
        seen = attention(q, k, v.contiguous())
    assert float(seen[0, 0, 0, 0]) == pytest.approx(1 / (1 + np.exp(-0.1)), abs=0.003)


def test_a_saved_student_is_an_ordinary_one(teacher: LocalModel, tmp_path: Path) -> None:
    network = copy.deepcopy(teacher.network)
    read_packed(network)
    save_folder(network, teacher.tokenizer, tmp_path / "student")
    assert "stillhouse" not in (tmp_path / "student" / "config.json").read_text()


def test_a_window_is_left_to_torch(teacher: LocalModel) -> None:
    network = copy.deepcopy(teacher.network)
    network.config.sliding_window = 4
    read_packed(network)
    assert network.config._attn_implementation == "sdpa"
