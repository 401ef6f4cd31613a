"""The student's first weights: cut from its teacher, read from a folder, or made anew.

In: the teacher's network (a decoder with `model.layers`, as transformers writes Llama, Mistral and
Qwen) and a few real exchanges. Out: a network of fewer layers, and a record of what was measured to
choose them. Cutting has two steps. *Choice*: by block influence (1 - cosine between a layer's input
and output), or greedily, removing one layer after the other, each time the one whose absence costs
the least KL on the exchanges. *Healing*: in one pass, each kept layer's MLP output matrix is
corrected by ridge regression so that the student's hidden state comes close to what the teacher has
where the next kept layer begins; no gradient step is made.

Sources: block influence, Men et al. 2024, arXiv 2403.03853 (ShortGPT); greedy removal by measured
loss, Kim et al. 2024, arXiv 2402.02834 (Shortened LLaMA); least squares after removal, in the
spirit of Song et al. 2024, arXiv 2402.09025 (SLEB) and of Frantar and Alistarh 2022, arXiv
2208.11580.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stillhouse.config import StudentSettings
from stillhouse.errors import ConfigError, DataError
from stillhouse.report import Progress, Silent
from stillhouse.train.batches import Batch, collate
from stillhouse.train.targets import Example

__all__ = ["InitRecord", "from_checkpoint", "from_scratch", "layers_of", "precision", "prune"]


@dataclass
class InitRecord:
    """How the first weights came about; part of `train.json`."""

    init: str
    kept_layers: list[int] = field(default_factory=list)
    teacher_layers: int = 0
    choose: str = ""
    """influence, greedy or given."""
    influence: list[float] = field(default_factory=list)
    """Per teacher layer, 1 - cosine between its input and output, mean over tokens."""
    removed: list[dict[str, float]] = field(default_factory=list)
    """Greedy choice: each removal with the KL in nats it led to."""
    measured_tokens: int = 0
    healed: bool = False
    kl_nats: dict[str, float] = field(default_factory=dict)
    """KL(teacher || student) on answers of other exchanges, before and after healing."""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dict(vars(self))


def precision(dtype: torch.dtype) -> AbstractContextManager[Any]:
    """A context in which matrix products run in `dtype`; sums, norms and weights stay float32."""
    if dtype == torch.float32:
        return nullcontext()
    # Without its cache of cast weights: healing changes weights inside one context, and a stale
    # copy would answer for the old ones. Training uses each weight once a pass, so nothing is lost.
    return torch.autocast("cpu", dtype=dtype, cache_enabled=False)


def layers_of(network: Any) -> torch.nn.ModuleList:
    """The decoder layers of a transformers causal language model.

    Raises:
        DataError: they are not where Llama-like models keep them.
    """
    layers = getattr(getattr(network, "model", None), "layers", None)
    if not isinstance(layers, torch.nn.ModuleList):
        raise DataError(
            type(network).__name__, "no `model.layers`", "a Llama-like decoder (Llama, Qwen, ...)",
            "Set student.init=checkpoint and bring a student of your own",
        )  # fmt: skip
    return layers


def from_checkpoint(folder: Path | None) -> tuple[Any, InitRecord]:
    """(the network in a Hugging Face folder, in float32, its record).

    Raises:
        ConfigError: no such folder.
    """
    from transformers import AutoModelForCausalLM

    if folder is None or not (folder / "config.json").exists():
        raise ConfigError(
            "student.checkpoint", f"'{folder}'", "a Hugging Face folder with config.json",
            "Name the folder, or set student.init=prune",
        )  # fmt: skip
    network = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    return network, InitRecord(init="checkpoint")


def from_scratch(teacher: Any, settings: StudentSettings, seed: int) -> tuple[Any, InitRecord]:
    """(a network like the teacher's with new weights and the sizes in the settings, its record).

    The MLP's width and the heads follow `hidden_size` in the teacher's proportions.

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
    config.intermediate_size = round(config.intermediate_size * width / config.hidden_size)
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
    record = InitRecord(init="prune", teacher_layers=depth, healed=settings.heal)
    batches, used = _measured(examples, settings.measure_tokens)
    # judged on exchanges that the healing did not see, where there are any
    check, _ = _measured(examples[used:] or examples, max(1, settings.measure_tokens // 4))
    record.measured_tokens = sum(b.answer_tokens for b in batches)
    count = len(settings.keep) if settings.keep else settings.layers or _two_thirds(depth)
    with torch.no_grad(), precision(dtype):
        record.kept_layers = _choose(teacher, examples, batches, settings, count, record, progress)
        student = _cut(teacher, record.kept_layers)
        wanted = [_logprobs(teacher, b) for b in check]
        record.kl_nats["cut"] = _kl(student, check, wanted)
        if settings.heal:
            _heal(teacher, student, record.kept_layers, batches, progress)
            record.kl_nats["healed"] = _kl(student, check, wanted)
    record.seconds = round(time.monotonic() - began, 1)
    steps = " -> ".join(f"{k} {v:.2f}" for k, v in record.kl_nats.items())
    progress.say(f"kept layers {record.kept_layers} of {depth}; KL in nats: {steps}")
    return student, record


def _two_thirds(depth: int) -> int:
    return max(1, round(depth * 2 / 3))


def _measured(examples: Sequence[Example], tokens: int) -> tuple[list[Batch], int]:
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
    return [collate(chosen[i : i + 8]) for i in range(0, count, 8)], count


# ---- the network, a layer at a time ----


def _embed(network: Any, batch: Batch) -> tuple[Tensor, Any]:
    """(B, S, D) what the first layer sees, and the rotary angles every layer is given."""
    hidden = network.model.embed_tokens(batch.input_ids)
    positions = torch.arange(hidden.shape[1])[None]
    return hidden, network.model.rotary_emb(hidden, positions)


def _step(layer: Any, hidden: Tensor, angles: Any) -> Tensor:
    """(B, S, D) after a layer; without a mask, attention is causal."""
    out = layer(hidden, attention_mask=None, position_embeddings=angles)
    return out[0] if isinstance(out, tuple) else out


def _head(network: Any, hidden: Tensor, batch: Batch) -> Tensor:
    """(T, V) log-probabilities at the answer positions."""
    rows = network.model.norm(hidden).flatten(0, 1)[batch.positions]
    logits = functional.linear(rows, network.get_output_embeddings().weight)
    return functional.log_softmax(logits.float(), dim=-1)


def _logprobs(network: Any, batch: Batch) -> Tensor:
    hidden, angles = _embed(network, batch)
    for layer in layers_of(network):
        hidden = _step(layer, hidden, angles)
    return _head(network, hidden, batch)


def _kl(network: Any, batches: Sequence[Batch], wanted: Sequence[Tensor]) -> float:
    """Mean KL(teacher || network) in nats over the answer tokens."""
    total = sum(_kl_sum(_logprobs(network, b), w) for b, w in zip(batches, wanted, strict=True))
    return round(total / sum(b.answer_tokens for b in batches), 4)


def _kl_sum(log_q: Tensor, log_p: Tensor) -> float:
    return float(functional.kl_div(log_q, log_p, reduction="sum", log_target=True))


# ---- choice ----


def _choose(
    teacher: Any, examples: Sequence[Example], batches: list[Batch], settings: StudentSettings,
    count: int, record: InitRecord, progress: Progress,
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
    record.influence = _influence(teacher, batches[: max(1, len(batches) // 2)])
    record.choose = "given" if keep else settings.choose
    if keep:
        return keep
    if settings.choose == "influence":
        # Ties go to the later layer, which fewer others build upon.
        weakest = sorted(range(depth), key=lambda i: (record.influence[i], -i))[: depth - count]
        return [i for i in range(depth) if i not in weakest]
    return _greedy(teacher, _small(examples), count, record, progress)


def _influence(teacher: Any, batches: Sequence[Batch]) -> list[float]:
    """1 - cosine between input and output of each layer, mean over the exchanges' tokens."""
    layers = layers_of(teacher)
    totals, tokens = [0.0] * len(layers), 0
    for batch in batches:
        hidden, angles = _embed(teacher, batch)
        for i, layer in enumerate(layers):
            after = _step(layer, hidden, angles)
            rows, rows_after = (h.flatten(0, 1)[batch.positions] for h in (hidden, after))
            cosine = functional.cosine_similarity(rows.float(), rows_after.float(), dim=-1)
            totals[i] += float((1 - cosine).sum())
            hidden = after
        tokens += batch.answer_tokens
    return [round(total / tokens, 4) for total in totals]


# The first layer makes the residual stream what it is (influence .99 in every model looked at);
# after the first round only the cheapest removals of the round before are tried again.
_NEVER_REMOVED = 0
_CANDIDATES = 12


def _greedy(
    teacher: Any, batch: Batch, count: int, record: InitRecord, progress: Progress
) -> list[int]:
    """Remove one layer after the other, each time the one whose absence costs the least KL."""
    layers = layers_of(teacher)
    kept = list(range(len(layers)))
    candidates = [i for i in kept if i != _NEVER_REMOVED]
    wanted = _logprobs(teacher, batch)
    progress.start("choosing layers", len(layers) - count, "layers removed")
    while len(kept) > count:
        costs: list[tuple[float, int]] = []
        hidden, angles = _embed(teacher, batch)
        for place, number in enumerate(kept):  # what comes before a removed layer is computed once
            if number in candidates:
                without = hidden
                for later in kept[place + 1 :]:
                    without = _step(layers[later], without, angles)
                kl = _kl_sum(_head(teacher, without, batch), wanted) / batch.answer_tokens
                costs.append((kl, number))
            hidden = _step(layers[number], hidden, angles)
        costs.sort()
        kl, removed = costs[0]
        kept.remove(removed)
        record.removed.append({"layer": removed, "kl_nats": round(kl, 4)})
        candidates = [number for _, number in costs[1 : _CANDIDATES + 1]]
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


# Added to the diagonal of the normal equations, as a share of its mean. On 7,000 tokens .1 gave
# KL 1.18, .01 1.37 (it fits the few tokens) and 1 1.48 (docs/lab-notes.md).
_RIDGE = 0.1


def _heal(
    teacher: Any, student: Any, keep: list[int], batches: list[Batch], progress: Progress
) -> None:
    """Correct each kept layer's MLP output matrix (D, M), in place, first to last.

    Teacher and student go through their layers side by side, so only two hidden states of each
    token are alive. Tokens count alike (weighing them by their norm gave KL 1.18, not 1.12).
    """
    theirs, ours = layers_of(teacher), layers_of(student)
    states = [_embed(teacher, b) for b in batches]
    wanted = [hidden for hidden, _ in states]
    hidden = list(wanted)
    common = _common_prefix(batches)
    rows = [_rows_that_count(b, common, b is batches[0]) for b in batches]
    depth = 0
    progress.start("healing the cut", len(keep), "layers")
    for place, number in enumerate(keep):
        until = keep[place + 1] if place + 1 < len(keep) else len(theirs)
        while depth < until:
            wanted = [
                _step(theirs[depth], w, angles)
                for w, (_, angles) in zip(wanted, states, strict=True)
            ]
            depth += 1
        hidden = _heal_layer(ours[place], hidden, wanted, [a for _, a in states], rows)
        progress.advance(place + 1, f"layer {number}")
    progress.finish()


def _heal_layer(
    layer: Any, hidden: list[Tensor], wanted: list[Tensor], angles: list[Any], rows: list[Tensor]
) -> list[Tensor]:
    """The layer's outputs after its correction."""
    matrix = layer.mlp.down_proj
    inputs: list[Tensor] = []
    hook = matrix.register_forward_pre_hook(lambda _module, args: inputs.append(args[0].float()))
    outputs = [_step(layer, h, a) for h, a in zip(hidden, angles, strict=True)]
    hook.remove()
    size = matrix.weight.shape[1]
    gram, cross = torch.zeros(size, size), torch.zeros(size, matrix.weight.shape[0])
    for x, out, want, chosen in zip(inputs, outputs, wanted, rows, strict=True):
        x, missing = x.flatten(0, 1)[chosen], (want - out).flatten(0, 1)[chosen].float()
        gram += x.T @ x
        cross += x.T @ missing
    gram.diagonal().add_(_RIDGE * float(gram.diagonal().mean()))
    change = torch.linalg.solve(gram, cross).T
    matrix.weight.add_(change)
    return [
        out + functional.linear(x, change).to(out.dtype)
        for out, x in zip(outputs, inputs, strict=True)
    ]


def _rows_that_count(batch: Batch, common: int, first: bool) -> Tensor:
    """Rows of the flattened batch that are no padding; the beginning all exchanges have in common
    counts once, in the first row of the first batch.

    Its first token must be among them: its state is hundreds of times larger than any other's, all
    later tokens lean on it, and a correction that is free to change it ruins the network (KL 2.02
    instead of 1.12 nats, docs/lab-notes.md).
    """
    size, width = batch.input_ids.shape
    ends = torch.zeros(size, dtype=torch.long)
    ends.scatter_reduce_(0, batch.positions // width, batch.positions % width, "amax")
    starts = torch.full((size,), common)
    if first:
        starts[0] = 0
    columns = torch.arange(width)[None]
    return ((columns >= starts[:, None]) & (columns <= ends[:, None])).flatten()


def _common_prefix(batches: Sequence[Batch]) -> int:
    """Tokens that all examples begin with: the template's own."""
    rows = [row for batch in batches for row in batch.input_ids.tolist()]
    low, high = min(rows), max(rows)
    pairs = zip(low, high, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(low), len(high)))
