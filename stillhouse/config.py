"""Settings: one frozen model per command, each default written once, unknown keys refused with the nearest known one.

In: YAML recipes and `key=value` overrides. Out: checked, frozen settings, and `run.yaml`, from which a run can be
repeated. Nothing here starts work; paths are not opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "CollectSettings",
    "EvaluateSettings",
    "Recipe",
    "Settings",
    "StudentSettings",
    "TrainSettings",
]


class Settings(BaseModel):
    """Base of all settings: frozen, no unknown keys, field docstrings are the help texts."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True
    )


Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class CollectSettings(Settings):
    """What is asked of the teacher, and how."""

    prompts: tuple[Path, ...] = ()
    """Prompt files (JSONL, text, Parquet) or folders of them."""
    exchanges: Count | None = None
    """Stop after this many exchanges in the store; None asks every prompt."""
    samples_per_prompt: Count = 1
    """Answers drawn for each prompt."""
    engine: Literal["auto", "llamacpp", "local"] = "auto"
    """What answers for a GGUF teacher: llama.cpp's server, the de-quantised weights in torch, or whichever
    meets the need."""
    top_logprobs: Annotated[int, Field(ge=0)] = 20
    """Alternatives kept with each answer token; 0 keeps none."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Sampling temperature; 1 draws from the model's own distribution."""
    top_p: Share = 1.0
    """Nucleus mass; 1 keeps all."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Most likely tokens kept; 0 keeps all."""
    min_p: Share = 0.0
    """Floor relative to the likeliest token; 0 is none."""
    max_tokens: Count = 160
    """Answer tokens allowed."""
    concurrency: Count = 16
    """Requests in flight (slots of the embedded server)."""
    authorisation: Path | None = None
    """A file that names who allows a teacher whose terms refuse or are unknown, and why."""
    seed: int = 7
    """From which each request's own seed is derived."""


class StudentSettings(Settings):
    """What is trained."""

    name: str = "Stillhouse student"
    """What it calls itself."""
    init: Literal["prune", "checkpoint", "scratch"] = "prune"
    """Cut from the teacher's layers, read from a local checkpoint, or made anew."""
    layers: Count | None = None
    """Layers kept when pruning, or made from scratch; None keeps two thirds."""
    choose: Literal["influence", "greedy"] = "influence"
    """How the kept layers are chosen, both measured on real exchanges: by block influence, or by removing one after
    the other whichever costs the least KL."""
    keep: tuple[int, ...] | None = None
    """Kept layers by number, when a measurement has already been made."""
    checkpoint: Path | None = None
    """A Hugging Face folder, for init 'checkpoint'."""
    hidden_size: Count | None = None
    """Width, for init 'scratch'."""
    teach_identity: bool = True
    """Teach it to say that it is `name`, distilled from the teacher."""


class TrainSettings(Settings):
    """How it is trained. The train room extends this; every key has a default."""

    targets: Literal["soft", "hard", "full"] = "soft"
    """Forward KL against the kept top-k and its tail, cross-entropy on the answers, or forward KL against the local
    teacher's full logits."""
    learning_rate: Annotated[float, Field(gt=0)] = 4e-4
    """Peak of the schedule."""
    epochs: Annotated[float, Field(gt=0)] = 2.0
    """Passes over the exchanges; decides the number of steps."""
    seed: int = 7
    """Order of batches, and of the weights made anew."""


class EvaluateSettings(Settings):
    """How closeness is measured."""

    prompts: tuple[Path, ...] = ()
    """Held-out prompt files; none of them may occur in training."""
    exchanges: Count | None = None
    """Held-out answers used; None uses all prompts."""
    max_tokens: Count = 128
    """Answer tokens of a held-out answer."""
    seed: int = 11
    """Of the held-out answers and the bootstrap."""


class Recipe(Settings):
    """A whole distillation: `stillhouse distill RECIPE.yaml`."""

    name: str
    """The run's folder under `runs`."""
    teacher: str
    """Model spec of the teacher."""
    runs: Path = Path("runs")
    """Where runs are kept."""
    student: StudentSettings = StudentSettings()
    collect: CollectSettings = CollectSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
