"""Curves of a run as SVG text that follows the page's light or dark colours.

In: the training curve. Out: inline SVG without scripts, fonts or links. Drawn by Vega-Lite through
vl-convert, in process and without a network. Nothing here writes files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["curve_svg"]

# Vega-Lite wants colours, the page has CSS variables: each stand-in colour becomes its variable.
_COLOURS = {
    "#010203": "var(--soft)",
    "#010204": "var(--line)",
    "#010205": "var(--student)",
    "#010206": "var(--teacher)",
    "#010207": "var(--before)",
}
_SOFT, _LINE, _STUDENT, _TEACHER, _BEFORE = _COLOURS

_WIDTH, _HEIGHT = 400, 210
# Enough points for a line of 400 pixels; a long run has tens of thousands of steps.
_POINTS = 400
# Up to so many points each is shown as a dot; ours.
_FEW = 60
# The drawn mean reaches over this share of the steps.
_WINDOW_SHARE = 0.05


def curve_svg(
    curve: Sequence[Mapping[str, Any]],
    column: str,
    *,
    beside: str | None = None,
    share: bool = False,
    marks: Mapping[str, float] | None = None,
) -> str:
    """An SVG of `column` over the steps: many points faint with a running mean, few as dots.

    Args:
        curve: points with `step` and figures; points without the figure are left out.
        column: what is drawn.
        beside: another figure of the same unit, drawn in the teacher's colour.
        share: whether it is a share, drawn from 0 to 1 as percent.
        marks: label -> value of dashed level lines, e.g. the held-out figure.
    """
    import altair as alt  # lazily: a second that only reports pay

    x = alt.X("step:Q", title="step", axis=alt.Axis(tickCount=5, grid=False, format="~s"))
    form = alt.Axis(title=None, tickCount=5, format="%" if share else "~g")
    scale = alt.Scale(domain=[0, 1]) if share else alt.Scale(zero=False, nice=True)
    place = {"x": x, "y": alt.Y("value:Q", axis=form, scale=scale)}
    layers: list[Any] = []
    for name, colour in ((column, _STUDENT), (beside or "", _TEACHER)):
        points = [(p["step"], float(p[name])) for p in curve if p.get(name) is not None]
        if not points:
            continue
        if len(points) <= _FEW:
            line = alt.Chart(_data(points)).encode(**place)
            layers.append(line.mark_line(color=colour, strokeWidth=2.2, point={"color": colour}))
            continue
        smooth = _running_mean([value for _, value in points])
        means = [(step, mean) for (step, _), mean in zip(points, smooth, strict=True)]
        raw, mean = (alt.Chart(_data(rows)).encode(**place) for rows in (points, means))
        layers.append(raw.mark_line(color=colour, strokeWidth=1, opacity=0.3))
        layers.append(mean.mark_line(color=colour, strokeWidth=2.2))
    for label, value in (marks or {}).items():
        level = alt.Chart(alt.Data(values=[{"value": value, "label": label}])).encode(y="value:Q")
        colour = _BEFORE if "before" in label else _TEACHER
        layers.append(level.mark_rule(strokeDash=[5, 4], color=colour))
        above = value >= max((marks or {}).values())  # two labels close together part ways
        text = level.mark_text(
            align="right", baseline="bottom" if above else "top", dy=-4 if above else 4,
            fontSize=12, color=colour,
        )  # fmt: skip
        layers.append(text.encode(x=alt.value(_WIDTH - 2), text="label:N"))
    return _themed(_drawn(alt.layer(*layers).properties(width=_WIDTH, height=_HEIGHT)))


def _data(points: Sequence[tuple[float, float]]) -> Any:
    import altair as alt

    rows = [{"step": step, "value": value} for step, value in points]
    return alt.Data(values=rows[:: max(1, len(rows) // _POINTS)])


def _drawn(chart: Any) -> str:
    import vl_convert

    font = "system-ui, sans-serif"
    labels = {"labelColor": _SOFT, "titleColor": _SOFT, "labelFont": font, "titleFont": font}
    sizes = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
    lines = {"domainColor": _LINE, "tickColor": _LINE, "gridColor": _LINE}
    chart = chart.configure(background="transparent", font=font)
    chart = chart.configure_axis(**labels, **sizes, **lines).configure_view(stroke=None)
    return vl_convert.vegalite_to_svg(chart.to_json())


def _themed(svg: str) -> str:
    """The SVG with the page's colours, and a size that its box decides."""
    for stand_in, variable in _COLOURS.items():
        svg = re.sub(re.escape(stand_in), variable, svg, flags=re.IGNORECASE)
    return re.sub(r'^(<svg[^>]*?) width="[^"]*" height="[^"]*"', r'\1 role="img"', svg, count=1)


def _running_mean(values: Sequence[float]) -> list[float]:
    """Each value's mean with its neighbours on both sides."""
    reach = max(1, round(_WINDOW_SHARE * len(values) / 2))
    means: list[float] = []
    for middle in range(len(values)):
        part = values[max(0, middle - reach) : middle + reach + 1]
        means.append(sum(part) / len(part))
    return means
