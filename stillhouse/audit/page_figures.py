"""How an audit's page writes figures, and which of them nobody laid out.

In: nested figures, whatever test they are of. Out: rows of text, written as every page writes them.
`Unread` knows which figures were shown, so that one the page has no row for is shown too, as a
plain table: no present figure is hidden. Nothing here counts or concludes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from stillhouse.pages import figure, signed

__all__ = [
    "Figures",
    "Row",
    "Unread",
    "chance",
    "flat",
    "interval",
    "is_estimate",
    "leftover",
    "number",
    "often",
    "plain",
    "share_row",
]

Figures = Mapping[str, Any]
_MANY = 12  # entries of a list that are written out; the others are counted


class Row(NamedTuple):
    """A figure, written."""

    name: str
    value: str
    interval: str = ""
    n: str = ""
    note: str = ""


class Unread:
    """Nested figures, and which of them were taken."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures
        self._taken: set[tuple[str, ...]] = set()

    def __call__(self, *path: str) -> Any:
        """The figure there, or None; it counts as shown, with all below it."""
        self._taken.add(path)
        return self.peek(*path)

    def names(self, *path: str) -> list[str]:
        """The keys there, which are not thereby shown; nothing is there to show of none."""
        found = self.peek(*path)
        if not found:
            self._taken.add(path)
        return [*found] if isinstance(found, Mapping) else []

    def peek(self, *path: str) -> Any:
        """The figure there, or None; it does not count as shown."""
        found: Any = self._figures
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found

    def left(self) -> list[tuple[tuple[str, ...], Any]]:
        """(path, figure) of everything that was not taken."""
        above = {path[:length] for path in self._taken for length in range(1, len(path))}

        def shown(path: tuple[str, ...], value: Any) -> bool:
            # Where something was asked for below nothing, nothing was shown.
            return (path in above and not value) or any(
                path[:length] in self._taken for length in range(1, len(path) + 1)
            )

        return [(path, value) for path, value in flat(self._figures) if not shown(path, value)]


def flat(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, figure) of nested figures; an estimate and a list of scalars are one figure."""
    if isinstance(value, Mapping) and value and not is_estimate(value):
        for key, inner in value.items():
            yield from flat(inner, (*path, str(key)))
    elif isinstance(value, list) and any(isinstance(one, Mapping | list) for one in value):
        for at, inner in enumerate(value, start=1):
            yield from flat(inner, (*path, str(at)))
    else:
        yield path, value


def is_estimate(value: Any) -> bool:
    """Whether it is an `Estimate` in JSON form."""
    return isinstance(value, Mapping) and {"value", "low", "high", "n"} <= value.keys()


# ---- how they are written ----


def number(value: float) -> str:
    """A number whose unit is not known."""
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    text = f"{value:,.1f}" if 1e3 <= abs(value) < 1e12 else f"{value:.4g}"
    return text.removesuffix(".0").replace("-", "−")


def plain(value: Any) -> str:
    """Any figure or setting in words."""
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case int() | float():
            return number(value)
        case list() if len(value) > _MANY:
            return f"{', '.join(map(plain, value[:_MANY]))} and {len(value) - _MANY:,} more"
        case list():
            return ", ".join(map(plain, value)) or "none"
        case Mapping() if is_estimate(value):
            return f"{number(value['value'])} [{interval(value)}]"
        case Mapping():
            return "; ".join(f"{key}: {plain(one)}" for key, one in value.items()) or "none"
        case _:
            return str(value) or "(empty)"


def interval(estimate: Figures, kind: str | None = None, *, sign: bool = False) -> str:
    """Both ends of an interval."""
    low, high = (
        number(end) if kind is None else signed(end, kind) if sign else figure(end, kind)
        for end in (estimate["low"], estimate["high"])
    )
    return f"{low} to {high}"


def chance(p_value: float | None, n: int | None, unit: str) -> str:
    """A p-value with the n it rests on."""
    rests = "" if n is None else f" (n = {number(n)} {unit})"
    return "not given" if p_value is None else f"{figure(p_value, 'chance')}{rests}"


def often(p_value: float) -> str:
    """A probability as a frequency, for readers who meet few of them."""
    if p_value >= 0.5:
        return "more than half"
    if p_value < 1e-9:
        return "fewer than 1 in a billion"
    return f"about 1 in {int(float(f'{1 / p_value:.2g}')):,}"


def share_row(name: str, estimate: Figures | None, note: str = "", kind: str = "share") -> Row:
    """A share with its interval; 'not given' where there is none."""
    if not is_estimate(estimate):
        return Row(name, "not given", note=note)
    assert estimate is not None
    return Row(
        name, figure(estimate["value"], kind), interval(estimate, kind), number(estimate["n"]),
        "; ".join(text for text in (note, estimate.get("method", "")) if text),
    )  # fmt: skip


def leftover(unread: Unread, n: int | None) -> list[Row]:
    """Rows of every figure that was not taken, in the order they stand in."""
    return [_leftover(unread, path, value, n) for path, value in unread.left()]


def _leftover(unread: Unread, path: tuple[str, ...], value: Any, n: int | None) -> Row:
    name = ", ".join(path).replace("_", " ")
    if is_estimate(value):
        told = str(value.get("method", ""))
        named = f"{name} ({value['name']})" if "name" in value else name
        return Row(named, number(value["value"]), interval(value), number(value["n"]), told)
    is_p = path[-1].endswith(("p_value", "p")) and isinstance(value, float)
    if not is_p:
        return Row(name, plain(value))
    beside = [unread(*path[:-1], key) for key in ("n", "count", "tests")] if path[:-1] else []
    rests = next((own for own in beside if isinstance(own, int)), n)
    return Row(name, figure(value, "chance"), n="" if rests is None else number(rests))
