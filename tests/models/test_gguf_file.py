"""The head of a GGUF file, and what its token ids mean."""

import struct
from pathlib import Path

import pytest

from stillhouse.errors import ModelError
from stillhouse.models.gguf_file import read_head, vocabulary
from stillhouse.text import tokenizer_hash


def string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def entry(name: str, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


def strings(*texts: str) -> bytes:
    return struct.pack("<IQ", 8, len(texts)) + b"".join(string(text) for text in texts)


def head(*entries: bytes, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, 0, len(entries)) + b"".join(entries)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def model(tokenizer: str, tokens: tuple[str, ...], kinds: tuple[int, ...]) -> bytes:
    return head(
        entry("general.architecture", 8, string("llama")),
        entry("llama.context_length", 4, struct.pack("<I", 2048)),
        entry("some.half", 6, struct.pack("<f", 0.5)),
        entry("some.flag", 7, struct.pack("<?", True)),
        entry("tokenizer.ggml.model", 8, string(tokenizer)),
        entry("tokenizer.ggml.tokens", 9, strings(*tokens)),
        entry(
            "tokenizer.ggml.token_type", 9, struct.pack(f"<IQ{len(kinds)}i", 5, len(kinds), *kinds)
        ),
        entry("tokenizer.ggml.eos_token_id", 4, struct.pack("<I", 0)),
    )


def test_byte_level_tokens_stand_for_their_bytes(tmp_path: Path) -> None:
    tokens = ("<|end|>", "Ġthe", "ðŁ", "Ċ", "日本")
    words = vocabulary(write(tmp_path / "a.gguf", model("gpt2", tokens, (3, 1, 1, 1, 4))))
    assert words.pieces == (b"", b" the", b"\xf0\x9f", b"\n", "日本".encode())
    assert words.tokens == tokens
    assert words.hash == tokenizer_hash({token: n for n, token in enumerate(tokens)})
    assert words.context_tokens == 2048
    assert words.end_of_turn == {0}


def test_sentencepiece_tokens_stand_for_their_bytes(tmp_path: Path) -> None:
    tokens = ("</s>", "▁the", "<0xE2>", "s")
    words = vocabulary(write(tmp_path / "a.gguf", model("llama", tokens, (3, 1, 6, 1))))
    assert words.pieces == (b"", b" the", b"\xe2", b"s")


def test_all_kinds_of_values_are_read(tmp_path: Path) -> None:
    read = read_head(write(tmp_path / "a.gguf", model("gpt2", ("a",), (1,))))
    assert read["some.half"] == 0.5
    assert read["some.flag"] is True
    assert read["tokenizer.ggml.token_type"] == [1]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"PK\x03\x04" + bytes(40), "starts with b'PK"),
        (head(version=1), "GGUF version 1"),
        (b"", "cannot mmap an empty file"),
        (model("gpt2", ("abc", "def"), (1, 1))[:-40], "damaged head"),
        (head(entry("a", 99, b"")), "damaged head"),
        (head(entry("a", 8, struct.pack("<Q", 2**40))), "past the end"),
        (head(entry("a", 8, string("b"))), "no vocabulary"),
    ],
)
def test_what_is_no_gguf_model_is_said(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        vocabulary(write(tmp_path / "a.gguf", data))
    assert words in str(caught.value)
    assert "a.gguf" in str(caught.value)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        read_head(tmp_path / "none.gguf")


@pytest.mark.weights
def test_the_teacher_s_vocabulary_is_the_one_of_its_tokenizer(gguf: Path) -> None:
    """The local engine hashes what transformers reads; ids of both engines mean the same."""
    transformers = pytest.importorskip("transformers")
    words = vocabulary(gguf)
    assert len(words.tokens) == 49_152
    assert words.context_tokens == 8192
    read = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    assert words.hash == tokenizer_hash(read.get_vocab())
    text = "Grüße 🎉 and 日本, isn't it?\n"
    assert b"".join(words.pieces[token] for token in read.encode(text)).decode() == text
