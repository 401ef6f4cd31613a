"""Batches: a fixed plan, little padding, and a loss that does not depend on how they are split."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.errors import DataError
from stillhouse.exchange import Exchange
from stillhouse.models.local import LocalModel
from stillhouse.train.batches import collate, pieces, plan, split_validation
from stillhouse.train.losses import Hard, Hidden, TopK, head_loss
from stillhouse.train.targets import Example, make_examples


def example(number: int, prompt: int, answer: int, kept: int = 0) -> Example:
    ids = np.arange(prompt + answer, dtype=np.int32) + number
    if not kept:
        return Example(f"k{number}", ids, prompt)
    top = np.full((answer, kept), np.log(0.5 / kept), np.float32)
    return Example(f"k{number}", ids, prompt, np.tile(np.arange(kept, dtype=np.int32), (answer, 1)), top)  # fmt: skip  # noqa: E501


def several(count: int, seed: int = 0) -> list[Example]:
    rng = random.Random(seed)
    return [example(i, rng.randint(2, 40), rng.randint(1, 60)) for i in range(count)]


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 120), budget=st.integers(1, 400), epochs=st.sampled_from([1.0, 2.0]))
def test_every_epoch_visits_every_example_once(count: int, budget: int, epochs: float):
    examples = several(count)
    steps = plan(examples, epochs=epochs, batch_tokens=budget, seed=1)
    visits = sorted(index for batch in steps for index in batch)
    assert visits == sorted(list(range(count)) * int(epochs))
    longest = max(e.answer_tokens for e in examples)
    for batch in steps:
        assert sum(examples[i].answer_tokens for i in batch) < budget + longest


def test_the_plan_depends_on_keys_and_seed_and_not_on_the_order_of_arrival():
    examples = several(60)
    shuffled = examples[:]
    random.Random(3).shuffle(shuffled)

    def keys(some: list[Example], seed: int) -> list[set[str]]:
        steps = plan(some, epochs=2, batch_tokens=200, seed=seed)
        return [{some[i].key for i in batch} for batch in steps]

    assert keys(examples, 1) == keys(shuffled, 1)
    assert keys(examples, 1) != keys(examples, 2)
    assert keys(examples, 1)[: len(keys(examples, 1)) // 2] != keys(examples, 1)[len(keys(examples, 1)) // 2 :]  # fmt: skip  # noqa: E501


def test_half_an_epoch_is_the_first_half_of_its_steps():
    examples = several(60)
    whole = plan(examples, epochs=1, batch_tokens=200, seed=1)
    half = plan(examples, epochs=0.5, batch_tokens=200, seed=1)
    assert half == whole[: round(len(whole) / 2)]
    assert plan(examples, epochs=1.5, batch_tokens=200, seed=1)[: len(whole)] == whole
    with pytest.raises(DataError, match="no examples"):
        plan([], epochs=1, batch_tokens=200, seed=1)


def test_batches_hold_examples_of_like_length_so_little_is_padding():
    examples = several(400)
    padded = real = 0
    for batch in plan(examples, epochs=1, batch_tokens=300, seed=1):
        padded += len(batch) * max(len(examples[i].ids) for i in batch)
        real += sum(len(examples[i].ids) for i in batch)
    assert padded / real < 1.12


def test_validation_is_chosen_by_key_and_kept_apart():
    examples = several(30)
    training, apart = split_validation(examples, count=5, seed=1)
    again, same = split_validation(examples[::-1], count=5, seed=1)
    assert {e.key for e in apart} == {e.key for e in same}
    assert len(apart) == 5
    assert {e.key for e in training} == {e.key for e in again}
    assert not {e.key for e in training} & {e.key for e in apart}
    assert split_validation(examples[:1], count=5, seed=1)[1] == []


def test_collating_finds_the_positions_that_predict_the_answers():
    examples = [example(10, 3, 2, kept=2), example(50, 2, 4), example(90, 4, 1, kept=3)]
    batch = collate(examples)
    assert batch.input_ids.shape == (3, 6)
    flat = batch.input_ids.flatten()
    # what stands after a position is the token it predicts
    assert torch.equal(flat[batch.positions + 1], batch.token_ids)
    assert batch.token_ids.tolist() == [13, 14, 52, 53, 54, 55, 94]
    kinds = {type(targets): rows.tolist() for rows, targets in batch.groups}
    assert kinds == {TopK: [0, 1, 6], Hard: [2, 3, 4, 5]}
    top = next(t for _, t in batch.groups if isinstance(t, TopK))
    assert top.logprobs.shape == (3, 3)
    assert torch.isneginf(top.logprobs[:2, 2]).all()


def test_hidden_targets_carry_the_teachers_states():
    import dataclasses

    states = np.ones((2, 4), np.float16)
    head = torch.eye(7, 4)
    batch = collate([dataclasses.replace(example(1, 3, 2), states=states)], head)
    ((rows, targets),) = batch.groups
    assert rows.tolist() == [0, 1]
    assert isinstance(targets, Hidden)
    assert targets.states.dtype == torch.float32
    assert targets.head is head


def test_loss_and_gradient_do_not_depend_on_how_a_batch_is_split(
    exchanges: list[Exchange], teacher: LocalModel
):
    examples, _ = make_examples(exchanges[:12], teacher, kind="soft", top_k=6)
    examples = [*examples[:9], *(Example(e.key, e.ids, e.prompt_tokens) for e in examples[9:])]
    network = teacher.network
    head = network.get_output_embeddings().weight.detach()
    weights = [p for n, p in network.named_parameters() if "layers.2.mlp" in n]
    count = sum(e.answer_tokens for e in examples)

    def loss_and_gradient(groups: list[list[Example]]) -> tuple[float, torch.Tensor]:
        network.zero_grad(set_to_none=True)
        total = 0.0
        for group in groups:
            batch = collate(group)
            hidden = network.base_model(input_ids=batch.input_ids).last_hidden_state
            rows = hidden.flatten(0, 1)[batch.positions]
            parts = [
                head_loss(rows[at], head, targets, count=count) for at, targets in batch.groups
            ]
            loss = torch.stack(parts).sum()
            loss.backward()
            total += loss.item()
        return total, torch.cat([p.grad.flatten() for p in weights if p.grad is not None])

    whole_loss, whole = loss_and_gradient([examples])
    for groups in ([[e] for e in examples], pieces(examples, max_tokens=150), [examples[:5], examples[5:]]):  # fmt: skip  # noqa: E501
        loss, gradient = loss_and_gradient(groups)
        assert loss == pytest.approx(whole_loss, rel=1e-5)
        torch.testing.assert_close(gradient, whole, rtol=1e-3, atol=1e-7)
    network.zero_grad(set_to_none=True)


def test_pieces_bound_the_padded_tokens_of_a_pass():
    examples = several(40)
    for piece in pieces(examples, max_tokens=200):
        assert len(piece) == 1 or len(piece) * max(len(e.ids) for e in piece) <= 200
    assert sum(len(p) for p in pieces(examples, max_tokens=200)) == 40


def test_rows_about_identity_are_dealt_evenly_over_the_steps():
    answers = [Example(f"k{i}", np.arange(40 + i % 7, dtype=np.int32), 10) for i in range(60)]
    rows = [Example(f"i{i}", np.arange(12, dtype=np.int32), 6, spread=True) for i in range(10)]
    steps = plan([*answers, *rows], epochs=1, batch_tokens=100, seed=3)
    held = [sum(index >= 60 for index in step) for step in steps]
    assert sum(held) == 10
    assert max(held) <= 1
    assert sorted(i for step in steps for i in step) == list(range(70))
    assert all(len(step) > 1 for step, count in zip(steps, held, strict=True) if count)
