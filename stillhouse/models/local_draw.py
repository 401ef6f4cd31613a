"""Drawing the next token: logits in; tokens and log-probabilities out.

The log-probabilities are the model's own, before temperature, truncation and any watermark. The
draw inverts the cumulative distribution at one uniform number per token, so a row's answer depends
on its own logits and numbers only. The vocabulary is gone through in blocks: the most likely tokens
lie in the blocks with the highest maxima, and a cumulative sum is needed inside one block only;
both are exact, and several times faster than over the whole width.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from stillhouse.exchange import Request, Sampling

__all__ = ["Drawn", "Shape", "draw", "most_likely", "survivors", "uniforms"]

_BLOCK = 64  # 768 blocks of 64 at 49,152 words: both levels are small
_NUCLEUS = 1024  # most likely tokens looked at first for top_p; all of them where these fall short


@dataclass(frozen=True, slots=True)
class Shape:
    """How one row's distribution is shaped before the draw, in the order of the fields.

    The order is transformers' and vLLM's; llama.cpp applies the temperature last.
    """

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int = 0
    """Most likely tokens kept; 0 keeps all."""
    top_p: float = 1.0
    """The smallest set of likeliest tokens with at least this mass is kept."""
    min_p: float = 0.0
    """Tokens less likely than this part of the likeliest one's probability are dropped."""

    @classmethod
    def of(cls, sampling: Sampling) -> Shape:
        """What a request asks for; what it leaves open is the model's own distribution."""
        return cls(
            1.0 if sampling.temperature is None else sampling.temperature,
            sampling.top_k or 0,
            1.0 if sampling.top_p is None else sampling.top_p,
            sampling.min_p or 0.0,
        )

    @property
    def truncates(self) -> bool:
        """Whether some tokens can be dropped."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)


class Drawn(NamedTuple):
    """One drawn token for each of N rows, with log-probabilities in nats."""

    tokens: torch.Tensor
    """(N,) int64."""
    chosen: torch.Tensor
    """(N,) float32."""
    top_ids: torch.Tensor
    """(N, K) int64, likeliest first."""
    top: torch.Tensor
    """(N, K) float32."""


def uniforms(request: Request, count: int) -> npt.NDArray[np.float64]:
    """(count,) numbers in [0, 1), the request's own: its t-th decides the t-th token.

    A counter-based generator (Philox) keyed by the whole request, so they do not depend on what
    else is in flight. Without a seed they are new each time.
    """
    seeded = request.sampling.seed is not None
    name = request.key.encode() + (b"" if seeded else os.urandom(16))
    key = int.from_bytes(hashlib.sha256(name).digest()[:16], "big")
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def most_likely(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of each row (N, k), largest first, and where they stand: exactly `topk`."""
    n, width = logits.shape
    blocks = -(-width // _BLOCK)
    if k * 4 > blocks:
        return logits.topk(min(k, width))
    split = _blocks(logits, -math.inf)
    best = split.amax(-1).topk(k, sorted=False).indices
    inside = split.gather(1, best[:, :, None].expand(-1, -1, _BLOCK)).view(n, -1)
    values, at = inside.topk(k)
    return values, best.gather(1, at // _BLOCK) * _BLOCK + at % _BLOCK


def log_normaliser(logits: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """(N, 1) float64 log-sum-exp of each row, given the row's largest (N, 1)."""
    sums = _block_sums((logits - largest).exp_())
    return largest.double() + sums.sum(-1, keepdim=True).log()


def _blocks(rows: torch.Tensor, fill: float) -> torch.Tensor:
    """(N, blocks, _BLOCK) of (N, V), the last block filled up."""
    short = -rows.shape[1] % _BLOCK
    rows = F.pad(rows, (0, short), value=fill) if short else rows
    return rows.view(len(rows), -1, _BLOCK)


def _block_sums(weights: torch.Tensor) -> torch.Tensor:
    """(N, blocks) in float64: a block's 64 weights are added in float32, blocks in float64."""
    return _blocks(weights, 0.0).sum(-1).double()


def draw(
    logits: torch.Tensor,
    numbers: npt.NDArray[np.float64],
    shapes: Sequence[Shape],
    top: int = 0,
    marked: torch.Tensor | None = None,
) -> Drawn:
    """One token for each row of logits (N, V) by its number (N,) and shape, and `top` candidates.

    Equal logits keep the order in which `topk` finds them. Where `marked` (N, V) is given, tokens
    are drawn from it; log-probabilities and candidates stay those of `logits`.
    """
    if marked is None:
        tokens, values, ids, normaliser = _pick(logits, numbers, shapes, top)
    else:
        tokens, normaliser = _pick(marked, numbers, shapes, 0)[0], None
        values, ids = most_likely(logits, min(max(top, 1), logits.shape[1]))
    if normaliser is None:
        normaliser = log_normaliser(logits, values[:, :1])
    chosen = logits.gather(1, tokens[:, None]).double() - normaliser
    return Drawn(
        tokens, chosen[:, 0].float(), ids[:, :top], (values.double() - normaliser)[:, :top].float()
    )


def _pick(
    logits: torch.Tensor, numbers: npt.NDArray[np.float64], shapes: Sequence[Shape], top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(N,) tokens; the likeliest logits (N, K) and where they stand, for at least `top`; and the
    log-normalisers (N, 1), where the draw gave them for nothing.
    """
    cuts = [s.top_k for s in shapes if s.temperature > 0 and s.top_k <= _NUCLEUS]
    values, ids = most_likely(logits, min(max(top, 1, *cuts), logits.shape[1]))
    largest = values[:, :1]
    uniform = torch.from_numpy(np.asarray(numbers, np.float64))[:, None]
    temperatures = torch.tensor([shape.temperature for shape in shapes])[:, None]
    plain = bool((temperatures == 1).all())
    heat = temperatures.masked_fill(temperatures == 0, 1.0)
    shifted = logits - largest if plain else (logits - largest) / heat
    tokens, mass = _invert(shifted.exp_(), uniform)
    for shape in set(shapes):
        rows = [row for row, own in enumerate(shapes) if own == shape]
        if shape.temperature == 0:
            tokens[rows] = ids[rows, 0]
        elif 0 < shape.top_k <= values.shape[1]:  # all that may be drawn is among the candidates
            best, where = values[rows, : shape.top_k], ids[rows, : shape.top_k]
            tokens[rows] = _among(best.double(), where, uniform[rows], shape)
        elif shape.truncates:
            for row in rows:
                tokens[row] = _truncated(logits[row], float(numbers[row]), shape)
    return tokens, values, ids, largest.double() + mass.log() if plain else None


def _invert(weights: torch.Tensor, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,) the first index at which the running sum of weights (N, V) exceeds uniform (N, 1) of
    it, and the sums (N, 1); sums in float64.
    """
    split = _blocks(weights, 0.0)
    sums = _block_sums(weights)
    running = sums.cumsum(-1)
    total = running[:, -1:].contiguous()
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    block = torch.searchsorted(running, target, right=True)
    rest = target - (running.gather(1, block) - sums.gather(1, block))
    inside = split.gather(1, block[:, :, None].expand(-1, -1, _BLOCK))[:, 0].double()
    step = torch.searchsorted(inside.cumsum(-1), rest, right=True)
    # the block's own sum may round below the target: then its last token that has any weight
    last = _BLOCK - 1 - (inside > 0).flip(-1).int().argmax(-1, keepdim=True)
    return (block * _BLOCK + torch.minimum(step, last))[:, 0], total


def _among(
    values: torch.Tensor, ids: torch.Tensor, uniform: torch.Tensor, shape: Shape
) -> torch.Tensor:
    """(N,) tokens from the top_k logits (N, K) of rows of one shape, likeliest first, and where
    they stand, by what top_p and min_p leave of them.
    """
    weights = ((values - values[:, :1]) / shape.temperature).exp()
    before = weights.cumsum(-1) - weights
    kept = (before < shape.top_p * weights.sum(-1, keepdim=True)) & (weights >= shape.min_p)
    kept[:, 0] = True  # top_p 0 leaves the likeliest
    running = (weights * kept).cumsum(-1)
    at = torch.searchsorted(running, uniform * running[:, -1:], right=True)
    return ids.gather(1, torch.minimum(at, kept.sum(-1, keepdim=True) - 1))[:, 0]


def _truncated(logits: torch.Tensor, number: float, shape: Shape) -> int:
    """A token of one row (V,) from what top_k, top_p and min_p leave of it."""
    ids, weights = survivors(logits, shape)
    running = weights.cumsum(0)
    at = int(torch.searchsorted(running, number * running[-1], right=True))
    return int(ids[min(at, len(ids) - 1)])


def survivors(logits: torch.Tensor, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    """What temperature, top_k, top_p and min_p leave of one row (V,): token ids (M,), and float64
    weights (M,) in the ratio of their probabilities; likeliest first where something may be cut.
    """
    scaled = logits.double() / shape.temperature
    total = float((scaled - scaled.max()).exp().sum())
    width = len(scaled)
    if not shape.truncates:
        return torch.arange(width), (scaled - scaled.max()).exp()
    for reach in (min(shape.top_k or _NUCLEUS, width), width):
        values, ids = scaled.topk(reach)
        weights = (values - values[0]).exp()
        mass = float(weights.sum()) if shape.top_k else total  # of what top_k left
        before = weights.cumsum(0) - weights
        kept = (before < shape.top_p * mass) & (weights >= shape.min_p * weights[0])
        kept[0] = True  # top_p 0 leaves the likeliest
        if shape.top_k or reach == width or not bool(kept[-1]):
            break  # everything that may be kept has been seen
    return ids[kept], weights[kept]
