"""Waves against one row at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from stillhouse.models.local_draw import Shape
from stillhouse.models.local_general import GeneralNetwork
from stillhouse.models.local_llama import PackedLlama
from stillhouse.models.local_network import Answered
from stillhouse.models.local_sampler import Finished, Job, Limits, sample
from tests.train.conftest import write_llama

NO_ENDS: frozenset[int] = frozenset()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> PackedLlama:
    return PackedLlama(write_llama(tmp_path_factory.mktemp("sampled"), layers=2, seed=3))


def job(number: int, **more: Any) -> Job:
    """A prompt of its own length, room and random numbers."""
    draws = np.random.default_rng(number)
    room = more.pop("room", 3 + number % 9)
    prompt = [3 + (number * 7 + at) % 250 for at in range(1 + number * 5 % 23)]
    settings = {"shape": Shape(), "numbers": draws.random(room), "about": number} | more
    return Job(prompt, room, **settings)


def by_number(found: Iterator[Finished]) -> dict[Any, Finished]:
    answers = {done.job.about: done for done in found}
    return dict(sorted(answers.items()))


@pytest.mark.parametrize(
    "limits",
    [
        Limits(),
        Limits(rows=1),
        Limits(rows=6),
        Limits(rows=16, memory_bytes=30 * 2 * 2 * 16 * 4 * 3),  # three rows or so at a time
        Limits(rows=16, memory_bytes=1),
        Limits(rows=16, prefill_tokens=10),
    ],
)
def test_a_row_gets_the_same_whatever_else_is_in_flight(
    network: PackedLlama, limits: Limits
) -> None:
    jobs = [job(n) for n in range(30)]
    alone = [next(sample(network, [one], NO_ENDS, 4)) for one in jobs]
    found = by_number(sample(network, iter(jobs), NO_ENDS, 4, limits))
    assert list(found) == list(range(30))
    for expected, done in zip(alone, found.values(), strict=True):
        assert done.tokens.tolist() == expected.tokens.tolist()
        assert np.allclose(done.chosen, expected.chosen, atol=1e-4)
        assert np.allclose(done.top, expected.top, atol=1e-4)
        assert done.reason == "length"
        assert len(done.tokens) == len(done.top_ids) == done.job.room


def test_greedy_answers_take_the_likeliest_token_each_time(network: PackedLlama) -> None:
    jobs = [job(n, shape=Shape(0.0), room=8) for n in range(9)]
    for done in sample(network, jobs, NO_ENDS, 2, Limits(rows=4)):
        ids = list(done.job.prompt)
        for token, chosen, top_ids, top in zip(
            done.tokens, done.chosen, done.top_ids, done.top, strict=True
        ):
            ((_, _, logits),) = network.logits([Answered(ids, [[0]])])
            expected = logits[0].log_softmax(-1)
            assert int(token) == int(expected.argmax()) == int(top_ids[0])
            assert abs(float(chosen) - float(expected.max())) < 1e-4
            assert np.allclose(top, expected.topk(2).values.numpy(), atol=1e-4)
            ids.append(int(token))


def test_answers_follow_the_models_distribution(network: PackedLlama) -> None:
    """Two tokens deep: the first token's distribution and the second's given the commonest."""
    rows = 4000
    prompt, generator = [5, 6, 7], np.random.default_rng(8)
    jobs = [Job(prompt, 2, Shape(), generator.random(2)) for _ in range(rows)]
    answers = [done.tokens.tolist() for done in sample(network, jobs, NO_ENDS, 0, Limits(rows=400))]
    common = int(np.bincount([first for first, _ in answers]).argmax())
    for given, seen in (
        ([], [first for first, _ in answers]),
        ([common], [second for first, second in answers if first == common]),
    ):
        ids = [*prompt, *given]
        ((_, _, logits),) = network.logits([Answered(ids, [[0]])])
        expected = logits[0].double().softmax(-1).numpy() * len(seen)
        counts = np.bincount(seen, minlength=len(expected)).astype(float)
        often = expected >= 5  # chi-square's rule of thumb; the rest is one cell
        pooled = [np.append(x[often], x[~often].sum()) for x in (counts, expected)]
        pooled[1] *= pooled[0].sum() / pooled[1].sum()
        assert chisquare(*pooled).pvalue > 0.001


def test_an_end_token_ends_an_answer_and_is_its_last(network: PackedLlama) -> None:
    jobs = [job(n, room=30) for n in range(12)]
    free = by_number(sample(network, jobs, NO_ENDS))
    end = int(free[0].tokens[10])
    ended = by_number(sample(network, jobs, frozenset({end}), 0, Limits(rows=8)))
    for number, done in ended.items():
        expected = free[number].tokens.tolist()
        cut = expected.index(end) + 1 if end in expected else len(expected)
        assert done.tokens.tolist() == expected[:cut]
        assert done.reason == ("stop" if end in expected else "length")
    assert ended[0].reason == "stop"


def test_a_job_may_halt_for_a_reason_of_its_own(network: PackedLlama) -> None:
    jobs = [job(1, room=20, halts=lambda ids: sum(ids) > 900), job(2, room=20)]
    halted, free = by_number(sample(network, jobs, NO_ENDS)).values()
    assert halted.reason == "stop"
    assert sum(halted.tokens[:-1]) <= 900 < sum(halted.tokens)
    assert (free.reason, len(free.tokens)) == ("length", 20)


def test_jobs_are_drawn_as_rows_become_free(network: PackedLlama) -> None:
    drawn = 0

    def jobs() -> Iterator[Job]:
        nonlocal drawn
        for number in range(200):
            drawn += 1
            yield job(number)

    limits = Limits(rows=8)
    for count, _ in enumerate(sample(network, jobs(), NO_ENDS, 0, limits), start=1):
        assert drawn <= count + 2 * limits.rows
    assert count == drawn == 200


def test_no_jobs_give_nothing(network: PackedLlama) -> None:
    assert list(sample(network, [], NO_ENDS)) == []


def test_other_architectures_are_sampled_through_transformers(
    network: PackedLlama, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    folder = write_llama(tmp_path, layers=2, seed=3)  # the same weights as `network`
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    jobs = [job(n) for n in range(12)]
    general = by_number(sample(GeneralNetwork(module), jobs, NO_ENDS, 3, Limits(rows=5)))
    packed = by_number(sample(network, jobs, NO_ENDS, 3))
    for one, two in zip(general.values(), packed.values(), strict=True):
        assert one.tokens.tolist() == two.tokens.tolist()
        assert np.allclose(one.top, two.top, atol=1e-4)
