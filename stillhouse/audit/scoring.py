"""What a model makes of the answers of a pair: log-probabilities of their text, or its own answers.

In: an open model, pairs, the bundle the raw lines go into. Out: lines in the bundle, one for each
model, pair and side, on the disk as they come; what is there is not asked again. Nothing here looks
at which side was served.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from stillhouse.audit.bundle import Bundle
from stillhouse.audit.twin import SIDES
from stillhouse.errors import ModelError
from stillhouse.exchange import Exchange, Request, Sampling, from_dict, message
from stillhouse.models.base import Failure, Model, Need, require
from stillhouse.report import Progress

__all__ = ["REPEATED_PAIRS", "ask_texts", "read_scores", "suspect_requests"]

Line = Mapping[str, Any]

REPEATED_PAIRS = 8
"""Pairs scored a second time at the end: a suspect that changed in between shows there."""

_AT_ONCE = 64  # pairs scored between two writes: a crash loses little, lengths can be grouped


def read_scores(
    model: Model, role: str, pairs: Sequence[Line], bundle: Bundle, progress: Progress
) -> None:
    """Nothing; `scores.jsonl` holds this role's log-probabilities of both answers of each pair.

    Answers are read as text, by every model with its own tokenizer: token ids recorded with one
    answer and not with the other would treat them differently.

    Raises:
        CapabilityError: the model gives no log-probabilities of given text.
        ModelError: it is gone.
    """
    require(model, Need(scoring=True))
    there = {line["exchange"] for line in bundle.lines("scores") if line["role"] == role}
    todo = [pair for pair in pairs if pair["exchange"] not in there and "withheld" not in pair]
    progress.start(f"{_ROLES[role]} reads both answers", len(pairs), "pairs")
    progress.advance(len(pairs) - len(todo))
    for start in range(0, len(todo), _AT_ONCE):
        group = todo[start : start + _AT_ONCE]
        bundle.append("scores", _score_group(model, role, group))
        progress.advance(len(pairs) - len(todo) + start + len(group))
    progress.finish(f"{len(pairs)} pairs by {model.name}")


_ROLES = {"suspect": "the suspect", "teacher": "the teacher", "repeat": "the suspect, again,"}


def _score_group(model: Model, role: str, group: Sequence[Line]) -> list[dict[str, Any]]:
    """A line for each pair and side, in their order; of what cannot be read, one without values."""
    places = [(pair["exchange"], side) for pair in group for side in SIDES]
    texts = [_bare(pair[side]) for pair in group for side in SIDES]
    try:
        scored = {i: found.chosen.tolist() for i, found in model.score(texts)}
    except ModelError:  # one of them does not fit: find which
        scored = dict(_one_by_one(model, texts))
    return [
        {"role": role, "exchange": exchange, "side": side, "logprobs": scored.get(i, [])}
        for i, (exchange, side) in enumerate(places)
    ]


def _one_by_one(model: Model, texts: Sequence[Exchange]) -> Iterator[tuple[int, list[float]]]:
    failed = 0
    for index, text in enumerate(texts):
        try:
            ((_, found),) = model.score([text])
            yield index, found.chosen.tolist()
        except ModelError:
            failed += 1
            if failed == len(texts):  # nothing was wrong with one of them: the model is gone
                raise


def _bare(line: Line) -> Exchange:
    """The exchange as text only: without the token ids it may have been recorded with."""
    return replace(from_dict(line), logprobs=None)


# ---- text only ----


def suspect_requests(
    pairs: Iterable[Line], *, samples: int, temperature: float, seed: int
) -> list[Request]:
    """What a suspect with text only is asked: the prompt, with the prefix both answers share."""
    return [
        _request(pair, sample, temperature, seed)
        for pair in pairs
        if "withheld" not in pair
        for sample in range(samples)
    ]


def _request(pair: Line, sample: int, temperature: float, seed: int) -> Request:
    served = from_dict(pair["served"])
    prompt = served.prompt
    if pair.get("prefix"):
        prompt = (*prompt, message("assistant", pair["prefix"]))
    digest = hashlib.sha256(f"suspect {seed} {pair['exchange']} {sample}".encode()).digest()
    settings = Sampling(
        temperature=temperature, top_p=1.0, top_k=0, min_p=0.0, frequency_penalty=0.0,
        presence_penalty=0.0, repeat_penalty=1.0, max_tokens=served.sampling.max_tokens, stop=(),
        seed=int.from_bytes(digest[:4], "big") & 0x7FFFFFFF, sample_index=sample,
    )  # fmt: skip
    return Request(
        prompt=prompt, sampling=settings,
        labels={"exchange": pair["exchange"], "sample": str(sample)},
    )  # fmt: skip


def ask_texts(
    model: Model, requests: Sequence[Request], bundle: Bundle, progress: Progress
) -> None:
    """Nothing; `continuations.jsonl` holds the suspect's answer to each request.

    A request that fails for good leaves no line; its pair is counted as one that could not be
    scored.

    Raises:
        ModelError: the suspect is gone.
    """
    require(model, Need(text=True))
    there = {(line["exchange"], line["sample"]) for line in bundle.lines("continuations")}
    todo = [r for r in requests if (r.labels["exchange"], int(r.labels["sample"])) not in there]
    done = len(requests) - len(todo)
    progress.start("the suspect answers", len(requests), "answers")
    progress.advance(done)
    waiting: list[dict[str, Any]] = []
    try:
        for answer in model.answer(todo):
            if isinstance(answer, Failure):
                if answer.retryable:
                    raise answer.error
                continue
            waiting.append(_continuation(answer))
            done += 1
            if len(waiting) == _AT_ONCE:
                bundle.append("continuations", waiting)
                waiting = []
                progress.advance(done)
    finally:
        bundle.append("continuations", waiting)
    progress.finish(f"{done} answers by {model.name}")


def _continuation(answer: Exchange) -> dict[str, Any]:
    return {
        "exchange": answer.labels["exchange"], "sample": int(answer.labels["sample"]),
        "text": answer.response.text or "", "served_model": answer.served_model,
        "time": answer.time.isoformat(timespec="seconds"),
    }  # fmt: skip
