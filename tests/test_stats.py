"""Intervals against hand-worked constants, oracles, and their coverage on simulated data."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as oracle

from stillhouse.errors import EvidenceError
from stillhouse.stats import (
    Estimate,
    clopper_pearson,
    cluster_bootstrap,
    clustered_share,
    median_estimate,
    ratio_difference,
    ratio_of_sums,
    wilson,
)


def within_binomial_limits(hits: int, trials: int, share: float) -> bool:
    """Whether `share` gives such a count, but for one chance in 10,000."""
    low, high = oracle.binom.interval(1 - 1e-4, trials, share)
    return low <= hits <= high


def simulated_answers(rng, prompts=80):
    """Per-prompt sums, lengths that differ, the true ratio; long answers are easier."""
    lengths = rng.integers(5, 129, size=prompts).astype(float)
    hardness = rng.gamma(4, 0.25, size=prompts)  # mean 1, differs between prompts
    sums = lengths * hardness * (1.5 - lengths / 200)
    possible = np.arange(5, 129, dtype=float)
    return sums, lengths, 1.5 - np.mean(possible**2) / np.mean(possible) / 200


def test_estimate_prints_and_serialises_with_its_interval_and_n():
    estimate = Estimate(0.63312, 0.6211, 0.6449, 80, "by hand")
    assert str(estimate) == "0.6331 [0.6211, 0.6449] (n = 80)"
    assert estimate.to_dict() == {
        "value": 0.63312, "low": 0.6211, "high": 0.6449, "n": 80, "method": "by hand",
    }  # fmt: skip


def test_ratio_weighs_prompts_by_their_length():
    estimate = ratio_of_sums([1, 2, 3, 4, 10], [10, 10, 10, 10, 60], np.random.default_rng(0))
    assert estimate.value == pytest.approx(20 / 100)
    assert estimate.n == 5


def test_bootstrap_interval_agrees_with_scipys_bca():
    rng = np.random.default_rng(3)
    sums, lengths, _ = simulated_answers(rng)
    ours = ratio_of_sums(sums, lengths, np.random.default_rng(4), draws=20_000)
    theirs = oracle.bootstrap(
        (sums, lengths), lambda a, b, axis=-1: a.sum(axis) / b.sum(axis),
        paired=True, vectorized=True,
        n_resamples=20_000, method="BCa", rng=np.random.default_rng(5), batch=1000,
    ).confidence_interval  # fmt: skip
    width = theirs.high - theirs.low
    assert abs(ours.low - theirs.low) < 0.05 * width
    assert abs(ours.high - theirs.high) < 0.05 * width


def test_bootstrap_covers_the_true_ratio_as_often_as_it_says():
    rng = np.random.default_rng(11)
    hits = 0
    for _ in range(400):
        sums, lengths, truth = simulated_answers(rng)
        estimate = ratio_of_sums(sums, lengths, rng, draws=400)
        hits += estimate.low <= truth <= estimate.high
    assert within_binomial_limits(hits, 400, 0.95)


def test_naive_interval_over_tokens_would_not_cover():
    """The reason for clusters: tokens of one prompt are not independent."""
    rng = np.random.default_rng(12)
    hits = 0
    for _ in range(400):
        sums, lengths, truth = simulated_answers(rng)
        per_token = np.repeat(sums / lengths, lengths.astype(int))
        half = 1.96 * per_token.std() / math.sqrt(len(per_token))
        hits += abs(per_token.mean() - truth) <= half
    assert hits < 250


def test_paired_difference_covers_zero_when_there_is_none_and_sees_one_when_planted():
    rng = np.random.default_rng(13)
    covered = seen = 0
    for _ in range(300):
        sums, lengths, _ = simulated_answers(rng)
        other = sums + lengths * rng.normal(0, 0.05, size=len(sums))
        null = ratio_difference(other, sums, lengths, rng, draws=300)
        planted = ratio_difference(other + 0.05 * lengths, sums, lengths, rng, draws=300)
        covered += null.low <= 0 <= null.high
        seen += planted.low > 0
    assert within_binomial_limits(covered, 300, 0.95)
    assert seen > 290  # an effect of one standard deviation between 80 prompts
    assert planted.method.startswith("paired difference")


def test_paired_interval_is_narrower_than_either_figure():
    rng = np.random.default_rng(14)
    sums, lengths, _ = simulated_answers(rng)
    gap = ratio_difference(1.1 * sums, sums, lengths, rng)
    alone = ratio_of_sums(sums, lengths, rng)
    assert gap.high - gap.low < 0.5 * (alone.high - alone.low)


def test_same_seed_gives_the_same_interval():
    sums, lengths, _ = simulated_answers(np.random.default_rng(15))
    first, second = (ratio_of_sums(sums, lengths, np.random.default_rng(6)) for _ in range(2))
    assert first == second


def test_bootstrap_counts_in_bounded_memory_for_many_clusters():
    sums = np.ones(30_000)
    sums[0] = 2.0
    estimate = ratio_of_sums(sums, np.ones(30_000), np.random.default_rng(0), draws=300)
    assert estimate.value == pytest.approx(30_001 / 30_000)


def test_a_statistic_of_many_columns_resamples_whole_rows():
    rows = np.random.default_rng(7).random((40, 6))
    estimate = cluster_bootstrap(rows, lambda t: np.abs(t).sum(axis=-1), np.random.default_rng(1))
    assert estimate.value == pytest.approx(rows.sum())
    assert estimate.low < estimate.value < estimate.high


def test_identical_clusters_leave_nothing_uncertain():
    estimate = ratio_of_sums(np.full(8, 3.0), np.full(8, 10.0), np.random.default_rng(0))
    assert (estimate.low, estimate.value, estimate.high) == (0.3, 0.3, 0.3)


@given(st.integers(1, 300), st.data())
@settings(max_examples=60, deadline=None)
def test_share_intervals_agree_with_scipy(trials, data):
    successes = data.draw(st.integers(0, trials))
    exact = oracle.binomtest(successes, trials).proportion_ci(method="exact")
    ours = clopper_pearson(successes, trials)
    assert (ours.low, ours.high) == pytest.approx((exact.low, exact.high), abs=1e-9)
    score = oracle.binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson(successes, trials) == pytest.approx((score.low, score.high), abs=1e-9)


def test_exact_interval_never_covers_less_than_it_says():
    trials = 20
    intervals = [clopper_pearson(k, trials) for k in range(trials + 1)]
    for share in np.linspace(0.01, 0.99, 99):
        inside = [k for k, e in enumerate(intervals) if e.low <= share <= e.high]
        assert oracle.binom.pmf(inside, trials, share).sum() >= 0.95


def test_clustered_share_widens_with_agreement_inside_clusters():
    apart = clustered_share([2, 2, 2, 2, 2, 2], [4] * 6)  # no more alike inside than between
    alike = clustered_share([4, 4, 4, 0, 0, 0], [4] * 6)  # each question always the same
    assert apart.value == alike.value == 0.5
    assert (apart.low, apart.high) == pytest.approx(wilson(12, 24))
    assert (alike.low, alike.high) == pytest.approx(wilson(3, 6))
    assert apart.n == alike.n == 6


def test_clustered_share_of_unanimous_answers_counts_clusters_only():
    estimate = clustered_share([3, 3, 3, 3], [3, 3, 3, 3])
    assert (estimate.low, estimate.high) == pytest.approx(wilson(4, 4))


def test_clustered_share_covers_where_the_plain_one_does_not():
    rng = np.random.default_rng(21)
    hits = plain = 0
    for _ in range(500):
        rates = rng.beta(1.0, 1.0, size=20)
        successes = rng.binomial(6, rates)
        estimate = clustered_share(successes, [6] * 20)
        hits += estimate.low <= 0.5 <= estimate.high
        low, high = wilson(successes.sum(), 120)
        plain += low <= 0.5 <= high
    # rho is estimated from 20 clusters, which costs a little of the nominal 95 %
    assert hits >= oracle.binom.ppf(1e-4, 500, 0.93)
    assert plain < 400


def test_median_interval_is_exact_whatever_the_distribution():
    assert median_estimate([3, 1, 2, 6, 5, 4]).to_dict() | {"method": ""} == {
        "value": 3.5, "low": 1.0, "high": 6.0, "n": 6, "method": "",
    }  # fmt: skip
    rng = np.random.default_rng(31)
    hits = 0
    for _ in range(2000):
        estimate = median_estimate(rng.exponential(size=9))
        hits += estimate.low <= math.log(2) <= estimate.high
    # nine repeats: between the 2nd and the 8th, exactly 1 - 2 (1 + 9) / 512
    assert within_binomial_limits(hits, 2000, 1 - 20 / 512)


def test_too_little_is_refused_not_guessed():
    rng = np.random.default_rng(0)
    for call in (
        lambda: ratio_of_sums([1, 2, 3, 4], [1, 1, 1, 1], rng),
        lambda: ratio_of_sums(np.zeros(9), np.zeros(9), rng),
        lambda: ratio_of_sums([np.inf, *[1.0] * 8], np.ones(9), rng),
        lambda: wilson(0, 0),
        lambda: wilson(3, 2),
        lambda: clopper_pearson(0, 0),
        lambda: clustered_share([1], [1]),
        lambda: clustered_share([2, 0], [1, 5]),
        lambda: median_estimate([1, 2, 3, 4, 5]),
        lambda: median_estimate([1, 2, 3, 4, 5, math.nan]),
    ):
        with pytest.raises(EvidenceError) as caught:
            call()
        assert all(caught.value.args)


def test_bca_shifts_the_interval_of_a_skewed_statistic():
    """Against percentiles of the exact bootstrap distribution: all 5^5 resamples."""
    values = np.array([0.0, 0.1, 0.2, 0.4, 4.0])
    means = np.sort([np.mean(c) for c in itertools.product(values, repeat=5)])
    estimate = ratio_of_sums(values, np.ones(5), np.random.default_rng(2), draws=20_000)
    assert estimate.low > np.quantile(means, 0.025)
    assert estimate.high > np.quantile(means, 0.975)


def test_a_clustered_share_has_an_exact_interval_when_asked() -> None:
    agreeing = clustered_share([4] * 5, [4] * 5, exact=True)
    assert agreeing.low == pytest.approx(0.025 ** (1 / 5))  # five clusters, all of them whole
    assert agreeing.high == 1.0
    alone = clustered_share([1, 0, 1, 1], [1, 1, 1, 1], exact=True)
    exact = clopper_pearson(3, 4)
    assert (alone.low, alone.high) == pytest.approx((exact.low, exact.high))
    assert alone.method.startswith("Clopper-Pearson, clustered by questions")
