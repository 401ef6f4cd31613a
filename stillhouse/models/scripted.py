"""The one fake, shipped: models whose answers, and whose true distribution, are known beforehand.

Users try a recipe with them in seconds; tests hold the rest of the house against them.

    scripted:echo     answers with the prompt's last message; text only
    scripted:bigram   a language model over characters whose next-token distribution depends on the
                      last token alone: real log-probabilities, sampling, scoring, full logits
    scripted:flaky    bigram, but every third request fails and may be asked again
    scripted:slow     bigram, a twentieth of a second an answer
    scripted:gone     bigram, until it stops answering for good after five answers

In: requests, exchanges. Out: exchanges, log-probabilities. No network, no weights, numpy only.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from stillhouse.errors import CapabilityError, ConfigError, TransportError, nearest
from stillhouse.exchange import Exchange, Logprobs, Request, Response, Sampling
from stillhouse.models.asking import explicit
from stillhouse.models.base import Capabilities, Failure, Need, Scored, require
from stillhouse.text import tokenizer_hash

__all__ = [
    "ALPHABET",
    "END_OF_TURN",
    "SCRIPTED",
    "TOKENIZER",
    "ScriptedModel",
    "encode",
    "transitions",
]

ALPHABET = "\x00abcdefghijklmnopqrstuvwxyz .,?!\n'-0123456789\ufffd"
"""One character a token; the first ends the turn, the last stands for every other character."""
END_OF_TURN = 0
TOKENIZER = tokenizer_hash({character: number for number, character in enumerate(ALPHABET)})
"""Tagged hash of the alphabet."""
_UNKNOWN = len(ALPHABET) - 1
_ENGINE = "numpy-float64 bigram"
_MOST_TOKENS = 256  # of an answer, where the request does not say
_CONTEXT_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Script:
    """How one scripted model behaves."""

    echo: bool = False
    fails_every: int = 0
    seconds: float = 0.0
    answers: int | None = None


SCRIPTED: dict[str, Script] = {
    "echo": Script(echo=True),
    "bigram": Script(),
    "flaky": Script(fails_every=3),
    "slow": Script(seconds=0.05),
    "gone": Script(answers=5),
}
"""The scripted models by name."""


@cache
def transitions() -> npt.NDArray[np.float64]:
    """(V, V) log-probability in nats of each next token (column) after each token (row)."""
    # Seed and spread are ours: a spread of 2 gives an entropy of about 2.2 nats, near English text
    # under a small model; the end of turn is made likelier, so that answers end after ~40 tokens.
    logits = np.random.default_rng(20261122).normal(0.0, 2.0, (len(ALPHABET), len(ALPHABET)))
    logits[:, END_OF_TURN] = np.log(np.exp(logits).sum(axis=1)) - np.log(40)
    logits[:, _UNKNOWN] = -12.0  # it hardly ever writes the stand-in
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def encode(text: str) -> list[int]:
    """Token ids of a text, one for each character; lower case."""
    known = {character: number for number, character in enumerate(ALPHABET)}
    return [known.get(character, _UNKNOWN) for character in text.lower()]


class ScriptedModel:
    """A model that is known beforehand.

    Raises:
        ConfigError: no scripted model of that name.
    """

    def __init__(self, script: str, *, spec: str, name: str | None = None) -> None:
        if script not in SCRIPTED:
            raise ConfigError(
                spec, f"no scripted model '{script}'", f"one of {', '.join(SCRIPTED)}",
                nearest(script, SCRIPTED),
            )  # fmt: skip
        self.spec, self.name, self.script = spec, name or spec, SCRIPTED[script]
        self.capabilities = (
            Capabilities(text=True)
            if self.script.echo
            else Capabilities(
                text=True, top_logprobs=len(ALPHABET), scoring=True, full_logits=True,
                context_tokens=_CONTEXT_TOKENS,
            )
        )  # fmt: skip
        self._asked = self._answered = 0

    # ---- the protocol -------------------------------------------------------------------------

    def answer(
        self, requests: Iterable[Request], *, top_logprobs: int = 0
    ) -> Iterator[Exchange | Failure]:
        """Exchanges in the order of the requests."""
        require(self, Need(text=True, top_logprobs=top_logprobs))
        return (self._answer(request, top_logprobs) for request in requests)

    def score(
        self, exchanges: Sequence[Exchange], *, top_logprobs: int = 0
    ) -> Iterator[tuple[int, Logprobs]]:
        """(index, log-probabilities of the exchange's own answer), in order."""
        require(self, Need(scoring=True, top_logprobs=top_logprobs))
        return (
            (index, _columns(*self._rows(exchange), top_logprobs))
            for index, exchange in enumerate(exchanges)
        )

    def distributions(self, exchanges: Sequence[Exchange]) -> Iterator[Scored]:
        """The whole distribution at each answer position, in order."""
        require(self, Need(full_logits=True))
        for index, exchange in enumerate(exchanges):
            tokens, rows = self._rows(exchange)
            yield Scored(index, np.asarray(tokens, np.int32), rows.astype(np.float32))

    def close(self) -> None:
        """Nothing to release."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    # ---- how it answers -----------------------------------------------------------------------

    def _answer(self, request: Request, top_logprobs: int) -> Exchange | Failure:
        self._asked += 1
        time.sleep(self.script.seconds)
        if self.script.answers is not None and self._answered >= self.script.answers:
            raise TransportError(
                f"model '{self.spec}'", f"silence after {self._answered} answers", "an answer",
                "Run the command again: answers already stored are kept",
            )  # fmt: skip
        if self.script.fails_every and self._asked % self.script.fails_every == 0:
            return self._failure(request, f"request {self._asked} failed, as every third does")
        sampling = explicit(request.sampling)
        if self.script.echo:
            text = request.prompt[-1].text if request.prompt else ""
            return self._exchange(request, text, "stop", encode(text), None)
        unfit = _unfit(sampling)
        if unfit:
            return Failure(request, self._cannot(unfit), retryable=False)
        length = sum(len(message.text) for message in request.prompt)
        if length >= _CONTEXT_TOKENS:
            return Failure(
                request, self._cannot(f"a prompt of {length} tokens, of {_CONTEXT_TOKENS} in all"),
                retryable=False,
            )  # fmt: skip
        tokens, text, reason = _sample(_last_token(request), sampling)
        columns = None
        if top_logprobs:
            columns = _columns(tokens, _rows_of(_last_token(request), tokens), top_logprobs)
        return self._exchange(request, text, reason, tokens, columns)

    def _exchange(
        self, request: Request, text: str, reason: str, tokens: list[int],
        columns: Logprobs | None,
    ) -> Exchange:  # fmt: skip
        self._answered += 1
        return Exchange(
            time=datetime.now(UTC), model=self.name, served_model=self.spec, prompt=request.prompt,
            tools=request.tools, response=Response(text=text), finish_reason=reason,
            sampling=request.sampling, output_tokens=len(tokens), logprobs=columns,
            input_tokens=sum(len(message.text) for message in request.prompt),
            terms=request.terms, labels=dict(request.labels),
        )  # fmt: skip

    def _rows(self, exchange: Exchange) -> tuple[list[int], npt.NDArray[np.float64]]:
        """Answer tokens, and the (T, V) log-probabilities at their positions."""
        columns = exchange.logprobs
        if columns is not None and columns.tokenizer == TOKENIZER and columns.token_ids is not None:
            tokens = columns.token_ids.tolist()
        else:
            tokens = encode(exchange.response.text or "")
            tokens += [END_OF_TURN] if exchange.finish_reason == "stop" else []
        return tokens, _rows_of(_last_token(exchange), tokens)

    def _failure(self, request: Request, found: str) -> Failure:
        error = TransportError(f"model '{self.spec}'", found, "an answer", "Ask again")
        return Failure(request, error, retryable=True)

    def _cannot(self, found: str) -> CapabilityError:
        return CapabilityError(
            f"model '{self.spec}'", found, "what this fake can do", "Leave it out of the request"
        )


def _last_token(asked: Request | Exchange) -> int:
    """What the first answer token follows: the prompt's last character."""
    text = "".join(message.text for message in asked.prompt)
    return encode(text[-1:])[0] if text else END_OF_TURN


def _unfit(sampling: Sampling) -> str | None:
    """The setting that this fake does not know, in words."""
    neutral = explicit(Sampling())
    for name in ("frequency_penalty", "presence_penalty", "repeat_penalty"):
        if getattr(sampling, name) != getattr(neutral, name):
            return f"{name} {getattr(sampling, name)}"
    return None


def _sample(last: int, sampling: Sampling) -> tuple[list[int], str, str]:
    """Answer tokens, text and finish reason, drawn as the settings say."""
    generator = np.random.default_rng(sampling.seed)
    tokens: list[int] = []
    text = ""
    for _ in range(sampling.max_tokens or _MOST_TOKENS):
        last = _draw(transitions()[last], sampling, generator)
        tokens.append(last)
        if last == END_OF_TURN:
            return tokens, text, "stop"
        text += ALPHABET[last]
        for stop in sampling.stop or ():
            if stop and text.endswith(stop):
                cut = len(text) - len(stop)
                return tokens[:cut], text[:cut], "stop"
    return tokens, text, "length"


def _draw(row: npt.NDArray[np.float64], sampling: Sampling, generator: np.random.Generator) -> int:
    """One token: temperature first, then top_k, top_p and min_p."""
    if sampling.temperature == 0:
        return int(row.argmax())
    order = np.argsort(-row, kind="stable")
    weights = np.exp((row[order] - row.max()) / (sampling.temperature or 1.0))
    weights /= weights.sum()
    kept = np.ones(len(weights), bool)
    kept[sampling.top_k or len(weights) :] = False
    kept &= np.cumsum(weights) - weights < (1.0 if sampling.top_p is None else sampling.top_p)
    kept &= weights >= (sampling.min_p or 0.0) * weights[0]
    kept[0] = True
    weights = np.where(kept, weights, 0.0)
    return int(generator.choice(order, p=weights / weights.sum()))


def _rows_of(last: int, tokens: Sequence[int]) -> npt.NDArray[np.float64]:
    return transitions()[[last, *tokens[:-1]] if len(tokens) else []]


def _columns(tokens: Sequence[int], rows: npt.NDArray[np.float64], width: int) -> Logprobs:
    top_ids = np.argsort(-rows, axis=1, kind="stable")[:, :width]
    return Logprobs(
        tokenizer=TOKENIZER, engine=_ENGINE, token_ids=np.asarray(tokens, np.int32),
        chosen=rows[np.arange(len(tokens)), tokens].astype(np.float32),
        top_ids=top_ids.astype(np.int32) if width else None,
        top=np.take_along_axis(rows, top_ids, axis=1).astype(np.float32) if width else None,
    )  # fmt: skip
