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
from torch.autograd.function import once_differentiable

from stillhouse.models.local_network import common_prefix
from stillhouse.train.batches import Batch

__all__ = ["Packed", "attention", "hidden_states", "pack", "packing", "read_packed"]

# `attention` keeps a weight for each pair of tokens until the backward pass: where those of all
# layers would take more, torch's fused kernel reads the rows, padded.
_PAIRS_BYTES = 2**30

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

    A network that cannot (attention of its own, a window, dropout inside attention, layers that
    pass something on from token to token, weights that are not float32 on the processor) is left as
    it is, and reads padded ones. Which ones can is tried, not listed.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    from transformers.modeling_utils import AttentionInterface

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

    def mask(*rest: Any, **more: Any) -> Tensor | None:
        # our own padding stands on the right, where causal attention does not look
        return None if more.get("attention_mask") is None else sdpa_mask(*rest, **more)

    config, weight = network.config, next(network.parameters())
    refused = ("sliding_window", "attention_dropout", "attn_pdrop")
    plain = not any(getattr(config, name, None) for name in refused)
    plain &= set(getattr(config, "layer_types", None) or ()) <= {"full_attention"}
    plain &= weight.dtype == torch.float32 and weight.device.type == "cpu"
    if config._attn_implementation == "sdpa" and plain:
        AttentionInterface.register(_NAME, attend)
        AttentionMaskInterface.register(_NAME, mask)
        wanted = _tried(network)
        network.set_attn_implementation(_NAME)
        try:
            fits = torch.dist(_tried(network), wanted) <= _ROUNDING * wanted.norm()
        except (RuntimeError, TypeError, KeyError):  # a kernel's shapes, an unknown argument
            fits = False
        if not fits:
            network.set_attn_implementation("sdpa")


# Relative difference of the two ways in float32: 1e-5 at most where the network can be packed (8e-6
# in SmolLM2-135M), tenths where its layers do not hand on the layout or read one long sequence.
_ROUNDING = 5e-5


def _tried(network: Any) -> Tensor:
    """Hidden states of two rows of unequal length that begin alike, as the network reads now."""
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 7, 6, 0, 0]]) % network.config.vocab_size
    positions = torch.tensor([2, 3, 4, 5, 9, 10])
    training = network.training
    network.eval()
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return hidden_states(network, Batch(ids, positions, positions, ()))
    finally:
        network.train(training)


@contextmanager
def packing(network: Any) -> Iterator[None]:
    """The network reads packed batches inside, and is as it was behind."""
    before = network.config._attn_implementation
    read_packed(network)
    try:
        yield
    finally:
        network.set_attn_implementation(before)


def pack(network: Any, batch: Batch, *, alone: int = 0) -> Packed:
    """The batch as this network can read it.

    Args:
        network: see `read_packed`.
        batch: right-padded.
        alone: how long the beginning is where the batch is a single example, which others share.
    """
    size, width = batch.input_ids.shape
    row, column = batch.positions // width, batch.positions % width
    # where its answer begins, an example is in its own row
    prefix = common_prefix(batch.input_ids.tolist()) if size > 1 else alone
    prefix = min(prefix, int(column.min()))
    sizes = torch.zeros(size, dtype=torch.long).scatter_reduce(0, row, column, "amax") + 1 - prefix
    rows = torch.arange(size).repeat_interleave(sizes)
    firsts = sizes.cumsum(0) - sizes
    columns = torch.arange(len(rows)) - firsts[rows]
    beginning = torch.arange(prefix)
    heads = network.config.num_hidden_layers * network.config.num_attention_heads
    too_large = heads * size * width**2 * 4 > _PAIRS_BYTES
    if network.config._attn_implementation != _NAME or too_large:
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
    attention has. Three quarters of the fused kernel's time at 200 tokens (docs/lab-notes.md).
    Shapes: q (B, R, H, D), already scaled; k and v (B, S, G, D), where G divides H.
    """
    on = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if on else q.dtype
    with torch.autocast("cpu", enabled=False):
        b, r, h, d = q.shape
        s, g = k.shape[1:3]
        grouped = q.view(b, r, g, h // g, d).permute(0, 2, 3, 1, 4).reshape(b * g, h // g * r, d)
        back, values = (part.transpose(1, 2).reshape(b * g, s, d) for part in (k, v))
        seen = cast(Tensor, _Attention.apply(grouped.float(), back.float(), values.to(dtype), r))
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
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Dao et al. 2022, arXiv 2205.14135, appendix B, with the weights kept."""
        q, k, v, weights, seen = ctx.saved_tensors
        grad, dtype = grads[0].to(v.dtype), grads[0].dtype
        toward = (grad.float() * seen.float()).sum(-1, keepdim=True).to(v.dtype)
        scores = grad.bmm(v.transpose(1, 2)).sub_(toward).mul_(weights)
        return (
            scores.bmm(k).to(dtype), scores.transpose(1, 2).bmm(q).to(dtype),
            weights.transpose(1, 2).bmm(grad), None,
        )  # fmt: skip
