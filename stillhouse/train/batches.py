"""Examples -> batches: which exchanges go into which step, padded, with the positions that count.

In: examples. Out: a plan (for each step, the examples in it), fixed by the examples' keys and the
seed; and `Batch`, the tensors of one step or of a piece of it. A batch is filled to a budget of
answer tokens, from examples of like length, so that little is padding. Padding is on the right:
under a causal mask no position that counts ever sees it, so no attention mask is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stillhouse.errors import DataError
from stillhouse.train.losses import Hard, Hidden, Targets, TopK
from stillhouse.train.targets import Example, order_of

__all__ = ["Batch", "collate", "pieces", "plan", "split_validation"]

# Examples are sorted by length inside pools of this many batches: large enough that padding stays
# under a twentieth, small enough that an epoch still mixes (measured, docs/lab-notes.md).
_POOL_BATCHES = 16


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors of one forward pass. B examples of at most S tokens, T answer tokens among them."""

    input_ids: Tensor
    """(B, S) right-padded."""
    positions: Tensor
    """(T,) rows of the flattened (B * S, D) hidden states that predict the answers' tokens."""
    token_ids: Tensor
    """(T,) the answers' tokens."""
    groups: tuple[tuple[Tensor, Targets], ...]
    """Rows of `positions`, and the targets there: one group for each kind of target."""

    @property
    def answer_tokens(self) -> int:
        """T."""
        return self.positions.shape[0]


def plan(
    examples: Sequence[Example], *, epochs: float, batch_tokens: int, seed: int
) -> list[list[int]]:
    """For each step, the indices of its examples.

    Each epoch visits every example once, in an order of its own; a fraction of an epoch is its
    first steps. A batch is closed when it has at least `batch_tokens` answer tokens.

    Raises:
        DataError: there are no examples.
    """
    if not examples:
        raise DataError("training", "no examples", "at least one", "Collect exchanges first")
    steps: list[list[int]] = []
    epoch = 0
    while epochs - epoch > 1e-9:
        batches = _epoch(examples, batch_tokens, seed, epoch)
        share = min(1.0, epochs - epoch)
        steps += batches[: max(1, round(share * len(batches)))]
        epoch += 1
    return steps


def _epoch(
    examples: Sequence[Example], batch_tokens: int, seed: int, epoch: int
) -> list[list[int]]:
    """The batches of one epoch: of like length, drawn from pools; `spread` rows dealt over all."""
    order = sorted(range(len(examples)), key=lambda i: order_of(examples[i].key, seed, epoch))
    spread = [i for i in order if examples[i].spread]
    order = [i for i in order if not examples[i].spread] or spread
    mean = sum(examples[i].answer_tokens for i in order) / len(order)
    pool = max(1, round(_POOL_BATCHES * batch_tokens / max(mean, 1.0)))
    steps: list[list[int]] = []
    for start in range(0, len(order), pool):
        batches: list[list[int]] = [[]]
        filled = 0
        # Sorting is stable, so equal lengths keep the order of their keys.
        for index in sorted(order[start : start + pool], key=lambda i: len(examples[i].ids)):
            if filled >= batch_tokens:
                batches.append([])
                filled = 0
            batches[-1].append(index)
            filled += examples[index].answer_tokens
        steps += sorted(batches, key=lambda b: order_of(examples[b[0]].key, seed, epoch, "batch"))
    if order is not spread:
        for place, index in enumerate(spread):
            steps[place * len(steps) // len(spread)].append(index)
    return steps


def split_validation(
    examples: Sequence[Example], *, count: int, seed: int
) -> tuple[list[Example], list[Example]]:
    """(examples to train on, `count` examples kept apart for the curve), chosen by key and seed."""
    order = sorted(examples, key=lambda e: order_of(e.key, seed, "validation"))
    count = min(count, max(0, len(order) - 1))
    apart = {id(e) for e in order[:count]}
    return [e for e in examples if id(e) not in apart], order[:count]


def pieces(examples: Sequence[Example], *, max_tokens: int) -> list[list[Example]]:
    """The examples of a batch in pieces of at most `max_tokens` padded tokens (one at least), so
    that memory has a bound whatever the batch.
    """
    out: list[list[Example]] = [[]]
    for example in sorted(examples, key=lambda e: len(e.ids)):
        if out[-1] and (len(out[-1]) + 1) * len(example.ids) > max_tokens:
            out.append([])
        out[-1].append(example)
    return out


def collate(examples: Sequence[Example], teacher_head: Tensor | None = None) -> Batch:
    """The tensors of some examples.

    Args:
        examples: at least one.
        teacher_head: (V, D), for examples that carry the teacher's hidden states.
    """
    width = max(len(e.ids) for e in examples)
    input_ids = np.zeros((len(examples), width), dtype=np.int64)
    positions: list[np.ndarray] = []
    kinds: dict[str, list[int]] = {}
    for row, example in enumerate(examples):
        input_ids[row, : len(example.ids)] = example.ids
        first = row * width + example.prompt_tokens - 1
        positions.append(np.arange(first, first + example.answer_tokens))
        kind = "hidden" if example.states is not None else "top" if example.top is not None else ""
        kinds.setdefault(kind, []).append(row)
    starts = np.cumsum([0, *(e.answer_tokens for e in examples)])
    groups: list[tuple[Tensor, Targets]] = []
    for kind, rows in sorted(kinds.items()):
        where = np.concatenate([np.arange(starts[r], starts[r + 1]) for r in rows])
        targets = _targets(kind, [examples[r] for r in rows], teacher_head)
        groups.append((torch.from_numpy(where), targets))
    return Batch(
        torch.from_numpy(input_ids),
        torch.from_numpy(np.concatenate(positions)),
        torch.from_numpy(np.concatenate([e.answer for e in examples])).long(),
        tuple(groups),
    )


def _targets(kind: str, examples: list[Example], teacher_head: Tensor | None) -> Targets:
    """Targets of examples of one kind, rows joined."""
    if kind == "hidden":
        assert teacher_head is not None
        states = np.concatenate([e.states for e in examples if e.states is not None])
        return Hidden(torch.from_numpy(states).float(), teacher_head)
    if kind == "top":
        width = max(e.top.shape[1] for e in examples if e.top is not None)
        ids = np.concatenate([_widen(e.top_ids, width, 0) for e in examples])
        top = np.concatenate([_widen(e.top, width, -np.inf) for e in examples])
        return TopK(torch.from_numpy(ids), torch.from_numpy(top))
    return Hard(torch.from_numpy(np.concatenate([e.answer for e in examples])).long())


def _widen(values: np.ndarray | None, width: int, fill: float) -> np.ndarray:
    """(T, K) padded to (T, width)."""
    assert values is not None
    missing = width - values.shape[1]
    return np.pad(values, ((0, 0), (0, missing)), constant_values=fill) if missing else values
