"""A prompt as plain data, in the chat form people keep prompts in, to a `Prompt`.

In: what JSON or Parquet gave. Out: a `Prompt`, or `Unfit` with the reason why it is none. Messages
are read in OpenAI's chat form. Nothing here opens files.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from stillhouse.exchange import (
    Message,
    Part,
    Request,
    Sampling,
    Tool,
    ToolCall,
    canonical_json,
    message,
)

__all__ = ["ROLES", "Prompt", "Unfit", "prompt_of", "tool_form", "with_own_id"]

ROLES = ("system", "developer", "user", "assistant", "tool")
_OWN_KEYS = frozenset(["id", "prompt_id", "messages", "prompt", "system", "tools", "labels"])
# A label is a mark, not a document: reference answers and the like stay in the user's file.
_LABEL_CHARS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What is to be asked, and where it came from."""

    id: str
    """As given, else a tagged hash of messages and tools."""
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    labels: Mapping[str, str]
    """`prompt_id`, and the record's own short fields."""
    source: str
    """'file:line'; for Parquet and JSON the row, from 1."""


class Unfit(ValueError):
    """Why a record is no prompt; becomes the reason in the rejects file."""


def prompt_of(record: Any, source: str, not_carried: Counter[str]) -> Prompt:
    """The prompt a record stands for; fields that make no label are counted in `not_carried`.

    Raises:
        Unfit: it stands for none.
    """
    if not isinstance(record, dict):
        raise Unfit(f"{_kind(record)} instead of an object with `prompt` or `messages`")
    try:
        json.dumps(record, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as problem:
        raise Unfit("holds half a surrogate pair, which is no text") from problem
    messages = _messages(record)
    tools = tuple(_tool(tool) for tool in _list(record.get("tools", []), "tools"))
    labels = _labels(record, not_carried)
    given = record.get("id", record.get("prompt_id", ""))
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise Unfit(f"`id` is {_kind(given)} instead of text")
    name = str(given).strip() or _hash(messages, tools)
    return Prompt(
        id=name, messages=messages, tools=tools, labels={**labels, "prompt_id": name}, source=source
    )


def with_own_id(prompt: Prompt) -> Prompt:
    """The prompt under an id of its own: the given one, '#', and eight digits of its hash."""
    digits = _hash(prompt.messages, prompt.tools).partition(":")[2][:8]
    name = f"{prompt.id}#{digits}"
    return replace(prompt, id=name, labels={**prompt.labels, "prompt_id": name})


def _hash(messages: tuple[Message, ...], tools: tuple[Tool, ...]) -> str:
    key = Request(prompt=messages, tools=tools, sampling=Sampling()).key
    return "p1:" + key.partition(":")[2][:16]  # 64 bits name a million prompts without a clash


def _messages(record: Mapping[str, Any]) -> tuple[Message, ...]:
    if ("messages" in record) == ("prompt" in record):
        keys = ", ".join(map(str, record)) or "none"
        both = "both" if "messages" in record else "neither"
        raise Unfit(f"{both} of `prompt` and `messages` (keys: {keys:.200})")
    if isinstance(record.get("prompt"), str):
        messages = (message("user", record["prompt"]),)
    else:
        name = "messages" if "messages" in record else "prompt"
        listed = _list(record[name], name)
        messages = tuple(_message(item, f"{name}[{i}]") for i, item in enumerate(listed))
    if record.get("system") is not None:
        messages = (message("system", _text(record["system"], "system")), *messages)
    asked = [m for m in messages if m.role not in ("system", "developer")]
    if not asked or (asked[-1].role == "user" and not asked[-1].text.strip()):
        raise Unfit("an empty prompt")
    if asked[-1].role == "assistant":
        raise Unfit("ends with the assistant's own message, so there is nothing left to answer")
    return messages


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, dict):
        raise Unfit(f"{where} is {_kind(item)} instead of an object")
    role = item.get("role")
    if role not in ROLES:
        raise Unfit(f"{where}.role is {role!r:.40}, not one of {', '.join(ROLES)}")
    content = item.get("content")
    if isinstance(content, str):
        parts: tuple[Part, ...] = (Part(text=content),)
    elif content is None and item.get("tool_calls"):
        parts = ()
    else:
        parts = tuple(_part(part, where) for part in _list(content, f"{where}.content"))
    calls = tuple(_call(call, where) for call in _list(item.get("tool_calls", []), "tool_calls"))
    return Message(
        role=role, content=parts, tool_calls=calls,
        tool_call_id=_maybe_text(item.get("tool_call_id"), f"{where}.tool_call_id"),
    )  # fmt: skip


def _part(part: Any, where: str) -> Part:
    if isinstance(part, dict) and part.get("type", part.get("kind", "text")) == "text":
        return Part(text=_text(part.get("text"), f"{where}.content.text"))
    kind = part.get("type", part.get("kind")) if isinstance(part, dict) else _kind(part)
    raise Unfit(f"{where} holds a part of kind {kind!r:.40}; only text is asked")


def _call(call: Any, where: str) -> ToolCall:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise Unfit(f"{where}.tool_calls holds {_kind(call)} instead of a call")
    arguments = function.get("arguments", "{}")
    return ToolCall(
        id=_maybe_text(call.get("id"), f"{where}.tool_calls.id"),
        name=_text(function.get("name"), f"{where}.tool_calls.name"),
        arguments=_as_json(arguments, f"{where}.tool_calls.arguments"),
    )


def _tool(tool: Any) -> Tool:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict):
        raise Unfit(f"`tools` holds {_kind(tool)} instead of a definition")
    parameters = function.get("parameters")
    return Tool(
        name=_text(function.get("name"), "tools.name"),
        description=_maybe_text(function.get("description"), "tools.description"),
        parameters=None if parameters is None else _as_json(parameters, "tools.parameters"),
    )


def tool_form(tool: Tool, read: Callable[[str], Any] = json.loads) -> dict[str, Any]:
    """A tool in chat form, the schema of its arguments read by `read`.

    Raises:
        ValueError: parameters that are not JSON, unless `read` takes them.
    """
    form: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        form["description"] = tool.description
    if tool.parameters is not None:
        form["parameters"] = read(tool.parameters)
    return {"type": "function", "function": form}


def _as_json(value: Any, name: str) -> str:
    """Text as it is, anything else as canonical JSON."""
    try:
        return value if isinstance(value, str) else canonical_json(value)
    except (TypeError, ValueError) as problem:  # a date or bytes of Parquet, an infinite number
        raise Unfit(f"`{name}` holds what JSON does not: {problem}") from problem


def _labels(record: Mapping[str, Any], not_carried: Counter[str]) -> dict[str, str]:
    """Short fields as labels; `labels` itself has to be short, the rest is the user's own."""
    given = record.get("labels", {})
    if not isinstance(given, dict):
        raise Unfit(f"`labels` is {_kind(given)} instead of an object")
    fields = {name: value for name, value in record.items() if name not in _OWN_KEYS}
    labels: dict[str, str] = {}
    for name, value in {**fields, **given}.items():
        if isinstance(value, str | int | float) and len(str(value)) <= _LABEL_CHARS:
            labels[name] = str(value)
        elif value is not None:
            not_carried[name] += 1
    return labels


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise Unfit(f"`{name}` is {_kind(value)} instead of a list")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise Unfit(f"`{name}` is {_kind(value)} instead of text")
    return value


def _maybe_text(value: Any, name: str) -> str | None:
    return None if value is None else _text(value, name)


def _kind(value: Any) -> str:
    """What a value is, in words; Parquet has some that JSON does not."""
    words = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        type(None): "null",
    }
    number = isinstance(value, int | float)
    other = "a number" if number else f"a value of type {type(value).__name__}"
    return words.get(type(value), other)
