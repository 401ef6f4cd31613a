"""Reading events: sketches, customers, halves, keys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.errors import DataError
from stillhouse.guard.hashing import distinct_per_group, mixed_with
from stillhouse.guard.keys import CONTENT, event_keys, shared_keys
from stillhouse.guard.population import populate
from stillhouse.guard.settings import GuardSettings
from stillhouse.guard.traffic import read_traffic
from tests.guard.traffic_writer import Traffic


def small(seed: int = 1, days: float = 7.0) -> Traffic:
    week = Traffic(seed, days)
    week.benign(80)
    week.campaign(10, cover=0.2)
    return week


def test_sketches_are_read_again_in_the_order_of_the_events(tmp_path: Path) -> None:
    week = small()
    traffic = read_traffic(week.write(tmp_path, parts=4))
    table = pq.read_table(tmp_path)
    columns = (table["offset"].to_pylist(), table["sketch"].to_pylist())
    rows = dict(zip(*columns, strict=True))
    events = np.random.default_rng(1).choice(len(traffic), 50, replace=False)
    for event, sketch in zip(events, traffic.sketches(events), strict=True):
        assert sketch.tolist() == rows[int(traffic.columns["offset"][event])]


def test_parts_that_change_while_a_scan_runs_are_refused(tmp_path: Path) -> None:
    traffic = read_traffic(small().write(tmp_path, parts=1))
    path = tmp_path / "part-00000.parquet"
    pq.write_table(pq.read_table(path).slice(0, 10), path)
    with pytest.raises(DataError, match="another number of events"):
        traffic.sketches(np.arange(5))


def test_a_sketch_of_zeros_links_nobody(tmp_path: Path) -> None:
    week = small()
    for part in week.parts:
        part["sketch"] = np.zeros_like(part["sketch"])
    traffic = read_traffic(week.write(tmp_path))
    assert not traffic.columns["bands"].any()


def test_accounts_of_an_organisation_or_of_one_payment_are_one_customer(tmp_path: Path) -> None:
    week = Traffic(2)
    week.benign(50)
    week.service(6, mean=20)
    week.office(10)
    traffic = read_traffic(week.write(tmp_path))
    assert populate(traffic, GuardSettings()).customers == 52
    apart = populate(traffic, GuardSettings(one_customer_accounts=0))
    assert apart.customers == 61  # the organisation is declared, the payment is not


def test_many_accounts_of_one_payment_are_evidence_and_no_customer(tmp_path: Path) -> None:
    week = Traffic(3)
    week.office(30)
    assert populate(read_traffic(week.write(tmp_path)), GuardSettings()).customers == 30


@pytest.mark.parametrize(("days", "hours"), [(7.0, 24), (1.5, 6), (0.3, 1)])
def test_both_halves_hold_about_half_of_the_events(
    tmp_path: Path, days: float, hours: float
) -> None:
    week = Traffic(4, days)
    week.campaign(30)  # evenly over the window
    population = populate(read_traffic(week.write(tmp_path)), GuardSettings())
    assert population.block_hours == hours
    assert 0.35 < population.testing.mean() < 0.65
    assert ((population.bin >= 0) == population.testing).all()
    assert population.bin.max() == population.bins - 1


def test_keys_and_their_customers_are_counted_as_a_dictionary_would(tmp_path: Path) -> None:
    population = populate(read_traffic(small(5).write(tmp_path)), GuardSettings())
    table = shared_keys(population, CONTENT, None, fewest=3, payloads=True)
    whole = population.traffic.columns["whole"]
    for kind in ("head", "band3"):
        has: dict[int, dict[int, set[int]]] = {}
        for key, customer, payload in zip(
            event_keys(population, kind, None).tolist(), population.customer.tolist(),
            whole.tolist(), strict=True,
        ):  # fmt: skip
            if key:
                has.setdefault(key, {}).setdefault(customer, set()).add(payload)
        wanted = {
            key: (
                len(customers),
                len(set().union(*customers.values())),
                sum(map(len, customers.values())),
            )
            for key, customers in has.items()
            if len(customers) >= 3
        }
        ours = table.chosen(table.kind == CONTENT.index(kind))
        found = {
            int(key): (int(ours.customers[i]), int(ours.payloads[i]), int(ours.owned[i]))
            for i, key in enumerate(ours.keys)
        }
        assert found == wanted


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 20)), max_size=60))
def test_distinct_values_are_counted_per_group(pairs: list[tuple[int, int]]) -> None:
    group = np.array([g for g, _ in pairs], dtype=np.int64)
    values = np.array([v for _, v in pairs], dtype=np.uint64)
    expected = [len({v for g, v in pairs if g == number}) for number in range(6)]
    assert distinct_per_group(group, values, 6).tolist() == expected


def test_more_groups_than_a_packed_number_holds_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        distinct_per_group(np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.uint64), (1 << 24) + 1)


def test_nothing_stays_nothing_when_hashes_are_mixed() -> None:
    mixed = mixed_with(np.array([0, 1, 2], dtype=np.uint64), 7)
    assert mixed[0] == 0
    assert len(set(mixed.tolist())) == 3
