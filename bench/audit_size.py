"""The twin test on innocents: how often it speaks of evidence against models that never saw the
served answers. Real teacher, fresh served answers and twins in every draw, all seeds fixed here.

    python bench/audit_size.py --work runs/audit-size > size.json      (about an hour on two cores)
    python bench/audit_size.py --work /tmp/size --draws 4 --pairs 20   (a few minutes)

Suspects: the teacher itself; a pruned relative; a student of *other* answers of the same teacher to
the *same* prompts; any given with --suspect. For each draw, --pairs shipped prompts are answered
twice by the teacher (temperature 1, nothing cut, --tokens tokens) and the first answer is called
served. p-values come from `stillhouse.audit.twin.evidence`, as a user's do. Beside the size at .05
and .01 with exact intervals: text-only access (the suspect's own answers, asked once a prompt); a
test that chooses pairs by their served answers, to show what that does; and whether p-values are
uniform. Stages are kept in the work folder and not done twice.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.audit.selection import draw_of, facts, prompt_key
from stillhouse.audit.twin import evidence
from stillhouse.collect.run import collect
from stillhouse.config import CollectSettings
from stillhouse.exchange import Exchange, Message, Request, Sampling, from_dict, message, to_dict
from stillhouse.models import Need, open_model
from stillhouse.stats import clopper_pearson

ROOT = Path(__file__).resolve().parent.parent
SEED = 20261122
AT_ONCE = 10  # draws sampled and scored between two writes
PLAN: dict[str, Any] = {
    "test": "twin", "access": "logprobs", "reached": "hf", "twins": "of a store", "escrow": None,
    "where": [], "outside": 0, "pairs": 2000, "alpha": 0.01, "looks": 1, "begun": 1, "spent": [],
}  # fmt: skip
SAMPLES = 4


def prompts(count: int) -> list[tuple[Message, ...]]:
    """Short shipped prompts, drawn with the seed; a short system message keeps reading cheap."""
    files = sorted((ROOT / "examples" / "prompts").glob("train_*.jsonl"))
    lines = [json.loads(line) for path in files for line in path.open()]
    texts = sorted(
        {x["messages"][0]["content"] for x in lines if len(x["messages"]) == 1}, key=str.casefold
    )
    short = [text for text in texts if len(text) <= 140]
    chosen = np.random.default_rng(SEED).choice(len(short), count, replace=False)
    return [(message("system", "Answer."), message("user", short[at])) for at in chosen]


def request(asked: tuple[Message, ...], seed: int, index: int, tokens: int) -> Request:
    return Request(
        prompt=asked,
        sampling=Sampling(
            temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, frequency_penalty=0.0,
            presence_penalty=0.0, repeat_penalty=1.0, max_tokens=tokens, stop=(), seed=seed,
            sample_index=index,
        ),
    )  # fmt: skip


# ---- suspects ----


def make_student(options: argparse.Namespace, asked: list[tuple[Message, ...]]) -> str:
    """A student of other answers to the same prompts: `run:` spec of a trained and of a cut one."""
    from stillhouse.cli.pipeline import run_stages
    from stillhouse.config import Recipe
    from stillhouse.progress import Silent
    from stillhouse.settings import make

    runs = options.work / "runs"
    file = options.work / "prompts.jsonl"
    file.write_text(
        "".join(
            json.dumps({"messages": [{"role": m.role, "content": m.text} for m in p]}) + "\n"
            for p in asked
        )
    )
    collect(
        CollectSettings(
            prompts=(file,), samples_per_prompt=options.other, engine="local", top_logprobs=0,
            max_tokens=options.tokens, seed=SEED,
        ),
        teacher=options.teacher, store=options.work / "other",
    )  # fmt: skip
    recipe = {
        "name": "other-samples", "teacher": options.teacher, "runs": str(runs),
        "exchanges": str(options.work / "other"),
        "student": {"layers": options.layers, "teach_identity": False, "measure_tokens": 4000},
        "train": {"targets": "hard", "epochs": 2.0, "validation_exchanges": 0},
    }  # fmt: skip
    if not (runs / "other-samples" / "student" / "config.json").exists():
        run_stages(make(Recipe, recipe, where="bench"), ("train",), Silent())
    return str(runs / "other-samples")


def open_suspect(spec: str) -> Any:
    return open_model(spec, need=Need(scoring=True), engine="auto", precision=PRECISION)


PRECISION: Any = "bfloat16"  # halves the reading; rounding says nothing of which was served


# ---- draws ----


def sample_draws(options: argparse.Namespace, asked: list[tuple[Message, ...]]) -> Path:
    """`draws.jsonl`: for each draw, prompt and side, the answer."""
    path = options.work / "draws.jsonl"
    done = len(read(path)) // (2 * len(asked))
    if done >= options.draws:
        return path
    keep(path, 2 * len(asked) * done)
    with open_model(options.teacher, need=Need(text=True), engine="local", precision="auto") as m:
        for first in range(done, options.draws, AT_ONCE):
            block = range(first, min(first + AT_ONCE, options.draws))
            places = [(d, p, s) for d in block for p in range(len(asked)) for s in (0, 1)]
            wanted = {
                request(asked[p], 1 + d * 1000 + p, s, options.tokens).key: (d, p, s)
                for d, p, s in places
            }
            asking = [request(asked[p], 1 + d * 1000 + p, s, options.tokens) for d, p, s in places]
            found = {}
            for answer in m.answer(asking):
                assert isinstance(answer, Exchange), answer
                found[wanted[answer.key]] = answer
            with path.open("a") as file:
                for place in places:
                    line = {"draw": place[0], "prompt": place[1], "side": place[2]}
                    stripped = to_dict(found[place])
                    stripped.pop("logprobs", None)
                    file.write(json.dumps(line | {"exchange": stripped}) + "\n")
            say(f"draws {block[-1] + 1} of {options.draws}")
    return path


def score_draws(name: str, spec: str, draws: list[dict[str, Any]], work: Path) -> list[float]:
    """Mean log-probability of each answer, in the order of `draws.jsonl`.

    Kept in `scores-NAME.jsonl`, a prompt after another: a prompt is read once for all its answers.
    """
    path = work / f"scores-{name}.jsonl"
    found = {at: mean for line in read(path) for at, mean in line}
    by_prompt: dict[int, list[int]] = {}
    for at, line in enumerate(draws):
        if at not in found:
            by_prompt.setdefault(line["prompt"], []).append(at)
    if by_prompt:
        with open_suspect(spec) as model:
            for prompt, places in sorted(by_prompt.items()):
                block = [from_dict(draws[at]["exchange"]) for at in places]
                means = [
                    (places[at], float(np.mean(columns.chosen, dtype=np.float64)))
                    for at, columns in model.score(block)
                ]
                with path.open("a") as file:
                    file.write(json.dumps(means) + "\n")
                found |= dict(means)
                say(f"{name}: prompt {prompt + 1} of {len(by_prompt)} scored")
    return [found[at] for at in range(len(draws))]


def own_answers(name: str, spec: str, asked: list[tuple[Message, ...]], options: Any) -> list[Any]:
    """[prompt][sample] the suspect's own answers, for text-only access."""
    path = options.work / f"said-{name}.json"
    if not path.exists():
        said: list[list[str]] = [[] for _ in asked]
        with open_model(spec, need=Need(text=True), engine="local", precision=PRECISION) as model:
            asking = [
                request(p, SEED + s, s, options.tokens) for p in asked for s in range(SAMPLES)
            ]
            places = {r.key: n // SAMPLES for n, r in enumerate(asking)}
            for answer in model.answer(asking):
                assert isinstance(answer, Exchange), answer
                said[places[answer.key]].append(answer.response.text or "")
        path.write_text(json.dumps(said))
    return json.loads(path.read_text())


# ---- p-values ----


def p_values(
    draws: list[dict[str, Any]], size: int, scores: list[float], teacher: list[float] | None,
    said: list[list[str]] | None = None, chosen: str | None = None,
) -> Iterator[float]:  # fmt: skip
    """One for each draw of `size` lines; `chosen`: pairs kept by their served answers instead."""
    plan = PLAN | {
        "suspect": "bench", "taken_off": teacher is not None, "samples": SAMPLES,
        "access": "text" if said is not None else "logprobs",
    }  # fmt: skip
    for first in range(0, len(draws), size):
        lines: dict[str, list[Any]] = {"candidates": [], "pairs": [], "scores": [],
                                       "continuations": []}  # fmt: skip
        block = range(first, first + size, 2)
        texts = [draws[at]["exchange"]["response"].get("text") or "" for at in block]
        middle = np.median([len(text) for text in texts])
        likely = np.median([scores[at] for at in block])
        for at, text in zip(block, texts, strict=True):
            if (chosen == "longer" and len(text) <= middle) or (
                chosen == "likelier" and scores[at] <= likely
            ):
                continue
            served, twin = draws[at]["exchange"], draws[at + 1]["exchange"]
            name = served["id"]
            lines["candidates"].append(facts(from_dict(served), 1))
            lines["pairs"].append({"exchange": name, "served": served, "twin": twin})
            for role, by in (("suspect", scores), ("teacher", teacher)):
                for side, offset in (("served", 0), ("twin", 1)):
                    if by is not None:
                        lines["scores"].append({"role": role, "exchange": name, "side": side,
                                                "logprobs": [by[at + offset]]})  # fmt: skip
            if said is not None:
                lines["continuations"] += [
                    {"exchange": name, "sample": n, "round": 1, "text": x, "served_model": "x"}
                    for n, x in enumerate(said[draws[at]["prompt"]])
                ]
        found = evidence(plan | {"draw": draw_of(lines["candidates"], None)}, lines, {})
        # A gate that refuses an unchanged teacher gives no p-value: counted, and no discovery.
        yield 1.0 if found["p_value"] is None else found["p_value"]


def summary(values: list[float]) -> dict[str, Any]:
    from scipy.stats import kstest

    found = {
        f"size_at_{level:g}": clopper_pearson(
            sum(p <= level for p in values), len(values), unit="draws"
        ).to_dict()
        for level in (0.05, 0.01)
    }
    return {
        "draws": len(values), **found, "uniform_ks_p": float(kstest(values, "uniform").pvalue),
        "smallest": min(values),
    }  # fmt: skip


# ---- files ----


def read(path: Path) -> list[Any]:
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def keep(path: Path, count: int) -> None:
    """Only the first `count` lines: what a kill left of a block is made again."""
    if path.exists():
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:count]))


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/audit-size"))
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--other", type=int, default=8, help="other samples a prompt, trained on")
    parser.add_argument("--layers", type=int, default=10, help="of the pruned relatives")
    parser.add_argument("--teacher", default="smollm2-135m")
    parser.add_argument("--suspect", action="append", default=[], metavar="NAME=SPEC")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    asked = prompts(options.pairs)
    assert len({prompt_key(Request(prompt=p, sampling=Sampling())) for p in asked}) == len(asked)
    run = make_student(options, asked)
    suspects = {
        "teacher itself": options.teacher,
        f"pruned relative ({options.layers} layers, untrained)": f"hf:{run}/initial",
        "student of other samples, same prompts": f"hf:{run}/student",
        **dict(each.split("=", 1) for each in options.suspect),
    }
    draws = read(sample_draws(options, asked))[: 2 * options.pairs * options.draws]
    size, result = 2 * options.pairs, {}
    own = score_draws("teacher-itself", options.teacher, draws, options.work)
    for name, spec in suspects.items():
        slug = "".join(c if c.isalnum() else "-" for c in name)
        scores = own if spec == options.teacher else score_draws(slug, spec, draws, options.work)
        teacher = None if spec == options.teacher else own
        said = own_answers(slug, spec, asked, options)
        rows = {
            "log-probabilities": p_values(draws, size, scores, teacher),
            "log-probabilities, teacher not taken off": p_values(draws, size, scores, None),
            "text only": p_values(draws, size, scores, None, said),
            "chosen by answers: likelier than the median": p_values(
                draws, size, scores, None, chosen="likelier"),
            "chosen by answers: longer than the median": p_values(
                draws, size, scores, None, chosen="longer"),
        }  # fmt: skip
        result[name] = {row: summary(list(values)) for row, values in rows.items()}
        say(f"{name}: {result[name]['log-probabilities']['size_at_0.05']['value']:.3f} at .05")
    settings = {k: str(v) for k, v in vars(options).items()}
    text = json.dumps({"settings": settings, "seed": SEED, "suspects": result}, indent=2)
    (options.work / "result.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
