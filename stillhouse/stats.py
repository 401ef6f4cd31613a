"""Numbers with their uncertainty: an `Estimate` never travels without its interval and n.

In: arrays of per-prompt figures. Out: `Estimate`s. Nothing here knows what the figures mean.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

__all__ = ["Estimate"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number, its interval, how many independent units it rests on, and how the interval was made."""

    value: float
    low: float
    high: float
    n: int
    method: str
    """E.g. 'bootstrap over prompts, 2000 draws, 95 %'."""

    def __str__(self) -> str:
        """`0.633 [0.621, 0.645] (n = 80)`."""
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}] (n = {self.n})"

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return dataclasses.asdict(self)
