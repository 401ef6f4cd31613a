"""What the power curves are measured on: prompts, answers with escrowed twins, students.

In: prompt files, a teacher, sizes. Out: stores of its answers (`answers/`), stores trained on
(`stores/`: mixes, reworded answers), students (`runs/`, made by the train room from recipes in
`recipes/`), all in one work folder. What is there is not made again. Nothing here tests a student.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from audit_reword import changed_share, reword
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stillhouse.cli.pipeline import run_stages
from stillhouse.collect.run import collect
from stillhouse.config import (
    CollectSettings,
    Recipe,
    StudentSettings,
    TrainSettings,
    fingerprint,
    load_recipe,
)
from stillhouse.errors import DataError
from stillhouse.exchange import Exchange, Response
from stillhouse.progress import Progress
from stillhouse.prompts import read_prompts
from stillhouse.store import Store
from stillhouse.train.layers import layers_of
from stillhouse.train.loop import TrainReport, _finished, _optimiser, _Run
from stillhouse.train.prepare import Prepared, prepare
from stillhouse.train.targets import order_of

QUICKSTART = Path(__file__).resolve().parent.parent / "examples" / "quickstart.yaml"

# Longer prompts cost time and are few; the length of a prompt is no property of an answer.
_LONGEST_PROMPT = 700


@dataclass(frozen=True)
class Sizes:
    """How much of everything; `QUICK` is enough to see that every row runs."""

    tested: int = 2040
    """Served answers with twins, and exchanges in a student's one epoch: a test takes 2,000 pairs
    at most, and an answer or two may be empty and not trained on."""
    mix: int = 6000
    """Exchanges in a mix of which served answers are a share."""
    fewest_served: int = 0
    """Served answers in a mix, at least."""
    max_tokens: int = 48
    batch_tokens: int = 1000
    measure_tokens: int | None = None
    """Tokens that first weights are healed on; None leaves that to recipe and default."""
    choose: Literal["influence", "greedy"] = "greedy"

    @property
    def others(self) -> int:
        """Other exchanges, enough for the mix with the smallest share."""
        return self.mix - self.served(0.01)

    def served(self, share: float) -> int:
        """Served answers in a mix."""
        return max(self.fewest_served, round(share * self.mix))


QUICK = Sizes(tested=40, mix=60, fewest_served=24, max_tokens=16, batch_tokens=150,
              measure_tokens=1500, choose="influence")  # fmt: skip


@dataclass(frozen=True)
class Kitchen:
    """The work folder, and how everything in it is made."""

    work: Path
    prompt_files: Sequence[Path]
    teacher: str
    sizes: Sizes
    layers: int
    """Of the cheap student."""
    width: int | None
    """Neurons of the main student's MLPs; None takes the quickstart's."""
    authorisation: Path | None
    progress: Progress

    # ---- prompts and answers ----

    def prompts(self, name: str) -> Path:
        """A prompt file: `tested`, or `others`, which share no prompt."""
        path = self.work / "prompts" / f"{name}.jsonl"
        if not path.exists():
            sizes = self.sizes
            texts = _distinct(self.prompt_files)
            if len(texts) < sizes.tested + sizes.others:
                needed = sizes.tested + sizes.others
                raise SystemExit(f"{len(texts)} prompts, {needed} are needed: name more files")
            path.parent.mkdir(parents=True, exist_ok=True)
            parts = {"tested": texts[: sizes.tested], "others": texts[sizes.tested :]}
            parts["others"] = parts["others"][: sizes.others]
            lines = [json.dumps({"prompt": text}) + "\n" for text in parts[name]]
            path.write_text("".join(lines), "utf-8")
            assert len(read_prompts([path]).prompts) == len(lines)
        return path

    def answers(self, name: str, *, temperature: float = 1.0) -> Path:
        """The store of the teacher's answers; of `tested` ones, twins lie in `escrow` beside it.

        `tested` are drawn in pairs, of which a secret coin serves one; `thirds` are one more answer
        to each tested prompt; `others` answer other prompts. Settings are the quickstart's.
        """
        folder = self.work / "answers" / f"{name}-{temperature}"
        tested = name == "tested"
        quickstart = load_recipe(QUICKSTART).collect.model_dump()
        settings = CollectSettings(**quickstart | {
            "prompts": (self.prompts("others" if name == "others" else "tested"),),
            "exchanges": None, "escrow": folder / "escrow" if tested else None,
            "max_tokens": self.sizes.max_tokens, "temperature": temperature,
            # soft targets are taught from one of the stores only
            "top_logprobs": quickstart["top_logprobs"] if tested and temperature == 1.0 else 0,
            "seed": 99 if name == "thirds" else 7, "authorisation": self.authorisation,
        })  # fmt: skip
        collect(settings, teacher=self.teacher, store=folder / "served", progress=self.progress)
        return folder / "served"

    def escrow(self, temperature: float) -> Path:
        """The escrow of the `tested` answers drawn at this temperature."""
        return self.work / "answers" / f"tested-{temperature}" / "escrow"

    def mixed(self, share: float) -> tuple[Path, Path]:
        """(a store of which served answers are that share, the store of those served answers)."""
        count = self.sizes.served(share)
        served = _first(self.answers("tested"), count)
        others = _first(self.answers("others"), self.sizes.mix - count)
        return (
            self._store(f"mix-{share}", [*served, *others]),
            self._store(f"mix-{share}-served", served),
        )

    def clean(self) -> Path:
        """A store of other exchanges, as many as an epoch has."""
        return self._store("clean", _first(self.answers("others"), self.sizes.tested))

    def reworded(self) -> tuple[Path, dict[str, float]]:
        """(a store of the served answers, reworded, how much was changed)."""
        served = _first(self.answers("tested"), self.sizes.tested)
        told = [(e, reword(e.response.text or "", salt=e.key)) for e in served]
        shares = [changed_share(e.response.text or "", text) for e, text in told]
        changed = [replace(e, response=Response(text=t), logprobs=None) for e, t in told]
        return self._store("reworded", changed), {
            "words_changed": round(statistics.mean(shares), 4),
            "words_changed_of_the_median_answer": round(statistics.median(shares), 4),
            "answers_left_alone": round(sum(s == 0 for s in shares) / len(shares), 4),
        }

    def _store(self, name: str, exchanges: Iterable[Exchange]) -> Path:
        """A store of these; an exchange that is there already is kept once."""
        with Store(self.work / "stores" / name) as store:
            store.append_many(exchanges)
            store.seal()
        return self.work / "stores" / name

    # ---- students ----

    def main_student(self) -> dict[str, Any]:
        """The quickstart's student and training, with hard targets, on all tested exchanges."""
        recipe = yaml.safe_load(QUICKSTART.read_text("utf-8"))
        student = recipe["student"] | self._healed()
        if self.width is not None:
            student["intermediate_size"] = self.width
        train = recipe["train"] | {"targets": "hard"}
        return self._trained("main", self.answers("tested"), student, train)

    def cheap_student(
        self, name: str, store: Path, *, begins: Path | None = None, rank: int = 0, **train: Any
    ) -> dict[str, Any]:
        """A shallow student of one epoch; `begins` is a folder of first weights."""
        student = {"init": "checkpoint", "checkpoint": str(begins or self.initial()),
                   "teach_identity": False}  # fmt: skip
        return self._trained(name, store, student, {"epochs": 1, **train}, rank)

    def initial(self) -> Path:
        """The cheap student's first weights: layers of the teacher's, healed on other exchanges
        than the tested ones, so that they know nothing of these.
        """
        out = self.work / "runs" / "initial"
        if not (out / "checkpoint" / "initial.json").exists():
            prepare(
                TrainSettings(targets="hard"),
                StudentSettings(layers=self.layers, choose=self.sizes.choose, teach_identity=False,
                                **self._healed()),  # type: ignore[arg-type]
                self.teacher, self.answers("others"), out, self.work / "runs", self.progress,
            )  # fmt: skip
        return out / "initial"

    def _healed(self) -> dict[str, int]:
        tokens = self.sizes.measure_tokens
        return {} if tokens is None else {"measure_tokens": tokens}

    def _trained(
        self, name: str, store: Path, student: dict[str, Any], train: dict[str, Any], rank: int = 0
    ) -> dict[str, Any]:
        """What training did; the student is `run:NAME` in `runs`."""
        recipe = {
            "name": name, "teacher": self.teacher, "runs": str(self.work / "runs"),
            "exchanges": str(store), "collect": {"prompts": [str(self.prompts("tested"))]},
            "student": student,
            "train": {"targets": "hard"} | train | {
                "validation_exchanges": 0, "batch_tokens": self.sizes.batch_tokens,
                "checkpoint_seconds": 300,
            },
        }  # fmt: skip
        path = self.work / "recipes" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(recipe, sort_keys=False), "utf-8")
        loaded = load_recipe(path)
        report = (
            low_rank(loaded, rank, self.progress) if rank
            else run_stages(loaded, ("train",), self.progress)
        )  # fmt: skip
        record, settings = report["record"], loaded.train
        return {
            "trained_on": record["targets"]["exchanges"],
            "left_out": record["targets"]["left_out"],
            "targets": settings.targets, "epochs": settings.epochs,
            "learning_rate": settings.learning_rate, "steps": report["steps"],
            "answer_tokens": record["answer_tokens"], "parameters": record["parameters"],
            "trained_parameters": record["trained_parameters"], "seconds": report["seconds"],
            "loss_first_last": [report["losses"][0], report["losses"][-1]],
        }  # fmt: skip


def _distinct(files: Sequence[Path]) -> list[str]:
    """The texts of all prompts of one message, each once, in an order that follows no file."""
    texts: dict[str, None] = {}
    for file in files:
        try:
            prompts = read_prompts([file]).prompts
            found = [p.messages[0].text for p in prompts if len(p.messages) == 1 and not p.tools]
        except DataError:
            found = [_as_prompt(line, file) for line in file.read_text("utf-8").splitlines()]
        texts |= dict.fromkeys(t.strip() for t in found if 0 < len(t.strip()) <= _LONGEST_PROMPT)
    return sorted(texts, key=order_of)


def _as_prompt(line: str, file: Path) -> str:
    """What a record of a benchmark asks: `question`, or `instruction` and its first `input`."""
    record = json.loads(line)
    text = record.get("question") or record.get("instruction")
    if not isinstance(text, str):
        raise SystemExit(f"{file}: no prompt, question or instruction in {line:.80}")
    given = (record.get("instances") or [{}])[0].get("input", "")
    return f"{text}\n\n{given}" if given else text


def _first(store: Path, count: int) -> list[Exchange]:
    """So many exchanges by the hash of what was asked: answers have no say in it."""
    with Store(store, "r") as opened:
        return sorted(opened, key=lambda e: order_of(e.key, "mix"))[:count]


# ---- low-rank training, which the train room does not have ----


class LowRank(nn.Module):
    """A frozen matrix plus the product of two thin ones: LoRA, Hu et al. 2021, arXiv 2106.09685."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, weight.shape[1]))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        """With the usual scale, alpha = 2 * rank."""
        with torch.autocast("cpu", enabled=False):
            return weight + 2.0 * (self.up @ self.down)


class _LowRankRun(_Run):
    """The train room's run, in which only low-rank changes of the layers' matrices are trained."""

    def __init__(self, settings: TrainSettings, ready: Prepared, out: Path, rank: int) -> None:
        super().__init__(settings, ready, out)
        self.network.requires_grad_(requires_grad=False)
        torch.manual_seed(settings.seed)
        linear = [m for m in layers_of(self.network).modules() if isinstance(m, nn.Linear)]
        for matrix in linear:
            parametrize.register_parametrization(matrix, "weight", LowRank(matrix.weight, rank))
        named = self.network.named_parameters()
        self.names = {id(p): name for name, p in named if p.requires_grad}
        self.optimiser = _optimiser(self.network, self.names, settings)
        self._changed = linear

    def finish(self) -> TrainReport:
        """The changes are added to the weights, so that the student is a folder like any other."""
        trained = sum(p.numel() for p in self.network.parameters() if p.requires_grad)
        for matrix in self._changed:
            parametrize.remove_parametrizations(matrix, "weight", leave_parametrized=True)
        report = super().finish()
        report.record["trained_parameters"] = trained
        (self.out / "train.json").write_text(json.dumps(report.to_dict()), "utf-8")
        return report


def low_rank(recipe: Recipe, rank: int, progress: Progress) -> dict[str, Any]:
    """The report of the recipe's training with low-rank changes only."""
    assert recipe.exchanges is not None
    ready = prepare(
        recipe.train, recipe.student, recipe.teacher, recipe.exchanges, recipe.folder, recipe.runs,
        progress,
    )  # fmt: skip
    ready.fingerprint = fingerprint(ready.fingerprint, rank)
    done = _finished(recipe.folder, ready.fingerprint)
    if done is None:
        run = _LowRankRun(recipe.train, ready, recipe.folder, rank)
        run.resume(progress)
        run.steps(progress)
        done = run.finish()
    return done.to_dict()
