"""Exchanges become examples: ids, masks, stored and scored targets, refusals."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from stillhouse.errors import ConfigError, DataError
from stillhouse.exchange import Exchange, Response
from stillhouse.models.local import LocalModel
from stillhouse.train.targets import check_kind, engines, make_examples


def test_an_example_is_prompt_then_answer_with_the_stored_alternatives(
    exchanges: list[Exchange], teacher: LocalModel
):
    examples, record = make_examples(exchanges, teacher, kind="soft")
    by_key = {e.key: e for e in examples}
    for exchange in exchanges:
        example, logprobs = by_key[exchange.key], exchange.logprobs
        assert logprobs is not None
        assert example.ids[: example.prompt_tokens].tolist() == teacher.render(exchange.prompt)
        assert np.array_equal(example.answer, logprobs.token_ids)
        assert np.array_equal(example.top_ids, logprobs.top_ids)
        assert np.array_equal(example.top, logprobs.top)
        assert (example.answer[-1] == 2) == (exchange.finish_reason == "stop")
    assert record.exchanges == len(exchanges)
    assert record.answer_tokens == sum(len(e.logprobs) for e in exchanges if e.logprobs)
    assert record.mass_kept is not None
    assert 0 < record.mass_kept <= 1
    (engine,) = record.engines
    assert engine.startswith("torch-float32")


def test_the_order_of_arrival_changes_nothing(exchanges: list[Exchange], teacher: LocalModel):
    forward, _ = make_examples(exchanges, teacher, kind="soft")
    backward, _ = make_examples(exchanges[::-1], teacher, kind="soft")
    assert [e.key for e in forward] == [e.key for e in backward]


def test_hard_targets_need_no_log_probabilities(exchanges: list[Exchange], teacher: LocalModel):
    bare = [dataclasses.replace(e, logprobs=None) for e in exchanges]
    examples, record = make_examples(bare, teacher, kind="hard")
    assert all(e.top is None for e in examples)
    assert record.engines == {}


def test_the_local_teacher_scores_text_when_that_is_asked_for(
    exchanges: list[Exchange], teacher: LocalModel
):
    stored, _ = make_examples(exchanges, teacher, kind="soft", top_k=5)
    fewer = [
        dataclasses.replace(e, logprobs=dataclasses.replace(e.logprobs, top=None, top_ids=None))
        for e in exchanges
        if e.logprobs
    ]
    scored, record = make_examples(fewer, teacher, kind="soft", source="teacher", top_k=5)
    assert record.source == "teacher"
    for a, b in zip(stored, scored, strict=True):
        assert a.key == b.key
        assert b.top is not None
        assert a.top is not None
        assert np.allclose(a.top, b.top, atol=1e-3)


def test_soft_targets_are_refused_where_they_are_missing_few_or_foreign(
    exchanges: list[Exchange], teacher: LocalModel
):
    logprobs = exchanges[0].logprobs
    assert logprobs is not None
    assert logprobs.token_ids is not None

    def refused(match: str, **change: object) -> None:
        wrong = dataclasses.replace(exchanges[0], **change)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=match):
            make_examples([wrong], teacher, kind="soft", top_k=12)

    refused("no stored alternatives", logprobs=None)
    refused("tokenizer", logprobs=dataclasses.replace(logprobs, tokenizer="t1:" + "0" * 64))
    few = dataclasses.replace(
        logprobs,
        top=logprobs.top[:, :3],
        top_ids=logprobs.top_ids[:, :3],  # type: ignore[index]
    )
    refused("3 alternatives", logprobs=few)
    refused("log-probabilities of 0 tokens", logprobs=dataclasses.replace(logprobs, token_ids=None))


def test_an_end_of_turn_the_server_did_not_report_becomes_a_hard_target(
    exchanges: list[Exchange], teacher: LocalModel
):
    exchange = exchanges[0]
    logprobs = exchange.logprobs
    assert logprobs is not None
    kept = slice(0, 4)
    cut = dataclasses.replace(
        logprobs, chosen=logprobs.chosen[kept], token_ids=np.array([60, 61, 62, 63], np.int32),
        top=logprobs.top[kept], top_ids=logprobs.top_ids[kept],  # type: ignore[index]
    )  # fmt: skip
    ended = dataclasses.replace(exchange, logprobs=cut, finish_reason="stop")
    (example,), record = make_examples([ended], teacher, kind="soft")
    assert example.answer.tolist() == [60, 61, 62, 63, 2]
    assert example.top is not None
    assert example.top_ids is not None
    assert example.top_ids[-1, 0] == 2
    assert example.top[-1, 0] == 0.0
    assert np.isneginf(example.top[-1, 1:]).all()
    assert record.ends_as_hard_targets == 1


def test_what_cannot_be_trained_on_is_left_out_and_counted(
    exchanges: list[Exchange], teacher: LocalModel
):
    empty = dataclasses.replace(exchanges[0], response=Response(text=""))
    filtered = dataclasses.replace(exchanges[1], finish_reason="content_filter")
    examples, record = make_examples(
        [empty, filtered, exchanges[2], exchanges[2], *exchanges[3:]], teacher, kind="soft"
    )
    assert len(examples) == len(exchanges) - 2
    assert record.left_out == {
        "empty answer": 1, "stopped by a content filter": 1, "the same request again": 1,
    }  # fmt: skip
    with pytest.raises(DataError, match="longer than the context"):
        make_examples(exchanges, teacher, kind="hard", context_tokens=3)
    with pytest.raises(DataError, match="no usable exchange"):
        make_examples([empty], teacher, kind="hard")


def test_engines_are_counted_and_contradicting_settings_refused(exchanges: list[Exchange]):
    assert engines([dataclasses.replace(exchanges[0], logprobs=None)]) == {"none": 1}
    with pytest.raises(ConfigError, match="target_source"):
        check_kind("hard", "teacher")
    check_kind("soft", "teacher")
