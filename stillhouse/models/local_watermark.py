"""Marks put on answers while they are drawn: a keyed green list, or SynthID through transformers.

In: a step's logits, and for each row its prompt, its answer so far and how its distribution is
shaped. Out: the logits the token is drawn from, and how they are still to be shaped. What is
recorded stays the model's own: log-probabilities are taken before any mark.

The green list's delta is added before temperature and cuts, as in the scheme's own implementation,
so that what is cut is cut by marked logits (transformers 5 adds it after the cuts). SynthID chooses
among what temperature and cuts left, as transformers does: there the mark must see the distribution
that is sampled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from stillhouse.errors import ConfigError
from stillhouse.exchange import canonical_json
from stillhouse.models.local_draw import Shape, survivors
from stillhouse.models.local_sampler import Row
from stillhouse.watermark import Watermark

__all__ = ["GreenMark", "SynthIDMark", "make_mark"]

# Hashes held at once by SynthID: tokens times keys. 4 million int64 are 32 MB, a few times over.
_CELLS_AT_ONCE = 4_000_000


def make_mark(
    watermark: Watermark | None, synthid: Any, tokenizer: str, where: str
) -> GreenMark | SynthIDMark | None:
    """The mark that was asked for; None where none was.

    Raises:
        ConfigError: both were, or one that does not fit the model.
    """
    if watermark is not None and synthid is not None:
        raise ConfigError(
            where, "watermark and synthid", "one of the two: each would blur the other",
            "Leave one of them out",
        )  # fmt: skip
    if watermark is not None:
        if watermark.tokenizer not in (None, tokenizer):
            raise ConfigError(
                where, f"a watermark over the vocabulary {watermark.tokenizer}",
                f"one over the model's own, {tokenizer}", "Take the key made for this model",
            )  # fmt: skip
        return GreenMark(watermark)
    return None if synthid is None else SynthIDMark(synthid, where)


class GreenMark:
    """`Mark` of a keyed green list (stillhouse/watermark.py)."""

    def __init__(self, watermark: Watermark) -> None:
        """Windows reach back into the prompt, its template included."""
        self._watermark, self.label = watermark, watermark.label

    def __call__(
        self, logits: torch.Tensor, rows: Sequence[Row], shapes: Sequence[Shape]
    ) -> tuple[torch.Tensor, Sequence[Shape]]:
        """Logits with delta added to green tokens; the same shapes."""
        if self._watermark.delta == 0:
            return logits, shapes
        width = self._watermark.width
        contexts = [
            answer[-width:].tolist()
            if len(answer) >= width
            else [*prompt[-width:], *answer.tolist()]
            for prompt, answer in rows
        ]
        return torch.from_numpy(self._watermark.lean(logits.numpy(), contexts)), shapes


class SynthIDMark:
    """`Mark` of SynthID-Text: the arithmetic is transformers' processor, whose own state, of one
    batch that begins and ends together, is replaced by each row's answer so far.

    Source: Dathathri et al. (2024), Nature 634; `SynthIDTextWatermarkLogitsProcessor`.
    """

    def __init__(self, config: Any, where: str) -> None:
        """`config` is a `transformers.SynthIDTextWatermarkingConfig`."""
        from transformers.generation.configuration_utils import SynthIDTextWatermarkingConfig

        if not isinstance(config, SynthIDTextWatermarkingConfig) or config.debug_mode:
            debugging = ", with debug_mode" if getattr(config, "debug_mode", False) else ""
            raise ConfigError(
                where, f"synthid is a {type(config).__name__}{debugging}",
                "a transformers.SynthIDTextWatermarkingConfig without debug_mode, which marks "
                "noise", "Make one with keys and ngram_len",
            )  # fmt: skip
        config.validate()
        self._config: Any = config
        # the width of the vocabulary is an argument that SynthID has no use for
        self._processor: Any = config.construct_processor(0, "cpu")
        plain = canonical_json(config.to_dict())
        self.label = f"synthid:{hashlib.sha256(plain.encode()).hexdigest()[:16]}"

    def __call__(
        self, logits: torch.Tensor, rows: Sequence[Row], shapes: Sequence[Shape]
    ) -> tuple[torch.Tensor, Sequence[Shape]]:
        """Marked log-probabilities of what each row's shape leaves, to be drawn from as they are.

        A greedy row stays as it is: there is no draw to mark.
        """
        marked = torch.full_like(logits, -torch.inf)
        left: list[tuple[int, torch.Tensor, torch.Tensor, list[int]]] = []
        for row, ((_, answer), shape) in enumerate(zip(rows, shapes, strict=True)):
            if shape.temperature == 0:
                marked[row] = logits[row]
                continue
            ids, weights = survivors(logits[row], shape)
            scores, context = weights.log().float(), self._context(answer)
            if context is None:
                marked[row, ids] = scores
            else:
                left.append((row, ids, scores, context))
        for group in self._groups(left):
            self._tournament(group, marked)
        plain = Shape()
        return marked, [shape if shape.temperature == 0 else plain for shape in shapes]

    def _context(self, answer: np.ndarray) -> list[int] | None:
        """The tokens that key the next one; None where transformers leaves it unmarked: a context
        that came before, or the first few tokens if so configured. Zeros stand before the answer.
        """
        config, width, step = self._config, self._config.ngram_len - 1, len(answer)
        first = config.ngram_len - 1 if config.skip_first_ngram_calls else 0
        if step < first:
            return None
        padded = [0] * width + answer.tolist()
        current = padded[step:]
        for earlier in range(max(first, step - config.context_history_size), step):
            if padded[earlier : earlier + width] == current:
                return None
        return current

    def _groups(self, left: list[Any]) -> list[list[Any]]:
        """Rows that go through together, as memory allows."""
        groups: list[list[Any]] = []
        for row in sorted(left, key=lambda item: len(item[1])):
            cells = (len(groups[-1]) + 1 if groups else 1) * len(row[1]) * len(self._config.keys)
            if groups and cells <= _CELLS_AT_ONCE:
                groups[-1].append(row)
            else:
                groups.append([row])
        return groups

    def _tournament(self, group: list[Any], marked: torch.Tensor) -> None:
        """Write the marked log-probabilities of some rows; padding has no weight."""
        most = max(len(ids) for _, ids, _, _ in group)
        tokens = torch.zeros(len(group), most, dtype=torch.long)
        scores = torch.full((len(group), most), -torch.inf)
        for place, (_, ids, found, _) in enumerate(group):
            tokens[place, : len(ids)], scores[place, : len(ids)] = ids, found
        contexts = torch.tensor([context for _, _, _, context in group], dtype=torch.long)
        before = contexts[:, None].expand(-1, most, -1)
        ngrams = torch.cat((before, tokens[:, :, None]), -1)
        g_values = self._processor.sample_g_values(self._processor.compute_ngram_keys(ngrams))
        new = self._processor.update_scores(scores, g_values)
        for place, (row, ids, _, _) in enumerate(group):
            marked[row, ids] = new[place, : len(ids)]
