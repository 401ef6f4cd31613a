"""A suspect, opened the way it can be asked: log-probabilities of given text, text only, or files.

In: a spec and the access that settings ask for. Out: an open model or a batch folder, the access
that was found, and which model it was, in words that show no path and no secret of this machine.
Nothing here asks it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from stillhouse.audit.batch import Batch, is_batch
from stillhouse.audit.bundle import Bundle
from stillhouse.audit.settings import TwinSettings
from stillhouse.errors import CapabilityError, ConfigError, ModelError
from stillhouse.files import model_hash
from stillhouse.models import Need, open_model, parse_spec
from stillhouse.models.base import Model
from stillhouse.models.specs import Spec
from stillhouse.progress import Progress
from stillhouse.text import bare_url

__all__ = [
    "Suspect", "address_of", "failure_of", "model_line", "name_of", "name_of_model", "note_model",
]  # fmt: skip


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
    return _named(parse_spec(spec))


def name_of_model(model: Model) -> str:
    """The same of an open model, which Python may have given a spec that is none."""
    return _named(_parsed(model.spec))


def _parsed(spec: str) -> Spec:
    try:
        return parse_spec(spec)
    except ConfigError:
        return Spec(spec, "hf", spec)


def _named(parsed: Spec) -> str:
    if parsed.kind == "endpoint":
        return parsed.model or address_of(parsed.target)
    if parsed.kind in {"gguf", "hf"}:
        return Path(parsed.target).name.removesuffix(".gguf")
    return parsed.text if parsed.kind == "scripted" else parsed.target


def address_of(url: str) -> str:
    """An endpoint's URL without what a person may have put into it to get in: a password, or a key
    in its query.
    """
    return urlsplit(bare_url(url))._replace(query="", fragment="").geturl()


def failure_of(error: ModelError, spec: str) -> str:
    """Why an answer never came, as a bundle may say it: without the path or the address of the
    model, which an error names too.
    """
    parsed, told = _parsed(spec), error.found
    private = [spec] if "/" in spec else []
    if parsed.kind == "endpoint":
        parts = urlsplit(parsed.target)
        private += [parsed.target, parts.netloc.rpartition("@")[0], parts.query]
    elif parsed.kind in {"gguf", "hf"}:
        private += [parsed.target] if "/" in parsed.target else []
        private.append(str(Path(parsed.target).expanduser().resolve()))
    for text in sorted(filter(None, private), key=len, reverse=True):
        told = told.replace(text, _named(parsed))
    return told


def model_line(model: Model, role: str) -> Mapping[str, Any]:
    """The raw line that says which model it was: its name, how it was reached, and of weights at
    hand their hash, engine and the versions they ran on.
    """
    parsed = _parsed(model.spec)
    folder = getattr(model, "folder", None) or getattr(model, "path", None)
    weights = model_hash(folder) if isinstance(folder, Path) else None
    engine = getattr(getattr(model, "engine", None), "engine", None)
    return {
        "role": role, "model": _named(parsed), "reached": parsed.kind,
        "endpoint": address_of(parsed.target) if parsed.kind == "endpoint" else None,
        "weights": weights, "engine": engine if isinstance(engine, str) else None,
        "versions": {n: version(n) for n in ("torch", "transformers")} if weights else {},
    }  # fmt: skip


def note_model(bundle: Bundle, line: Mapping[str, Any]) -> None:
    """Which model it is (its `model_line`) stands in the bundle, once for each under a role."""
    if line not in bundle.lines("models"):
        bundle.append("models", [line])
