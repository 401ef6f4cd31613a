"""Exchanges for tests: a numbered one, any one (hypothesis), and the frozen ones of version 1."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stillhouse.exchange import (
    Exchange,
    Logprobs,
    Message,
    Part,
    Response,
    Sampling,
    Terms,
    Tool,
    ToolCall,
    message,
)

START = datetime(2026, 11, 22, 7, 0, tzinfo=UTC)


def numbered(index: int, tokens: int = 0, top: int = 0) -> Exchange:
    """Exchange number `index`, always the same; with `tokens` answer tokens, `top` alternatives."""
    logprobs = None
    if tokens:
        draw = np.random.default_rng(index)
        most = -np.log(top + 2)  # of so many, all together less than one
        values = np.sort(draw.uniform(most - 9, most, (tokens, max(top, 1))))[:, ::-1]
        values = values.astype(np.float32)
        values[::3, -1] = -np.inf  # padding
        logprobs = Logprobs(
            tokenizer="t1:test",
            engine="numpy",
            token_ids=draw.integers(0, 49_152, tokens),
            chosen=values[:, 0],
            top_ids=draw.integers(0, 49_152, (tokens, top)) if top else None,
            top=values if top else None,
        )
    return Exchange(
        time=START + timedelta(microseconds=index),
        model="scripted:numbers",
        prompt=(message("user", f"What comes after {index}?"),),
        response=Response(text=f"{index + 1} "),
        finish_reason="stop",
        sampling=Sampling(temperature=1.0, max_tokens=160, seed=index, sample_index=0),
        input_tokens=5,
        output_tokens=tokens,
        logprobs=logprobs,
        labels={"index": str(index)},
    )


def frozen() -> list[Exchange]:
    """What tests/data holds in version 1 of the format. Never change these: add others."""
    agent = Exchange(
        time=datetime(2026, 11, 22, 9, 30, 0, 250_001, timezone(timedelta(hours=2))),
        account="acct-17",
        session="s-1",
        model="gpt-x",
        served_model="gpt-x-2026-10-01",
        prompt=(
            Message(role="system", content=(Part(text="Be brief. Straße, 水, 🥃"),)),
            Message(
                role="user",
                content=(Part(text="What is this?"), Part(kind="image", uri="sha256:00ff")),
            ),
            Message(
                role="assistant",
                tool_calls=(ToolCall(id="c1", name="look", arguments='{"x": 1.0}'),),
            ),
            Message(role="tool", content=(Part(text=""),), tool_call_id="c1"),
        ),
        tools=(Tool(name="look", description="Looks.", parameters='{"type":"object"}'),),
        response=Response(tool_calls=(ToolCall(name="look", arguments=""),)),
        reasoning="It may be a cask.",
        finish_reason="tool_calls",
        sampling=Sampling(
            temperature=0, top_p=0.95, top_k=40, min_p=0.05, frequency_penalty=0.1,
            presence_penalty=-0.1, repeat_penalty=1.1, max_tokens=64, stop=("\n\n", "</s>"),
            seed=2**40, sample_index=3,
        ),
        input_tokens=120,
        output_tokens=0,
        terms=Terms(
            teacher="gpt-x", status="conditional", licence="terms of 2026", source="https://x.example",
            date="2026-11-01", conditions="no competing model", authorised_by="A. Person: research",
        ),
        labels={"task": "see", "": "\x00"},
    )  # fmt: skip
    scored = Exchange(
        time=START,
        model="smollm2-135m",
        prompt=(message("user", ""),),
        response=Response(text=""),
        finish_reason="stop",
        sampling=Sampling(stop=()),
        output_tokens=2,
        logprobs=Logprobs(
            tokenizer="t1:ab",
            engine="llama.cpp 1",
            token_ids=[7, 2],
            chosen=[-0.1, -np.inf],
            top_ids=[[7, 2, 0], [1, 2, 3]],
            top=[[-0.1, -2.5, -np.inf], [-1e-4, -11.25, -30.0]],
        ),
    )
    least = Exchange(
        time=START, model="m", prompt=(), response=Response(), sampling=Sampling(),
        logprobs=Logprobs(tokenizer="t1:ab", chosen=[], top_ids=[], top=[]),
    )  # fmt: skip
    return [agent, scored, least, numbered(4)]


# ---- any exchange ----

_text = st.text(max_size=12)
_maybe_text = st.none() | _text
_whole = st.integers(-(2**63), 2**63 - 1)
_real = st.floats(allow_nan=False, allow_infinity=False)
_parts = st.builds(Part, kind=_text, text=_maybe_text, uri=_maybe_text)
_calls = st.builds(ToolCall, id=_maybe_text, name=_text, arguments=_text)


def _tuples(items: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(items, max_size=3).map(tuple)


_messages = st.builds(
    Message,
    role=_text,
    content=_tuples(_parts),
    tool_calls=_tuples(_calls),
    tool_call_id=_maybe_text,
)


@st.composite
def logprobs(draw: st.DrawFn) -> Logprobs:
    """Any columns: T of 0 to 4, K of 0 to 3."""
    tokens, kept = draw(st.integers(0, 4)), draw(st.integers(0, 3))
    # each at most log(1/4): then three add up to less than one
    values = st.floats(-(2.0**100), -1.5, width=32) | st.just(-np.inf)
    ids = st.integers(-(2**31), 2**31 - 1)
    columns = {
        "token_ids": hnp.arrays(np.int32, tokens, elements=ids),
        "top_ids": hnp.arrays(np.int32, (tokens, kept), elements=ids),
        "top": hnp.arrays(np.float32, (tokens, kept), elements=values),
    }
    made = {name: draw(column) for name, column in columns.items()}
    absent = draw(st.sampled_from([(), ("token_ids",), ("top", "top_ids"), tuple(made)]))
    return Logprobs(
        tokenizer=draw(_text),
        engine=draw(_maybe_text),
        chosen=draw(hnp.arrays(np.float32, tokens, elements=values | st.just(-0.0))),
        **{name: None if name in absent else column for name, column in made.items()},
    )


def exchanges() -> st.SearchStrategy[Exchange]:
    """Any exchange."""
    return st.builds(
        Exchange,
        time=st.datetimes(
            min_value=datetime(1, 1, 3),  # noqa: DTZ001  -- hypothesis adds the zone
            max_value=datetime(9999, 12, 29),  # noqa: DTZ001
            timezones=st.integers(-23, 23).map(lambda h: timezone(timedelta(hours=h, seconds=1))),
        ),
        account=_maybe_text,
        session=_maybe_text,
        model=_text,
        served_model=_maybe_text,
        prompt=_tuples(_messages),
        tools=_tuples(st.builds(Tool, name=_text, description=_maybe_text, parameters=_maybe_text)),
        response=st.builds(Response, text=_maybe_text, tool_calls=_tuples(_calls)),
        reasoning=_maybe_text,
        finish_reason=_maybe_text,
        sampling=st.builds(
            Sampling,
            temperature=st.none() | _real | st.integers(0, 2),
            top_p=st.none() | _real,
            top_k=st.none() | _whole,
            stop=st.none() | _tuples(_text),
            seed=st.none() | _whole,
            sample_index=st.none() | st.integers(0, 9),
        ),
        input_tokens=st.none() | _whole,
        output_tokens=st.none() | _whole,
        logprobs=st.none() | logprobs(),
        terms=st.none() | st.builds(Terms, teacher=_text, status=_text, conditions=_maybe_text),
        labels=st.dictionaries(_text, _text, max_size=3),
    )
