"""How fast a training step is: seconds, tokens/s and peak memory, on a network of the quickstart's
size with random weights (speed does not depend on their values). Prints JSON.

    python bench/train_step.py [--precision bfloat16] [--batch 8] [--length 180] [--steps 4]

`cpu_seconds` counts both cores' work; with OMP_NUM_THREADS=1 it is the figure to compare on a busy
machine.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from stillhouse.config import TrainSettings
from stillhouse.models.local_network import matmul_dtype
from stillhouse.train.loop import _optimiser, _Run, _trainable
from stillhouse.train.packed import read_packed
from stillhouse.train.targets import Example


def network(layers: int) -> Any:
    """A student of SmolLM2-135M's sizes with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers,
        num_attention_heads=9, num_key_value_heads=3, head_dim=64, max_position_embeddings=8192,
        tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).float().train()


def examples(batch: int, length: int, answer: int, common: int) -> list[Example]:
    """Random exchanges with 64 alternatives a token, that begin with the same tokens."""
    rng = np.random.default_rng(0)
    template = rng.integers(3, 49152, common)
    top = np.log(np.full((answer, 64), 0.95 / 64, np.float32))
    return [
        Example(
            str(number),
            np.append(template, rng.integers(3, 49152, length - common)).astype(np.int32),
            length - answer,
            rng.permuted(np.tile(np.arange(49152, dtype=np.int32), (answer, 1)), axis=1)[:, :64],
            top,
        )
        for number in range(batch)
    ]  # fmt: skip


def main() -> None:
    """Time some steps and print what they took."""
    parser = argparse.ArgumentParser(description="Time training steps.")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=180)
    parser.add_argument("--answer", type=int, default=125)
    parser.add_argument("--common", type=int, default=24)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--piece", type=int, default=TrainSettings().piece_tokens)
    options = parser.parse_args()
    settings = TrainSettings(precision=options.precision, piece_tokens=options.piece)
    run: Any = _Run.__new__(_Run)  # a run without a store, a teacher or files
    run.settings = settings
    run.network = network(options.layers)
    read_packed(run.network)
    run.names = _trainable(run.network, embeddings=False)
    run.optimiser = _optimiser(run.network, run.names, settings)
    made = examples(options.batch, options.length, options.answer, options.common)
    run.ready = SimpleNamespace(
        examples=made, dtype=matmul_dtype(settings.precision), teacher_head=None
    )
    run.plan = [list(range(options.batch))] * (options.steps + 1)
    run.report = SimpleNamespace(steps=0, losses=[], seconds=0.0)
    run.tokens = 0
    run._step(run.plan[0])  # the first step also sets up
    wall, cpu = [], []
    for indices in run.plan[1:]:
        began, used = time.perf_counter(), time.process_time()
        run._step(indices)
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - used)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    found = {
        "bench": Path(__file__).name,
        "settings": vars(options) | {"dtype": str(run.ready.dtype)},
        "threads": torch.get_num_threads(),
        "seconds_per_step": {"best": round(min(wall), 3), "all": [round(s, 3) for s in wall]},
        "cpu_seconds_per_step": round(min(cpu), 3),
        "system_share": round(usage.ru_stime / (usage.ru_utime + usage.ru_stime), 3),
        "tokens_per_second": round(options.batch * options.length / min(wall)),
        "answer_tokens_per_second": round(options.batch * options.answer / min(wall)),
        "peak_memory_bytes": usage.ru_maxrss * 1024,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
