"""The losses: how far a student's next-token distribution is from its teacher's, in nats.

In: the student's logits at answer positions (T, V), what the teacher said there, and `count`, the
number of answer tokens of the WHOLE batch. Out: a scalar, the sum over the T positions divided by
`count`. Because the caller gives the global count, loss and gradient do not depend on how a batch
is split into pieces. `head_loss` computes the same from the hidden states, a few hundred positions
at a time, so that no whole (T, V) matrix is ever alive.

Does not: choose positions (batches.py), make targets (targets.py), weigh losses against one
another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stillhouse.errors import DataError

__all__ = [
    "Dense",
    "Hard",
    "Hidden",
    "Targets",
    "TopK",
    "cross_entropy",
    "forward_kl",
    "forward_kl_top_k",
    "generalized_jsd",
    "head_loss",
    "reverse_kl",
]

# Positions whose logits are alive at once: (256, 49152) float32 is 50 MB, near the size of the
# last cache level; larger is no faster (docs/lab-notes.md).
CHUNK_TOKENS = 256


def forward_kl(
    logits: Tensor, teacher_logprobs: Tensor, *, count: float, mask: Tensor | None = None
) -> Tensor:
    """KL(teacher || student) in nats, summed over positions and divided by `count`.

    Shapes: logits (T, V), teacher_logprobs (T, V) in nats, mask (T,) bool. Zero when they agree.

    Raises:
        DataError: no position is left under the mask, or shapes disagree.
    """
    logits, (teacher_logprobs,) = _rows(logits, mask, count, teacher_logprobs)
    _same_vocabulary(logits, teacher_logprobs)
    log_q = functional.log_softmax(logits.float(), dim=-1)
    log_p = teacher_logprobs.float()
    # xlogy convention: where the teacher gives no mass, the term is 0, not 0 x inf.
    terms = torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0.0)
    return terms.sum() / count


def forward_kl_top_k(
    logits: Tensor,
    top_ids: Tensor,
    top_logprobs: Tensor,
    *,
    count: float,
    mask: Tensor | None = None,
) -> Tensor:
    """KL(teacher || student) over the K kept tokens and one bucket for all the others, in nats.

    The bucket compares masses: 1 less what was kept, under the teacher and under the student. By
    the data processing inequality it never exceeds `forward_kl`, and equals it at K = V.
    Shapes: logits (T, V), top_ids and top_logprobs (T, K); -inf pads rows that kept fewer.
    Source: DistillKit and Axolotl keep top-k log-probabilities; they drop the tail, we do not,
    because a student is otherwise never told how much mass lies outside.

    Raises:
        DataError: no position is left under the mask, or shapes disagree.
    """
    logits, (top_ids, top_logprobs) = _rows(logits, mask, count, top_ids, top_logprobs)
    if top_ids.shape != top_logprobs.shape or top_ids.ndim != 2:
        raise _shape_error(f"top_ids {tuple(top_ids.shape)}", "(T, K) like top_logprobs")
    log_q = functional.log_softmax(logits.float(), dim=-1).gather(1, top_ids.long())
    log_p = top_logprobs.float()
    kept = log_p > -torch.inf
    p, q = log_p.exp(), torch.where(kept, log_q, -torch.inf).exp()
    head = torch.where(kept, p * (log_p - log_q), 0.0).sum(dim=-1)
    p_tail, q_tail = _tail(p), _tail(q)
    tail = p_tail * (p_tail.log() - q_tail.log())
    return (head + tail).sum() / count


def reverse_kl(
    logits: Tensor, teacher_logprobs: Tensor, *, count: float, mask: Tensor | None = None
) -> Tensor:
    """KL(student || teacher) in nats, summed over positions and divided by `count`.

    Shapes: logits (T, V), teacher_logprobs (T, V), all finite: where a teacher gives no mass the
    divergence is infinite. Source: Gu et al. 2023, arXiv 2306.08543 (MiniLLM's objective, here on
    given text and without its policy gradient).

    Raises:
        DataError: no position is left under the mask, or shapes disagree.
    """
    logits, (teacher_logprobs,) = _rows(logits, mask, count, teacher_logprobs)
    _same_vocabulary(logits, teacher_logprobs)
    log_q = functional.log_softmax(logits.float(), dim=-1)
    return (log_q.exp() * (log_q - teacher_logprobs.float())).sum() / count


def generalized_jsd(
    logits: Tensor,
    teacher_logprobs: Tensor,
    *,
    beta: float,
    count: float,
    mask: Tensor | None = None,
) -> Tensor:
    """Mixture beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q, in nats.

    p is the teacher, q the student. Symmetric at beta = 0.5 only. It vanishes at both ends; divided
    by beta it tends to forward KL as beta -> 0, by 1 - beta to reverse KL as beta -> 1. At the end
    points we return those limits, as GKD does, so that `beta` sweeps from one KL to the other.
    Shapes: logits and teacher_logprobs (T, V). Source: Agarwal et al. 2023, arXiv 2306.13649.

    Raises:
        DataError: beta is outside [0, 1], no position is left, or shapes disagree.
    """
    if not 0.0 <= beta <= 1.0:
        raise DataError(
            "generalized_jsd", f"beta {beta}", "a number from 0 to 1", "Correct the setting"
        )
    if beta == 0.0:
        return forward_kl(logits, teacher_logprobs, count=count, mask=mask)
    if beta == 1.0:
        return reverse_kl(logits, teacher_logprobs, count=count, mask=mask)
    logits, (teacher_logprobs,) = _rows(logits, mask, count, teacher_logprobs)
    _same_vocabulary(logits, teacher_logprobs)
    log_q = functional.log_softmax(logits.float(), dim=-1)
    log_p = teacher_logprobs.float().clamp_min(torch.finfo(torch.float32).min)
    weights = torch.tensor([beta, 1 - beta], device=logits.device).log()
    log_m = torch.logaddexp(log_p + weights[0], log_q + weights[1])
    p_part = (log_p.exp() * (log_p - log_m)).sum()
    q_part = (log_q.exp() * (log_q - log_m)).sum()
    return (beta * p_part + (1 - beta) * q_part) / count


def cross_entropy(
    logits: Tensor, token_ids: Tensor, *, count: float, mask: Tensor | None = None
) -> Tensor:
    """-log student(token) in nats, summed over positions and divided by `count`: hard targets.

    Shapes: logits (T, V), token_ids (T,). Source: Kim and Rush 2016, arXiv 1606.07947, where the
    tokens are the teacher's own answers (sequence-level distillation).

    Raises:
        DataError: no position is left under the mask, or shapes disagree.
    """
    logits, (token_ids,) = _rows(logits, mask, count, token_ids)
    return functional.cross_entropy(logits.float(), token_ids.long(), reduction="sum") / count


def _rows(
    logits: Tensor, mask: Tensor | None, count: float, *targets: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Logits and targets at the positions that count; refuses nothing to learn from."""
    if logits.ndim != 2:
        raise _shape_error(f"logits {tuple(logits.shape)}", "(T, V)")
    for target in targets:
        if target.shape[0] != logits.shape[0]:
            raise _shape_error(f"targets of {target.shape[0]} positions", f"{logits.shape[0]}")
    if mask is not None:
        if mask.shape != logits.shape[:1]:
            raise _shape_error(f"mask {tuple(mask.shape)}", f"({logits.shape[0]},)")
        logits, targets = logits[mask], tuple(target[mask] for target in targets)
    if logits.shape[0] == 0 or not count > 0:
        raise DataError(
            "loss", f"{logits.shape[0]} answer positions, divided by a count of {count}",
            "at least one of each", "Leave out batches without answer tokens; check the mask",
        )  # fmt: skip
    return logits, list(targets)


def _same_vocabulary(logits: Tensor, teacher_logprobs: Tensor) -> None:
    if logits.shape != teacher_logprobs.shape:
        raise _shape_error(
            f"teacher log-probabilities {tuple(teacher_logprobs.shape)}",
            f"{tuple(logits.shape)} like the student's logits, of one vocabulary",
        )


def _shape_error(found: str, expected: str) -> DataError:
    return DataError("loss", found, expected, "Give rows of the same positions and vocabulary")


def _tail(probabilities: Tensor) -> Tensor:
    """(T,) mass outside the kept tokens, kept away from 0 so that its logarithm is finite."""
    return (1.0 - probabilities.sum(dim=-1)).clamp_min(_TAIL_FLOOR)


# Float32 sums of 64 exponentials are off by about 1e-6; a smaller tail is noise.
_TAIL_FLOOR = 1e-6


# ---- the same losses from hidden states, without a whole (T, V) matrix ----


@dataclass(frozen=True, slots=True)
class Hard:
    """The tokens themselves, (T,)."""

    token_ids: Tensor


@dataclass(frozen=True, slots=True)
class TopK:
    """The teacher's K most likely tokens and their log-probabilities in nats, both (T, K)."""

    ids: Tensor
    logprobs: Tensor


@dataclass(frozen=True, slots=True)
class Dense:
    """The teacher's whole distribution, (T, V) log-probabilities in nats."""

    logprobs: Tensor


@dataclass(frozen=True, slots=True)
class Hidden:
    """The teacher's last hidden states (T, D) and its head (V, D): the whole distribution at the
    price of one matrix product, 85 times smaller to keep than Dense.
    """

    states: Tensor
    head: Tensor


Targets = Hard | TopK | Dense | Hidden


def head_loss(
    hidden: Tensor,
    head: Tensor,
    targets: Targets,
    *,
    count: float,
    dtype: torch.dtype = torch.float32,
    chunk_tokens: int = CHUNK_TOKENS,
) -> Tensor:
    """The loss for `targets` of the student's logits `hidden @ head.T`: hard targets give
    `cross_entropy`, top-k `forward_kl_top_k`, dense and hidden ones `forward_kl`.

    Shapes: hidden (T, D), head (V, D). The gradient is computed chunk by chunk in the forward pass;
    a frozen head costs no gradient. `dtype` is the matrix products' precision, sums stay float32.

    Raises:
        DataError: no positions, or shapes disagree.
    """
    _rows(hidden, None, count)
    loss = _HeadLoss.apply(hidden, head, targets, count, dtype, chunk_tokens)
    assert isinstance(loss, Tensor)  # torch types `apply` as returning anything
    return loss


class _HeadLoss(torch.autograd.Function):
    """Loss now, gradients kept for backward, which only scales them."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        """Sum over chunks; keep d loss / d hidden and, for a trained head, d loss / d head."""
        hidden, head, targets, count, dtype, chunk_tokens = inputs
        hidden_grad = torch.empty_like(hidden, dtype=torch.float32)
        head_grad = torch.zeros_like(head, dtype=torch.float32) if head.requires_grad else None
        weight = head.detach().to(dtype)
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for start in range(0, hidden.shape[0], chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            part = hidden[rows].detach().to(dtype)
            logits = functional.linear(part, weight).float()
            loss, logits_grad = _loss_and_grad(logits, _slice(targets, rows, dtype), count)
            total += loss.double()
            logits_grad = logits_grad.to(dtype)
            hidden_grad[rows] = (logits_grad @ weight).float()
            if head_grad is not None:
                head_grad += (logits_grad.T @ part).float()
        ctx.grads = hidden_grad.to(hidden.dtype), head_grad
        return total.float()

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> tuple[Tensor | None, ...]:
        """The kept gradients, scaled."""
        hidden_grad, head_grad = ctx.grads
        scale = outputs[0]
        scaled_head = None if head_grad is None else head_grad * scale
        return hidden_grad * scale, scaled_head, None, None, None, None


def _slice(targets: Targets, rows: slice, dtype: torch.dtype) -> Targets:
    """The targets of one chunk; hidden ones become dense."""
    if isinstance(targets, Hard):
        return Hard(targets.token_ids[rows])
    if isinstance(targets, TopK):
        return TopK(targets.ids[rows], targets.logprobs[rows])
    if isinstance(targets, Hidden):
        logits = functional.linear(targets.states[rows].to(dtype), targets.head.to(dtype))
        return Dense(functional.log_softmax(logits.float(), dim=-1))
    return Dense(targets.logprobs[rows])


def _loss_and_grad(logits: Tensor, targets: Targets, count: float) -> tuple[Tensor, Tensor]:
    """Loss of one chunk and its gradient (T, V), which takes the place of the logits."""
    log_q = logits.sub_(logits.logsumexp(dim=-1, keepdim=True))
    if isinstance(targets, TopK):
        return _top_k(log_q, targets, count)
    if isinstance(targets, Hard):
        ids = targets.token_ids.long()[:, None]
        loss = -log_q.gather(1, ids).sum() / count
        grad = log_q.exp_().div_(count)
        return loss, grad.scatter_add_(1, ids, torch.full(ids.shape, -1 / count))
    assert isinstance(targets, Dense)
    log_p = targets.logprobs.float()
    p = log_p.exp()
    loss = torch.where(p > 0, p * (log_p - log_q), 0.0).sum() / count
    grad = log_q.exp_().mul_(p.sum(dim=-1, keepdim=True)).sub_(p).div_(count)
    return loss, grad


def _top_k(log_q: Tensor, targets: TopK, count: float) -> tuple[Tensor, Tensor]:
    """d/dz_j = q_j - p_j on the kept tokens, q_j (1 - p_tail / q_tail) on the others, over
    `count`. Where the student's tail is at its floor, its term is constant, as in the plain loss.
    """
    ids, log_p = targets.ids.long(), targets.logprobs.float()
    kept = log_p > -torch.inf
    log_q_kept = log_q.gather(1, ids)
    p, q_kept = log_p.exp(), torch.where(kept, log_q_kept.exp(), 0.0)
    p_tail, q_tail = _tail(p), _tail(q_kept)
    head = torch.where(kept, p * (log_p - log_q_kept), 0.0).sum(dim=-1)
    loss = (head + p_tail * (p_tail.log() - q_tail.log())).sum() / count
    free = torch.where(1.0 - q_kept.sum(dim=-1) > _TAIL_FLOOR, p_tail, 0.0)
    ratio = (free / q_tail)[:, None]
    grad = log_q.exp_().mul_(((p.sum(dim=-1) + free)[:, None] - ratio) / count)
    # Added, not written: the padding of rows that kept fewer names real tokens, and adds 0.
    return loss, grad.scatter_add_(1, ids, (q_kept * ratio - p) / count)
