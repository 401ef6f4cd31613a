"""Arithmetic on 64-bit hashes: mixing, and counting distinct values by sorting.

In: numpy arrays of uint64. Out: the same. `0` is "nothing there" and stays 0. These hashes are
not keyed: what comes in already is.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["Hashes", "Ints", "distinct_per_group", "mix", "mixed_with", "run_starts"]

Hashes = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]

_LOW_BITS = 40  # of a hash beside a group number: collisions are some 1e-12 of the pairs
_GROUPS = 1 << (64 - _LOW_BITS)


def mix(values: Hashes) -> Hashes:
    """SplitMix64's finaliser, a bijection.

    Source: Steele, Lea and Flood (2014), Fast splittable pseudorandom number generators.
    """
    with np.errstate(over="ignore"):
        x = values ^ (values >> np.uint64(30))
        x = x * np.uint64(0xBF58476D1CE4E5B9)
        x = x ^ (x >> np.uint64(27))
        x = x * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def mixed_with(values: Hashes, other: npt.ArrayLike) -> Hashes:
    """A hash of both; 0 where `values` is 0."""
    other = np.asarray(other).astype(np.uint64)
    with np.errstate(over="ignore"):
        out = mix(values + np.uint64(0x9E3779B97F4A7C15) * (other + np.uint64(1)))
    return np.where(values == 0, np.uint64(0), np.where(out == 0, np.uint64(1), out))


def run_starts(ordered: npt.NDArray[np.generic]) -> Ints:
    """Where runs of equal values begin in a sorted array."""
    if not len(ordered):
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))


def distinct_per_group(group: npt.NDArray[np.integer], values: Hashes, groups: int) -> Ints:
    """(groups,) how many distinct values each group has. Groups are numbers below 2**24."""
    if groups > _GROUPS:
        raise ValueError(f"{groups} groups do not fit beside a hash")
    packed = (group.astype(np.uint64) << np.uint64(_LOW_BITS)) | (
        mix(values) >> np.uint64(64 - _LOW_BITS)
    )
    packed.sort()
    kept = packed[run_starts(packed)] >> np.uint64(_LOW_BITS)
    return np.bincount(kept.astype(np.int64), minlength=groups)
