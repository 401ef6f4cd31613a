"""A GGUF file as a Hugging Face folder in float32, made once and kept.

In: a GGUF file. Out: a folder with config, safetensors weights, tokenizer and chat template that
`transformers`, `local.py` and `train/` read, in the cache under the file's SHA-256. Files of
llama.cpp's `llama` architecture are read tensor by tensor (seconds); other architectures go through
transformers' own loader (slower, the same numbers). This file downloads nothing and runs no model.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stillhouse.errors import ModelError
from stillhouse.files import sha256
from stillhouse.progress import Progress, Silent

if TYPE_CHECKING:
    from gguf import GGUFReader

__all__ = ["dequantised_folder"]

_LAYOUT = "v1"  # raise it when the folder's content changes, so that older ones are made again
_ABANDONED_SECONDS = 3600  # a conversion takes seconds to minutes
_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONFIG = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.dimension_count": "head_dim",
}


def dequantised_folder(gguf: Path, cache: Path, progress: Progress | None = None) -> Path:
    """The folder that holds `gguf` in float32: made on the first call, found on later ones.

    It is written beside its place and renamed, so a killed conversion leaves nothing half done.

    Raises:
        ModelError: the file is missing, is no GGUF, or holds a model that cannot be converted.
    """
    progress = progress or Silent()
    if not gguf.is_file():
        raise ModelError(
            f"model file {gguf}", "no such file", "a GGUF file",
            "Correct the path, or run: stillhouse models pull smollm2-135m",
        )  # fmt: skip
    digest = sha256(gguf)
    folder = cache / "dequantised" / f"{digest}-{_LAYOUT}"
    if folder.is_dir():
        return folder
    progress.start(f"de-quantising {gguf.name} to float32, once")
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    partial = Path(tempfile.mkdtemp(prefix="partial-", dir=folder.parent))
    try:
        _convert(gguf, partial)
        source = {"gguf": gguf.name, "sha256": digest, "layout": _LAYOUT}
        (partial / "source.json").write_text(json.dumps(source, indent=2) + "\n")
        partial.chmod(0o755)  # mkdtemp keeps it to its owner, safetensors its file
        for file in partial.iterdir():
            file.chmod(0o644)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process made the same folder meanwhile
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    progress.finish(f"kept in {folder}")
    return folder


def _sweep(cache: Path) -> None:
    """Remove what killed conversions left half done; one still at work is younger than that."""
    for left in cache.glob("partial-*"):
        if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _convert(gguf: Path, folder: Path) -> None:
    """Write config, weights and tokenizer of `gguf` into `folder`."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(gguf)
    except (ValueError, OSError, IndexError) as problem:
        raise _refused(gguf, f"cannot be read ({problem})") from problem
    architecture = _field(reader, "general.architecture")
    names = {tensor.name: _name(tensor.name) for tensor in reader.tensors}
    if architecture == "llama" and None not in names.values():
        config = _llama_config(reader)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        _save_weights(reader, names, config, folder)
        ends = {"bos_token_id", "eos_token_id", "pad_token_id"} & config.keys()
        generation = {key: config[key] for key in sorted(ends)}
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    else:
        _convert_by_transformers(gguf, folder)
    _save_tokenizer(gguf, _field(reader, "tokenizer.ggml.pre"), folder)


def _field(reader: GGUFReader, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()


def _name(name: str) -> str | None:
    """The name in transformers of a tensor of a plain Llama, None for a tensor it does not have."""
    if name in _TOP:
        return _TOP[name]
    block, _, rest = name.removeprefix("blk.").partition(".")
    part, _, kind = rest.partition(".")
    known = name.startswith("blk.") and block.isdigit() and part in _BLOCK and kind == "weight"
    return f"model.layers.{block}.{_BLOCK[part]}.{kind}" if known else None


def _llama_config(reader: GGUFReader) -> dict[str, Any]:
    found = {ours: _field(reader, f"llama.{theirs}") for theirs, ours in _CONFIG.items()}
    config = {key: value for key, value in found.items() if value is not None}
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        number = _field(reader, f"tokenizer.ggml.{theirs}_token_id")
        if number is not None:
            config[f"{ours}_token_id"] = int(number)
    return config | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": "float32",
        # llama.cpp's own default where the file says nothing
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": float(_field(reader, "llama.rope.freq_base") or 10000.0),
        },
        "tie_word_embeddings": "output.weight" not in tensors,
        "vocab_size": int(tensors["token_embd.weight"].shape[1]),  # GGUF counts axes backwards
    }


def _save_weights(
    reader: GGUFReader, names: dict[str, str | None], config: dict[str, Any], folder: Path
) -> None:
    from safetensors.numpy import save_file

    save_file(dict(_tensors(reader, names, config)), folder / "model.safetensors", {"format": "pt"})


def _tensors(
    reader: GGUFReader, names: dict[str, str | None], config: dict[str, Any]
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """(transformers' name, float32 weights); rotary pairs of queries and keys are put as halves.

    Source: llama.cpp's convert_hf_to_gguf.py stores the two members of each rotary pair side by
    side; transformers rotates the first half of a head against its second.
    """
    from gguf.quants import dequantize

    for tensor in reader.tensors:
        name = names[tensor.name]
        weights = dequantize(tensor.data, tensor.tensor_type)
        if ".attn_q." in tensor.name or ".attn_k." in tensor.name:
            query = ".attn_q." in tensor.name
            heads = config["num_attention_heads" if query else "num_key_value_heads"]
            pairs = weights.reshape(heads, weights.shape[0] // heads // 2, 2, -1)
            weights = pairs.swapaxes(1, 2).reshape(weights.shape)
        yield str(name), np.ascontiguousarray(weights, dtype=np.float32)


def _convert_by_transformers(gguf: Path, folder: Path) -> None:
    """Through transformers' loader, for every architecture it knows.

    What it loads carries a quantisation entry and refuses to be saved: the weights go into a fresh
    model of the same configuration without that entry.
    """
    import torch
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
        )
    except (ValueError, KeyError, NotImplementedError) as problem:
        raise _refused(gguf, f"transformers cannot read it ({problem})") from problem
    plain = {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    fresh = AutoModelForCausalLM.from_config(type(loaded.config)(**plain))
    fresh.load_state_dict(loaded.state_dict())
    fresh.save_pretrained(folder)


def _save_tokenizer(gguf: Path, kind: str | None, folder: Path) -> None:
    """The file's tokenizer and chat template, in the Hugging Face form."""
    from tokenizers import pre_tokenizers
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it warns on fork otherwise
    tokenizer = AutoTokenizer.from_pretrained(
        gguf.parent, gguf_file=gguf.name, local_files_only=True
    )
    if kind == "smollm":
        # transformers 5.23 leaves digits in runs here, which changes the spaces before a number;
        # llama.cpp (llama-vocab.cpp, PRE_TYPE_SMOLLM) and the original tokenizer part each digit.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    tokenizer.save_pretrained(folder)


def _refused(gguf: Path, found: str) -> ModelError:
    return ModelError(
        f"model file {gguf}", found, "a whole GGUF file of an architecture that transformers knows",
        "Fetch the file again, or convert it to a Hugging Face folder and use hf:FOLDER",
    )  # fmt: skip
