"""`stillhouse report RUN`: write a run's report again from what its stages left, and print it."""

from __future__ import annotations

from pathlib import Path

from stillhouse.cli.distill import summary
from stillhouse.cli.terminal import Common, emit, make_progress
from stillhouse.errors import DataError, nearest

__all__ = ["report"]


def report(
    run: str,
    *,
    runs: Path = Path("runs"),
    common: Common = Common(),  # noqa: B008  (frozen)
) -> None:
    """Write a run's report.json and report.html again, and print it.

    Parameters
    ----------
    run
        The run's name, or its folder.
    runs
        Where runs are kept.
    """
    from stillhouse.cli.pipeline import run_stages
    from stillhouse.config import load_recipe

    folder = Path(run) if Path(run, "run.yaml").exists() else runs / run
    if not (folder / "run.yaml").exists():
        names = [path.parent.name for path in runs.glob("*/run.yaml")]
        raise DataError(
            f"run '{run}'",
            f"no {folder / 'run.yaml'}",
            "the name or folder of a run",
            nearest(run, names) if names else "Make one with `stillhouse distill`",
        )
    settings = load_recipe(folder / "run.yaml", [f"runs={folder.parent}", f"name={folder.name}"])
    result = run_stages(settings, ("report",), make_progress(quiet=common.quiet))
    emit(result, summary(result, folder), as_json=common.json)
