"""The settings of a distillation, and recipes of them.

In: YAML recipes and `key=value` overrides. Out: checked, frozen settings, from which a run can be
repeated. Nothing here starts work; paths are not opened.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.functional_validators import model_validator

from stillhouse.errors import ConfigError
from stillhouse.settings import Count, InputPath, Settings, Share, make, parsed_yaml, read_yaml

__all__ = [
    "CollectSettings", "EvaluateSettings", "Recipe", "StudentSettings", "TrainSettings",
    "fingerprint", "load_recipe",
]  # fmt: skip


class CollectSettings(Settings):
    """What is asked of the teacher, and how."""

    prompts: tuple[InputPath, ...] = ()
    """Prompt files (JSONL, text, Parquet) or folders of them."""
    exchanges: Count | None = None
    """Stop after this many exchanges in the store. Without it every prompt is asked."""
    samples_per_prompt: Count = 1
    """Answers drawn for each prompt."""
    escrow: InputPath | None = None
    """A folder for escrowed twins: each answer is drawn twice, a secret coin says which of the two
    goes into the store, and the other is kept here, for `stillhouse audit twin`."""
    watermark: InputPath | None = None
    """A key file of `stillhouse audit key`: answers are marked with its green list while they are
    drawn. Needs the local engine."""
    engine: Literal["auto", "llamacpp", "local"] = "auto"
    """What answers for a GGUF teacher: llama.cpp's server, or its weights de-quantised in torch."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the local engine's matrix products; auto takes bfloat16 where the processor has
    instructions for it: faster, and log-probabilities move by hundredths of a nat."""
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
    max_rejected: Share = 0.2
    """Largest share of unusable records, 0 to 1, before the prompt files are refused (from 20
    records on)."""
    concurrency: Count = 16
    """Requests in flight (slots of the embedded server)."""
    authorisation: InputPath | None = None
    """A file that names who allows a teacher whose terms refuse or are unknown, and why."""
    seed: int = 7
    """Random seed of the answers; each request's own is derived from it."""


class StudentSettings(Settings):
    """What is trained."""

    name: str = "Stillhouse student"
    """What it calls itself."""
    init: Literal["prune", "checkpoint", "scratch"] = "prune"
    """Cut from the teacher's layers, read from a local checkpoint, or made anew."""
    layers: Count | None = None
    """Layers kept when pruning, or made from scratch. Where neither layers nor MLPs are given,
    pruning keeps all layers and narrows the MLPs to 0.54, and from scratch two thirds are made."""
    choose: Literal["influence", "greedy"] = "influence"
    """How the kept layers are chosen, both measured on real exchanges: by block influence, or by
    removing one after the other whichever costs the least KL."""
    keep: tuple[int, ...] | None = None
    """Kept layers by number, when a measurement has already been made."""
    checkpoint: InputPath | None = None
    """A Hugging Face folder, for init 'checkpoint'."""
    hidden_size: Count | None = None
    """Width, for init 'scratch'."""
    intermediate_size: Count | None = None
    """Neurons of each layer's MLP: when pruning, those kept that least squares can least do
    without. None keeps all where layers are given, or the teacher's proportions from scratch."""
    heal: bool = True
    """After cutting, correct each kept layer by least squares towards the teacher's hidden states;
    a minute of work, no gradient steps."""
    measure_tokens: Count = 24000
    """Tokens of real exchanges that layers are healed on; more are better, and cost time."""
    teach_identity: bool = True
    """Teach it to say that it is `name`, distilled from the teacher."""

    @model_validator(mode="after")
    def _no_contradiction(self) -> StudentSettings:
        """Refuse what would be ignored, before the first request and not after the last."""
        for key in _FOREIGN[self.init]:
            value = getattr(self, key)
            if value != type(self).model_fields[key].default:
                raise ConfigError(
                    f"student.{key}", f"{value} with student.init '{self.init}', which ignores it",
                    "settings that go together", f"Leave out student.{key}, or change student.init",
                )  # fmt: skip
        if self.init == "prune" and self.intermediate_size and not self.heal:
            raise ConfigError(
                "student.heal", "false, with student.intermediate_size",
                "true: neurons are chosen by the regression that heals", "Leave one of the two out",
            )  # fmt: skip
        return self


_FOREIGN = {
    "prune": ("checkpoint", "hidden_size"),
    "checkpoint": ("layers", "keep", "hidden_size", "intermediate_size", "heal"),
    "scratch": ("checkpoint", "keep", "heal"),
}
"""Settings of a student that its `init` has no use for."""


class TrainSettings(Settings):
    """How it is trained. Every key has a default."""

    targets: Literal["soft", "hard", "full"] = "soft"
    """Forward KL against the kept top-k and its tail, cross-entropy on the answers, or forward KL
    against the local teacher's full logits."""
    target_source: Literal["stored", "teacher"] = "stored"
    """Soft targets from the log-probabilities stored with the exchanges, or from the local teacher,
    which then scores the stored answers."""
    top_k: Count | None = None
    """Alternatives used of each token; None uses all that are stored (64 where the teacher
    scores)."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """Peak of the schedule: a few steps of warm-up, then linear to zero."""
    warmup_steps: Annotated[int, Field(ge=0)] = 5
    """Steps in which the learning rate rises from zero."""
    epochs: Annotated[float, Field(gt=0)] = 2.0
    """Passes over the exchanges; decides the number of steps."""
    batch_tokens: Count = 1000
    """Answer tokens in a step."""
    piece_tokens: Count = 1536
    """Padded tokens in one forward pass; bounds memory, changes neither loss nor gradient."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's, on matrices."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """AdamW's memory of squared gradients; short runs want a short one."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients longer than this are scaled down to it."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of matrix products (weights and sums stay float32). auto takes bfloat16 where the processor
    has instructions for it, which is twice as fast there and half as fast elsewhere."""
    train_embeddings: bool = False
    """Train the token embeddings, too, which the head shares; costs time and memory."""
    identity_share: Share = 0.15
    """Rows about who the student is, as a share of the exchanges."""
    validation_exchanges: Annotated[int, Field(ge=0)] = 8
    """Exchanges kept apart from training for the curve of agreement over time."""
    validation_points: Count = 8
    """Points of that curve."""
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 120.0
    """Seconds between checkpoints; 0 writes one after every step."""
    seed: int = 7
    """Random seed of the order of batches, and of weights made anew."""


class EvaluateSettings(Settings):
    """How closeness is measured."""

    prompts: tuple[InputPath, ...] = ()
    """Held-out prompt files or folders of them; no prompt of theirs may occur in training."""
    exchanges: Annotated[int, Field(ge=5)] | None = None
    """Held-out answers used, five or more. Without it all prompts are used."""
    max_tokens: Count = 128
    """Answer tokens of a held-out answer."""
    top_p: Share = 1.0
    """Nucleus mass when held-out answers are drawn, at temperature 1; 1 keeps all. Models are
    compared over the whole vocabulary whatever is set here."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Most likely tokens kept when held-out answers are drawn; 0 keeps all."""
    min_p: Share = 0.0
    """Floor relative to the likeliest token when held-out answers are drawn; 0 is none."""
    seed: int = 11
    """Random seed of the held-out answers and the bootstrap."""
    identity_samples: Count = 2
    """Answers drawn for each question about who the model is."""
    speed_tokens: Count = 32
    """Tokens decoded in one timing."""
    speed_repeats: Annotated[int, Field(ge=6)] = 7
    """Timings of each model, in turns; six is the least a 95 % interval of a median takes."""
    speed_batch: Count = 1
    """Answers decoded at once in a timing."""


class Recipe(Settings):
    """A whole distillation: `stillhouse distill RECIPE.yaml`."""

    name: str
    """The run's folder under `runs`."""
    teacher: str
    """Model spec of the teacher."""
    exchanges: InputPath | None = None
    """A store collected before; the run then asks nothing for training."""
    runs: Path = Path("runs")
    """Where runs are kept."""
    student: StudentSettings = Field(default_factory=StudentSettings)
    collect: CollectSettings = Field(default_factory=CollectSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings)
    recorded: dict[str, Any] | None = None
    """What a finished run wrote beside its settings (versions, hashes); not read back."""

    @property
    def folder(self) -> Path:
        """`runs/NAME`."""
        return self.runs / self.name


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe in a YAML file, with `key=value` overrides (dotted keys, YAML values) laid over
    it.

    Paths in the file are relative to the file, paths in overrides to the current folder.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, a wrong value, an override that is not
        `key=value`.
    """
    data = read_yaml(path, "a recipe", "examples/quickstart.yaml")
    recipe = make(Recipe, data, where=str(path), base=path.parent)
    merged = recipe.model_dump(exclude_unset=True)
    overrides = list(overrides)
    for override in overrides:
        _lay_over(merged, override)
    return make(Recipe, merged, where="override" if overrides else str(path), base=Path())


def _lay_over(data: dict[str, Any], override: str) -> None:
    """Write one `a.b=value` into nested settings."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(
            f"override '{override}'", "no 'key=value'", "for example train.epochs=3",
            "Write the setting's dotted name, '=' and its value",
        )  # fmt: skip
    for part in parts[:-1]:
        inner = data.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(
                f"override '{override}'", f"'{part}' has no settings inside", "a dotted key",
                f"Known: {', '.join(Recipe.model_fields)}",
            )  # fmt: skip
        data = inner
    value = parsed_yaml(text, f"override '{override}'", "a value in YAML", "Correct the value")
    data[parts[-1]] = [value] if parts[-1] == "prompts" and isinstance(value, str) else value


def fingerprint(*parts: Any) -> str:
    """Tagged hash of plain values: equal inputs of a stage have equal fingerprints."""
    return "f1:" + hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
