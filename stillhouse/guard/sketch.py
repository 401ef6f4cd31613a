"""Hashes and sketches of masked texts: what wrappers, templates and near copies have in common.

In: `Masked` texts and the scan's key. Out: for each text the hashes of its first words, its last
words and all its words, and a one-permutation MinHash of its byte n-grams. The hashes are keyed
BLAKE2b. The sketch's hash is keyed multiply-and-shift, made for speed: linking needs no more, but
whoever holds both texts and their sketches could work the key's part in it out.

Source: one-permutation hashing, Li, Owen and Zhang 2012 (arXiv 1208.1259); empty slots borrow from
the next full one by rotation, Shrivastava and Li 2014 (arXiv 1406.4784).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stillhouse.guard.events import SKETCH_SLOTS
from stillhouse.guard.key import NOTHING, FieldHash, derived
from stillhouse.guard.mask import Bytes, Ints, Masked

__all__ = ["END_WORDS", "NGRAM_BYTES", "Sketcher", "windows"]

END_WORDS = 8
"""Words of `head` and `tail`. Fewer reach past short wrappers less often, more are rarer among
unrelated texts. Ours, by hand; a wrapper of fewer words has its payload in its hash."""
NGRAM_BYTES = 8
"""Bytes of an n-gram: a short word and its neighbours, or three Chinese characters."""

Words64 = npt.NDArray[np.uint64]
_SLOT_BITS = SKETCH_SLOTS.bit_length() - 1
_EMPTY, _ONE = np.uint32(0xFFFFFFFF), np.uint64(1)
# A borrowed value is moved by its distance, so that it only equals one borrowed as far. Odd, ours.
_BORROWED = np.uint32(0x9E3779B1)


def windows(data: Bytes) -> Words64:
    """At each byte but the last seven, the eight from there on as one little-endian number."""
    bare = np.ndarray((data.size - 7,), "<u8", np.ascontiguousarray(data).data, 0, (1,))
    return bare.copy()


class Sketcher:
    """Hashes and sketches under one key."""

    def __init__(self, key: bytes) -> None:
        """The key is the scan's."""
        self._head, self._tail = FieldHash(key, "head"), FieldHash(key, "tail")
        self._skeleton = FieldHash(key, "skeleton")
        secret = np.frombuffer(derived(key, "sketch"), "<u8")
        self._add, self._mix, self._again = secret[0], secret[1] | 1, secret[2] | 1

    def hashes(self, masked: Masked) -> tuple[list[bytes], list[bytes], list[bytes]]:
        """(heads, tails, skeletons), eight bytes for each text; zeros for one without words."""
        data = masked.data.tobytes()
        first, last = masked.words[:-1], masked.words[1:]
        stops = masked.starts + masked.sizes
        some = last > first
        heads, tails = np.zeros_like(first), np.zeros_like(first)
        heads[some] = stops[np.minimum(first + END_WORDS, last)[some] - 1]
        tails[some] = masked.starts[np.maximum(last - END_WORDS, first)[some]]
        out: tuple[list[bytes], list[bytes], list[bytes]] = ([], [], [])
        rows = zip(
            masked.texts[:-1].tolist(), masked.texts[1:].tolist(), heads.tolist(), tails.tolist(),
            strict=True,
        )  # fmt: skip
        for begin, end, head, tail in rows:
            if begin == end:
                hashed = (NOTHING, NOTHING, NOTHING)
            else:
                hashed = (
                    self._head.of(data[begin:head]), self._tail.of(data[tail:end]),
                    self._skeleton.of(data[begin:end]),
                )  # fmt: skip
            for column, value in zip(out, hashed, strict=True):
                column.append(value)
        return out

    def sketches(self, masked: Masked, grams: Words64) -> npt.NDArray[np.uint32]:
        """(texts, SKETCH_SLOTS) MinHash of the n-grams; rows of texts without words mean nothing.

        Args:
            masked: the texts.
            grams: `windows` of their buffer.
        """
        size = np.diff(masked.texts)
        gram = grams[: masked.texts[-1]].copy()
        short = np.flatnonzero((size > 0) & (size < NGRAM_BYTES))
        # their one window reaches into the next text
        gram[masked.texts[short]] &= (_ONE << (8 * size[short]).astype(np.uint64)) - _ONE
        mixed = self._mixed(gram)
        value = (mixed >> np.uint64(64 - _SLOT_BITS - 32)).astype(np.uint32)
        np.minimum(value, _EMPTY - np.uint32(1), out=value)
        value[_past_windows(masked.texts, size)] = _EMPTY
        mixed >>= np.uint64(64 - _SLOT_BITS)
        slot = mixed.view(np.int64)
        slot += np.repeat(np.arange(0, size.size * SKETCH_SLOTS, SKETCH_SLOTS), size)
        found = np.full(size.size * SKETCH_SLOTS, _EMPTY, np.uint32)
        np.minimum.at(found, slot, value)
        return _filled(found.reshape(size.size, SKETCH_SLOTS))

    def _mixed(self, gram: Words64) -> Words64:
        """A permutation of 64-bit numbers that the key chooses; `gram` is used up."""
        with np.errstate(over="ignore"):
            gram ^= self._add
            gram *= self._mix
            gram ^= gram >> np.uint64(31)
            gram *= self._again
            gram ^= gram >> np.uint64(29)
            gram *= self._mix
        return gram


def _past_windows(texts: Ints, size: Ints) -> Ints:
    """Places in the buffer where no n-gram of a text begins: its end, but for its first byte."""
    last = np.minimum(NGRAM_BYTES - 1, np.maximum(size - 1, 0))
    steps = np.arange(1, NGRAM_BYTES)
    return (texts[1:, None] - steps)[steps <= last[:, None]]


def _filled(sketch: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Empty slots take the value of the next full one to the right, moved by its distance."""
    empty = sketch == _EMPTY
    rows = np.flatnonzero(empty.any(axis=1) & ~empty.all(axis=1))
    if not rows.size:
        return sketch
    part = sketch[rows]
    twice = np.concatenate([part, part], axis=1)
    place = np.where(twice == _EMPTY, 4 * SKETCH_SLOTS, np.arange(2 * SKETCH_SLOTS))
    ahead = np.minimum.accumulate(place[:, ::-1], axis=1)[:, ::-1][:, :SKETCH_SLOTS]
    distance = (ahead - np.arange(SKETCH_SLOTS)).astype(np.uint32)
    sketch[rows] = np.take_along_axis(twice, ahead, axis=1) + distance * _BORROWED
    return sketch
