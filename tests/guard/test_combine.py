"""P-values together: uniform or larger where nothing is there, small where two families speak."""

from __future__ import annotations

import numpy as np
import pytest

from stillhouse.guard.combine import at_least_two, benjamini_hochberg, bonferroni, tippett


def test_tippetts_minimum_of_two_uniforms_is_uniform() -> None:
    rng = np.random.default_rng(1)
    p = np.array([tippett(a, b) for a, b in rng.random((20_000, 2))])
    for level in (0.001, 0.01, 0.1, 0.5):
        assert abs((p <= level).mean() - level) < 4 * np.sqrt(level / 20_000)
    assert tippett(0.0, 0.5) == 0.0
    assert tippett(1.0, 1.0) == 1.0


@pytest.mark.parametrize("dependence", ["none", "equal", "opposite"])
def test_one_family_alone_is_never_enough(dependence: str) -> None:
    rng = np.random.default_rng(2)
    first = rng.random(20_000)
    others = {"none": rng.random(20_000), "equal": first, "opposite": 1 - first}[dependence]
    p = np.array([at_least_two([1e-12, a, b]) for a, b in zip(first, others, strict=True)])
    for level in (0.01, 0.05, 0.2):
        assert (p <= level).mean() <= level + 4 * np.sqrt(level / 20_000)


def test_two_families_are_enough_and_fewer_than_two_are_none() -> None:
    assert at_least_two([1e-6, 1e-4, 0.9, 0.8]) == pytest.approx(3e-4)
    assert at_least_two([1e-9]) == 1.0
    assert at_least_two([]) == 1.0
    assert bonferroni([]) == 1.0
    assert bonferroni([0.4, 0.02, 0.9]) == pytest.approx(0.06)


def test_q_values_are_benjamini_and_hochbergs() -> None:
    # worked by hand: 0.01 * 4/1, 0.02 * 4/2, 0.03 * 4/3 -> running minimum from the right
    assert benjamini_hochberg([0.03, 0.01, 0.02, 0.9]) == pytest.approx([0.04, 0.04, 0.04, 0.9])
    assert len(benjamini_hochberg([])) == 0


def test_where_nothing_is_there_the_chance_of_any_call_is_the_level() -> None:
    rng = np.random.default_rng(3)
    called = [benjamini_hochberg(rng.random(30)).min() <= 0.05 for _ in range(4000)]
    assert abs(np.mean(called) - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 4000)
