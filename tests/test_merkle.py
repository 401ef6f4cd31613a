"""Merkle trees: published roots, the definition as an oracle, proofs that hold only for their
line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.errors import DataError
from stillhouse.merkle import EMPTY_ROOT, HASH_BYTES, inclusion_proof, is_included, leaf_hash
from stillhouse.merkle import root_of as root

# The lines and roots that the reference implementation of Certificate Transparency is tested with.
LINES = [
    bytes.fromhex(line)
    for line in (
        "", "00", "10", "2021", "3031", "40414243", "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]  # fmt: skip
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def defined(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962's own definition, from above."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    both = defined(leaves[:split]) + defined(leaves[split:])
    return hashlib.sha256(b"\x01" + both).digest()


@pytest.mark.parametrize("count", range(9))
def test_published_roots_come_out(count: int) -> None:
    assert root(map(leaf_hash, LINES[:count])).hex() == ROOTS[count]


def test_the_root_of_no_lines_is_the_hash_of_nothing() -> None:
    assert root([]) == EMPTY_ROOT == hashlib.sha256(b"").digest()
    assert len(EMPTY_ROOT) == HASH_BYTES


@pytest.mark.parametrize("count", [*range(1, 40), 255, 256, 257])
def test_the_root_is_that_of_the_definition(count: int) -> None:
    leaves = [leaf_hash(b"%d" % i) for i in range(count)]
    assert root(leaves) == defined(leaves)


def test_a_node_passes_for_no_line_and_a_line_for_no_node() -> None:
    left, right = leaf_hash(b"a"), leaf_hash(b"b")
    assert leaf_hash(left + right) != root([left, right])
    assert leaf_hash(b"\x01" + left + right) != root([left, right])


@given(st.lists(st.binary(max_size=8), min_size=1, max_size=40), st.data())
def test_any_change_of_a_line_the_order_or_the_number_changes_the_root(
    lines: list[bytes], data: st.DataObject
) -> None:
    other = data.draw(st.lists(st.binary(max_size=8), max_size=41) | st.permutations(lines))
    same = root(map(leaf_hash, other)) == root(map(leaf_hash, lines))
    assert same == (other == lines)


@given(st.integers(1, 70), st.data())
def test_a_proof_holds_for_its_line_its_place_and_its_root_only(
    size: int, data: st.DataObject
) -> None:
    leaves = [leaf_hash(b"%d" % i) for i in range(size)]
    index, top = data.draw(st.integers(0, size - 1)), root(leaves)
    proof = inclusion_proof(leaves, index)
    assert is_included(leaves[index], index, size, proof, top)
    assert len(proof) <= (size - 1).bit_length()
    assert not is_included(leaf_hash(b"other"), index, size, proof, top)
    assert not is_included(leaves[index], index, size, proof, leaf_hash(b"other"))
    assert not is_included(leaves[index], index, size, [*proof, top], top)
    if proof:
        assert not is_included(leaves[index], index, size, proof[:-1], top)
        at = data.draw(st.integers(0, len(proof) - 1))
        changed = [*proof[:at], leaf_hash(proof[at]), *proof[at + 1 :]]
        assert not is_included(leaves[index], index, size, changed, top)
    elsewhere = data.draw(st.integers(-1, size))
    held = is_included(leaves[index], elsewhere, size, proof, top)
    assert held == (elsewhere == index)


@pytest.mark.parametrize(("index", "size"), [(0, 0), (3, 3), (-1, 3)])
def test_a_line_that_is_not_there_has_no_proof(index: int, size: int) -> None:
    leaves = [leaf_hash(b"%d" % i) for i in range(size)]
    with pytest.raises(DataError, match=f"line {index} of {size}"):
        inclusion_proof(leaves, index)
    assert not is_included(EMPTY_ROOT, index, size, [], EMPTY_ROOT)
