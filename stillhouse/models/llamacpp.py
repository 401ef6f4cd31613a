"""GGUF models answered by llama.cpp, through xllamacpp's embedded server on loopback.

In: a GGUF file and requests. Out: exchanges with the model's own top-20 log-probabilities (before
temperature and truncation), token ids from the file's vocabulary. It cannot score given text: ask
the local engine. Process and transport are `llamaserver.py`; what is decided here:

* Sampling: all of llama.cpp's own defaults (top_k 40, min_p 0.05, ...) are overridden in every
  request, and temperature comes before top_k, top_p and min_p, as in vLLM and transformers
  (llama.cpp would truncate first).
* Every token has its row. llama.cpp drops the rows of tokens that end inside a character (half an
  emoji); they are asked for again, at the same prefix, with the same engine (see `llamarows.py`).
* Admission: slots share one pool of context; a request is let in when its share of it is free.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from stillhouse.errors import ModelError, TransportError
from stillhouse.exchange import Exchange, Logprobs, Request, Response, Sampling
from stillhouse.models.asking import Loop, ask_all, explicit
from stillhouse.models.base import (
    Capabilities,
    Failure,
    Need,
    Scored,
    leaves_tools_out,
    refuse,
    require,
)
from stillhouse.models.chat import chat_messages, chat_tools, to_exchange
from stillhouse.models.gguf_file import vocabulary
from stillhouse.models.llamarows import answer_columns
from stillhouse.models.llamaserver import LlamaServer, Refused

__all__ = ["SLOTS", "TOP_LOGPROBS", "LlamaCppModel"]

SLOTS = 16
"""Requests answered at a time. On two cores more do not help (16 / 32 / 64: 108 / 108 / 95 answer
tokens a second, docs/lab-notes.md)."""
TOP_LOGPROBS = 20
"""Alternatives kept with each token: what every OpenAI-compatible server gives."""
_CONTEXT_TOKENS = 8192  # of one request at most, unless asked for; bounds the memory of big models
_SLOT_TOKENS = 1024  # of the pool for each slot: prompt and answer of an everyday request
_RANDOM_SEED = 2**32 - 1  # llama.h LLAMA_DEFAULT_SEED: asks for a random one


class LlamaCppModel:
    """A GGUF file behind llama.cpp. The server starts with the first request.

    Args:
        path: the GGUF file.
        spec: the spec it was opened by.
        name: what stands in `Exchange.model`; the file's name without suffix by default.
        slots: requests answered at a time.
        context_tokens: prompt and answer of one request at most; by default what the model was
            trained for, at most 8192.
        threads: processor threads; llama.cpp's choice by default.
        timeout_seconds: without an answer for so long, the server counts as hanging.

    Raises:
        ModelError: no readable GGUF file with a vocabulary.
    """

    def __init__(
        self, path: Path, *, spec: str, name: str | None = None, slots: int = SLOTS,
        context_tokens: int | None = None, threads: int | None = None,
        timeout_seconds: float = 900.0,
    ) -> None:  # fmt: skip
        self.path, self.spec, self.name = path, spec, name or path.stem
        self.vocabulary = vocabulary(path)
        trained = self.vocabulary.context_tokens or _CONTEXT_TOKENS
        self._context = min(context_tokens or _CONTEXT_TOKENS, trained)
        self._slots, self._pool = slots, max(self._context, slots * _SLOT_TOKENS)
        self.capabilities = Capabilities(
            text=True, top_logprobs=TOP_LOGPROBS, context_tokens=self._context
        )
        self.engine = f"llama.cpp {_engine_version()}"
        self.server = LlamaServer(
            path, slots=slots, pool_tokens=self._pool, threads=threads,
            timeout_seconds=timeout_seconds,
        )  # fmt: skip
        self._loop = Loop()
        self._room = _Room(self._pool, slots)
        self._template_bytes: int | None = None  # what the chat template adds; None: not started
        self._knows_tools = True

    # ---- the protocol -------------------------------------------------------------------------

    def answer(
        self, requests: Iterable[Request], *, top_logprobs: int = 0
    ) -> Iterator[Exchange | Failure]:
        """Exchanges as they finish; `slots` requests are open at a time."""
        require(self, Need(text=True, top_logprobs=top_logprobs))
        return ask_all(
            self._loop, requests, lambda request: self._ask(request, top_logprobs),
            concurrency=self._slots,
        )  # fmt: skip

    def score(
        self, exchanges: Sequence[Exchange], *, top_logprobs: int = 0
    ) -> Iterator[tuple[int, Logprobs]]:
        """Nothing: llama.cpp's server gives no log-probabilities of given text."""
        refuse(self, Need(scoring=True, top_logprobs=top_logprobs))

    def distributions(self, exchanges: Sequence[Exchange]) -> Iterator[Scored]:
        """Nothing: llama.cpp's server gives no full logits."""
        refuse(self, Need(full_logits=True))

    def start(self) -> None:
        """Start the server now, so that its time does not count with the first answer."""
        self._loop.run(self._ready())

    def close(self) -> None:
        """End the server process."""
        self.server.kill()
        self._loop.run(self.server.close())
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    # ---- one request --------------------------------------------------------------------------

    async def _ready(self) -> None:
        """Know the chat template: how much it adds, and whether it shows tools to the model."""
        if self._template_bytes is None:
            await self.server.start()
            probe = {"messages": [{"role": "user", "content": ""}]}
            rendered = await self.server.call("/apply-template", probe)
            props = await self.server.call("/props")
            self._knows_tools = props.get("chat_template_caps", {}).get("supports_tools", True)
            self._template_bytes = len(rendered["prompt"].encode())

    async def _ask(self, request: Request, top_logprobs: int) -> Exchange | Failure:
        """The exchange that answers a request, or why there is none."""
        try:
            await self._ready()
            body = self._body(request, top_logprobs)
            need = await self._need(request, body)
            async with self._room.taken(need) as slot:
                body["id_slot"] = slot
                answer = await self.server.call("/v1/chat/completions", body)
                return await self._exchange(request, answer, top_logprobs, slot)
        except Refused as refusal:
            return Failure(request, self._refused(refusal), retryable=refusal.status >= 500)
        except TransportError as error:
            if self.server.gone:
                raise
            return Failure(request, error, retryable=True)
        except ModelError as error:
            if self._template_bytes is None:  # the server never started: nothing will be answered
                raise
            return Failure(request, error, retryable=False)

    def _body(self, request: Request, top_logprobs: int) -> dict[str, Any]:
        """The request in llama.cpp's form, every sampler setting explicit."""
        where, sampling = f"model '{self.spec}'", explicit(request.sampling)
        if request.tools and not self._knows_tools:
            raise leaves_tools_out(self.spec)
        body: dict[str, Any] = {
            "messages": chat_messages(request, where),
            **_sampler_settings(sampling, self._context, where),
            # what was computed in another batch was rounded otherwise: a seed is to repeat
            "cache_prompt": sampling.seed is None,
            "verbose": True,  # adds the token ids, the rendered prompt and the text as decoded
            "return_tokens": True,
        }
        if request.tools:
            body["tools"] = chat_tools(request.tools, where)
        if top_logprobs:
            body |= {"logprobs": True, "top_logprobs": top_logprobs, "post_sampling_probs": False}
        return body

    async def _need(self, request: Request, body: dict[str, Any]) -> int:
        """Tokens of context to set aside; counted by the server where it is not plainly little.

        Where prompt and answer could exceed the context, the answer is limited to what is left.
        """
        asked = request.sampling.max_tokens
        # A token is at least a byte, so this is at least the number of prompt tokens.
        most = len(json.dumps([body["messages"], body.get("tools")]).encode()) + (
            (self._template_bytes or 0) * len(request.prompt)
        )
        if asked is not None and most + asked <= _SLOT_TOKENS:
            return _SLOT_TOKENS
        counted = await self.server.call("/v1/chat/completions/input_tokens", body)
        prompt_tokens = int(counted["input_tokens"])
        if prompt_tokens >= self._context:
            raise self._too_long(prompt_tokens)
        left = self._context - prompt_tokens
        body["max_tokens"] = left if asked is None else min(asked, left)
        return prompt_tokens + body["max_tokens"]

    async def _exchange(
        self, request: Request, answer: dict[str, Any], top_logprobs: int, slot: int
    ) -> Exchange:
        """The exchange, with its columns where they were asked for."""
        told = answer.get("__verbose") or {}
        columns = None
        if top_logprobs:
            columns = await answer_columns(
                self.server, self.vocabulary, told, width=top_logprobs, slot=slot,
                engine=self.engine,
            )  # fmt: skip
        exchange = to_exchange(
            request, answer, model=self.name, where=f"model '{self.spec}'",
            logprobs=columns,
        )  # fmt: skip
        if exchange.response.tool_calls or exchange.reasoning or "content" not in told:
            return exchange
        # The chat parser may strip white space; the tokens say what was written.
        return _with_text(exchange, told["content"])

    # ---- errors -------------------------------------------------------------------------------

    def _too_long(self, tokens: int) -> ModelError:
        return ModelError(
            f"model '{self.spec}'", f"a prompt of {tokens} tokens",
            f"at most {self._context - 1}, which leaves room for an answer in its context",
            "Shorten the prompt, leave it out, or open the model with a larger context_tokens",
        )  # fmt: skip

    def _refused(self, refusal: Refused) -> ModelError:
        if refusal.details.get("type") == "exceed_context_size_error":
            return self._too_long(refusal.details.get("n_prompt_tokens", self._context))
        kind = TransportError if refusal.status >= 500 else ModelError
        return kind(
            f"model '{self.spec}'", f"llama.cpp refused (HTTP {refusal.status}): {refusal.message}",
            "an answer", "Correct the request, or leave this prompt out",
        )  # fmt: skip


def _with_text(exchange: Exchange, text: str) -> Exchange:
    return replace(exchange, response=Response(text=text))


def _sampler_settings(sampling: Sampling, context: int, where: str) -> dict[str, Any]:
    """Every setting of llama.cpp's sampler chain.

    Raises:
        ModelError: a seed or number of tokens that llama.cpp would change silently.
    """
    seed, most = sampling.seed, sampling.max_tokens
    if seed is not None and not 0 <= seed < _RANDOM_SEED:
        raise ModelError(
            where, f"seed {seed}", f"0 to {_RANDOM_SEED - 1}, or none",
            "Choose a seed that llama.cpp takes as it is",
        )  # fmt: skip
    if most is not None and most < 1:
        raise ModelError(where, f"max_tokens {most}", "at least 1", "Ask for an answer")
    return {
        "temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p,
        "min_p": sampling.min_p, "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty, "repeat_penalty": sampling.repeat_penalty,
        "repeat_last_n": context,  # penalties look at the whole context, as in transformers
        "typical_p": 1.0, "top_n_sigma": -1.0, "xtc_probability": 0.0, "dry_multiplier": 0.0,
        "mirostat": 0, "dynatemp_range": 0.0, "min_keep": 0, "ignore_eos": False,
        "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"],
        "seed": _RANDOM_SEED if seed is None else seed,
        "stop": list(sampling.stop or ()),
        "max_tokens": -1 if most is None else most,
    }  # fmt: skip


def _engine_version() -> str:
    try:
        return version("xllamacpp")
    except PackageNotFoundError as problem:
        raise ModelError(
            "llama.cpp", "xllamacpp is not installed", "the package xllamacpp",
            "Install it: pip install xllamacpp",
        ) from problem  # fmt: skip


class _Room:
    """The pool of context and the slots; first come, first served."""

    def __init__(self, pool_tokens: int, slots: int) -> None:
        self._free_tokens, self._free_slots = pool_tokens, list(range(slots))
        self._change, self._turn = asyncio.Condition(), asyncio.Lock()

    @asynccontextmanager
    async def taken(self, tokens: int) -> AsyncIterator[int]:
        """A slot number, with `tokens` of the pool set aside while it is held."""
        async with self._turn, self._change:
            await self._change.wait_for(lambda: self._free_slots and self._free_tokens >= tokens)
            self._free_tokens -= tokens
            slot = self._free_slots.pop(0)
        try:
            yield slot
        finally:
            async with self._change:
                self._free_tokens += tokens
                self._free_slots.append(slot)
                self._change.notify_all()
