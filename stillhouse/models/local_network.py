"""What the sampler and the scorer of local models ask of a network, whatever computes it.

In: token ids. Out: logits. `local_llama.py` serves plain Llamas on the CPU fast, `local_general.py`
everything transformers can load. Nothing here knows text, requests or exchanges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch

__all__ = ["Answered", "Network", "Wave", "common_prefix", "matmul_dtype"]


def matmul_dtype(name: str) -> torch.dtype:
    """The precision of matrix products for a setting: 'auto', 'float32' or 'bfloat16'.

    'auto' looks at the processor's instructions, not at a stopwatch, so that a run that is
    continued on the same machine never changes precision.
    """
    if name == "auto":
        has = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if has else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


Tokens = TypeVar("Tokens", list[int], tuple[int, ...])


def common_prefix(sequences: Sequence[Tokens]) -> int:
    """How many tokens all sequences begin with."""
    low, high = min(sequences), max(sequences)  # the two that differ first
    pairs = zip(low, high, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(low), len(high)))


class Answered(NamedTuple):
    """A prompt and answers to it that are given, as token ids."""

    prompt: Sequence[int]
    """At least one token."""
    answers: Sequence[Sequence[int]]
    """Each continues the prompt and knows nothing of the others."""


class Wave(Protocol):
    """Rows that began together and take every step together, with their key-value cache."""

    def __len__(self) -> int:
        """Rows alive."""
        ...

    def keep(self, rows: Sequence[int]) -> Sequence[int]:
        """Let go of all rows but these; where each surviving row now stands came from.

        Entry i of the answer is the old place of the row that stands at i.
        """
        ...


W = TypeVar("W", bound=Wave)


class Network(Protocol[W]):
    """A causal language model as a function from token ids to logits."""

    engine: str
    """What computes, for `Logprobs.engine`: precision and version."""
    vocabulary: int
    """Width of the logits."""
    context_tokens: int
    """Prompt and answer together."""
    position_bytes: int
    """Memory of one token's keys and values over all layers."""

    def begin(self, prompts: Sequence[Sequence[int]], room: int) -> tuple[W, torch.Tensor]:
        """A wave of these prompts with room for so many more tokens each, and the logits (W, V)
        of each row's first answer token.
        """
        ...

    def step(self, waves: Sequence[W], tokens: torch.Tensor) -> torch.Tensor:
        """The logits (N, V) after each of the N rows of all waves took its token (N,)."""
        ...

    def logits(self, texts: Sequence[Answered]) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Chunks (answer, position, logits (n, V)): the distributions of tokens `position` to
        `position + n` of that answer, in order; answers are counted through all texts, positions
        from the answer's beginning. Memory is bounded by the texts and the chunk.
        """
        ...
