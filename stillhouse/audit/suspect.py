"""A suspect, opened the way it can be asked: log-probabilities of given text, text only, or files.

In: a spec and the access that settings ask for. Out: an open model or a batch folder, and the
access that was found. Nothing here asks it.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from stillhouse.audit.batch import Batch, is_batch
from stillhouse.audit.settings import TwinSettings
from stillhouse.errors import CapabilityError
from stillhouse.models import Need, open_model
from stillhouse.models.base import Model
from stillhouse.report import Progress

__all__ = ["Suspect"]


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
