"""Exchanges -> examples: token ids, where the answer begins, and what the teacher said there.

In: exchanges of a store, and a local model that owns the tokenizer and chat template. Out: one
`Example` per usable exchange, in an order that depends on content alone (never on the order of
arrival), and a `TargetsRecord` that says which engine made the targets and what was left out and
why. Loss falls on answer tokens only, the end of turn included where the answer ended.

Nothing here changes its method on its own: stored log-probabilities that are missing, of another
tokenizer or of other tokens are refused, with the setting that would ask for something else.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from stillhouse.errors import ConfigError, DataError
from stillhouse.exchange import Exchange, Logprobs, Message, Tool
from stillhouse.progress import Progress, Silent

__all__ = ["Example", "Reader", "TargetsRecord", "engines", "make_examples", "order_of"]

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


class Reader(Protocol):
    """What is needed of a local model: its tokenizer, chat template and, for scored targets, its
    log-probabilities. `models.local.LocalModel` is one.
    """

    text: Any
    """Of which `text.vocabulary_hash` is what stands in `Logprobs.tokenizer`."""

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """Prompt token ids up to where the answer starts."""
        ...

    def answer_ids(self, exchange: Exchange) -> list[int]:
        """Answer token ids, end of turn included where the answer ended."""
        ...

    def score(
        self, exchanges: Sequence[Exchange], *, top_logprobs: int = 0
    ) -> Iterator[tuple[int, Logprobs]]:
        """(index, log-probabilities of the exchange's own answer)."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One exchange, ready to train on. S tokens in all, T of them the answer's, K alternatives."""

    key: str
    """The exchange's key; order and validation slice depend on it."""
    ids: Ints
    """(S,) prompt, then answer."""
    prompt_tokens: int
    """S - T. The logits at positions prompt_tokens - 1 ... S - 2 predict the answer."""
    top_ids: Ints | None = None
    """(T, K) the teacher's likeliest tokens; None for hard targets."""
    top: Floats | None = None
    """(T, K) their log-probabilities in nats; -inf pads."""
    states: npt.NDArray[np.float16] | None = None
    """(T, D) the teacher's last hidden states, for targets over the whole vocabulary."""
    spread: bool = False
    """Dealt evenly over the steps of an epoch: a step of nothing but rows about identity, which are
    short and of one length, would throw the others' progress away."""

    @property
    def answer_tokens(self) -> int:
        """T."""
        return len(self.ids) - self.prompt_tokens

    @property
    def answer(self) -> Ints:
        """(T,) the answer's tokens."""
        return self.ids[self.prompt_tokens :]


@dataclass
class TargetsRecord:
    """What the targets are made of; part of `train.json`."""

    kind: str
    source: str
    top_k: int | None = None
    exchanges: int = 0
    answer_tokens: int = 0
    prompt_tokens: int = 0
    mass_kept: float | None = None
    """Mean mass of the kept alternatives (soft targets)."""
    engines: dict[str, int] = field(default_factory=dict)
    """Exchanges by the engine that made their log-probabilities."""
    ends_as_hard_targets: int = 0
    """Ends of turn that the engine gave no log-probabilities for: the token itself is taught."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Exchanges not trained on, by reason."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dict(vars(self))


def order_of(key: str, *salt: object) -> bytes:
    """A sort key that looks random and depends on content and salt only, on every machine."""
    return hashlib.sha256("\0".join([*map(str, salt), key]).encode()).digest()


def engines(exchanges: Iterable[Exchange]) -> dict[str, int]:
    """Exchanges by what computed their log-probabilities; 'none' where none are stored."""
    names = (e.logprobs.engine or "not recorded" if e.logprobs else "none" for e in exchanges)
    return dict(sorted(Counter(names).items()))


def make_examples(
    exchanges: Iterable[Exchange],
    reader: Reader,
    *,
    kind: str,
    source: str = "stored",
    top_k: int | None = None,
    context_tokens: int = 8192,
    progress: Progress | None = None,
) -> tuple[list[Example], TargetsRecord]:
    """(examples in content order, what they are made of).

    Args:
        exchanges: what the teacher answered.
        reader: a local model with the student's tokenizer.
        kind: 'hard' (the answer's tokens), 'soft' (top-k) or 'full' (hard here; the loop adds the
            teacher's hidden states, see `states`).
        source: soft targets from the log-probabilities 'stored' with the exchanges, or from the
            local 'teacher', which then scores the stored text.
        top_k: alternatives kept; None keeps all that are stored, and 64 when the teacher scores.
        context_tokens: longer exchanges are left out and counted.
        progress: told of scoring, which takes time.

    Raises:
        DataError: nothing to train on; stored log-probabilities missing, too few, or of another
            tokenizer or text.
    """
    progress = progress or Silent()
    record = TargetsRecord(kind=kind, source=source if kind == "soft" else kind, top_k=top_k)
    chosen = _usable(exchanges, record)
    if kind == "soft" and source == "teacher":
        chosen = _scored(chosen, reader, top_k or _SCORED_TOP_K, progress)
    examples: list[Example] = []
    for exchange in chosen:
        example = _example(exchange, reader, kind, top_k)
        if len(example.ids) > context_tokens:
            _leave_out(record, f"longer than the context of {context_tokens} tokens")
        elif example.answer_tokens == 0:
            _leave_out(record, "no answer tokens")
        else:
            examples.append(example)
    if not examples:
        raise DataError(
            "training", f"no usable exchange (left out: {record.left_out or 'none'})",
            "at least one answered exchange", "Collect first, or name another store",
        )  # fmt: skip
    if kind == "soft":
        record.engines = engines(chosen)
        record.ends_as_hard_targets = sum(
            e.top is not None and bool(e.top[-1, 0] == 0.0) for e in examples
        )
    record.exchanges = len(examples)
    record.answer_tokens = sum(e.answer_tokens for e in examples)
    record.prompt_tokens = sum(e.prompt_tokens for e in examples)
    masses = [np.exp(e.top).sum(axis=1) for e in examples if e.top is not None]
    record.mass_kept = round(float(np.concatenate(masses).mean()), 4) if masses else None
    return examples, record


# Enough that .96 of the teacher's mass is kept (measured, docs/lab-notes.md).
_SCORED_TOP_K = 64


def _usable(exchanges: Iterable[Exchange], record: TargetsRecord) -> list[Exchange]:
    """Exchanges with an answer, each content once, sorted by what was asked and answered."""
    kept: dict[str, Exchange] = {}
    for exchange in exchanges:
        if not (exchange.response.text or exchange.response.tool_calls):
            _leave_out(record, "empty answer")
        elif exchange.finish_reason == "content_filter":
            _leave_out(record, "stopped by a content filter")
        elif exchange.key in kept:
            _leave_out(record, "the same request again")
        else:
            kept[exchange.key] = exchange
    return [kept[key] for key in sorted(kept, key=order_of)]


def _leave_out(record: TargetsRecord, reason: str) -> None:
    record.left_out[reason] = record.left_out.get(reason, 0) + 1


def _scored(
    exchanges: list[Exchange], reader: Reader, top_k: int, progress: Progress
) -> list[Exchange]:
    """The same exchanges with the local teacher's log-probabilities of their own answers."""
    import dataclasses

    progress.start("scoring answers", len(exchanges), "exchanges")
    scored = list(exchanges)
    found = reader.score(exchanges, top_logprobs=top_k)
    for done, (index, logprobs) in enumerate(found, start=1):
        scored[index] = dataclasses.replace(exchanges[index], logprobs=logprobs)
        progress.advance(done)
    progress.finish()
    return scored


def _example(exchange: Exchange, reader: Reader, kind: str, top_k: int | None) -> Example:
    """Token ids and stored targets of one exchange."""
    if kind == "soft":
        _check_tokenizer(exchange, reader)
    prompt = reader.render(exchange.prompt, exchange.tools)
    answer = reader.answer_ids(exchange)
    ids = np.asarray([*prompt, *answer], dtype=np.int32)
    if kind != "soft":
        return Example(exchange.key, ids, len(prompt))
    logprobs = exchange.logprobs
    assert logprobs is not None
    assert logprobs.top is not None
    assert logprobs.top_ids is not None
    known = [] if logprobs.token_ids is None else logprobs.token_ids.tolist()
    if answer[: len(known)] != known or len(answer) - len(known) not in (0, 1):
        raise DataError(
            f"exchange {exchange.id}", f"log-probabilities of {len(known)} tokens",
            f"of the {len(answer)} tokens of its answer", "Set train.target_source=teacher",
        )  # fmt: skip
    width = top_k or logprobs.top.shape[1]
    if logprobs.top.shape[1] < width:
        raise DataError(
            f"exchange {exchange.id}", f"{logprobs.top.shape[1]} alternatives with each token",
            f"train.top_k = {width}", "Lower train.top_k, or set train.target_source=teacher",
        )  # fmt: skip
    top_ids, top = logprobs.top_ids[:, :width], logprobs.top[:, :width]
    if len(answer) > len(known):  # the end of turn, which some servers do not report
        last = np.full((1, width), answer[-1], np.int32)
        sure = np.full((1, width), -np.inf, np.float32)
        sure[0, 0] = 0.0
        top_ids, top = np.concatenate([top_ids, last]), np.concatenate([top, sure])
    return Example(exchange.key, ids, len(prompt), top_ids, top)


def _check_tokenizer(exchange: Exchange, reader: Reader) -> None:
    """Refuse what cannot be a target for this student."""
    logprobs = exchange.logprobs
    if logprobs is None or logprobs.top is None:
        raise DataError(
            f"exchange {exchange.id}", "no stored alternatives with its tokens",
            "top-k log-probabilities, which soft targets are made of",
            "Set train.targets=hard, or train.target_source=teacher to let the local teacher score",
        )  # fmt: skip
    if logprobs.tokenizer != reader.text.vocabulary_hash:
        raise DataError(
            f"exchange {exchange.id}", f"log-probabilities of tokenizer {logprobs.tokenizer[:18]}",
            f"the student's, {reader.text.vocabulary_hash[:18]}",
            "Train on these exchanges with train.targets=hard, or from a teacher of one vocabulary",
        )  # fmt: skip


def check_kind(kind: str, source: str) -> None:
    """Nothing; refuses settings that contradict one another.

    Raises:
        ConfigError: targets from the teacher's scores asked for, but not used.
    """
    if kind != "soft" and source != "stored":
        raise ConfigError(
            "train.target_source", f"'{source}' with train.targets '{kind}'",
            "'stored' unless targets are soft",
            "Drop train.target_source or set train.targets=soft",
        )  # fmt: skip
