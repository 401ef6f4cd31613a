"""Skeletons show what many accounts share, and nothing that one of them wrote."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.guard.skeleton import PAYLOAD, skeletons

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


@given(
    st.lists(
        st.text(alphabet=st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF), min_size=3,
                max_size=9),
        min_size=8, max_size=20, unique=True,
    )
)  # fmt: skip
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
