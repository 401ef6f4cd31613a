"""Masked words, their hashes and sketches: what stays when the payload changes, in any script."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.guard.events import SKETCH_SLOTS
from stillhouse.guard.key import NOTHING
from stillhouse.guard.mask import CAP, capped, mask
from stillhouse.guard.sketch import END_WORDS, Sketcher, windows
from tests.guard.log_lines import text

KEY = bytes(range(32))


def words_of(*texts: str) -> list[list[str]]:
    """Each text's masked words; '#' stands for a number, '*' for what is held back."""
    masked = mask([capped(one) for one in texts])
    data = masked.data.tobytes()
    out = []
    for begin, end in zip(masked.words[:-1], masked.words[1:], strict=True):
        spans = zip(masked.starts[begin:end], masked.sizes[begin:end], strict=True)
        found = [data[at : at + size].decode("utf-8", "surrogatepass") for at, size in spans]
        out.append([{"\x01": "*", "0": "#"}.get(word, word) for word in found])
    return out


def streams(*texts: str) -> list[bytes]:
    masked = mask([capped(one) for one in texts])
    data = masked.data.tobytes()
    return [data[a:b] for a, b in zip(masked.texts[:-1], masked.texts[1:], strict=True)]


@pytest.mark.parametrize(
    ("one", "words"),
    [
        ("Solve THIS, please: 3.14 + 1,000!", "solve this please #"),
        ('Say "what you like" and go', "say * and go"),
        ("Say “what you like” and «that» too", "say * and * too"),
        ('A lone " stays out of it', "a lone stays out of it"),
        ('Three "marks" make " one pair', "three * make one pair"),
        ("Run `f(x)` or ```py\nx = 1 `y`\n``` now", "run * or * now"),
        ("see https://a.example/b?c=1 there", "see * there"),
        ("token " + "a1" * 20 + " " + "b" * 30 + " end", "token # * end"),
        ("word " + "ы" * 20 + " end", "word " + "ы" * 20 + " end"),
        ("id-7f3a9 x9 gpt4", "id # "),
        ("don't_stop", "don t_stop"),
        ("ÉCOLE Straße", "école straße"),
        ("你好，世界！3个", "你 好 世 界 # 个"),
        ("「引用」之后", "* 之 后"),
        ("한국 텍스트", "한 국 텍 스 트"),
        ("ไทย abc", "ไ ท ย abc"),
        ("ＡＢ（全）", "ａｂ 全"),
        ("🙂 smile", "🙂 smile"),
        ("a\x01b\x00c\x7fd\te", "a b c d e"),
        ("", ""), ("?!… — ", ""),
    ],
)  # fmt: skip
def test_words_are_masked(one: str, words: str) -> None:
    assert words_of(one) == [words.split()]


def test_a_long_text_keeps_beginning_and_end() -> None:
    long = "begin " + "x y " * CAP + "finish"
    assert len(capped(long)) == CAP + 1
    found = words_of(long)[0]
    assert (found[0], found[-1]) == ("begin", "finish")


TEXTS = st.text(
    alphabet=st.one_of(
        st.sampled_from("ab 1\"`'“”«»。，你好한ы\u0e01\U0001f642,.-\n\ud800"), st.characters()
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=8))
def test_a_text_is_masked_alike_whatever_stands_beside_it(texts: list[str]) -> None:
    assert streams(*texts) == [streams(one)[0] for one in texts]


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_masking_a_masked_text_changes_nothing(one: str) -> None:
    masked = streams(one)[0].decode("utf-8", "surrogatepass").replace("\x01", '"x"')
    assert streams(masked)[0].decode("utf-8", "surrogatepass").replace("\x01", '"x"') == masked


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="abc xyz.,;\n-", max_size=80))
def test_plain_words_agree_with_a_regular_expression(one: str) -> None:
    assert words_of(one)[0] == re.findall("[a-z]{1,24}(?![a-z])", one.lower()) or re.search(
        "[a-z]{25}", one
    )


# ---- hashes ----


def hashes(*texts: str, key: bytes = KEY) -> list[tuple[bytes, bytes, bytes]]:
    masked = mask([capped(one) for one in texts])
    return list(zip(*Sketcher(key).hashes(masked), strict=True))


def test_head_and_tail_outlive_another_payload() -> None:
    front = "You are given a hard problem to solve today: "
    back = ". Write the answer in a box on the last line"
    one, other = hashes(front + text(1) + back, front + text(2, 90) + back)
    assert one[0] == other[0]
    assert one[1] == other[1]
    assert one[2] != other[2]


def test_skeleton_outlives_numbers_and_quotations() -> None:
    one, other = hashes(
        'Grade 3 items of "a b c", see https://x.example/1 now',
        'Grade 17 items of "quite another", see https://y.example/22 now',
    )
    assert one == other


def test_a_short_text_is_its_own_head_and_tail_and_one_without_words_is_nothing() -> None:
    short, longer, empty = hashes("hello there", "hello there " * END_WORDS, "?!")
    assert NOTHING not in short
    assert len(set(short)) == 3  # equal words of different fields have different hashes
    assert short[0] != longer[0]
    assert empty == (NOTHING, NOTHING, NOTHING)


def test_another_key_gives_other_hashes() -> None:
    assert not set(hashes("hello there")[0]) & set(hashes("hello there", key=b"k" * 32)[0])


# ---- sketches ----


def sketches(*texts: str, key: bytes = KEY) -> np.ndarray:
    masked = mask([capped(one) for one in texts])
    return Sketcher(key).sketches(masked, windows(masked.data))


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    """The share of equal slots."""
    return float((one == other).mean())


def jaccard(one: bytes, other: bytes) -> float:
    """Of the byte 8-grams, by sets."""
    left, right = ({s[i : i + 8] for i in range(max(1, len(s) - 7))} for s in (one, other))
    return len(left & right) / len(left | right)


def test_sketches_estimate_the_similarity_of_n_grams() -> None:
    errors = []
    for seed in range(150):
        shared = text(seed, 10 + seed % 50)
        pair = (f"{shared} {text(1000 + seed, 20)}", f"{shared} {text(2000 + seed, 20)}")
        true = jaccard(*streams(*pair))
        errors.append(similarity(*sketches(*pair)) - true)
    assert abs(np.mean(errors)) < 0.02
    assert np.std(errors) < 0.1  # sqrt(1/4 / 32) is 0.088


def test_short_texts_borrow_alike() -> None:
    one, same, other = sketches("hello", "hello", "world")
    assert similarity(one, same) == 1
    assert similarity(one, other) == 0
    assert one.size == SKETCH_SLOTS


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=6))
def test_a_sketch_depends_on_its_text_alone(texts: list[str]) -> None:
    together = sketches(*texts)
    for row, one in zip(together, texts, strict=True):
        assert (row == sketches(one)[0]).all()


def test_sketches_of_other_keys_share_nothing() -> None:
    one, other = sketches(text(1))[0], sketches(text(1), key=b"k" * 32)[0]
    assert similarity(one, other) == 0
