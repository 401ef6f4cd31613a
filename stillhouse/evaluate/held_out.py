"""The prompts a student is measured on, and the answers drawn to them.

In: prompt files, the store that was trained on, a model. Out: held-out prompts that training did
not see, and exchanges, kept in a store so that nothing is asked twice. Nothing here measures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.config import EvaluateSettings
from stillhouse.errors import ConfigError, DataError, EvidenceError
from stillhouse.exchange import Exchange, Message, Request, Sampling, Terms
from stillhouse.models.base import Failure, Model
from stillhouse.progress import Progress
from stillhouse.prompts import Prompt, read_prompts
from stillhouse.stats import MIN_CLUSTERS
from stillhouse.store import Store
from stillhouse.text import NEAR, near_duplicates

__all__ = [
    "HeldOut",
    "Pair",
    "at_temperature_1",
    "draw",
    "held_out_prompts",
    "question",
    "requests_for",
    "sampling_words",
]


@dataclass(frozen=True, slots=True)
class Pair:
    """A held-out prompt that asks what a training prompt asks."""

    prompt_id: str
    similarity: float
    exact: bool


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What the student is measured on."""

    prompts: tuple[Prompt, ...]
    left_out: tuple[Pair, ...]
    """Prompts of the files that training saw, or nearly so; not measured on."""
    training_prompts: int | None
    """Distinct training prompts compared with; None when no store was given."""

    def overlap(self) -> dict[str, Any]:
        """The JSON form of what the check for training prompts found."""
        return {
            "checked": self.training_prompts is not None,
            "training_prompts": self.training_prompts,
            "threshold": NEAR,
            "left_out": [
                {"prompt_id": p.prompt_id, "similarity": p.similarity, "exact": p.exact}
                for p in self.left_out
            ],
        }


def held_out_prompts(settings: EvaluateSettings, training: Path | None) -> HeldOut:
    """The prompts to measure on: those of the files that are not, or nearly, among training's.

    Which prompts are left out depends on prompts only, so the rest stays a fair sample. Where
    `settings.exchanges` asks for fewer, every k-th is taken, so that all files have their share.

    Args:
        settings: the files and how many.
        training: the store that was trained on; None leaves the check undone, and says so.

    Raises:
        ConfigError: no prompt files were named.
        DataError: a file cannot be read.
        EvidenceError: training saw them all, or nearly so.
    """
    if not settings.prompts:
        raise ConfigError(
            "key 'evaluate.prompts'", "no held-out prompts", "files of prompts that training "
            "does not see", "Name them in the recipe, under `evaluate`",
        )  # fmt: skip
    prompts = read_prompts(settings.prompts).prompts
    seen = _training_texts(training) if training is not None else None
    worst: dict[int, Pair] = {}
    for near in near_duplicates([question(p.messages) for p in prompts], seen or ()):
        pair = Pair(prompts[near.index].id, near.similarity, near.exact)
        if near.index not in worst or worst[near.index].similarity < near.similarity:
            worst[near.index] = pair
    kept = [prompt for index, prompt in enumerate(prompts) if index not in worst]
    if not kept:
        raise EvidenceError(
            "held-out prompts", f"training saw all {len(prompts)} of them, or nearly so",
            "prompts that are not among the training prompts",
            "Point `evaluate.prompts` at other files",
        )  # fmt: skip
    if len(kept) < MIN_CLUSTERS:
        raise EvidenceError(
            "held-out prompts", f"{len(kept)} that training did not see, of {len(prompts)}",
            f"at least {MIN_CLUSTERS}, or there is no interval", "Name more in `evaluate.prompts`",
        )  # fmt: skip
    wanted = min(settings.exchanges or len(kept), len(kept))
    spread = tuple(kept[i * len(kept) // wanted] for i in range(wanted))
    left_out = tuple(worst[index] for index in sorted(worst))
    return HeldOut(spread, left_out, None if seen is None else len(seen))


def question(messages: Sequence[Message]) -> str:
    """What a prompt asks: the text of its messages but for the system's."""
    return "\n".join(m.text for m in messages if m.role not in ("system", "developer"))


def _training_texts(store: Path) -> list[str]:
    """The distinct questions of a store, in the order they came."""
    with Store(store, mode="r") as opened:
        asked = (question(row["prompt"]) for row in opened.stream(["prompt"]))
        return list(dict.fromkeys(asked))


def requests_for(
    prompts: Sequence[Prompt],
    settings: EvaluateSettings,
    *,
    samples: int = 1,
    terms: Terms | None = None,
) -> list[Request]:
    """Requests at temperature 1, cut as the settings say, every setting explicit.

    A request's own seed comes from `seed` and its prompt, not from its place: fewer prompts give
    the same answers to those that stay.
    """
    return [
        Request(
            prompt=prompt.messages,
            tools=prompt.tools,
            sampling=at_temperature_1(
                settings, settings.max_tokens, _seed(settings.seed, prompt.id, sample), sample
            ),
            labels={**prompt.labels, "prompt_id": prompt.id},
            terms=terms,
        )
        for prompt in prompts
        for sample in range(samples)
    ]


def at_temperature_1(
    settings: EvaluateSettings, max_tokens: int, seed: int, sample: int
) -> Sampling:
    """Cut as the settings say, every setting explicit."""
    return Sampling(
        temperature=1.0, top_p=settings.top_p, top_k=settings.top_k, min_p=settings.min_p,
        frequency_penalty=0.0, presence_penalty=0.0, repeat_penalty=1.0,
        max_tokens=max_tokens, seed=seed, sample_index=sample,
    )  # fmt: skip


def sampling_words(settings: EvaluateSettings) -> str:
    """How answers are drawn, for the report's reader."""
    cuts = [
        words
        for words, used in (
            (f"top-k {settings.top_k}", settings.top_k > 0),
            (f"top-p {settings.top_p:g}", settings.top_p < 1),
            (f"min-p {settings.min_p:g}", settings.min_p > 0),
        )
        if used
    ]
    return "temperature 1" + (f" ({', '.join(cuts)})" if cuts else ", nothing cut")


def _seed(seed: int, prompt_id: str, sample: int) -> int:
    """31 bits: what every server takes as a seed."""
    digest = hashlib.sha256(f"{seed}/{prompt_id}/{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def draw(
    model: Model,
    requests: Sequence[Request],
    store: Path,
    progress: Progress,
    stage: str,
    *,
    top_logprobs: int = 0,
) -> tuple[list[Exchange], list[Failure]]:
    """The model's answers in the order of the requests, and the requests it cannot answer.

    Answers that the store holds are not asked for again; new ones are kept as they come.

    Args:
        model: what is asked.
        requests: what it is asked.
        store: where the answers are kept.
        progress: told about each answer.
        stage: what the progress calls it.
        top_logprobs: alternatives kept with each token; 1 also keeps the tokens themselves.

    Raises:
        ModelError: a request failed that asking again could answer.
        DataError: the model left a request without any result.
    """
    wanted = {request.key for request in requests}
    failures: list[Failure] = []
    with Store(store) as opened:
        found = {e.key: e for e in opened if e.key in wanted}
        waiting = [request for request in requests if request.key not in found]
        if waiting:
            progress.start(stage, len(requests), "answers")
            for result in model.answer(waiting, top_logprobs=top_logprobs):
                if isinstance(result, Failure):
                    if result.retryable:
                        raise result.error
                    failures.append(result)
                else:
                    opened.append(result)
                    found[result.key] = result
                progress.advance(len(found) + len(failures))
            progress.finish(f"{len(found)} answers")
    lost = [
        r for r in requests if r.key not in found and r.key not in {f.request.key for f in failures}
    ]
    if lost:
        raise DataError(
            str(store), f"{len(lost)} requests were neither answered nor refused",
            "an exchange or a failure for each request", "Report this: it is an error of the model",
        )  # fmt: skip
    for failure in failures:
        progress.say(f"left out: {failure.error}")
    return [found[request.key] for request in requests if request.key in found], failures
