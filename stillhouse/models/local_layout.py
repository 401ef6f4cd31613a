"""Where tokens stand that are computed together, and which of them each one sees.

In: prompts with answers to them, keys and values of what all begin with. Out: the tokens laid end
to end, their places in a rectangle of rows, a mask. `local_llama.py` computes by it; nothing here
knows weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stillhouse.models.local_network import Answered

__all__ = ["Layout"]


class Layout:
    """Rows [prompt | answer | answer | ...] without their common beginning, laid end to end.

    A prompt is computed once for all its answers: each counts its positions from the prompt's end
    and sees the prompt and itself. An answer's last token predicts nothing and is left out; one
    that is given twice with the same prompt stands once, so its values are the same to the bit.
    """

    def __init__(
        self, texts: Sequence[Answered], prefix: list[tuple[torch.Tensor, torch.Tensor]]
    ) -> None:
        """`prefix` holds each layer's keys and values (kv heads, P, head) of the first P tokens,
        fewer than the shortest prompt's; empty for none.
        """
        self.prefix = prefix
        self.common = common = prefix[0][0].shape[1] if prefix else 0
        self.firsts: list[int] = []
        """Where each row begins among the tokens."""
        self.lasts: list[int] = []
        """Where each prompt's last token stands: it predicts the first of every answer."""
        self.sizes: list[int] = []
        """Tokens of each row."""
        self.predicting: list[torch.Tensor] = []
        """For each answer of all texts, where the tokens stand that predict its own (T,)."""
        ids: list[int] = []
        positions: list[int] = []
        owners: list[int] = []  # 0 of a prompt's tokens, 1 of the first answer's, ...
        for prompt, answers in texts:
            self.firsts.append(len(ids))
            ids += prompt[common:]
            positions += range(common, len(prompt))
            owners += [0] * (len(prompt) - common)
            self.lasts.append(len(ids) - 1)
            there: dict[tuple[int, ...], torch.Tensor] = {}
            for answer in map(tuple, answers):
                if answer not in there:
                    read = answer[:-1]
                    at = [self.lasts[-1], *range(len(ids), len(ids) + len(read))]
                    there[answer] = torch.tensor(at[: len(answer)], dtype=torch.long)
                    ids += read
                    positions += range(len(prompt), len(prompt) + len(read))
                    owners += [len(there)] * len(read)
                self.predicting.append(there[answer])
            self.sizes.append(len(ids) - self.firsts[-1])
        self.ids, self.positions = torch.tensor(ids), torch.tensor(positions)
        self.rows = torch.arange(len(texts)).repeat_interleave(torch.tensor(self.sizes))
        self.columns = torch.cat([torch.arange(size) for size in self.sizes])
        self._owners = torch.tensor(owners)

    def mask(self) -> torch.Tensor | None:
        """True where a token sees another, for W columns of queries and `common` + W of keys.

        None where each row is a plain triangle; (W, P + W) where all rows are the same behind the
        common beginning; (R, 1, W, P + W) where some row has several answers.
        """
        width, common = max(self.sizes), self.common
        several = int(self._owners.max()) > 1
        if not common and not several:
            return None
        before = torch.ones(width, common + width, dtype=torch.bool).tril(common)
        if not several:
            return before
        owner = torch.zeros(len(self.sizes), common + width, dtype=torch.long)
        owner[self.rows, self.columns + common] = self._owners
        theirs, mine = owner[:, None], owner[:, common:, None]
        return (before & ((theirs == 0) | (theirs == mine)))[:, None]
