"""Requests in the chat form every server speaks, and its answers as exchanges.

In: a `Request`; a response's JSON. Out: the JSON to send; an `Exchange`. What a request holds and
the chat form cannot say is refused, never dropped. Nothing here opens a connection.
Source: https://platform.openai.com/docs/api-reference/chat, and the fields that llama.cpp's and
vLLM's servers add to it (`reasoning_content`, `id` of a token).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from stillhouse.errors import ModelError, TransportError
from stillhouse.exchange import Exchange, Logprobs, Message, Part, Request, Response, Tool, ToolCall
from stillhouse.messages import tool_form

__all__ = ["chat_messages", "chat_tools", "logprob_columns", "to_exchange"]

_PADDING_NATS = -np.inf  # `Logprobs.top`: -inf pads


def chat_messages(request: Request, where: str) -> list[dict[str, Any]]:
    """The messages of a request in chat form.

    Raises:
        ModelError: a content part that the chat form cannot carry.
    """
    return [_message(message, where) for message in request.prompt]


def _message(message: Message, where: str) -> dict[str, Any]:
    form: dict[str, Any] = {"role": message.role}
    if all(part.kind == "text" for part in message.content):
        form["content"] = message.text if message.content or not message.tool_calls else None
    else:
        form["content"] = [_part(part, where) for part in message.content]
    if message.tool_calls:
        form["tool_calls"] = [
            {
                "id": call.id or f"call_{number}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for number, call in enumerate(message.tool_calls)
        ]
    if message.tool_call_id is not None:
        form["tool_call_id"] = message.tool_call_id
    return form


def _part(part: Part, where: str) -> dict[str, Any]:
    if part.kind == "text":
        return {"type": "text", "text": part.text or ""}
    if part.kind == "image" and part.uri is not None and ":" in part.uri:
        return {"type": "image_url", "image_url": {"url": part.uri}}
    raise ModelError(
        where, f"a content part of kind '{part.kind}' in the prompt", "text, or images with a URL",
        "Leave such prompts out of this model's collection",
    )  # fmt: skip


def chat_tools(tools: Sequence[Tool], where: str) -> list[dict[str, Any]]:
    """The tools of a request in chat form.

    Raises:
        ModelError: a tool's parameters are not JSON.
    """
    return [_tool(tool, where) for tool in tools]


def _tool(tool: Tool, where: str) -> dict[str, Any]:
    try:
        return tool_form(tool)
    except ValueError as problem:
        raise ModelError(
            where, f"the parameters of tool '{tool.name}' are not JSON ({problem})",
            "a JSON schema", "Correct the tool's definition in the prompt file",
        ) from problem  # fmt: skip


def to_exchange(
    request: Request, answer: Mapping[str, Any], *, model: str, where: str, **fields: Any
) -> Exchange:
    """The exchange that a chat response's JSON completes; `fields` override what is read from it.

    Raises:
        TransportError: the JSON is no chat response.
    """
    try:
        choice = answer["choices"][0]
        said = choice["message"]
        calls = tuple(_call(call) for call in said.get("tool_calls") or ())
        usage = answer.get("usage") or {}
        text = said.get("content")
        read = {
            "served_model": answer.get("model"),
            "response": Response(
                text=text if text is not None else said.get("refusal"), tool_calls=calls
            ),
            "reasoning": said.get("reasoning_content") or said.get("reasoning"),
            "finish_reason": choice.get("finish_reason"),
            "input_tokens": usage.get("prompt_tokens"),
            "output_tokens": usage.get("completion_tokens"),
        }
    except (KeyError, IndexError, TypeError, AttributeError) as problem:
        raise garbled(where, f"{json.dumps(answer)[:200]} ({problem!r})") from problem
    return Exchange(
        time=datetime.now(UTC), model=model, prompt=request.prompt, tools=request.tools,
        sampling=request.sampling, terms=request.terms, labels=dict(request.labels),
        **{**read, **fields},
    )  # fmt: skip


def _call(call: Mapping[str, Any]) -> ToolCall:
    function = call["function"]
    return ToolCall(id=call.get("id"), name=function["name"], arguments=function["arguments"])


def garbled(where: str, found: str) -> TransportError:
    """The error for an answer that is not one."""
    return TransportError(
        where, f"an answer that is no chat response: {found}", "a chat completion in JSON",
        "Check that the URL is that of an OpenAI-compatible server",
    )  # fmt: skip


def logprob_columns(
    chosen: Sequence[float],
    tops: Sequence[Sequence[tuple[int, float]]],
    *,
    token_ids: Sequence[int],
    tokenizer: str,
    engine: str | None,
) -> Logprobs:
    """Columns from rows: `chosen` (T,) in nats and `tops`, T rows of (token id, nats), any order.

    Rows shorter than the longest are padded with id 0 at -inf.
    """
    width = max((len(row) for row in tops), default=0)
    ids = np.zeros((len(tops), width), np.int32)
    values = np.full((len(tops), width), _PADDING_NATS, np.float32)
    for at, row in enumerate(tops):
        ranked = sorted(row, key=lambda pair: -pair[1])
        ids[at, : len(row)] = [token for token, _ in ranked]
        values[at, : len(row)] = [nats for _, nats in ranked]
    return Logprobs(
        tokenizer=tokenizer, engine=engine, token_ids=np.asarray(token_ids, np.int32),
        chosen=np.asarray(chosen, np.float32),
        top_ids=ids if width else None, top=values if width else None,
    )  # fmt: skip
