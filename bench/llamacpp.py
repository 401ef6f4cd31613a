"""Answer tokens a second of the embedded llama.cpp server, start-up time, and what a kill costs.

    python bench/llamacpp.py [--slots 16] [--requests 64] [--max-tokens 128] [--top-logprobs 20]

Prints one line of JSON. Rows asked for a second time (tokens inside a character) are included in
the time, and counted.
"""

import argparse
import json
import os
import signal
import time
from pathlib import Path

from stillhouse.exchange import Exchange, Request, Sampling
from stillhouse.models import Need, open_model
from stillhouse.models.llamacpp import SLOTS, LlamaCppModel
from stillhouse.models.llamarows import complete_positions
from stillhouse.prompts import read_prompts

PROMPTS = Path(__file__).parent.parent / "examples" / "prompts"


def requests(count: int, max_tokens: int) -> list[Request]:
    """The first prompts of the quickstart, at temperature 1."""
    prompts = read_prompts([PROMPTS]).prompts
    return [
        Request(
            prompt=prompts[n % len(prompts)].messages,
            sampling=Sampling(temperature=1.0, seed=n, max_tokens=max_tokens, sample_index=0),
        )
        for n in range(count)
    ]


def measure(options: argparse.Namespace) -> dict[str, float]:
    """The figures of one run."""
    need = Need(text=True, top_logprobs=options.top_logprobs)
    with open_model(options.model, need=need, engine="llamacpp", slots=options.slots) as model:
        assert isinstance(model, LlamaCppModel)
        begun = time.perf_counter()
        model.start()
        started = time.perf_counter()
        tokens = prompt_tokens = inside = answers = 0
        asked = requests(options.requests, options.max_tokens)
        for exchange in model.answer(asked, top_logprobs=options.top_logprobs):
            assert isinstance(exchange, Exchange), exchange
            answers += 1
            tokens += exchange.output_tokens or 0
            prompt_tokens += exchange.input_tokens or 0
            if exchange.logprobs is not None and exchange.logprobs.token_ids is not None:
                ids = exchange.logprobs.token_ids.tolist()
                inside += len(ids) - len(complete_positions(ids, model.vocabulary.pieces))
            if options.kill and answers == options.requests // 2:
                assert model.server.pid is not None
                os.kill(model.server.pid, signal.SIGKILL)
        seconds = time.perf_counter() - started
        return {
            "slots": options.slots, "top_logprobs": options.top_logprobs, "answers": answers,
            "start_seconds": round(started - begun, 2), "seconds": round(seconds, 1),
            "answer_tokens": tokens, "prompt_tokens": prompt_tokens, "rows_asked_again": inside,
            "answer_tokens_per_s": round(tokens / seconds, 1), "restarts": model.server.restarts,
        }  # fmt: skip


def main() -> None:
    """Read the options and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--slots", type=int, default=SLOTS)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--top-logprobs", type=int, default=20)
    parser.add_argument("--kill", action="store_true", help="kill -9 the server half way")
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
