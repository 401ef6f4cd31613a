"""How fast teacher and student decode, side by side in one engine.

In: the networks of two local models, each with a key-value cache. Out: tokens a second of each and
their ratio, medians with order-statistic intervals. The models take turns (teacher, student,
teacher, ...), so that what else the machine does in the meantime hits both. Prompts are read
before the clock starts: only decoding is timed. Nothing here samples or judges text.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from stillhouse.config import EvaluateSettings
from stillhouse.errors import EvidenceError
from stillhouse.progress import Progress
from stillhouse.stats import median_estimate

__all__ = ["PROMPT_TOKENS", "Decoder", "compare_speed", "decode_rate"]

PROMPT_TOKENS = 64
"""Tokens of the prompt before the clock starts: about a question and its chat markup."""


class Decoder(Protocol):
    """What is timed: the part of a local model's network that decodes with a key-value cache."""

    engine: str
    """What computes: precision and version."""
    vocabulary: int
    """Width of the logits."""

    def begin(self, prompts: Sequence[Sequence[int]], room: int) -> tuple[Any, torch.Tensor]:
        """A cache of these prompts with room for so many tokens, and the first logits (B, V)."""
        ...

    def step(self, waves: Sequence[Any], tokens: torch.Tensor) -> torch.Tensor:
        """The logits (B, V) after each row took its token (B,)."""
        ...


@torch.inference_mode()
def decode_rate(network: Decoder, *, tokens: int, batch: int) -> float:
    """Tokens a second of greedy decoding after a fixed prompt, all answers of the batch together.

    The prompt is the same token ids for every model of a vocabulary, and decoding goes on past an
    end of turn, so that all models do the same number of steps.
    """
    count = batch * PROMPT_TOKENS
    ids = [number % network.vocabulary for number in range(count)]
    prompts = [ids[start : start + PROMPT_TOKENS] for start in range(0, count, PROMPT_TOKENS)]
    wave, logits = network.begin(prompts, tokens)
    began = time.perf_counter()
    for _ in range(tokens):
        logits = network.step([wave], logits.argmax(dim=-1))
    return batch * tokens / (time.perf_counter() - began)


def compare_speed(
    teacher: Decoder, student: Decoder, settings: EvaluateSettings, progress: Progress
) -> dict[str, Any]:
    """Both models' tokens a second, their ratio, and how they were measured.

    Args:
        teacher: its network.
        student: its network, of the same engine.
        settings: tokens, repeats and batch of a timing.
        progress: told about each timing.

    Raises:
        EvidenceError: different engines, or too few repeats for an interval.
    """
    if teacher.engine != student.engine:
        raise EvidenceError(
            "comparison of speed", f"'{teacher.engine}' against '{student.engine}'", "one engine",
            "Open both models with the same engine and precision",
        )  # fmt: skip
    size = {"tokens": settings.speed_tokens, "batch": settings.speed_batch}
    progress.start("timing teacher and student", settings.speed_repeats, "timings each")
    for network in (teacher, student):  # the first pass allocates and warms up
        decode_rate(network, tokens=min(4, size["tokens"]), batch=size["batch"])
    pairs: list[tuple[float, float]] = []
    for repeat in range(settings.speed_repeats):
        pairs.append((decode_rate(teacher, **size), decode_rate(student, **size)))
        progress.advance(repeat + 1)
    slow, fast = (median_estimate([pair[i] for pair in pairs], unit="timings") for i in (0, 1))
    ratio = median_estimate([after / before for before, after in pairs], unit="pairs of timings")
    progress.finish(f"{slow.value:.1f} and {fast.value:.1f} tokens/s, ratio {ratio.value:.2f}")
    threads = torch.get_num_threads()
    at_once = "one answer" if size["batch"] == 1 else f"{size['batch']} answers"
    return {
        "teacher_tokens_per_s": slow.value,
        "student_tokens_per_s": fast.value,
        "teacher": slow.to_dict(),
        "student": fast.to_dict(),
        "ratio": ratio.to_dict(),
        "timings": [list(pair) for pair in pairs],
        "settings": {
            **size, "repeats": settings.speed_repeats, "prompt_tokens": PROMPT_TOKENS,
            "engine": teacher.engine, "threads": threads,
        },
        "how": f"Greedy, {size['tokens']} tokens after a prompt of {PROMPT_TOKENS}, {at_once} at a "
        f"time, {teacher.engine} on {threads} threads with a key-value cache; medians of "
        f"{settings.speed_repeats} timings each, in turns.",
    }  # fmt: skip
