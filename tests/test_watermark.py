"""The green list against plain integers, golden values, and what its randomness has to be."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2, kstest

from stillhouse.errors import ConfigError, DataError
from stillhouse.watermark import Watermark, read_key, write_key

KEY = bytes(range(32))
WORD = 2**64


def oracle(mark: Watermark, window: list[int], token: int) -> bool:
    """One pair, with Python's whole numbers."""
    data = b"".join(number.to_bytes(4, "little") for number in window)
    hashed = hashlib.blake2b(data, key=mark.key, digest_size=8, person=b"stillhouse green")
    cell = int.from_bytes(hashed.digest(), "little")
    cell = (cell + (token + 1) * 0x9E3779B97F4A7C15) % WORD
    cell = (cell ^ (cell >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    cell = (cell ^ (cell >> 27)) * 0x94D049BB133111EB % WORD
    return cell < int(mark.gamma * WORD)


@given(
    key=st.binary(min_size=32, max_size=32),
    window=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=4),
    gamma=st.floats(0.001, 0.999),
    token=st.integers(0, 400),
)
def test_a_pair_and_a_whole_list_agree_with_plain_integers(
    key: bytes, window: list[int], gamma: float, token: int
) -> None:
    mark = Watermark(key=key, width=len(window), gamma=gamma)
    expected = oracle(mark, window, token)
    assert bool(mark.green_list(window, 401)[token]) == expected
    assert bool(mark.is_green(mark.seeds([window]), [token])[0]) == expected


@pytest.mark.parametrize(
    ("width", "seed", "green", "total"),
    [
        (1, 0x0FCFE4628A44B8B0, [1, 3, 5, 17, 19, 21, 40, 51, 52, 57, 58], 12314),
        (2, 0xD6EAF6A67B145A7E, [0, 8, 9, 16, 17, 18, 21, 28, 33, 36, 37, 40, 41, 43], 12324),
        (4, 0x49582CAE555247F4, [2, 3, 5, 6, 8, 12, 16, 19, 28, 32, 37, 44, 55, 56, 58], 12383),
    ],
)
def test_the_list_of_version_1_never_changes(
    width: int, seed: int, green: list[int], total: int
) -> None:
    """Frozen: a text marked by one release is tested by all later ones, on every machine."""
    mark, window = Watermark(key=KEY, width=width), [7, 49151, 3, 12][:width]
    assert int(mark.seeds([window])[0]) == seed
    assert np.flatnonzero(mark.green_list(window, 60)).tolist() == green
    assert int(mark.green_list(window, 49152).sum()) == total
    assert [decoy.key.hex()[:16] for decoy in mark.decoys(20261122, 2)] == [
        "7f49ac74d0e36e8b", "4354d1ab4d621710",
    ]  # fmt: skip
    assert mark.label == "w1:630dcd2966c43366"
    assert mark.commitment.startswith("630dcd2966c43366")


def test_the_list_does_not_depend_on_the_size_of_the_vocabulary() -> None:
    mark = Watermark(key=KEY)
    small, large = mark.green_list([5, 6], 259), mark.green_list([5, 6], 49152)
    assert np.array_equal(small, large[:259])


@pytest.mark.parametrize("gamma", [0.1, 0.25, 0.5])
def test_green_is_a_share_of_gamma_in_each_window_and_of_each_token(gamma: float) -> None:
    """Over random keys, as the null asks: within a window, over windows, and for neighbours."""
    size, keys = 2000, 400
    rng = np.random.default_rng(5)
    lists = np.array([
        Watermark(key=rng.bytes(32), gamma=gamma).green_list([11, 4], size) for _ in range(keys)
    ])  # fmt: skip
    spread = gamma * (1 - gamma)
    for axis, n in ((0, keys), (1, size)):  # each token over keys, each key over tokens
        z = (lists.sum(axis) - n * gamma) / np.sqrt(n * spread)
        assert chi2.sf((z**2).sum(), len(z)) > 1e-4
        assert chi2.cdf((z**2).sum(), len(z)) > 1e-4
    for step in (1, 2, 64):  # two tokens of one window are green independently
        both = (lists[:, :-step] & lists[:, step:]).sum()
        assert binomtest(int(both), keys * (size - step), gamma**2).pvalue > 1e-4


def test_windows_that_differ_a_little_have_unrelated_lists() -> None:
    mark = Watermark(key=KEY)
    first = mark.green_list([100, 200], 49152)
    for other in ([200, 100], [100, 201], [101, 200]):
        both = (first & mark.green_list(other, 49152)).mean()
        assert abs(both - 0.0625) < 0.005
    short = Watermark(key=KEY, width=1).green_list([200], 49152)
    assert abs((first & short).mean() - 0.0625) < 0.005


def test_counts_of_distinct_pairs_are_binomial_over_keys() -> None:
    rng = np.random.default_rng(9)
    pairs = np.unique(rng.integers(0, 60, (4000, 3)), axis=0)  # windows share tokens and overlap
    mark = Watermark(key=KEY)
    counts = np.array([
        decoy.is_green(decoy.seeds(pairs[:, :2]), pairs[:, 2]).sum()
        for decoy in mark.decoys("uniform", 300)
    ])  # fmt: skip
    z = (counts - len(pairs) * 0.25) / np.sqrt(len(pairs) * 0.1875)
    assert kstest(z, "norm").pvalue > 1e-3


# ---- marking ----


def test_leaning_adds_delta_to_green_tokens_only() -> None:
    mark = Watermark(key=KEY, width=2, delta=2.5)
    logits = np.random.default_rng(0).normal(size=(4, 500)).astype(np.float32)
    logits[1, 3] = -np.inf
    before = logits.copy()
    contexts = [[1, 2, 3], [9, 9], [7], []]
    marked = mark.lean(logits, contexts)
    assert marked.dtype == np.float32
    for row, context in enumerate(contexts[:2]):
        green = mark.green_list(context[-2:], 500)
        expected = np.where(green, before[row] + np.float32(2.5), before[row])
        assert np.array_equal(marked[row], expected)
    assert np.array_equal(marked[2:], before[2:])  # a context shorter than the window
    assert np.array_equal(logits, before)


# ---- keys ----


def test_a_key_file_is_its_owners_and_comes_back(tmp_path: Path) -> None:
    mark = Watermark.fresh(width=3, gamma=0.5, delta=1.5, tokenizer="t1:abc")
    path = tmp_path / "key.json"
    write_key(path, mark)
    assert read_key(path) == mark
    with pytest.raises(DataError, match="never overwritten"):
        write_key(path, Watermark.fresh())
    assert read_key(path) == mark
    path.chmod(0o640)
    with pytest.raises(DataError, match="chmod 600"):
        read_key(path)


def test_a_key_is_never_shown() -> None:
    mark = Watermark.fresh()
    assert mark.key.hex() not in json.dumps(mark.facts()) + repr(mark) + mark.label
    assert str(mark.key) not in repr(mark)
    assert mark.facts()["commitment"] == hashlib.sha256(mark.key).hexdigest()
    with pytest.raises(ConfigError) as refusal:
        Watermark(key=b"an old secret")
    assert "an old secret" not in str(refusal.value)


def test_fresh_keys_and_decoys_differ() -> None:
    assert Watermark.fresh().key != Watermark.fresh().key
    decoys = Watermark(key=KEY, width=1).decoys(1, 99)
    assert len({decoy.key for decoy in decoys} | {KEY}) == 100
    assert decoys[:9] == Watermark(key=bytes(32), width=1).decoys(1, 9)  # not of the true key
    assert decoys[0].key != Watermark(key=KEY, width=1).decoys(2, 1)[0].key


def test_damaged_key_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    with pytest.raises(DataError, match="No such file"):
        read_key(path)
    with pytest.raises(DataError, match="folder that can be written to"):
        write_key(tmp_path / "missing" / "key.json", Watermark.fresh())
    write_key(path, Watermark(key=KEY))
    whole = json.loads(path.read_text())
    for change, said in (
        ({"version": 2}, "version 2"),
        ({"key": KEY.hex()[:-2]}, "31 bytes"),
        ({"key": "no hex"}, "non-hexadecimal"),
        ({"width": 9}, "1 to 4"),
        ({"key": (b"\1" + KEY[1:]).hex()}, "does not fit its commitment"),
    ):
        path.write_text(json.dumps(whole | change))
        with pytest.raises(DataError, match=said):
            read_key(path)
    path.write_text("{}")
    with pytest.raises(DataError, match="format"):
        read_key(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("width", 0), ("width", 5), ("gamma", 0.0), ("gamma", 1.0), ("gamma", float("nan")),
        ("delta", -0.1), ("delta", float("inf")), ("delta", float("nan")),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"watermark.{name}"):
        Watermark(key=KEY, **{name: value})  # type: ignore[arg-type]
