"""The packed Llama against transformers' own forward pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.models.local_general import GeneralNetwork
from stillhouse.models.local_layout import Layout
from stillhouse.models.local_llama import PackedLlama, fits
from stillhouse.models.local_network import Answered, Network
from tests.train.conftest import write_tokenizer

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


def held_to_transformers(network: Network[Any], plain: Any, texts: list[Answered]) -> None:
    """Every answer's logits, in order and whole, are those of its prompt and itself alone."""
    apart = [(list(prompt), list(answer)) for prompt, answers in texts for answer in answers]
    found: list[list[torch.Tensor]] = [[] for _ in apart]
    latest = 0
    for at, position, logits in network.logits(texts):
        assert at >= latest
        assert position == sum(map(len, found[at]))
        found[at].append(logits)
        latest = at
    for (prompt, answer), chunks in zip(apart, found, strict=True):
        assert sum(map(len, chunks)) == len(answer)
        with torch.inference_mode():
            expected = plain(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        if answer:
            assert (torch.cat(chunks) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("shared", [0, 12])
def test_given_text_gets_the_logits_of_transformers(folder: Path, shared: int) -> None:
    sequences = [row(30, 1, shared), row(24, 2, shared), row(60, 3, shared), row(24, 2, shared)]
    starts = [14, 20, 13, 23]
    texts = [Answered(s[:at], [s[at:]]) for s, at in zip(sequences, starts, strict=True)]
    held_to_transformers(PackedLlama(folder), module(folder), texts)


@pytest.mark.parametrize("general", [False, True])
@pytest.mark.parametrize("shared", [0, 5, 12])
def test_answers_to_one_prompt_know_nothing_of_one_another(
    folder: Path, shared: int, general: bool
) -> None:
    plain = module(folder)
    prompt = row(20, 1, shared)
    texts = [
        Answered(prompt, [row(9, 2), row(30, 3), row(4, 4)]),
        Answered(row(33, 5, shared), [row(17, 6)]),
        Answered(prompt[:15], [row(6, 7), [], row(1, 8), row(6, 7)]),  # begins another prompt
        Answered(row(14, 9, shared), [[]]),
        Answered(prompt + row(5, 10), [prompt, row(9, 2)]),
    ]
    network = GeneralNetwork(plain) if general else PackedLlama(folder)
    held_to_transformers(network, plain, texts)
    held_to_transformers(network, plain, texts[2:3])


def test_equal_answers_to_one_prompt_get_the_same_bits(folder: Path) -> None:
    texts = [
        Answered(row(20, 1), [row(9, 2), row(30, 3), row(9, 2)]),
        Answered(row(20, 4), [row(9, 2)]),
    ]
    for network in (PackedLlama(folder), GeneralNetwork(module(folder))):
        first, _, again, _ = (logits for _, _, logits in network.logits(texts))
        assert torch.equal(first, again)


def test_a_long_answer_comes_in_chunks(tmp_path: Path) -> None:
    folder = llama(tmp_path, **KINDS["grouped"], max_position_embeddings=1024)
    texts = [Answered(row(20, 1), [row(540, 2), row(20, 3)])]
    plain = module(folder)
    for network, lengths in (
        (PackedLlama(folder), [256, 256, 28, 20]),
        (GeneralNetwork(plain), [512, 28, 20]),
    ):
        assert [len(logits) for _, _, logits in network.logits(texts)] == lengths
        held_to_transformers(network, plain, texts)


def test_a_prompt_stands_once_before_all_its_answers() -> None:
    layout = Layout([Answered([5, 6], [[7, 8, 9], [4, 3], [7, 8, 9], [], [2]])], [])
    assert layout.ids.tolist() == [5, 6, 7, 8, 4]  # what ends an answer predicts nothing
    assert layout.positions.tolist() == [0, 1, 2, 3, 2]
    assert [p.tolist() for p in layout.predicting] == [[1, 2, 3], [1, 4], [1, 2, 3], [], [1]]
    mask = layout.mask()
    assert mask is not None
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


def test_one_row_by_itself_works(folder: Path) -> None:
    fast = PackedLlama(folder)
    wave, logits = fast.begin([[5]], room=2)
    assert logits.shape == (1, fast.vocabulary)
    assert fast.step([wave], logits.argmax(-1)).shape == logits.shape
    chunks = fast.logits([Answered([5], [[6]])])
    assert [(at, position, len(logits)) for at, position, logits in chunks] == [(0, 0, 1)]


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
    whole = row(20, 1)
    chunks = list(network.logits([Answered(whole[:15], [whole[15:], whole[3:5]])]))
    assert [(at, position, len(logits)) for at, position, logits in chunks] == [
        (0, 0, 5),
        (1, 0, 2),
    ]
    for ids, (_, _, logits) in zip((whole, whole[:15] + whole[3:5]), chunks, strict=True):
        with torch.inference_mode():
            expected = plain(torch.tensor([ids])).logits[0, 14:-1]
        assert (logits - expected).abs().max() < 1e-3
