"""`run.yaml`: what a run was told, to repeat it, and to refuse it where it is told another thing.

In: a recipe with its overrides. Out: the settings as a recipe in the run's own folder writes them,
with versions and input hashes beside them.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from stillhouse.config import Recipe
from stillhouse.files import write_whole

__all__ = ["as_written_in", "changed_keys", "write_run"]


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`key: old -> new` for each setting that differs, nested ones dotted."""
    lines: list[str] = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += changed_keys(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before} -> {after}")
    return lines


def as_written_in(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """The settings as plain values, as a recipe in this folder would write them: paths of inputs
    are relative to it.
    """
    written: dict[str, Any] = json.loads(
        json.dumps(
            recipe.model_dump(exclude={"recorded"}),
            default=lambda path: os.path.relpath(path, folder),
        )
    )
    return written | {"runs": str(recipe.runs)}


def write_run(path: Path, recipe: Recipe, inputs: Mapping[str, str]) -> None:
    """Write `run.yaml`: every setting as resolved, versions and input hashes; `distill run.yaml`
    repeats the run.
    """
    packages = ("stillhouse", "torch", "transformers", "xllamacpp", "pyarrow", "numpy")
    recorded = {
        "versions": {"python": platform.python_version()}
        | {name: found for name in packages if (found := _version(name))},
        "inputs": dict(inputs),
    }
    data = as_written_in(path.parent, recipe) | {"recorded": recorded}
    write_whole(path, yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


def _version(package: str) -> str | None:
    """The installed version, or None where the package is not installed."""
    from importlib import metadata  # slow to load, and only a run's record asks

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
