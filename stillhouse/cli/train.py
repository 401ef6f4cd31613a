"""`stillhouse train RECIPE.yaml [key=value ...]`: that one stage of a recipe."""

from __future__ import annotations

from pathlib import Path

from stillhouse.cli.terminal import Common, duration, emit, make_progress

__all__ = ["train"]


def train(
    recipe: Path,
    *overrides: str,
    again: bool = False,
    common: Common = Common(),  # noqa: B008  (frozen)
) -> None:
    """Train the recipe's student on the exchanges collected.

    Parameters
    ----------
    recipe
        The recipe, in YAML.
    overrides
        Settings laid over the recipe, as key=value.
    again
        Forget what this stage and those after it made, and do it again.
    """
    from stillhouse.cli.pipeline import run_stages
    from stillhouse.config import load_recipe

    settings = load_recipe(recipe, overrides)
    progress = make_progress(quiet=common.quiet)
    result = run_stages(settings, ("train",), progress, "train" if again else None)
    losses = result["losses"]
    lines = [
        f"student  {result['student']}",
        f"{result['steps']} steps in {duration(result['seconds'])}, loss {losses[0]:.2f} -> "
        f"{losses[-1]:.2f} nats a token",
    ]
    emit(result, lines, as_json=common.json)
