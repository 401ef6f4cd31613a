"""The page of an audit: what cannot be concluded, what was found, and how to check and contest it.

In: a sealed bundle, its evidence and plan. Out: `report.html` beside the sealed part: one file
without script or network, for readers who are no statisticians. It shows the evidence, and computes
nothing that a verdict rests on; the plots of decoy keys and of answers are drawn from the raw
lines. The page is not sealed itself: where it and `evidence.json` differ, the latter holds.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from stillhouse.audit import words
from stillhouse.audit.green import green_pairs, scored_pairs
from stillhouse.audit.page_charts import decoy_plot, difference_bars, innocent_counts
from stillhouse.audit.page_figures import (
    Figures,
    Row,
    Unread,
    flat,
    leftover,
    number,
    often,
    plain,
)
from stillhouse.audit.page_identity import (
    day,
    identity_rows,
    identity_tiles,
    identity_view,
    said,
)
from stillhouse.audit.page_rows import (
    twin_rows,
    twin_tiles,
    watermark_rows,
    watermark_tiles,
)
from stillhouse.audit.seal import SEAL, SEALED, Sealed, sha256
from stillhouse.errors import DataError, EvidenceError
from stillhouse.files import write_whole
from stillhouse.pages import figure, markup, page_template, stylesheet
from stillhouse.watermark import Watermark

__all__ = ["PAGE", "write_page"]

PAGE = "report.html"
"""The file's name, in the bundle's folder."""

Lines = Mapping[str, Sequence[Any]]

_TITLES = {"twin": "twin test", "watermark": "watermark test", "identity": "identity audit"}


def write_page(folder: Path, evidence: Figures) -> Path:
    """The path of the bundle's page, written whole or not at all.

    Args:
        folder: a sealed bundle.
        evidence: its evidence; what it holds beyond `evidence.json`, e.g. a correction over several
            suspects, is shown too.

    Raises:
        DataError: the folder holds no sealed bundle.
        EvidenceError: evidence of a test that has no page, or of another than the bundle's plan.
    """
    bundle = _Bundle(folder)
    test = evidence.get("test")
    if test not in _TITLES or bundle.plan.get("test") != test:
        raise EvidenceError(
            f"page of {folder}", f"evidence of '{test}', a plan of '{bundle.plan.get('test')}'",
            f"one of {', '.join(_TITLES)} in both", "Give the evidence of this bundle's audit",
        )  # fmt: skip
    here = resources.files("stillhouse.audit")
    template = page_template(here.joinpath("page.html.jinja").read_text("utf-8"))
    style = markup(here.joinpath("page.css").read_text("utf-8"))
    shown = _view(evidence, bundle.plan, bundle) | {"css": stylesheet(), "own_css": style}
    return write_whole(folder / PAGE, template.render(shown))


class _Bundle:
    """What the page shows of a bundle's other files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plan, self.commit, self.seal = (
            self._object(name) for name in ("plan.json", "commit.json", SEAL)
        )
        self.commitment = sha256((folder / SEALED / "commit.json").read_bytes())
        self.withheld = 0
        self.lines: dict[str, list[dict[str, Any]]] = {}
        for path in sorted((folder / SEALED).glob("*.jsonl")):
            file = Sealed(path.name, path.read_bytes())
            self.lines[path.stem] = file.read[0]
            self.withheld += file.withheld

    def _object(self, name: str) -> dict[str, Any]:
        path = self.folder / SEALED / name
        try:
            return json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as problem:
            raise DataError(
                str(path), str(problem), "a file of a sealed bundle",
                "Seal the bundle first, or take it from its source again",
            ) from None  # fmt: skip

    def key(self) -> bytes | None:
        """The revealed watermark key; None where it is withheld."""
        found = self._object("reveal.json")
        return bytes.fromhex(found["key"]) if isinstance(found, dict) and "key" in found else None


# ---- what the page shows ----

_HEAD = ("test", "basis", "suspect", "access", "n", "excluded", "statistic", "p_value", "effect",
         "verdict", "says", "cannot", "differences")  # fmt: skip


def _view(evidence: Figures, plan: Figures, bundle: _Bundle) -> dict[str, Any]:
    """What the template names."""
    unread = Unread(evidence)
    test = evidence["test"]
    own = {"twin": _twin, "watermark": _watermark, "identity": _identity}[test]
    view = own(unread, plan, bundle)
    for key in _HEAD:
        unread(key)
    excluded = evidence["excluded"]
    return {
        "e": evidence, "p": plan, "test": test, "title": _TITLES[test],
        "lede": _lede(evidence, plan), "words": words, "basis": _BASES[evidence["basis"]],
        "excluded": [Row(reason, number(count)) for reason, count in excluded.items()],
        "left_out": number(sum(excluded.values())),
        "n": number(evidence["n"]),
        "level": _level(evidence),
        "often": None if evidence["p_value"] is None else often(evidence["p_value"]),
        "plan_rows": _plan_rows(plan),
        "commitments": _commitments(bundle),
        "command": f"stillhouse audit verify {shlex.quote(bundle.folder.name or 'FOLDER')}",
        "sources": _sources(evidence, plan, bundle),
        "withheld": number(bundle.withheld) if bundle.withheld else None,
        "further": leftover(unread, evidence["n"]),
        **view,
    }  # fmt: skip


def _level(evidence: Figures) -> float | None:
    second = evidence.get("secondary") or {}
    level = second.get("level")
    return (second.get("rank") or {}).get("level") if level is None else level


_BASES = {
    "design-based": "Design-based evidence: chance decided something that an innocent suspect "
    "cannot know, and the p-value follows from that alone, whatever the suspect is.",
    "population": "Population evidence: nothing was left to chance beforehand; other models stand "
    "for innocence, and no number here is combined with a design-based one.",
}

_LEDES = {
    "twin": {
        words.EVIDENCE: ", at the level fixed beforehand, that this model was trained on the "
        "served answers that were tested, or on text that contains them.",
        words.NONE_FOUND: " that this model was trained on the served answers that were tested.",
        words.NOT_ENOUGH: ": too few pairs could be tested for any outcome to say something.",
    },
    "watermark": {
        words.EVIDENCE: ", at the level fixed beforehand, that this model was trained on text that "
        "was marked with the key.",
        words.NONE_FOUND: " that this model was trained on text marked with the key.",
        words.NOT_ENOUGH: ": too little text could be scored for any outcome to say something.",
    },
    "identity": {
        words.EVIDENCE: ", relative to these control models, that this model names {name} more "
        "often than models like them do.",
        words.NONE_FOUND: " that this model names {name} more often than the control models do.",
        words.NOT_ENOUGH: ": this model answered too few of the questions.",
        words.REFUSED: " as evidence of training: what the model was shown names somebody itself.",
        words.REPORTED: ": how often this model names {name}, a figure without an error rate of "
        "its own.",
    },
}
_LEDE_OF_ALL = {
    words.REFUSED: ": a check that looks at both sides alike failed, so no p-value is given.",
    words.REPORTED: ": a figure without an error rate of its own.",
}


def _lede(evidence: Figures, plan: Figures) -> tuple[str, str]:
    """The verdict, and the rest of the sentence that it opens."""
    verdict = evidence["verdict"]
    rest = (_LEDE_OF_ALL | _LEDES[evidence["test"]]).get(verdict, ".")
    name = str((plan.get("candidate") or {}).get("name", "the candidate"))
    return verdict[:1].upper() + verdict[1:], rest.replace("{name}", name)


# ---- each test ----


def _twin(unread: Unread, plan: Figures, bundle: _Bundle) -> dict[str, Any]:
    del bundle
    unit = "likeness" if plan["access"] == "text" else "nats a token"
    differences = unread("differences") or {}
    bars = difference_bars(differences, unit) if differences else None
    signed = bars["up"] + bars["down"] if bars else 0
    return {
        "tiles": twin_tiles(unread, unit), "rows": twin_rows(unread, plan, unit), "bars": bars,
        "coin": innocent_counts(bars["up"], signed) if bars and signed else None,
        "assumes": _ASSUMES.get(plan["twins"]),
        "reach": None if bars is None else figure(bars["reach"], "nats"),
        "furthest": None if bars is None else figure(bars["furthest"], "nats"),
    }  # fmt: skip


_ASSUMES = {
    "drawn later": "Here it assumes, besides, that the teacher has not changed since.",
    "of a store": "Here it assumes, besides, that the twins are what their keeper says.",
}


def _watermark(unread: Unread, plan: Figures, bundle: _Bundle) -> dict[str, Any]:
    facts = plan["watermark"]
    gamma = facts["gamma"]
    key = bundle.key()
    plot = None
    if key is not None and not bundle.withheld:
        settings = {name: facts[name] for name in ("width", "gamma", "delta", "tokenizer")}
        mark = Watermark(key=key, **settings)
        pairs = scored_pairs(plan, bundle.lines)
        decoys = mark.decoys(plan["decoys"]["seed"], plan["decoys"]["count"])
        green, *innocent = green_pairs(pairs, [mark, *decoys])
        plot = decoy_plot(green, innocent, len(pairs.tokens), gamma)
    return {
        "tiles": watermark_tiles(unread, gamma), "rows": watermark_rows(unread), "decoys": plot,
        "gamma": gamma,
    }  # fmt: skip


def _identity(unread: Unread, plan: Figures, bundle: _Bundle) -> dict[str, Any]:
    fixed = {"battery_hash": plan["battery_hash"], "battery_version": plan["battery"]["version"],
             **{key: plan[key] for key in ("system", "samples", "sampling")}}  # fmt: skip
    for key, value in fixed.items():  # shown with the plan
        if unread.peek("secondary", "protocol", key) == value:
            unread("secondary", "protocol", key)
    if unread.peek("secondary", "candidate") == plan["candidate"]:
        unread("secondary", "candidate")
    return {
        "tiles": identity_tiles(unread), "rows": identity_rows(unread),
        "who": identity_view(unread, plan, bundle.lines),
        "said": said(unread, plan, bundle.lines),
        "languages": [entry["name"] for entry in plan["battery"]["questions"].values()],
    }  # fmt: skip


# ---- plan and provenance ----

_PLAN = {
    "statistic": "Statistic", "alpha": "Level of the family", "looks": "Tests it is divided by",
    "pairs": "Pairs at most", "mode": "Mode", "twins": "Twins", "access": "Access",
    "teacher": "Teacher", "taken_off": "Teacher taken off the suspect",
    "where": "Conditions on exchanges",
    "candidate": "Candidate", "controls": "Controls", "system": "System prompt sent",
    "samples": "Samples of each question or request", "temperature": "Temperature of text answers",
    "sampling": "Sampling", "prefix_tokens": "Tokens of the shared prefix",
    "watermark": "Watermark", "known_windows": "Only windows of the served text",
    "decoys": "Decoys", "escrow": "Escrow", "spent": "Prompts spent in earlier audits",
    "outside": "Exchanges outside the conditions", "draw": "Drawn with",
    "begun": "Audits of this suspect begun", "reached": "Suspect reached through",
    "teacher_reads": "Teacher read both answers", "redact": "Patterns that are masked",
    "battery_hash": "Battery", "seed": "Seed",
    "stillhouse": "Stillhouse",
}  # fmt: skip
"""What the settings of plans are called, in the order they are shown in; others come after."""


def _plan_rows(plan: Figures) -> list[Row]:
    """Every setting of the plan; the questions of a battery stand with their answers."""
    names = [*_PLAN, *(key for key in plan if key not in {*_PLAN, "test", "suspect", "battery"})]
    rows: list[Row] = []
    for path, value in flat({key: plan[key] for key in names if key in plan}):
        name = _PLAN.get(path[0], path[0].replace("_", " ").capitalize())
        name = ", ".join([name, *(part.replace("_", " ") for part in path[1:])])
        many = isinstance(value, list) and path[0] == "spent"
        rows.append(Row(name, number(len(value)) if many else _setting(path[0], value)))
    if "battery" in plan:
        rows.append(Row("Battery, version", plain(plan["battery"].get("version"))))
    return rows


def _setting(name: str, value: Any) -> str:
    """A setting in words; lists whole."""
    if isinstance(value, list):
        return ", ".join(map(plain, value)) or "none"
    return str(value) if name == "seed" else plain(value)


def _commitments(bundle: _Bundle) -> list[Row]:
    """What was fixed before the suspect was asked, by hash, and when."""
    commit = bundle.commit
    rows = [
        Row("Fixed at", day(commit["time"]), note="by the word of whoever ran the audit"),
        Row("Commitment", bundle.commitment, note="SHA-256 of sealed/commit.json"),
        Row("Plan", commit["plan"], note="SHA-256"),
    ]
    rows += [
        Row(f"{name}.jsonl", fixed["merkle_root"], note=f"Merkle root of {number(fixed['lines'])} "
            "lines") for name, fixed in commit["before"].items()
    ]  # fmt: skip
    rows += [
        Row(f"Secret '{name}'", digest, note="SHA-256; revealed after")
        for name, digest in commit["secrets"].items()
    ]
    return rows


def _sources(evidence: Figures, plan: Figures, bundle: _Bundle) -> list[Row]:
    """What the audit was made from."""
    lines = {
        name.removesuffix(".jsonl"): entry["lines"]
        for name, entry in bundle.seal["files"].items()
        if "lines" in entry
    }
    rows = [
        Row("Suspect", str(evidence["suspect"])),
        Row("Access", str(evidence["access"])),
        Row("Teacher", str(plan["teacher"])) if plan.get("teacher") else None,
        Row("Candidate", str(plan["candidate"]["name"])) if plan.get("candidate") else None,
        Row("Raw lines", ", ".join(f"{name} {number(count)}" for name, count in lines.items())),
        Row("Root of the seal", str(bundle.seal["root"])),
        Row("Stillhouse", str(plan.get("stillhouse", "not recorded"))),
    ]
    return [row for row in rows if row is not None]
