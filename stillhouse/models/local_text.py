"""Between messages and token ids: the one place where a chat template is rendered.

In: messages, exchanges, a tokenizer of transformers. Out: prompt ids with the generation prompt,
answer ids, text, and where a stop string ends an answer. Scoring, training and evaluation all
render here, so that none of them sees another prompt than the model was asked with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from stillhouse.errors import ModelError
from stillhouse.exchange import Exchange, Message, Tool, ToolCall
from stillhouse.text import tokenizer_hash

__all__ = ["ChatText"]

_MARGIN = 4  # tokens decoded beyond a stop string's bytes: the first may lose its space


class ChatText:
    """A tokenizer and its chat template, with the tokens that end an answer."""

    def __init__(self, folder: Path, spec: str) -> None:
        """Read a Hugging Face folder's tokenizer.

        Raises:
            ModelError: it has none that transformers can read.
        """
        from transformers.models.auto.tokenization_auto import AutoTokenizer

        self._spec = spec
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as problem:
            raise ModelError(
                f"model '{spec}'", f"no readable tokenizer in {folder} ({problem})",
                "tokenizer.json and tokenizer_config.json beside the weights",
                "Copy the tokenizer of the model it was made from into the folder",
            ) from problem  # fmt: skip
        self.ends = frozenset(_end_ids(folder)) | {
            number for number in (self.tokenizer.eos_token_id,) if number is not None
        }

    @cached_property
    def vocabulary_hash(self) -> str:
        """The tagged hash in `Logprobs.tokenizer`; equal hashes mean equal ids."""
        return tokenizer_hash(self.tokenizer.get_vocab())

    @property
    def end_of_turn(self) -> int | None:
        """The token that ends an answer, None where the model has none."""
        eos = self.tokenizer.eos_token_id
        return eos if eos is not None else min(self.ends, default=None)

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """Prompt token ids by the model's chat template, generation prompt included.

        A last message of the assistant's is the beginning of the answer and is continued.

        Raises:
            ModelError: no template, a content part that is not text, or messages that the template
                refuses.
        """
        from jinja2 import TemplateError

        if not self.tokenizer.chat_template:
            raise self._refused("has no chat template", "a template in its tokenizer")
        if len(messages) > 1 and messages[-1].role == "assistant" and not messages[-1].tool_calls:
            return self.render(messages[:-1], tools) + self.ids(messages[-1].text)
        try:
            ids = self.tokenizer.apply_chat_template(
                [self._plain(message) for message in messages],
                tools=[_plain_tool(tool) for tool in tools] or None,
                add_generation_prompt=True, tokenize=True, return_dict=False,
            )  # fmt: skip
        except (TemplateError, TypeError, ValueError) as problem:
            raise self._refused(
                f"its chat template refuses these messages ({problem})", "roles it knows, in order"
            ) from problem
        return [int(token) for token in ids]

    def leaves_tools_out(self, messages: Sequence[Message], rendered: Sequence[int]) -> bool:
        """Whether these messages, rendered with tools, are what they are without any."""
        try:
            return self.render(messages) == list(rendered)
        except ModelError:  # a template that refuses to do without tools has read them
            return False

    def _plain(self, message: Message) -> dict[str, Any]:
        other = {part.kind for part in message.content} - {"text"}
        if other:
            raise self._refused(f"was given {', '.join(sorted(other))}", "text only")
        plain: dict[str, Any] = {"role": message.role, "content": message.text}
        if message.tool_calls:
            plain["tool_calls"] = [_plain_call(call) for call in message.tool_calls]
        if message.tool_call_id is not None:
            plain["tool_call_id"] = message.tool_call_id
        return plain

    def _refused(self, found: str, expected: str) -> ModelError:
        return ModelError(
            f"model '{self._spec}'", found, expected, "Change the prompt, or choose another model"
        )

    def answer_ids(self, exchange: Exchange) -> list[int]:
        """The answer's token ids, the end of turn included where the answer ended by it.

        As sampled, where they were recorded with this tokenizer; otherwise from the text. An answer
        that a stop string ended has no end of turn.
        """
        kept = exchange.logprobs
        if (
            kept is not None
            and kept.token_ids is not None
            and kept.tokenizer == self.vocabulary_hash
        ):
            ids = [int(token) for token in kept.token_ids]
        else:
            ids = self.ids(exchange.response.text or "")
        end = self.end_of_turn
        ended = exchange.finish_reason == "stop" and not exchange.sampling.stop
        if ended and end is not None and not (ids and ids[-1] in self.ends):
            ids.append(end)
        return ids

    def ids(self, text: str) -> list[int]:
        """The token ids of a text, without special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def prefix(self, exchange: Exchange, tokens: int) -> str | None:
        """The text of an answer's first tokens, where reading it again gives the same tokens.

        None for an answer that ended within them, and where the tokens as sampled were not
        recorded: another cut of the same text would be continued by another distribution.
        """
        kept = exchange.logprobs
        if kept is None or kept.token_ids is None or kept.tokenizer != self.vocabulary_hash:
            return None
        ids = [int(token) for token in kept.token_ids[:tokens]]
        if len(ids) < tokens or self.ends & set(ids):
            return None
        text = self.text(ids)
        fits = (exchange.response.text or "").startswith(text)
        return text if fits and self.ids(text) == ids else None

    def text(self, ids: Sequence[int]) -> str:
        """The text of answer ids, without special tokens."""
        return self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def watch(self, stop: Sequence[str]) -> Callable[[Sequence[int]], bool] | None:
        """Whether the tokens so far have just completed a stop string; None when there is none."""
        stops = [word for word in stop if word]
        if not stops:
            return None
        reach = max(len(word.encode()) for word in stops) + _MARGIN  # a token is a byte or more
        return lambda ids: any(word in self.text(ids[-reach:]) for word in stops)

    def cut(self, ids: Sequence[int], stop: Sequence[str]) -> tuple[int, str]:
        """How many of the ids lie before the first stop string, and the text before it."""
        text = self.text(ids)
        ends = [at for at in (text.find(word) for word in stop if word) if at >= 0]
        if not ends:
            return len(ids), text
        text = text[: min(ends)]
        whole = len(ids)
        while whole and len(self.text(ids[:whole])) > len(text):
            whole -= 1
        return whole, text


def _plain_call(call: ToolCall) -> dict[str, Any]:
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        arguments = call.arguments  # as the model wrote them; a template may print any text
    function = {"name": call.name, "arguments": arguments}
    return {"type": "function", "id": call.id, "function": function}


def _plain_tool(tool: Tool) -> dict[str, Any]:
    function = {
        "name": tool.name,
        "description": tool.description or "",
        "parameters": json.loads(tool.parameters) if tool.parameters else {},
    }
    return {"type": "function", "function": function}


def _end_ids(folder: Path) -> set[int]:
    """Every token id that the folder's configuration says ends a generation."""
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            value = json.loads((folder / name).read_text()).get("eos_token_id")
            found |= {
                int(v) for v in (value if isinstance(value, list) else [value]) if v is not None
            }
    return found
