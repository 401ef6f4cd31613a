"""Task shapes: what a person would say, by prompts written for these tests."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from stillhouse.guard.events import CAPABILITIES, SHAPES
from stillhouse.guard.mask import capped, mask
from stillhouse.guard.shape import SIGNS, Facts, Shapes, signs_of
from stillhouse.guard.sketch import windows
from tests.guard.shape_prompts import DEV, HELD, Entry

CUES = Shapes()


def named(entries: list[Entry]) -> list[str]:
    """The capability found for each entry."""
    texts = [capped(one) for _, _, one, _ in entries]
    masked = mask(texts)
    facts = Facts(
        np.array([marks for *_, marks in entries]), np.array([len(one) for one in texts]),
        np.full(len(texts), -1),
    )  # fmt: skip
    scores = CUES.scores(masked, windows(masked.data), signs_of(texts, facts))
    return [CAPABILITIES[code] for code in CUES.decided(scores)[1]]


def test_prompts_that_cues_were_developed_on_are_named() -> None:
    assert named(DEV) == [entry[0] for entry in DEV]


def test_prompts_kept_apart_are_named_mostly() -> None:
    found = named(HELD)
    right = sum(name == entry[0] for name, entry in zip(found, HELD, strict=True))
    assert right / len(HELD) >= 0.85  # 99 of 111 when first measured, see docs/guard-ingest.md
    plain = [name for name, entry in zip(found, HELD, strict=True) if entry[0] == "other"]
    assert Counter(plain)["other"] / len(plain) >= 0.9


def test_no_language_is_a_shape_of_its_own() -> None:
    """What is plain in one language is plain in all."""
    plain = [entry for entry in HELD + DEV if entry[0] == "other" and entry[1] != "en"]
    assert set(named(plain)) == {"other"}


def test_a_shape_is_explained_by_its_cues() -> None:
    rows = CUES.explain("Show your reasoning, then score the answer from 1 to 7.")
    assert ("reasoning_elicitation", "show your reasoning", 1.0) in [
        (shape, word, round(weight, 3)) for shape, word, weight in rows
    ]
    assert "from 1 to 5" in [word for shape, word, _ in rows if shape == "rubric_grading"]


@pytest.mark.parametrize(
    ("one", "facts", "sign"),
    [
        ("```x```", (0, 7, -1), "fence"),
        ("f(x){return g(y);}; h[3]={};", (0, 30, -1), "code_marks"),
        ("a,b,c\n1,2,3\n4,5,6\n7,8,9\n", (0, 30, -1), "table"),
        ("long question", (0, 900, 3), "brief_answer"),
        ("", (1, 0, -1), "image"), ("", (2, 0, -1), "result"), ("", (4, 0, -1), "tools"),
        ("", (8, 0, -1), "computer"),
    ],
)  # fmt: skip
def test_signs_are_seen(one: str, facts: tuple[int, int, int], sign: str) -> None:
    marks, size, answered = facts
    given = Facts(np.array([marks, 0]), np.array([size, 9]), np.array([answered, -1]))
    found = signs_of([one, "plain words"], given)
    assert [name for name, seen in zip(SIGNS, found[0], strict=True) if seen] == [sign]
    assert not found[1].any()


def test_codes_are_bits_and_places_in_the_lists() -> None:
    scores = np.zeros((3, len(SHAPES)), np.float32)
    scores[1, [2, 4]] = 1.0, 1.5
    scores[2, 0] = 0.9
    bits, best = CUES.decided(scores)
    assert bits.tolist() == [0, 2**2 + 2**4, 0]
    assert [CAPABILITIES[code] for code in best] == ["other", SHAPES[4], "other"]


def test_a_cue_that_is_only_a_placeholder_is_refused() -> None:
    cues = {shape: {"signs": {}, "cues": {}} for shape in SHAPES}
    cues["code"]["cues"] = {1.0: {"en": ["1-5"]}}
    with pytest.raises(AssertionError, match="is no word"):
        Shapes(cues)
