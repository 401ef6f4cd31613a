"""Many requests at once, from plain code: an event loop in a thread, and a window of open requests.

In: requests and a coroutine that asks one. Out: what came of each, in the order of finishing. A
request is drawn only when there is room for it; leaving the iteration early cancels what is open.
Nothing here knows of servers.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from typing import Any, TypeVar

from stillhouse.exchange import Exchange, Request, Sampling
from stillhouse.models.base import Failure

__all__ = ["Loop", "ask_all", "explicit"]

Result = TypeVar("Result")


def explicit(sampling: Sampling) -> Sampling:
    """The same distribution with every setting written down: what is not set becomes neutral.

    `max_tokens`, `stop`, `seed` and `sample_index` stay as they are: for them, absence means
    something. Exchanges record the sampling of their request unchanged, so that their keys agree;
    whoever wants every setting recorded makes requests of explicit settings.
    """
    neutral = {
        "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0,
        "frequency_penalty": 0.0, "presence_penalty": 0.0, "repeat_penalty": 1.0,
    }  # fmt: skip
    return replace(sampling, **{k: v for k, v in neutral.items() if getattr(sampling, k) is None})


class Loop:
    """An event loop of its own in a daemon thread, started at first use."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def submit(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """A future of the coroutine, running on the loop."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="stillhouse-asking", daemon=True
                )
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """What the coroutine returns; blocks."""
        return self.submit(work).result()

    def close(self) -> None:
        """Stop the loop and its thread."""
        with self._lock:
            if self._loop is None or self._thread is None:
                return
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=10)
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()
            self._loop = self._thread = None


def ask_all(
    loop: Loop,
    requests: Iterable[Request],
    ask: Callable[[Request], Coroutine[Any, Any, Exchange | Failure]],
    *,
    concurrency: int,
) -> Iterator[Exchange | Failure]:
    """What came of each request, in the order of finishing, `concurrency` of them open at a time.

    An error that `ask` raises ends the iteration, after everything already answered was given out.
    """
    source, results = iter(requests), queue.SimpleQueue[Future[Exchange | Failure]]()
    open_: set[Future[Exchange | Failure]] = set()
    fatal: BaseException | None = None
    try:
        while True:
            while fatal is None and len(open_) < concurrency:
                request = next(source, None)
                if request is None:
                    break
                future = loop.submit(ask(request))
                open_.add(future)
                future.add_done_callback(results.put)
            if not open_:
                break
            done = results.get()
            open_.discard(done)
            error = done.exception() if not done.cancelled() else CancelledError()
            if error is None:
                yield done.result()
            elif fatal is None:
                fatal = error
                for future in open_:
                    future.cancel()
        if fatal is not None:
            raise fatal
    finally:
        for future in open_:
            future.cancel()
