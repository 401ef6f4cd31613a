"""Skeletons show what many accounts share, and nothing that one of them wrote."""

from __future__ import annotations

import re
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.guard.mask import UNSPACED, mask
from stillhouse.guard.skeleton import PAYLOAD, ends, skeletons

WRAPPER = "Write out the reasoning behind this answer:\n{}\nThen grade it from 1 to 5."


def test_what_customers_share_is_shown_and_payloads_are_not() -> None:
    texts = [(n, WRAPPER.format(f"secret{n} is {n * 7} apples")) for n in range(12)]
    (found,) = skeletons(texts)
    assert (
        found.text
        == f"Write out the reasoning behind this answer: {PAYLOAD}\nThen grade it from 1 to 5."
        or found.text.startswith("Write out the reasoning behind this answer:")
    )
    assert (found.texts, found.customers) == (12, 12)
    assert "secret" not in found.text
    assert PAYLOAD in found.text


def test_wordings_are_told_apart_by_either_end() -> None:
    texts = [(n, f"Please solve step by step: {n} plus {n}") for n in range(9)]
    texts += [(100 + n, f"number{n} thing{n} Reply with the verdict only") for n in range(6)]
    found = skeletons(texts)
    assert [one.texts for one in found] == [9, 6]
    assert found[1].text.endswith("Reply with the verdict only")


def test_of_few_customers_nothing_is_shown() -> None:
    texts = [(1, f"My name is Ada and my card is {n}") for n in range(50)]
    texts += [(2, "My name is Ada and my card is 7")]
    assert skeletons(texts) == []
    assert skeletons([]) == []
    assert skeletons([(1, ""), (2, " ")]) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("请一步一步写出推理过程：", "。最后只给出答案。"),
        ("次の文を添削してください：", "。理由も書くこと。"),
        ("ช่วยอธิบายทีละขั้นตอนของ", "แล้วให้คะแนน"),
    ],
)
def test_scripts_without_spaces_have_skeletons(before: str, after: str) -> None:
    payloads = ["".join(chr(0x5000 + 7 * n + i) for i in range(5)) for n in range(12)]
    (found,) = skeletons([(n, before + one + after) for n, one in enumerate(payloads)])
    assert (found.text, found.customers) == (f"{before} {PAYLOAD}{after}", 12)


def test_words_of_one_character_are_those_that_are_masked_as_such() -> None:
    codes = [c for c in range(0x80, 0x10000) if not 0xD800 <= c <= 0xDFFF]
    masked = mask([chr(code) * 2 for code in codes])
    alone = (masked.words[1:] - masked.words[:-1] == 2).tolist()
    one = re.compile(f"[{UNSPACED}]")
    assert [bool(one.match(chr(code))) for code in codes] == alone


def test_the_ends_of_a_text_say_as_much_as_all_of_it() -> None:
    texts = [(n, f"Solve it: {'a b ' * 2000} {n}\nand be brief") for n in range(9)]
    assert skeletons([(n, ends(text)) for n, text in texts]) == skeletons(texts)
    assert len(ends(texts[0][1])) < 5000 < len(texts[0][1])
    assert ends("short") == "short"


def words_of(first: int, last: int) -> st.SearchStrategy[list[str]]:
    alphabet = st.characters(min_codepoint=first, max_codepoint=last)
    word = st.text(alphabet=alphabet, min_size=3, max_size=9)
    return st.lists(word, min_size=8, max_size=20, unique=True)


@given(words_of(0x4E00, 0x9FFF))
def test_no_character_that_few_texts_have_is_ever_shown(words: list[str]) -> None:
    texts = [(n, f"请翻译{word}，谢谢") for n, word in enumerate(words)]
    shown = "".join(one.text for one in skeletons(texts))
    counts = Counter(c for _, text in texts for c in set(text))
    assert not any(c in shown for c, count in counts.items() if count < 0.8 * len(texts))


@given(words_of(0x0430, 0x044F))
def test_no_word_of_one_customer_alone_is_ever_shown(words: list[str]) -> None:
    texts = [(n, f"Translate this for me {word} and thank you") for n, word in
             enumerate(words)]  # fmt: skip
    shown = " ".join(one.text for one in skeletons(texts))
    assert not any(word in shown for word in words)


@pytest.mark.timed
def test_long_texts_of_blanks_take_no_time() -> None:
    texts = [(n, f"Please solve this: {n}" + " " * 1_000_000 + "\nbe brief") for n in range(20)]
    texts += [(n, "Please solve this: " + " " * 1_000_000) for n in range(20)]
    began = time.perf_counter()
    (found,) = skeletons(texts)
    assert time.perf_counter() - began < 2
    assert found.text.startswith("Please solve this:")
