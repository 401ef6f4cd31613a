"""Healing a cut: each kept layer's MLP output matrix, corrected by ridge regression.

In: teacher, cut student, and batches of real exchanges. Out: the student, changed in place, so that
its hidden state comes close to the teacher's where the next kept layer begins. No gradient step.

Sources: in the spirit of Song et al. 2024, arXiv 2402.09025 (SLEB), and of Frantar and Alistarh
2022, arXiv 2208.11580.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stillhouse.report import Progress
from stillhouse.train.batches import Batch
from stillhouse.train.layers import after_layer, embedded, layers_of

__all__ = ["heal"]

# Added to the diagonal of the normal equations, as a share of its mean. On 7,000 tokens .1 gave
# KL 1.18, .01 1.37 (it fits the few tokens) and 1 1.48 (docs/lab-notes.md).
_RIDGE = 0.1


def heal(
    teacher: Any, student: Any, keep: list[int], batches: list[Batch], progress: Progress
) -> None:
    """Correct each kept layer's MLP output matrix (D, M), in place, first to last.

    Teacher and student go through their layers side by side, so only two hidden states of each
    token are alive. Tokens count alike (weighing them by their norm gave KL 1.18, not 1.12).
    """
    theirs, ours = layers_of(teacher), layers_of(student)
    states = [embedded(teacher, b) for b in batches]
    wanted = [hidden for hidden, _ in states]
    hidden = list(wanted)
    common = _common_prefix(batches)
    rows = [_rows_that_count(b, common, b is batches[0]) for b in batches]
    depth = 0
    progress.start("healing the cut", len(keep), "layers")
    for place, number in enumerate(keep):
        until = keep[place + 1] if place + 1 < len(keep) else len(theirs)
        while depth < until:
            wanted = [
                after_layer(theirs[depth], w, angles)
                for w, (_, angles) in zip(wanted, states, strict=True)
            ]
            depth += 1
        hidden = _heal_layer(ours[place], hidden, wanted, [a for _, a in states], rows)
        progress.advance(place + 1, f"layer {number}")
    progress.finish()


def _heal_layer(
    layer: Any, hidden: list[Tensor], wanted: list[Tensor], angles: list[Any], rows: list[Tensor]
) -> list[Tensor]:
    """The layer's outputs after its correction."""
    matrix = layer.mlp.down_proj
    inputs: list[Tensor] = []
    hook = matrix.register_forward_pre_hook(lambda _module, args: inputs.append(args[0].float()))
    outputs = [after_layer(layer, h, a) for h, a in zip(hidden, angles, strict=True)]
    hook.remove()
    size = matrix.weight.shape[1]
    gram, cross = torch.zeros(size, size), torch.zeros(size, matrix.weight.shape[0])
    for x, out, want, chosen in zip(inputs, outputs, wanted, rows, strict=True):
        x, missing = x.flatten(0, 1)[chosen], (want - out).flatten(0, 1)[chosen].float()
        gram += x.T @ x
        cross += x.T @ missing
    gram.diagonal().add_(_RIDGE * float(gram.diagonal().mean()))
    change = torch.linalg.solve(gram, cross).T
    matrix.weight.add_(change)
    return [
        out + functional.linear(x, change).to(out.dtype)
        for out, x in zip(outputs, inputs, strict=True)
    ]


def _rows_that_count(batch: Batch, common: int, first: bool) -> Tensor:
    """Rows of the flattened batch that are no padding; the beginning all exchanges have in common
    counts once, in the first row of the first batch.

    Its first token must be among them: its state is hundreds of times larger than any other's, all
    later tokens lean on it, and a correction that is free to change it ruins the network (KL 2.02
    instead of 1.12 nats, docs/lab-notes.md).
    """
    size, width = batch.input_ids.shape
    ends = torch.zeros(size, dtype=torch.long)
    ends.scatter_reduce_(0, batch.positions // width, batch.positions % width, "amax")
    starts = torch.full((size,), common)
    if first:
        starts[0] = 0
    columns = torch.arange(width)[None]
    return ((columns >= starts[:, None]) & (columns <= ends[:, None])).flatten()


def _common_prefix(batches: Sequence[Batch]) -> int:
    """Tokens that all examples begin with: the template's own."""
    rows = [row for batch in batches for row in batch.input_ids.tolist()]
    low, high = min(rows), max(rows)
    pairs = zip(low, high, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(low), len(high)))
