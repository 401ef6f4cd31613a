"""`stillhouse distill RECIPE.yaml [key=value ...]`: every stage of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stillhouse.cli.evaluate import figures
from stillhouse.cli.terminal import Common, emit, make_progress, plainly, table

if TYPE_CHECKING:
    from stillhouse.config import Recipe

__all__ = ["distill"]

Stage = Literal["collect", "train", "evaluate", "report"]


def distill(
    recipe: Path,
    *overrides: str,
    dry_run: bool = False,
    again: Stage | None = None,
    common: Common = Common(),  # noqa: B008  (frozen)
) -> None:
    """Run a whole recipe: weights, answers, training, evaluation, report.

    Run again, it redoes nothing that is done; killed at any moment and run again, it goes on.

    Parameters
    ----------
    recipe
        The recipe, in YAML; examples/quickstart.yaml is one.
    overrides
        Settings laid over the recipe, as key=value: train.epochs=3 name=longer.
    dry_run
        Say which stages are open and what would be asked under which terms; do nothing.
    again
        Forget this stage and those after it, and do them again.
    """
    from stillhouse.cli.pipeline import STAGES, plan, run_stages
    from stillhouse.config import load_recipe

    settings = load_recipe(recipe, overrides)
    if dry_run:
        rows = plan(settings)
        lines = table([["stage", "state"], *([row["stage"], row["state"]] for row in rows)])
        asked = _to_ask(settings) if rows[0]["state"] != "done" else {}
        result = {"run": str(settings.folder), "plan": rows, "collect": asked}
        emit(result, [*lines, *plainly(asked)], as_json=common.json)
        return
    report = run_stages(settings, STAGES, make_progress(quiet=common.quiet), again)
    emit(report, summary(report, settings.folder), as_json=common.json)


def _to_ask(recipe: Recipe) -> dict[str, Any]:
    """What collecting would ask, through the same gates; nothing where answers are at hand."""
    from stillhouse.collect import run

    if recipe.exchanges is not None:
        return {}
    store = recipe.folder / "exchanges"
    return run.plan(recipe.collect, teacher=recipe.teacher, store=store, runs=recipe.runs).to_dict()


def summary(report: dict, folder: Path) -> list[str]:
    """The report in a dozen lines."""
    return [
        f"{report['student']['name']}, distilled from {report['teacher']['spec']}",
        *figures(report),
        f"report   {folder / 'report.html'}",
        f"talk     stillhouse chat {report['name']}",
    ]
