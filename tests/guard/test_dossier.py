"""What a campaign's entry says of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stillhouse.guard.dossier import capability_of
from stillhouse.guard.events import CAPABILITIES, SHAPES


def cluster_of(mine: list[tuple[str, ...]], others: list[tuple[str, ...]]) -> Any:
    """A cluster of events that have shapes, the strongest first, among others' events."""
    rows = mine + others
    columns = {
        "capability": np.array([CAPABILITIES.index(r[0]) if r else 0 for r in rows], np.uint8),
        "shape": np.array([sum(1 << SHAPES.index(s) for s in row) for row in rows], np.uint16),
    }
    traffic = SimpleNamespace(columns=columns)
    return SimpleNamespace(population=SimpleNamespace(traffic=traffic), events=np.arange(len(mine)))


OTHERS = [()] * 800 + [("code",)] * 100 + [("data_analysis",)] * 40 + [("vision",)] * 60


@pytest.mark.parametrize(
    ("mine", "named"),
    [
        ([("code",)] * 80 + [()] * 20, "code"),
        ([("rubric_grading",)] * 5 + [()] * 95, "rubric_grading"),
        ([("rubric_grading",)] * 4 + [()] * 96, "other"),  # too few to say
        ([("code",)] * 20 + [()] * 80, "other"),  # as many write code anyway
        ([("code", "data_analysis")] * 60 + [("code",)] * 40, "data_analysis"),
        ([("code", "data_analysis")] * 30 + [("code",)] * 70, "code"),
        ([()] * 100, "other"),
    ],
)
def test_a_capability_is_what_events_lean_to(mine: list[tuple[str, ...]], named: str) -> None:
    assert capability_of(cluster_of(mine, OTHERS)) == named
