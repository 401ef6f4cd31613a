"""Who is excused, and in which order accounts are listed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from stillhouse.guard.settings import GuardSettings
from stillhouse.guard.verdict import _accounts_table, _excused

NAMES = ["acme\0", "b", "acme", "acme\0\0", "Ä", "a" * 300, "", "\U0001f600", "ﬀ", "B", "acme\0b"]


def population() -> Any:
    names = np.array(NAMES, dtype=object)
    nothing = np.zeros(len(names), dtype=np.uint64)
    traffic = SimpleNamespace(
        names=names, first_known=lambda _: nothing, events_of=np.arange(len(names))
    )
    return SimpleNamespace(traffic=traffic)


def test_a_name_with_a_nul_at_its_end_is_another_name() -> None:
    settings = GuardSettings(allow_accounts=("acme", "nobody"))
    assert [NAMES[i] for i in np.flatnonzero(_excused(population(), settings))] == ["acme"]
    assert not _excused(population(), GuardSettings()).any()


def test_accounts_are_listed_in_order_of_their_names() -> None:
    numbers, words = np.zeros(len(NAMES)), np.full(len(NAMES), "allow", dtype=object)
    membership: Any = SimpleNamespace(score=numbers)
    table = _accounts_table(population(), membership, numbers, words, words)
    assert table["account"].to_pylist() == sorted(NAMES)
    plain = [name for name in NAMES if not name.endswith("\0")]  # the order it always had
    kept = [name for name in table["account"].to_pylist() if name in plain]
    assert kept == np.sort(np.array(plain)).tolist()
