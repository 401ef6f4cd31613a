"""Tiles and rows of the two design-based tests on an audit's page.

In: evidence and plan. Out: the figures at the head of the page, and a row for each figure there is,
with its interval and n. A figure that is missing is said to be. Nothing here counts or concludes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stillhouse.audit.page_charts import interval_scale
from stillhouse.audit.page_figures import (
    Figures,
    Row,
    Unread,
    chance,
    interval,
    is_estimate,
    number,
    plain,
    share_row,
)
from stillhouse.pages import figure, signed

__all__ = ["twin_rows", "twin_tiles", "watermark_rows", "watermark_tiles"]


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
        Row("Signed-rank sum", number(statistic["value"]), n=number(n),
            note=f"{statistic['name']}; {number(whole / 2)} is expected of an innocent suspect, "
            f"{number(whole)} is the most"),
        _p_row("p, exact signed-rank test", unread("p_value"), n, _primary(unread, refused)),
        _p_row("p, sign test beside it", unread("secondary", "sign_p_value"), n,
               "counts how many pairs lean, not how far"),
        Row("Rank-biserial correlation", "not given" if rank is None else signed(rank, "nats"),
            n=number(n), note="−1 all rank to the twin, 0 none of both, +1 all to the served"),
        _mean_row(unread, unit),
    ]  # fmt: skip
    return [*rows, *_gate_rows(unread, plan), *_escrow_rows(unread), *_common_rows(unread)]


def _gate_rows(unread: Unread, plan: Figures) -> list[Row]:
    """Whether served answers and twins are told apart by anything but the suspect."""
    p, n, level, sign, signs = (
        unread("secondary", "teacher_gate", key)
        for key in ("p_value", "n", "level", "sign", "signs")
    )
    if p is not None:
        tried = ", ".join(map(str, signs or ()))
        return [
            _p_row("Teacher gate: p, two-sided", p, n,
                   f"whether served answers and twins differ in {tried}; smallest by {sign}; "
                   f"refused at {figure(level, 'chance')} and below")
        ]  # fmt: skip
    if plan.get("twins") == "escrowed":
        return []
    note = "too few pairs differ in anything that is compared: a change would not have been seen"
    return [Row("Teacher gate", "not run", note=note)]


def _escrow_rows(unread: Unread) -> list[Row]:
    """Of all pairs that were committed to, how many could be tested and how many were shown."""
    counts = {
        key: unread("secondary", "committed_pairs", key)
        for key in ("committed", "among the candidates", "outside them", "revealed")
    }
    if counts["committed"] is None:
        return []
    told = "; ".join(
        f"{number(counts[key])} {key}" for key in ("among the candidates", "outside them")
    )
    return [Row("Pairs committed to", number(counts["committed"]),
                note=f"{told}; {number(counts['revealed'])} revealed here")]  # fmt: skip


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
        share_row("Share of green pairs", unread("effect"), unread("effect").get("name", ""),
                  "fine"),
        Row("Green pairs", number(statistic["value"]), n=number(n), note=statistic["name"]),
        _p_row("p, exact binomial", unread("p_value"), n, _primary(unread, refused)),
        Row("At most, one-sided", _share(second["share_upper_bound"], "fine"), n=number(n),
            note="95 %, Clopper and Pearson"),
        Row("Smallest share found with probability 0.9",
            _share(second["smallest_share_found_with_probability_0.9"], "fine"), n=number(n)),
    ]  # fmt: skip
    if second["z"] is not None:
        note = "standard deviations from what is expected; for comparison only"
        rows.append(Row("z", signed(second["z"], "times"), n=number(n), note=note))
    if refused and second["exact_p_value"] is not None:
        rows.append(_p_row("p as it would have been", second["exact_p_value"], n,
                           "not to be read: the check above failed"))  # fmt: skip
    rows += _decoy_rows(unread)
    if second["retokenised_answers"] is not None:
        note = "from their text, where the suspect gave no token ids"
        rows.append(
            Row("Answers tokenised again", number(second["retokenised_answers"]), note=note)
        )
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
        note = "at or below it a p-value is called evidence"
        rows.append(Row("Level of this test", figure(level, "chance"), note=note))
    tests, adjusted = unread("family", "tests"), unread("family", "holm_p_value")
    if adjusted is not None:
        name, note = "p, corrected over all suspects of this audit", f"Holm, {plain(tests)} tests"
        rows.append(Row(name, figure(adjusted, "chance"), n=number(unread("n")), note=note))
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
