"""A transformers network, a layer at a time: what choosing and healing layers is made of.

In: a decoder with `model.layers`, as transformers writes Llama, Mistral and Qwen, and batches. Out:
hidden states and log-probabilities. Nothing here changes a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stillhouse.errors import DataError
from stillhouse.train.packed import Packed

__all__ = [
    "after_layer", "answer_logprobs", "embedded", "kl_sum", "layers_of",
    "mean_kl", "network_logprobs", "precision",
]  # fmt: skip


def precision(dtype: torch.dtype) -> AbstractContextManager[Any]:
    """A context in which matrix products run in `dtype`; sums, norms and weights stay float32."""
    if dtype == torch.float32:
        return nullcontext()
    # Without its cache of cast weights: healing changes weights inside one context, and a stale
    # copy would answer for the old ones. Training uses each weight once a pass, so nothing is lost.
    return torch.autocast("cpu", dtype=dtype, cache_enabled=False)


def layers_of(network: Any) -> torch.nn.ModuleList:
    """The decoder layers of a transformers causal language model.

    Raises:
        DataError: they are not where Llama-like models keep them.
    """
    layers = getattr(getattr(network, "model", None), "layers", None)
    if not isinstance(layers, torch.nn.ModuleList):
        raise DataError(
            type(network).__name__, "no `model.layers`", "a Llama-like decoder (Llama, Qwen, ...)",
            "Set student.init=checkpoint and bring a student of your own",
        )  # fmt: skip
    return layers


def embedded(network: Any, read: Packed) -> tuple[Tensor, dict[str, Any]]:
    """(1, N, D) or (B, S, D) what the first layer sees, and what every layer is told besides."""
    hidden = network.model.embed_tokens(read.ids)
    angles = network.model.rotary_emb(hidden, read.places)
    return hidden, {"position_embeddings": angles, **read.where()}


def after_layer(layer: Any, hidden: Tensor, where: dict[str, Any]) -> Tensor:
    """The hidden states after a layer; without a mask, attention is causal."""
    out = layer(hidden, attention_mask=None, **where)
    return out[0] if isinstance(out, tuple) else out


def answer_logprobs(network: Any, hidden: Tensor, read: Packed) -> Tensor:
    """(T, V) log-probabilities at the answer positions."""
    rows = network.model.norm(hidden).flatten(0, 1)[read.at]
    logits = functional.linear(rows, network.get_output_embeddings().weight)
    return functional.log_softmax(logits.float(), dim=-1)


def network_logprobs(network: Any, read: Packed) -> Tensor:
    """(T, V) log-probabilities of a whole network at the answer positions."""
    hidden, where = embedded(network, read)
    for layer in layers_of(network):
        hidden = after_layer(layer, hidden, where)
    return answer_logprobs(network, hidden, read)


def mean_kl(network: Any, batches: Sequence[Packed], wanted: Sequence[Tensor]) -> float:
    """Mean KL(teacher || network) in nats over the answer tokens."""
    total = sum(
        kl_sum(network_logprobs(network, b), w) for b, w in zip(batches, wanted, strict=True)
    )
    return round(total / sum(len(b.at) for b in batches), 4)


def kl_sum(log_q: Tensor, log_p: Tensor) -> float:
    """Sum of KL(p || q) over positions, nats."""
    return float(functional.kl_div(log_q, log_p, reduction="sum", log_target=True))
