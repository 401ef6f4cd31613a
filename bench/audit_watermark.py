"""The watermark test on real students: marked answers, doses of them, and what the test then finds.

    python bench/audit_watermark.py --work WORK > result.json
    python bench/audit_watermark.py --work WORK --quick      the same on little data, in minutes

Stages, each kept in WORK and not done twice: (1) answers of the teacher to shipped prompts, marked
and unmarked; (2) students of both, mixed at doses of marked answers; (3) exact p and decoy rank of
each suspect: in its own answers, reading all marked answers, reading those it was trained on;
(4) innocent-key pairs: are exact p-values uniform, by fresh keys on innocents' answers, and by
fresh keys on text marked with them; (5) beside it, the raw z of transformers' own detector on
innocents; and what marking costs. A stage begun with other settings is refused.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kstest

from stillhouse.audit.green import green_pairs, scored_pairs, windows_of
from stillhouse.audit.radioactivity import evidence
from stillhouse.audit.settings import WatermarkSettings
from stillhouse.audit.watermark_audit import Vocabulary, watermark_audit
from stillhouse.collect.plan import Questions
from stillhouse.config import CollectSettings, StudentSettings, TrainSettings
from stillhouse.exact import binomial_tail
from stillhouse.exchange import Exchange
from stillhouse.models import Need, open_model
from stillhouse.models.base import Failure
from stillhouse.models.local import LocalModel
from stillhouse.prompts import read_prompts
from stillhouse.store import Store
from stillhouse.terms import gate
from stillhouse.watermark import Watermark, read_key, write_key

PROMPTS = Path(__file__).resolve().parent.parent / "examples" / "prompts"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of all stages")
    parser.add_argument("--teacher", default="smollm2-135m")
    parser.add_argument("--authorisation", type=Path, help="for a teacher of unknown terms")
    parser.add_argument("--width", type=int, default=1, help="tokens of a window")
    parser.add_argument("--gamma", type=float, default=0.25)
    parser.add_argument("--delta", type=float, default=3.0)
    parser.add_argument("--doses", type=int, nargs="+", default=[0, 5, 20, 100], help="per cent")
    parser.add_argument("--prompts", type=int, default=840, help="training prompts")
    parser.add_argument("--samples", type=int, default=1, help="answers to each, for training")
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--layers", type=int, default=20, help="of the student")
    parser.add_argument("--measure-tokens", type=int, default=24000)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--pairs", type=int, default=50_000, help="scored at most")
    parser.add_argument("--ask", type=int, default=8, help="answers to each prompt at most, audit")
    parser.add_argument("--keys", type=int, default=200, help="innocent-key pairs")
    parser.add_argument("--reading-keys", type=int, default=24, help="... with text of their own")
    parser.add_argument("--reading-prompts", type=int, default=60, help="answers of each of those")
    parser.add_argument("--detector-keys", type=int, default=8, help="of transformers' detector")
    parser.add_argument("--detector-tokens", type=int, default=30_000)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        for name, value in QUICK.items():
            if getattr(options, name) == parser.get_default(name):
                setattr(options, name, value)
    return options


QUICK = {
    "doses": [0, 100], "prompts": 40, "samples": 1, "max_tokens": 32, "measure_tokens": 1000,
    "epochs": 1.0, "pairs": 2000, "ask": 2, "keys": 40, "reading_keys": 3, "reading_prompts": 20,
    "detector_keys": 2, "detector_tokens": 500,
}  # fmt: skip


class Bench:
    """Everything that is kept in the work folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.work: Path = options.work
        self.result: dict[str, Any] = {}
        (self.work / "stages").mkdir(parents=True, exist_ok=True)
        self.mark = self._mark()
        self.teacher: Any = open_model(
            options.teacher,
            need=Need(text=True, scoring=True, full_logits=True),
            precision=options.precision,
        )
        assert isinstance(self.teacher, LocalModel)
        self.vocabulary = Vocabulary.of(self.teacher.text)
        self.terms = gate(options.teacher, authorisation=options.authorisation)
        names = ["train_a.jsonl", "train_b.jsonl"]
        every = read_prompts([PROMPTS / name for name in names]).prompts
        step = max(1, len(every) // options.prompts)
        self.prompts = list(every[::step])[: options.prompts]

    def _mark(self) -> Watermark:
        path = self.work / "key.json"
        wanted = {name: getattr(self.options, name) for name in ("width", "gamma", "delta")}
        if not path.exists():
            write_key(path, Watermark.fresh(**wanted))
        mark = read_key(path)
        if {name: getattr(mark, name) for name in wanted} != wanted:
            sys.exit(f"{path} marks otherwise than asked for: choose another --work")
        return mark

    def stage(self, name: str, settings: Any, make: Callable[[], Any]) -> Any:
        """The result of a stage, made unless it was made before."""
        path = self.work / "stages" / f"{name}.json"
        settings = json.loads(json.dumps(settings))
        if path.exists():
            kept = json.loads(path.read_text())
            if kept["settings"] != settings:
                sys.exit(f"stage {name} was made with {kept['settings']}: choose another --work")
        else:
            say(f"{name} ...")
            began = time.monotonic()
            kept = {"settings": settings, "result": make()}
            kept["seconds"] = round(time.monotonic() - began, 1)
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(kept, indent=1))
            partial.replace(path)
        self.result[name] = {"seconds": kept["seconds"], **kept["result"]}
        say(f"{name}: {json.dumps(kept['result'])[:300]}")
        return kept["result"]

    # ---- (1) answers ----

    def model(self, watermark: Watermark | None) -> LocalModel:
        """The teacher, marking or not, over the same weights in memory."""
        folder, spec = self.teacher.folder, self.teacher.spec
        model = LocalModel(
            folder, spec=spec, name=self.teacher.name, precision=self.options.precision,
            watermark=watermark,
        )  # fmt: skip
        model.__dict__["engine"] = self.teacher.engine
        return model

    def requests(self, samples: int) -> Questions:
        """What the teacher is asked, in an order that depends on content only."""
        o = self.options
        settings = CollectSettings(
            samples_per_prompt=samples, temperature=1.0, top_k=40, top_p=0.95, min_p=0.05,
            max_tokens=o.max_tokens,
        )  # fmt: skip
        return Questions(self.prompts, settings, self.terms)

    def collect(self, name: str, watermark: Watermark | None) -> dict[str, Any]:
        """Answers in WORK/NAME; what is there is not asked again."""
        failed = 0
        with Store(self.work / name) as store:
            there = store.keys()
            todo = (r for r in self.requests(self.options.samples) if r.key not in there)
            for answer in self.model(watermark).answer(todo):
                if isinstance(answer, Failure):  # a prompt longer than a small context
                    failed += 1
                else:
                    store.append(answer)
            answers = list(store)
        tokens = [e.logprobs.token_ids.tolist() for e in answers]  # type: ignore[union-attr]
        nats = np.concatenate([e.logprobs.chosen for e in answers])  # type: ignore[union-attr]
        return {
            "answers": len(answers), "failed": failed, "tokens": sum(map(len, tokens)),
            "own_nats_per_token": float(-nats.mean()), "green_share": self.share(tokens),
            "label": answers[0].labels.get("watermark"),
        }  # fmt: skip

    def share(self, texts: Sequence[Sequence[int]]) -> float:
        """The share of green tokens, every occurrence counted."""
        width = self.mark.width
        pairs = np.array([
            [*window, token]
            for ids in texts
            for window, token in zip(windows_of(ids, width), ids[width:], strict=False)
        ])  # fmt: skip
        return float(self.mark.is_green(self.mark.seeds(pairs[:, :width]), pairs[:, width]).mean())

    def answers(self, name: str) -> list[Exchange]:
        """The answers in a store, in an order that depends on content only."""
        with Store(self.work / name, "r") as store:
            return sorted(store, key=lambda exchange: exchange.key)

    # ---- (2) students ----

    def train(self, dose: int) -> dict[str, Any]:
        """A student of `dose` per cent marked answers, and the others unmarked, to the same."""
        from stillhouse.train.loop import train

        o, folder = self.options, self.work / f"student-{dose}"
        marked, plain = self.answers("marked"), self.answers("plain")
        count = round(len(marked) * dose / 100)
        with Store(folder / "store") as store:
            store.append_many([*marked[:count], *plain[count:]])
        report = train(
            TrainSettings(
                targets="hard", epochs=o.epochs, learning_rate=o.learning_rate,
                precision=o.precision, identity_share=0.0,
            ),
            student=StudentSettings(
                layers=o.layers, measure_tokens=o.measure_tokens, teach_identity=False
            ),
            teacher=o.teacher, store=folder / "store", out=folder,
        )  # fmt: skip
        tokens = sum(len(e.logprobs) for e in marked[:count] if e.logprobs is not None)
        return {
            "marked_answers": count, "marked_tokens": tokens, "steps": report.steps,
            "loss_first": report.losses[0], "loss_last": report.losses[-1],
        }  # fmt: skip

    # ---- (3) suspects ----

    def suspects(self) -> dict[str, Path]:
        """Name -> folder."""
        first = self.work / f"student-{self.options.doses[0]}"
        students = {f"dose {d} %": self.work / f"student-{d}" / "student" for d in self.doses}
        return {"teacher": self.teacher.folder, "untrained student": first / "initial", **students}

    @property
    def doses(self) -> list[int]:
        """Marked answers, per cent."""
        return list(self.options.doses)

    def handed_out(self, name: str) -> int:
        """How many marked answers went to a student's training; to an innocent as many were served
        as to the strongest student of a mix.
        """
        mixed = [dose for dose in self.doses if 0 < dose < 100] or [100]
        own = {f"dose {dose} %": dose for dose in self.doses if dose}
        return round(len(self.answers("marked")) * own.get(name, max(mixed)) / 100)

    def audit(self, name: str, folder: Path, mode: str) -> dict[str, Any]:
        """The evidence against a suspect; of its own answers, with known windows only as well.

        Mode `reading` takes every marked answer, whoever had it; `reading-own` those that went to
        the suspect, as a provider's log of an account has them.
        """
        o, reads = self.options, mode.startswith("reading")
        settings = WatermarkSettings(
            mode="reading" if reads else "generation", token_pairs=o.pairs,
            samples_per_prompt=o.ask, max_tokens=o.max_tokens, temperature=1.0, top_k=40,
            top_p=0.95, min_p=0.05,
        )  # fmt: skip
        served = self.answers("marked")
        if mode == "reading-own":
            served = served[: self.handed_out(name)]
        with self.open(name, folder) as suspect:
            found = watermark_audit(
                settings, suspect=suspect, watermark=self.mark, vocabulary=self.vocabulary,
                out=self.bundle(name, mode), prompts=() if reads else self.prompts,
                served=served if reads else (),
            )  # fmt: skip
        if reads:
            return figures(found)
        plan, lines = self.raw(name)
        ids = [e.logprobs.token_ids.tolist() for e in served]  # type: ignore[union-attr]
        lines["served"] = [{"ids": one} for one in ids]
        known = evidence({**plan, "known_windows": True}, lines, {"key": self.mark.key.hex()})
        return {**figures(found), "known_windows_only": figures(known)}

    def open(self, name: str, folder: Path) -> LocalModel:
        """A suspect."""
        return LocalModel(folder, spec=name, precision=self.options.precision)

    def bundle(self, name: str, mode: str) -> Path:
        """Where its bundle lies."""
        return self.work / "audits" / f"{name.replace(' ', '-').replace('-%', '')}-{mode}"

    def raw(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Plan and raw lines of a suspect's own answers."""
        sealed = self.bundle(name, "generation") / "sealed"
        lines = {n: jsonl(sealed / f"{n}.jsonl") for n in ("prompts", "answers")}
        return json.loads((sealed / "plan.json").read_text()), lines

    # ---- (4) innocents ----

    def innocents(self) -> dict[str, Any]:
        """Fresh keys on answers of suspects that are innocent of them; each pair of suspect and key
        is used once for the uniformity, and every key ranks among the others.
        """
        keys = self.fresh(self.options.keys, 1)
        names = ["teacher", "untrained student", f"dose {self.doses[-1]} %"]
        names += ["dose 0 %"] if 0 in self.doses else []
        exact = np.empty((len(names), len(keys)))
        rank, raw, sizes = np.empty_like(exact), np.empty_like(exact), {}
        for row, name in enumerate(names):
            plan, lines = self.raw(name)
            pairs = scored_pairs(plan, lines)
            n = sizes[name] = len(pairs.tokens)
            green = np.array(green_pairs(pairs, keys))
            exact[row] = [binomial_tail(int(g), n, self.mark.gamma) for g in green]
            rank[row] = [(green >= g).mean() for g in green]
            raw[row] = self.raw_z(said(lines), keys)
        mine = np.arange(len(keys)) % len(names), np.arange(len(keys))
        return {
            "pairs_of_suspect_and_key": len(keys), "suspects": sizes,
            "uniformity": uniformity(exact[mine]),
            "largest_gap_of_exact_and_rank_p": float(np.abs(exact - rank).max()),
            "raw_z_of_every_occurrence": {
                name: {"mean": float(z.mean()), "sd": float(z.std()), "largest": float(z.max())}
                for name, z in zip(names, raw, strict=True)
            },
        }  # fmt: skip

    def fresh(self, count: int, seed: int) -> list[Watermark]:
        """Marks under keys that nothing was marked with."""
        rng = np.random.default_rng(seed)
        return [replace(self.mark, key=rng.bytes(32)) for _ in range(count)]

    def raw_z(self, texts: Sequence[Sequence[int]], keys: Sequence[Watermark]) -> list[float]:
        """The z of every occurrence, as detectors of single texts count."""
        width, gamma = self.mark.width, self.mark.gamma
        rows = np.array([
            [*window, token]
            for ids in texts
            for window, token in zip(windows_of(ids, width), ids[width:], strict=False)
        ])  # fmt: skip
        pairs, counts = np.unique(rows, axis=0, return_counts=True)
        n = counts.sum()
        found = []
        for key in keys:
            green = counts[key.is_green(key.seeds(pairs[:, :width]), pairs[:, width])].sum()
            found.append(float((green - gamma * n) / np.sqrt(n * gamma * (1 - gamma))))
        return found

    def reading_null(self) -> dict[str, Any]:
        """Fresh keys, each with text of its own: an innocent reads what was marked with the key."""
        o, values, shares = self.options, [], []
        folder = self.suspects()["untrained student"]
        with self.open("untrained student", folder) as innocent:
            for number, key in enumerate(self.fresh(o.reading_keys, 2)):
                asked = list(self.requests(1))
                turn = number * o.reading_prompts % len(asked)  # other prompts for each key
                asked = [*asked[turn:], *asked[:turn]][: o.reading_prompts]
                answers = self.model(key).answer(asked)
                served = [answer for answer in answers if isinstance(answer, Exchange)]
                found = watermark_audit(
                    WatermarkSettings(mode="reading"), suspect=innocent, watermark=key,
                    vocabulary=self.vocabulary, served=served,
                    out=self.work / "audits" / f"reading-null-{number}",
                )  # fmt: skip
                values.append(found["secondary"]["exact_p_value"])
                shares.append(found["effect"]["value"])
        return {
            "keys": len(values), "uniformity": uniformity(np.array(values)),
            "mean_green_share": float(np.mean(shares)), "p_values": values,
        }  # fmt: skip

    # ---- (5) transformers' detector, and speed ----

    def detector(self) -> dict[str, Any]:
        """The z of transformers' WatermarkDetector, as it comes, on answers of innocents."""
        import torch
        from transformers import AutoConfig, WatermarkDetector, WatermarkingConfig

        config = AutoConfig.from_pretrained(self.teacher.folder)
        found: dict[str, Any] = {}
        for name in ("teacher", "untrained student"):
            ids = [token for text in said(self.raw(name)[1]) for token in text]
            text: Any = torch.tensor([ids[: self.options.detector_tokens]])
            z = []
            for number in range(self.options.detector_keys):
                marking = WatermarkingConfig(
                    greenlist_ratio=0.25, bias=2.0, seeding_scheme="lefthash", context_width=1,
                    hashing_key=15485863 + 1000 * number,  # the first is transformers' default
                )  # fmt: skip
                detect = WatermarkDetector(config, "cpu", marking)
                told: Any = detect(text, return_dict=True)
                z.append(float(told.z_score[0]))
            found[name] = {"tokens": text.shape[1], "z": z, "sd": float(np.std(z))}
        return found

    def speed(self) -> dict[str, Any]:
        """Processor seconds of a step of 128 rows, of its draw, and of its draw under the mark."""
        import torch

        from stillhouse.models.local_draw import Shape, draw
        from stillhouse.models.local_watermark import GreenMark

        rng, network = np.random.default_rng(0), self.teacher.engine
        prompts = rng.integers(3, network.vocabulary, (128, 40)).tolist()
        wave, logits = network.begin(prompts, 16)
        tokens = torch.from_numpy(rng.integers(3, network.vocabulary, 128))
        step = least(lambda: network.step([wave], tokens), 8)
        numbers, shapes = rng.random(128), [Shape()] * 128
        mark = GreenMark(self.mark)
        rows = [(prompt, np.zeros(4, np.int32)) for prompt in prompts]

        def marked() -> None:
            leaning, left = mark(logits, rows, shapes)
            draw(logits, numbers, left, 64, leaning)

        plain = least(lambda: draw(logits, numbers, shapes, 64), 8)
        with_mark = least(marked, 8)
        return {
            "rows": 128, "vocabulary": network.vocabulary, "threads": torch.get_num_threads(),
            "step_cpu_ms": step * 1e3, "draw_cpu_ms": plain * 1e3,
            "marked_draw_cpu_ms": with_mark * 1e3,
            "slow_down": (with_mark - plain) / (step + plain),
        }  # fmt: skip


def figures(found: dict[str, Any]) -> dict[str, Any]:
    """What is shown of an evidence."""
    decoys = found["secondary"]["decoys"]
    return {
        "pairs": found["n"], "green_share": found["effect"]["value"],
        "exact_p": found["secondary"]["exact_p_value"], "rank_p": decoys["rank_p_value"],
        "decoy_spread": decoys["spread"], "verdict": found["verdict"],
        "excluded": found["excluded"],
    }  # fmt: skip


def said(lines: dict[str, Any]) -> list[list[int]]:
    """Token ids of the answers that came."""
    return [line["ids"] for line in lines["answers"] if "ids" in line]


def least(work: Callable[[], Any], runs: int) -> float:
    """The least of several times, in processor seconds."""
    found = []
    for _ in range(runs):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def uniformity(values: np.ndarray) -> dict[str, Any]:
    """Are these p-values of innocents uniform?"""
    test = kstest(values, "uniform")
    return {
        "n": len(values), "ks_statistic": float(test.statistic), "ks_p": float(test.pvalue),
        "at_or_below_0.05": float((values <= 0.05).mean()),
        "at_or_below_0.01": float((values <= 0.01).mean()),
        "least": float(values.min()),
    }  # fmt: skip


def jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def say(line: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)


def main() -> None:
    options = arguments()
    bench = Bench(options)
    o = vars(options)
    asked = {k: o[k] for k in ("teacher", "prompts", "samples", "max_tokens", "precision")}
    asked |= bench.mark.facts()
    bench.stage("speed", asked, bench.speed)
    for name, mark in (("marked", bench.mark), ("plain", None)):
        bench.stage(name, asked, lambda name=name, mark=mark: bench.collect(name, mark))
    trained = asked | {k: o[k] for k in ("layers", "epochs", "learning_rate", "measure_tokens")}
    for dose in bench.doses:
        bench.stage(f"train-{dose}", trained, lambda dose=dose: bench.train(dose))
    audited = trained | {k: o[k] for k in ("pairs", "ask")}
    for name, folder in bench.suspects().items():
        modes = ["generation", "reading"]
        if bench.handed_out(name) < len(bench.answers("marked")):
            modes.append("reading-own")
        for mode in modes:
            bench.stage(
                bench.bundle(name, mode).name, audited,
                lambda name=name, folder=folder, mode=mode: bench.audit(name, folder, mode),
            )  # fmt: skip
    bench.stage("innocents", audited | {"keys": options.keys}, bench.innocents)
    reading = audited | {k: o[k] for k in ("reading_keys", "reading_prompts")}
    bench.stage("reading-null", reading, bench.reading_null)
    detected = audited | {k: o[k] for k in ("detector_keys", "detector_tokens")}
    bench.stage("transformers-detector", detected, bench.detector)
    shown = {k: str(v) if isinstance(v, Path) else v for k, v in o.items() if k != "work"}
    print(json.dumps({"settings": shown, "mark": bench.mark.facts(), **bench.result}, indent=1))


if __name__ == "__main__":
    main()
