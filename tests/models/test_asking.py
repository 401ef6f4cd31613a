"""Many requests at once: what is drawn, what is given out, and how it ends."""

import asyncio
from collections.abc import Iterator

import pytest

from stillhouse.errors import TransportError
from stillhouse.exchange import Exchange, Request, Sampling
from stillhouse.models import Failure, explicit
from stillhouse.models.asking import Loop, ask_all
from tests.models.conftest import ask


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def failure(request: Request) -> Failure:
    error = TransportError("here", "nothing", "something", "Ask again")
    return Failure(request, error, retryable=True)


def number(came: Exchange | Failure) -> int:
    assert isinstance(came, Failure)
    return came.request.sampling.seed or 0


def test_explicit_writes_down_the_neutral_settings_only_where_nothing_is_set() -> None:
    assert explicit(Sampling(top_p=0.5, max_tokens=3)) == Sampling(
        temperature=1.0, top_p=0.5, top_k=0, min_p=0.0, frequency_penalty=0.0,
        presence_penalty=0.0, repeat_penalty=1.0, max_tokens=3,
    )  # fmt: skip
    assert explicit(explicit(Sampling())) == explicit(Sampling())


def test_answers_come_in_the_order_of_finishing(loop: Loop) -> None:
    async def asking(request: Request) -> Failure:
        await asyncio.sleep((request.sampling.seed or 0) / 20)
        return failure(request)

    came = ask_all(loop, [ask("a", seed=s) for s in (6, 3, 0)], asking, concurrency=3)
    assert [number(c) for c in came] == [0, 3, 6]


def test_a_fatal_error_comes_after_what_was_answered_and_cancels_the_rest(loop: Loop) -> None:
    cancelled = []

    async def asking(request: Request) -> Failure:
        seed = request.sampling.seed or 0
        if seed == 2:
            await asyncio.sleep(0.1)
            raise TransportError("here", "gone", "a server", "Start it")
        try:
            await asyncio.sleep(0.01 if seed < 2 else 30)
        except asyncio.CancelledError:
            cancelled.append(seed)
            raise
        return failure(request)

    came = ask_all(loop, [ask("a", seed=s) for s in range(9)], asking, concurrency=5)
    assert {number(next(came)), number(next(came))} == {0, 1}
    with pytest.raises(TransportError, match="gone"):
        next(came)
    loop.run(asyncio.sleep(0))
    assert sorted(cancelled) == [3, 4, 5, 6]


def test_an_error_of_the_requests_is_the_caller_s(loop: Loop) -> None:
    async def asking(request: Request) -> Failure:
        return failure(request)

    def requests() -> Iterator[Request]:
        yield ask("a")
        raise KeyError("prompts")

    with pytest.raises(KeyError, match="prompts"):
        list(ask_all(loop, requests(), asking, concurrency=4))


def test_a_loop_that_never_ran_closes_and_a_closed_one_runs_again(loop: Loop) -> None:
    loop.close()
    assert loop.run(asyncio.sleep(0, "x")) == "x"
    loop.close()
    assert loop.run(asyncio.sleep(0, "y")) == "y"
