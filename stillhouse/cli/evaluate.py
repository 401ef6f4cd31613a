"""`stillhouse evaluate RECIPE.yaml [key=value ...]`: that one stage of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stillhouse.cli.terminal import Common, emit, make_progress, table

__all__ = ["evaluate", "figures"]


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
    emit(result, figures(result), as_json=common.json)


def figures(result: dict[str, Any]) -> list[str]:
    """What was measured, in half a dozen lines: size, speed, closeness before and after."""
    before, after = result["held_out"]["before"], result["held_out"]["after"]
    speed, parameters = result["speed"], result["student"]["parameters"]
    rows = [["held out", "before", "after", "95 % interval", "n"]]
    for key, name in (
        ("kl_nats", "KL(teacher || student), nats"),
        ("top1_agreement", "top-1 agreement"),
        ("nll_nats", "NLL of the teacher's answers, nats"),
        ("ece", "calibration error"),
    ):
        a = after[key]
        was = f"{before[key]['value']:.3f}" if before else "-"
        within = f"{a['low']:.3f} to {a['high']:.3f}"
        rows.append([name, was, f"{a['value']:.3f}", within, str(a["n"])])
    pace = f", decodes {speed['ratio']['value']:.2f} times as fast" if speed else ""
    return [f"{parameters / 1e6:.1f} M parameters{pace}", *table(rows)]
