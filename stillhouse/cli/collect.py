"""`stillhouse collect`: ask a teacher prompts into a store, or a recipe's collect stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from stillhouse.cli.terminal import Common, all_given, emit, make_progress, plainly
from stillhouse.config import CollectSettings
from stillhouse.errors import ConfigError

__all__ = ["collect"]

_DEFAULTS = CollectSettings.defaults()


def collect(
    recipe: Path | None = None,
    *overrides: str,
    teacher: str | None = None,
    out: Path | None = None,
    runs: Path | None = None,
    settings: Annotated[CollectSettings, Parameter(name="*")] = _DEFAULTS,
    dry_run: bool = False,
    common: Common = Common(),  # noqa: B008  (frozen)
) -> None:
    """Ask a teacher prompts, keep its answers and their log-probabilities.

    Run again, it asks only what the store does not hold; killed at any moment, no answer is lost.
    Give either --teacher, --prompts and --out, or a recipe and overrides.

    Parameters
    ----------
    recipe
        A recipe, in YAML, whose collect stage is run, in the place of --teacher, --prompts, --out.
    overrides
        Settings laid over the recipe, as key=value.
    teacher
        Model spec: smollm2-135m, gguf:PATH, hf:PATH_OR_ID, run:NAME, http://host:port/v1#MODEL.
    out
        The store of exchanges, a folder; made where there is none.
    runs
        Where runs are kept, for a teacher run:NAME. Default: runs.
    dry_run
        Say what would be asked, under which terms, and ask nothing.
    """
    if recipe is not None:
        if (teacher, out, runs) != (None, None, None) or settings != CollectSettings():
            raise _both_given(recipe)
        from stillhouse.config import load_recipe

        loaded = load_recipe(recipe, overrides)
        teacher, settings, runs = loaded.teacher, loaded.collect, loaded.runs
        out = loaded.exchanges or loaded.folder / "exchanges"
    all_given(
        "collect", {"--teacher": teacher, "--prompts": settings.prompts, "--out": out},
        "--teacher SPEC --prompts FILE_OR_DIR --out STORE, or a recipe",
    )  # fmt: skip
    assert teacher is not None
    assert out is not None
    runs = runs or Path("runs")
    from stillhouse.collect import run

    progress = make_progress(quiet=common.quiet)
    if dry_run:
        plan = run.plan(settings, teacher=teacher, store=out, runs=runs).to_dict()
        emit(plan, plainly(plan), as_json=common.json)
        return
    report = run.collect(
        settings, teacher=teacher, store=out, runs=runs, progress=progress
    ).to_dict()
    emit(report, plainly(report), as_json=common.json)


def _both_given(recipe: Path) -> ConfigError:
    return ConfigError(
        "stillhouse collect", f"options beside the recipe {recipe}",
        "options, or a recipe with settings as key=value",
        "Repeat an option for each of its values (--prompts A --prompts B), or write "
        "settings: collect RECIPE.yaml teacher=SPEC collect.exchanges=5",
    )  # fmt: skip
