"""Which neurons stay: against trying every set, and against solving anew."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.train.narrow import keep_neurons, neurons_worth_keeping


def problem(neurons: int, outputs: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(gram, cross) of a regression on correlated inputs."""
    draw = torch.Generator().manual_seed(seed)
    mixed = torch.randn(neurons, neurons, generator=draw)
    inputs = torch.randn(200, neurons, generator=draw) @ mixed
    targets = torch.randn(200, outputs, generator=draw) + inputs[:, :outputs]
    return inputs.T @ inputs + torch.eye(neurons), inputs.T @ targets


def error(gram: torch.Tensor, cross: torch.Tensor, kept: torch.Tensor) -> float:
    """Least value of tr(B' gram B - 2 B' cross) with only the kept rows."""
    gram, cross = gram.double(), cross.double()
    fit = torch.linalg.solve(gram[kept][:, kept], cross[kept])
    return -float((fit * cross[kept]).sum())


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_one_removal_is_the_best_one(seed: int) -> None:
    gram, cross = problem(6, 3, seed)
    kept = neurons_worth_keeping(gram, cross, 5)
    costs = [error(gram, cross, torch.tensor(c)) for c in combinations(range(6), 5)]
    assert error(gram, cross, kept) == pytest.approx(min(costs), rel=1e-6)


def test_many_removals_are_better_than_dropping_the_smallest() -> None:
    gram, cross = problem(96, 8, 1)
    kept = neurons_worth_keeping(gram, cross, 40)
    assert len(kept) == 40
    assert (kept.diff() > 0).all()
    smallest = torch.linalg.solve(gram, cross).square().sum(dim=1).topk(40).indices
    assert error(gram, cross, kept) < error(gram, cross, smallest)


@pytest.mark.parametrize("neurons", [8, 190])
def test_of_two_neurons_that_are_one_only_one_goes(neurons: int) -> None:
    """Also within one round of many removals, where each looks free because of the other."""
    gram, cross = problem(neurons, 3, 2)
    twice = torch.cat([torch.eye(neurons), torch.eye(neurons)[:2]]).double()
    gram = twice @ gram.double() @ twice.T + 1e-6 * torch.eye(neurons + 2)
    cross = twice @ cross.double()
    kept = neurons_worth_keeping(gram, cross, neurons).tolist()
    assert (0 in kept) != (neurons in kept)
    assert (1 in kept) != (neurons + 1 in kept)


def test_a_cut_mlp_computes_what_the_kept_neurons_did() -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaMLP

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_attention_heads=4, mlp_bias=True
    )  # fmt: skip
    mlp = LlamaMLP(config)
    kept = torch.tensor([1, 4, 5, 20])
    x = torch.randn(3, 16)
    neurons = mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)
    wanted = neurons[:, kept] @ mlp.down_proj.weight[:, kept].T + mlp.down_proj.bias
    keep_neurons(mlp, kept)
    assert torch.allclose(mlp(x), wanted, atol=1e-6)
    assert mlp.down_proj.in_features == mlp.gate_proj.out_features == mlp.intermediate_size == 4
