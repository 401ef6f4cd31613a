"""`stillhouse evaluate RECIPE.yaml [key=value ...]`: that one stage of a recipe."""

from __future__ import annotations

from pathlib import Path

from stillhouse.cli.terminal import Common, emit, make_progress

__all__ = ["evaluate"]


def evaluate(
    recipe: Path,
    *overrides: str,
    again: bool = False,
    common: Common = Common(),  # noqa: B008  (frozen)
) -> None:
    """Measure how close the recipe's student came to its teacher.

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
    result = run_stages(settings, ("evaluate",), progress, "evaluate" if again else None)
    emit(result, [f"{key}: {value}" for key, value in result.items()], as_json=common.json)
