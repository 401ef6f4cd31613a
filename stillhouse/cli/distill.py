"""`stillhouse distill RECIPE.yaml [key=value ...]`: every stage of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from stillhouse.cli.terminal import Common, emit, make_progress, table

__all__ = ["distill"]

Stage = Literal["collect", "train", "evaluate", "report"]


def distill(
    recipe: Path,
    *overrides: str,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
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
        Say what would be done, and do nothing.
    again
        Forget this stage and those after it, and do them again.
    """
    from stillhouse.cli.pipeline import STAGES, plan, run_stages
    from stillhouse.config import load_recipe

    settings = load_recipe(recipe, overrides)
    if dry_run:
        rows = plan(settings)
        lines = table([["stage", "state"], *([row["stage"], row["state"]] for row in rows)])
        emit({"run": str(settings.folder), "plan": rows}, lines, as_json=common.json)
        return
    report = run_stages(settings, STAGES, make_progress(quiet=common.quiet), again)
    emit(report, summary(report, settings.folder), as_json=common.json)


def summary(report: dict, folder: Path) -> list[str]:
    """The report in a dozen lines."""
    before, after = report["held_out"]["before"], report["held_out"]["after"]
    speed, student = report["speed"], report["student"]
    rows = [["held out", "before", "after", "95 % interval", "n"]]
    for key, name in (
        ("kl_nats", "KL(teacher || student), nats"),
        ("top1_agreement", "top-1 agreement"),
        ("nll_nats", "NLL of the teacher's answers, nats"),
        ("ece", "calibration error"),
    ):
        a = after[key]
        rows.append(
            [
                name,
                f"{before[key]['value']:.3f}" if before else "-",
                f"{a['value']:.3f}",
                f"{a['low']:.3f} to {a['high']:.3f}",
                str(a["n"]),
            ]
        )
    pace = f", decodes {speed['ratio']['value']:.2f} times as fast" if speed else ""
    return [
        f"{student['name']}, distilled from {report['teacher']['spec']}: "
        f"{student['parameters'] / 1e6:.1f} M parameters{pace}",
        *table(rows),
        f"report   {folder / 'report.html'}",
        f"talk     stillhouse chat {report['name']}",
    ]
