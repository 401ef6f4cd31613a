"""How far two next-token distributions are apart, token by token, and what that says per prompt.

In: a teacher's and a student's full distributions at the answer positions of one exchange. Out: one
row of sums per exchange (`compare`), and figures with intervals from the rows of all exchanges
(`figures`, `change`). Rows add up, so they can be kept, resumed and drawn again; whole (T, V)
matrices are never needed again. Nothing here opens a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stillhouse.errors import EvidenceError, ModelError
from stillhouse.stats import cluster_bootstrap, ratio_difference, ratio_of_sums

__all__ = [
    "BINS",
    "COLUMNS",
    "calibration_error",
    "change",
    "compare",
    "figures",
    "teacher_figures",
]

BINS = 15
"""Equal-width bins of confidence in the calibration error. Source: Guo et al. (2017), On
Calibration of Modern Neural Networks, arXiv 1706.04599."""

_SUMS = ("tokens", "kl", "agree", "nll", "teacher_nll", "teacher_entropy")
_BINNED = ("count", "confidence", "correct")

COLUMNS = len(_SUMS) + 2 * len(_BINNED) * BINS
"""Figures in a row: six sums in nats or tokens, then the bins of student and teacher."""

# Rows of (V,) compared at once: 64 x 49,152 float32 are 12 MiB, so that what one pass leaves in the
# cache serves the next.
_TOKENS_AT_ONCE = 64

# A distribution's probabilities may miss 1 by this much: float32 sums over 10^5 tokens stay under
# it.
_MASS_SLACK = 1e-3

Row = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]


def compare(
    token_ids: npt.NDArray[np.int32], teacher: Floats, students: Sequence[Floats]
) -> list[Row]:
    """One row of sums for each student: KL(teacher || student) in nats, agreement, NLL, bins.

    Args:
        token_ids: (T,) the answer's tokens, drawn by the teacher.
        teacher: (T, V) log-probabilities in nats.
        students: each (T, V), on the same vocabulary.

    Raises:
        EvidenceError: another vocabulary or length, or a student that rules out what the teacher
        does not: its KL would be infinite.
        ModelError: probabilities that do not add up to 1.
    """
    for student in students:
        if student.shape != teacher.shape or len(token_ids) != len(teacher):
            raise EvidenceError(
                "comparison of two distributions",
                f"{teacher.shape} against {student.shape} for {len(token_ids)} answer tokens",
                "the same answer tokens and vocabulary", "Compare models of one tokenizer",
            )  # fmt: skip
    rows = [np.zeros(COLUMNS) for _ in students]
    for start in range(0, len(token_ids), _TOKENS_AT_ONCE):
        part = slice(start, start + _TOKENS_AT_ONCE)
        chosen = torch.from_numpy(np.asarray(token_ids[part], dtype=np.int64))
        reference = _Side(torch.from_numpy(teacher[part]), chosen)
        probabilities = reference.logprobs.exp()
        for row, student in zip(rows, students, strict=True):
            row += _row(reference, probabilities, _Side(torch.from_numpy(student[part]), chosen))
    return rows


class _Side:
    """One model's distributions on some tokens, and what both comparisons need of them."""

    def __init__(self, logprobs: torch.Tensor, chosen: torch.Tensor) -> None:
        self.logprobs = logprobs  # (T, V)
        self.chosen = logprobs.gather(1, chosen[:, None])[:, 0]  # (T,)
        top, self.top_ids = logprobs.max(dim=1)
        self.confidence = top.exp()
        self.correct = self.top_ids == chosen
        miss = abs(float(logprobs[0].exp().sum()) - 1)  # one row of a chunk tells
        if not miss <= _MASS_SLACK:  # also catches NaN
            raise ModelError(
                "comparison of two distributions", f"probabilities that miss 1 by {miss:.3g}",
                "log-probabilities of a whole distribution", "Check the model that gave them",
            )  # fmt: skip

    def bins(self) -> Row:
        """(3 BINS,) how many tokens, their confidence and their hits, by bin of confidence."""
        confidence = self.confidence.double().numpy()
        index = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
        weights = (np.ones_like(confidence), confidence, self.correct.double().numpy())
        return np.concatenate(
            [np.bincount(index, weights=w, minlength=BINS).astype(np.float64) for w in weights]
        )


def _expected(probabilities: torch.Tensor, values: torch.Tensor) -> float:
    """The mean of `values` (T, V) under `probabilities`, summed over tokens; 0 times inf is 0."""
    means = torch.linalg.vecdot(probabilities, values)  # (T,), without a (T, V) product in memory
    if not bool(torch.isfinite(means).all()):
        means = torch.where(probabilities > 0, probabilities * values, 0.0).sum(dim=1)
    return float(means.double().sum())


def _row(teacher: _Side, probabilities: torch.Tensor, student: _Side) -> Row:
    entropy = -_expected(probabilities, teacher.logprobs)
    kl = -entropy - _expected(probabilities, student.logprobs)
    nll = -float(student.chosen.double().sum())
    if not (np.isfinite(kl) and np.isfinite(nll)):
        raise EvidenceError(
            "KL(teacher || student)", "infinite: the student rules out what the teacher may say",
            "a student that gives every token some probability",
            "Compare with a model whose probabilities are all above zero",
        )  # fmt: skip
    sums = (
        len(student.chosen),
        max(kl, 0.0),  # rounding leaves about -1e-6 where both are equal
        int((teacher.top_ids == student.top_ids).sum()),
        nll,
        -float(teacher.chosen.double().sum()),
        entropy,
    )
    return np.concatenate([np.array(sums, dtype=np.float64), student.bins(), teacher.bins()])


# ---- figures from rows ----


def _column(rows: Row, name: str) -> Row:
    return rows[:, _SUMS.index(name)]


def _bins(rows: Row, side: int) -> Row:
    """(N, 3 BINS) the bins of the student (0) or the teacher (1)."""
    start = len(_SUMS) + side * len(_BINNED) * BINS
    return rows[:, start : start + len(_BINNED) * BINS]


def calibration_error(bins: Row) -> Row:
    """Expected calibration error in [0, 1] of summed bins (..., 3 BINS) -> (...).

    The gap between how sure the top-1 token is and how often the teacher's sampled token is that
    token, averaged over bins by their tokens. Bins of few tokens leave a floor above zero: see the
    teacher's own.
    """
    count, confidence, correct = np.split(bins, 3, axis=-1)
    return np.abs(confidence - correct).sum(axis=-1) / count.sum(axis=-1)


def figures(rows: Row, seed: int) -> dict[str, Any]:
    """A student's closeness: tokens, KL and NLL in nats a token, agreement, calibration error.

    Args:
        rows: (N, COLUMNS), one per prompt.
        seed: of the bootstrap over prompts.

    Raises:
        EvidenceError: too few prompts for an interval.
    """
    tokens = _column(rows, "tokens")
    rate = {
        name: ratio_of_sums(_column(rows, column), tokens, np.random.default_rng(seed)).to_dict()
        for name, column in (("kl_nats", "kl"), ("top1_agreement", "agree"), ("nll_nats", "nll"))
    }
    return {"n_tokens": int(tokens.sum()), **rate, "ece": _calibration(rows, 0, seed)}


def teacher_figures(rows: Row, seed: int) -> dict[str, Any]:
    """The teacher's own NLL, entropy and calibration error on its answers: what no student beats.

    Its calibration error would be zero with endless tokens; what is left is the noise of the bins.
    """
    tokens = _column(rows, "tokens")
    rate = {
        name: ratio_of_sums(_column(rows, column), tokens, np.random.default_rng(seed)).to_dict()
        for name, column in (("nll_nats", "teacher_nll"), ("entropy_nats", "teacher_entropy"))
    }
    return {"n_tokens": int(tokens.sum()), **rate, "ece": _calibration(rows, 1, seed)}


def _calibration(rows: Row, side: int, seed: int) -> dict[str, Any]:
    estimate = cluster_bootstrap(_bins(rows, side), calibration_error, np.random.default_rng(seed))
    return estimate.to_dict() | {"bins": BINS}


def change(before: Row, after: Row, seed: int) -> dict[str, Any]:
    """After less before on the same answers, with intervals of the paired difference."""
    tokens = _column(after, "tokens")
    return {
        name: ratio_difference(
            _column(after, column), _column(before, column), tokens, np.random.default_rng(seed)
        ).to_dict()
        for name, column in (("kl_nats", "kl"), ("top1_agreement", "agree"), ("nll_nats", "nll"))
    }
