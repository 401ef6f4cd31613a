"""Packed batches: the same hidden states and gradients as padded ones, and no trace is saved."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional

from stillhouse.models.local import LocalModel
from stillhouse.train import packed
from stillhouse.train.batches import Batch, collate
from stillhouse.train.layers import precision
from stillhouse.train.packed import attention, hidden_states, packing, read_packed
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
    assert changed.config._attn_implementation == packed._NAME
    changed.model.norm.register_forward_hook(lambda _m, _a, out: seen.append(out.shape[1]))
    batch = BATCHES["a common beginning"]
    hidden_states(changed, batch)
    # behind the six shared tokens, all of each example but its last
    assert seen == [len(SHARED) + 8 + 13 + 2]
    monkeypatch.setattr(packed, "_PAIRS_BYTES", 0)
    padded = hidden_states(changed, batch)  # what is too large stays padded, and gives the same
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_stay_float32_under_bfloat16(dtype: torch.dtype) -> None:
    """A score of 40.125 among scores of 40 is lost in bfloat16, whose next number is 40.25."""
    q = torch.tensor([1.0, 0.125], dtype=dtype).view(1, 1, 1, 2)
    k = torch.tensor([[40.0, 0.0], [40.0, 1.0]], dtype=dtype).view(1, 2, 1, 2)
    v = torch.tensor([[0.0], [1.0]]).view(1, 2, 1, 1).expand(1, 2, 1, 2)
    with precision(torch.bfloat16):
        seen = attention(q, k, v.contiguous())
    assert float(seen[0, 0, 0, 0]) == pytest.approx(1 / (1 + np.exp(-0.125)), abs=0.003)


def test_padded_attention_gets_float32_and_gives_the_same(
    teacher: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.arange(3, 40)[None]
    plain, changed = copy.deepcopy(teacher.network), copy.deepcopy(teacher.network)
    read_packed(changed)
    with torch.no_grad():
        assert torch.allclose(plain(ids).logits, changed(ids).logits, atol=1e-5)
    seen: list[tuple[torch.dtype, bool]] = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, *rest: object, **more: object) -> torch.Tensor:
        seen.append((query.dtype, torch.is_autocast_enabled("cpu")))
        return kernel(query, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    with torch.no_grad(), precision(torch.bfloat16):
        changed(ids)
        assert set(seen) == {(torch.float32, False)}
        seen.clear()
        plain(ids)
        assert {casts for _, casts in seen} == {True}  # there the kernel is given bfloat16


def test_a_saved_student_is_an_ordinary_one(teacher: LocalModel, tmp_path: Path) -> None:
    network = copy.deepcopy(teacher.network)
    read_packed(network)
    save_folder(network, teacher.tokenizer, tmp_path / "student")
    assert "stillhouse" not in (tmp_path / "student" / "config.json").read_text()


@pytest.mark.parametrize("setting", [{"sliding_window": 4}, {"attention_dropout": 0.1}])
def test_what_packing_would_change_is_left_to_torch(
    teacher: LocalModel, setting: dict[str, Any]
) -> None:
    network = copy.deepcopy(teacher.network)
    vars(network.config).update(setting)
    read_packed(network)
    assert network.config._attn_implementation == "sdpa"


SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "packable"),
    [("Qwen3", True), ("Qwen2", True), ("Gemma", True), ("StableLm", False), ("Lfm2", False)],
)
def test_which_networks_can_be_packed_is_tried(name: str, packable: bool) -> None:
    """StableLM's layers do not hand on what packing tells them; LFM2's convolve over tokens."""
    torch.manual_seed(0)
    kinds = {"layer_types": ["conv", "full_attention"]} if name == "Lfm2" else {}
    config = getattr(transformers, f"{name}Config")(**SIZES, **kinds)
    network = getattr(transformers, f"{name}ForCausalLM")(config).float()
    batch = BATCHES["a common beginning"]
    wanted = hidden_states(network, batch).detach()
    read_packed(network)
    assert (network.config._attn_implementation == packed._NAME) == packable
    found = hidden_states(network, batch).detach()
    assert float(torch.dist(found, wanted)) <= 1e-5 * float(wanted.norm())


def test_a_network_is_as_it_was_behind_packing(teacher: LocalModel) -> None:
    network = copy.deepcopy(teacher.network)
    with packing(network):
        assert network.config._attn_implementation == packed._NAME
        ids = torch.tensor([[0, 0, 5, 6], [5, 6, 7, 8]])
        mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
        places = (mask.cumsum(1) - 1).clamp_min(0)
        with torch.no_grad():
            ours = network(ids, attention_mask=mask, position_ids=places).logits
    assert network.config._attn_implementation == "sdpa"
    with torch.no_grad():  # a mask is not forgotten meanwhile
        theirs = network(ids, attention_mask=mask, position_ids=places).logits
    assert torch.allclose(ours[mask.bool()], theirs[mask.bool()], atol=1e-5)
