"""The one protocol every model serves: teacher, student, suspect and reference are roles, not
classes.

In: requests (prompt and sampling) or exchanges whose text is to be scored. Out: exchanges,
log-probabilities, logits. Nothing here loads a model; `stillhouse.models.open_model(spec,
need=...)` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NoReturn, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from stillhouse.errors import CapabilityError, ModelError
from stillhouse.exchange import Exchange, Logprobs, Request

__all__ = [
    "Capabilities", "Failure", "Model", "Need", "Scored", "leaves_tools_out", "refuse", "require",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a model can do."""

    text: bool = False
    """It answers requests."""
    top_logprobs: int = 0
    """How many alternatives it can give with each answered token; 0 is none."""
    scoring: bool = False
    """It gives the log-probabilities of text that is given to it."""
    full_logits: bool = False
    """It gives the whole next-token distribution of text that is given to it."""
    context_tokens: int | None = None
    """Prompt and answer tokens together; None is not known."""

    def __str__(self) -> str:
        """The abilities in words, for errors and listings."""
        words = [
            "text" if self.text else "",
            f"top-{self.top_logprobs} log-probabilities" if self.top_logprobs else "",
            "scoring of given text" if self.scoring else "",
            "full logits" if self.full_logits else "",
        ]
        return ", ".join(word for word in words if word) or "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a caller is about to ask; a spec is resolved by it. Same words as `Capabilities`."""

    text: bool = False
    top_logprobs: int = 0
    scoring: bool = False
    full_logits: bool = False

    def missing(self, can: Capabilities) -> list[str]:
        """The needs that `can` does not meet, in words."""
        return [
            word
            for word, met in (
                ("text", can.text or not self.text),
                (
                    f"top-{self.top_logprobs} log-probabilities",
                    can.top_logprobs >= self.top_logprobs,
                ),
                ("scoring of given text", can.scoring or not self.scoring),
                ("full logits", can.full_logits or not self.full_logits),
            )
            if not met
        ]


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that got no answer: a value, so that one bad prompt does not end a collection."""

    request: Request
    error: ModelError
    retryable: bool
    """Whether asking again later could help (server gone), or not (prompt longer than the
    context).
    """


@dataclass(frozen=True, slots=True)
class Scored:
    """The full next-token distribution at an exchange's answer positions."""

    index: int
    """Position of the exchange in the sequence that was given."""
    token_ids: npt.NDArray[np.int32]
    """(T,) the answer's tokens, end of turn included where the answer ended."""
    logprobs: npt.NDArray[np.float32]
    """(T, V) log-probabilities in nats."""


@runtime_checkable
class Model(Protocol):
    """Whatever answers or scores. Use it as a context manager: servers and weights are released on
    exit.
    """

    spec: str
    """The spec it was opened by."""
    name: str
    """What stands in `Exchange.model`."""
    capabilities: Capabilities

    def answer(
        self, requests: Iterable[Request], *, top_logprobs: int = 0
    ) -> Iterator[Exchange | Failure]:
        """Exchanges as they finish, in any order; requests are drawn lazily, as slots become free.

        Raises CapabilityError before the first request, TransportError when the model is gone for
        good.
        """
        ...

    def score(
        self, exchanges: Sequence[Exchange], *, top_logprobs: int = 0
    ) -> Iterator[tuple[int, Logprobs]]:
        """(index, log-probabilities of the exchange's own answer), in any order; prompts are not
        scored.
        """
        ...

    def distributions(self, exchanges: Sequence[Exchange]) -> Iterator[Scored]:
        """The whole distribution at each answer position, an exchange at a time, in any order."""
        ...

    def close(self) -> None:
        """Release servers, memory and files."""
        ...

    def __enter__(self) -> Self:
        """Itself."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        ...


def require(model: Model, need: Need) -> None:
    """Nothing, when the model meets the need; otherwise an error that names what it can.

    Raises:
        CapabilityError: something is missing.
    """
    missing = need.missing(model.capabilities)
    if missing:
        raise CapabilityError(
            f"model '{model.spec}'",
            f"was asked for {', '.join(missing)}",
            f"what it can: {model.capabilities}",
            "Choose another model or engine, or ask for less",
        )


def leaves_tools_out(spec: str) -> CapabilityError:
    """For a request with tools, where the chat template would drop them without a word."""
    return CapabilityError(
        f"model '{spec}'", "tools in the prompt, which this model's chat template leaves out",
        "a model whose template takes tools", "Choose another model, or offer no tools",
    )  # fmt: skip


def refuse(model: Model, need: Need) -> NoReturn:
    """The error of `require`, for what a kind of model never does.

    Raises:
        CapabilityError: always.
    """
    require(model, need)
    raise AssertionError("a capability was declared that this model does not have")
