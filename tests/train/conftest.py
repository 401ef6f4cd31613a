"""A tiny teacher: a random Llama of six layers with a byte tokenizer, as a Hugging Face folder, and
a store of its own answers. Everything is real but small.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from stillhouse.exchange import Exchange, Request, Sampling, message
from stillhouse.models.local import LocalModel
from stillhouse.store import Store

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tokenizer(folder: Path) -> int:
    """A byte-level tokenizer with ChatML's two special tokens; its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|pad|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    vocabulary |= {character: 3 + i for i, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>",
        pad_token="<|im_end|>", chat_template=TEMPLATE,
    )  # fmt: skip
    fast.save_pretrained(str(folder))
    return len(vocabulary)


def write_llama(folder: Path, *, layers: int = 6, seed: int = 0, context_tokens: int = 512) -> Path:
    """A random Llama with tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    size = write_tokenizer(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=size, hidden_size=48, intermediate_size=96, num_hidden_layers=layers,
        num_attention_heads=3, num_key_value_heads=1, head_dim=16,
        max_position_embeddings=context_tokens, tie_word_embeddings=True, bos_token_id=1,
        eos_token_id=2, pad_token_id=2, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(str(folder))
    return folder


def allowance(folder: Path, teacher: str) -> Path:
    """A file that allows training on the answers of a teacher that nobody else knows."""
    fields = {
        "who": "A. Tester", "organisation": "The tests", "why": "A network of our own.",
        "date": "2026-01-01", "teacher": teacher, "scope": "this test",
    }  # fmt: skip
    path = folder / "authorisation.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny teacher's folder."""
    return write_llama(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def teacher(teacher_folder: Path) -> LocalModel:
    """The tiny teacher, opened."""
    return LocalModel(teacher_folder, spec=f"hf:{teacher_folder}")


@pytest.fixture(scope="session")
def exchanges(teacher: LocalModel) -> list[Exchange]:
    """Forty answers of the tiny teacher, with its twelve likeliest tokens each."""
    requests = [
        Request(
            prompt=(message("user", f"Say {'word ' * (number % 5)}{number}"),),
            sampling=Sampling(temperature=1.0, max_tokens=12 + number % 9, seed=number),
        )
        for number in range(40)
    ]
    found: list[Any] = list(teacher.answer(requests, top_logprobs=12))
    assert all(isinstance(e, Exchange) for e in found)
    return found


@pytest.fixture(scope="session")
def store(exchanges: list[Exchange], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of those answers."""
    folder = tmp_path_factory.mktemp("exchanges") / "store"
    with Store(folder) as open_store:
        open_store.append_many(exchanges)
    return folder
