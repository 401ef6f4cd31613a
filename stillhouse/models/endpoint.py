"""Models behind an OpenAI-compatible server, through the openai SDK.

In: a base URL, the model's name there, requests. Out: exchanges. The key comes from OPENAI_API_KEY
and is never written anywhere; local servers need none. What is decided here:

* Settings outside OpenAI's own (top_k, min_p, repeat_penalty) are sent where they say something,
  and always to servers that would otherwise apply defaults of their own (llama.cpp's top_k 40 and
  min_p 0.05, vLLM's generation_config.json).
* A request that fails in a way that may pass (429, 5xx, timeouts, garbled answers) is asked again a
  bounded number of times, with growing pauses or those the server asks for.
* Log-probabilities that were asked for and did not come are an error, not a gap.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from time import time
from types import TracebackType
from typing import Any, Self

from stillhouse.errors import CapabilityError, ConfigError, ModelError, TransportError
from stillhouse.exchange import Exchange, Logprobs, Request
from stillhouse.models.asking import Loop, ask_all
from stillhouse.models.base import Capabilities, Failure, Need, Scored, refuse, require
from stillhouse.models.chat import (
    chat_messages,
    chat_tools,
    garbled,
    logprob_columns,
    to_exchange,
)
from stillhouse.text import bare_url

__all__ = ["EndpointModel"]

_TOP_LOGPROBS = 20  # OpenAI's limit, https://platform.openai.com/docs/api-reference/chat/create
_OWN = (  # OpenAI's own settings, sent whenever they are set
    "temperature", "top_p", "frequency_penalty", "presence_penalty", "max_tokens", "seed",
)  # fmt: skip
_FOREIGN = {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}  # others' settings, and neutral values
_REPEAT = {"vllm": "repetition_penalty", "sglang": "repetition_penalty"}  # its name elsewhere
_OPINIONATED = {"llamacpp", "vllm", "sglang"}  # `owned_by` of servers with defaults of their own
_PASSING = {408, 409, 425, 429}  # statuses that may pass; so may all from 500
_NEVER = {401, 403, 404, 405}  # statuses that no other request would escape either
_LONGEST_WAIT_SECONDS = 300.0


class EndpointModel:
    """One model of one server.

    Args:
        base_url: up to and including '/v1'.
        model: its name at the server.
        spec: the spec it was opened by.
        name: what stands in `Exchange.model`; the name at the server by default.
        slots: requests open at a time.
        attempts: how often a request is asked at most.
        timeout_seconds: for one answer.
        first_wait_seconds: pause before the second attempt; doubled before each further one.

    Raises:
        ConfigError: no model, or attempts below 1.
    """

    def __init__(
        self, base_url: str, model: str, *, spec: str, name: str | None = None, slots: int = 16,
        attempts: int = 6, timeout_seconds: float = 300.0, first_wait_seconds: float = 1.0,
    ) -> None:  # fmt: skip
        if not model or attempts < 1 or slots < 1:
            raise ConfigError(
                f"model spec '{spec}'", f"model '{model}', {attempts} attempts, {slots} slots",
                "the model's name after '#', at least one attempt and one slot",
                "Correct the spec or its options",
            )  # fmt: skip
        self.spec, self.name, self.base_url, self.model = spec, name or model, base_url, model
        self._address = bare_url(base_url)  # what lets somebody in is kept nowhere
        # What a server can do is known when it has done it: log-probabilities are checked as they
        # come. Nothing here scores given text: the chat form has no word for it.
        self.capabilities = Capabilities(text=True, top_logprobs=_TOP_LOGPROBS)
        self.asked_again = 0
        """Attempts beyond the first, of all requests."""
        self._slots, self._attempts = slots, attempts
        self._timeout, self._first_wait = timeout_seconds, first_wait_seconds
        self._loop = Loop()
        self._client: Any = None
        self._server: str | None = None  # `owned_by` as the server says; '' is unknown
        self._getting_ready = asyncio.Lock()

    # ---- the protocol -------------------------------------------------------------------------

    def answer(
        self, requests: Iterable[Request], *, top_logprobs: int = 0
    ) -> Iterator[Exchange | Failure]:
        """Exchanges as they finish; `slots` requests are open at a time.

        Raises:
            CapabilityError: log-probabilities were asked for and the server gave none, or none with
                token ids.
            ModelError: the key or the model's name is wrong.
            TransportError: the server cannot be reached.
        """
        require(self, Need(text=True, top_logprobs=top_logprobs))
        return ask_all(
            self._loop, requests, lambda request: self._ask(request, top_logprobs),
            concurrency=self._slots,
        )  # fmt: skip

    def score(
        self, exchanges: Sequence[Exchange], *, top_logprobs: int = 0
    ) -> Iterator[tuple[int, Logprobs]]:
        """Nothing: servers of this kind do not score given text."""
        refuse(self, Need(scoring=True, top_logprobs=top_logprobs))

    def distributions(self, exchanges: Sequence[Exchange]) -> Iterator[Scored]:
        """Nothing: servers of this kind do not give full logits."""
        refuse(self, Need(full_logits=True))

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._loop.run(self._client.close())
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    # ---- one request --------------------------------------------------------------------------

    async def _ask(self, request: Request, top_logprobs: int) -> Exchange | Failure:
        """The exchange that answers a request, or why there is none."""
        await self._ready()
        try:
            body = self._body(request, top_logprobs)
        except ModelError as error:
            return Failure(request, error, retryable=False)
        error: ModelError = self._silence("nothing")
        for attempt in range(self._attempts):
            self.asked_again += attempt > 0
            try:
                answer = await self._post(body)
                columns = self._columns(answer) if top_logprobs else None
                return to_exchange(
                    request, answer, model=self.name, where=self._where, logprobs=columns
                )
            except _Passing as problem:
                error, wait = problem.error, problem.wait_seconds
            except TransportError as problem:  # a garbled answer
                error, wait = problem, None
            except _Refused as problem:
                return Failure(request, problem.error, retryable=False)
            if attempt + 1 < self._attempts:
                # Spread, so that many waiting requests do not come back at the same moment.
                grown = self._first_wait * 2**attempt * random.uniform(0.75, 1.25)
                await asyncio.sleep(min(_LONGEST_WAIT_SECONDS, grown if wait is None else wait))
        if isinstance(error, _Unreachable):
            raise error  # no other request would fare better
        return Failure(request, error, retryable=True)

    @property
    def _where(self) -> str:
        return f"model '{self.spec}'"

    def _body(self, request: Request, top_logprobs: int) -> dict[str, Any]:
        """The request's JSON."""
        sampling, where = request.sampling, self._where
        body: dict[str, Any] = {"model": self.model, "messages": chat_messages(request, where)}
        own = {name: getattr(sampling, name) for name in _OWN}
        body |= {name: value for name, value in own.items() if value is not None}
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        for name, neutral in _FOREIGN.items():
            value = getattr(sampling, name)
            value = neutral if value is None and self._server in _OPINIONATED else value
            if value is not None and (value != neutral or self._server in _OPINIONATED):
                body[_REPEAT.get(self._server or "", name) if "repeat" in name else name] = value
        if body.get("top_k") == 0 and self._server in _REPEAT:
            body["top_k"] = -1  # their word for 'all'
        if request.tools:
            body["tools"] = chat_tools(request.tools, where)
        if top_logprobs:
            body |= {"logprobs": True, "top_logprobs": top_logprobs}
            if self._server == "vllm":
                body["return_tokens_as_token_ids"] = True
            if self._server == "llamacpp":  # names all sampled tokens, see `_refuse_gaps`
                body |= {"verbose": True, "return_tokens": True}
        return body

    def _columns(self, answer: dict[str, Any]) -> Logprobs | None:
        """The answer's log-probabilities.

        Raises:
            CapabilityError: none came, or none with token ids.
            TransportError: they came garbled.
            _Refused: some tokens have none.
        """
        try:
            choice = answer["choices"][0]
            rows = (choice.get("logprobs") or {}).get("content")
            self._refuse_gaps(answer, rows or ())
            if not rows:
                if choice["message"].get("content"):
                    raise self._without("no log-probabilities in the answer")
                return None
            ids = [_token_id(row) for row in rows]
            tops = [
                [(_token_id(top), top["logprob"]) for top in row["top_logprobs"]] for row in rows
            ]
            chosen = [row["logprob"] for row in rows]
        except (KeyError, IndexError, TypeError, AttributeError) as problem:
            raise garbled(self._where, f"{json.dumps(answer)[:200]} ({problem!r})") from problem
        known = [token for token in ids if token is not None]
        pairs = [[(t, nats) for t, nats in row if t is not None] for row in tops]
        if len(known) < len(ids) or [len(row) for row in pairs] != [len(row) for row in tops]:
            raise self._without("log-probabilities without token ids")
        return logprob_columns(
            chosen, pairs, token_ids=known, tokenizer=f"served:{self._address}#{self.model}",
            engine=self._server or None,
        )  # fmt: skip

    def _refuse_gaps(self, answer: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
        """Refuse what llama.cpp's server leaves out: rows of tokens that end inside a character."""
        told = answer.get("__verbose") or {}
        sampled, ids = told.get("tokens"), [row.get("id") for row in rows]
        if sampled is None or ids == sampled:
            return
        if told.get("stop_type") == "word" and ids == sampled[: len(ids)]:
            return  # the rows of a stop string are left out, as its text is
        raise _Refused(
            CapabilityError(
                self._where, f"log-probabilities for {len(ids)} of {len(sampled)} tokens: "
                "llama.cpp's server leaves out tokens that end inside a character (half an emoji)",
                "one row for each token",
                "Open the GGUF file itself (gguf:PATH), which asks for the missing rows",
            )
        )  # fmt: skip

    def _without(self, found: str) -> CapabilityError:
        return CapabilityError(
            self._where, f"{found}, though top-{_TOP_LOGPROBS} or fewer were asked for",
            "a server that gives them with token ids (llama.cpp and vLLM do)",
            "Ask for none (top_logprobs 0), or choose another server",
        )  # fmt: skip

    # ---- the connection -----------------------------------------------------------------------

    async def _ready(self) -> None:
        """Connect once, and learn which server it is."""
        async with self._getting_ready:
            if self._server is not None:
                return
            openai = importlib.import_module("openai")
            self._client = openai.AsyncOpenAI(
                base_url=self.base_url, timeout=self._timeout, max_retries=0,
                # the SDK insists on some key; servers that need none ignore it
                api_key=os.environ.get("OPENAI_API_KEY") or "none",
            )  # fmt: skip
            try:
                listed = await self._client.models.with_raw_response.list()
                models = json.loads(listed.http_response.content)["data"]
                mine = [m for m in models if m.get("id") == self.model] or models
                self._server = str(mine[0].get("owned_by") or "") if mine else ""
            except (openai.APIError, ValueError, KeyError, TypeError, AttributeError):
                self._server = ""  # many gateways do not list models; asking tells the rest

    async def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer's JSON; raises `_Passing`, `_Refused` or ModelError."""
        openai = importlib.import_module("openai")
        try:
            # The SDK's own objects for thousands of log-probabilities cost more than the JSON.
            response = await self._client.chat.completions.with_raw_response.create(
                model=body["model"], messages=body["messages"], extra_body=body
            )
            answer = json.loads(response.http_response.content)
        except openai.APITimeoutError as problem:
            raise _Passing(self._silence(f"no answer within {self._timeout:g} s")) from problem
        except openai.APIConnectionError as problem:
            cause = problem.__cause__ or problem
            broken = self._silence(f"the connection broke ({type(cause).__name__}: {cause})")
            if type(cause).__name__ in {"ConnectError", "ConnectTimeout"}:  # httpx's names
                broken = _Unreachable(
                    self._where, f"no connection ({cause})", f"a server at {self.base_url}",
                    "Start the server, or correct the URL",
                )  # fmt: skip
            raise _Passing(broken) from problem
        except openai.APIStatusError as problem:
            raise self._status(problem) from problem
        except ValueError as problem:
            raise garbled(self._where, f"{problem}") from problem
        if not isinstance(answer, dict):
            raise garbled(self._where, f"{answer!r:.80}")
        return answer

    def _status(self, problem: Any) -> Exception:
        """The error for an HTTP status, by who must act."""
        status, told = problem.status_code, problem.body
        words = str(told["message"] if isinstance(told, dict) and "message" in told else problem)
        words = words[:300]
        if status in _PASSING or status >= 500:
            error = TransportError(
                self._where, f"HTTP {status}: {words}", "an answer", "Ask again later"
            )
            return _Passing(error, _asked_wait(problem.response.headers))
        if status in _NEVER:
            return ModelError(
                self._where, f"HTTP {status}: {words}", "an answer",
                "Set OPENAI_API_KEY where the server needs a key; check the URL and model name",
            )  # fmt: skip
        return _Refused(
            ModelError(
                self._where, f"the server refused (HTTP {status}): {words}", "an answer",
                "Correct the request, or leave this prompt out",
            )
        )  # fmt: skip

    def _silence(self, found: str) -> TransportError:
        return TransportError(self._where, found, "an answer", "Ask again later")


class _Unreachable(TransportError):
    """No connection at all."""


class _Passing(Exception):
    """A failure that may pass, and how long the server asks to wait, seconds."""

    def __init__(self, error: ModelError, wait_seconds: float | None = None) -> None:
        super().__init__(error)
        self.error, self.wait_seconds = error, wait_seconds


class _Refused(Exception):
    """A request that this server will never answer."""

    def __init__(self, error: ModelError) -> None:
        super().__init__(error)
        self.error = error


def _asked_wait(headers: Any) -> float | None:
    """Seconds the server asks to wait: `Retry-After` as a number or a date (RFC 9110, 10.2.3)."""
    asked = headers.get("retry-after")
    if asked is None:
        return None
    try:
        return max(0.0, float(asked))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time())
    except ValueError:
        return None


def _token_id(row: dict[str, Any]) -> int | None:
    """A token's id: llama.cpp's field, or vLLM's 'token_id:123' in place of the token."""
    if isinstance(row.get("id"), int):
        return row["id"]
    word, _, number = str(row["token"]).partition("token_id:")
    return int(number) if not word and number.isdigit() else None
