"""Many answers at once: rows join in waves, share every matrix product, leave when they end.

In: jobs (a prompt's token ids, how to draw, when to stop), drawn lazily. Out: finished rows as they
end, each with its tokens and the model's own log-probabilities, which the forward pass that drew
them gives for nothing. What a row gets does not depend on what else is in flight, up to the
rounding of matrix products. Knows neither text nor exchanges (`local.py` does).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from stillhouse.models.local_draw import Drawn, Shape, draw
from stillhouse.models.local_network import Network, Wave

__all__ = ["Finished", "Job", "Limits", "Mark", "Row", "sample"]

W = TypeVar("W", bound=Wave)

Row = tuple[Sequence[int], npt.NDArray[np.int32]]
"""A row's prompt and its answer so far."""


class Mark(Protocol):
    """A watermark, put on what tokens are drawn from (`local_watermark.py`)."""

    def __call__(
        self, logits: torch.Tensor, rows: Sequence[Row], shapes: Sequence[Shape]
    ) -> tuple[torch.Tensor, Sequence[Shape]]:
        """The logits (N, V) to draw each row's token from, and how they are still to be shaped; the
        very logits that were given, where nothing is marked.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much may be in flight."""

    rows: int = 128
    """Rows sharing a step. On two AVX-512 cores 96 to 128 are fastest; more cost only memory."""
    memory_bytes: int = 2 * 2**30
    """Keys and values of all rows, at the longest they can get."""
    prefill_tokens: int = 4096
    """Prompt tokens computed at once; a single longer prompt is taken by itself."""

    @property
    def wave_rows(self) -> int:
        """Rows admitted together: few enough that finished rows are soon replaced."""
        return max(1, self.rows // 4)


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One prompt to be answered."""

    prompt: Sequence[int]
    room: int
    """Answer tokens allowed, at least 1."""
    shape: Shape
    numbers: npt.NDArray[np.float64]
    """(room,) uniform numbers that decide the draws."""
    halts: Callable[[Sequence[int]], bool] | None = None
    """Whether the tokens so far end the answer for another reason than an end token."""
    about: object = None
    """Whatever the caller knows it by."""


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """A job's answer."""

    job: Job
    reason: str
    """stop or length."""
    tokens: npt.NDArray[np.int32]
    """(T,) the end token included where one was drawn."""
    chosen: npt.NDArray[np.float32]
    """(T,) nats."""
    top_ids: npt.NDArray[np.int32]
    """(T, K) likeliest first."""
    top: npt.NDArray[np.float32]
    """(T, K) nats."""


class _Flight(Generic[W]):
    """A wave with its jobs and what they have got so far."""

    def __init__(self, wave: W, jobs: Sequence[Job], top: int) -> None:
        room = max(job.room for job in jobs)
        self.wave, self.jobs = wave, jobs
        self.places = np.arange(len(jobs))  # job of each row alive
        self.step = 0
        self.reserved_bytes = 0
        self.numbers = np.ones((len(jobs), room))
        for row, job in enumerate(jobs):
            self.numbers[row, : job.room] = job.numbers
        self.tokens = np.empty((len(jobs), room), np.int32)
        self.chosen = np.empty((len(jobs), room), np.float32)
        self.top_ids = np.empty((len(jobs), room, top), np.int32)
        self.top = np.empty((len(jobs), room, top), np.float32)

    def take(self, drawn: Drawn, ends: frozenset[int]) -> Iterator[Finished]:
        """Note a drawn token for each row alive; the rows that end by it leave."""
        at = (self.places, self.step)
        self.tokens[at], self.chosen[at] = drawn.tokens.numpy(), drawn.chosen.numpy()
        self.top_ids[at], self.top[at] = drawn.top_ids.numpy(), drawn.top.numpy()
        self.step += 1
        reasons = [self._reason(place, ends) for place in self.places.tolist()]
        done = [
            place for place, reason in zip(self.places.tolist(), reasons, strict=True) if reason
        ]
        if done:
            kept = [row for row, reason in enumerate(reasons) if not reason]
            self.places = self.places[list(self.wave.keep(kept))]
            for place, reason in zip(done, filter(None, reasons), strict=True):
                yield self._finished(place, reason)

    def _reason(self, place: int, ends: frozenset[int]) -> str | None:
        job, sofar = self.jobs[place], self.tokens[place, : self.step]
        if int(sofar[-1]) in ends or (job.halts and job.halts(sofar.tolist())):
            return "stop"
        return "length" if self.step >= job.room else None

    def _finished(self, place: int, reason: str) -> Finished:
        span = (place, slice(self.step))
        return Finished(
            self.jobs[place], reason, self.tokens[span].copy(), self.chosen[span].copy(),
            self.top_ids[span].copy(), self.top[span].copy(),
        )  # fmt: skip

    def rows(self) -> list[Row]:
        """Prompt and answer so far of each row alive."""
        return [
            (self.jobs[place].prompt, self.tokens[place, : self.step])
            for place in self.places.tolist()
        ]

    def last(self) -> torch.Tensor:
        """(rows alive,) the token each row took last."""
        return torch.from_numpy(self.tokens[self.places, self.step - 1]).long()


def sample(
    network: Network[W],
    jobs: Iterable[Job],
    ends: frozenset[int],
    top: int = 0,
    limits: Limits = Limits(),
    mark: Mark | None = None,
) -> Iterator[Finished]:
    """Finished jobs as they end, in any order, with the `top` likeliest tokens of each position.

    Log-probabilities and likeliest tokens are the network's own, whatever the `mark`. At most twice
    `limits.rows` jobs are drawn ahead of what has been yielded.
    """
    coming = iter(jobs)
    waiting: list[Job] = []
    flights: list[_Flight[W]] = []
    while True:
        for flight, drawn in _admit(network, coming, waiting, flights, top, limits, mark):
            yield from flight.take(drawn, ends)
        flights[:] = [flight for flight in flights if len(flight.places)]
        if not flights:
            if not waiting:
                return
            continue
        tokens = torch.cat([flight.last() for flight in flights])
        logits = network.step([flight.wave for flight in flights], tokens)
        drawn, first = _draw(flights, logits, top, mark), 0
        del logits
        for flight in flights:
            rows = slice(first, first := first + len(flight.places))
            yield from flight.take(Drawn(*(column[rows] for column in drawn)), ends)
        flights[:] = [flight for flight in flights if len(flight.places)]


def _draw(
    flights: Sequence[_Flight[W]], logits: torch.Tensor, top: int, mark: Mark | None
) -> Drawn:
    """The next token of every row alive, by its own number and shape."""
    numbers = np.concatenate([f.numbers[f.places, f.step] for f in flights])
    shapes = [f.jobs[place].shape for f in flights for place in f.places.tolist()]
    if mark is None:
        return draw(logits, numbers, shapes, top)
    marked, left = mark(logits, [row for f in flights for row in f.rows()], shapes)
    return draw(logits, numbers, left, top, None if marked is logits else marked)


def _admit(
    network: Network[W],
    coming: Iterator[Job],
    waiting: list[Job],
    flights: list[_Flight[W]],
    top: int,
    limits: Limits,
    mark: Mark | None,
) -> Iterator[tuple[_Flight[W], Drawn]]:
    """Waves that begin now, as rows and memory allow, each with its first draw."""
    while True:
        waiting += islice(coming, max(0, limits.rows - len(waiting)))
        free = limits.rows - sum(len(flight.places) for flight in flights)
        if not waiting or free < min(limits.wave_rows, len(waiting)):
            return
        taken = sum(flight.reserved_bytes for flight in flights)
        group = _alike(waiting, min(free, limits.wave_rows), limits, network.position_bytes, taken)
        if not group:
            return
        chosen = {id(job) for job in group}
        waiting[:] = [job for job in waiting if id(job) not in chosen]
        room = max(job.room for job in group)
        wave, logits = network.begin([job.prompt for job in group], room)
        flight = _Flight(wave, group, top)
        longest = max(len(job.prompt) for job in group)
        flight.reserved_bytes = len(group) * (longest + room) * network.position_bytes
        flights.append(flight)
        yield flight, _draw([flight], logits, top, mark)


def _alike(
    waiting: Sequence[Job], most: int, limits: Limits, position_bytes: int, taken: int
) -> list[Job]:
    """The job that waits longest and up to `most` in all of like prompt length, as memory allows.

    Empty when memory is short and something is in flight, so that waiting helps.
    """
    first = waiting[0]
    near = sorted(waiting, key=lambda job: abs(len(job.prompt) - len(first.prompt)))[:most]
    while True:
        longest = max(len(job.prompt) for job in near)
        needed = len(near) * (longest + max(job.room for job in near)) * position_bytes
        fits = taken + needed <= limits.memory_bytes and (
            len(near) * longest <= limits.prefill_tokens or len(near) == 1
        )
        if fits or (len(near) == 1 and not taken):
            return near
        if len(near) == 1:
            return []
        near.pop()
