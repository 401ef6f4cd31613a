"""Vocabulary hashes, normal forms and near duplicates."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from stillhouse.text import (
    NEAR,
    Near,
    near_duplicates,
    ngrams,
    normalise,
    similarity,
    tokenizer_hash,
)

WORDS = st.lists(
    st.sampled_from(["write", "a", "poem", "story", "about", "the", "sea", "moon", "12", "+"]),
    min_size=0,
    max_size=14,
).map(" ".join)


def test_a_vocabulary_hash_does_not_depend_on_order_but_on_every_entry() -> None:
    assert tokenizer_hash({"a": 0, "b": 1}) == tokenizer_hash({"b": 1, "a": 0})
    assert tokenizer_hash({"a": 0, "b": 1}) != tokenizer_hash({"a": 1, "b": 0})
    assert tokenizer_hash({"a": 0}) != tokenizer_hash({"a": 0, "b": 1})


def test_a_vocabulary_hash_is_the_sha256_of_the_canonical_json() -> None:
    by_hand = hashlib.sha256(b'{"a":0,"\\u0120b":1}').hexdigest()
    assert tokenizer_hash({"\u0120b": 1, "a": 0}) == "t1:" + by_hand


def test_a_vocabulary_with_half_a_surrogate_pair_hashes() -> None:
    assert tokenizer_hash({"\ud800": 0}) != tokenizer_hash({"\ud801": 0})


def test_the_normal_form_drops_case_marks_and_spacing_but_keeps_operators() -> None:
    assert normalise("  What\tis “2+2”?\n") == normalise("what is 2 + 2") == "what is 2 + 2"
    assert normalise("What is 2*3?") != normalise("What is 2/3?")
    assert normalise("ﬁne Ⅳ") == "fine iv"


def test_ngrams_of_a_short_text_are_the_text() -> None:
    assert ngrams("Hi!") == {"hi"}
    assert ngrams(" ?! ") == frozenset()
    assert ngrams("abcdef", 5) == {"abcde", "bcdef"}


def test_similarity_has_the_hand_worked_value() -> None:
    # abcdefg: abcde bcdef cdefg; abcdefh: abcde bcdef cdefh; two of four shared
    assert similarity("abcdefg", "abcdefh") == 0.5


def test_a_reworded_ending_is_near_and_another_question_is_not() -> None:
    asked = "Explain to a ten-year-old why the sky looks blue during the day and red at sunset."
    close = "Explain to a ten-year-old why the sky looks blue during the day and red at dusk!"
    other = "Write a limerick about a cat that refuses to learn the piano."
    assert NEAR <= similarity(asked, close) < 1
    assert similarity(asked, other) < 0.15


@given(WORDS, WORDS)
def test_similarity_is_symmetric_and_one_for_itself(a: str, b: str) -> None:
    assert similarity(a, b) == similarity(b, a)
    assert 0 <= similarity(a, b) <= 1
    assert similarity(a, a) == 1


@given(st.lists(WORDS, max_size=6), st.lists(WORDS, max_size=6), st.floats(0.05, 1))
def test_near_duplicates_are_every_pair_at_the_threshold_and_no_other(
    held_out: list[str], others: list[str], threshold: float
) -> None:
    found = {(near.index, near.other) for near in near_duplicates(held_out, others, threshold)}
    by_hand = {
        (i, j)
        for i, a in enumerate(held_out)
        for j, b in enumerate(others)
        if similarity(a, b) >= threshold
    }
    assert found == by_hand


def test_an_exact_pair_is_told_from_a_near_one() -> None:
    pairs = list(
        near_duplicates(["Name three rivers in Asia."], ["x", "name THREE rivers in Asia"])
    )
    assert pairs == [Near(0, 1, 1.0, True)]


def test_other_texts_are_streamed() -> None:
    drawn = []

    def others():
        for text in ("first text here", "second text here"):
            drawn.append(text)
            yield text

    found = near_duplicates(["First text, here."], others())
    assert next(found).exact
    assert drawn == ["first text here"]
