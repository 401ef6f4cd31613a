"""Reading events: sketches, customers, halves, keys."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.errors import DataError
from stillhouse.guard.hashing import distinct_per_group, mixed_with
from stillhouse.guard.keys import CONTENT, event_keys, shared_keys
from stillhouse.guard.population import populate
from stillhouse.guard.settings import GuardSettings
from stillhouse.guard.traffic import HOUR, read_traffic
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


def moved(folder: Path, rows: dict[int, datetime]) -> None:
    """Give some events of a folder's first part other times."""
    path = min(folder.glob("part-*.parquet"))
    table = pq.read_table(path)
    times = table["time"].to_pylist()
    for row, time in rows.items():
        times[row] = time
    column = pa.array(times, table.schema.field("time").type)
    at = table.column_names.index("time")
    pq.write_table(table.set_column(at, "time", column), path)


def test_a_clock_that_was_wrong_once_does_not_stretch_the_window(tmp_path: Path) -> None:
    folder = small(days=7).write(tmp_path)
    before = read_traffic(folder)
    moved(folder, {0: datetime(2020, 1, 1, tzinfo=UTC)})
    traffic = read_traffic(folder)
    assert len(before) >= 1000
    assert (traffic.strays, len(traffic)) == (1, len(before) - 1)
    assert traffic.span[1] == before.span[1]
    assert traffic.span[0] - before.span[0] < 24 * HOUR
    assert len(traffic.names) == len(np.unique(traffic.account))


def test_days_without_traffic_are_no_stray_clock(tmp_path: Path) -> None:
    folder = small(days=7).write(tmp_path)
    count = len(read_traffic(folder))
    old = datetime(2020, 1, 1, tzinfo=UTC)
    moved(folder, dict.fromkeys(range(count // 100), old))
    assert read_traffic(folder).strays == 0


def test_the_last_days_only(tmp_path: Path) -> None:
    folder = small(days=7).write(tmp_path)
    whole, last = read_traffic(folder), read_traffic(folder, days=2)
    assert 0 < len(last) == len(whole) - last.older
    begins = whole.span[1] - 2 * 24 * HOUR
    assert len(last) == (whole.time >= begins).sum()
    rows = last.columns["row"][:5].astype(np.int64)
    again = np.concatenate([
        pq.read_table(path, columns=["offset"])["offset"].to_numpy() for path, _ in last.parts
    ])  # fmt: skip
    assert (again[rows] == last.columns["offset"][:5]).all()


@pytest.mark.parametrize("days", [None, 2, 0.5])
def test_days_that_are_left_out_are_as_if_they_had_been_read(
    tmp_path: Path, days: float | None
) -> None:
    """Accounts and models of older days, whole older parts and a stray included."""
    folder = small(days=7).write(tmp_path, parts=3)
    moved(folder, {0: datetime(2020, 1, 1, tzinfo=UTC)})
    paths = sorted(folder.glob("part-*.parquet"))
    table = pa.concat_tables([pq.read_table(path) for path in paths]).sort_by("time")
    times = table["time"].cast(pa.int64()).to_numpy()
    for path, place in zip(paths, np.array_split(np.arange(len(times)), len(paths)), strict=True):
        pq.write_table(table.take(pa.array(place)), path)
    found = read_traffic(folder, days)
    begins = times[1] if days is None else times[-1] - days * 24 * HOUR
    inside = times >= begins
    (tmp_path / "alone").mkdir()
    pq.write_table(table.filter(pa.array(inside)), tmp_path / "alone" / "part-00000.parquet")
    alone = read_traffic(tmp_path / "alone")
    assert (found.strays, found.older) == (1, int((~inside).sum()) - 1)
    assert (found.names == alone.names).all()
    assert found.models == alone.models
    for ours, theirs in ((found.account, alone.account), (found.time, alone.time),
                         (found.fingerprint, alone.fingerprint)):  # fmt: skip
        assert ours.dtype == theirs.dtype
        assert (ours == theirs).all()
    assert found.columns.keys() == alone.columns.keys()
    for name, column in found.columns.items():
        other = alone.columns[name] + np.flatnonzero(inside)[0] * (name == "row")
        assert (column == other).all(), name
    events = np.arange(0, len(found), 7)
    assert (found.sketches(events) == alone.sketches(events)).all()


def test_parts_before_the_days_are_not_loaded(tmp_path: Path, monkeypatch: Any) -> None:
    folder = small(days=7).write(tmp_path, parts=1)
    table = pq.read_table(folder).sort_by("time")
    half = len(table) // 2
    for number, part in enumerate((table.slice(0, half), table.slice(half))):
        pq.write_table(part, folder / f"part-{number:05d}.parquet")
    read, asked = pq.read_table, []

    def noted(path: Path, columns: list[str]) -> pa.Table:
        asked.append((path.name, len(columns)))
        return read(path, columns=columns)

    monkeypatch.setattr(pq, "read_table", noted)
    read_traffic(folder, days=0.5)
    assert [name for name, columns in asked if columns > 1] == ["part-00001.parquet"]
