"""Where each mark of an audit's plots stands, in percent of its frame.

In: differences, counts, shares. Out: plain numbers for the template, which draws them as inline SVG
that stretches with the page and as labels in HTML that do not (a picture with text in it, as Vega
draws it for the run's report, is unreadable on a phone where it is wide enough for 500 bars).
Nothing here tests or concludes: what innocence looks like is drawn from the binomial that the tests
use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stillhouse.exact import binomial_tail
from stillhouse.pages import signed

__all__ = ["decoy_plot", "difference_bars", "innocent_counts", "interval_scale", "within"]

# A bar this many times longer than nine of ten others is cut at the frame, and the page says so:
# one pair in which a suspect held an answer all but impossible would flatten all others. Ours.
_LONGEST = 4.0

_POINTS = 160  # of a drawn bell
_BELL = 4.5  # standard deviations of it that are drawn
_CENTRAL = 0.95


def within(value: float, low: float, high: float) -> float:
    """The place of a value between two ends, in percent, held inside the frame."""
    return round(100 * min(1.0, max(0.0, (value - low) / ((high - low) or 1.0))), 3)


def interval_scale(
    estimate: Mapping[str, Any],
    *,
    ends: tuple[float, float] = (0.0, 1.0),
    mark: float | None = None,
) -> dict[str, Any]:
    """Places of a value, of its interval and of one value marked beside them."""
    low, high = (within(estimate[side], *ends) for side in ("low", "high"))
    return {
        "at": within(estimate["value"], *ends),
        "low": low,
        "width": round(high - low, 3),
        "mark": None if mark is None else within(mark, *ends),
    }


# ---- every paired difference ----


def difference_bars(differences: Mapping[str, float], unit: str) -> dict[str, Any]:
    """One bar for each pair, sorted; the zero line lies in the middle, so that sides compare.

    A bar has its place and width in pairs, its top and height in percent, and its figure in words.
    """
    rows = sorted(differences.items(), key=lambda row: (row[1], row[0]))
    sizes = sorted(abs(value) for value in differences.values())
    usual = sizes[math.ceil(0.9 * len(sizes)) - 1]
    reach = min(sizes[-1], _LONGEST * usual) or sizes[-1] or 1.0
    bars: list[dict[str, Any]] = []
    for place, (name, value) in enumerate(rows):
        height = 50 * min(1.0, abs(value) / reach)
        bars.append(
            {
                "x": place, "top": round(50 - height if value > 0 else 50, 3),
                "height": round(height, 3),
                "side": "served" if value > 0 else "twin" if value < 0 else "none",
                "says": f"{name}: {signed(value, 'nats')} {unit}" if value else f"{name}: 0",
            }
        )  # fmt: skip
    up, down = (sum(bar["side"] == side for bar in bars) for side in ("served", "twin"))
    return {
        "bars": bars, "n": len(bars), "up": up, "down": down, "zeros": len(bars) - up - down,
        "width": 0.8 if len(bars) <= 250 else 1.0, "reach": reach, "unit": unit,
        "cut": sum(size > reach for size in sizes), "furthest": sizes[-1],
        "down_share": within(down, 0, len(bars)), "up_share": within(up, 0, len(bars)),
    }  # fmt: skip


# ---- what innocence looks like ----


def innocent_counts(observed: int, n: int) -> dict[str, Any]:
    """How many of `n` fair coins show heads, as a bell and its central 95 %, with what was seen."""
    low = _quantile((1 - _CENTRAL) / 2, n, 0.5)
    spread = math.sqrt(n) / 2
    return {
        "n": n, "observed": observed, "at": within(observed, 0, n),
        "bell": _bell(n / 2, spread, (0, n)), "low": low, "high": n - low,
        "band": _bell(n / 2, spread, (0, n), between=(low, n - low)),
        "inside": low <= observed <= n - low,
    }  # fmt: skip


def _quantile(tail: float, n: int, chance: float) -> int:
    """The largest k with P(X < k) <= tail, for X binomial."""
    low, high = 0, n
    while low < high:
        middle = (low + high + 1) // 2
        if 1 - binomial_tail(middle, n, chance) <= tail:
            low = middle
        else:
            high = middle - 1
    return low


def _bell(
    mean: float, spread: float, frame: tuple[float, float],
    *, between: tuple[float, float] | None = None,
) -> str:  # fmt: skip
    """A normal curve, or its part between two values, as the points of an SVG polygon in a frame
    of 1000 by 100.
    """
    low, high = frame
    reach = between or (mean - _BELL * spread, mean + _BELL * spread)
    start, end = max(low, reach[0]), min(high, reach[1])
    points: list[str] = []
    for step in range(_POINTS + 1):
        x = start + (end - start) * step / _POINTS
        y = 100 - 96 * math.exp(-0.5 * ((x - mean) / spread) ** 2)
        points.append(f"{10 * within(x, low, high):.2f},{y:.2f}")
    first, last = (10 * within(x, low, high) for x in (start, end))
    return " ".join([f"{first:.2f},100", *points, f"{last:.2f},100"])


# ---- the true key among decoys ----


def decoy_plot(green: int, innocent: Sequence[int], n: int, gamma: float) -> dict[str, Any]:
    """Shares of green pairs: decoy keys as columns over the binomial's bell, and the true key."""
    spread = math.sqrt(gamma * (1 - gamma) / n)
    shares, true = [count / n for count in innocent], green / n
    reach = [*shares, true, gamma - 3.5 * spread, gamma + 3.5 * spread]
    edge = 0.04 * (max(reach) - min(reach))
    low, high = max(0.0, min(reach) - edge), min(1.0, max(reach) + edge)
    width = spread / 2  # columns of half a standard deviation, one of them around gamma
    columns: dict[int, int] = {}
    for share in shares:
        place = round((share - gamma) / width)
        columns[place] = columns.get(place, 0) + 1
    expected = len(shares) * width / spread / math.sqrt(2 * math.pi)  # of the middle column
    top = 1.04 * max(*columns.values(), expected)
    bars: list[dict[str, Any]] = []
    for place, count in sorted(columns.items()):
        x = within(gamma + (place - 0.5) * width, low, high)
        y = within(gamma + (place + 0.5) * width, low, high)
        bars.append(
            {"x": x, "width": round(y - x, 3), "height": round(100 * count / top, 2),
             "count": count}
        )  # fmt: skip
    at = within(true, low, high)
    return {
        "bars": bars, "bell": _bell(gamma, spread, (low, high)),
        "bell_height": round(100 * expected / top, 2), "at": at, "share": true,
        "gamma_at": within(gamma, low, high), "low": low, "high": high, "count": len(shares),
        "least": min(shares), "most": max(shares),
    }  # fmt: skip
