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
# The drawn mean reaches over this share of the steps.
_WINDOW_SHARE = 0.05


def curve_svg(
    curve: Sequence[Mapping[str, Any]],
    column: str,
    *,
    share: bool = False,
    marks: Mapping[str, float] | None = None,
) -> str:
    """An SVG of `column` over the steps: each step faint, a running mean on top.

    Args:
        curve: points with `step` and `column`; points without it are left out.
        column: what is drawn.
        share: whether it is a share, drawn from 0 to 1 as percent.
        marks: label -> value of dashed level lines, e.g. the held-out figure.
    """
    import altair as alt  # lazily: a second that only reports pay

    points = [(p["step"], float(p[column])) for p in curve if p.get(column) is not None]
    smooth = _running_mean([value for _, value in points])
    rows = [
        {"step": step, "value": value, "mean": mean}
        for (step, value), mean in zip(points, smooth, strict=True)
    ]
    rows = rows[:: max(1, len(rows) // _POINTS)]
    x = alt.X("step:Q", title="step", axis=alt.Axis(tickCount=5, grid=False, format="~s"))
    form = alt.Axis(title=None, tickCount=5, format="%" if share else "~g")
    scale = alt.Scale(domain=[0, 1]) if share else alt.Scale(zero=False, nice=True)
    base = alt.Chart(alt.Data(values=rows))
    layers: list[Any] = [
        base.mark_line(strokeWidth=1, opacity=0.3, color=_STUDENT).encode(
            x=x, y=alt.Y("value:Q", axis=form, scale=scale)
        ),
        base.mark_line(strokeWidth=2.2, color=_STUDENT).encode(x=x, y="mean:Q"),
    ]
    for label, value in (marks or {}).items():
        level = alt.Chart(alt.Data(values=[{"value": value, "label": label}]))
        colour = _BEFORE if "before" in label else _TEACHER
        layers += [
            level.mark_rule(strokeDash=[5, 4], color=colour).encode(y="value:Q"),
            level.mark_text(
                align="right", baseline="bottom", dy=-4, fontSize=12, color=colour
            ).encode(x=alt.value(_WIDTH - 2), y="value:Q", text="label:N"),
        ]
    return _themed(_drawn(alt.layer(*layers).properties(width=_WIDTH, height=_HEIGHT)))


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
