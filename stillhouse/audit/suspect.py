"""A suspect, opened the way it can be asked: log-probabilities of given text, text only, or files.

In: a spec and the access that settings ask for. Out: an open model or a batch folder, the access
that was found, and which model it was, in words that show no path and no secret of this machine.
Nothing here asks it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from stillhouse.audit.batch import Batch, is_batch
from stillhouse.audit.settings import TwinSettings
from stillhouse.errors import CapabilityError
from stillhouse.files import file_hash
from stillhouse.models import Need, open_model, parse_spec
from stillhouse.models.base import Model
from stillhouse.progress import Progress

__all__ = ["Suspect", "address_of", "model_line", "name_of"]


class Suspect:
    """An open suspect; a context manager that lets go of it."""

    def __init__(self, spec: str, settings: TwinSettings, runs: Path, progress: Progress) -> None:
        """Open it.

        Raises:
            CapabilityError: log-probabilities are asked for, and it gives none of given text.
            ModelError: it cannot be opened.
        """
        self.spec = spec
        self.batch: Batch | None = None
        self.model: Model | None = None
        self.access = settings.access
        if is_batch(spec):
            self.batch = Batch(spec)
            self.access = "logprobs" if settings.access == "auto" else settings.access
            return
        if settings.access != "text":
            try:
                self.model = open_model(spec, need=Need(scoring=True), runs=runs, progress=progress)
                self.access = "logprobs"
            except CapabilityError as problem:
                if settings.access == "logprobs":
                    raise CapabilityError(
                        problem.where, problem.found, problem.expected,
                        "Leave --access out to compare its text, or hand its owner a file: "
                        "--suspect batch:FOLDER",
                    ) from None  # fmt: skip
                progress.say(f"{spec} gives no log-probabilities of given text: asked for text")
        if self.model is None:
            self.model = open_model(spec, need=Need(text=True), runs=runs, progress=progress)
            self.access = "text"

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go of the model."""
        if self.model is not None:
            self.model.close()


# ---- which model it is ----


def name_of(spec: str) -> str:
    """A model's name: never a path of this machine, nor what lets somebody in."""
    if is_batch(spec):
        return f"batch:{Path(spec.removeprefix('batch:')).name}"
    parsed = parse_spec(spec)
    if parsed.kind == "endpoint":
        return parsed.model or address_of(parsed.target)
    if parsed.kind in {"gguf", "hf"}:
        return Path(parsed.target).name.removesuffix(".gguf")
    return spec if parsed.kind == "scripted" else parsed.target


def address_of(url: str) -> str:
    """An endpoint's URL without what a person may have put into it to get in."""
    parts = urlsplit(url)
    port = "" if parts.port is None else f":{parts.port}"
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"


def model_line(model: Model, role: str) -> Mapping[str, Any]:
    """The raw line that says which model it was: its name, how it was reached, and of weights at
    hand their hash, engine and the versions they ran on.
    """
    parsed = parse_spec(model.spec)
    folder = getattr(model, "folder", None) or getattr(model, "path", None)
    weights = _weights_hash(folder) if isinstance(folder, Path) else None
    engine = getattr(getattr(model, "engine", None), "engine", None)
    return {
        "role": role, "model": name_of(model.spec), "reached": parsed.kind,
        "endpoint": address_of(parsed.target) if parsed.kind == "endpoint" else None,
        "weights": weights, "engine": engine if isinstance(engine, str) else None,
        "versions": {n: version(n) for n in ("torch", "transformers")} if weights else {},
    }  # fmt: skip


def _weights_hash(path: Path) -> str:
    """Tagged hash over names and contents of a model's files."""
    if path.is_file():
        return file_hash(path)
    files = sorted(
        file for file in path.iterdir()
        if file.suffix in {".safetensors", ".json", ".gguf", ".bin", ".model", ".jinja"}
    )  # fmt: skip
    listed = "".join(f"{file_hash(file)} {file.name}\n" for file in files)
    return "w1:" + hashlib.sha256(listed.encode()).hexdigest()
