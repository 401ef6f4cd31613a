"""The head of a GGUF file, and what its token ids mean."""

import struct
from pathlib import Path

import numpy as np
import pytest

from stillhouse.errors import ModelError
from stillhouse.models import Need, open_model
from stillhouse.models.gguf_file import read_head, vocabulary
from stillhouse.models.llamarows import complete_positions
from stillhouse.text import tokenizer_hash
from tests.models.conftest import ask


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


@pytest.mark.slow
@pytest.mark.weights
def test_both_engines_mean_the_same_by_a_token_id(gguf: Path) -> None:
    pytest.importorskip("torch")
    words = vocabulary(gguf)
    assert len(words.tokens) == 49_152
    assert words.context_tokens == 8192
    with open_model("smollm2-135m", need=Need(scoring=True)) as local:
        tokenizer = local.tokenizer  # type: ignore[attr-defined]
        assert words.hash == tokenizer_hash(tokenizer.get_vocab())
        text = "Grüße 🎉 and 日本, isn't it?\n"
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert b"".join(words.pieces[token] for token in ids).decode() == text


@pytest.mark.slow
@pytest.mark.weights
def test_both_engines_give_near_log_probabilities_also_inside_characters(gguf: Path) -> None:
    pytest.importorskip("torch")
    emoji = ask("Say hi with emoji 🎉 and Ärger", seed=3, max_tokens=40)
    with open_model("smollm2-135m", need=Need(text=True, top_logprobs=20), slots=2) as llama:
        exchanges = list(llama.answer([emoji, ask("Why is the sky blue?")], top_logprobs=20))
    with open_model("smollm2-135m", need=Need(scoring=True)) as local:
        scored = dict(local.score(exchanges, top_logprobs=20))  # type: ignore[arg-type]
    words = vocabulary(gguf)
    inside = []
    for index, exchange in enumerate(exchanges):
        one, other = exchange.logprobs, scored[index]  # type: ignore[union-attr]
        assert one is not None
        assert one.tokenizer == other.tokenizer
        assert np.array_equal(one.token_ids, other.token_ids)
        apart = np.abs(one.chosen - other.chosen)
        assert np.median(apart) < 0.1
        ids = one.token_ids.tolist()  # type: ignore[union-attr]
        gaps = sorted(set(range(len(ids))) - set(complete_positions(ids, words.pieces)))
        inside += apart[gaps].tolist()
    assert len(inside) >= 3
    assert np.median(inside) < 0.15
