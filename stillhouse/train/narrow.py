"""Narrowing an MLP: which neurons a layer can do without, and what the others do in their place.

In: the normal equations of a least-squares problem whose unknowns are the rows of an MLP's output
matrix, one row a neuron. Out: the neurons worth keeping, and the MLP with only those. Removing a
neuron lets all others take over what they can of its work, so the cost of its removal is not how
large it is, but how much of it the others cannot express.

Source: the saliency of Hassibi and Stork 1992 (optimal brain surgeon), on a layer's own
reconstruction error as in Frantar and Alistarh 2022, arXiv 2208.11580, and on whole neurons as in
Kurtic et al. 2023, arXiv 2302.04089 (ZipLM). No gradient step is made.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["keep_neurons", "neurons_worth_keeping"]

# Neurons removed before all saliencies are computed again, as a share of all: each round passes
# over the whole inverse once. Within a round they are taken one at a time from twice as many
# candidates, as two that could stand in for one another must not both go.
_BLOCK_SHARE = 1 / 48


def neurons_worth_keeping(gram: Tensor, cross: Tensor, count: int) -> Tensor:
    """(count,) the neurons, in order, whose least-squares fit is best, found greedily.

    The fit minimises tr(B' gram B - 2 B' cross) over matrices B (M, D) that are zero in removed
    rows. Removing the set S from the current optimum B costs B_S' inv(P_SS) B_S, where P is the
    inverse of gram among the neurons left.

    Args:
        gram: (M, M) symmetric and positive definite.
        cross: (M, D), gram times the optimum without removals.
        count: neurons kept.
    """
    inverse = torch.linalg.inv(gram.double())
    fit = inverse @ cross.double()
    alive = torch.ones(gram.shape[0], dtype=torch.bool)
    block = max(1, int(gram.shape[0] * _BLOCK_SHARE))
    while (left := int(alive.sum()) - count) > 0:
        saliency = fit.square().sum(dim=1) / inverse.diagonal()
        saliency[~alive] = torch.inf
        candidates = saliency.topk(min(2 * block, int(alive.sum())), largest=False).indices
        gone = candidates[
            _one_by_one(inverse[candidates][:, candidates], fit[candidates], min(block, left))
        ]
        columns = inverse[:, gone]
        share = columns @ torch.linalg.inv(inverse[gone][:, gone])
        fit -= share @ fit[gone]
        inverse -= share @ columns.T
        alive[gone] = False
    return alive.nonzero().flatten()


def _one_by_one(inverse: Tensor, fit: Tensor, count: int) -> Tensor:
    """(count,) places of the rows of `fit` (C, D) removed one after the other, each the cheapest
    when those before it are gone; `inverse` (C, C) is that of gram at the same rows.
    """
    gone: list[int] = []
    for _ in range(count):
        saliency = fit.square().sum(dim=1) / inverse.diagonal()
        saliency[gone] = torch.inf
        cheapest = int(saliency.argmin())
        share = inverse[:, cheapest] / inverse[cheapest, cheapest]
        fit = fit - torch.outer(share, fit[cheapest])
        inverse = inverse - torch.outer(share, inverse[cheapest])
        gone.append(cheapest)
    return torch.tensor(gone)


def keep_neurons(mlp: Any, kept: Tensor) -> None:
    """Cut a gated MLP (`gate_proj`, `up_proj`, `down_proj`) to the neurons kept, in place."""
    for name, dim in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
        linear = getattr(mlp, name)
        linear.weight = torch.nn.Parameter(linear.weight.detach().index_select(dim, kept))
        if linear.bias is not None and dim == 0:
            linear.bias = torch.nn.Parameter(linear.bias.detach()[kept])
        linear.out_features, linear.in_features = linear.weight.shape
    mlp.intermediate_size = len(kept)
