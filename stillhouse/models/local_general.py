"""Whatever transformers can load as a causal language model, as a `Network`: right, not fast.

In: a module with transformers' forward. Out: logits. Prompts are padded on the left; the cache is
the one the model makes for itself. `local_llama.py` is several times faster where it fits.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from stillhouse.models.local_network import Answered

__all__ = ["GeneralNetwork", "GeneralWave"]

_HEAD_ROWS = 512  # logits rows at a time when scoring: 100 MB of float32 at 49,152 words


class GeneralWave:
    """Rows of one wave: transformers' cache, and which of its columns each row may see."""

    def __init__(self, cache: Any, mask: torch.Tensor) -> None:
        """`mask` (W, columns) is 1 where a row has a token, 0 where it is padded."""
        self.cache, self.mask = cache, mask

    def __len__(self) -> int:
        """Rows alive."""
        return len(self.mask)

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Let go of all rows but these; the order stays."""
        chosen = torch.tensor(list(rows), dtype=torch.long, device=self.mask.device)
        self.mask = self.mask[chosen]
        if rows:
            self.cache.reorder_cache(chosen)
        return list(rows)


class GeneralNetwork:
    """`Network` over a transformers module, on the device and in the precision it is in."""

    def __init__(self, module: Any) -> None:
        """Nothing is copied: the module stays the caller's."""
        self._module = module
        config = module.config.get_text_config()
        precision = str(module.dtype).removeprefix("torch.")
        self.engine = f"torch-{precision} {torch.__version__.split('+')[0]}"
        self.vocabulary: int = config.vocab_size
        self.context_tokens: int = config.max_position_embeddings
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        width = torch.finfo(module.dtype).bits // 8
        self.position_bytes: int = config.num_hidden_layers * 2 * heads * size * width
        self._keeps = "logits_to_keep" in inspect.signature(module.forward).parameters

    @torch.inference_mode()
    def begin(
        self, prompts: Sequence[Sequence[int]], room: int
    ) -> tuple[GeneralWave, torch.Tensor]:
        """A wave of these prompts, and the logits (W, V) of each row's first answer token.

        `room` is not needed: the cache grows.
        """
        longest = max(len(prompt) for prompt in prompts)
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(list(prompt))
            mask[row, longest - len(prompt) :] = 1
        wave = GeneralWave(None, mask.to(self._module.device))
        return wave, self._advance(wave, ids)

    @torch.inference_mode()
    def step(self, waves: Sequence[GeneralWave], tokens: torch.Tensor) -> torch.Tensor:
        """The logits (N, V) after each of the N rows of all waves took its token (N,)."""
        found, first = [], 0
        for wave in waves:
            n = len(wave)
            wave.mask = torch.cat((wave.mask, wave.mask.new_ones(n, 1)), 1)
            found.append(self._advance(wave, tokens[first : first + n, None]))
            first += n
        return torch.cat(found)

    def _advance(self, wave: GeneralWave, ids: torch.Tensor) -> torch.Tensor:
        positions = (wave.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        keep = {"logits_to_keep": 1} if self._keeps else {}
        out = self._module(
            input_ids=ids.to(self._module.device), attention_mask=wave.mask,
            position_ids=positions, past_key_values=wave.cache, use_cache=True, **keep,
        )  # fmt: skip
        wave.cache = out.past_key_values
        return out.logits[:, -1].float().cpu()

    @torch.inference_mode()
    def logits(self, texts: Sequence[Answered]) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Chunks (answer, position, logits (n, V)) of each answer.

        Each answer is read with its prompt by itself, a long one again for each chunk: memory
        before time.
        """
        apart = [(prompt, answer) for prompt, answers in texts for answer in answers]
        for at, (prompt, answer) in enumerate(apart):
            ids = torch.tensor([[*prompt, *answer[:-1]]], device=self._module.device)
            for position in range(0, len(answer), _HEAD_ROWS):
                end = min(position + _HEAD_ROWS, len(answer))
                rows = torch.arange(position, end, device=ids.device) + len(prompt) - 1
                if self._keeps:
                    found = self._module(input_ids=ids, use_cache=False, logits_to_keep=rows).logits
                else:
                    found = self._module(input_ids=ids, use_cache=False).logits[:, rows]
                yield at, position, found[0].float().cpu()
