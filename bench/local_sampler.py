"""Answer tokens per second of the local sampler by rows in flight; if asked, llama.cpp's too.

    python bench/local_sampler.py --rows 64 128 --requests 128 --max-tokens 160 > result.json

Each row of the result is one fresh process, so that peak memory is its own. `load_before` is the
machine's load average before the run: with other work on the cores the figures are too low.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

PROMPTS = Path(__file__).resolve().parent.parent / "examples" / "prompts"


def requests(count: int, max_tokens: int) -> list:
    from stillhouse.exchange import Request, Sampling, message

    lines = [json.loads(x) for p in sorted(PROMPTS.glob("train_*.jsonl")) for x in p.open()]
    texts = [line["messages"][0]["content"] for line in lines if len(line["messages"]) == 1]
    step = max(1, len(texts) // count)  # spread over all kinds of prompts
    return [
        Request(
            prompt=(message("user", texts[i * step % len(texts)]),),
            sampling=Sampling(
                temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, max_tokens=max_tokens, seed=i
            ),
        )
        for i in range(count)
    ]


def measure(options: argparse.Namespace) -> dict:
    import torch

    from stillhouse.models import open_model
    from stillhouse.models.base import Need
    from stillhouse.models.local import LocalModel
    from stillhouse.models.local_sampler import Limits

    asked = requests(options.requests, options.max_tokens)
    began = time.perf_counter()
    if options.engine == "llamacpp":
        top = 20
        model = open_model(options.spec, need=Need(text=True, top_logprobs=top), engine="llamacpp")
    elif options.folder:
        top = options.top
        model = LocalModel(
            options.folder, spec=f"hf:{options.folder}", precision=options.precision,
            limits=Limits(rows=options.rows[0]),
        )  # fmt: skip
    else:
        top = options.top
        model = open_model(
            options.spec, need=Need(text=True, top_logprobs=top), engine="local",
            precision=options.precision, limits=Limits(rows=options.rows[0]),
        )  # fmt: skip
    with model:
        list(model.answer(asked[:1], top_logprobs=top))  # loads the weights
        loaded = time.perf_counter()
        load, cpu = os.getloadavg()[0], time.process_time()
        answers = list(model.answer(asked, top_logprobs=top))
        seconds, cpu = time.perf_counter() - loaded, time.process_time() - cpu
    tokens = sum(len(answer.logprobs) for answer in answers)
    return {
        "engine": answers[0].logprobs.engine,
        "rows": options.rows[0] if options.engine == "local" else None,
        "top_logprobs": top,
        "requests": len(answers),
        "prompt_tokens": sum(answer.input_tokens for answer in answers),
        "answer_tokens": tokens,
        "load_seconds": round(loaded - began, 2),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2) if options.engine == "local" else None,
        "answer_tokens_per_s": round(tokens / seconds, 1),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "load_before": round(load, 2),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--spec", default="smollm2-135m")
    parser.add_argument("--folder", type=Path, help="a Hugging Face folder, instead of the spec")
    parser.add_argument("--rows", type=int, nargs="+", default=[32, 64, 128, 192])
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--top", type=int, default=64)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--engine", choices=["local", "llamacpp"], default="local")
    parser.add_argument("--beside", action="store_true", help="measure llama.cpp as well")
    options = parser.parse_args()
    if len(options.rows) == 1 and not options.beside:
        print(json.dumps(measure(options)))
        return
    base = [sys.executable, __file__, "--spec", options.spec, "--requests", str(options.requests)]
    base += ["--max-tokens", str(options.max_tokens), "--top", str(options.top)]
    base += ["--precision", options.precision]
    base += ["--folder", str(options.folder)] if options.folder else []
    runs = [[*base, "--rows", str(rows)] for rows in options.rows]
    if options.beside:
        runs.append([*base, "--rows", "16", "--engine", "llamacpp"])
    found = [json.loads(subprocess.run(r, check=True, stdout=-1).stdout) for r in runs]
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
