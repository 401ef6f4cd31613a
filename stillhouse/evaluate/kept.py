"""What an evaluation keeps between calls: figures, by the hash of what they were made from.

In: keys made of what went in, and values. Out: the same after a crash; a torn last line is dropped
and counted. Deleting the folder costs time and nothing else. Nothing here measures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stillhouse.errors import DataError
from stillhouse.files import append_lines, model_hash, whole_lines, write_whole

__all__ = ["Rows", "kept", "weights_bytes", "weights_hash", "weights_parameters"]

_WEIGHTS = (".safetensors", ".bin", ".gguf")


def weights_hash(folder: Path) -> str:
    """The hash of a model folder, as `files.model_hash` makes it.

    Raises:
        DataError: the folder holds no weights.
    """
    if not any(path.suffix in _WEIGHTS for path in _files(folder)):
        raise DataError(
            str(folder), "no weights", "a model folder with safetensors",
            "Train the student first, or correct the path",
        )  # fmt: skip
    return model_hash(folder)


def weights_bytes(folder: Path) -> int:
    """Bytes on disk of a model folder's weights."""
    return sum(path.stat().st_size for path in _files(folder) if path.suffix in _WEIGHTS)


def weights_parameters(folder: Path) -> int:
    """Numbers in a model folder's safetensors; an output head tied to the embedding counts once."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shapes: dict[str, list[int]] = {}
    for path in _files(folder):
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                header = file.read(int.from_bytes(file.read(8), "little"))
            shapes |= {
                name: at["shape"] for name, at in json.loads(header).items() if "shape" in at
            }
    if config.get("tie_word_embeddings"):
        shapes.pop("lm_head.weight", None)
    return sum(math.prod(shape) for shape in shapes.values())


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []


class Rows:
    """Rows of figures by key, in a file of JSON lines; what was added survives kill -9."""

    def __init__(self, path: Path) -> None:
        """Open it, making it where there is none; a torn last line is dropped."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._rows: dict[str, npt.NDArray[np.float64]] = {}
        for number, line in enumerate(whole_lines(path), start=1):
            try:
                key, row = json.loads(line)
            except ValueError:
                raise DataError(
                    f"{path} line {number}", f"{line[:60]!r}", "a JSON line [key, figures]",
                    "Delete the file; its figures are computed again",
                ) from None  # fmt: skip
            self._rows[key] = np.array(row, dtype=np.float64)

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __getitem__(self, key: str) -> npt.NDArray[np.float64]:
        return self._rows[key]

    def add(self, rows: Mapping[str, npt.NDArray[np.float64]]) -> None:
        """Keep rows; they are on the disk when this returns."""
        append_lines(self._path, (json.dumps([key, row.tolist()]) for key, row in rows.items()))
        self._rows.update(rows)


def kept(
    path: Path, inputs: Mapping[str, Any], make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What the file holds for just these inputs, else what `make` gives, which is then kept."""
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.get("inputs") == inputs:
            return found["result"]
    result = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps({"inputs": inputs, "result": result}, indent=1))
    return result
