"""Rows of records: what is remembered between them changes nothing."""

from __future__ import annotations

import ipaddress
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.guard.rows import Rows, network_of
from stillhouse.log_records import LogRecord
from tests.guard.conftest import KEY
from tests.guard.log_lines import START

_NAMES = st.sampled_from([None, "", "a", "b", "10.0.0.1", "10.0.0.1, 10.9.9.9", "x" * 2000])
_NUMBERS = st.sampled_from([None, 0, 1, 0.7, True, "1", 1e31, 10**400, [1]])
_RECORDS = st.builds(
    LogRecord,
    account=st.just("acct"), time_us=st.just(int(START * 1e6)), organisation=_NAMES,
    address=_NAMES, user_agent=_NAMES, payment=_NAMES, device=_NAMES, channel=_NAMES,
    parameters=st.none() | st.dictionaries(
        st.sampled_from(["temperature", "top_p", "max_tokens", "seed", "x" * 2000]), _NUMBERS
    ),
)  # fmt: skip


def _rows_of(records: list[tuple[int, LogRecord]]) -> list[dict[str, Any]]:
    rows = Rows(KEY)
    for number, record in records:
        rows.add(record, 0, number)
    return sorted(rows.batch().to_pylist(), key=lambda row: row["offset"])


@settings(deadline=None, max_examples=40)
@given(records=st.lists(_RECORDS, min_size=1, max_size=8))
def test_a_record_gives_the_same_row_whatever_came_before(records: list[LogRecord]) -> None:
    numbered = list(enumerate(records))
    assert _rows_of(numbered) == _rows_of(numbered[::-1])


_OCTETS = st.sampled_from(["0", "00", "1", "09", "10", "99", "255", "256", "1000", "", "٣"])


@given(address=st.lists(_OCTETS, min_size=3, max_size=5).map(".".join) | st.text(max_size=12))
def test_networks_are_those_of_the_standard_library(address: str) -> None:
    try:
        whole = ipaddress.ip_network(f"{ipaddress.IPv4Address(address)}/24", strict=False)
    except ValueError:
        whole = None
    if whole is not None or ":" not in address:
        assert network_of(address) == (None if whole is None else str(whole))
