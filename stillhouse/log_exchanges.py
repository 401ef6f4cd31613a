"""A log's record as an exchange, so that what guard found can be audited.

In: a `LogRecord` with its messages and answer, in OpenAI's or Anthropic's form or an exchange's.
Out: the `Exchange`, or `BadLine` with the reason why none can be made: without text there is no
exchange. Nothing is guessed: what a log does not record stays None.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from stillhouse.errors import DataError
from stillhouse.exchange import (
    Exchange,
    Message,
    Part,
    Response,
    Sampling,
    Tool,
    ToolCall,
    from_dict,
    message,
)
from stillhouse.log_records import INT32, BadLine, LogRecord, name_of, parsed_text

__all__ = ["asked_of", "exchange_of"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MEDIA = {"image_url": "image", "input_image": "image", "image": "image", "input_audio": "audio",
          "file": "file", "document": "file"}  # fmt: skip
_FINISH = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length",
           "tool_use": "tool_calls", "refusal": "content_filter"}  # fmt: skip


def exchange_of(record: LogRecord) -> Exchange:
    """The exchange that a record stands for.

    Its time is the request's, where the log's format does not make it another.

    Raises:
        BadLine: the log keeps no text, or no answer, or they cannot be read.
    """
    answer = parsed_text(record.answer)
    try:
        if isinstance(answer, Mapping) and "sampling" in answer and "version" in answer:
            return from_dict(answer)
        prompt, tools = asked_of(record)
        response, reasoning, finish, served = _answer(answer)
        return Exchange(
            time=_EPOCH + timedelta(microseconds=record.time_us), account=record.account,
            session=record.session, model=record.model or "", served_model=served,
            prompt=prompt, tools=tools,
            response=response, reasoning=reasoning, finish_reason=finish,
            sampling=_sampling(record.parameters or {}), input_tokens=record.input_tokens,
            output_tokens=record.output_tokens,
        )  # fmt: skip
    except DataError as problem:
        raise BadLine(f"no exchange: {problem.where}: {problem.found}"[:200]) from None


def asked_of(record: LogRecord) -> tuple[tuple[Message, ...], tuple[Tool, ...]]:
    """Prompt and tools of a record, whatever its answer is.

    Raises:
        BadLine: the log keeps no text, or it cannot be read.
    """
    if record.messages is None:
        raise BadLine("the log keeps no text")
    line = record.answer
    try:
        if isinstance(line, Mapping) and line.get("prompt") is record.messages:  # an exchange
            return (
                tuple(Message.build(one, "prompt") for one in _listed(record.messages)),
                tuple(Tool.build(one, "tools") for one in _listed(record.tools)),
            )
        return _prompt(record), tuple(map(_tool, _listed(record.tools)))
    except DataError as problem:
        raise BadLine(f"no exchange: {problem.where}: {problem.found}"[:200]) from None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _json(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (RecursionError, TypeError, ValueError):
        raise BadLine("nested too deeply") from None


# ---- the request ----


def _prompt(record: LogRecord) -> tuple[Message, ...]:
    messages: list[Message] = []
    if record.system:
        messages.append(Message(role="system", content=_parts(record.system)[0]))
    if isinstance(record.messages, str):
        messages.append(message("user", record.messages))
    else:
        for item in _listed(record.messages):
            messages += _messages(item)
    if not messages:
        raise BadLine("an empty prompt")
    return tuple(messages)


def _messages(item: Any) -> list[Message]:
    """A message as sent; Anthropic's with results of tools becomes several, as OpenAI writes it."""
    if not isinstance(item, Mapping):
        return [message("user", _json(item))]
    kind = item.get("type")
    if kind == "function_call_output":
        found = (Part(text=_json(item.get("output"))),)
        return [Message(role="tool", content=found, tool_call_id=name_of(item.get("call_id")))]
    if kind == "function_call":
        return [Message(role="assistant", tool_calls=(_call(item),))]
    role = name_of(item.get("role")) or "user"
    parts, calls, results = _parts(item.get("content"))
    calls += tuple(_call(call) for call in _listed(item.get("tool_calls")))
    own = Message(
        role=role, content=parts, tool_calls=calls, tool_call_id=name_of(item.get("tool_call_id"))
    )
    return [*results, own] if parts or calls or not results else results


def _parts(content: Any) -> tuple[tuple[Part, ...], tuple[ToolCall, ...], list[Message]]:
    """(parts, calls, results of tools) of a message's content."""
    parts: list[Part] = []
    calls: list[ToolCall] = []
    results: list[Message] = []
    for part in _listed(content):
        if isinstance(part, str):
            parts.append(Part(text=part))
        elif not isinstance(part, Mapping):
            parts.append(Part(text=_json(part)))
        elif part.get("type") == "tool_use":
            calls.append(_call(part))
        elif part.get("type") == "tool_result":
            inner = _parts(part.get("content"))[0]
            which = name_of(part.get("tool_use_id"))
            results.append(Message(role="tool", content=inner, tool_call_id=which))
        elif isinstance(part.get("text"), str):
            parts.append(Part(text=part["text"]))
        else:
            parts.append(_medium(part))
    return tuple(parts), tuple(calls), results


def _medium(part: Mapping[str, Any]) -> Part:
    kind = _MEDIA.get(str(part.get("type", part.get("kind"))))
    if kind is None:
        return Part(text=_json(part))
    held = part.get("image_url") or part.get("source") or part.get("uri")
    uri = held.get("url") if isinstance(held, Mapping) else held
    return Part(kind=kind, uri=uri if isinstance(uri, str) and len(uri) < 2048 else None)


def _call(call: Any) -> ToolCall:
    if not isinstance(call, Mapping):
        raise BadLine("a tool call that is no object")
    inner = call.get("function")
    inner = inner if isinstance(inner, Mapping) else call
    arguments = inner.get("arguments", inner.get("input", "{}"))
    return ToolCall(
        id=name_of(call.get("id") or call.get("call_id")), name=name_of(inner.get("name")) or "",
        arguments=_json(arguments),
    )  # fmt: skip


def _tool(tool: Any) -> Tool:
    if not isinstance(tool, Mapping):
        raise BadLine("a tool that is no object")
    inner = tool.get("function")
    inner = inner if isinstance(inner, Mapping) else tool
    schema = inner.get("parameters", inner.get("input_schema"))
    return Tool(
        name=name_of(inner.get("name") or tool.get("type")) or "",
        description=name_of(inner.get("description")),
        parameters=None if schema is None else _json(schema),
    )


def _sampling(sent: Mapping[str, Any]) -> Sampling:
    """Requesters send what they like: a value that is none of its kind counts as not sent."""

    def real(name: str) -> float | None:
        return _real(sent.get(name))

    stop = sent.get("stop", sent.get("stop_sequences"))
    words = tuple(word for word in _listed(stop) if _is_text(word))
    limits = ("max_tokens", "max_completion_tokens", "max_output_tokens")
    counts = (_real(sent.get(name)) for name in limits)
    return Sampling(
        temperature=real("temperature"), top_p=real("top_p"), min_p=real("min_p"),
        frequency_penalty=real("frequency_penalty"), presence_penalty=real("presence_penalty"),
        repeat_penalty=real("repeat_penalty"), top_k=_whole(sent.get("top_k")),
        seed=_whole(sent.get("seed")),
        max_tokens=next((int(n) for n in counts if n is not None and 0 <= n <= INT32), None),
        stop=words if words or stop == [] else None,
    )  # fmt: skip


def _real(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        value = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return value if math.isfinite(value) else None


def _whole(value: Any) -> int | None:
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return value if whole else None


def _is_text(value: Any) -> bool:
    """Whether it is text that an exchange can hold, without halves of surrogate pairs."""
    return isinstance(value, str) and value.encode("utf-8", "replace").decode() == value


# ---- the answer ----


def _answer(answer: Any) -> tuple[Response, str | None, str | None, str | None]:
    """(response, reasoning, finish reason, the model that answered)."""
    if isinstance(answer, Mapping) and isinstance(answer.get("body"), Mapping):
        answer = answer["body"]
    if isinstance(answer, str):
        return Response(text=answer), None, None, None
    if not isinstance(answer, Mapping):
        raise BadLine("the log keeps no answer")
    served = name_of(answer.get("model"))
    choices = answer.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], Mapping):
        return *_choice(choices[0]), served
    if isinstance(answer.get("content"), list | str):
        text, reasoning, calls = _pieces(answer["content"])
        stop = name_of(answer.get("stop_reason"))
        return (
            Response(text=text, tool_calls=calls),
            reasoning,
            _FINISH.get(stop or "", stop),
            served,
        )
    if isinstance(answer.get("output"), list):
        text, reasoning, calls = _pieces(answer["output"])
        return Response(text=text, tool_calls=calls), reasoning, None, served
    raise BadLine("the log keeps no answer")


def _choice(choice: Mapping[str, Any]) -> tuple[Response, str | None, str | None]:
    said = choice.get("message")
    said = said if isinstance(said, Mapping) else choice  # of /completions: text beside the choice
    text = said.get("content", said.get("text"))
    calls = tuple(_call(call) for call in _listed(said.get("tool_calls")))
    reasoning = said.get("reasoning_content", said.get("reasoning"))
    return (
        Response(text=None if text is None else _pieces(text)[0], tool_calls=calls),
        None if reasoning is None else _json(reasoning),
        name_of(choice.get("finish_reason")),
    )


def _pieces(content: Any) -> tuple[str | None, str | None, tuple[ToolCall, ...]]:
    """(text, reasoning, calls) of an answer's parts, one level of lists inside included."""
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    for part in _listed(content):
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping):
            kind = part.get("type")
            if kind in ("tool_use", "function_call"):
                calls.append(_call(part))
            elif kind in ("thinking", "reasoning"):
                thoughts.append(_json(part.get("thinking", part.get("summary", ""))))
            elif isinstance(part.get("text"), str):
                texts.append(part["text"])
            elif isinstance(part.get("content"), list):
                texts += [p["text"] for p in part["content"]
                          if isinstance(p, Mapping) and isinstance(p.get("text"), str)]  # fmt: skip
    return "".join(texts) if texts else None, "\n".join(thoughts) or None, tuple(calls)
