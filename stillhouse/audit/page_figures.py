"""The figures of an audit's page: tiles, rows with interval and n, and what nobody laid out.

In: evidence and plan. Out: rows of text, written by the filters of every page. `Unread` knows which
figures were shown, so that one this page has no row for is shown too, as a plain table: no present
figure is hidden. Nothing here counts or concludes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from stillhouse.audit.page_charts import interval_scale
from stillhouse.report import figure, signed

__all__ = [
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
    "twin_rows",
    "twin_tiles",
    "watermark_rows",
    "watermark_tiles",
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
        """The keys there, which are not thereby shown."""
        found = self.peek(*path)
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


# ---- the twin test ----


def twin_tiles(unread: Unread, unit: str) -> list[dict[str, Any]]:
    """The four figures at the head of a twin test."""
    effect, mean = unread("effect"), unread("secondary", "mean_difference")
    bound = unread("secondary", "share_upper_bound")
    tiles = [
        _share_tile("Pairs that lean to the served answer", effect, "pairs", (0.0, 1.0), 0.5,
                    "half, as a coin falls"),
        _p_tile(unread, "exact signed-rank test", "pairs"),
    ]  # fmt: skip
    if is_estimate(mean):
        tiles.append(
            {"title": f"Mean difference, {unit}", "big": signed(mean["value"], "nats"),
             "note": f"95 % interval {interval(mean, 'nats', sign=True)}, n = "
             f"{number(mean['n'])} pairs; 0 is expected of an innocent suspect"}
        )  # fmt: skip
    if bound is not None:
        tiles.append(
            {"title": "The share is at most", "big": figure(bound, "share"),
             "note": f"95 %, one-sided, n = {number(unread('n'))} pairs: how much lean the data "
             "leave room for"}
        )  # fmt: skip
    return tiles


def twin_rows(unread: Unread, plan: Figures, unit: str) -> list[Row]:
    """Every figure of a twin test."""
    n, refused = unread("n"), unread("verdict") == "refused"
    statistic, rank = unread("statistic"), unread("secondary", "rank_biserial")
    whole = n * (n + 1) / 2
    rows = [
        share_row("Pairs that lean to the served answer", unread("effect")),
        Row("At most, one-sided", _share(unread("secondary", "share_upper_bound")), n=number(n),
            note="95 %, Clopper and Pearson"),
        Row("Signed-rank sum", number(statistic["value"]), n=number(n), note=f"{statistic['name']}; "
            f"{number(whole / 2)} is expected of an innocent suspect, {number(whole)} is the most"),
        _p_row("p, exact signed-rank test", unread("p_value"), n, _primary(unread, refused)),
        _p_row("p, sign test beside it", unread("secondary", "sign_p_value"), n,
               "counts how many pairs lean, not how far"),
        Row("Rank-biserial correlation", "not given" if rank is None else signed(rank, "nats"),
            n=number(n), note="−1 all rank to the twin, 0 none of both, +1 all to the served"),
        _mean_row(unread, unit),
    ]  # fmt: skip
    gate_p, gate_n, gate_level = (
        unread("secondary", "teacher_gate", key) for key in ("p_value", "n", "level")
    )
    if gate_p is not None:
        rows.append(
            _p_row("Teacher gate: p, two-sided", gate_p, gate_n,
                   "whether today's teacher tells its served answers from fresh ones; refused at "
                   f"{figure(gate_level, 'chance')} and below")
        )  # fmt: skip
    elif plan.get("twins") == "drawn later":
        rows.append(Row("Teacher gate", "not run", note="the teacher's own scores were not at hand: "
                        "a teacher that changed would not have been seen"))  # fmt: skip
    return [*rows, *_common_rows(unread)]


def _mean_row(unread: Unread, unit: str) -> Row:
    mean = unread("secondary", "mean_difference")
    if not is_estimate(mean):
        return Row("Mean difference", "not given")
    return Row(
        f"Mean difference, {unit}", signed(mean["value"], "nats"),
        interval(mean, "nats", sign=True), number(mean["n"]), mean.get("method", ""),
    )  # fmt: skip


# ---- the watermark test ----


def watermark_tiles(unread: Unread, gamma: float) -> list[dict[str, Any]]:
    """The four figures at the head of a watermark test."""
    effect, n = unread("effect"), unread("n")
    decoys, as_green, rank_p = (
        unread("secondary", "decoys", key) for key in ("count", "as_green", "rank_p_value")
    )
    smallest = unread("secondary", "smallest_share_found_with_probability_0.9")
    reach = max(abs(end - gamma) for end in (effect["low"], effect["high"], smallest or gamma))
    ends = (max(0.0, gamma - 1.2 * reach), min(1.0, gamma + 1.2 * reach))
    tiles = [
        _share_tile("Green pairs", effect, "pairs", ends, gamma,
                    f"{figure(gamma, 'fine')} is innocent", "fine"),
        _p_tile(unread, "exact binomial", "pairs"),
    ]  # fmt: skip
    if decoys is not None:
        tiles.append(
            {"title": "Decoy keys as green as the true one", "big": plain(as_green),
             "small": f"of {number(decoys)}",
             "note": f"rank p {chance(rank_p, decoys, 'decoy keys')}"}
        )  # fmt: skip
    if smallest is not None:
        tiles.append(
            {"title": "Smallest share it would find", "big": figure(smallest, "fine"),
             "note": f"with probability 0.9, n = {number(n)} pairs; a smaller one may go unseen"}
        )  # fmt: skip
    return tiles


def watermark_rows(unread: Unread) -> list[Row]:
    """Every figure of a watermark test."""
    n, refused = unread("n"), unread("verdict") == "refused"
    statistic = unread("statistic")
    second = {key: unread("secondary", key) for key in (
        "exact_p_value", "z", "share_upper_bound", "smallest_share_found_with_probability_0.9",
        "retokenised_answers",
    )}  # fmt: skip
    rows = [
        share_row(unread("effect").get("name", "Share of green pairs"), unread("effect"),
                  kind="fine"),
        Row("Green pairs", number(statistic["value"]), n=number(n), note=statistic["name"]),
        _p_row("p, exact binomial", unread("p_value"), n, _primary(unread, refused)),
        Row("At most, one-sided", _share(second["share_upper_bound"], "fine"), n=number(n),
            note="95 %, Clopper and Pearson"),
        Row("Smallest share found with probability 0.9",
            _share(second["smallest_share_found_with_probability_0.9"], "fine"), n=number(n)),
    ]  # fmt: skip
    if second["z"] is not None:
        rows.append(Row("z", signed(second["z"], "times"), n=number(n),
                        note="standard deviations from what is expected; for comparison only"))  # fmt: skip
    if refused and second["exact_p_value"] is not None:
        rows.append(_p_row("p as it would have been", second["exact_p_value"], n,
                           "not to be read: the check above failed"))  # fmt: skip
    rows += _decoy_rows(unread)
    if second["retokenised_answers"] is not None:
        rows.append(Row("Answers tokenised again", number(second["retokenised_answers"]),
                        note="from their text, where the suspect gave no token ids"))  # fmt: skip
    return [*rows, *_common_rows(unread)]


def _decoy_rows(unread: Unread) -> list[Row]:
    own = {key: unread("secondary", "decoys", key) for key in (
        "count", "as_green", "rank_p_value", "mean_share", "spread", "spread_p_value",
        "agreement_p_value",
    )}  # fmt: skip
    if own["count"] is None:
        return [Row("Decoy keys", "not given")]
    n = own["count"]
    return [
        Row("Decoy keys as green as the true one, or more", number(own["as_green"]), n=number(n)),
        _p_row("Rank p among the decoys", own["rank_p_value"], n,
               f"with {number(n)} decoys none below {figure(1 / (1 + n), 'chance')} is possible"),
        Row("Mean share of green pairs, decoys", _share(own["mean_share"], "fine"), n=number(n)),
        Row("Spread of the decoys' z-scores", plain(own["spread"]), n=number(n),
            note="1 where they behave as innocent keys do"),
        _p_row("p of that spread, two-sided", own["spread_p_value"], n, "small: refused"),
        _p_row("p that exact p and decoys agree, two-sided", own["agreement_p_value"], n,
               "small: refused"),
    ]  # fmt: skip


# ---- what they share ----


def _common_rows(unread: Unread) -> list[Row]:
    """Level, reason of a refusal, and the correction over a family of suspects."""
    rows: list[Row] = []
    level, refusal = unread("secondary", "level"), unread("secondary", "refusal")
    if level is not None:
        rows.append(Row("Level of this test", figure(level, "chance"),
                        note="at or below it a p-value is called evidence"))  # fmt: skip
    tests, adjusted = unread("family", "tests"), unread("family", "holm_p_value")
    if adjusted is not None:
        rows.append(Row("p, corrected over all suspects of this audit", figure(adjusted, "chance"),
                        n=number(unread("n")), note=f"Holm, {number(tests)} tests"))  # fmt: skip
    if refusal:
        rows.append(Row("Refused", refusal))
    return rows


def _share(value: float | None, kind: str = "share") -> str:
    return "not given" if value is None else figure(value, kind)


def _primary(unread: Unread, refused: bool) -> str:
    return "not given: refused" if refused else f"the primary figure; verdict: {unread('verdict')}"


def _p_row(name: str, p_value: float | None, n: int, note: str = "") -> Row:
    return Row(
        name, "not given" if p_value is None else figure(p_value, "chance"), n=number(n), note=note
    )


def _p_tile(unread: Unread, test: str, unit: str) -> dict[str, Any]:
    p, n, level = unread("p_value"), unread("n"), unread("secondary", "level")
    at = "" if level is None else f"; level fixed beforehand {figure(level, 'chance')}"
    if p is None:
        return {"title": "p-value", "big": "not given", "note": f"n = {number(n)} {unit}{at}"}
    return {
        "title": "p-value", "big": figure(p, "chance"),
        "note": f"{test}, n = {number(n)} {unit}{at}",
    }  # fmt: skip


def _share_tile(
    title: str, estimate: Figures, unit: str, ends: tuple[float, float], mark: float | None,
    mark_says: str, kind: str = "share",
) -> dict[str, Any]:  # fmt: skip
    outer: Sequence[str] = [figure(end, "percent" if kind == "share" else kind) for end in ends]
    return {
        "title": title, "big": figure(estimate["value"], kind),
        "scale": interval_scale(estimate, ends=ends, mark=mark), "ends": outer,
        "mark": mark_says,
        "note": f"95 % interval {interval(estimate, kind)}, n = {number(estimate['n'])} {unit}",
    }  # fmt: skip
