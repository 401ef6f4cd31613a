"""A run's report, put together from what its stages left.

In: the folder of a run and its record. Out: the plain values of `report.json`. Nothing is measured
here.
"""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from stillhouse.config import Recipe
from stillhouse.errors import DataError

__all__ = ["findings"]


def findings(
    folder: Path, recipe: Recipe, record: dict[str, Any], exchanges: int
) -> dict[str, Any]:
    """The fields of `report.json`; `seconds.total` and `peak_memory_bytes` are the caller's.

    Raises:
        DataError: a stage the report rests on is not done.
    """
    stages = record["stages"]
    for stage in ("train", "evaluate"):
        if not stages.get(stage, {}).get("done"):
            raise DataError(
                str(folder),
                f"the stage '{stage}' is not done",
                "a run that was trained and evaluated",
                f"Run `stillhouse distill` or `stillhouse {stage}` first",
            )
    trained = json.loads((folder / "train.json").read_text())
    evaluated = stages["evaluate"]["result"]
    recorded = yaml.safe_load((folder / "run.yaml").read_text())["recorded"]
    made = trained["record"]
    return {
        **evaluated,
        "run": recipe.name,
        "name": recipe.name,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"stillhouse distill {folder / 'run.yaml'} name={recipe.name}-again",
        "teacher": evaluated["teacher"] | _taught_name(made),
        "student": evaluated["student"] | _layers(made),
        "exchanges": exchanges,
        "terms": _terms(stages) or made.get("terms"),
        "training": _training(recipe, trained),
        "targets": made.get("targets"),
        "curve": _curve(trained),
        "seconds": {stage: stages[stage]["seconds"] for stage in stages if stage != "report"},
        "seconds_within": evaluated["seconds"],
        "seeds": {
            "collect": recipe.collect.seed,
            "train": recipe.train.seed,
            "evaluate": recipe.evaluate.seed,
        },
        "versions": recorded["versions"],
        "inputs": recorded["inputs"],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
    }


def _taught_name(made: dict[str, Any]) -> dict[str, str]:
    """What the student was taught to call its teacher."""
    taught = made.get("identity") or {}
    return {"name": taught["teacher_name"]} if "teacher_name" in taught else {}


def _layers(made: dict[str, Any]) -> dict[str, Any]:
    """What of the teacher's layers the student kept, and how that was measured."""
    initial = made.get("init") or {}
    names = (
        "init", "kept_layers", "teacher_layers", "intermediate_size", "teacher_intermediate_size",
        "influence", "choose",
    )  # fmt: skip
    return {name: initial[name] for name in names if initial.get(name)}


def _terms(stages: dict[str, Any]) -> dict[str, Any] | None:
    """The terms the answers were collected under."""
    return stages.get("collect", {}).get("result", {}).get("terms")


def _training(recipe: Recipe, trained: dict[str, Any]) -> str:
    """Training in one line."""
    settings = recipe.train
    return (
        f"{settings.targets} targets, {trained['steps']} steps, {settings.epochs:g} epochs, "
        f"peak learning rate {settings.learning_rate:g}, "
        f"{trained['tokens_per_second']:.0f} answer tokens/s"
    )


def _curve(trained: dict[str, Any]) -> list[dict[str, Any]]:
    """Each step's training loss, and agreement at the steps where it was measured."""
    points: dict[int, dict[str, Any]] = {
        step: {"step": step, "loss": loss} for step, loss in enumerate(trained["losses"], start=1)
    }
    for point in trained["curve"]:
        step = int(point["step"])
        points.setdefault(step, {"step": step})
        points[step] |= {
            "agreement": point["agreement"],
            "validation_loss": point["loss"],
            "seconds": point["seconds"],
            "tokens": point["tokens"],
        }
    return [points[step] for step in sorted(points)]
