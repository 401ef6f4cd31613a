"""The packed Llama against transformers' own forward pass."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.models.local_general import GeneralNetwork
from stillhouse.models.local_llama import PackedLlama, fits
from tests.train.conftest import write_tokenizer


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny networks are slower on two threads, and far slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


KINDS: dict[str, dict[str, Any]] = {
    "grouped": {"num_attention_heads": 6, "num_key_value_heads": 2},
    "single": {"num_attention_heads": 3, "num_key_value_heads": 1, "tie_word_embeddings": False},
    "full": {"num_attention_heads": 4, "num_key_value_heads": 4, "hidden_size": 40},
}


def llama(folder: Path, **more: Any) -> Path:
    """A random Llama whose distributions are far from uniform."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "vocab_size": write_tokenizer(folder), "hidden_size": 48, "intermediate_size": 80,
        "num_hidden_layers": 3, "head_dim": 16, "max_position_embeddings": 256,
        "tie_word_embeddings": True, "initializer_range": 0.3, "rms_norm_eps": 1e-5,
        "rope_theta": 500.0, "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(4)
    LlamaForCausalLM(LlamaConfig(**(settings | more))).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("llama") / request.param, **KINDS[request.param])


def module(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def row(length: int, seed: int, shared: int = 0) -> list[int]:
    """Random ids; the first `shared` are those of every row."""
    common = torch.randint(3, 250, (shared,), generator=torch.Generator().manual_seed(99))
    own = torch.randint(3, 250, (length - shared,), generator=torch.Generator().manual_seed(seed))
    return [*common.tolist(), *own.tolist()]


@pytest.mark.parametrize("shared", [0, 5, 12])
def test_answers_get_the_logits_of_transformers(folder: Path, shared: int) -> None:
    fast, slow = PackedLlama(folder), module(folder)
    first = [row(20, 1, shared), row(13, 2, shared), row(13, 2, shared), row(31, 3, shared)]
    second = [row(17, 4, shared)]
    wave, logits = fast.begin(first, room=6)
    other, more = fast.begin(second, room=3)
    waves, rows, logits = [wave, other], [*first, *second], torch.cat((logits, more))
    for step in range(6):
        for at, ids in enumerate(rows):
            with torch.inference_mode():
                expected = slow(torch.tensor([ids])).logits[0, -1]
            assert (logits[at] - expected).abs().max() < 1e-4
        if step == 2:  # rows leave, and a wave ends
            order = wave.keep([0, 3])
            rows, waves = [rows[i] for i in order], [wave]
        if step < 5:
            tokens = torch.tensor([(7 * step + at) % 250 for at in range(len(rows))])
            rows = [[*ids, int(token)] for ids, token in zip(rows, tokens, strict=True)]
            logits = fast.step(waves, tokens)


@pytest.mark.parametrize("shared", [0, 12])
def test_given_text_gets_the_logits_of_transformers(folder: Path, shared: int) -> None:
    fast, slow = PackedLlama(folder), module(folder)
    sequences = [row(30, 1, shared), row(24, 2, shared), row(60, 3, shared), row(24, 2, shared)]
    starts = [14, 20, 13, 23]
    counts = [0] * 4
    for index, position, logits in fast.logits(sequences, starts):
        with torch.inference_mode():
            expected = slow(torch.tensor([sequences[index]])).logits[0]
        span = expected[position - 1 : position - 1 + len(logits)]
        assert position == starts[index] + counts[index]
        assert (logits - span).abs().max() < 1e-4
        counts[index] += len(logits)
    assert counts == [len(s) - start for s, start in zip(sequences, starts, strict=True)]


def test_one_row_by_itself_works(folder: Path) -> None:
    fast = PackedLlama(folder)
    wave, logits = fast.begin([[5]], room=2)
    assert logits.shape == (1, fast.vocabulary)
    assert fast.step([wave], logits.argmax(-1)).shape == logits.shape
    assert [(i, p, len(x)) for i, p, x in fast.logits([[5, 6]], [1])] == [(0, 1, 1)]


def test_the_same_batch_gives_the_same_bits(folder: Path) -> None:
    prompts = [row(20, 1), row(13, 2)]
    runs = []
    for _ in range(2):
        fast = PackedLlama(folder)
        wave, logits = fast.begin(prompts, room=2)
        runs.append(torch.cat((logits, fast.step([wave], logits.argmax(-1)))))
    assert torch.equal(*runs)


def test_bfloat16_products_stay_near(folder: Path) -> None:
    exact = PackedLlama(folder).begin([row(20, 1)], room=1)[1].log_softmax(-1)
    near = PackedLlama(folder, torch.bfloat16)
    assert near.engine.startswith("torch-bfloat16 ")
    difference = (near.begin([row(20, 1)], room=1)[1].log_softmax(-1) - exact).abs()
    assert 0 < difference.mean() < 0.5


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "qwen2"},
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1.0}},
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"quantization_config": {}},
    ],
)
def test_anything_but_a_plain_llama_is_left_to_transformers(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert fits(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"} | change))
    assert not fits(tmp_path)


def gpt2(folder: Path) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(5)
    config = GPT2Config(
        vocab_size=260, n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3
    )
    return GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("make", [module, gpt2])
def test_the_general_network_agrees_with_a_plain_forward_pass(folder: Path, make: Any) -> None:
    plain = make(folder)
    network = GeneralNetwork(plain)
    rows = [row(20, 1), row(13, 2), row(31, 3)]
    wave, logits = network.begin(rows, room=4)
    for step in range(4):
        for at, ids in enumerate(rows):
            with torch.inference_mode():
                expected = plain(torch.tensor([ids])).logits[0, -1]
            assert (logits[at] - expected).abs().max() < 1e-3
        if step == 1:
            rows = [rows[i] for i in wave.keep([0, 2])]
        tokens = torch.arange(len(rows)) + step
        rows = [[*ids, int(token)] for ids, token in zip(rows, tokens, strict=True)]
        logits = network.step([wave], tokens)
    chunks = list(network.logits([row(20, 1)], [15]))
    with torch.inference_mode():
        expected = plain(torch.tensor([row(20, 1)])).logits[0, 14:19]
    assert [(i, p, len(x)) for i, p, x in chunks] == [(0, 15, 5)]
    assert (chunks[0][2] - expected).abs().max() < 1e-3
