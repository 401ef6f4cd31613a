"""Random groups: matched, without repeats, and p-values that are uniform on null data."""

from __future__ import annotations

import numpy as np
import pytest

from stillhouse.guard.draws import Candidates, Groups, count_p_values


def test_p_values_are_uniform_where_the_group_is_a_random_one() -> None:
    rng = np.random.default_rng(1)
    found: list[float] = []
    for _ in range(600):
        values = rng.lognormal(0, 1.5, 300)
        rows = rng.permutation(300)
        members, others = rows[:12], rows[12:]
        groups = Candidates(others, []).matching(members, [])
        counted = count_p_values(
            groups, members, lambda i, v=values: v[i].sum(axis=1)[:, None], 99, rng
        )
        found.append(float(counted.p_values[0]))
    p = np.array(found)
    for level in (0.05, 0.2, 0.5, 0.8):
        assert abs((p <= level).mean() - level) < 4 * np.sqrt(level * (1 - level) / len(p))


@pytest.mark.parametrize(("candidates", "count"), [(50, 40), (200, 40), (5000, 40)])
def test_every_row_is_drawn_equally_often(candidates: int, count: int) -> None:
    rng = np.random.default_rng(2)
    drawn = Groups(((count, np.arange(candidates)),)).draw(4000, rng)
    expected = 4000 * count / candidates
    times = np.bincount(drawn.ravel(), minlength=candidates)
    assert abs(times - expected).max() < 6 * np.sqrt(expected)
    if candidates < 20 * count:
        assert all(len(set(row)) == count for row in drawn[:200].tolist())


def test_groups_match_the_members_traits_where_there_are_candidates() -> None:
    rng = np.random.default_rng(3)
    phase, kind = rng.integers(0, 3, 900), rng.integers(0, 2, 900)
    kind[phase == 2] = 0  # nobody of kind 1 in phase 2
    members = np.array([900, 901, 902, 903])
    traits = [np.array([0, 1, 2, 2]), np.array([0, 1, 0, 1])]
    groups = Candidates(np.arange(900), [phase, kind]).matching(members, traits)
    drawn = groups.draw(500, rng)
    drawn = drawn[(drawn < 900).all(axis=1)]
    phases = np.sort(phase[drawn], axis=1)
    assert (phases == np.array([0, 1, 2, 2])).all()
    assert groups.size == 4


def test_values_with_too_few_candidates_are_joined_to_their_neighbours() -> None:
    volume = np.repeat([0, 1, 2, 3], [100, 5, 50, 3])
    candidates = Candidates(np.arange(158), [volume])
    members = np.array([200, 201, 202, 203, 204])
    groups = candidates.matching(members, [np.array([0, 1, 2, 3, 9])])
    found = {tuple(sorted(set(rows.tolist()) - set(members.tolist()))) for _, rows in groups.strata}
    assert found == {tuple(range(100)), tuple(range(100, 158))}
    assert sorted(count for count, _ in groups.strata) == [1, 4]
