"""The whole story in one run: a campaign is simulated, found, and its student is recognised.

    make story                                             some 20 minutes on two cores
    python examples/whole_story.py --seed 8 --out runs/story-8

A provider's week is simulated: some 2,400 benign accounts, and one campaign of 30 accounts that
hides about 200 exchanges among cover traffic. The embedded teacher really answers these, twice
each, and a secret coin says which answer is served. Guard scans the week's log, finds the campaign
and exports its exchanges. Two students of one kind are distilled: the suspect learns the served
answers, the control learns other answers of the same teacher to the same prompts, which makes it
the hardest innocent there is. Audit tests both against what guard exported, and seals bundles that
anybody can verify.

OUT/report.html tells it on one page; OUT/story.json holds the figures. Stop it at any time and run
the same command again: it goes on. Nobody is contacted; nothing leaves this machine. Traffic,
answers and training follow from the seed; guard's secret and the escrow's coins are drawn anew.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

import stillhouse
from stillhouse.audit import words
from stillhouse.audit.settings import TwinSettings
from stillhouse.cli.pipeline import run_stages
from stillhouse.cli.terminal import duration, make_progress
from stillhouse.config import CollectSettings, load_recipe
from stillhouse.errors import ConfigError, DataError, StillhouseError
from stillhouse.files import alone, write_whole
from stillhouse.guard.settings import GuardSettings
from stillhouse.guard.simulate_settings import SimulateSettings
from stillhouse.memory import give_back_memory
from stillhouse.pages import page_template, stylesheet
from stillhouse.progress import Progress
from stillhouse.store import Store

TEACHER = "smollm2-135m"
CAMPAIGN = {
    "name": "harvest", "accounts": 30, "capability": "reasoning_elicitation",
    "exchanges_are": "campaign", "exchanges_per_day": 200 / 30 / 7, "cover": 0.5,
    "paraphrase": "templates", "rewordings": 3, "signup": "burst",
}  # fmt: skip
BENIGN = 2500  # of which some API customers stay silent
# What llama.cpp's server does when nothing is said; short answers, so that a viewer stays.
ASKED = {"temperature": 1.0, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "max_tokens": 48,
         "engine": "local", "top_logprobs": 0}  # fmt: skip
STUDENT = {"layers": 12, "measure_tokens": 8000, "teach_identity": False}
TRAIN = {"targets": "hard", "learning_rate": 2.0e-4, "epochs": 2, "batch_tokens": 1000,
         "validation_exchanges": 0, "checkpoint_seconds": 240}  # fmt: skip

_HELDOUT = Path(__file__).resolve().parent / "prompts" / "heldout_a.jsonl"
EVALUATE = {
    "exchanges": 16, "prompts": [str(_HELDOUT)], "max_tokens": 64, "speed_tokens": 8,
    "speed_repeats": 6, "identity_samples": 1,
}  # fmt: skip


class Story:
    """A folder, and what has been done there: `stages.json` has each stage's result and seconds."""

    def __init__(self, folder: Path, seed: int, progress: Progress) -> None:
        """Go on with a story, or begin one.

        Raises:
            ConfigError: the folder holds something else, or a story told with other settings,
                another seed say.
        """
        self.folder, self.seed, self.progress = folder, seed, progress
        self._record = folder / "stages.json"
        told = {"stages": _STAGES_VERSION, "seed": seed, "campaign": CAMPAIGN, "benign": BENIGN,
                "teacher": TEACHER, "asked": ASKED, "student": STUDENT, "train": TRAIN,
                "evaluate": EVALUATE | {"prompts": _HELDOUT.name}}  # fmt: skip
        self.stages: dict[str, Any] = {"told_with": told}
        if self._record.exists():
            self.stages = json.loads(self._record.read_text("utf-8"))
            if "told_with" not in self.stages:
                raise _unfit(folder, "files that are no story", _OTHER_PLACE)
            if self.stages["told_with"] != told:
                raise _unfit(
                    folder, "a story told with other settings or by another version",
                    "Name another --out",
                )  # fmt: skip
        elif folder.is_dir() and any(p.name not in _OWN_FIRST for p in folder.iterdir()):
            raise _unfit(folder, "files that are no story", _OTHER_PLACE)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self._write()

    def _write(self) -> None:
        write_whole(self._record, json.dumps(self.stages, indent=1) + "\n")

    def stage(self, name: str, line: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of a stage, done once."""
        number = 1 + [chapter.__name__ for chapter in CHAPTERS].index(name)
        self.progress.say("")
        self.progress.say(f"[{number}/{len(CHAPTERS)}] {line}")
        if name not in self.stages:
            began, result = time.monotonic(), None
            spent = self.stages.setdefault("spent", {})
            try:
                result = work()
            finally:  # a stage that is interrupted has still taken its time, unless it was killed
                spent[name] = round(spent.get(name, 0.0) + time.monotonic() - began, 1)
                if result is not None:
                    self.stages[name] = result
                self._write()
            give_back_memory()
        return self.stages[name]

    def tell(self, line: str) -> None:
        """What came of a stage, in a sentence."""
        self.progress.say(f"  -> {line}")


_OWN_FIRST = {"lock", ".stages.json.new"}
"""What a story's folder can hold before it is known as one."""
_OTHER_PLACE = "Name another --out: parts are deleted"
_STAGES_VERSION = 2
"""Raised by hand when what a stage leaves behind is something else: none goes on with another's."""


def _unfit(folder: Path, found: str, todo: str) -> ConfigError:
    return ConfigError(
        f"--out {folder}", found, "a new folder, or a story of this seed to go on with",
        todo,
    )  # fmt: skip


# ---- the chapters ----


def ordinary_week(story: Story) -> None:
    """A week of the provider without any campaign: what guard is calibrated on."""
    done = story.stage(
        "ordinary_week", "An ordinary week of an API provider is simulated: nobody but customers.",
        lambda: _simulated(story, "ordinary", week=0),
    )  # fmt: skip
    story.tell(f"{done['events']:,} requests of {done['accounts']:,} accounts")


def asked(story: Story) -> None:
    """The next week, with the campaign in it; what it asks is written down."""
    done = story.stage(
        "asked", f"The next week a campaign of {CAMPAIGN['accounts']} accounts hides among them.",
        lambda: _simulated(story, "asked", week=1, campaigns=(CAMPAIGN,)),
    )  # fmt: skip
    story.tell(f"{done['campaign_events']} of {done['events']:,} requests are the campaign's own")


def served(story: Story) -> None:
    """The teacher answers the campaign, twice each; a secret coin says which answer is served."""
    done = story.stage(
        "served", f"The teacher {TEACHER} answers the campaign, twice each; a coin picks.",
        lambda: _collected(story, "served", seed=story.seed, escrow=story.folder / "escrow"),
    )  # fmt: skip
    story.tell(f"{done['exchanges']} answers served, their twins locked away in escrow")
    story.tell(f"to be published now: the escrow's root {done['escrow_root']}")


def logged(story: Story) -> None:
    """The same week again, and the log holds the answers."""
    done = story.stage(
        "logged", "The provider's log of that week, with the answers in it.",
        lambda: _simulated(
            story, "week", week=1, campaigns=(CAMPAIGN,), answers=story.folder / "served"
        ),
    )  # fmt: skip
    story.tell(f"{done['events']:,} lines, {done['megabytes']} MB")


def found(story: Story) -> None:
    """Guard is calibrated on the ordinary week and scans the other."""
    done = story.stage(
        "found", f"Guard learns what is ordinary and scans the week: {CAMPAIGN['accounts']} of "
        f"{story.stages['logged']['accounts']:,} accounts to find.",
        lambda: _scanned(story),
    )  # fmt: skip
    story.tell(
        f"{done['members_called']} of {done['members']} accounts of the campaign called for "
        f"review, and {done['false_accounts']} of {done['benign']:,} others"
    )


def exported(story: Story) -> None:
    """What the campaign obtained, out of the log, as the exchanges that the escrow knows."""
    done = story.stage(
        "exported", "Guard exports what the campaign obtained.", lambda: _exported(story)
    )
    story.tell(done["ended"] or f"{done['exchanges']} exchanges, found by what was asked")


def others(story: Story) -> None:
    """Other answers of the same teacher to the same prompts, for the control."""
    done = story.stage(
        "others", "For the innocent control the teacher answers the same prompts once more.",
        lambda: _collected(story, "others", seed=story.seed + 1000),
    )  # fmt: skip
    story.tell(f"{done['exchanges']} other answers")


def suspect(story: Story) -> None:
    """A student of the served answers."""
    _student(story, "suspect", "The suspect is distilled from the answers the campaign obtained.")


def control(story: Story) -> None:
    """A student of the other answers."""
    _student(story, "control", "The control is distilled from the other answers.")


def audited(story: Story) -> None:
    """Both are tested against what guard exported, and everything is sealed."""
    done = story.stage(
        "audited", "Audit asks both students which of two answers they find more likely.",
        lambda: _audited(story),
    )  # fmt: skip
    for name in ("suspect", "control"):
        one = done[name]
        story.tell(
            f"{name}: {one['verdict']}, p = {_chance(one['p_value'])}; {one['share']:.0%} of "
            f"{one['n']} pairs lean to the served answer"
        )


CHAPTERS = (
    ordinary_week, asked, served, logged, found, exported, others, suspect, control, audited,
)  # fmt: skip


# ---- what they do ----


def _chance(p_value: float | None) -> str:
    return "none: the test was refused" if p_value is None else f"{p_value:.2g}"


def _simulated(story: Story, name: str, **changes: Any) -> dict[str, Any]:
    out = story.folder / name
    shutil.rmtree(out, ignore_errors=True)  # a simulation that was stopped begins anew
    spec = {"seed": story.seed, "benign": {"accounts": BENIGN}, **changes}
    made = stillhouse.guard_simulate(SimulateSettings.model_validate(spec), out, story.progress)
    return {
        "accounts": made.accounts, "events": made.events,
        "campaign_events": made.campaign_events, "megabytes": round(made.bytes / 1e6),
    }  # fmt: skip


def _collected(story: Story, name: str, **changes: Any) -> dict[str, Any]:
    prompts = story.folder / "asked" / "prompts" / f"{CAMPAIGN['name']}.jsonl"
    settings = CollectSettings(prompts=(prompts,), **ASKED, **changes)
    store = story.folder / name
    made = stillhouse.collect(settings, teacher=TEACHER, store=store, progress=story.progress)
    return {"exchanges": made.exchanges, "escrow_root": (made.escrow or {}).get("root")}


def _scanned(story: Story) -> dict[str, Any]:
    benign, folder = story.folder / "benign.cal", story.folder
    stillhouse.guard_calibrate(
        GuardSettings(), logs=[folder / "ordinary" / "logs"], out=benign, progress=story.progress
    )
    scan = stillhouse.guard_scan(
        GuardSettings(), logs=[folder / "week" / "logs"], out=folder / "scan", calibration=benign,
        progress=story.progress,
    )  # fmt: skip
    truth = pq.read_table(folder / "week" / "truth.parquet", columns=["account", "campaign"])
    members = {row["account"] for row in truth.to_pylist() if row["campaign"]}
    names, words = (scan.accounts[column].to_pylist() for column in ("account", "decision"))
    called = {name for name, word in zip(names, words, strict=True) if word == "review"}
    review = [c for c in scan.campaigns if c["decision"] == "review"]
    return {
        "members": len(members), "members_called": len(members & called),
        "benign": len(names) - len(members & set(names)), "false_accounts": len(called - members),
        "campaigns": [
            {key: c[key] for key in ("id", "accounts", "exchanges", "p_value", "q_value",
                                     "families", "capability")} for c in review
        ],
    }  # fmt: skip


def _exported(story: Story) -> dict[str, Any]:
    out = story.folder / "exported"
    shutil.rmtree(out, ignore_errors=True)
    left_out: dict[str, dict[str, int]] = {}
    for campaign in story.stages["found"]["campaigns"]:
        try:
            _, left_out[campaign["id"]] = stillhouse.guard_export(
                story.folder / "scan", campaign["id"], out=out, served=story.folder / "served",
                progress=story.progress,
            )  # fmt: skip
        except DataError as problem:  # a false campaign was served nothing: the page tells of it
            if not problem.where.startswith("campaign "):
                raise
            left_out[campaign["id"]] = {problem.found: campaign["exchanges"]}
    if not out.exists():
        called = "the campaigns it called asked nothing that was served" if left_out else (
            "it called no campaign"
        )  # fmt: skip
        ended = f"Guard did not find the campaign: {called}. The story ends here."
        return {"exchanges": 0, "left_out": left_out, "ended": ended}
    with Store(out, "r") as store:
        return {"exchanges": len(store), "left_out": left_out, "ended": None}


def _student(story: Story, name: str, line: str) -> None:
    store = {"suspect": "served", "control": "others"}[name]
    recipe = {
        "name": name, "teacher": TEACHER, "runs": str(story.folder / "students"),
        "exchanges": str(story.folder / store), "train": TRAIN | {"seed": story.seed},
        "evaluate": EVALUATE,
        "student": STUDENT | {"name": name.capitalize()},
    }  # fmt: skip

    def train() -> dict[str, Any]:
        path = story.folder / f"{name}.yaml"
        write_whole(path, yaml.safe_dump(recipe, sort_keys=False))
        report = run_stages(load_recipe(path), ("train", "evaluate", "report"), story.progress)
        first, last = report["curve"][0], report["curve"][-1]
        return {"exchanges": report["targets"]["exchanges"], "steps": last["step"],
                "parameters": report["student"]["parameters"],
                "loss": [first["loss"], last["loss"]],
                "kl_nats": report["held_out"]["after"]["kl_nats"]}  # fmt: skip

    done = story.stage(name, line, train)
    story.tell(
        f"{done['exchanges']} exchanges, {done['steps']} steps, "
        f"{done['loss'][0]:.2f} to {done['loss'][1]:.2f} nats a token"
    )


def _audited(story: Story) -> dict[str, Any]:
    folder, names = story.folder, ("suspect", "control")
    evidence = stillhouse.audit_twin(
        TwinSettings(), suspects=[f"run:{name}" for name in names], exchanges=folder / "exported",
        twins=folder / "escrow", teacher=TEACHER, out=folder / "bundle",
        runs=folder / "students", progress=story.progress,
    )  # fmt: skip
    told: dict[str, Any] = {}
    for number, (name, one) in enumerate(zip(names, evidence, strict=True), start=1):
        assert isinstance(one, dict)  # neither waits for anybody's answers
        checked = stillhouse.audit_verify(folder / "bundle" / str(number))
        told[name] = {
            "p_value": one["p_value"], "n": one["n"], "verdict": one["verdict"],
            "share": one["effect"]["value"], "low": one["effect"]["low"],
            "high": one["effect"]["high"], "at_most": one["secondary"]["share_upper_bound"],
            "level": one["secondary"]["level"],
            "says": one["says"], "cannot": one["cannot"], "excluded": one["excluded"],
            "bundle": f"bundle/{number}", "root": checked.root, "commitment": checked.commitment,
            "verified": checked.ok, "differences": checked.differences,
        }  # fmt: skip
    return told


# ---- what is told ----


def tell(story: Story) -> dict[str, Any]:
    """Write `story.json` and `report.html`; the figures. A campaign that guard did not find has no
    students and no audit.
    """
    stages, names = story.stages, ("suspect", "control")
    scan, audit = stages["found"], stages.get("audited")
    figures = {
        "seed": story.seed, "ended": stages["exported"]["ended"],
        "guard": {"recall": scan["members_called"] / scan["members"], **scan,
                  "planted_capability": CAMPAIGN["capability"]},
        "distill": {name: stages.get(name) for name in names} | {"epochs": TRAIN["epochs"]},
        "audit": {name: audit[name] if audit else {"p_value": None, "verdict": None}
                  for name in names},
        "exchanges": {name: stages[name]["exchanges"] for name in ("served", "exported", "others")
                      if name in stages} | {"left_out": stages["exported"]["left_out"]},
        "escrow_root": stages["served"]["escrow_root"],
        "seconds": round(sum(stages["spent"].values()), 1),
        "seconds_by_stage": {c.__name__: stages["spent"][c.__name__] for c in CHAPTERS
                             if c.__name__ in stages["spent"]},
        "stillhouse": stillhouse.__version__,
    }  # fmt: skip
    figures["goals"] = _goals(figures)
    write_whole(story.folder / "story.json", json.dumps(figures, indent=1) + "\n")
    source = Path(__file__).with_name("whole_story.html.jinja").read_text("utf-8")
    page = page_template(source, strict=True).render(
        css=stylesheet(), s=figures, week=stages["logged"]
    )
    write_whole(story.folder / "report.html", page)
    return figures


def _goals(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """What the story is to show, and whether this run shows it."""
    guard, audit = figures["guard"], figures["audit"]
    suspect = audit["suspect"]["p_value"]
    return [
        {"what": "accounts of the campaign called", "goal": "at least 95 %",
         "met": guard["recall"] >= 0.95},
        {"what": "other accounts called", "goal": "none", "met": guard["false_accounts"] == 0},
        {"what": "p of the suspect", "goal": "below 1e-9",
         "met": suspect is not None and suspect < 1e-9},
        {"what": "verdict on the control", "goal": "no evidence",
         "met": audit["control"]["verdict"] == words.NONE_FOUND},
        {"what": f"time on {os.cpu_count()} cores", "goal": "at most 20 minutes",
         "met": figures["seconds"] <= 1200},
    ]  # fmt: skip


def main() -> None:
    """Tell the story from where it stands."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/story"))
    parser.add_argument("--seed", type=int, default=7, help="traffic, answers and training follow")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    options = parser.parse_args()
    folder = options.out.resolve()
    try:
        story = Story(folder, options.seed, make_progress(quiet=options.quiet))
        with alone(folder):
            for chapter in CHAPTERS:
                chapter(story)
                if story.stages.get("exported", {}).get("ended"):
                    break
    except StillhouseError as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(problem.exit_code)
    except KeyboardInterrupt:
        print(
            f"\nStopped. Run the same command again: it goes on in {options.out}", file=sys.stderr
        )
        sys.exit(130)
    figures = tell(story)
    guard, audit = figures["guard"], figures["audit"]
    missed = [f"{goal['what']}: {goal['goal']}" for goal in figures["goals"] if not goal["met"]]
    print(f"\nguard: recall {guard['recall']:.3f}, {guard['false_accounts']} false accounts")
    if figures["ended"] is None:
        print(
            f"audit: suspect p = {_chance(audit['suspect']['p_value'])}, control p = "
            f"{_chance(audit['control']['p_value'])} (share at most "
            f"{audit['control']['at_most']:.3f})"
        )
    print(f"goals: {'missed: ' + '; '.join(missed) if missed else 'all met'}")
    print(f"{duration(figures['seconds'])}; read {options.out / 'report.html'}")
    if figures["ended"] is not None:
        sys.exit(DataError.exit_code)


if __name__ == "__main__":
    main()
