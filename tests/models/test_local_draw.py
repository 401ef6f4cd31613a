"""Draws against a numpy oracle that sorts and sums the whole vocabulary in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from stillhouse.exchange import Sampling
from stillhouse.models.local_draw import Shape, draw, most_likely, survivors, uniforms
from tests.models.conftest import ask


def logits(rows: int, width: int, scale: float = 3.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * scale


def oracle(row: np.ndarray, number: float, shape: Shape) -> int:
    """One token by sorting everything."""
    order = np.argsort(-row, kind="stable")
    scaled = row[order].astype(np.float64) / shape.temperature
    weights = np.exp(scaled - scaled[0])
    if shape.top_k:
        order, weights = order[: shape.top_k], weights[: shape.top_k]
    probabilities = weights / weights.sum()
    before = np.cumsum(probabilities) - probabilities
    kept = (before < shape.top_p) & (probabilities >= shape.min_p * probabilities[0])
    kept[0] = True
    probabilities = np.where(kept, probabilities, 0)
    running = np.cumsum(probabilities / probabilities.sum())
    return int(order[min(np.searchsorted(running, number, side="right"), kept.sum() - 1)])


@pytest.mark.parametrize(("width", "k"), [(5000, 1), (5000, 12), (4999, 19), (100, 64), (30, 64)])
def test_most_likely_tokens_are_those_of_a_full_sort(width: int, k: int) -> None:
    rows = logits(9, width)
    values, ids = most_likely(rows, k)
    expected = rows.topk(min(k, width))
    assert torch.equal(values, expected.values)
    assert torch.equal(ids, expected.indices)


@pytest.mark.parametrize("width", [4096, 4999, 50])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_a_draw_inverts_the_cumulative_distribution(width: int, temperature: float) -> None:
    rows, numbers = logits(200, width), np.random.default_rng(1).random(200)
    drawn = draw(rows, numbers, [Shape(temperature)] * 200)
    scaled = rows.double().numpy() / temperature
    weights = np.exp(scaled - scaled.max(1, keepdims=True))
    running = np.cumsum(weights / weights.sum(1, keepdims=True), axis=1)
    for row, token in enumerate(drawn.tokens.tolist()):
        low = running[row, token - 1] if token else 0.0
        assert low - 1e-6 <= numbers[row] <= running[row, token] + 1e-6


def test_log_probabilities_are_the_models_own_whatever_shapes_the_draw() -> None:
    rows = logits(6, 5000)
    shapes = [
        Shape(), Shape(0.0), Shape(0.3), Shape(2.0, top_k=5), Shape(top_p=0.5), Shape(min_p=0.2),
    ]  # fmt: skip
    drawn = draw(rows, np.full(6, 0.7), shapes, top=10)
    expected = rows.double().log_softmax(-1)
    assert torch.allclose(
        drawn.chosen.double(), expected.gather(1, drawn.tokens[:, None])[:, 0], atol=1e-5
    )
    assert torch.allclose(drawn.top.double(), expected.topk(10).values, atol=1e-5)
    assert torch.equal(drawn.top_ids, expected.topk(10).indices)


@pytest.mark.parametrize(
    "shape",
    [
        Shape(top_k=1),
        Shape(top_k=7),
        Shape(top_k=4000),
        Shape(top_p=0.9),
        Shape(top_p=0.999),  # a nucleus of more than the first 1,024
        Shape(top_p=1e-9),
        Shape(top_p=0.0),
        Shape(top_k=7, top_p=0.0),
        Shape(min_p=0.05),
        Shape(min_p=1.0),
        Shape(temperature=0.7, top_k=40, top_p=0.8, min_p=0.02),
        Shape(temperature=1.8, top_p=0.95, min_p=1e-5),
    ],
)
@pytest.mark.parametrize("top", [0, 1, 64])
def test_truncation_agrees_with_sorting_everything(shape: Shape, top: int) -> None:
    rows = logits(120, 5000, scale=1.5)
    numbers = np.random.default_rng(2).random(120)
    drawn = draw(rows, numbers, [shape] * 120, top=top)
    expected = [oracle(row, u, shape) for row, u in zip(rows.numpy(), numbers, strict=True)]
    assert drawn.tokens.tolist() == expected


def test_temperature_zero_takes_the_likeliest_token() -> None:
    rows = logits(20, 5000)
    drawn = draw(rows, np.full(20, 0.999), [Shape(0.0, top_p=0.1)] * 20)
    assert torch.equal(drawn.tokens, rows.argmax(-1))


def test_draws_follow_the_distribution() -> None:
    row = logits(1, 40, scale=1.0)
    numbers = np.random.default_rng(3).random(20_000)
    drawn = draw(row.expand(20_000, -1), numbers, [Shape()] * 20_000)
    seen = np.bincount(drawn.tokens.numpy(), minlength=40)
    expected = row.double().softmax(-1)[0].numpy() * 20_000
    assert chisquare(seen, expected * seen.sum() / expected.sum()).pvalue > 0.001


def test_numbers_at_both_ends_give_tokens_that_have_mass() -> None:
    row = torch.full((1, 5000), -torch.inf)
    row[0, [130, 4711]] = 0.0
    low, high = 0.0, float(np.nextafter(1.0, 0.0))
    assert draw(row, np.array([low]), [Shape()]).tokens.tolist() == [130]
    assert draw(row, np.array([high]), [Shape()]).tokens.tolist() == [4711]
    (token,) = draw(row, np.array([high]), [Shape(top_k=3)]).tokens.tolist()
    assert token in (130, 4711)  # equally likely: in which order top_k finds them is not promised


def test_a_seeded_request_has_its_own_repeatable_numbers() -> None:
    first = uniforms(ask("Hi", seed=1), 50)
    assert np.array_equal(first[:20], uniforms(ask("Hi", seed=1), 20))
    for other in (ask("Hi", seed=2), ask("Ho", seed=1), ask("Hi", seed=1, sample_index=1)):
        assert not np.array_equal(first, uniforms(other, 50))
    assert not np.array_equal(uniforms(ask("Hi", seed=None), 5), uniforms(ask("Hi", seed=None), 5))


def test_settings_left_open_mean_the_models_own_distribution() -> None:
    assert Shape.of(Sampling()) == Shape()
    assert Shape.of(Sampling(temperature=0.0)).temperature == 0.0


@pytest.mark.parametrize(
    "shape",
    [
        Shape(),
        Shape(0.0),
        Shape(0.7),
        Shape(top_k=40),
        Shape(top_p=0.9),
        Shape(min_p=0.05),
        Shape(temperature=0.7, top_k=40, top_p=0.8, min_p=0.02),
    ],
)
@pytest.mark.parametrize("top", [0, 12])
def test_tokens_are_drawn_from_marked_logits_and_recorded_by_the_models_own(
    shape: Shape, top: int
) -> None:
    """What is cut is cut by the marked logits: a green token may enter that was outside before."""
    rows, numbers = logits(120, 5000, scale=1.5), np.random.default_rng(4).random(120)
    green = torch.rand(120, 5000, generator=torch.Generator().manual_seed(9)) < 0.25
    marked = rows + 3.0 * green
    drawn = draw(rows, numbers, [shape] * 120, top, marked)
    assert torch.equal(drawn.tokens, draw(marked, numbers, [shape] * 120).tokens)
    if shape.temperature == 0:
        assert torch.equal(drawn.tokens, marked.argmax(-1))
    elif shape.truncates:
        expected = [oracle(row, u, shape) for row, u in zip(marked.numpy(), numbers, strict=True)]
        assert drawn.tokens.tolist() == expected
    own = rows.double().log_softmax(-1)
    assert torch.allclose(
        drawn.chosen.double(), own.gather(1, drawn.tokens[:, None])[:, 0], atol=1e-5
    )
    assert torch.equal(drawn.top_ids, own.topk(top).indices)
    assert torch.allclose(drawn.top.double(), own.topk(top).values, atol=1e-5)
    if shape.top_k:
        unmarked_rank = (rows > rows.gather(1, drawn.tokens[:, None])).sum(-1)
        assert bool((unmarked_rank >= shape.top_k).any())


@pytest.mark.parametrize("shape", [Shape(0.7), Shape(top_k=5), Shape(0.5, top_k=9, min_p=0.1)])
def test_survivors_carry_the_distribution_that_is_drawn_from(shape: Shape) -> None:
    row = logits(1, 40, scale=1.0)
    ids, weights = survivors(row[0], shape)
    numbers = np.random.default_rng(6).random(20_000)
    drawn = draw(row.expand(20_000, -1), numbers, [shape] * 20_000)
    seen = np.bincount(drawn.tokens.numpy(), minlength=40)
    assert seen[ids.numpy()].sum() == 20_000
    expected = (weights / weights.sum()).numpy() * 20_000
    assert chisquare(seen[ids.numpy()], expected).pvalue > 0.001
