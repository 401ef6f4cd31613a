"""Which clusters are parts of others: those of the same customers, whatever they say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from stillhouse.guard.evidence import Evidence
from stillhouse.guard.joining import _with_parts  # pyright: ignore[reportPrivateUsage]


def cluster(p_value: float, customers: range) -> Evidence:
    held: Any = SimpleNamespace(customers=np.array(customers), founders=len(customers))
    return Evidence(cast(Any, held), [], {}, p_value, q_value=p_value)


def test_a_cluster_of_a_stronger_ones_customers_is_a_part_of_it() -> None:
    campaign, other = cluster(1e-5, range(100)), cluster(2e-5, range(100, 150))
    part, bridge = cluster(3e-5, range(10, 30)), cluster(4e-5, range(80, 120))
    wholes = _with_parts([bridge, part, other, campaign])
    assert wholes == [[campaign, part], [other], [bridge]]


def test_of_equal_evidence_the_largest_cluster_is_the_whole() -> None:
    small, large = cluster(1e-5, range(20)), cluster(1e-5, range(100))
    assert _with_parts([small, large]) == [[large, small]]
