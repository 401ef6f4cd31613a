"""Healing a cut: each kept layer's MLP output matrix, solved anew by ridge regression.

In: teacher, cut student, and batches of real exchanges. Out: the student, changed in place, so that
its hidden state comes close to the teacher's where the next kept layer begins. Where the student is
to be narrower, each MLP loses the neurons that the regression can best do without (`narrow.py`).
Layers are treated first to last, each on what the healed ones before it give. No gradient step;
solving the attention's output matrix as well brought nothing (docs/lab-notes.md).

Sources: in the spirit of Song et al. 2024, arXiv 2402.09025 (SLEB), and of Frantar and Alistarh
2022, arXiv 2208.11580.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stillhouse.progress import Progress
from stillhouse.train.layers import after_layer, embedded, layers_of
from stillhouse.train.narrow import keep_neurons, neurons_worth_keeping
from stillhouse.train.packed import Packed

__all__ = ["heal"]

# Added to the diagonal of the normal equations, as a share of its mean, falls with the tokens seen:
# .1 was best of .01, .1 and 1 for 7,000 tokens; for 25,000, .004 to .04 were alike and .1 was worse
# (docs/lab-notes.md).
_RIDGE_TOKENS = 700


def heal(
    teacher: Any,
    student: Any,
    keep: list[int],
    batches: list[Packed],
    progress: Progress,
    *,
    width: int | None = None,
) -> None:
    """Solve each kept layer's MLP output matrix (D, M) anew, in place, first to last.

    Teacher and student go through their layers side by side, so only two hidden states of each
    token are alive. Tokens count alike (weighing them by their norm gave KL 1.18, not 1.12).

    Args:
        teacher: a Llama-like network, left unchanged.
        student: the same with the layers `keep` only.
        keep: the teacher's layers that the student has.
        batches: what both read.
        progress: told of each layer.
        width: neurons that each MLP keeps; all by default.
    """
    theirs, ours = layers_of(teacher), layers_of(student)
    states = [embedded(teacher, b) for b in batches]
    where = [w for _, w in states]
    wanted = [hidden for hidden, _ in states]
    hidden = list(wanted)
    # The beginning a batch shares counts once, in the first batch. Its first token must be among
    # the rows: its state is hundreds of times larger than any other's, all later tokens lean on it,
    # and a correction that is free to change it ruins the network (KL 2.02 instead of 1.12 nats,
    # docs/lab-notes.md).
    rows = [b.own for b in batches]
    rows[0] = torch.cat([batches[0].beginning, rows[0]])
    depth = 0
    what = "healing the cut" if width is None else f"narrowing MLPs to {width} neurons"
    progress.start(what, len(keep), "layers")
    for place, number in enumerate(keep):
        until = keep[place + 1] if place + 1 < len(keep) else len(theirs)
        while depth < until:
            wanted = [after_layer(theirs[depth], h, w) for h, w in zip(wanted, where, strict=True)]
            depth += 1
        hidden = _heal_layer(ours[place], hidden, wanted, where, rows, width)
        progress.advance(place + 1, f"layer {number}")
    if width is not None:
        student.config.intermediate_size = width
    progress.finish()


def _heal_layer(
    layer: Any, hidden: list[Tensor], wanted: list[Tensor],
    where: list[dict[str, Any]], rows: list[Tensor], width: int | None,
) -> list[Tensor]:  # fmt: skip
    """The layer's outputs after its correction."""
    matrix = layer.mlp.down_proj
    inputs: list[Tensor] = []
    hook = matrix.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    outputs = [after_layer(layer, h, w) for h, w in zip(hidden, where, strict=True)]
    hook.remove()
    gram, cross = _normal_equations(inputs, outputs, wanted, rows)
    if width is None or width >= len(gram):
        change = _solved(gram, cross)
        matrix.weight.add_(change)
    else:
        with torch.autocast("cpu", enabled=False):
            cross += gram @ matrix.weight.T  # a neuron that goes takes its old weights with it
        kept = neurons_worth_keeping(gram, cross, width)
        solved = _solved(gram[kept][:, kept], cross[kept])
        change = -matrix.weight
        change[:, kept] += solved
        keep_neurons(layer.mlp, kept)
        matrix.weight.copy_(solved)
    return [
        out + functional.linear(x, change.to(x.dtype)).to(out.dtype)
        for out, x in zip(outputs, inputs, strict=True)
    ]


def _normal_equations(
    inputs: list[Tensor], outputs: list[Tensor], wanted: list[Tensor], rows: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """(X'X with its ridge (M, M), X'Y (M, D)), Y what is missing, over the rows that count; in
    float32, whatever precision the networks compute in.
    """
    size, width = inputs[0].shape[-1], outputs[0].shape[-1]
    gram, cross = torch.zeros(size, size), torch.zeros(size, width)
    with torch.autocast("cpu", enabled=False):
        for x, out, want, chosen in zip(inputs, outputs, wanted, rows, strict=True):
            x, missing = x.flatten(0, 1)[chosen].float(), (want - out).flatten(0, 1)[chosen].float()
            gram += _gram(x)
            cross += x.T @ missing
    ridge = _RIDGE_TOKENS / sum(len(chosen) for chosen in rows)
    gram.diagonal().add_(ridge * float(gram.diagonal().mean()))
    return gram, cross


def _gram(x: Tensor) -> Tensor:
    """x.T @ x (M, M) in three of its four blocks: the fourth is the second, mirrored."""
    half = x.shape[1] // 2
    left, right = x[:, :half], x[:, half:]
    corner = left.T @ right
    return torch.cat(
        [torch.cat([left.T @ left, corner], 1), torch.cat([corner.T, right.T @ right], 1)]
    )


def _solved(gram: Tensor, cross: Tensor) -> Tensor:
    """(D, M) the least-squares matrix. In double precision: the gram of neurons, some of them far
    busier than others, is badly conditioned.
    """
    factor = torch.linalg.cholesky(gram.double())
    return torch.cholesky_solve(cross.double(), factor).T.float()
