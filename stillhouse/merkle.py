"""Merkle trees over lines: one hash that fixes every line of a file, their order and their number.

In: lines as bytes, without the line feed. Out: leaf hashes, roots, and proofs that one line is
among those of a root. A line may be shown by its leaf hash alone: the root checks all the same,
which is what redaction rests on. A leaf hash hides a line only as far as the line cannot be
guessed. Nothing here reads files.

Source: RFC 6962 (Certificate Transparency), section 2.1, with SHA-256: leaves and nodes are hashed
under different first bytes, so that no node passes for a line; a tree of n leaves splits at the
largest power of two smaller than n; the root of no lines is the hash of nothing. Checking a proof:
RFC 9162, section 2.1.3.2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from stillhouse.errors import DataError

__all__ = ["EMPTY_ROOT", "HASH_BYTES", "inclusion_proof", "is_included", "leaf_hash", "root_of"]

HASH_BYTES = 32
"""Bytes of a hash (SHA-256)."""

EMPTY_ROOT = hashlib.sha256(b"").digest()
"""The root of no lines."""

_LEAF, _NODE = b"\x00", b"\x01"


def leaf_hash(line: bytes) -> bytes:
    """SHA-256 of 0x00 and the line."""
    return hashlib.sha256(_LEAF + line).digest()


def _node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(_NODE + left + right).digest()


def root_of(leaves: Iterable[bytes]) -> bytes:
    """The root over leaf hashes, in their order; `EMPTY_ROOT` for none."""
    level = list(leaves)
    if not level:
        return EMPTY_ROOT
    while len(level) > 1:
        level = _level_above(level)
    return level[0]


def _level_above(level: Sequence[bytes]) -> list[bytes]:
    """Neighbours hashed together. A last one without a neighbour rises unchanged: that makes the
    same tree as splitting at powers of two from above.
    """
    pairs = zip(level[::2], level[1::2], strict=False)
    return [_node_hash(left, right) for left, right in pairs] + list(level[len(level) & ~1 :])


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The hashes that lead from leaf `index` to the root, the lowest first.

    Raises:
        DataError: there is no such leaf.
    """
    if not 0 <= index < len(leaves):
        raise DataError(
            "proof of a line", f"line {index} of {len(leaves)}, counted from 0",
            "the number of a line that is there", "Count the lines again",
        )  # fmt: skip
    proof: list[bytes] = []
    level = list(leaves)
    while len(level) > 1:
        if index ^ 1 < len(level):
            proof.append(level[index ^ 1])
        level, index = _level_above(level), index // 2
    return proof


def is_included(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether `proof` leads from the leaf hash at `index` of `size` lines to `root`."""
    if not 0 <= index < size:
        return False
    here, last, found = index, size - 1, leaf
    for other in proof:
        if last == 0:
            return False
        if here & 1 or here == last:
            found = _node_hash(other, found)
            while here and not here & 1:  # levels on which it rose unchanged
                here, last = here >> 1, last >> 1
        else:
            found = _node_hash(found, other)
        here, last = here >> 1, last >> 1
    return last == 0 and found == root
