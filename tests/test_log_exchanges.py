"""Records of logs as exchanges: what was asked and answered, nothing guessed."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import pytest

from stillhouse.exchange import Exchange, to_dict
from stillhouse.log_exchanges import exchange_of
from stillhouse.log_formats import read_record
from stillhouse.log_records import BadLine, LogRecord
from tests.exchanges import frozen
from tests.guard.log_lines import line

ASKED = [{"role": "user", "content": "Hi"}]


def made(messages: Any = ASKED, answer: Any = "yes", **more: Any) -> Exchange:
    record = LogRecord("a", 1_762_000_000_000_000, "m", messages=messages, answer=answer, **more)
    return exchange_of(record)


def test_a_litellm_line_is_an_exchange() -> None:
    exchange = exchange_of(read_record(line(2)))
    assert exchange.time == datetime.fromtimestamp(1_762_000_120, UTC)
    assert (exchange.account, exchange.session, exchange.model) == ("account-2", "trace-0", "big")
    assert [m.role for m in exchange.prompt] == ["system", "user"]
    assert (exchange.response.text, exchange.finish_reason) == ("Answer 2.", "stop")
    assert (exchange.sampling.temperature, exchange.sampling.max_tokens) == (0.7, 500)
    assert (exchange.input_tokens, exchange.output_tokens) == (52, 22)


def test_an_exchange_comes_back_as_it_was() -> None:
    for exchange in frozen():
        if exchange.account is not None and exchange.logprobs is None:
            assert exchange_of(read_record(to_dict(exchange))) == exchange


def test_openai_calls_and_results_are_kept() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    exchange = made(
        [*ASKED, {"role": "assistant", "content": None, "tool_calls": [call]},
         {"role": "tool", "tool_call_id": "c1", "content": "R"}],
        {"model": "m-1", "choices": [{"finish_reason": "tool_calls", "message": {
            "content": None, "reasoning_content": "hm", "tool_calls": [call]}}]},
        tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        parameters={"stop": "END", "seed": 3, "top_k": 4, "max_completion_tokens": 9},
    )  # fmt: skip
    assert exchange.prompt[1].tool_calls[0].arguments == '{"x": 1}'
    assert (exchange.prompt[2].role, exchange.prompt[2].tool_call_id) == ("tool", "c1")
    assert exchange.response.text is None
    assert exchange.response.tool_calls[0].name == "f"
    assert (exchange.reasoning, exchange.served_model) == ("hm", "m-1")
    assert (exchange.tools[0].name, exchange.tools[0].parameters) == ("f", '{"type": "object"}')
    sampling = exchange.sampling
    assert (sampling.stop, sampling.seed, sampling.top_k) == (("END",), 3, 4)
    assert sampling.max_tokens == 9


def test_anthropic_blocks_are_kept() -> None:
    use = {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}}
    exchange = made(
        [*ASKED, {"role": "assistant", "content": [{"type": "text", "text": "so"}, use]},
         {"role": "user", "content": [
             {"type": "tool_result", "tool_use_id": "t1", "content": "R"},
             {"type": "image", "source": {"type": "url", "url": "https://x.example/i.png"}},
             {"type": "text", "text": "and?"}]}],
        {"body": {"model": "c", "stop_reason": "tool_use", "content": [
            {"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "A"}, use]}},
        system=[{"type": "text", "text": "Be kind."}],
    )  # fmt: skip
    roles = [m.role for m in exchange.prompt]
    assert roles == ["system", "user", "assistant", "tool", "user"]
    assert exchange.prompt[2].tool_calls[0].arguments == '{"x": 1}'
    assert [(p.kind, p.uri) for p in exchange.prompt[4].content] == [
        ("image", "https://x.example/i.png"), ("text", None),
    ]  # fmt: skip
    assert (exchange.response.text, exchange.reasoning) == ("A", "hm")
    assert exchange.response.tool_calls[0].name == "f"
    assert exchange.finish_reason == "tool_calls"


def test_the_responses_form_is_kept() -> None:
    exchange = made(
        [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
         {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
         {"type": "function_call_output", "call_id": "c", "output": "R"}],
        {"output": [{"type": "reasoning", "summary": "hm"},
                    {"type": "message", "content": [{"type": "output_text", "text": "A"}]}]},
    )  # fmt: skip
    assert [m.role for m in exchange.prompt] == ["user", "assistant", "tool"]
    assert (exchange.response.text, exchange.reasoning) == ("A", "hm")


def test_plain_texts_are_kept() -> None:
    exchange = made("Once upon", "a time")
    assert (exchange.prompt[0].text, exchange.response.text) == ("Once upon", "a time")
    assert made(answer={"choices": [{"text": "T"}]}).response.text == "T"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"messages": None}, "keeps no text"), ({"messages": []}, "an empty prompt"),
        ({"answer": None}, "keeps no answer"), ({"answer": {"error": "x"}}, "keeps no answer"),
        ({"tools": ["f"]}, "a tool that is no object"),
        ({"messages": [{"role": "assistant", "tool_calls": [1]}]}, "a tool call that is no object"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "no exchange"),
    ],
)  # fmt: skip
def test_what_makes_no_exchange_is_a_reason(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadLine, match=reason):
        made(**given)


@pytest.mark.parametrize("odd", [-1, 2**31, "100", True, float("nan"), 10**400, [1], {}, "\ud800"])
def test_odd_parameters_count_as_not_sent(odd: Any) -> None:
    names = ("max_tokens", "temperature", "stop", "seed", "top_k", "frequency_penalty")
    sampling = made(parameters=dict.fromkeys(names, odd)).sampling
    assert sampling.max_tokens is None
    assert made(parameters={"max_tokens": odd, "max_output_tokens": 7}).sampling.max_tokens == 7
    words = ("a", odd) if odd == "100" else ("a",)
    assert made(parameters={"stop": ["a", odd]}).sampling.stop == words
    assert sampling.temperature is None or math.isfinite(sampling.temperature)
    assert sampling.seed is None or (type(sampling.seed) is int and abs(sampling.seed) < 2**63)


def test_an_answer_nested_too_deeply_is_a_reason() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(BadLine, match="nested too deeply"):
        made([{"role": "user", "content": [{"type": "odd", "deep": deep}]}])
