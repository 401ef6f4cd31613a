"""The head of a GGUF file: its settings and its vocabulary, without reading a weight.

In: a path. Out: plain values, and the bytes that each token id stands for. Whoever wants weights
asks llama.cpp or `dequantise`; whoever wants to know what llama.cpp's token ids mean asks here.
Source: the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.errors import ModelError
from stillhouse.text import tokenizer_hash

__all__ = ["Vocabulary", "read_head", "vocabulary"]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)  # version 1 had 32-bit lengths and was never shipped widely
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_CONTROL, _BYTE = 3, 6  # token types, gguf.md 'tokenizer.ggml.token_type'


class _Reader:
    """A cursor over the mapped file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        size = self.scalar("Q")
        if self.at + size > len(self.data):
            raise struct.error("a string runs past the end of the file")
        text = self.data[self.at : self.at + size]
        self.at += size
        return text.decode("utf-8", "surrogateescape")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        inner, count = self.scalar("I"), self.scalar("Q")
        if inner in (_STRING, _ARRAY):
            return [self.value(inner) for _ in range(count)]
        form = f"<{count}{_SCALARS[inner]}"
        values = list(struct.unpack_from(form, self.data, self.at))
        self.at += struct.calcsize(form)
        return values


def read_head(path: Path) -> dict[str, Any]:
    """The key-value pairs at the head of a GGUF file, values as plain Python.

    Raises:
        ModelError: it is not there, no GGUF file, or is cut short.
    """
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            reader = _Reader(data)
            if data[:4] != _MAGIC:
                raise _not_gguf(path, f"the file starts with {data[:4]!r}")
            reader.at = 4
            version = reader.scalar("I")
            if version not in _VERSIONS:
                raise _not_gguf(path, f"GGUF version {version}")
            reader.scalar("Q")  # number of tensors
            return {
                reader.string(): reader.value(reader.scalar("I")) for _ in range(reader.scalar("Q"))
            }
    except OSError as problem:
        raise _not_gguf(path, problem.strerror or str(problem)) from problem
    except (struct.error, KeyError, ValueError, MemoryError) as problem:
        raise _not_gguf(path, f"a damaged head ({problem})") from problem


def _not_gguf(path: Path, found: str) -> ModelError:
    return ModelError(
        str(path), found, "a readable GGUF file of version 2 or 3",
        "Check the path, or fetch the file again",
    )  # fmt: skip


@dataclass(frozen=True)
class Vocabulary:
    """What the token ids of a GGUF file mean."""

    tokens: tuple[str, ...]
    """(V,) each token as the file spells it."""
    pieces: tuple[bytes, ...]
    """(V,) the bytes each token adds to an answer; control tokens add none."""
    hash: str
    """Tagged hash, see `text.tokenizer_hash`."""
    context_tokens: int | None
    """Tokens the model was trained to attend over."""
    end_of_turn: frozenset[int]
    """Token ids the file names as ends of a turn or of text."""


def vocabulary(path: Path) -> Vocabulary:
    """The vocabulary in a GGUF file.

    Raises:
        ModelError: as `read_head`, or the file holds no vocabulary.
    """
    head = read_head(path)
    tokens = head.get("tokenizer.ggml.tokens")
    if not tokens:
        raise ModelError(
            str(path), "no vocabulary in the file", "the key tokenizer.ggml.tokens",
            "Use a GGUF file of a whole language model",
        )  # fmt: skip
    kinds = head.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    byte_level = head.get("tokenizer.ggml.model") == "gpt2"
    ends = (head.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    return Vocabulary(
        tokens=tuple(tokens),
        pieces=tuple(
            _piece(token, kind, byte_level) for token, kind in zip(tokens, kinds, strict=True)
        ),
        hash=tokenizer_hash({token: number for number, token in enumerate(tokens)}),
        context_tokens=head.get(f"{head.get('general.architecture')}.context_length"),
        end_of_turn=frozenset(end for end in ends if end is not None),
    )


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte. Source: openai/gpt-2, `bytes_to_unicode`."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(rest)}


_ALPHABET = _byte_alphabet()


def _piece(token: str, kind: int, byte_level: bool) -> bytes:
    """The bytes llama.cpp prints for a token."""
    if kind == _CONTROL:
        return b""
    if kind == _BYTE and token.startswith("<0x"):
        return bytes([int(token[3:-1], 16)])
    if byte_level:
        if all(char in _ALPHABET for char in token):
            return bytes(_ALPHABET[char] for char in token)
        return token.encode("utf-8", "surrogateescape")  # added tokens stand as they are
    return token.replace("\u2581", " ").encode("utf-8", "surrogateescape")
