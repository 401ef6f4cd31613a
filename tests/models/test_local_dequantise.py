"""GGUF files written here from known weights come back as those weights."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gguf as gguf_format
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize

from stillhouse.errors import ModelError
from stillhouse.models.dequantise import dequantised_folder
from stillhouse.models.local import LocalModel
from tests.models.conftest import ask
from tests.train.conftest import TEMPLATE

WIDTH, HEADS, KV_HEADS, LAYERS = 64, 4, 2, 2
TOKENS = 260


def network(kind: str) -> Any:
    """A random model of transformers, with tensors as wide as Q8_0's blocks ask."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(6)
    make, config = {
        "llama": (LlamaForCausalLM, LlamaConfig),
        "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    }[kind]
    return make(
        config(
            vocab_size=TOKENS, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=LAYERS,
            num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=128,
            rms_norm_eps=1e-5, rope_theta=5000.0, initializer_range=0.2, tie_word_embeddings=False,
        )
    ).eval()  # fmt: skip


def paired(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rotary halves as the pairs llama.cpp keeps (convert_hf_to_gguf.py, LlamaModel.permute)."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, kind: str, *, quantised: bool) -> tuple[Path, dict[str, np.ndarray]]:
    """The file, and what its tensors hold after the round trip, by transformers' names."""
    model = network(kind)
    writer = gguf_format.GGUFWriter(path, kind)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5000.0)
    if kind == "llama":
        writer.add_rope_dimension_count(WIDTH // HEADS)
    _add_tokenizer(writer)
    arch = gguf_format.MODEL_ARCH.LLAMA if kind == "llama" else gguf_format.MODEL_ARCH.QWEN2
    names = gguf_format.get_tensor_name_map(arch, LAYERS)
    held: dict[str, np.ndarray] = {}
    for name, tensor in model.state_dict().items():
        weight = tensor.numpy()
        stem, _, suffix = name.rpartition(".")
        rotary = kind == "llama" and ("q_proj" in name or "k_proj" in name)
        heads = HEADS if "q_proj" in name else KV_HEADS
        stored = paired(weight, heads) if rotary else weight
        target = f"{names.get_name(stem)}.{suffix}"
        if quantised and weight.ndim == 2:
            form = gguf_format.GGMLQuantizationType.Q8_0
            packed = quantize(stored, form)
            writer.add_tensor(target, packed, raw_dtype=form)
            back = dequantize(packed, form)
            if rotary:  # the inverse of `paired`
                pairs = back.reshape(heads, -1, 2, WIDTH)
                back = pairs.swapaxes(1, 2).reshape(weight.shape)
            held[name] = back
        else:
            writer.add_tensor(target, np.ascontiguousarray(stored))
            held[name] = weight
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, held


def _add_tokenizer(writer: Any) -> None:
    from tokenizers import pre_tokenizers

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*special, *alphabet, "th"])
    writer.add_token_types([3, 3, 3] + [1] * (len(alphabet) + 1))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)


@pytest.mark.parametrize("quantised", [False, True])
def test_a_llama_comes_back_bit_for_bit(tmp_path: Path, quantised: bool) -> None:
    from safetensors.numpy import load_file

    path, held = write_gguf(tmp_path / "tiny.gguf", "llama", quantised=quantised)
    folder = dequantised_folder(path, tmp_path / "cache")
    found = load_file(folder / "model.safetensors")
    assert found.keys() == held.keys()
    for name, weight in held.items():
        assert np.array_equal(found[name], weight), name
    source = json.loads((folder / "source.json").read_text())
    assert source["gguf"] == "tiny.gguf"
    with LocalModel(folder, spec="gguf:tiny") as model:
        (exchange,) = model.answer([ask("Hi 12", max_tokens=6)], top_logprobs=4)
        (whole,) = model.distributions([exchange])  # type: ignore[list-item]
        ids = model.render(exchange.prompt) + whole.token_ids.tolist()  # type: ignore[union-attr]
    if not quantised:
        with torch.inference_mode():
            expected = network("llama")(torch.tensor([ids])).logits[0].log_softmax(-1).numpy()
        rows = expected[-len(whole.token_ids) - 1 : -1]
        assert np.abs(whole.logprobs - rows).max() < 1e-4


def test_another_architecture_goes_through_transformers(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    path, held = write_gguf(tmp_path / "tiny.gguf", "qwen2", quantised=False)
    folder = dequantised_folder(path, tmp_path / "cache")
    found = load_file(folder / "model.safetensors")
    for name, weight in held.items():
        assert np.array_equal(found[name], weight), name
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    path, _ = write_gguf(tmp_path / "tiny.gguf", "llama", quantised=False)
    folder = dequantised_folder(path, tmp_path / "cache")
    (folder / "mine").touch()
    copy = tmp_path / "another name.gguf"
    copy.write_bytes(path.read_bytes())
    assert dequantised_folder(copy, tmp_path / "cache") == folder
    assert (folder / "mine").exists()
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_what_a_killed_conversion_left_is_swept_up(tmp_path: Path) -> None:
    path, _ = write_gguf(tmp_path / "tiny.gguf", "llama", quantised=False)
    old, young = (tmp_path / "cache" / "dequantised" / f"partial-{n}" for n in ("old", "young"))
    for folder in (old, young):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    dequantised_folder(path, tmp_path / "cache")
    assert not old.exists()
    assert young.exists()


def test_a_file_that_is_no_gguf_leaves_nothing_behind(tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"not a model" * 100)
    with pytest.raises(ModelError, match="cannot be read"):
        dequantised_folder(bad, tmp_path / "cache")
    assert list((tmp_path / "cache" / "dequantised").iterdir()) == []


def test_a_torn_gguf_is_refused(tmp_path: Path) -> None:
    path, _ = write_gguf(tmp_path / "tiny.gguf", "llama", quantised=False)
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ModelError, match="cannot be read"):
        dequantised_folder(torn, tmp_path / "cache")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        dequantised_folder(tmp_path / "none.gguf", tmp_path)
