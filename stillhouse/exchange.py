"""The record everything is a function over: one request to a model and its answer.

In: what a client, a log reader or a store found. Out: frozen, checked values with a content id,
and their JSON form. `None` means "not recorded"; empty and zero mean empty and zero. This file
knows nothing about files, models or formats of others. The fields below are the one declaration:
the JSON form, the Arrow schema (`store.py`) and the table in `docs/exchange-format.md` are made
from a walk over them (`record.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np

from stillhouse.errors import DataError
from stillhouse.record import Record, canonical_json, plain, schema_fields
from stillhouse.record import declared as _doc

# ruff: noqa: RUF009  -- `_doc` makes a dataclass field, which is what a default may call

__all__ = [
    "FORMAT_VERSION",
    "Exchange",
    "Logprobs",
    "Message",
    "Part",
    "Request",
    "Response",
    "Sampling",
    "Terms",
    "Tool",
    "ToolCall",
    "canonical_json",
    "from_dict",
    "message",
    "schema_fields",
    "to_dict",
]

FORMAT_VERSION = 1
Ints = np.ndarray[tuple[int], np.dtype[np.int32]]
Floats = np.ndarray[tuple[int], np.dtype[np.float32]]
IntRows = np.ndarray[tuple[int, int], np.dtype[np.int32]]
FloatRows = np.ndarray[tuple[int, int], np.dtype[np.float32]]

# Log-probabilities come rounded through float32, JSON and servers' own kernels. Slacks are ours.
_LOGPROB_SLACK_NATS = 1e-3
_MASS_SLACK = 5e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Part(Record):
    """One piece of a message's content."""

    kind: str = _doc("text, image, audio or file", default="text")
    text: str | None = _doc("the text of a text part", default=None)
    uri: str | None = _doc("where other media lie, or their tagged hash", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall(Record):
    """A call of a tool, as the model wrote it."""

    id: str | None = _doc("the caller's name for this call", default=None)
    name: str = _doc("the tool called")
    arguments: str = _doc("its arguments: JSON text, byte for byte as written")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool(Record):
    """A tool offered to the model."""

    name: str = _doc("the tool's name")
    description: str | None = _doc("what the model was told it does", default=None)
    parameters: str | None = _doc("JSON schema of its arguments, as text", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message(Record):
    """One message of a prompt."""

    role: str = _doc("system, developer, user, assistant or tool")
    content: tuple[Part, ...] = _doc("the content parts, in order", default=())
    tool_calls: tuple[ToolCall, ...] = _doc("calls an assistant message makes", default=())
    tool_call_id: str | None = _doc("the call a tool message answers", default=None)

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text or "" for part in self.content)


def message(role: str, text: str) -> Message:
    """A message of one text part."""
    return Message(role=role, content=(Part(text=text),))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling(Record):
    """Everything that shapes the distribution an answer is drawn from, as sent. None: not sent."""

    temperature: float | None = _doc("divides the logits; 0 is greedy", default=None)
    top_p: float | None = _doc("nucleus mass kept; 1 keeps all", default=None)
    top_k: int | None = _doc("most likely tokens kept; 0 keeps all", default=None)
    min_p: float | None = _doc("floor relative to the likeliest token; 0 is none", default=None)
    frequency_penalty: float | None = _doc("OpenAI's frequency penalty", default=None)
    presence_penalty: float | None = _doc("OpenAI's presence penalty", default=None)
    repeat_penalty: float | None = _doc("llama.cpp's repeat penalty; 1 is none", default=None)
    max_tokens: int | None = _doc("answer tokens allowed", default=None)
    stop: tuple[str, ...] | None = _doc("strings that end the answer", default=None)
    seed: int | None = _doc("the sampler's seed", default=None)
    sample_index: int | None = _doc("0, 1, ... among samples of one prompt", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Response(Record):
    """What the model answered."""

    text: str | None = _doc("the answer's text, decoded by the server", default=None)
    tool_calls: tuple[ToolCall, ...] = _doc("the tool calls it made", default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms(Record):
    """The terms an answer was given under, as `terms.py` found them before the first request."""

    teacher: str = _doc("the entry of the table of teachers that matched")
    status: str = _doc("allowed, conditional, forbidden or unknown")
    licence: str | None = _doc("licence or terms document", default=None)
    source: str | None = _doc("where that was read", default=None)
    date: str | None = _doc("the day it was read, ISO 8601", default=None)
    conditions: str | None = _doc("what a conditional permission asks for", default=None)
    authorised_by: str | None = _doc("who allowed a refused use, and why", default=None)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Logprobs(Record):
    """Log-probabilities of the answer's tokens, in columns. T answer tokens, K kept alternatives.

    They are the model's own (before temperature and truncation), in nats. The end-of-turn token,
    where it was sampled, is the last of the T. Of no tokens (T = 0), K is 0 too.
    """

    tokenizer: str = _doc("tagged hash of the vocabulary the ids belong to")
    engine: str | None = _doc("what computed them, e.g. llama.cpp, torch-float32", default=None)
    token_ids: Ints | None = _doc("(T,) chosen token ids", default=None)
    chosen: Floats = _doc("(T,) log-probability of each chosen token, nats")
    top_ids: IntRows | None = _doc("(T, K) most likely token ids, likeliest first", default=None)
    top: FloatRows | None = _doc("(T, K) their log-probabilities, nats; -inf pads", default=None)

    def __post_init__(self) -> None:
        """Bring the columns to int32 and float32, and hold them against one another.

        Raises:
            DataError: lengths disagree, or values are no log-probabilities.
        """
        Record.__post_init__(self)
        problem = self._problem()
        if problem:
            raise DataError(
                "logprobs", problem, "matching columns of log-probabilities in nats",
                "Check the code or server that wrote them",
            )  # fmt: skip

    def _problem(self) -> str | None:
        tokens = len(self.chosen)
        if self.token_ids is not None and len(self.token_ids) != tokens:
            return f"`token_ids` has {len(self.token_ids)} tokens, `chosen` {tokens}"
        if (self.top is None) != (self.top_ids is None):
            return "only one of `top` and `top_ids` is recorded"
        if self.top is not None and self.top_ids is not None:
            if len(self.top) != tokens:
                return f"`top` has {len(self.top)} tokens, `chosen` {tokens}"
            if self.top.shape != self.top_ids.shape:
                return f"`top` has shape {self.top.shape}, `top_ids` {self.top_ids.shape}"
            with np.errstate(over="ignore"):  # an infinite mass is found below
                mass = np.exp(self.top.astype(np.float64)).sum(axis=1)
            if not (mass <= 1 + _MASS_SLACK).all():  # also catches NaN
                return f"the kept alternatives of a token add up to {mass.max():.4f}"
        if not (self.chosen <= _LOGPROB_SLACK_NATS).all():
            return f"`chosen` holds {self.chosen.max()}, which is no log-probability"
        return None

    def __eq__(self, other: object) -> bool:
        """Same columns, bit for bit."""
        if not isinstance(other, Logprobs):
            return NotImplemented
        return plain(self, _bits) == plain(other, _bits)

    __hash__ = None  # type: ignore[assignment]  # arrays are mutable in principle

    def __len__(self) -> int:
        """T, the number of answer tokens."""
        return len(self.chosen)


@dataclass(frozen=True, kw_only=True)
class Request(Record):
    """What is asked of a model. Resuming goes by `key`: prompt, tools, sampling, sample index."""

    prompt: tuple[Message, ...]
    sampling: Sampling
    tools: tuple[Tool, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    terms: Terms | None = None

    @cached_property
    def key(self) -> str:
        """Tagged hash of prompt, tools and sampling: the `key` of the exchange it becomes."""
        return _key(self)


@dataclass(frozen=True, kw_only=True)
class Exchange(Record):
    """One request to a model and its answer. Equal content gives an equal `id`."""

    time: datetime = _doc("when the answer was complete; aware, kept in UTC")
    account: str | None = _doc("who asked", default=None)
    session: str | None = _doc("the conversation it belongs to", default=None)
    model: str = _doc("the model asked for")
    served_model: str | None = _doc("the model that answered, as the server says", default=None)
    prompt: tuple[Message, ...] = _doc("the messages sent")
    tools: tuple[Tool, ...] = _doc("the tools offered", default=())
    response: Response = _doc("the answer")
    reasoning: str | None = _doc("reasoning text the server returned apart", default=None)
    finish_reason: str | None = _doc("stop, length, tool_calls or content_filter", default=None)
    sampling: Sampling = _doc("the settings sent")
    input_tokens: int | None = _doc("prompt tokens", default=None)
    output_tokens: int | None = _doc(
        "answer tokens, end of turn included where sampled", default=None
    )
    logprobs: Logprobs | None = _doc("log-probabilities of the answer's tokens", default=None)
    terms: Terms | None = _doc("the terms the answer was given under", default=None)
    labels: Mapping[str, str] = _doc("small map for the user's own marks", default_factory=dict)

    @cached_property
    def id(self) -> str:
        """Tagged SHA-256 of the content: who asked what and when, how, and what came.

        Token counts, log-probabilities, terms and labels are left out: they describe the content.
        """
        return "x1:" + _digest(
            self, "time", "account", "session", "model", "served_model", "prompt", "tools",
            "response", "reasoning", "finish_reason", "sampling",
        )  # fmt: skip

    @cached_property
    def key(self) -> str:
        """What resuming goes by: equal to the `key` of the `Request` that asked for it."""
        return _key(self)


def _key(asked: Request | Exchange) -> str:
    return "k1:" + _digest(asked, "prompt", "tools", "sampling")


def _digest(record: Record, *names: str) -> str:
    """SHA-256, in hex, of the canonical JSON of those of the named fields that are recorded."""
    content = {name: plain(getattr(record, name)) for name in names}
    recorded = {name: value for name, value in content.items() if value is not None}
    return hashlib.sha256(canonical_json(recorded).encode()).hexdigest()


def _bits(array: np.ndarray[Any, Any]) -> tuple[tuple[int, ...], bytes]:
    return array.shape, array.tobytes()


def to_dict(exchange: Exchange) -> dict[str, Any]:
    """The JSON form: plain values, fields that are not recorded left out, version and id first."""
    return {"version": FORMAT_VERSION, "id": exchange.id, **plain(exchange)}


def from_dict(data: Mapping[str, Any], where: str = "exchange") -> Exchange:
    """The exchange a JSON form stands for; `where` names its place in errors.

    Raises:
        DataError: another version; a missing, unknown or wrongly typed field; or an `id` that is
            not the content's.
    """
    data = dict(data)
    version, claimed = data.pop("version", None), data.pop("id", None)
    if version != FORMAT_VERSION:
        raise DataError(
            where, f"format version {version!r}", f"version {FORMAT_VERSION}",
            "Read it with the release of Stillhouse that wrote it",
        )  # fmt: skip
    exchange = Exchange.build(data, where)
    if claimed is not None and claimed != exchange.id:
        raise DataError(
            where, f"id {claimed}", f"{exchange.id}, the hash of the content",
            "The record was changed after it was written; take it from its source again",
        )  # fmt: skip
    return exchange
