"""The student's first weights: cut from its teacher, read from a folder, or made anew.

In: the teacher's network (a decoder with `model.layers`, as transformers writes Llama, Mistral and
Qwen) and a few real exchanges. Out: a network of fewer layers or narrower MLPs, and a record of
what was measured to choose them. *Layers* are chosen by block influence (1 - cosine between a
layer's input and output), or greedily, removing one after the other, each time the one whose
absence costs the least KL on the exchanges. *Healing* (`heal.py`) then solves each kept layer's MLP
output matrix anew by ridge regression, so that the student's hidden state comes close to what the
teacher has where the next kept layer begins, and chooses the *neurons* that stay (`narrow.py`).

Sources: block influence, Men et al. 2024, arXiv 2403.03853 (ShortGPT); greedy removal by measured
loss, Kim et al. 2024, arXiv 2402.02834 (Shortened LLaMA).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from stillhouse.config import StudentSettings
from stillhouse.errors import ConfigError
from stillhouse.models.local_network import common_prefix
from stillhouse.progress import Progress, Silent
from stillhouse.train.batches import Batch, collate
from stillhouse.train.heal import heal
from stillhouse.train.layers import (
    after_layer,
    answer_logprobs,
    embedded,
    kl_sum,
    layers_of,
    mean_kl,
    network_logprobs,
    precision,
)
from stillhouse.train.packed import Packed, pack, packing
from stillhouse.train.targets import Example

__all__ = ["InitRecord", "from_checkpoint", "from_scratch", "prune"]


@dataclass
class InitRecord:
    """How the first weights came about; part of `train.json`."""

    init: str
    kept_layers: list[int] = field(default_factory=list)
    teacher_layers: int = 0
    choose: str = ""
    """influence, greedy, given, or all where none is removed."""
    influence: list[float] = field(default_factory=list)
    """Per teacher layer, 1 - cosine between its input and output, mean over tokens; empty where
    the choice did not need it.
    """
    removed: list[dict[str, float]] = field(default_factory=list)
    """Greedy choice: each removal with the KL in nats it led to."""
    intermediate_size: int = 0
    """Neurons of each MLP."""
    teacher_intermediate_size: int = 0
    measured_tokens: int = 0
    healed: bool = False
    kl_nats: dict[str, float] = field(default_factory=dict)
    """KL(teacher || student) on answers of other exchanges: after cutting layers ('cut'), and after
    healing ('healed') or narrowing and healing ('narrowed').
    """
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dict(vars(self))


def from_checkpoint(folder: Path | None) -> tuple[Any, InitRecord]:
    """(the network in a Hugging Face folder, in float32, its record).

    Raises:
        ConfigError: no such folder.
    """
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    if folder is None or not (folder / "config.json").exists():
        raise ConfigError(
            "student.checkpoint", f"'{folder}'", "a Hugging Face folder with config.json",
            "Name the folder, or set student.init=prune",
        )  # fmt: skip
    network = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    return network, InitRecord(init="checkpoint")


def from_scratch(teacher: Any, settings: StudentSettings, seed: int) -> tuple[Any, InitRecord]:
    """(a network like the teacher's with new weights and the sizes in the settings, its record).

    Heads, and the MLP's width unless given, follow `hidden_size` in the teacher's proportions.

    Raises:
        ConfigError: a width that the teacher's head size does not divide.
    """
    config = _bare_config(teacher)
    layers = settings.layers or _two_thirds(config.num_hidden_layers)
    width = settings.hidden_size or config.hidden_size
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    groups = config.num_attention_heads // config.num_key_value_heads
    if width % (head * groups):
        raise ConfigError(
            "student.hidden_size", str(width),
            f"a multiple of {head * groups} (head size {head} times {groups} heads a group)",
            f"Choose for example {max(1, width // (head * groups)) * head * groups}",
        )  # fmt: skip
    proportional = round(config.intermediate_size * width / config.hidden_size)
    config.intermediate_size = settings.intermediate_size or proportional
    config.hidden_size, config.num_attention_heads = width, width // head
    config.num_key_value_heads = config.num_attention_heads // groups
    _set_layers(config, list(range(layers)) if layers <= config.num_hidden_layers else None, layers)
    torch.manual_seed(seed)
    return type(teacher)(config).float(), InitRecord(init="scratch")


def prune(
    teacher: Any,
    examples: Sequence[Example],
    settings: StudentSettings,
    *,
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> tuple[Any, InitRecord]:
    """(the teacher's network with the layers kept that matter most, what was measured).

    Args:
        teacher: its network, left unchanged.
        examples: real exchanges to measure on; the first ones are used.
        settings: how many layers, how they are chosen, whether the cut is healed.
        dtype: precision of the matrix products.
        progress: told of each decision.

    Raises:
        ConfigError: layers that the teacher does not have.
    """
    progress = progress or Silent()
    began = time.monotonic()
    depth = len(layers_of(teacher))
    width = _width(teacher, settings)
    record = InitRecord(init="prune", teacher_layers=depth, healed=settings.heal)
    record.teacher_intermediate_size = getattr(teacher.config, "intermediate_size", 0)
    record.intermediate_size = width or record.teacher_intermediate_size
    count = settings.layers or (depth if width else _two_thirds(depth))
    count = len(settings.keep) if settings.keep else count
    with torch.no_grad(), precision(dtype), packing(teacher):
        batches, used = _measured(teacher, examples, settings.measure_tokens)
        # judged on exchanges that the healing did not see, where there are any
        others = examples[used:] or examples
        check, _ = _measured(teacher, others, min(settings.measure_tokens, _CHECK_TOKENS))
        record.measured_tokens = sum(len(b.at) for b in batches)
        record.kept_layers = _choose(teacher, examples, settings, count, record, progress)
        student = _cut(teacher, record.kept_layers)
        wanted = [network_logprobs(teacher, b) for b in check]
        if len(record.kept_layers) < depth or not settings.heal:
            record.kl_nats["cut"] = mean_kl(student, check, wanted)
        if settings.heal:
            heal(teacher, student, record.kept_layers, batches, progress, width=width)
            record.kl_nats["narrowed" if width else "healed"] = mean_kl(student, check, wanted)
    student.set_attn_implementation(teacher.config._attn_implementation)
    record.seconds = round(time.monotonic() - began, 1)
    steps = " -> ".join(f"{k} {v:.2f}" for k, v in record.kl_nats.items())
    kept = "all" if len(record.kept_layers) == depth else str(record.kept_layers)
    of_each = f", {width} of {teacher.config.intermediate_size} neurons each" if width else ""
    progress.say(f"kept layers: {kept} of {depth}{of_each}; KL in nats: {steps}")
    return student, record


# Enough to tell two cuts apart; whole distributions of so many tokens are 400 MB.
_CHECK_TOKENS = 2000


# With all layers kept, a Llama of 135 million parameters is then three quarters of its size;
# processors like widths in multiples of a vector's.
_NARROW, _ROUND = 0.54, 16


def _width(teacher: Any, settings: StudentSettings) -> int | None:
    """Neurons kept of each MLP, or None for all."""
    width, whole = settings.intermediate_size, getattr(teacher.config, "intermediate_size", 0)
    if width is None and not settings.layers and not settings.keep and settings.heal:
        width = round(whole * _NARROW / _ROUND) * _ROUND or whole
    if width is None or width == whole:
        return None
    if width > whole:
        raise ConfigError(
            "student.intermediate_size", str(width), f"at most the teacher's {whole}",
            "Lower it, or leave it out",
        )  # fmt: skip
    return width


def _two_thirds(depth: int) -> int:
    return max(1, round(depth * 2 / 3))


def _measured(network: Any, examples: Sequence[Example], tokens: int) -> tuple[list[Packed], int]:
    """(batches of like length from the first examples, about `tokens` positions in all, how many
    examples that took).
    """
    chosen: list[Example] = []
    for example in examples:
        if tokens <= 0:
            break
        chosen.append(example)
        tokens -= len(example.ids)
    count = len(chosen)
    chosen.sort(key=lambda e: len(e.ids))
    batches = [collate(chosen[i : i + 8]) for i in range(0, count, 8)]
    shared = common_prefix([e.ids.tolist() for e in chosen]) if count > 1 else 0
    return [pack(network, batch, alone=shared) for batch in batches], count


# ---- choice ----


def _choose(
    teacher: Any, examples: Sequence[Example], settings: StudentSettings, count: int,
    record: InitRecord, progress: Progress,
) -> list[int]:  # fmt: skip
    """The kept layers in order, after measuring; fills the record."""
    depth = len(layers_of(teacher))
    keep = list(settings.keep or ())
    if not 0 < count <= depth or keep != sorted(set(keep)) or any(not 0 <= k < depth for k in keep):
        raise ConfigError(
            "student.keep" if keep else "student.layers", str(keep or count),
            f"increasing numbers from 0 to {depth - 1}" if keep else f"1 to {depth} layers",
            "Correct the setting",
        )  # fmt: skip
    if count == depth:
        record.choose = "all"
        return list(range(depth))
    record.choose = "given" if keep else settings.choose
    if keep:
        return keep
    record.influence = _influence(teacher, _measured(teacher, examples, _INFLUENCE_TOKENS)[0])
    if settings.choose == "influence":
        # Ties go to the later layer, which fewer others build upon.
        weakest = sorted(range(depth), key=lambda i: (record.influence[i], -i))[: depth - count]
        return [i for i in range(depth) if i not in weakest]
    return _greedy(teacher, pack(teacher, _small(examples)), count, record, progress)


# A mean over some 2,000 answer tokens; influence differs by halves between layers that matter.
_INFLUENCE_TOKENS = 4000


def _influence(teacher: Any, batches: Sequence[Packed]) -> list[float]:
    """1 - cosine between input and output of each layer, mean over the exchanges' tokens."""
    layers = layers_of(teacher)
    totals, tokens = [0.0] * len(layers), 0
    for batch in batches:
        hidden, where = embedded(teacher, batch)
        for i, layer in enumerate(layers):
            after = after_layer(layer, hidden, where)
            rows, rows_after = (h.flatten(0, 1)[batch.at] for h in (hidden, after))
            cosine = functional.cosine_similarity(rows.float(), rows_after.float(), dim=-1)
            totals[i] += float((1 - cosine).sum())
            hidden = after
        tokens += len(batch.at)
    return [round(total / tokens, 4) for total in totals]


# The first layer makes the residual stream what it is (influence .99 in every model looked at);
# after the first round only the removals that were cheapest when last tried are tried again.
_NEVER_REMOVED = 0
_CANDIDATES = 12


def _greedy(
    teacher: Any, batch: Packed, count: int, record: InitRecord, progress: Progress
) -> list[int]:
    """Remove one layer after the other, each time the one whose absence costs the least KL."""
    layers = layers_of(teacher)
    kept = list(range(len(layers)))
    candidates = [i for i in kept if i != _NEVER_REMOVED]
    known: dict[int, float] = {}
    wanted = network_logprobs(teacher, batch)
    progress.start("choosing layers", len(layers) - count, "layers removed")
    while len(kept) > count:
        hidden, where = embedded(teacher, batch)
        for place, number in enumerate(kept):  # what comes before a removed layer is computed once
            if number in candidates:
                without = hidden
                for later in kept[place + 1 :]:
                    without = after_layer(layers[later], without, where)
                lost = kl_sum(answer_logprobs(teacher, without, batch), wanted) / len(batch.at)
                known[number] = float(lost)
            hidden = after_layer(layers[number], hidden, where)
        removed = min(candidates, key=lambda number: (known[number], number))
        kl = known.pop(removed)
        kept.remove(removed)
        record.removed.append({"layer": removed, "kl_nats": round(kl, 4)})
        candidates = sorted(known, key=lambda number: (known[number], number))[:_CANDIDATES]
        progress.advance(len(layers) - len(kept), f"KL {kl:.2f} nats")
    progress.finish(f"removed {[int(r['layer']) for r in record.removed]}")
    return kept


# A greedy round passes over them a dozen times; 400 positions from ten exchanges order the layers
# as 4,000 from forty do (docs/lab-notes.md).
_GREEDY_EXAMPLES, _GREEDY_ANSWER = 10, 40


def _small(examples: Sequence[Example]) -> Batch:
    """The beginnings of a few answers."""
    return collate(
        [
            Example(e.key, e.ids[: e.prompt_tokens + _GREEDY_ANSWER], e.prompt_tokens)
            for e in examples[:_GREEDY_EXAMPLES]
        ]
    )


# ---- the cut, and its healing ----


def _bare_config(network: Any) -> Any:
    """A copy of the configuration without what belongs to the file it was read from."""
    config = copy.deepcopy(network.config)
    for name in ("quantization_config", "_name_or_path"):
        if hasattr(config, name):
            delattr(config, name) if name == "quantization_config" else setattr(config, name, "")
    return config


def _set_layers(config: Any, keep: list[int] | None, count: int) -> None:
    """Write the number of layers, and the kept entries of what is listed per layer."""
    config.num_hidden_layers = count
    types = getattr(config, "layer_types", None)
    if types:
        config.layer_types = [types[i] for i in keep] if keep else [types[0]] * count


def _cut(teacher: Any, keep: list[int]) -> Any:
    """A new network that holds copies of the kept layers."""
    config = _bare_config(teacher)
    _set_layers(config, keep, len(keep))
    student = type(teacher)(config).float()
    weights = {
        name: value for name, value in teacher.state_dict().items() if ".layers." not in name
    }
    for place, number in enumerate(keep):
        for name, value in layers_of(teacher)[number].state_dict().items():
            weights[f"model.layers.{place}.{name}"] = value
    student.load_state_dict(weights)
    return student.eval()
