"""What kind of task a newest turn is: a sum of cues, in eleven languages and in none.

In: masked words, marks of what is no text, counts of signs. Out: for each event the shapes it has
and the strongest one. The cues and their weights stand in `shapes.yaml`; a score is the sum over
the distinct ones found, so that every shape can be explained by naming them. A shape is no verdict:
most who ask for reasoning, grades or code are customers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from stillhouse.guard.events import SHAPES
from stillhouse.guard.mask import Ints, Masked, capped, mask
from stillhouse.guard.sketch import Words64, windows
from stillhouse.guard.turns import COMPUTER, IMAGE, RESULT, TOOLS

__all__ = ["SIGNS", "Facts", "Shapes", "signs_of"]

SIGNS = ("image", "result", "tools", "computer", "fence", "code_marks", "table", "brief_answer")
"""What is no word: an image, a tool's result, tools offered, one of them for a screen; code between
back quotes, many marks of code; lines of many numbers and separators; a short answer to a long
question."""

THRESHOLD = 1.0
_LONGEST = 6  # words of a cue
_FEW_TOKENS, _MANY_BYTES = 24, 400  # of a brief answer, and of the question it is brief for
_BITS = 16  # of the table that most n-grams fail at
_P0, _P1, _P2 = (
    np.uint64(p)
    for p in (
        0x9E3779B97F4A7C15,
        0xC2B2AE3D27D4EB4F,
        0xBF58476D1CE4E5B9,
    )
)  # fmt: skip  -- odd constants of splitmix64 and xxhash

_KEEP = np.array([2 ** (8 * size) - 1 for size in range(9)], np.uint64)  # that many low bytes

_CODE_BYTES = np.zeros(256, bool)
_CODE_BYTES[list(b"{}();=<>[]\\_")] = True
_CELL_BYTES = np.zeros(256, bool)
_CELL_BYTES[list(b",|\t;")] = True


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of each event of a batch beside its words; arrays of one length."""

    marks: Ints
    """Of `turns.py`."""
    turn_bytes: Ints
    output_tokens: Ints
    """-1: not recorded."""


def signs_of(texts: Sequence[str], facts: Facts) -> npt.NDArray[np.float32]:
    """(texts, SIGNS) ones and zeros."""
    held = b"\xff".join(text.encode("utf-8", "surrogatepass") for text in texts) + b"\xff"
    data = np.frombuffer(held, np.uint8)
    ends = np.flatnonzero(data == 0xFF)
    size = np.maximum(np.diff(ends, prepend=-1) - 1, 1)

    def count(which: npt.NDArray[np.bool_]) -> Ints:
        return np.diff(np.searchsorted(np.flatnonzero(which), ends), prepend=0)

    code, lines = count(_CODE_BYTES[data]), count(data == 10)
    digits, cells = count((data >= 48) & (data <= 57)), count(_CELL_BYTES[data])
    few = (facts.output_tokens >= 0) & (facts.output_tokens <= _FEW_TOKENS)
    found = np.stack([
        facts.marks & IMAGE, facts.marks & RESULT, facts.marks & TOOLS, facts.marks & COMPUTER,
        count(data == 96) >= 6, (code >= 12) & (code >= 0.05 * size),
        (lines >= 3) & (cells >= 2 * lines) & (digits >= 0.1 * size),
        few & (facts.turn_bytes >= _MANY_BYTES),
    ], axis=1)  # fmt: skip
    return (found > 0).astype(np.float32)


class Shapes:
    """The scorer."""

    def __init__(self, cues: Mapping[str, Any] | None = None) -> None:
        """Cues as `shapes.yaml` has them; None takes those that come with Stillhouse."""
        cues = _own_cues() if cues is None else cues
        self._signs = np.zeros((len(SIGNS), len(SHAPES)), np.float32)
        weights: dict[int, npt.NDArray[np.float32]] = {}
        self._words: dict[int, str] = {}
        placeholders = frozenset(_codes_of(["0", '"held"']))
        for column, shape in enumerate(SHAPES):
            for sign, weight in cues[shape]["signs"].items():
                self._signs[SIGNS.index(sign), column] = weight
            for weight, languages in cues[shape]["cues"].items():
                words = sorted({word for listed in languages.values() for word in listed})
                for word, code in zip(words, _codes_of(words), strict=True):
                    assert code not in placeholders, f"the cue {word!r} is no word"
                    row = weights.setdefault(code, np.zeros(len(SHAPES), np.float32))
                    row[column] = max(row[column], weight)
                    self._words[code] = word
        self._codes = np.array(sorted(weights), np.uint64)
        self._weights = np.stack([weights[int(code)] for code in self._codes])
        self._maybe = np.zeros(2**_BITS, bool)
        self._maybe[self._codes >> np.uint64(64 - _BITS)] = True

    def scores(
        self, masked: Masked, grams: Words64, signs: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """(texts, SHAPES) the sum of weights of signs and distinct cues."""
        total = signs @ self._signs
        text, cue = self._found(masked, grams)
        np.add.at(total, text, self._weights[cue])
        return total

    def _found(self, masked: Masked, grams: Words64) -> tuple[Ints, Ints]:
        """(text, cue) of the distinct cues in each text."""
        number = masked.texts.size - 1
        text = np.repeat(np.arange(number), np.diff(masked.words))
        pairs = []
        for length, codes in enumerate(_rolled(_word_codes(masked, grams)), 1):
            at = np.flatnonzero(self._maybe[codes >> np.uint64(64 - _BITS)])
            at = at[text[at] == text[at + length - 1]]
            cue = np.minimum(np.searchsorted(self._codes, codes[at]), self._codes.size - 1)
            hit = self._codes[cue] == codes[at]
            pairs.append(text[at[hit]] * self._codes.size + cue[hit])
        once = np.unique(np.concatenate(pairs))
        return once // self._codes.size, once % self._codes.size

    def explain(self, text: str, facts: Facts | None = None) -> list[tuple[str, str, float]]:
        """(shape, cue or sign, weight) of all that was found in one text, the heaviest first."""
        facts = facts or Facts(np.zeros(1, np.int64), np.array([len(text)]), np.array([-1]))
        masked = mask([capped(text)])
        _, cues = self._found(masked, windows(masked.data))
        named = [(self._words[int(self._codes[cue])], self._weights[cue]) for cue in cues]
        signs = signs_of([text], facts)[0] > 0
        named += [(sign, self._signs[at]) for at, sign in enumerate(SIGNS) if signs[at]]
        rows = [
            (SHAPES[at], word, float(weight))
            for word, weights in named for at, weight in enumerate(weights) if weight > 0
        ]  # fmt: skip
        return sorted(rows, key=lambda row: -row[2])

    @staticmethod
    def decided(
        scores: npt.NDArray[np.float32],
    ) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8]]:
        """(bits of `SHAPES`, index into `CAPABILITIES`) of each row of scores."""
        has = scores >= THRESHOLD - 1e-6  # sums of tenths
        bits = (has << np.arange(len(SHAPES))).sum(axis=1).astype(np.uint16)
        best = np.where(has.any(axis=1), scores.argmax(axis=1) + 1, 0)
        return bits, best.astype(np.uint8)


@cache
def _own_cues() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_name("shapes.yaml").read_text("utf-8"))


def _word_codes(masked: Masked, grams: Words64) -> Words64:
    """A number for each word: of its first 24 bytes."""
    mixed = np.zeros(masked.starts.size, np.uint64)
    for skipped in (0, 8, 16):
        part = grams[masked.starts + skipped] & _KEEP[np.clip(masked.sizes - skipped, 0, 8)]
        mixed = (mixed ^ part) * _P0
        mixed ^= mixed >> np.uint64(32)
    return mixed * _P2


def _rolled(codes: Words64) -> Iterable[Words64]:
    """Codes of the runs of 1, 2, ... words, by where they begin."""
    whole = codes
    for length in range(1, _LONGEST + 1):
        if length > 1:
            if codes.size < length:
                return
            whole = (whole[:-1] * _P1 + codes[length - 1 :]) * _P2
        yield whole


def _codes_of(cues: Sequence[str]) -> list[int]:
    """The code of each cue's run of words, made as a text's words are."""
    masked = mask([capped(cue) for cue in cues])
    codes = _word_codes(masked, windows(masked.data))
    out = []
    for begin, end in zip(masked.words[:-1].tolist(), masked.words[1:].tolist(), strict=True):
        *_, whole = _rolled(codes[begin : min(end, begin + _LONGEST)])
        out.append(int(whole[0]))
    return out
