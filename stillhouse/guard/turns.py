"""The newest turn of a request: what was asked now, apart from the conversation it stands in.

In: messages as sent, in OpenAI's, Anthropic's or an exchange's form, whatever their shape. Out:
the newest turn's text, what stands around it, and marks of what is no text. Requesters write the
messages, so nothing here refuses any: what has no known shape counts as text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

__all__ = [
    "COMPUTER", "IMAGE", "RESULT", "TOOLS", "UNREADABLE", "Turn", "canonical", "newest_turn",
    "tool_marks",
]  # fmt: skip

IMAGE, RESULT, TOOLS, COMPUTER = 1, 2, 4, 8
"""Marks: the newest turn has an image; it has a tool's result; the request offers tools; one of
them moves a mouse or a browser."""
UNREADABLE = b'"unreadable"'
"""The canonical form of all that no JSON can hold."""

_TEXTS = frozenset(["text", "input_text", "output_text"])
_IMAGES = frozenset(["image", "image_url", "input_image"])
_RESULTS = frozenset(["tool_result", "function_call_output", "computer_call_output"])
_CALLS = frozenset(["function_call", "computer_call", "reasoning"])
_COMPUTER_WORDS = ("computer", "browser", "screenshot", "mouse", "click", "playwright")


class Turn(NamedTuple):
    """A newest turn."""

    text: str
    before: int
    """Messages before it, the system prompt not counted."""
    system: str
    """The system prompt; empty where there is none."""
    marks: int


def newest_turn(messages: Any, system: Any = None) -> Turn:
    """All that came after the model's last message; a trailing message of the model (a prefilled
    answer) is passed over.

    Args:
        messages: a list of messages, or a text.
        system: a system prompt that stands apart.
    """
    apart = _text_of(system)[0] if system else ""
    if isinstance(messages, str):
        return Turn(messages, 0, apart, 0)
    if not isinstance(messages, list):
        return Turn(canonical(messages).decode("utf-8", "replace"), 0, apart, 0)
    if len(messages) == 1:  # the commonest: one message of the user
        only = messages[0]
        if isinstance(only, dict) and only.get("role") == "user":
            text, marks = _text_of(only.get("content"))
            return Turn(text, 0, apart, marks)
    return _of_conversation(messages, apart)


def _of_conversation(messages: list[Any], apart: str) -> Turn:
    systems, rest = [apart] if apart else [], []
    for item in messages:
        if isinstance(item, dict) and item.get("role") in ("system", "developer"):
            systems.append(_text_of(item.get("content"))[0])
        else:
            rest.append(item)
    stop = len(rest)
    while stop and _is_answer(rest[stop - 1]):
        stop -= 1
    start = stop
    while start and not _is_answer(rest[start - 1]):
        start -= 1
    texts, marks = [], 0
    for item in rest[start:stop]:
        text, found = _of_message(item)
        texts.append(text)
        marks |= found
    return Turn("\n".join(filter(None, texts)), start, "\n".join(systems), marks)


def _is_answer(item: Any) -> bool:
    return isinstance(item, dict) and (
        item.get("role") in ("assistant", "model")
        or ("role" not in item and _among(item.get("type"), _CALLS))
    )


def _among(value: Any, names: frozenset[str]) -> bool:
    return isinstance(value, str) and value in names


def _of_message(item: Any) -> tuple[str, int]:
    if not isinstance(item, dict):
        return _text_of(item)
    result = item.get("role") in ("tool", "function") or _among(item.get("type"), _RESULTS)
    text, marks = _text_of(item.get("content", item.get("output", item.get("text"))))
    return text, marks | (RESULT if result else 0)


def _text_of(content: Any, depth: int = 0) -> tuple[str, int]:
    """(text, marks) of a message's content."""
    if isinstance(content, str):
        return content, 0
    if content is None:
        return "", 0
    if not isinstance(content, list):
        content = [content]
    texts, marks = [], 0
    for part in content:
        text, found = _of_part(part, depth)
        texts.append(text)
        marks |= found
    return "\n".join(filter(None, texts)), marks


def _of_part(part: Any, depth: int) -> tuple[str, int]:
    if isinstance(part, str):
        return part, 0
    if isinstance(part, dict):
        kind = part.get("type", part.get("kind"))
        if _among(kind, _IMAGES):
            return "", IMAGE
        if _among(kind, _RESULTS) and depth == 0:
            text, marks = _text_of(part.get("content", part.get("output")), 1)
            return text, marks | RESULT
        if isinstance(part.get("text"), str) and (kind is None or _among(kind, _TEXTS)):
            return part["text"], 0
    return canonical(part).decode("utf-8", "replace"), 0


def tool_marks(tools: Any) -> int:
    """`TOOLS` and `COMPUTER`, from the definitions offered."""
    if not isinstance(tools, list) or not tools:
        return 0
    for tool in tools:
        if isinstance(tool, Mapping):
            inner = tool.get("function")
            inner = inner if isinstance(inner, Mapping) else tool
            name = f"{inner.get('name', '')} {tool.get('type', '')}".lower()
            if any(word in name for word in _COMPUTER_WORDS):
                return TOOLS | COMPUTER
    return TOOLS


def canonical(value: Any) -> bytes:
    """One form for equal values: JSON with sorted keys. What no JSON can hold is one constant."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    except TypeError:  # of orjson: deep nesting, halves of surrogate pairs, huge numbers
        pass
    try:
        return json.dumps(value, sort_keys=True, default=str).encode()
    except (RecursionError, TypeError, ValueError):
        return UNREADABLE
