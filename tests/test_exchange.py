"""The record: what it holds, what it refuses, its forms, and that version 1 still reads."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from stillhouse.errors import DataError
from stillhouse.exchange import (
    Exchange,
    Logprobs,
    Message,
    Part,
    Request,
    Response,
    Sampling,
    Terms,
    Tool,
    ToolCall,
    canonical_json,
    from_dict,
    message,
    schema_fields,
    to_dict,
)
from tests.exchanges import START, exchanges, frozen, numbered

DATA = Path(__file__).parent / "data"
RECORDS = (Exchange, Message, Part, ToolCall, Tool, Response, Sampling, Logprobs, Terms)


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def plain_exchange(**changes: Any) -> dict[str, Any]:
    """The JSON form of a small exchange, with some fields changed."""
    return {**json.loads(canonical_json(to_dict(numbered(1, tokens=2, top=2)))), **changes}


# ---- forms ----


@settings(max_examples=150, deadline=None)
@given(exchanges())
def test_json_gives_back_the_same_exchange_with_the_same_hashes(exchange: Exchange) -> None:
    text = canonical_json(to_dict(exchange))
    again = from_dict(json.loads(text, parse_constant=no_constant))
    assert again == exchange
    assert (again.id, again.key) == (exchange.id, exchange.key)
    assert canonical_json(to_dict(again)) == text


@settings(max_examples=30, deadline=None)
@given(exchanges())
def test_an_exchange_survives_pickle_and_copy(exchange: Exchange) -> None:
    assert pickle.loads(pickle.dumps(exchange)) == exchange
    assert copy.deepcopy(exchange) == exchange


def test_version_1_still_reads() -> None:
    lines = (DATA / "exchange-v1.jsonl").read_text(encoding="utf-8").splitlines()
    for line, exchange in zip(lines, frozen(), strict=True):
        assert from_dict(json.loads(line)) == exchange
        assert canonical_json(to_dict(exchange)) == line


def test_the_documented_hash_can_be_computed_by_hand() -> None:
    import hashlib

    exchange = Exchange(
        time=START, model="m", prompt=(), response=Response(), sampling=Sampling(temperature=1)
    )
    text = (
        '{"model":"m","prompt":[],"response":{"tool_calls":[]},"sampling":{"temperature":1.0},'
        '"time":"2026-11-22T07:00:00+00:00","tools":[]}'
    )
    assert exchange.id == "x1:" + hashlib.sha256(text.encode()).hexdigest()
    text = '{"prompt":[],"sampling":{"temperature":1.0},"tools":[]}'
    assert exchange.key == "k1:" + hashlib.sha256(text.encode()).hexdigest()


def test_minus_infinity_is_null_in_json_and_nothing_else_is() -> None:
    logprobs = to_dict(frozen()[1])["logprobs"]
    assert logprobs["top"][0][2] is None
    assert logprobs["chosen"][1] is None
    assert logprobs["top"][0][0] == float(np.float32(-0.1))


@pytest.mark.parametrize("record", RECORDS)
def test_every_field_is_documented_in_one_line(record: type) -> None:
    for name, _, doc in schema_fields(record):
        assert doc, name
        assert "\n" not in doc


# ---- identity ----

CONTENT = {
    "time": START + timedelta(seconds=1),
    "account": "a",
    "session": "s",
    "model": "other",
    "served_model": "other",
    "prompt": (message("user", "other"),),
    "tools": (Tool(name="t"),),
    "response": Response(text="other"),
    "reasoning": "r",
    "finish_reason": "length",
    "sampling": Sampling(sample_index=1),
}
DESCRIPTION = {
    "input_tokens": 99,
    "output_tokens": 99,
    "logprobs": Logprobs(tokenizer="t1:x", chosen=[-1.0]),
    "terms": Terms(teacher="t", status="allowed"),
    "labels": {"other": "1"},
}


def test_the_id_covers_the_content_and_not_what_describes_it() -> None:
    exchange = numbered(1)
    assert {*CONTENT, *DESCRIPTION} == {name for name, _, _ in schema_fields(Exchange)}
    for name, value in CONTENT.items():
        assert dataclasses.replace(exchange, **{name: value}).id != exchange.id, name
    for name, value in DESCRIPTION.items():
        changed = dataclasses.replace(exchange, **{name: value})
        assert changed.id == exchange.id, name
        assert changed != exchange, name


def test_the_key_covers_what_was_asked_and_equals_the_requests() -> None:
    exchange = numbered(1)
    for name, value in CONTENT.items():
        changed = dataclasses.replace(exchange, **{name: value})
        assert (changed.key != exchange.key) == (name in {"prompt", "tools", "sampling"}), name
    request = Request(prompt=exchange.prompt, sampling=exchange.sampling)
    assert request.key == exchange.key


def test_samples_of_one_prompt_differ() -> None:
    first = numbered(1)
    second = dataclasses.replace(first, sampling=Sampling(sample_index=1))
    assert first.id != second.id


def test_equal_settings_have_equal_hashes_however_they_were_written() -> None:
    written = [
        Sampling(temperature=1, top_p=1, top_k=0, stop=["a"], seed=3),  # pyright: ignore
        Sampling(temperature=1.0, top_p=1.0, top_k=np.int64(0), stop=("a",), seed=np.uint32(3)),  # pyright: ignore
        Sampling(temperature=np.float32(1), top_p=np.float64(1), top_k=0, stop=("a",), seed=3),  # pyright: ignore
    ]
    keys = {Request(prompt=(message("user", "x"),), sampling=s).key for s in written}
    assert len(keys) == 1
    assert written[0] == written[1] == written[2]


def test_not_recorded_differs_from_empty_and_zero() -> None:
    asked = (message("user", "x"),)
    keys = {
        Request(prompt=asked, sampling=s).key
        for s in (Sampling(), Sampling(stop=()), Sampling(seed=0), Sampling(temperature=0.0))
    }
    assert len(keys) == 4


# ---- what is held ----


def test_times_are_kept_in_utc() -> None:
    there = datetime(2026, 11, 22, 9, tzinfo=timezone(timedelta(hours=2)))
    exchange = dataclasses.replace(numbered(1), time=there)
    assert exchange.time == there
    assert exchange.time.tzinfo is UTC
    assert exchange.id == dataclasses.replace(numbered(1), time=there.astimezone(UTC)).id


def test_a_message_gives_its_text_parts_joined() -> None:
    assert message("user", "a").text == "a"
    assert (
        Message(role="user", content=(Part(text="a"), Part(kind="image"), Part(text="b"))).text
        == "ab"
    )


def test_labels_are_the_exchanges_own() -> None:
    labels = {"a": "1"}
    exchange = dataclasses.replace(numbered(1), labels=labels)
    labels["a"] = "2"
    assert exchange.labels == {"a": "1"}


def test_text_of_a_subclass_becomes_plain_text() -> None:
    class Word(str):
        pass

    assert type(message(Word("user"), "x").role) is str


def test_columns_become_contiguous_arrays_of_their_declared_kinds() -> None:
    wide = np.arange(8, dtype=np.int64).reshape(2, 4)[:, ::2]
    logprobs = Logprobs(
        tokenizer="t1:x",
        token_ids=[1, 2],
        chosen=[-1, -2.0],
        top_ids=wide,
        top=-np.ones((2, 2)) * 3,
    )
    assert len(logprobs) == 2
    for name, dtype in (("token_ids", "int32"), ("chosen", "float32"), ("top_ids", "int32")):
        column = getattr(logprobs, name)
        assert column.dtype == dtype
        assert column.flags.c_contiguous


def test_logprobs_are_equal_bit_for_bit_and_not_hashable() -> None:
    def columns(**changes: Any) -> Logprobs:
        return Logprobs(
            **{"tokenizer": "t", "chosen": [0.0], "top": [[0.0]], "top_ids": [[1]], **changes}
        )

    assert columns() == columns()
    assert columns() != columns(chosen=[-0.0])
    assert columns() != columns(top=None, top_ids=None)
    assert columns() != columns(tokenizer="u")
    assert columns() != "columns"
    with pytest.raises(TypeError):
        hash(columns())


# ---- refusals ----

NESTED = {"role": "user", "content": [{"text": 3}]}


@pytest.mark.parametrize(
    ("changes", "where", "found"),
    [
        ({"version": 2}, "line 7", "format version 2"),
        ({"id": "x1:00"}, "line 7", "id x1:00"),
        ({"promt": []}, "line 7", "unknown field 'promt' of Exchange"),
        ({"prompt": [NESTED]}, "line 7.prompt[0].content[0].text", "3"),
        ({"prompt": [{"content": []}]}, "line 7.prompt[0]", "`role` is missing"),
        ({"prompt": [{"role": "user", "x": 1}]}, "line 7.prompt[0]", "unknown field 'x'"),
        ({"prompt": "hello"}, "line 7.prompt", "'hello'"),
        ({"prompt": [3]}, "line 7.prompt[0]", "3"),
        ({"prompt": None}, "line 7.prompt", "None"),
        ({"model": 4}, "line 7.model", "4"),
        ({"model": "\ud800"}, "line 7.model", "surrogate"),
        ({"time": "yesterday"}, "line 7.time", "'yesterday'"),
        ({"time": 17}, "line 7.time", "17"),
        ({"time": "2026-01-01T00:00:00"}, "line 7.time", "no timezone"),
        ({"time": "0001-01-01T00:00:00+10:00"}, "line 7.time", "0001"),
        ({"sampling": {"temperature": "hot"}}, "line 7.sampling.temperature", "'hot'"),
        ({"sampling": {"temperature": True}}, "line 7.sampling.temperature", "True"),
        ({"sampling": {"temperature": float("nan")}}, "line 7.sampling.temperature", "nan"),
        ({"sampling": {"temperature": 10**400}}, "line 7.sampling.temperature", "1000"),
        ({"sampling": {"top_k": 1.5}}, "line 7.sampling.top_k", "1.5"),
        ({"sampling": {"top_k": False}}, "line 7.sampling.top_k", "False"),
        ({"sampling": {"seed": 2**63}}, "line 7.sampling.seed", "9223372036854775808"),
        ({"labels": {"a": 1}}, "line 7.labels['a']", "1"),
        ({"labels": ["a"]}, "line 7.labels", "['a']"),
        ({"response": None}, "line 7.response", "None"),
    ],
)  # fmt: skip
def test_a_json_form_is_refused_by_the_path_of_its_fault(
    changes: dict[str, Any], where: str, found: str
) -> None:
    with pytest.raises(DataError) as caught:
        from_dict(plain_exchange(**changes), "line 7")
    assert caught.value.where == where
    assert found in caught.value.found
    assert pickle.loads(pickle.dumps(caught.value)).where == where


def test_a_missing_field_is_named() -> None:
    data = plain_exchange()
    del data["sampling"]
    with pytest.raises(DataError, match="`sampling` is missing"):
        from_dict(data)


def test_a_record_made_in_code_is_refused_like_one_that_was_read() -> None:
    with pytest.raises(DataError) as caught:
        Sampling(temperature=float("inf"))
    assert caught.value.where == "sampling.temperature"
    with pytest.raises(DataError) as caught:
        dataclasses.replace(numbered(1), time=datetime(2026, 1, 1))  # noqa: DTZ001
    assert caught.value.where == "exchange.time"


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"chosen": [0.1, -1.0]}, "no log-probability"),
        ({"chosen": [np.nan, -1.0]}, "no log-probability"),
        ({"chosen": [[-1.0, -1.0]]}, "-1.0"),
        ({"chosen": -1.0}, "-1.0"),
        ({"chosen": ["a", "b"]}, "'a'"),
        ({"chosen": ["-1", None]}, "None"),
        ({"chosen": [True, False]}, "True"),
        ({"chosen": np.array([-1e300, -1.0])}, "-1.e+300"),
        ({"token_ids": [1]}, "`token_ids` has 1 tokens, `chosen` 2"),
        ({"token_ids": [1.5, 2.0]}, "1.5"),
        ({"token_ids": [None, 2]}, "None"),
        ({"token_ids": [2**31, 2]}, "2147483648"),
        ({"token_ids": np.array([2**40, 2])}, "1099511627776"),
        ({"top": None}, "only one of"),
        ({"top": [[-1.0], [-2.0], [-3.0]]}, "`top` has 3 tokens, `chosen` 2"),
        ({"top": [[-1.0], [-2.0]]}, "`top` has shape (2, 1), `top_ids` (2, 2)"),
        ({"top": [[-1.0], [-2.0, -3.0]]}, "-1.0"),
        ({"top": [[-0.1, -0.1], [-2.0, -3.0]]}, "add up to 1.8097"),
        ({"top": [[1e30, -0.1], [-2.0, -3.0]]}, "add up to inf"),
        ({"top": [[np.nan, -0.1], [-2.0, -3.0]]}, "add up to nan"),
    ],
)  # fmt: skip
def test_columns_that_are_no_logprobs_are_refused(changes: dict[str, Any], found: str) -> None:
    columns = {
        "tokenizer": "t1:x", "token_ids": [1, 2], "chosen": [-1.0, -2.0],
        "top_ids": [[1, 2], [3, 4]], "top": [[-1.0, -2.0], [-2.0, -3.0]],
    }  # fmt: skip
    assert len(Logprobs(**columns)) == 2
    with pytest.raises(DataError) as caught:
        Logprobs(**{**columns, **changes})
    assert caught.value.where.startswith("logprobs")
    assert found in caught.value.found
