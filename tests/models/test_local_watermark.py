"""Marks while sampling: the green share that theory predicts, and SynthID against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import SynthIDTextWatermarkingConfig

from stillhouse.errors import ConfigError
from stillhouse.exchange import Exchange
from stillhouse.models import Need, open_model
from stillhouse.models.local import LocalModel
from stillhouse.models.local_draw import Shape
from stillhouse.models.local_llama import PackedLlama
from stillhouse.models.local_network import Answered
from stillhouse.models.local_sampler import Job, Limits, sample
from stillhouse.models.local_watermark import GreenMark, SynthIDMark
from stillhouse.watermark import Watermark
from tests.models.conftest import ask
from tests.train.conftest import write_llama

KEY = bytes(range(32))
NO_ENDS: frozenset[int] = frozenset()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("marked"), layers=2, seed=3)


@pytest.fixture(scope="module")
def network(folder: Path) -> PackedLlama:
    return PackedLlama(folder)


PLAIN = Shape()


def jobs(count: int, room: int, shape: Shape = PLAIN) -> list[Job]:
    rng = np.random.default_rng(12)
    return [
        Job([1, *rng.integers(3, 250, 3 + n % 4).tolist()], room, shape, rng.random(room), about=n)
        for n in range(count)
    ]


# ---- the green list ----


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize(
    "shape", [Shape(), Shape(0.7), Shape(top_k=20), Shape(0.8, top_k=50, top_p=0.9, min_p=0.01)]
)
def test_the_green_share_is_what_the_marked_distribution_predicts(
    network: PackedLlama, width: int, shape: Shape
) -> None:
    """Token by token: the share of green among draws against the green mass that they had."""
    mark = Watermark(key=KEY, width=width, gamma=0.25, delta=2.0)
    hits, masses = [], []
    found = sample(network, jobs(40, 20, shape), NO_ENDS, 0, Limits(rows=16), GreenMark(mark))
    for done in found:
        ids = [*done.job.prompt, *done.tokens.tolist()]
        start = len(done.job.prompt)
        ((_, _, logits),) = network.logits([Answered(ids[:start], [ids[start:]])])
        for step, token in enumerate(done.tokens.tolist()):
            green = mark.green_list(ids[start + step - width : start + step], logits.shape[1])
            scaled = (logits[step].double().numpy() + 2.0 * green) / shape.temperature
            order = np.argsort(-scaled)[: shape.top_k or None]
            weights = np.exp(scaled[order] - scaled[order[0]])
            weights /= weights.sum()
            kept = (np.cumsum(weights) - weights < shape.top_p) & (
                weights >= shape.min_p * weights[0]
            )
            masses.append(weights[kept & green[order]].sum() / weights[kept].sum())
            hits.append(green[token])
    masses_, spread = np.array(masses), np.sqrt((np.array(masses) * (1 - np.array(masses))).sum())
    assert abs(np.sum(hits) - masses_.sum()) < 4 * spread
    assert masses_.mean() > 0.45  # the mark is there to be found


def test_a_mark_of_delta_0_changes_nothing_bit_for_bit(folder: Path) -> None:
    requests = [ask(f"Count to {n}", seed=n, max_tokens=12) for n in range(12)]
    plain = answers(LocalModel(folder, spec="plain", name="m"), requests)
    unmarked = LocalModel(folder, spec="plain", name="m", watermark=Watermark(key=KEY, delta=0.0))
    for one, two in zip(plain, answers(unmarked, requests), strict=True):
        assert one.logprobs == two.logprobs
        assert one.response == two.response


def answers(model: LocalModel, requests: list[Any], top: int = 3) -> list[Exchange]:
    found: list[Any] = list(model.answer(requests, top_logprobs=top))
    assert all(isinstance(one, Exchange) for one in found)
    return sorted(found, key=lambda one: one.sampling.seed)


def test_marked_answers_repeat_and_record_the_models_own_log_probabilities(folder: Path) -> None:
    mark = Watermark(key=KEY, width=1, delta=4.0)
    requests = [ask(f"Name {n}", seed=n, max_tokens=16) for n in range(20)]
    spec = f"hf:{folder}"
    with open_model(spec, need=Need(text=True, scoring=True), watermark=mark) as model:
        assert isinstance(model, LocalModel)
        first = answers(model, requests)
        scored = dict(model.score(first, top_logprobs=3))
    with open_model(spec, need=Need(text=True), watermark=mark) as again:
        second = answers(again, requests)  # type: ignore[arg-type]
    with open_model(spec, need=Need(text=True)) as unmarked:
        plain = answers(unmarked, requests)  # type: ignore[arg-type]
    assert [e.logprobs for e in first] == [e.logprobs for e in second]
    assert [e.response for e in first] != [e.response for e in plain]
    for index, exchange in enumerate(first):
        assert exchange.labels == {"watermark": mark.label}
        assert exchange.logprobs is not None
        assert np.allclose(exchange.logprobs.chosen, scored[index].chosen, atol=1e-4)
        assert np.array_equal(exchange.logprobs.top_ids, scored[index].top_ids)  # type: ignore[arg-type]
    assert all("watermark" not in exchange.labels for exchange in plain)


def test_a_rows_mark_does_not_depend_on_what_else_is_in_flight(network: PackedLlama) -> None:
    mark = GreenMark(Watermark(key=KEY, width=3))
    alone = [next(sample(network, [job], NO_ENDS, 0, Limits(), mark)) for job in jobs(12, 9)]
    found = sample(network, jobs(12, 9), NO_ENDS, 0, Limits(rows=5), mark)
    together = sorted(found, key=lambda done: done.job.about)  # type: ignore[arg-type, return-value]
    assert [d.tokens.tolist() for d in together] == [d.tokens.tolist() for d in alone]


def test_marks_that_do_not_fit_are_refused(folder: Path) -> None:
    mark, config = Watermark(key=KEY, tokenizer="t1:another"), synthid()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"watermark": mark}, "t1:another"),
        ({"watermark": Watermark(key=KEY), "synthid": config}, "one of the two"),
        ({"synthid": {"keys": [1, 2]}}, "synthid is a dict"),
        ({"synthid": synthid(debug_mode=True)}, "debug_mode"),
    ]
    for options, said in cases:
        with pytest.raises(ConfigError, match=said):
            LocalModel(folder, spec="x", **options)
    own = LocalModel(folder, spec="x").text.vocabulary_hash
    LocalModel(folder, spec="x", watermark=Watermark(key=KEY, tokenizer=own))


# ---- SynthID ----


def synthid(**more: Any) -> SynthIDTextWatermarkingConfig:
    return SynthIDTextWatermarkingConfig(
        **{"ngram_len": 3, "keys": [654, 400, 836, 123, 340, 443, 597, 160], **more}
    )


@pytest.mark.parametrize(
    "config",
    [
        synthid(),
        synthid(ngram_len=2, context_history_size=3),
        synthid(ngram_len=5, skip_first_ngram_calls=True),
    ],
)
def test_synthid_scores_are_transformers_own(config: SynthIDTextWatermarkingConfig) -> None:
    """Step by step against the processor with its own state; contexts repeat on purpose."""
    processor: Any = config.construct_processor(40, "cpu")
    mark, generator = SynthIDMark(config, "here"), torch.Generator().manual_seed(2)
    history = torch.randint(1, 3, (6, 14), generator=generator)
    unmarked = 0
    for step in range(14):
        logits = torch.randn(6, 40, generator=generator)
        sofar = torch.cat((torch.full((6, 2), 7), history[:, :step]), 1)
        expected = processor(sofar, logits).log_softmax(-1)
        rows = [([7, 7], history[row, :step].numpy().astype(np.int32)) for row in range(6)]
        found, shapes = mark(logits, rows, [Shape()] * 6)
        assert torch.allclose(found.log_softmax(-1), expected, atol=1e-4)
        assert set(shapes) == {Shape()}
        same = torch.isclose(expected, logits.log_softmax(-1), atol=1e-6).all(-1)
        unmarked += int(same.sum())
    assert 0 < unmarked < 6 * 14  # both kinds of step were seen


def test_synthid_chooses_among_what_the_shape_leaves() -> None:
    config, generator = synthid(), torch.Generator().manual_seed(5)
    logits = torch.randn(8, 50, generator=generator)
    shape = Shape(0.7, top_k=6)
    scaled = logits / 0.7
    cut = scaled.masked_fill(scaled < scaled.topk(6).values[:, -1:], -torch.inf)
    processor: Any = config.construct_processor(50, "cpu")
    expected = processor(torch.zeros(8, 1, dtype=torch.long), cut).softmax(-1)
    rows = [([1], np.empty(0, np.int32))] * 9
    greedy = torch.cat((logits, logits[:1]))
    found, shapes = SynthIDMark(config, "here")(greedy, rows, [*[shape] * 8, Shape(0.0)])
    assert torch.allclose(found[:8].softmax(-1), expected, atol=1e-5)
    assert ((found[:8].softmax(-1) > 0).sum(-1) <= 6).all()
    assert torch.equal(found[8], logits[0])  # nothing is drawn, so nothing can be marked
    assert shapes[7:] == [Shape(), Shape(0.0)]


@pytest.mark.parametrize("sampling", [{}, {"top_k": 40, "temperature": 0.9}])
def test_synthid_answers_are_found_by_transformers_own_functions(
    folder: Path, sampling: dict[str, Any]
) -> None:
    config = synthid(ngram_len=4, keys=list(range(101, 121)))
    processor: Any = config.construct_processor(259, "cpu")

    def mean_g(model: LocalModel) -> tuple[float, set[str]]:
        requests = [ask(f"Tell {n}", seed=n, max_tokens=60, **sampling) for n in range(30)]
        values, labels = [], set()
        for exchange in answers(model, requests, top=0):
            assert exchange.logprobs is not None
            ids = torch.tensor(exchange.logprobs.token_ids, dtype=torch.long)[None]
            if ids.shape[1] > 4:
                counts = processor.compute_context_repetition_mask(ids)[0].bool()
                values.append(processor.compute_g_values(ids)[0][counts].float().flatten())
            labels.add(exchange.labels.get("watermark", "none"))
        return float(torch.cat(values).mean()), labels

    marked, labels = mean_g(LocalModel(folder, spec="x", synthid=config))
    plain, none = mean_g(LocalModel(folder, spec="x"))
    assert marked > 0.53  # a thousand tokens and twenty keys: .504 is two standard errors off
    assert abs(plain - 0.5) < 0.01
    assert none == {"none"}
    (label,) = labels
    assert label.startswith("synthid:")
    assert label != SynthIDMark(synthid(), "here").label  # another configuration, another label
