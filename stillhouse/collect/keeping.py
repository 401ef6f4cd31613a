"""What a collection leaves in its store's folder: answers, failures, and how it went.

    collect.json      which teacher and settings the answers are from, and the last run's rate
    failures.jsonl    requests without an answer, with the reason
    rejects.jsonl     records of the prompt files that are no prompts (`prompts.py`)

In: exchanges as they arrive, failures. Out: the same on the disk. Nothing here asks.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from stillhouse.config import CollectSettings
from stillhouse.errors import ConfigError, StoreError
from stillhouse.escrow import Escrow
from stillhouse.exchange import Exchange
from stillhouse.files import append_lines, whole_lines, write_whole
from stillhouse.models.base import Failure
from stillhouse.store import Store

__all__ = ["Divided", "Failures", "Keeper", "Origin"]

# Answers that may wait for the disk before the asking does: enough to share one fsync among many,
# few enough to lose little.
_WAITING = 256


class Keeper:
    """Appends exchanges as they arrive: whatever waits shares one fsync.

    The disk works in a thread of its own, so that a slow one does not hold up the asking, and a
    burst of answers costs one fsync and not one each. Leaving the context writes what waits.
    `put` and `flush` are called from one thread.
    """

    def __init__(self, store: Store | Divided) -> None:
        """Write into an open store."""
        self._store = store
        self._waiting: list[Exchange] = []
        self._busy = False
        self._turn = threading.Lock()  # guards the two above
        self._pool = ThreadPoolExecutor(1, "keeper")
        self._work: Future[None] | None = None

    def put(self, exchange: Exchange) -> None:
        """Nothing; the exchange is on its way to the disk.

        Raises:
            StoreError: the disk refused an earlier one.
        """
        if self._work and self._work.done():
            self._work.result()  # raises what went wrong
        with self._turn:
            self._waiting.append(exchange)
            begin, self._busy = not self._busy, True
        if begin:
            self._work = self._pool.submit(self._write)
        elif len(self._waiting) >= _WAITING:
            self.flush()

    def flush(self) -> None:
        """Nothing; everything put before is on the disk.

        Raises:
            StoreError: the disk refused it.
        """
        if self._work:
            self._work.result()

    def _write(self) -> None:
        while True:
            with self._turn:
                batch, self._waiting = self._waiting, []
                if not batch:
                    self._busy = False
                    return
            self._store.append_many(batch)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write what waits; a refusal of the disk is raised unless another error is on its way."""
        self._pool.shutdown(wait=True)
        try:
            self.flush()
            self._write()  # what an interruption left between waiting and being written
        except StoreError:
            if kind is None:
                raise


class Divided:
    """A store and an escrow as one place for answers: the escrow's coin says where each belongs."""

    def __init__(self, store: Store, escrow: Escrow, twins: Store) -> None:
        """Both are open."""
        self.path, self._store, self._escrow, self._twins = store.path, store, escrow, twins

    def append_many(self, exchanges: Iterable[Exchange]) -> int:
        """How many were new; on the disk, in either store, when this returns.

        Raises:
            StoreError: the disk did not take them all.
        """
        here: list[Exchange] = []
        there: list[Exchange] = []
        for exchange in exchanges:
            (here if self._escrow.serves(exchange) else there).append(exchange)
        return self._store.append_many(here) + self._twins.append_many(there)

    def seal(self) -> None:
        """Both stores are sealed, and every pair is committed to."""
        self._store.seal()
        self._twins.seal()
        self._escrow.commit(self._store)

    def __len__(self) -> int:
        """Answers that are served: the escrow may hold other stores' twins, too."""
        return len(self._store)


class Failures:
    """Requests without an answer, in `failures.jsonl`: the last line of a request holds."""

    def __init__(self, folder: Path) -> None:
        """Read what earlier runs left."""
        self.path = folder / "failures.jsonl"
        self._lines: dict[str, dict[str, Any]] = {}
        for line in whole_lines(self.path):
            try:
                record = json.loads(line)
                self._lines[record["key"]] = record
            except (ValueError, KeyError, TypeError):
                continue  # not ours; that request is only asked again

    @property
    def for_good(self) -> set[str]:
        """Keys of the requests that no asking again can help."""
        return {key for key, record in self._lines.items() if not record["retryable"]}

    def add(self, failure: Failure) -> None:
        """Nothing; the failure is noted at once, so that a kill does not forget it."""
        error, request = failure.error, failure.request
        record = {
            "key": request.key,
            "prompt_id": request.labels.get("prompt_id"),
            "sample_index": request.sampling.sample_index,
            "retryable": failure.retryable,
            "reason": error.found,
            "error": str(error),
        }
        self._lines[request.key] = record
        append_lines(self.path, [json.dumps(record)])

    def by_reason(self) -> dict[str, int]:
        """Reason -> requests without an answer, figures in the reasons left out."""
        reasons = (re.sub(r"\d[\d,.]*\d|\d", "N", r["reason"]) for r in self._lines.values())
        return dict(Counter(reasons))

    def settle(self, answered: Collection[str]) -> None:
        """Nothing; the file holds one line for each request that still has no answer."""
        if not self._lines and not self.path.exists():
            return
        self._lines = {k: record for k, record in self._lines.items() if k not in answered}
        write_whole(self.path, "".join(json.dumps(r) + "\n" for r in self._lines.values()))
        if not self._lines:
            self.path.unlink()


class Origin:
    """Which teacher a store's answers are from, and how fast they came: `collect.json`.

    One store holds one teacher's answers, asked for with one engine and at least the kept
    alternatives: resuming goes by prompt and sampling only, which do not tell these apart.
    """

    def __init__(self, store: Store) -> None:
        """Read what earlier runs left; a store made otherwise is known by its first exchange."""
        self.path = store.path / "collect.json"
        self.known: dict[str, Any] = {}
        if self.path.exists():
            try:
                self.known = dict(json.loads(self.path.read_text("utf-8")))
            except (ValueError, TypeError) as problem:
                raise StoreError(
                    str(self.path), f"{problem}", "what `collect` wrote there",
                    "Put it back from a copy, or delete it if the store has one teacher's answers",
                ) from problem  # fmt: skip
        elif len(store):
            self.known = next(store.stream(["model"], batch=1))

    def refuse_other_settings(self, settings: CollectSettings) -> None:
        """Nothing, when these settings may go on with the store.

        Raises:
            ConfigError: they ask for more alternatives, or another engine or precision, than the
                store has.
        """
        kept = self.known.get("top_logprobs")
        if kept is not None and settings.top_logprobs > kept:
            self._refuse("top_logprobs", settings.top_logprobs, f"at most {kept}")
        for name in ("engine", "precision"):
            begun_with = self.known.get(name)
            if begun_with is not None and getattr(settings, name) != begun_with:
                self._refuse(name, getattr(settings, name), begun_with)

    def refuse_other_secret(self, what: str, fingerprint: str | None) -> None:
        """Nothing, when the store is empty or was begun with this secret (None: without one).

        Args:
            what: escrow, of which half the answers would be the wrong ones of their pairs, or
                watermark, without which or under another of which some answers would be.
            fingerprint: the hash of its key.

        Raises:
            ConfigError: it was begun with another or none.
        """
        begun_with = self.known.get(what)
        if self.known and begun_with != fingerprint:
            self._refuse(f"{what} key", fingerprint or "none", begun_with or "none")

    def refuse_other_model(self, model: str) -> None:
        """Nothing, when the store is empty or holds this model's answers.

        Raises:
            ConfigError: it holds another's.
        """
        if self.known.get("model", model) != model:
            self._refuse("teacher", model, self.known["model"])

    def _refuse(self, what: str, found: Any, expected: Any) -> None:
        raise ConfigError(
            f"store {self.path.parent}", f"{what} {found} for a store begun with others",
            f"{what} {expected}", "Collect into another folder, or keep what the store began with",
        )  # fmt: skip

    def is_from(self, teacher: str) -> bool:
        """Whether the answers are known to be from this very spec."""
        return self.known.get("teacher") == teacher

    def write(self, **facts: Any) -> None:
        """Nothing; the facts are added and on the disk, whole."""
        self.known |= facts
        write_whole(self.path, json.dumps(self.known, indent=2) + "\n")
