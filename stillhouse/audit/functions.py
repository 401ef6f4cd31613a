"""The evidence function of each test, by the name that plans give: what verification recomputes.

In: nothing. Out: a mapping. Importing this needs neither torch nor a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stillhouse.audit import identity, radioactivity, twin

__all__ = ["FUNCTIONS", "EvidenceFunction"]

EvidenceFunction = Callable[
    [Mapping[str, Any], Mapping[str, Sequence[Mapping[str, Any]]], Mapping[str, Any]],
    dict[str, Any],
]
"""(plan, raw lines by file name, revealed secrets) -> evidence; pure and deterministic."""

FUNCTIONS: Mapping[str, EvidenceFunction] = {
    "twin": twin.evidence,
    "watermark": radioactivity.evidence,
    "identity": identity.evidence,
}
