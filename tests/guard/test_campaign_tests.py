"""The tests of one cluster: uniform p-values for random groups, small ones for a controller."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stillhouse.guard.campaign_tests import (
    Effort,
    Finding,
    family_p_values,
    load_balance,
    model_switch,
    profile_tests,
    seen_again,
    shared_test,
    successions,
)
from stillhouse.guard.keys import CONTENT, ONBOARDING, STATIC, shared_keys
from stillhouse.guard.population import Population, populate
from stillhouse.guard.profiles import Streams
from stillhouse.guard.reference import Reference
from stillhouse.guard.settings import GuardSettings
from stillhouse.guard.traffic import read_traffic
from tests.guard.traffic_writer import Traffic

GROUPS = 250


@pytest.fixture(scope="module")
def population(tmp_path_factory: pytest.TempPathFactory) -> Population:
    """Nobody but unrelated people, and a campaign to look at."""
    week = Traffic(11)
    week.benign(1500, mean=20)
    week.campaign(40, cover=0.5, shared=True)
    week.campaign(60, cover=0.3, lifetime=1.5, name="rotating")
    folder = week.write(tmp_path_factory.mktemp("null"))
    return populate(read_traffic(folder), GuardSettings())


def kinds(population: Population) -> np.ndarray:
    names = population.traffic.names.astype(str)
    number = np.array([int(name[1:]) for name in names])
    return np.where(number < 1500, "benign", np.where(number < 1540, "campaign", "rotating"))


def reference_of(population: Population, free: np.ndarray) -> Reference:
    tables = {
        "infrastructure": shared_keys(population, STATIC, None, fewest=2),
        "onboarding": shared_keys(population, ONBOARDING, None, fewest=2),
        "content": shared_keys(population, CONTENT, population.testing, fewest=2, payloads=True),
    }
    streams = Streams(population, np.flatnonzero(population.testing))
    return Reference(population, streams, free, tables)


def effort(seed: int, draws: int = 99) -> Effort:
    """Without bars for the effect: what is looked at are the p-values themselves."""
    bars = GuardSettings(
        most_tested=60, same_schedule=1e-9, even_load=1e9, counted=0, sharing=0, cohesion=0
    )
    return Effort(bars, draws, np.random.default_rng(seed), (seed,))


@pytest.fixture(scope="module")
def null_p_values(population: Population) -> dict[str, np.ndarray]:
    """Test -> p-values of random groups of benign customers."""
    rng = np.random.default_rng(1)
    kind = kinds(population)
    benign = np.zeros(population.customers, dtype=bool)
    benign[population.customer_of[kind == "benign"]] = True
    everybody = reference_of(population, benign)
    found: dict[str, list[float]] = {}
    for number in range(GROUPS):
        members = np.sort(rng.choice(np.flatnonzero(benign), 25, replace=False))
        events = np.flatnonzero(np.isin(population.customer, members))
        streams, reference = Streams(population, events), everybody.without(members)
        findings = [
            *profile_tests(streams, reference, effort(number)),
            *load_balance(streams, reference, effort(number)),
            *shared_test("infrastructure", members, reference, effort(number)),
            *shared_test("content", members, reference, effort(number)),
            *successions(members, reference, effort(number)),
        ]
        for finding in findings:
            found.setdefault(f"{finding.test}, {finding.family}", []).append(finding.p_value)
        found.setdefault("families: timing", []).append(family_p_values(findings)["timing"])
    return {test: np.array(p) for test, p in found.items()}


@pytest.mark.parametrize(("test", "ties"), [
    ("one schedule, timing", False), ("narrow focus, content", False),
    ("task in common, content", False), ("load balance, timing", False),
    ("families: timing", False), ("keys in common, content", False),
    ("few repeats, content", True), ("keys in common, infrastructure", True),
    ("hand-overs, succession", True),
])  # fmt: skip
def test_p_values_of_random_groups_are_uniform_and_with_ties_no_smaller(
    null_p_values: dict[str, np.ndarray], test: str, ties: bool
) -> None:
    p = null_p_values[test]
    assert len(p) > (0.5 if ties else 0.9) * GROUPS
    for level in (0.05, 0.1, 0.3, 0.5, 0.8)[: 4 if ties else 5]:
        bound = 4 * np.sqrt(level * (1 - level) / len(p))
        beyond = (p <= level).mean() - level
        assert (-1 if ties else -bound) < beyond < bound, level


def test_a_controllers_accounts_keep_one_schedule_an_even_load_and_common_payments(
    population: Population,
) -> None:
    members = np.unique(population.customer_of[kinds(population) == "campaign"]).astype(np.int64)
    capability = population.traffic.columns["capability"] == 1
    events = np.flatnonzero(np.isin(population.customer, members) & capability)
    reference = reference_of(population, np.ones(population.customers, dtype=bool))
    reference, streams = reference.without(members), Streams(population, events)
    rng = np.random.default_rng(1)
    strong = Effort(GuardSettings(most_tested=60, counted=0), 999, rng, (1,))
    found = {
        (f.family, f.test): f
        for f in [
            *profile_tests(streams, reference, strong), *load_balance(streams, reference, strong),
            *shared_test("infrastructure", members, reference, strong),
            *shared_test("onboarding", members, reference, strong),
        ]
    }  # fmt: skip
    assert found["timing", "one schedule"].p_value == 0.001
    assert found["timing", "one schedule"].effect > 0.8 > found["timing", "one schedule"].typical
    assert found["timing", "load balance"].p_value == 0.001
    assert found["timing", "load balance"].effect < 0.3
    assert found["infrastructure", "keys in common"].p_value == 0.001
    assert found["onboarding", "keys in common"].p_value == 0.001


@pytest.mark.parametrize(("shared", "together"), [
    ({"network", "payment"}, False),  # an office
    ({"network"}, False),
    ({"payment"}, True),  # one card for accounts everywhere
    ({"pools"}, True),
])  # fmt: skip
def test_one_place_and_a_network_in_common_are_no_shared_infrastructure(
    tmp_path: Path, shared: set[str], together: bool
) -> None:
    week = Traffic(13)
    week.benign(900, mean=20)
    one = {name: np.full(40, 77, dtype=np.uint64) for name in shared - {"pools"}}
    four = np.repeat([1, 2, 3, 4], 10).astype(np.uint64)
    pools = {"address": four, "network": four + np.uint64(9)} if not one else {}
    ids = week.people(40, "together", **one, **pools)
    owner = np.repeat(ids, 20)
    week.add(owner, week.human_times(owner))
    population = populate(read_traffic(week.write(tmp_path)), GuardSettings())
    at = np.array([int(name[1:]) >= 900 for name in population.traffic.names.astype(str)])
    members = np.unique(population.customer_of[at]).astype(np.int64)
    reference = reference_of(population, np.ones(population.customers, dtype=bool))
    rng = np.random.default_rng(1)
    bars = Effort(GuardSettings(), 999, rng, (1,))
    (found,) = shared_test("infrastructure", members, reference.without(members), bars)
    assert (found.p_value <= 0.001) == together
    assert found.effect > found.typical


def test_customers_who_send_again_no_more_than_others_do_are_no_template(
    population: Population,
) -> None:
    everybody = reference_of(population, np.ones(population.customers, dtype=bool))
    rng = np.random.default_rng(5)
    again = np.flatnonzero(rng.random(population.customers) < 0.3)
    p = []
    for _ in range(GROUPS):
        members = np.sort(rng.choice(population.customers, 25, replace=False))
        (found,) = seen_again(members, again, everybody.without(members))
        p.append(found.p_value)
    for level in (0.05, 0.1, 0.3, 0.5):  # ties make it larger, never smaller
        assert np.mean(np.array(p) <= level) < level + 4 * np.sqrt(level * (1 - level) / GROUPS)
    (found,) = seen_again(again[:25], again, everybody.without(again[:25]))
    assert (found.p_value < 1e-12, found.effect) == (True, 1.0)


def test_the_p_value_of_sending_again_is_the_share_of_drawn_groups(population: Population) -> None:
    rng, draws = np.random.default_rng(6), 20_000
    again = np.flatnonzero(rng.random(population.customers) < 0.3)
    members = np.sort(rng.choice(population.customers, 25, replace=False))
    reference = reference_of(population, np.ones(population.customers, dtype=bool)).without(members)
    (found,) = seen_again(members, again, reference)
    size = population.size_class
    groups = reference.by_size.matching(members, [size[members]]).draw(draws, rng)
    sent = np.isin(groups, again).sum(axis=1)
    share = np.mean(sent >= np.isin(members, again).sum())
    assert 0.05 < share < 0.95
    assert abs(found.p_value - share) < 4 * np.sqrt(share * (1 - share) / draws)
    assert found.typical * 25 == pytest.approx(np.median(sent))


def test_accounts_that_follow_those_that_fell_silent_are_seen(population: Population) -> None:
    members = np.unique(population.customer_of[kinds(population) == "rotating"]).astype(np.int64)
    reference = reference_of(population, np.ones(population.customers, dtype=bool))
    (found,) = successions(members, reference.without(members), effort(1, 999))
    assert found.p_value <= 0.01
    assert found.effect > found.typical


def test_taking_up_a_new_model_together_is_told_from_a_rush_on_its_release(tmp_path: Path) -> None:
    week = Traffic(12)
    week.benign(900, mean=40)
    week.release(share=0.5)
    week.campaign(40, cover=0.3, per_day=60)
    mine = week.parts[-2]  # its own events, not its cover
    mine["model"] = np.where(mine["time"] > 4.5 * 86_400, "new", mine["model"])
    population = populate(read_traffic(week.write(tmp_path)), GuardSettings())
    number = np.array([int(name[1:]) for name in population.traffic.names.astype(str)])
    reference = reference_of(population, np.ones(population.customers, dtype=bool))
    for ours, together in ((number >= 900, True), (number < 60, False)):
        members = np.unique(population.customer_of[ours]).astype(np.int64)
        (found,) = model_switch(members, reference.without(members), effort(3, 999))
        assert (found.p_value <= 0.002) == together


def test_models_of_single_customers_are_no_new_model(tmp_path: Path) -> None:
    """A fine-tune each: 33,000 names, more than 16 bits hold, and no memory for each."""
    week = Traffic(5)
    owner = np.repeat(week.benign(3000, mean=2), 11)
    time = 2 * 86_400 + week.rng.uniform(0, 4 * 86_400, len(owner))
    week.add(owner, time, model=np.array([f"ft-{i}" for i in range(len(owner))]))
    population = populate(read_traffic(week.write(tmp_path)), GuardSettings())
    everybody = np.ones(population.customers, dtype=bool)
    assert reference_of(population, everybody).switches is None


def test_a_new_model_taken_up_together_is_told_and_decides_nothing() -> None:
    load = Finding("timing", "load balance", 0.5, 1.0, 1.0, 10)
    schedule = Finding("timing", "one schedule", 0.4, 1.0, 1.0, 10)
    switch = Finding("timing", "new model", 1e-5, 0.9, 0.1, 10)
    weak = replace(switch, p_value=1.0)
    assert family_p_values([load, schedule, switch]) == family_p_values([load, schedule, weak])
    assert family_p_values([switch]) == {"timing": 1.0}


def test_too_few_customers_or_too_few_others_are_not_tested(population: Population) -> None:
    few = np.arange(3)
    everybody = reference_of(population, np.ones(population.customers, dtype=bool))
    nobody = reference_of(population, np.arange(population.customers) < 50)
    for members, reference in ((few, everybody), (np.arange(100, 140), nobody)):
        events = np.flatnonzero(np.isin(population.customer, members))
        streams = Streams(population, events)
        assert profile_tests(streams, reference, effort(1)) == []
        assert load_balance(streams, reference, effort(1)) == []
        assert shared_test("infrastructure", members, reference, effort(1)) == []
        assert model_switch(members, reference, effort(1)) == []
        assert successions(members, reference, effort(1)) == []
    empty = shared_keys(population, STATIC, np.zeros(len(population.traffic), dtype=bool), fewest=2)
    bare = Reference(population, everybody.streams, everybody.open, {"infrastructure": empty})
    assert shared_test("infrastructure", np.arange(100, 140), bare, effort(1)) == []


def test_rows_are_thinned_to_equal_numbers_and_count_what_they_say(population: Population) -> None:
    streams = Streams(population, np.arange(len(population.traffic)))
    at, rows = streams.rows(8)
    layout = streams.layout
    assert (streams.counts[at] >= 8).all()
    bins = rows[:, : layout.bins]
    assert (bins.sum(axis=1) == 8).all()
    assert (rows[:, layout.capabilities].sum(axis=1) == 8).all()
    assert (rows[:, layout.same_bin] == (bins * (bins - 1)).sum(axis=1)).all()
    assert rows[:, layout.repeats].max() <= 7


def test_the_folder_that_was_written_is_read_back_whole(tmp_path: Path) -> None:
    week = Traffic(3)
    week.benign(60)
    traffic = read_traffic(week.write(tmp_path))
    assert len(traffic) == sum(len(p["time"]) for p in week.parts)
    assert (np.diff(traffic.account) >= 0).all()
    assert traffic.events_of.sum() == len(traffic)
