"""A piece of a batch without padding, and with the beginning its examples share only once.

In: a right-padded batch and a transformers network. Out: what the network reads instead, and hidden
states and gradients the same as of the padded batch to rounding (held by a test). The examples
are laid end to end behind their common beginning (a chat template's own words: a seventh of the
quickstart's tokens), so that every layer but attention reads each token once; attention lays them
out in rows again and lets every row look back on the beginning. Nothing here knows of losses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from stillhouse.models.local_network import common_prefix
from stillhouse.train.batches import Batch

__all__ = ["Packed", "attention", "hidden_states", "pack", "packing", "read_packed"]

# Longer rows go through torch's fused kernel, padded: `attention` keeps a weight for each pair of
# tokens until the backward pass, which for 30 layers of 9 heads of 512 tokens is 140 MB a row.
_LONGEST = 512

_NAME = "stillhouse_packed"


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where packed tokens stand: P that all B rows begin with, then each row's own, at most R."""

    prefix: int
    """P."""
    size: tuple[int, int]
    """(B, R)."""
    at: Tensor
    """Where in B * R the tokens behind the beginning stand."""

    def spread(self, own: Tensor) -> Tensor:
        """(N - P, H, D) -> (B, R, H, D), zeros where no token stands."""
        wide = own.new_zeros(self.size[0] * self.size[1], *own.shape[1:])
        return wide.index_copy(0, self.at, own).unflatten(0, self.size)

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(N, H, D) of scaled queries (N, H, D), keys and values (N, G, D)."""
        p, rows = self.prefix, self.size[0]
        back = [
            torch.cat([part[None, :p].expand(rows, -1, -1, -1), self.spread(part[p:])], 1)
            for part in (k, v)
        ]
        own = attention(self.spread(q[p:]), *back).flatten(0, 1).index_select(0, self.at)
        if not p:
            return own
        return torch.cat([attention(q[None, :p], k[None, :p], v[None, :p])[0], own])


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch as a network reads it: packed in one row, or padded where it cannot be packed."""

    ids: Tensor
    """(1, N), or (B, S) right-padded."""
    places: Tensor
    """(1, N) or (1, S) positions in the examples' own counting."""
    at: Tensor
    """(T,) rows of the flattened hidden states that predict the answers' tokens."""
    beginning: Tensor
    """(P,) rows of the tokens that all examples begin with, once."""
    own: Tensor
    """Rows of all tokens behind them, but each example's last, which predicts nothing."""
    layout: _Layout | None
    """None where padded."""

    def where(self) -> dict[str, Any]:
        """What every layer is told besides."""
        return {} if self.layout is None else {"layout": self.layout}


def read_packed(network: Any) -> None:
    """Let a network read packed batches, until `packing` or another call changes its attention.

    A network whose attention is not torch's fused one is left as it is, and reads padded ones.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def attend(
        module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None,
        layout: _Layout | None = None, **more: Any,
    ) -> Any:  # fmt: skip
        if layout is None:
            # the fused kernel takes 42 ms in bfloat16 and 29 in float32 (docs/lab-notes.md)
            with torch.autocast("cpu", enabled=False):
                return sdpa_attention_forward(module, q.float(), k.float(), v.float(), mask, **more)
        packed = (part[0].transpose(0, 1) for part in (q * more["scaling"], k, v))
        return layout.attended(*packed)[None], None

    if network.config._attn_implementation == "sdpa" and not _window(network):
        AttentionInterface.register(_NAME, attend)
        # padding stands on the right, where causal attention does not look
        AttentionMaskInterface.register(_NAME, lambda *_, **__: None)
        network.set_attn_implementation(_NAME)


def _window(network: Any) -> bool:
    """Whether attention sees some last tokens only."""
    return getattr(network.config, "sliding_window", None) is not None


@contextmanager
def packing(network: Any) -> Iterator[None]:
    """The network reads packed batches inside, and is as it was behind."""
    before = network.config._attn_implementation
    read_packed(network)
    try:
        yield
    finally:
        network.set_attn_implementation(before)


def pack(network: Any, batch: Batch) -> Packed:
    """The batch as this network can read it."""
    size, width = batch.input_ids.shape
    row, column = batch.positions // width, batch.positions % width
    # where its answer begins, an example is in its own row
    prefix = common_prefix(batch.input_ids.tolist()) if size > 1 else 0
    prefix = min(prefix, int(column.min()))
    sizes = torch.zeros(size, dtype=torch.long).scatter_reduce(0, row, column, "amax") + 1 - prefix
    rows = torch.arange(size).repeat_interleave(sizes)
    firsts = sizes.cumsum(0) - sizes
    columns = torch.arange(len(rows)) - firsts[rows]
    beginning = torch.arange(prefix)
    if network.config._attn_implementation != _NAME or width > _LONGEST:
        return Packed(
            batch.input_ids, torch.arange(width)[None], batch.positions,
            beginning, rows * width + columns + prefix, None,
        )  # fmt: skip
    wide = int(sizes.max())
    ids = torch.cat([batch.input_ids[0, :prefix], batch.input_ids[rows, columns + prefix]])
    return Packed(
        ids[None], torch.cat([beginning, columns + prefix])[None], firsts[row] + column,
        beginning, torch.arange(prefix, len(ids)),
        _Layout(prefix, (size, wide), rows * wide + columns),
    )  # fmt: skip


def hidden_states(network: Any, batch: Batch) -> Tensor:
    """(T, D) the last hidden states where the answers of a batch are predicted."""
    read = pack(network, batch)
    out = network.base_model(
        input_ids=read.ids, position_ids=read.places, use_cache=False, **read.where()
    )
    return out.last_hidden_state.flatten(0, 1).index_select(0, read.at)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, R, H, D) what the last R of S tokens see, causally.

    Scores and softmax are float32; the other products have autocast's precision, as torch's own
    attention has. Two thirds of the fused kernel's time at 200 tokens (docs/lab-notes.md).
    Shapes: q (B, R, H, D), already scaled; k and v (B, S, G, D), where G divides H.
    """
    on = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if on else q.dtype
    with torch.autocast("cpu", enabled=False):
        b, r, h, d = q.shape
        s, g = k.shape[1:3]
        grouped = q.view(b, r, g, h // g, d).permute(0, 2, 3, 1, 4).reshape(b * g, h // g * r, d)
        back, values = (part.transpose(1, 2).reshape(b * g, s, d) for part in (k, v))
        seen = cast(Tensor, _Attention.apply(grouped, back, values.to(dtype), r))
        return seen.view(b, g, h // g, r, d).permute(0, 3, 1, 2, 4).reshape(b, r, h, d)


class _Attention(torch.autograd.Function):
    """softmax(Q K') V of heads (B, n * R, D), (B, S, D) and (B, S, D), causal at the end."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, last: int) -> Tensor:
        """In V's precision but for the scores."""
        scores = q.bmm(k.transpose(1, 2))
        hidden = torch.full((last, k.shape[1]), -torch.inf).triu_(1 + k.shape[1] - last)
        scores.unflatten(1, (-1, last)).add_(hidden)
        weights = scores.softmax(-1).to(v.dtype)
        seen = weights.bmm(v)
        ctx.save_for_backward(q.to(v.dtype), k.to(v.dtype), v, weights, seen)
        return seen.to(q.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Dao et al. 2022, arXiv 2205.14135, appendix B, with the weights kept."""
        q, k, v, weights, seen = ctx.saved_tensors
        grad, dtype = grads[0].to(v.dtype), grads[0].dtype
        toward = (grad.float() * seen.float()).sum(-1, keepdim=True).to(v.dtype)
        scores = grad.bmm(v.transpose(1, 2)).sub_(toward).mul_(weights)
        return (
            scores.bmm(k).to(dtype), scores.transpose(1, 2).bmm(q).to(dtype),
            weights.transpose(1, 2).bmm(grad), None,
        )  # fmt: skip
