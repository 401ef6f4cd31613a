"""What a model makes of the answers of a pair: log-probabilities of their text, or its own answers.

In: an open model, pairs, the bundle the raw lines go into. Out: lines in the bundle, one for each
model, pair and side, on the disk as they come; what is there is not asked again. Nothing here looks
at which side was served.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from stillhouse.audit.batch import REPEATED_PAIRS, jsonable, place_of
from stillhouse.audit.bundle import Bundle
from stillhouse.audit.pair_checks import SIDES
from stillhouse.errors import ModelError, TransportError
from stillhouse.exchange import (
    Exchange,
    Request,
    Sampling,
    canonical_json,
    from_dict,
    message,
)  # fmt: skip
from stillhouse.models.base import Failure, Model, Need, require
from stillhouse.progress import Progress
from stillhouse.text import seed_from

__all__ = ["ask_texts", "read_scores", "suspect_requests"]

Line = Mapping[str, Any]

_AGAIN = 1000  # added to the index of samples that are asked a second time

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
    there = {
        (line["exchange"], line["side"]) for line in bundle.lines("scores") if line["role"] == role
    }
    todo = [p for p in pairs if not all((p["exchange"], side) in there for side in SIDES)]
    progress.start(f"{_ROLES[role]} reads both answers", len(pairs), "pairs")
    progress.advance(len(pairs) - len(todo))
    for start in range(0, len(todo), _AT_ONCE):
        group = todo[start : start + _AT_ONCE]
        lines = _score_group(model, role, group)  # of a pair that was cut in half, one is there
        bundle.append("scores", [x for x in lines if (x["exchange"], x["side"]) not in there])
        progress.advance(len(pairs) - len(todo) + start + len(group))
    progress.finish(f"{len(pairs)} pairs by {model.name}")


_ROLES = {"suspect": "the suspect", "teacher": "the teacher", "repeat": "the suspect, again,"}


def _score_group(model: Model, role: str, group: Sequence[Line]) -> list[dict[str, Any]]:
    """A line for each pair and side; of what cannot be read, one without values.

    Of a pair, the side whose answer has the lower hash is read first: a model may read both after
    one prompt, and whatever its engine makes of the order says nothing of which was served.
    """
    places, texts = [], []
    for pair in group:
        sides = sorted(SIDES, key=lambda side: _answer_hash(pair[side]))
        places += [(pair["exchange"], side) for side in sides]
        texts += [_bare(pair[side]) for side in sides]
    try:
        scored = {i: jsonable(found.chosen.tolist()) for i, found in model.score(texts)}
    except TransportError:  # gone: what is not read now is read when the audit goes on
        raise
    except ModelError:  # one of them does not fit: find which
        scored = dict(_one_by_one(model, texts))
    return [
        {"role": role, "exchange": exchange, "side": side, "logprobs": scored.get(i, [])}
        for i, (exchange, side) in enumerate(places)
    ]


def _one_by_one(
    model: Model, texts: Sequence[Exchange]
) -> Iterator[tuple[int, list[float | None]]]:
    failed = 0
    for index, text in enumerate(texts):
        try:
            ((_, found),) = model.score([text])
            yield index, jsonable(found.chosen.tolist())
        except TransportError:
            raise
        except ModelError:
            failed += 1
            if failed == len(texts):  # nothing was wrong with one of them: the model is gone
                raise


def _answer_hash(line: Line) -> int:
    """Of what is read of an answer: the same words may have ended differently."""
    return seed_from(canonical_json([line["response"], line.get("finish_reason")]))


def _bare(line: Line) -> Exchange:
    """The exchange as text only: without the token ids it may have been recorded with."""
    return replace(from_dict(line), logprobs=None)


# ---- text only ----


def suspect_requests(
    pairs: Sequence[Line], *, samples: int, temperature: float, seed: int
) -> list[Request]:
    """What a suspect with text only is asked: the prompt, with the prefix both answers share; the
    first pairs once more at the end.
    """
    return [
        _request(pair, sample, round_, temperature, seed)
        for round_, some in ((1, pairs), (2, pairs[:REPEATED_PAIRS]))
        for pair in some
        for sample in range(samples)
    ]


def _request(pair: Line, sample: int, round_: int, temperature: float, seed: int) -> Request:
    served = from_dict(pair["served"])
    prompt = served.prompt
    if pair.get("prefix"):
        prompt = (*prompt, message("assistant", pair["prefix"]))
    index = sample if round_ == 1 else _AGAIN + sample
    settings = Sampling(
        temperature=temperature, top_p=1.0, top_k=0, min_p=0.0, frequency_penalty=0.0,
        presence_penalty=0.0, repeat_penalty=1.0, max_tokens=served.sampling.max_tokens, stop=(),
        seed=seed_from(f"suspect {seed} {pair['exchange']} {index}"), sample_index=index,
    )  # fmt: skip
    return Request(
        prompt=prompt, sampling=settings,
        labels={"exchange": pair["exchange"], "sample": str(sample), "round": str(round_)},
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
    there = {
        (line["exchange"], line["sample"], line["round"]) for line in bundle.lines("continuations")
    }
    todo = [r for r in requests if tuple(place_of(r).values()) not in there]
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
        **place_of(answer),
        "text": answer.response.text or "", "served_model": answer.served_model,
        "time": answer.time.isoformat(timespec="seconds"),
    }  # fmt: skip
