"""A keyed green list: which tokens a watermark favours after a window of preceding tokens.

In: a secret key, token ids, logits. Out: logits that lean to the green tokens, and whether a
(window, token) pair is green. The same numpy code marks answers while they are sampled
(`models/local.py`), scores a suspect (`audit/radioactivity.py`) and verifies a bundle; no torch.

A window's seed is BLAKE2b, keyed by the secret, of its token ids; a token is green where SplitMix64
of seed and token id falls below gamma. Who does not know the key cannot tell the seed of a window
from random bits, so the test's null holds: pairs that were chosen without the key are green
independently, each with probability gamma. Inside one window the list is drawn by a fast mixer and
no cipher: it passes statistical tests, but who sees most of one window's green tokens may work out
the rest of that window; no other window and no key follows from it. Short windows leak their lists
anyway, to whoever counts enough marked text.

Source: Kirchenbauer et al. (arXiv 2301.10226), with another hash; Steele, Lea, Flood (2014), Fast
splittable pseudorandom number generators, for the mixer.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from stillhouse.errors import ConfigError, DataError
from stillhouse.files import read_secret, write_secret

__all__ = ["KEY_BYTES", "MOST_WIDTH", "Watermark", "read_key", "write_key"]

KEY_BYTES = 32
"""Of the secret: as much as BLAKE2b keeps apart."""
MOST_WIDTH = 4
"""Tokens of a window at most: longer ones rarely come twice, so that nothing is learned of them."""

_FORMAT = "stillhouse watermark key"
_KEY_FILE = "a key file of `stillhouse audit key`"
_VERSION = 1
# SplitMix64's increment and multipliers (Steele, Lea, Flood 2014). Its last shift is left out: it
# changes low bits only, and what is compared with gamma is decided by the high ones.
_STEP, _FIRST, _SECOND = (
    np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB),
)  # fmt: skip

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Watermark:
    """A key and how it marks. Never written out but by `write_key`; `repr` leaves the key away.

    Raises:
        ConfigError: a key, width, gamma or delta that is none.
    """

    key: bytes = field(repr=False)
    """32 secret bytes."""
    width: int = 2
    """Preceding token ids that choose the list, 1 to 4. Short windows are learned sooner by a
    student, and by whoever wants to forge or wash out the mark."""
    gamma: float = 0.25
    """Share of the vocabulary that is green."""
    delta: float = 3.0
    """Added to green tokens' logits, in nats; 0 marks nothing."""
    tokenizer: str | None = None
    """Tagged hash of the vocabulary the ids belong to; None is not said."""

    def __post_init__(self) -> None:
        for name, fits, expected in (
            ("key", len(self.key) == KEY_BYTES, f"{KEY_BYTES} bytes"),
            ("width", self.width in range(1, MOST_WIDTH + 1), f"1 to {MOST_WIDTH} tokens"),
            ("gamma", 0 < self.gamma < 1, "a share above 0 and below 1"),
            ("delta", 0 <= self.delta < math.inf, "nats, 0 or more"),
        ):
            if not fits:
                # of the key not even a wrong one is shown
                found = f"{len(self.key)} bytes" if name == "key" else str(getattr(self, name))
                raise ConfigError(f"watermark.{name}", found, expected, f"Correct {name}")

    @classmethod
    def fresh(cls, **settings: Any) -> Self:
        """A watermark with a new random key."""
        return cls(key=secrets.token_bytes(KEY_BYTES), **settings)

    @property
    def commitment(self) -> str:
        """SHA-256 of the key, in hex: to be published before anything is marked or tested."""
        return hashlib.sha256(self.key).hexdigest()

    @property
    def label(self) -> str:
        """What stands in the label `watermark` of marked exchanges: a piece of the commitment."""
        return f"w1:{self.commitment[:16]}"

    def facts(self) -> dict[str, Any]:
        """What may be said before the key is revealed, as plain JSON."""
        names = ("width", "gamma", "delta", "tokenizer")
        return {name: getattr(self, name) for name in names} | {"commitment": self.commitment}

    def decoys(self, seed: int | str, count: int) -> list[Self]:
        """The same mark under keys that follow from a public seed: what innocence looks like."""
        return [
            replace(self, key=hashlib.blake2b(
                f"{seed} {index}".encode(), digest_size=KEY_BYTES, person=b"stillhouse decoy"
            ).digest())
            for index in range(count)
        ]  # fmt: skip

    # ---- which pairs are green ----

    def seeds(self, windows: npt.ArrayLike) -> Words:
        """(N,) the seed of each window (N, width) of token ids."""
        rows = np.ascontiguousarray(windows, "<u4").reshape(-1, self.width)
        raw, size = rows.tobytes(), 4 * self.width
        keyed = hashlib.blake2b(key=self.key, digest_size=8, person=b"stillhouse green")
        found = bytearray()
        for start in range(0, len(raw), size):
            one = keyed.copy()
            one.update(raw[start : start + size])
            found += one.digest()
        return np.frombuffer(bytes(found), "<u8").astype(np.uint64)

    def is_green(self, seeds: Words, tokens: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Whether each token (N,) is green after the window whose seed (N,) stands beside it."""
        cells = (np.asarray(tokens).astype(np.uint64) + np.uint64(1)) * _STEP
        return self._below(cells + np.asarray(seeds, np.uint64), np.empty_like(cells))

    def green_list(self, window: Sequence[int], size: int) -> npt.NDArray[np.bool_]:
        """(size,) whether each token id below `size` is green after the window."""
        cells = _cells(size)
        return self._below(cells + self.seeds([list(window)])[0], np.empty_like(cells))

    def _below(
        self, cells: Words, spare: Words, into: npt.NDArray[np.bool_] | None = None
    ) -> npt.NDArray[np.bool_]:
        """Whether mixed cells lie below gamma; `cells` and `spare` are written over."""
        for shift, factor in ((30, _FIRST), (27, _SECOND)):
            np.right_shift(cells, np.uint64(shift), out=spare)
            np.bitwise_xor(cells, spare, out=cells)
            np.multiply(cells, factor, out=cells)
        # gamma has 53 bits: the product is a whole number, the share is gamma itself
        return np.less(cells, np.uint64(int(self.gamma * 2**64)), out=into)

    # ---- marking ----

    def lean(
        self, logits: npt.NDArray[np.float32], contexts: Sequence[Sequence[int]]
    ) -> npt.NDArray[np.float32]:
        """(N, V) the logits with delta added to what is green after each row's context.

        A row whose context is shorter than the window stays as it is.
        """
        marked, size = np.empty_like(logits), logits.shape[1]
        rows = [row for row, before in enumerate(contexts) if len(before) >= self.width]
        seeds = self.seeds([list(contexts[row][-self.width :]) for row in rows])
        cells, spare = np.empty(size, np.uint64), np.empty(size, np.uint64)
        green, added = np.empty(size, np.bool_), np.empty(size, np.float32)
        for row, seed in zip(rows, seeds, strict=True):  # a row at a time stays in the cache
            np.add(_cells(size), seed, out=cells)
            self._below(cells, spare, green)
            np.multiply(green, np.float32(self.delta), out=added)
            np.add(logits[row], added, out=marked[row])
        for row in set(range(len(logits))) - set(rows):
            marked[row] = logits[row]
        return marked


@cache
def _cells(size: int) -> Words:
    """(size,) what SplitMix64 adds to a seed for each token id; not to be written to."""
    cells = np.arange(1, size + 1, dtype=np.uint64) * _STEP
    cells.flags.writeable = False
    return cells


# ---- the key file ----


def write_key(path: Path, watermark: Watermark) -> None:
    """Keep a watermark and its key in a new file that only its owner may read.

    Raises:
        DataError: there is a file already, or it cannot be written. A key is never overwritten:
            what it marked could no longer be tested.
    """
    plain = {"format": _FORMAT, "version": _VERSION, "key": watermark.key.hex()}
    text = json.dumps(plain | watermark.facts(), indent=2) + "\n"
    write_secret(path, text.encode())


def read_key(path: Path) -> Watermark:
    """The watermark in a key file.

    Raises:
        DataError: no such file, not a key file, damaged, or one that others may read.
    """
    text = read_secret(path, _KEY_FILE, "Check the path")
    try:
        plain = json.loads(text)
        if (plain["format"], plain["version"]) != (_FORMAT, _VERSION):
            raise ValueError(f"format {plain['format']!r}, version {plain['version']!r}")
        settings = {name: plain[name] for name in ("width", "gamma", "delta", "tokenizer")}
        watermark = Watermark(key=bytes.fromhex(plain["key"]), **settings)
    except (ValueError, TypeError, KeyError) as problem:
        raise _unread(path, f"it cannot be read ({problem})", "Take it from a copy") from None
    if watermark.commitment != plain.get("commitment"):
        raise _unread(path, "a key that does not fit its commitment", "Take it from a copy")
    return watermark


def _unread(path: Path, found: str, todo: str) -> DataError:
    return DataError(str(path), found, _KEY_FILE, todo)
