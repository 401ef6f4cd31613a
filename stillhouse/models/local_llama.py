"""A plain Llama on the CPU, as fast as its matrix products: packed weights, one cache per wave.

In: token ids. Out: logits equal to transformers' to about 1e-4 (held by a test). What it saves
against its modules: torch's own float32 product, two thirds as fast as oneDNN with packed weights
where rows are few (130 to 170 against 205 GFLOP/s at 128 rows on two AMD cores); repeating keys and
values for grouped heads; growing the cache by copying; computing a common beginning of prompts (the
template's system prompt) for every row; and a prompt for each of its answers that are given
(`local_layout.py`). Anything but a plain Llama is refused (`fits`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F

from stillhouse.models.local_layout import Layout
from stillhouse.models.local_network import Answered, common_prefix

__all__ = ["LlamaWave", "PackedLlama", "fits"]

_HEAD_ROWS = 256  # rows of logits at a time when scoring: 50 MB of float32 at 49,152 words
_SHORTEST_PREFIX = 8  # a shorter common beginning is not worth a forward pass of its own
_DEFAULTS = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Linear = Callable[[torch.Tensor], torch.Tensor]


def fits(folder: Path) -> bool:
    """Whether the folder holds a plain Llama: no biases, no rotary scaling, SiLU, safetensors."""
    config = json.loads((folder / "config.json").read_text())
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return (
        config.get("model_type") == "llama"
        and all(config.get(key, value) == value for key, value in _DEFAULTS.items())
        and rope.get("rope_type", rope.get("type", "default")) == "default"
        and config.get("pretraining_tp", 1) == 1
        and "quantization_config" not in config
        and any(folder.glob("*.safetensors"))
    )


class LlamaWave:
    """Rows of one wave and their cache; prompts stand right-aligned, so all write one column."""

    def __init__(self, model: PackedLlama, lengths: Sequence[int], room: int) -> None:
        """Room for prompts of these lengths and `room` tokens each; memory is touched as filled."""
        self.filled = max(lengths)
        shape = (model.layers, len(lengths), model.kv_heads, self.filled + room, model.head_dim)
        self.keys, self.values = torch.empty(shape), torch.empty(shape, dtype=model.dtype)
        self.positions = torch.tensor(lengths)
        left = self.filled - self.positions
        # what stands before a short prompt weighs 0, but 0 times a NaN left in memory is a NaN
        before = int(left.max())
        self.keys[:, :, :, :before] = 0
        self.values[:, :, :, :before] = 0
        columns = torch.arange(self.filled + room)
        self.mask = torch.zeros(len(lengths), 1, self.filled + room)
        self.mask.masked_fill_((columns < left[:, None])[:, None], -torch.inf)
        self.padded = bool(left.any())

    def __len__(self) -> int:
        """Rows alive."""
        return len(self.positions)

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> list[int]:
        """Fill holes with the last rows: the fewest copies, order is not kept."""
        kept = set(rows)
        order = list(range(len(rows)))
        movers = [row for row in rows if row >= len(rows)]
        for hole, row in zip((r for r in order if r not in kept), movers, strict=True):
            self.keys[:, hole, :, : self.filled] = self.keys[:, row, :, : self.filled]
            self.values[:, hole, :, : self.filled] = self.values[:, row, :, : self.filled]
            order[hole] = row
        chosen = torch.tensor(order, dtype=torch.long)
        self.positions, self.mask = self.positions[chosen], self.mask[chosen]
        return order


def _packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN lays weights out: of bfloat16 it refuses where no instruction takes it."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PackedLlama:
    """`Network` for plain Llamas. Raises KeyError where the folder lacks a tensor."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Read and pack the weights. `dtype` is that of matrix products and cached values: bfloat16
        doubles their speed and moves log-probabilities by some hundredths of a nat.
        """
        config = json.loads((folder / "config.json").read_text())
        self.layers: int = config["num_hidden_layers"]
        self.heads: int = config["num_attention_heads"]
        self.kv_heads: int = config.get("num_key_value_heads") or self.heads
        self.head_dim: int = config.get("head_dim") or config["hidden_size"] // self.heads
        self.epsilon: float = config["rms_norm_eps"]
        self.context_tokens: int = config["max_position_embeddings"]
        self.position_bytes = self.layers * self.kv_heads * self.head_dim * (4 + dtype.itemsize)
        precision = str(dtype).removeprefix("torch.")
        self.engine = f"torch-{precision} {torch.__version__.split('+')[0]}"
        self.dtype = dtype
        self._prefix: tuple[tuple[int, ...], list[tuple[torch.Tensor, torch.Tensor]]] = ((), [])
        with torch.inference_mode():
            self._read(_Tensors(folder), config)
            self._rotary(config)

    def _read(self, tensors: _Tensors, config: dict[str, Any]) -> None:
        self._embedding = tensors("model.embed_tokens.weight")
        self.vocabulary = self._embedding.shape[0]
        tied = config.get("tie_word_embeddings", False)
        head = self._embedding if tied else tensors("lm_head.weight")
        self._head = self._pack(head * tensors("model.norm.weight"))
        self._blocks: list[tuple[Linear, Linear, Linear, Linear]] = []
        for layer in range(self.layers):
            at = f"model.layers.{layer}."
            q, k, v = (tensors(f"{at}self_attn.{part}_proj.weight") for part in "qkv")
            gate_up = [tensors(f"{at}mlp.{part}_proj.weight") for part in ("gate", "up")]
            # One row at a time, every small operation counts: what scales what a matrix reads or
            # gives (the norms' weights, attention's scale) is multiplied into it here, once.
            q = self._paired(q) * self.head_dim**-0.5
            qkv = torch.cat([q, self._paired(k), v])
            self._blocks.append(
                (
                    self._pack(qkv * tensors(f"{at}input_layernorm.weight")),
                    self._pack(tensors(f"{at}self_attn.o_proj.weight")),
                    self._pack(
                        torch.cat(gate_up) * tensors(f"{at}post_attention_layernorm.weight")
                    ),
                    self._pack(tensors(f"{at}mlp.down_proj.weight")),
                )
            )

    def _rotary(self, config: dict[str, Any]) -> None:
        rope = config.get("rope_parameters") or {}
        theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
        steps = torch.arange(0, self.head_dim, 2, dtype=torch.float) / self.head_dim
        angles = torch.arange(self.context_tokens).float()[:, None] * (1.0 / theta**steps)
        self._turns = torch.polar(torch.ones_like(angles), angles)[:, None]

    def _paired(self, weight: torch.Tensor) -> torch.Tensor:
        """Queries' or keys' rows so that the two numbers the rotary embedding turns together, half
        a head apart in Llama's weights, are neighbours: one complex product then turns them. Their
        dot products stay the same.
        """
        halves = weight.view(-1, 2, self.head_dim // 2, weight.shape[1])
        return halves.transpose(1, 2).reshape(weight.shape)

    def _pack(self, weight: torch.Tensor) -> Linear:
        """The function x -> x @ weight.T in float32, the weight laid out for the processor once."""
        weight = weight.to(self.dtype).contiguous()
        if not _packs(self.dtype):
            return lambda x: F.linear(x.to(weight.dtype), weight).float()
        # 128 rows: the usual number in flight. The layout serves other numbers as well.
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 128)
        product = torch.ops.mkldnn._linear_pointwise
        if self.dtype == torch.float32:
            return lambda x: product(x, packed, None, "none", [], "")
        return lambda x: product(x.to(self.dtype), packed, None, "none", [], "").float()

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        """The last hidden states (N, hidden) of N tokens; `attend` knows who sees whom."""
        x = self._embedding[ids]
        turns = self._turns[positions]
        turned = self.heads + self.kv_heads
        for layer, (qkv, out, gate_up, down) in enumerate(self._blocks):
            joint = qkv(self._normed(x))
            pairs = joint[:, : turned * self.head_dim].view(-1, turned, self.head_dim // 2, 2)
            qk = torch.view_as_real(torch.view_as_complex(pairs) * turns).flatten(-2)
            v = joint[:, turned * self.head_dim :].view(-1, self.kv_heads, self.head_dim)
            x = x + out(attend(layer, qk[:, : self.heads], qk[:, self.heads :], v))
            gate, up = gate_up(self._normed(x)).chunk(2, -1)
            x = x + down(F.silu(gate) * up)
        return self._normed(x)

    def _normed(self, x: torch.Tensor) -> torch.Tensor:
        """Rows scaled to a root mean square of 1: a third of the time of torch's for one row."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon)

    @torch.inference_mode()
    def step(self, waves: Sequence[LlamaWave], tokens: torch.Tensor) -> torch.Tensor:
        """The logits (N, V) after each of the N rows of all waves took its token (N,)."""
        groups = self.heads // self.kv_heads
        attended = torch.empty(len(tokens), self.heads * self.head_dim)

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            q = q.reshape(len(tokens) * self.kv_heads, groups, self.head_dim)
            first = 0
            for wave in waves:
                n, end = len(wave), wave.filled + 1
                rows = slice(first, first + n)
                keys, values = wave.keys[layer, :n], wave.values[layer, :n]
                keys[:, :, wave.filled], values[:, :, wave.filled] = k[rows], v[rows]
                mine = q[first * self.kv_heads : (first + n) * self.kv_heads]
                weights = mine.bmm(keys[:, :, :end].flatten(0, 1).transpose(1, 2))
                if wave.padded:
                    weights.view(n, -1, end).add_(wave.mask[:, :, :end])
                weights = weights.softmax(-1)
                seen = weights.to(values.dtype).bmm(values[:, :, :end].flatten(0, 1))
                attended[rows] = seen.view(n, -1)
                first += n
            return attended

        positions = torch.cat([wave.positions for wave in waves])
        hidden = self._forward(tokens, positions, attend)
        for wave in waves:
            wave.filled += 1
            wave.positions = wave.positions + 1
        return self._head(hidden)

    @torch.inference_mode()
    def begin(self, prompts: Sequence[Sequence[int]], room: int) -> tuple[LlamaWave, torch.Tensor]:
        """A wave of these prompts, and the logits (W, V) of each row's first answer token.

        Prompts that are asked for several times are computed once.
        """
        wave = LlamaWave(self, [len(prompt) for prompt in prompts], room)
        distinct = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
        place = {prompt: index for index, prompt in enumerate(distinct)}
        source = torch.tensor([place[tuple(prompt)] for prompt in prompts])
        layout = Layout([Answered(prompt, ()) for prompt in distinct], self._common(distinct))
        # every token of every row of the wave: its row, its column, and where it is computed
        rows = [(r, int(s)) for r, s in enumerate(source)]
        row = torch.cat([torch.full((layout.sizes[s],), r) for r, s in rows])
        flat = torch.cat([torch.arange(layout.sizes[s]) + layout.firsts[s] for _, s in rows])
        shift = wave.filled - wave.positions
        column = layout.positions[flat] + shift[row]
        common = layout.common
        prefix_row = torch.arange(len(prompts)).repeat_interleave(common)
        prefix_column = torch.arange(common).repeat(len(prompts)) + shift[prefix_row]

        def keep(layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
            keys, values = wave.keys[layer], wave.values[layer]
            keys[row, :, column], values[row, :, column] = k[flat], v[flat].to(values.dtype)
            if layout.prefix:
                k0, v0 = (part.transpose(0, 1) for part in layout.prefix[layer])
                v0 = v0.to(values.dtype)
                keys[prefix_row, :, prefix_column] = k0.repeat(len(prompts), 1, 1)
                values[prefix_row, :, prefix_column] = v0.repeat(len(prompts), 1, 1)

        hidden = self._read_through(layout, keep)
        return wave, self._head(hidden[layout.lasts])[source]

    @torch.inference_mode()
    def logits(self, texts: Sequence[Answered]) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Chunks (answer, position, logits (n, V)) of each answer; a prompt is computed once."""
        layout = Layout(texts, self._common([tuple(text.prompt) for text in texts]))
        hidden = self._read_through(layout, None)
        for answer, predicting in enumerate(layout.predicting):
            for position in range(0, len(predicting), _HEAD_ROWS):
                rows = predicting[position : position + _HEAD_ROWS]
                yield answer, position, self._head(hidden[rows])

    def _common(
        self, prompts: Sequence[tuple[int, ...]]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values (kv heads, P, head) of each layer for the prompts' common beginning.

        Empty when there is none worth it. The last one is kept: a template repeats its own.
        """
        if len(prompts) < 2:
            return []
        # each row computes at least its prompt's last token
        same = min(common_prefix(prompts), min(map(len, prompts)) - 1)
        if same < _SHORTEST_PREFIX:
            return []
        prefix = prompts[0][:same]
        if self._prefix[0] != prefix:
            kept: list[tuple[torch.Tensor, torch.Tensor]] = []
            self._read_through(
                Layout([Answered(prefix, ())], []),
                lambda _, k, v: kept.append((k.transpose(0, 1), v.transpose(0, 1))),
            )
            self._prefix = (prefix, kept)
        return self._prefix[1]

    def _read_through(
        self, layout: Layout, keep: Callable[[int, torch.Tensor, torch.Tensor], None] | None
    ) -> torch.Tensor:
        """Hidden states (N, hidden) of all tokens of a layout; linear layers see no padding."""
        spread = (len(layout.sizes), max(layout.sizes))
        common, mask = layout.common, layout.mask()

        # Each layer writes these anew; what no token stands on stays zero, as NaN would spread.
        wide_q = torch.zeros(*spread, self.heads, self.head_dim)
        wide_k, wide_v = torch.zeros(
            2, spread[0], common + spread[1], self.kv_heads, self.head_dim
        ).unbind()
        at = (layout.rows, layout.columns + common)

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            if keep:
                keep(layer, k, v)
            wide_q[layout.rows, layout.columns], wide_k[at], wide_v[at] = q, k, v
            if common:
                k0, v0 = layout.prefix[layer]
                wide_k[:, :common], wide_v[:, :common] = k0.transpose(0, 1), v0.transpose(0, 1)
            seen = F.scaled_dot_product_attention(
                wide_q.transpose(1, 2), wide_k.transpose(1, 2), wide_v.transpose(1, 2),
                attn_mask=mask, is_causal=mask is None, enable_gqa=True, scale=1.0,
            )  # fmt: skip
            return seen.transpose(1, 2)[layout.rows, layout.columns].flatten(1)

        return self._forward(layout.ids, layout.positions, attend)


class _Tensors:
    """A folder's tensors by name, as float32 copies: none keeps the file mapped into memory."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self._files = [safe_open(p, "pt") for p in sorted(folder.glob("*.safetensors"))]
        self._place = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118

    def __call__(self, name: str) -> torch.Tensor:
        tensor = cast(torch.Tensor, self._place[name].get_tensor(name))
        return tensor.to(torch.float32, copy=True)
