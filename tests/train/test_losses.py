"""The losses against a numpy double loop, constants worked by hand, and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.errors import DataError
from stillhouse.train.losses import (
    Dense,
    Hard,
    Hidden,
    TopK,
    cross_entropy,
    forward_kl,
    forward_kl_top_k,
    generalized_jsd,
    head_loss,
    reverse_kl,
)

TOKENS, VOCABULARY, KEPT = 5, 11, 4


def drawn(seed: int = 0, scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """(student logits, teacher log-probabilities), both (T, V)."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(TOKENS, VOCABULARY, generator=g) * scale
    teacher = (torch.randn(TOKENS, VOCABULARY, generator=g) * scale).log_softmax(-1)
    return logits, teacher


def softmax(row: np.ndarray) -> list[float]:
    top = max(row)
    powers = [math.exp(x - top) for x in row]
    return [x / sum(powers) for x in powers]


def oracle(name: str, logits: torch.Tensor, teacher: torch.Tensor, beta: float = 0.5) -> float:
    """The sum over tokens and vocabulary in plain Python, in float64."""
    total = 0.0
    for z, lp in zip(logits.double().numpy(), teacher.double().numpy(), strict=True):
        q, p = softmax(z), [math.exp(x) for x in lp]
        for a, b in zip(p, q, strict=True):
            m = beta * a + (1 - beta) * b
            total += {
                "forward": a * math.log(a / b),
                "reverse": b * math.log(b / a),
                "jsd": beta * a * math.log(a / m) + (1 - beta) * b * math.log(b / m),
            }[name]
    return total


def oracle_top_k(logits: torch.Tensor, ids: torch.Tensor, top: torch.Tensor) -> float:
    total = 0.0
    for z, row, lp in zip(logits.double().numpy(), ids.tolist(), top.double().numpy(), strict=True):
        q, left_p, left_q = softmax(z), 1.0, 1.0
        for token, value in zip(row, lp, strict=True):
            if value > -math.inf:
                p = math.exp(value)
                total += p * math.log(p / q[token])
                left_p, left_q = left_p - p, left_q - q[token]
        total += left_p * math.log(left_p / left_q)
    return total


def test_dense_losses_equal_a_double_loop_over_tokens_and_vocabulary():
    logits, teacher = drawn()
    assert forward_kl(logits, teacher, count=7).item() == pytest.approx(
        oracle("forward", logits, teacher) / 7, rel=1e-5
    )
    assert reverse_kl(logits, teacher, count=7).item() == pytest.approx(
        oracle("reverse", logits, teacher) / 7, rel=1e-5
    )
    for beta in (0.1, 0.5, 0.9):
        assert generalized_jsd(logits, teacher, beta=beta, count=7).item() == pytest.approx(
            oracle("jsd", logits, teacher, beta) / 7, rel=1e-5
        )


def test_top_k_loss_equals_a_double_loop_with_one_tail_bucket():
    logits, teacher = drawn()
    top, ids = teacher.topk(KEPT, dim=-1)
    top[2, 3] = -torch.inf  # a row that kept fewer; its padding names a token that is kept
    ids[2, 3] = ids[2, 0]
    found = forward_kl_top_k(logits, ids, top, count=3)
    assert found.item() == pytest.approx(oracle_top_k(logits, ids, top) / 3, rel=1e-5)


def test_constants_worked_by_hand():
    # Student (1/2, 1/2) against teacher (3/4, 1/4).
    logits = torch.zeros(1, 2)
    teacher = torch.tensor([[0.75, 0.25]]).log()
    forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    reverse = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    assert forward_kl(logits, teacher, count=1).item() == pytest.approx(forward, abs=1e-6)
    assert reverse_kl(logits, teacher, count=1).item() == pytest.approx(reverse, abs=1e-6)
    # m = (5/8, 3/8).
    jsd = 0.5 * (0.75 * math.log(1.2) + 0.25 * math.log(2 / 3)) + 0.5 * (
        0.5 * math.log(0.8) + 0.5 * math.log(4 / 3)
    )
    assert generalized_jsd(logits, teacher, beta=0.5, count=1).item() == pytest.approx(
        jsd, abs=1e-6
    )
    assert cross_entropy(logits, torch.tensor([1]), count=1).item() == pytest.approx(math.log(2))
    # Four equally likely tokens; the teacher kept one at 1/2: the tail is 1/2 against 3/4.
    kept = forward_kl_top_k(
        torch.zeros(1, 4), torch.tensor([[2]]), torch.tensor([[0.5]]).log(), count=1
    )
    by_hand = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert kept.item() == pytest.approx(by_hand, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 6.0), kept=st.integers(1, VOCABULARY))
def test_divergences_are_never_negative_vanish_on_equals_and_top_k_stays_below_the_whole(
    seed: int, scale: float, kept: int
):
    logits, teacher = drawn(seed, scale)
    top, ids = teacher.topk(kept, dim=-1)
    whole = forward_kl(logits, teacher, count=1).item()
    part = forward_kl_top_k(logits, ids, top, count=1).item()
    assert -1e-4 <= part <= whole + 1e-3
    if kept == VOCABULARY:
        assert part == pytest.approx(whole, abs=1e-3)
    assert generalized_jsd(logits, teacher, beta=0.3, count=1).item() >= -1e-5
    own = logits.log_softmax(-1)
    for value in (
        forward_kl(logits, own, count=1),
        reverse_kl(logits, own, count=1),
        generalized_jsd(logits, own, beta=0.3, count=1),
        forward_kl_top_k(logits, own.topk(kept).indices, own.topk(kept).values, count=1),
    ):
        assert value.item() == pytest.approx(0.0, abs=1e-4)


def test_jsd_is_symmetric_at_one_half_only_and_its_ends_are_the_two_divergences():
    logits, teacher = drawn()
    own = logits.log_softmax(-1)
    half = generalized_jsd(logits, teacher, beta=0.5, count=1).item()
    assert half == pytest.approx(generalized_jsd(teacher, own, beta=0.5, count=1).item(), rel=1e-5)
    third = generalized_jsd(logits, teacher, beta=0.3, count=1).item()
    swapped = generalized_jsd(teacher, own, beta=0.3, count=1).item()
    assert abs(third - swapped) > 1e-2
    forward, reverse = forward_kl(logits, teacher, count=1), reverse_kl(logits, teacher, count=1)
    assert torch.equal(generalized_jsd(logits, teacher, beta=0.0, count=1), forward)
    assert torch.equal(generalized_jsd(logits, teacher, beta=1.0, count=1), reverse)
    near = generalized_jsd(logits, teacher, beta=1e-3, count=1) / 1e-3
    assert near.item() == pytest.approx(forward.item(), rel=0.05)


def test_a_mask_leaves_out_exactly_the_masked_positions():
    logits, teacher = drawn()
    mask = torch.tensor([True, False, True, True, False])
    found = forward_kl(logits, teacher, count=3, mask=mask)
    assert torch.equal(found, forward_kl(logits[mask], teacher[mask], count=3))


def test_an_empty_mask_a_zero_count_and_disagreeing_shapes_are_refused():
    logits, teacher = drawn()
    none = torch.zeros(TOKENS, dtype=torch.bool)
    with pytest.raises(DataError, match="0 answer positions"):
        forward_kl(logits, teacher, count=1, mask=none)
    with pytest.raises(DataError, match="count of 0"):
        cross_entropy(logits, torch.zeros(TOKENS), count=0)
    with pytest.raises(DataError, match="one vocabulary"):
        forward_kl(logits, teacher[:, :-1], count=1)
    with pytest.raises(DataError, match="targets of 4 positions"):
        reverse_kl(logits, teacher[:-1], count=1)
    with pytest.raises(DataError, match="mask"):
        reverse_kl(logits, teacher, count=1, mask=none[:-1])
    with pytest.raises(DataError, match="logits"):
        cross_entropy(logits[0], torch.zeros(VOCABULARY), count=1)
    with pytest.raises(DataError, match="top_ids"):
        forward_kl_top_k(logits, torch.zeros(TOKENS, 2), torch.zeros(TOKENS, 3), count=1)
    with pytest.raises(DataError, match=r"beta 1\.5"):
        generalized_jsd(logits, teacher, beta=1.5, count=1)
    with pytest.raises(DataError, match="0 answer positions"):
        head_loss(torch.zeros(0, 3), torch.zeros(5, 3), Hard(torch.zeros(0)), count=1)


def hidden_and_head(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(TOKENS, 3, generator=g).requires_grad_(),
        torch.randn(VOCABULARY, 3, generator=g).requires_grad_(),
    )


def every_target() -> dict[str, Hard | TopK | Dense | Hidden]:
    _, teacher = drawn(3)
    top, ids = teacher.topk(KEPT, dim=-1)
    top[1, 2:], ids[1, 2:] = -torch.inf, int(ids[1, 0])
    states, head = hidden_and_head(9)
    return {
        "hard": Hard(torch.tensor([0, 3, 3, 10, 5])),
        "top": TopK(ids, top),
        "dense": Dense(teacher),
        "hidden": Hidden(states.detach(), head.detach()),
    }


def plain(logits: torch.Tensor, target: object) -> torch.Tensor:
    """The same loss from whole logits, with autograd's gradient."""
    match target:
        case Hard():
            return cross_entropy(logits, target.token_ids, count=13)
        case TopK():
            return forward_kl_top_k(logits, target.ids, target.logprobs, count=13)
        case Dense():
            return forward_kl(logits, target.logprobs, count=13)
        case Hidden():
            teacher = (target.states @ target.head.T).log_softmax(-1)
            return forward_kl(logits, teacher, count=13)
    raise AssertionError(target)


@pytest.mark.parametrize("kind", ["hard", "top", "dense", "hidden"])
@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_the_chunked_loss_and_its_gradients_equal_the_plain_ones(kind: str, chunk: int):
    target = every_target()[kind]
    hidden, head = hidden_and_head()
    loss = head_loss(hidden, head, target, count=13, chunk_tokens=chunk) * 2  # backward scales
    found = torch.autograd.grad(loss, (hidden, head))
    wanted_loss = plain(hidden @ head.T, target) * 2
    wanted = torch.autograd.grad(wanted_loss, (hidden, head))
    torch.testing.assert_close(loss, wanted_loss)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["hard", "top", "dense", "hidden"])
def test_the_gradient_is_what_small_steps_of_the_loss_say(kind: str):
    target = every_target()[kind]
    hidden, head = hidden_and_head()
    (gradient,) = torch.autograd.grad(head_loss(hidden, head, target, count=13), hidden)
    step = 1e-3
    for place in ((0, 0), (1, 2), (4, 1)):
        moved = torch.zeros_like(hidden)
        moved[place] = step
        values = [
            plain((hidden + sign * moved).detach().double() @ head.detach().double().T, target)
            for sign in (1, -1)
        ]
        slope = (values[0] - values[1]).item() / (2 * step)
        assert gradient[place].item() == pytest.approx(slope, rel=2e-2, abs=2e-4)


def test_a_frozen_head_gets_no_gradient_and_changes_nothing_else():
    hidden, head = hidden_and_head()
    target = every_target()["top"]
    (wanted,) = torch.autograd.grad(head_loss(hidden, head, target, count=13), hidden)
    frozen = head.detach()
    (found,) = torch.autograd.grad(head_loss(hidden, frozen, target, count=13), hidden)
    assert torch.equal(found, wanted)
    assert frozen.grad is None


def test_a_tail_the_teacher_never_uses_leaves_the_loss_finite():
    logits, _ = drawn()
    ids = torch.arange(VOCABULARY).expand(TOKENS, -1)
    sure = torch.full((TOKENS, VOCABULARY), -torch.inf)
    sure[:, 4] = 0.0
    loss = forward_kl_top_k(logits.requires_grad_(), ids, sure, count=TOKENS)
    wanted = cross_entropy(logits, torch.full((TOKENS,), 4), count=TOKENS)
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-4)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(gradient).all()
