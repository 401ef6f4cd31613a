"""What every page is made with: a template that escapes, the style, and how figures are written.

In: a template's source, figures, text of models. Out: HTML that needs no network, runs no script.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from stillhouse.progress import duration

__all__ = ["figure", "markup", "page_template", "signed", "stylesheet", "visible"]


def page_template(source: str, *, strict: bool = False) -> jinja2.Template:
    """A template that escapes all it is given and writes figures as every page does.

    Args:
        source: Jinja.
        strict: whether a name that is not given is an error. Pages with parts that not every run
            has leave it out.
    """
    undefined = jinja2.StrictUndefined if strict else jinja2.ChainableUndefined
    environment = jinja2.Environment(
        autoescape=True, undefined=undefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "figure": figure, "signed": signed, "count": _count, "millions": _millions,
        "bytes": _bytes, "duration": _page_duration, "visible": visible,
    }  # fmt: skip
    return environment.from_string(source)


def stylesheet() -> Any:
    """The style that all pages share, as text the template leaves as it is."""
    return markup(resources.files("stillhouse").joinpath("report.css").read_text("utf-8"))


def markup(text: str) -> Any:
    """Text of our own making that the template leaves as it is."""
    return Markup(text)


# ---- how figures are written ----


def _chance(value: float) -> str:
    """A probability; small ones as powers of ten, and never as zero."""
    if value >= 1e-3:
        return f"{value:.3g}"
    if value < 1e-300:
        return "below 10" + "-300".translate(_RAISED)
    factor, power = f"{value:.1e}".split("e")
    return f"{factor} × 10{str(int(power)).translate(_RAISED)}"


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

_KINDS: dict[str, Callable[[float], str]] = {
    "share": lambda value: f"{100 * value:.1f} %",
    "percent": lambda value: f"{100 * value:.0f} %",
    "fine": lambda value: f"{100 * value:.2f} %",
    "nats": lambda value: f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}",
    "ece": lambda value: f"{value:.3f}",
    "times": lambda value: f"{value:.2f}",
    "rate": lambda value: f"{value:.1f}",
    "chance": _chance,
}


def figure(value: float, kind: str) -> str:
    """A number as pages write it; `kind` is one of share, percent, fine (a share to a hundredth of
    a percent), nats, ece, times, rate and chance (a probability).
    """
    return _KINDS[kind](value)


def signed(value: float, kind: str) -> str:
    """With its sign; shares as points of a hundred."""
    text = _KINDS[kind](abs(value)).removesuffix(" %")
    return ("−" if value < 0 else "+") + text + (" points" if kind == "share" else "")


def _count(value: int) -> str:
    return f"{value:,}"


def _millions(value: int) -> str:
    return f"{value / 1e6:.1f} M" if value >= 1e5 else f"{value:,}"


def _bytes(value: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} bytes"


def _page_duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 9.95 else duration(seconds)


def visible(text: str) -> str:
    """The text with control characters and marks that turn writing shown, as symbols or numbers."""
    return _HIDDEN.sub(lambda found: _symbol(ord(found[0])), text)


_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def _symbol(code: int) -> str:
    return chr(0x2400 + code) if code < 32 else "\u2421" if code == 127 else f"<{code:04X}>"
