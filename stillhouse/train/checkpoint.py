"""Checkpoints: everything a run needs to go on as if it had never stopped.

In: a flat mapping of tensors and a few plain values. Out: one file, whole or not there at all. The
new file is written beside the old one, flushed to the disk and then renamed over it, so that a
kill, a full disk or a power cut at any moment leaves the previous checkpoint as it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillhouse.errors import DataError
from stillhouse.files import sync_folder

__all__ = ["Checkpoint", "load", "save", "write_atomically"]

_FORMAT = "stillhouse-checkpoint-1"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A moment of a run: the state AFTER `step` steps."""

    step: int
    fingerprint: str
    """Hash of everything that decides what the steps are; a checkpoint of another is refused."""
    tensors: dict[str, Tensor]
    plain: dict[str, Any]
    """JSON values: the optimiser's counters, the curve so far, seconds spent."""


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, atomically.

    Raises:
        DataError: it cannot be written (full disk, no permission); the previous one is untouched.
    """
    from safetensors.torch import save_file

    meta = {
        "format": _FORMAT,
        "step": str(checkpoint.step),
        "fingerprint": checkpoint.fingerprint,
        "plain": json.dumps(checkpoint.plain),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
    write_atomically(path, lambda partial: save_file(tensors, str(partial), metadata=meta))


def load(path: Path, fingerprint: str) -> Checkpoint | None:
    """The checkpoint at `path`, or None where there is none.

    Raises:
        DataError: it is not a checkpoint, is damaged, or belongs to other exchanges or settings.
    """
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if meta.get("format") != _FORMAT:
            raise ValueError(f"format {meta.get('format')!r}")
        found = Checkpoint(
            int(meta["step"]), meta["fingerprint"], tensors, json.loads(meta["plain"])
        )
    except (SafetensorError, OSError, ValueError, KeyError) as problem:
        raise DataError(
            str(path), f"not readable as a checkpoint ({problem})", f"a {_FORMAT} file",
            "Delete it to train from the start",
        ) from problem  # fmt: skip
    if found.fingerprint != fingerprint:
        raise DataError(
            str(path), "a checkpoint of other exchanges, settings or versions",
            f"one of {fingerprint[:18]}", "Delete it to train anew, or restore what was changed",
        )  # fmt: skip
    return found


def write_atomically(path: Path, write: Any) -> None:
    """`path`, a file or a folder, as `write(partial_path)` leaves it, or as it was before.

    Raises:
        DataError: the system refused a write.
    """
    import shutil

    partial = path.with_name(path.name + ".partial")
    _remove(partial)
    try:
        write(partial)
        files = sorted(partial.iterdir()) if partial.is_dir() else [partial]
        for file in files:
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        if partial.is_dir() and path.exists():
            shutil.rmtree(path)
        partial.replace(path)
        sync_folder(path.parent)
    except (OSError, _safetensor_error()) as problem:
        _remove(partial)
        raise DataError(
            str(path), f"could not be written ({problem})", "a writable place with room enough",
            "Free space or name another folder, then run the command again: it goes on from the "
            "last checkpoint",
        ) from problem  # fmt: skip


def _safetensor_error() -> type[Exception]:
    from safetensors import SafetensorError  # it wraps the system's errors while writing

    return SafetensorError


def _remove(path: Path) -> None:
    import shutil

    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def optimiser_tensors(
    optimiser: torch.optim.Optimizer, names: Mapping[int, str]
) -> dict[str, Tensor]:
    """Adam's two moments and step of each parameter, by `adam.WHAT.PARAMETER`."""
    return {
        f"adam.{what}.{names[id(parameter)]}": value
        for parameter, state in optimiser.state.items()
        for what, value in state.items()
        if isinstance(value, Tensor)
    }


def restore_optimiser(
    optimiser: torch.optim.Optimizer, names: Mapping[int, str], tensors: Mapping[str, Tensor]
) -> None:
    """Put the tensors of `optimiser_tensors` back."""
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            suffix = "." + names[id(parameter)]
            found = {
                key.removeprefix("adam.").removesuffix(suffix): value
                for key, value in tensors.items()
                if key.startswith("adam.") and key.split(".", 2)[2] == suffix[1:]
            }
            if found:
                optimiser.state[parameter] = found
