"""The asking itself: requests to a model, its answers to the disk, failures again within a bound.

In: an open model and requests, drawn lazily. Out: answers in the store, failures noted, and the
figures of the run. Who may be asked, and what is left to ask, is settled before (`run.py`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice

from stillhouse.collect.keeping import Divided, Failures, Keeper
from stillhouse.collect.plan import Plan
from stillhouse.config import CollectSettings
from stillhouse.errors import ModelError
from stillhouse.exchange import Exchange, Request
from stillhouse.models.base import Failure, Model
from stillhouse.progress import Progress
from stillhouse.store import Store

__all__ = ["Asking"]

# A request that failed and may succeed later is asked this often, and no longer than rounds of
# asking again bring anything; the pause before each round grows. Within each asking the model has
# already tried again by itself, for a minute where it is a server. Ours.
ATTEMPTS = 10
BARREN_ROUNDS = 2
PAUSE_SECONDS = 2.0
# So many failures without one answer between them mean that something is wrong with all of them.
# Ours: more than the default requests in flight, few enough to burn little of anybody's budget.
FAILURES_IN_A_ROW = 32


class Asking:
    """One run of asking, and its figures so far."""

    def __init__(
        self,
        store: Store | Divided,
        failures: Failures,
        settings: CollectSettings,
        plan: Plan,
        progress: Progress,
    ) -> None:
        """Ready to ask what the plan says."""
        self.store, self.failures, self.settings = store, failures, settings
        self.plan, self.progress = plan, progress
        self.asked = self.answered = 0
        self.seconds = 0.0
        self._began = 0.0
        self._tokens = self._counted = 0
        self._keys: set[str] = set()  # answered in this run
        self._open: set[str] = set()  # drawn by the model, and nothing came of them yet
        self._times: Counter[str] = Counter()  # failures of a request
        self._again: list[Request] = []
        self._spent = self._in_a_row = 0
        self._last: Failure | None = None

    @property
    def tokens(self) -> int | None:
        """Answer tokens so far; None where the teacher did not count them."""
        return self._tokens if self._counted or not self.answered else None

    @property
    def tokens_per_s(self) -> float | None:
        """Answer tokens a second since the first request; None before the first answer."""
        return self._tokens / self.seconds if self._counted and self.seconds else None

    @property
    def rate(self) -> dict[str, float]:
        """What the next plan is reckoned with; empty before the first answer."""
        if self.tokens_per_s is None:
            return {}
        per_answer = self._tokens / self._counted
        return {"tokens_per_answer": per_answer, "tokens_per_s": self.tokens_per_s}

    def ask(self, model: Model, todo: Iterator[Request]) -> None:
        """Ask until nothing is left or the budget is met.

        Raises:
            ModelError: the model is gone, answers what was not asked, or failed too often.
            StoreError: the disk refused an answer.
        """
        plan = self.plan
        self.progress.start("asking the teacher", plan.already_there + plan.to_ask, "answers")
        self.progress.advance(plan.already_there)
        self._began = time.monotonic()
        rounds = barren = 0
        with Keeper(self.store) as keeper:
            while (room := plan.to_ask - self.answered) > 0 and not self._hopeless:
                again, self._again = self._again, []
                if again:
                    self.progress.say(f"{len(again)} requests failed and are asked again")
                    time.sleep(PAUSE_SECONDS * rounds)
                asked, answered = self.asked, self.answered
                self._round(model, islice(chain(again, todo), room), keeper)
                rounds += 1
                barren = barren + 1 if self.answered == answered else 0
                if self.asked == asked or (self._again and barren == BARREN_ROUNDS):
                    break
        failing = self._hopeless or self._again or self._spent
        missing = self.answered < plan.to_ask
        if self._last and missing and (failing or not len(self.store)):
            raise self._last.error
        self.progress.finish(f"{self.answered} answers, {self._speed}")

    @property
    def _hopeless(self) -> bool:
        return self._in_a_row >= FAILURES_IN_A_ROW

    def _round(self, model: Model, batch: Iterator[Request], keeper: Keeper) -> None:
        answers = model.answer(self._draw(batch), top_logprobs=self.settings.top_logprobs)
        try:
            for answer in answers:
                key = answer.request.key if isinstance(answer, Failure) else answer.key
                if key not in self._open:
                    raise _unasked(model)
                self._open.discard(key)
                if isinstance(answer, Failure):
                    self._fail(answer)
                else:
                    self._keep(answer, keeper)
        finally:
            close = getattr(answers, "close", None)  # a generator then gives back what it holds
            if close:
                close()
        if self._open:
            raise ModelError(
                f"model '{model.spec}'", f"{len(self._open)} requests came to nothing",
                "an answer or a failure for each", "Report this: the model kind is at fault",
            )  # fmt: skip

    def _draw(self, batch: Iterator[Request]) -> Iterator[Request]:
        for request in batch:
            if self._hopeless:
                return
            self._open.add(request.key)
            self.asked += 1
            yield request

    def _keep(self, exchange: Exchange, keeper: Keeper) -> None:
        keeper.put(exchange)
        self._keys.add(exchange.key)
        self.answered += 1
        self._in_a_row = 0
        if exchange.output_tokens is not None:
            self._tokens += exchange.output_tokens
            self._counted += 1
        self.seconds = time.monotonic() - self._began
        self.progress.advance(
            self.plan.already_there + self.answered, self._speed, self._seconds_left()
        )

    def _fail(self, failure: Failure) -> None:
        key = failure.request.key
        self.failures.add(failure)
        self._last = failure
        self._in_a_row += 1
        self._times[key] += 1
        if failure.retryable and self._times[key] < ATTEMPTS:
            self._again.append(failure.request)
        elif failure.retryable:
            self._spent += 1

    @property
    def _speed(self) -> str:
        rate = self.tokens_per_s
        return f"{rate:.0f} tokens/s" if rate is not None else "tokens not counted"

    def _seconds_left(self) -> float:
        """Time for what is missing, at the pace so far; what is in flight counts as half done, or
        the first answers, which are the short ones, would promise too much.
        """
        done = self.answered + len(self._open) / 2
        missing = self.plan.to_ask - done
        return max(0.0, missing) * self.seconds / done

    def settle(self) -> None:
        """Nothing; the failures file names what has no answer now."""
        self.failures.settle(self._keys)

    def ended(self, error: ModelError) -> ModelError:
        """The error that ends the run, with what is done and what to do."""
        goal = self.plan.already_there + self.plan.to_ask
        there = self.plan.already_there + self.answered
        return type(error)(
            error.where,
            f"{error.found.rstrip('. ')}; {there} of {goal} answers are kept in {self.store.path}",
            error.expected,
            f"{error.todo.rstrip('. ')}; then run the same command again, which asks only for the "
            "rest",
        )


def _unasked(model: Model) -> ModelError:
    return ModelError(
        f"model '{model.spec}'", "an answer to what was not asked, or with other settings",
        "the prompt and sampling of a request, unchanged",
        "Report this; without it a collection cannot go on where it stopped",
    )  # fmt: skip
