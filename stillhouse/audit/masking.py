"""What must not be disclosed, as regular expressions: masked in prompts, withheld in answers.

In: exchanges. Out: exchanges whose prompts are masked, and whether an answer holds what must not
be shown. A masked answer would no longer be what was drawn, so a pair with one is withheld whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from stillhouse.errors import ConfigError
from stillhouse.exchange import Exchange, Message, Part

__all__ = ["Mask"]


class Mask:
    """What must not be disclosed."""

    def __init__(self, patterns: Sequence[str]) -> None:
        """Compile them.

        Raises:
            ConfigError: one is no regular expression.
        """
        self._patterns: list[re.Pattern[str]] = []
        for pattern in patterns:
            try:
                self._patterns.append(re.compile(pattern))
            except re.error as problem:
                raise ConfigError(
                    f"--redact {pattern}", str(problem), "a regular expression", "Correct it"
                ) from None

    def hits(self, text: str) -> bool:
        """Whether something in the text must not be disclosed."""
        return any(pattern.search(text) for pattern in self._patterns)

    def masked(self, exchange: Exchange) -> Exchange:
        """The exchange with every match in its prompt replaced by a mark."""
        if not self._patterns:
            return exchange
        return replace(exchange, prompt=tuple(map(self._message, exchange.prompt)))

    def _message(self, said: Message) -> Message:
        return replace(said, content=tuple(map(self._part, said.content)))

    def _part(self, part: Part) -> Part:
        if part.text is None:
            return part
        text = part.text
        for pattern in self._patterns:
            text = pattern.sub("[redacted]", text)
        return replace(part, text=text)
