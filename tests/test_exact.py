"""Exact tests against enumeration, scipy, and themselves."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from stillhouse.audit.settings import TwinSettings
from stillhouse.errors import ConfigError, EvidenceError
from stillhouse.exact import (
    MOST_PAIRS,
    binomial_tail,
    holm,
    hypergeometric,
    rank_quantile,
    rank_tail,
    share_bound,
    signed_rank,
)
from stillhouse.settings import make

values = st.lists(st.integers(-6, 6).filter(bool), min_size=1, max_size=9)


@given(values)
def test_signed_rank_is_what_enumerating_all_signs_gives_ties_included(found: list[int]) -> None:
    test = signed_rank(found)
    ranks = stats.rankdata(np.abs(found))
    sums = [
        sum(r for r, sign in zip(ranks, signs, strict=True) if sign)
        for signs in itertools.product((0, 1), repeat=len(found))
    ]
    at_least = sum(total >= test.rank_sum - 1e-9 for total in sums) / len(sums)
    assert test.p_value == pytest.approx(at_least, rel=1e-12)
    assert test.sign_p_value == pytest.approx(
        stats.binomtest(test.positive, test.n, alternative="greater").pvalue, rel=1e-9
    )


@pytest.mark.parametrize("n", [12, 60, 300])
def test_signed_rank_agrees_with_scipys_exact_one(n: int) -> None:
    found = np.random.default_rng(n).normal(0.2, 1.0, n)
    ours, theirs = signed_rank(found), stats.wilcoxon(found, alternative="greater", method="exact")
    assert ours.rank_sum == theirs.statistic
    assert ours.p_value == pytest.approx(theirs.pvalue, rel=1e-9)


def test_small_p_values_keep_their_digits() -> None:
    assert signed_rank(np.arange(1, 61)).p_value == pytest.approx(2.0**-60, rel=1e-12)
    assert binomial_tail(500, 500) == pytest.approx(2.0**-500, rel=1e-9)


@given(values)
def test_turning_every_sign_mirrors_the_test(found: list[int]) -> None:
    test, mirrored = signed_rank(found), signed_rank([-value for value in found])
    assert mirrored.rank_sum == test.n * (test.n + 1) / 2 - test.rank_sum
    assert mirrored.standardised == pytest.approx(-test.standardised, abs=1e-12)
    point = rank_tail(_ranks(found), round(2 * test.rank_sum)) - rank_tail(
        _ranks(found), round(2 * test.rank_sum) + 1
    )
    assert test.p_value + mirrored.p_value == pytest.approx(1 + point, rel=1e-9)


def _ranks(found: list[int]) -> np.ndarray:
    return (2 * stats.rankdata(np.abs(found))).astype(np.int64)


def test_zeros_carry_no_sign_and_are_counted() -> None:
    test = signed_rank([0.0, 1.0, -2.0, 3.0, 0.0])
    assert (test.n, test.zeros, test.positive) == (3, 2, 2)
    assert test.p_value == signed_rank([1.0, -2.0, 3.0]).p_value


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ([], "none with a sign"),
        ([0.0, 0.0], "none with a sign"),
        ([1.0, math.nan], "not finite"),
        ([1.0, math.inf], "not finite"),
        (np.ones(MOST_PAIRS + 1), "at most 2000"),
    ],
)
def test_what_cannot_be_tested_is_refused(found: list[float], says: str) -> None:
    with pytest.raises(EvidenceError, match=says):
        signed_rank(found)


def test_the_quantile_is_the_first_sum_with_the_level_in_its_tail() -> None:
    critical = rank_quantile(40, 0.01)
    assert critical is not None
    ranks = np.arange(1, 41)
    assert rank_tail(ranks, critical) <= 0.01 < rank_tail(ranks, critical - 1)
    assert rank_quantile(5, 0.01) is None  # 2^-5 is the least there is


@pytest.mark.parametrize(("successes", "trials"), [(0, 7), (3, 7), (7, 7), (140, 200)])
def test_upper_bound_of_a_share_is_where_so_few_become_unlikely(
    successes: int, trials: int
) -> None:
    bound = share_bound(successes, trials)
    theirs = stats.binomtest(successes, trials, alternative="less").proportion_ci(0.95).high
    assert bound == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize(("successes", "trials"), [(1, 0), (3, 2), (-1, 4)])
def test_a_share_of_nothing_has_no_bound(successes: int, trials: int) -> None:
    with pytest.raises(EvidenceError, match="bound of a share"):
        share_bound(successes, trials)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_audits_draw_no_more_pairs_than_the_exact_test_takes() -> None:
    with pytest.raises(ConfigError, match="less than or equal to 2000"):
        make(TwinSettings, {"pairs": MOST_PAIRS + 1}, where="audit")
    assert TwinSettings(pairs=MOST_PAIRS).pairs == MOST_PAIRS


@pytest.mark.parametrize(
    ("balls", "marked", "drawn"), [(9, 4, 3), (9, 0, 3), (9, 9, 3), (5, 4, 5), (20_000, 150, 400)]
)
def test_chances_of_marked_balls_are_those_of_scipy(balls: int, marked: int, drawn: int) -> None:
    ours = hypergeometric(balls, marked, drawn)
    theirs = stats.hypergeom.pmf(np.arange(drawn + 1), balls, marked, drawn)
    assert ours == pytest.approx(theirs, rel=1e-8, abs=1e-300)
    assert ours.sum() == pytest.approx(1)
