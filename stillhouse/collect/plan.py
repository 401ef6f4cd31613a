"""What is asked, in which order and with which settings, and how much of it is left.

In: prompts, settings, what a store holds. Out: requests, drawn lazily, and a `Plan` in figures. The
order is the same in every run and does not follow the files: a seeded shuffle of the prompts, all
first samples before all second ones, so that a budget that ends early has seen prompts of every
kind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.config import CollectSettings
from stillhouse.exchange import Request, Sampling, Terms
from stillhouse.prompts import Prompt, Prompts
from stillhouse.text import seed_from

__all__ = ["Held", "Plan", "Questions", "left_to_ask", "make_plan", "request_seed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a collection would do."""

    teacher: str
    terms: Terms
    store: Path
    prompts: int
    """Distinct usable prompts."""
    rejected: int
    """Records of the prompt files that are no prompts."""
    duplicates: int
    """Records that ask the same as an earlier one."""
    requests: int
    """Prompts times samples, twice that with an escrow; before the budget."""
    already_there: int
    """Requests whose answer is in the store."""
    refused_before: int
    """Requests the teacher refused for good in an earlier run; not asked again."""
    to_ask: int
    """What is left, within the budget."""
    tokens_at_most: int
    """Answer tokens, if every answer is as long as it may be."""
    tokens_expected: int | None
    """Answer tokens at the length of earlier answers; None where there are none."""
    seconds_expected: float | None
    """Time at the rate of the last run into this store; None where there is none."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        told = dataclasses.asdict(self)
        return {"out": str(told.pop("store")), **told}


def request_seed(seed: int, asked: str, index: int) -> int:
    """The sampler's seed of one request, 0 to 2^31 - 1.

    Args:
        seed: the run's.
        asked: what is asked: the key of the request without any sampling.
        index: the sample's.
    """
    return seed_from(f"{seed} {asked} {index}")


class Questions:
    """What is asked, in the order of asking; each iteration makes the requests anew."""

    def __init__(self, prompts: Sequence[Prompt], settings: CollectSettings, terms: Terms) -> None:
        """Settle the order."""
        self._settings = settings
        self._bare = [
            Request(
                prompt=prompt.messages, tools=prompt.tools, sampling=Sampling(),
                labels=prompt.labels, terms=terms,
            )
            for prompt in prompts
        ]  # fmt: skip
        self._bare.sort(key=lambda request: request_seed(settings.seed, request.key, -1))

    def __iter__(self) -> Iterator[Request]:
        """Every request, made as it is drawn, every setting explicit."""
        drawn = _drawn(self._settings)
        for sample in range(self._settings.samples_per_prompt):
            for request in self._bare:
                for index in range(drawn * sample, drawn * (sample + 1)):
                    sampling = self._sampling(request, index)
                    yield dataclasses.replace(request, sampling=sampling)

    def _sampling(self, request: Request, index: int) -> Sampling:
        settings = self._settings
        return Sampling(
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            min_p=settings.min_p,
            frequency_penalty=0.0,
            presence_penalty=0.0,
            repeat_penalty=1.0,
            max_tokens=settings.max_tokens,
            stop=(),
            seed=request_seed(settings.seed, request.key, index),
            sample_index=index,
        )


def _drawn(settings: CollectSettings) -> int:
    """Answers drawn for each one that is served: a second one is the escrow's twin."""
    return 2 if settings.escrow else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a store, and the escrow beside it, hold before a collection."""

    path: Path
    keys: Set[str] = frozenset()
    """Of every answer in either."""
    twins: Set[str] = frozenset()
    """Of those in the escrow, which may be other stores', too."""
    refused: Set[str] = frozenset()
    """Keys of requests the teacher refused for good."""
    rows: int = 0
    """Answers in the store."""
    tokens_per_answer: float | None = None
    tokens_per_s: float | None = None


def left_to_ask(questions: Questions, held: Held) -> Iterator[Request]:
    """The requests without an answer in the store, in the order of asking, budget aside."""
    for request in questions:
        if request.key not in held.keys and request.key not in held.refused:
            yield request


def make_plan(
    prompts: Prompts,
    questions: Questions,
    settings: CollectSettings,
    *,
    teacher: str,
    terms: Terms,
    held: Held,
) -> Plan:
    """The figures of what `left_to_ask` gives."""
    keys = [request.key for request in questions]
    there = sum(key in held.keys for key in keys)
    refused = sum(key in held.refused and key not in held.keys for key in keys)
    to_ask = len(keys) - there - refused
    if settings.exchanges is not None:
        room = settings.exchanges - held.rows
        if settings.escrow:
            room = 2 * room + _half_there(keys, held)
        to_ask = max(0, min(to_ask, room))
    tokens = None if held.tokens_per_answer is None else round(to_ask * held.tokens_per_answer)
    rate = held.tokens_per_s
    return Plan(
        teacher=teacher, terms=terms, store=held.path, prompts=len(prompts.prompts),
        rejected=len(prompts.rejects), duplicates=prompts.duplicates, requests=len(keys),
        already_there=there, refused_before=refused, to_ask=to_ask,
        tokens_at_most=to_ask * settings.max_tokens, tokens_expected=tokens,
        seconds_expected=tokens / rate if tokens is not None and rate else None,
    )  # fmt: skip


def _half_there(keys: Sequence[str], held: Held) -> int:
    """Requests that pairs of which one answer is there add to two for each that is to be served:
    one more for the twin of an answer that is, one less where it is the twin that is there. Pairs
    whose other half was refused for good stay halves.
    """
    more = 0
    for pair in zip(keys[::2], keys[1::2], strict=True):
        there = [key for key in pair if key in held.keys]
        if len(there) == 1 and not any(key in held.refused - held.keys for key in pair):
            more += -1 if there[0] in held.twins else 1
    return more
