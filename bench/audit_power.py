"""Power of the twin test on students that were really trained, under what weakens their memory.

    python bench/audit_power.py --list                        the rows, with expected minutes
    python bench/audit_power.py --prompts FILE... --quick     40 prompts: that all rows run
    python bench/audit_power.py --prompts FILE... --only text main
    python bench/audit_power.py --prompts FILE...             all, five hours on two quiet cores

The teacher (smollm2-135m) answers 2,040 prompts twice with `collect` and an escrow, whose coin says
which of the two is served; students learn served answers in the train room, or low-rank changes of
their weights; `twin_audit` tests them on pairs drawn at random. `main` is the quickstart's student
with hard targets, tested on 200 pairs and on 2,000, with log-probabilities and with text only. The
other rows change one thing about a cheaper student (ten of the teacher's layers) and report how
many pairs p < 1e-6 takes: the fewest at which the median p over 200 random orders of the pairs
tested is below it, and the fewest at which nine orders in ten are; null where all pairs do not get
there. Orders of nearly all pairs are nearly the same, so nine in ten is optimistic near `n`.
Statistics: the suspect's difference, and the same less the teacher's, as the audit takes it off.

Every stage lies in the work folder (up to 10 GB) and is done once; `result.json` there grows with
each row, and a row in it is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from audit_students import QUICK, Kitchen, Sizes
from scipy.stats import rankdata

from stillhouse.audit.selection import choose
from stillhouse.audit.settings import TwinSettings
from stillhouse.audit.twin_audit import twin_audit
from stillhouse.cli.terminal import make_progress
from stillhouse.errors import EvidenceError
from stillhouse.exact import signed_rank
from stillhouse.files import file_hash

GOAL = 1e-6
GOAL_PAIRS = 200
ORDERS = 200
ALL = 2000  # `exact.MOST_PAIRS`

Row = Callable[["Bench"], dict[str, Any]]


# ---- how many pairs ----


def _lean(differences: np.ndarray) -> float:
    """The signed-rank sum over its standard deviation under the null: only to order outcomes."""
    signed = differences[differences != 0]
    if not len(signed):
        return 0.0
    ranks = rankdata(np.abs(signed))
    return float((np.sign(signed) * ranks).sum() / np.sqrt((ranks**2).sum()))


class Power:
    """Exact p-values of the first n pairs in many random orders."""

    def __init__(self, differences: Sequence[float]) -> None:
        rng = np.random.default_rng(20261122)
        values = np.asarray(differences, dtype=np.float64)
        self.size = len(values)
        self._orders = [rng.permutation(values) for _ in range(ORDERS)]
        self.p = cache(self._p)

    def _p(self, pairs: int, share: float = 0.5) -> float:
        """The p-value that this share of the orders reaches or undercuts; 0.5 is the median."""
        firsts = sorted((o[:pairs] for o in self._orders), key=_lean, reverse=True)
        at = firsts[max(0, round(share * ORDERS) - 1)]
        return signed_rank(at).p_value if at.any() else 1.0

    def needed(self, share: float = 0.5) -> int | None:
        """The fewest pairs at which that p is below the goal, found by halving."""
        if not self.size or self.p(self.size, share) >= GOAL:
            return None
        low, high = 0, self.size
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.p(middle, share) < GOAL else (middle, high)
        return high

    def to_dict(self) -> dict[str, Any]:
        """What a row reports."""
        if not self.size:
            return {"n": 0, "refused": "no pairs"}
        grid = [n for n in (25, 50, 100, 200, 400, 800, 1600) if n < self.size] + [self.size]
        at_goal = [signed_rank(o[:GOAL_PAIRS]).p_value < GOAL for o in self._orders]
        return {
            "n": self.size,
            "p_at_all": self.p(self.size),
            "median_p": {str(n): self.p(n) for n in grid},
            "pairs_needed": self.needed(),
            "pairs_needed_by_nine_in_ten": self.needed(0.9),
            f"share_of_draws_of_{GOAL_PAIRS}_below_goal": (
                float(np.mean(at_goal)) if self.size >= GOAL_PAIRS else None
            ),
        }


# ---- tests through the product ----


@dataclass(frozen=True)
class Bench:
    """The kitchen, and the audits of what comes out of it."""

    kitchen: Kitchen

    def audit(
        self, name: str, suspect: str, served: Path, *, pairs: int, temperature: float = 1.0,
        prefixed: bool = False, teacher: bool = False, **settings: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """The evidence of `audits/NAME`, by escrowed twins, or by twins that continue a prefix of
        the served answer, which the teacher draws now.
        """
        kitchen = self.kitchen
        found = twin_audit(
            TwinSettings(pairs=pairs, **settings), suspects=[suspect], exchanges=served,
            out=kitchen.work / "audits" / name, runs=kitchen.work / "runs",
            teacher=kitchen.teacher if teacher or prefixed else None,
            twins=None if prefixed else kitchen.escrow(temperature), progress=kitchen.progress,
        )[0]  # fmt: skip
        assert isinstance(found, dict)
        return found

    def teacher_itself(self, temperature: float, pairs: int) -> dict[str, Any]:
        """The evidence against the teacher, an innocent suspect, by the same pairs; its differences
        are what is taken off a suspect's.
        """
        served = self.kitchen.answers("tested", temperature=temperature)
        return self.audit(f"teacher-{temperature}", self.kitchen.teacher, served, pairs=pairs,
                          temperature=temperature, access="logprobs")  # fmt: skip

    def measured(
        self, name: str, served: Path, *, pairs: int = ALL, temperature: float = 1.0
    ) -> dict[str, Any]:
        """What a log-probability audit of `run:NAME` says, and how many pairs the goal takes."""
        try:
            found = self.audit(name, f"run:{name}", served, pairs=pairs, temperature=temperature,
                               access="logprobs")  # fmt: skip
            # read once for all rows of a temperature; at 1.0 some of them test all pairs
            most = ALL if temperature == 1.0 else pairs
            expected = self.teacher_itself(temperature, most)["differences"]
        except EvidenceError as refusal:
            return {"refused": str(refusal)}
        alone = in_order(found)
        off = [gap - expected[e] for e, gap in alone.items() if e in expected]
        return {
            **summary(found),
            "suspect_alone": Power(list(alone.values())).to_dict(),
            "teacher_taken_off": Power(off).to_dict(),
        }


def in_order(found: dict[str, Any]) -> dict[str, float]:
    """Exchange -> difference, in the order of ids: evidence read again has another."""
    return dict(sorted(found["differences"].items()))


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """The figures of a piece of evidence, without what is said of them."""
    return {
        "access": found["access"], "n": found["n"], "excluded": found["excluded"],
        "verdict": found["verdict"], "p_value": found["p_value"],
        "sign_p_value": found["secondary"]["sign_p_value"],
        "rank_biserial": found["secondary"]["rank_biserial"],
        "share_that_leans_to_served": found["effect"],
        "mean_difference": found["secondary"]["mean_difference"],
    }  # fmt: skip


# ---- rows ----


def main_row(bench: Bench) -> dict[str, Any]:
    """The quickstart's student: 200 pairs as the audit would do it, and all for the curve."""
    kitchen = bench.kitchen
    training = kitchen.main_student()
    served = kitchen.answers("tested")
    few = min(GOAL_PAIRS, kitchen.sizes.tested)
    with_teacher = bench.audit("main-200", "run:main", served, pairs=few, teacher=True)
    without = bench.audit("main-200-alone", "run:main", served, pairs=few)
    return {
        "training": training,
        "200_pairs_teacher_taken_off": summary(with_teacher),
        "200_pairs_suspect_alone": summary(without),
        "goal_met": {
            "teacher_taken_off": _below(with_teacher), "suspect_alone": _below(without),
            "trained_on_at_least_2000": training["trained_on"] >= 2000,
        },
        "all_pairs": bench.measured("main", served),
    }  # fmt: skip


def _below(found: dict[str, Any]) -> bool:
    return found["p_value"] is not None and found["p_value"] < GOAL


def text_row(bench: Bench, name: str, *, prefixed: bool, pairs: int) -> dict[str, Any]:
    """The main student asked for text only; the first 200 pairs are those of a draw of 200."""
    kitchen = bench.kitchen
    kitchen.main_student()
    served = kitchen.answers("tested")
    prefix = min(TwinSettings().prefix_tokens, kitchen.sizes.max_tokens // 3)
    try:
        found = bench.audit(name, "run:main", served, pairs=pairs, access="text",
                            prefixed=prefixed, prefix_tokens=prefix)  # fmt: skip
    except EvidenceError as refusal:
        return {"refused": str(refusal)}
    rows = (kitchen.work / "audits" / name / "sealed" / "candidates.jsonl").read_text("utf-8")
    candidates = [json.loads(line) for line in rows.splitlines()]
    draw = json.loads((kitchen.work / "audits" / name / "sealed" / "plan.json").read_text())["draw"]
    drawn, _ = choose(candidates, pairs=GOAL_PAIRS, draw=draw)
    few = [found["differences"][e] for e in drawn if e in found["differences"]]
    return {
        "twins": f"continue {prefix} tokens of the served answer" if prefixed else "escrowed",
        "p_at_200": signed_rank(few).p_value,
        **summary(found),
        "curve": Power(list(in_order(found).values())).to_dict(),
    }


def cheap_row(
    bench: Bench, name: str, *, pairs: int = ALL, temperature: float = 1.0, **student: Any
) -> dict[str, Any]:
    """The cheap student after one epoch on the served answers, one thing changed."""
    served = bench.kitchen.answers("tested", temperature=temperature)
    training = bench.kitchen.cheap_student(name, served, **student)
    found = bench.measured(name, served, pairs=pairs, temperature=temperature)
    return {"training": training, **found}


def share_row(bench: Bench, name: str, *, share: float) -> dict[str, Any]:
    """Served answers are a share of the mix; the test draws from those that were trained on."""
    mix, served = bench.kitchen.mixed(share)
    training = bench.kitchen.cheap_student(name, mix)
    return {
        "share": bench.kitchen.sizes.served(share) / bench.kitchen.sizes.mix,
        "training": training, **bench.measured(name, served),
    }  # fmt: skip


def clean_row(bench: Bench, name: str) -> dict[str, Any]:
    """The reference student, then an epoch of other exchanges at the same learning rate."""
    kitchen = bench.kitchen
    kitchen.cheap_student("reference", kitchen.answers("tested"))
    begins = kitchen.work / "runs" / "reference" / "student"
    training = kitchen.cheap_student(name, kitchen.clean(), begins=begins)
    return {"later_training": training, **bench.measured(name, kitchen.answers("tested"))}


def reworded_row(bench: Bench, name: str) -> dict[str, Any]:
    """The reference, trained on reworded answers and tested on what was served."""
    store, how_much = bench.kitchen.reworded()
    training = bench.kitchen.cheap_student(name, store)
    served = bench.kitchen.answers("tested")
    return {"rewording": how_much, "training": training, **bench.measured(name, served)}


def innocent_row(bench: Bench, name: str) -> dict[str, Any]:
    """A student of third answers to the tested prompts, and the teacher itself."""
    kitchen = bench.kitchen
    training = kitchen.cheap_student(name, kitchen.answers("thirds"))
    return {
        "training": training, **bench.measured(name, kitchen.answers("tested")),
        "teacher_itself": summary(bench.teacher_itself(1.0, ALL)),
    }  # fmt: skip


# name -> (minutes on two quiet cores, what it is, how it is measured)
SHARED = {
    "2,040 served answers and their twins": 10,
    "5,940 other answers (initial, share, clean)": 14,
    "first weights of the cheap student": 5,
    "the teacher reads 2,000 pairs": 15,
}
ROWS: dict[str, tuple[int, str, Row]] = {
    "main": (32, "quickstart's student, hard targets, log-probabilities", main_row),
    "text": (16, "the same, text only, escrowed twins, 2,000 pairs",
             partial(text_row, name="text", prefixed=False, pairs=ALL)),
    "text-prefix": (11, "the same, text only, twins that continue a prefix, 1,000 pairs",
                    partial(text_row, name="text-prefix", prefixed=True, pairs=1000)),
    "reference": (13, "cheap student, learning rate 2e-4, temperature 1",
                  partial(cheap_row, name="reference")),
    "innocent": (18, "cheap student of third answers to the same prompts",
                 partial(innocent_row, name="innocent")),
    "rate-1e-5": (13, "learning rate 1e-5",
                  partial(cheap_row, name="rate-1e-5", learning_rate=1e-5)),
    "lora": (13, "low-rank training, rank 16, learning rate 2e-4",
             partial(cheap_row, name="lora", rank=16)),
    "lora-1e-3": (13, "low-rank training, rank 16, learning rate 1e-3",
                  partial(cheap_row, name="lora-1e-3", rank=16, learning_rate=1e-3)),
    "soft": (14, "soft targets, the 64 alternatives stored",
             partial(cheap_row, name="soft", targets="soft")),
    "share-10": (23, "served answers are 600 of 6,000",
                 partial(share_row, name="share-10", share=0.1)),
    "share-1": (21, "served answers are 60 of 6,000",
                partial(share_row, name="share-1", share=0.01)),
    "clean": (13, "reference, then an epoch on 2,040 other exchanges",
              partial(clean_row, name="clean")),
    "reworded": (13, "trained on reworded answers", partial(reworded_row, name="reworded")),
    "temperature-0.7": (28, "answers and twins drawn at 0.7, 1,000 pairs",
                        partial(cheap_row, name="temperature-0.7", temperature=0.7, pairs=1000)),
    "temperature-0.3": (28, "answers and twins drawn at 0.3, 1,000 pairs",
                        partial(cheap_row, name="temperature-0.3", temperature=0.3, pairs=1000)),
}  # fmt: skip


# ---- the run ----


def main() -> None:
    options = _options()
    if options.list:
        shared = [f"{minutes:4} min  (shared) {what}" for what, minutes in SHARED.items()]
        rows = [f"{minutes:4} min  {name}: {what}" for name, (minutes, what, _) in ROWS.items()]
        total = sum(SHARED.values()) + sum(minutes for minutes, _, _ in ROWS.values())
        print("\n".join([*shared, *rows, f"{total:4} min  in all"]))
        return
    bench = Bench(_kitchen(options))
    path = bench.kitchen.work / "result.json"
    result: dict[str, Any] = {"bench": Path(__file__).name, "teacher": options.teacher}
    result |= {"sizes": asdict(bench.kitchen.sizes), "cpus": os.cpu_count(), "rows": {}}
    if path.exists():
        result["rows"] = json.loads(path.read_text("utf-8"))["rows"]
    for name in options.only or ROWS:
        if name in result["rows"] and not options.again:
            continue
        began, load = time.monotonic(), os.getloadavg()[0]
        found = ROWS[name][2](bench)
        seconds = round(time.monotonic() - began)
        result["rows"][name] = {"seconds": seconds, "load_before": round(load, 2), **found}
        aside = path.with_suffix(".new")
        aside.write_text(json.dumps(result, indent=1), "utf-8")
        aside.replace(path)
    print(json.dumps(result, indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--prompts", type=Path, nargs="+", default=[], help="files of 2,040 prompts; --quick: of 40"
    )
    parser.add_argument("--work", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(ROWS), metavar="ROW")
    parser.add_argument("--again", action="store_true", help="measure rows anew from what is there")
    parser.add_argument("--quick", action="store_true", help="40 prompts, to see that all rows run")
    parser.add_argument("--list", action="store_true", help="the rows, with expected minutes")
    parser.add_argument("--teacher", default="smollm2-135m")
    parser.add_argument("--authorisation", type=Path, help="for a teacher of unknown terms")
    parser.add_argument("--layers", type=int, default=10, help="of the cheap student")
    parser.add_argument("--width", type=int, help="of the main student's MLPs, in neurons")
    options = parser.parse_args()
    if not options.prompts and not options.list:
        parser.error("--prompts: no files of prompts (the figures of docs/audit.md say which)")
    return options


def _kitchen(options: argparse.Namespace) -> Kitchen:
    """The kitchen in the work folder; one that was begun otherwise is refused."""
    name = "bench-audit-power-quick" if options.quick else "bench-audit-power"
    work = (options.work or Path("runs") / name).resolve()
    sizes = QUICK if options.quick else Sizes()
    begun = {
        "teacher": options.teacher, "sizes": asdict(sizes), "layers": options.layers,
        "width": options.width, "prompts": [file_hash(file) for file in options.prompts],
    }  # fmt: skip
    note = work / "settings.json"
    work.mkdir(parents=True, exist_ok=True)
    if note.exists() and json.loads(note.read_text("utf-8")) != begun:
        raise SystemExit(f"{work} was begun with other settings: name another with --work")
    note.write_text(json.dumps(begun, indent=1), "utf-8")
    return Kitchen(
        work, options.prompts, options.teacher, sizes, options.layers, options.width,
        options.authorisation, make_progress(quiet=False),
    )  # fmt: skip


if __name__ == "__main__":
    main()
