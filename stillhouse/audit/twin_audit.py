"""The twin test on suspects: stores and model specs in, a sealed bundle for each suspect out.

In order: exchanges are drawn by what was asked, twins are found or drawn, plan and pairs are
written and committed to by hash, and only then is a suspect asked anything. Every raw line is on
the disk as it comes; run again, an audit goes on where it stopped. The evidence is computed from
the raw lines by `twin.evidence`, as verification will. No path of this machine enters a bundle.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillhouse import __version__
from stillhouse.audit.batch import REPEATED_PAIRS, Waiting, is_batch
from stillhouse.audit.bundle import Bundle, sealed_evidence
from stillhouse.audit.ledger import Ledger, begun
from stillhouse.audit.masking import Mask
from stillhouse.audit.page import write_page
from stillhouse.audit.pair_checks import SIDES, has_texts
from stillhouse.audit.pairing import (
    Candidates,
    Pairs,
    Twins,
    draw_twins,
    pair_up,
    read_candidates,
)  # fmt: skip
from stillhouse.audit.power import smallest_share
from stillhouse.audit.scoring import ask_texts, read_scores, suspect_requests
from stillhouse.audit.settings import TwinSettings
from stillhouse.audit.suspect import Suspect, model_line, name_of, note_model
from stillhouse.audit.twin import evidence, left_out, refuse_too_few
from stillhouse.errors import ConfigError
from stillhouse.exact import holm
from stillhouse.exchange import Exchange, canonical_json
from stillhouse.models import Need, open_model, parse_spec
from stillhouse.models.base import Model
from stillhouse.progress import Progress, Silent

__all__ = ["Begun", "Waiting", "planned", "twin_audit"]

_SILENT = Silent()
_FILES = ("scores", "continuations", "models")  # raw lines of models


@dataclass(frozen=True, slots=True)
class Begun:
    """An audit that is fixed and has asked nothing: publish its commitment, then run it again."""

    suspect: str
    folder: Path
    pairs: int
    commitment: str
    escrow_root: str | None


def twin_audit(
    settings: TwinSettings,
    *,
    suspects: Sequence[str],
    exchanges: Path,
    out: Path,
    teacher: str | None = None,
    twins: Path | None = None,
    ledger: Path | None = None,
    begin: bool = False,
    runs: Path = Path("runs"),
    progress: Progress = _SILENT,
) -> list[dict[str, Any] | Waiting | Begun]:
    """The evidence against each suspect, or what it waits for; a sealed bundle lies in `out` (in
    `out/1`, `out/2`, ... where there are several suspects).

    Args:
        settings: what is fixed beforehand.
        suspects: model specs, or batch:FOLDER for a suspect that someone else runs.
        exchanges: the store of served exchanges.
        out: folder of the bundle.
        teacher: model spec; draws the twins where none are given, and its own scores are taken off
            the suspect's.
        twins: an escrow's folder, or a store of answers that were not served.
        ledger: file of the exchanges that earlier audits disclosed; they are left out.
        begin: fix and commit to everything, and ask no suspect anything yet.
        runs: where `run:NAME` is looked up.
        progress: told what happens.

    Raises:
        ConfigError: no twins and no teacher, an unknown spec, a bundle of another plan, a condition
            on answers.
        DataError: a store or an escrow that cannot be read.
        EvidenceError: too few exchanges, greedy or without settings, or twins that do not fit.
        ModelError: a model is gone, or gives no log-probabilities where they are asked for.
    """
    audit = _Audit(settings, exchanges, teacher, twins, begin, runs, progress)
    for suspect in suspects:
        if not is_batch(suspect):
            parse_spec(suspect)
    if teacher is None and twins is None:
        raise ConfigError(
            "audit twin", "neither --twins nor --teacher", "answers that were not served",
            "Give the escrow or store of twins, or a teacher that draws them now",
        )  # fmt: skip
    spent = Ledger(ledger)
    found: dict[Path, dict[str, Any] | Waiting | Begun] = {}
    for number, suspect in enumerate(suspects, start=1):
        folder = out / str(number) if len(suspects) > 1 else out
        found[folder] = audit.of(suspect, folder, len(suspects), spent)
    done = {folder: one for folder, one in found.items() if isinstance(one, dict)}
    if len(done) == len(suspects) > 1:
        _correct(list(done.values()))
    for folder, one in done.items():
        write_page(folder, one)
    return list(found.values())


def planned(
    settings: TwinSettings,
    *,
    exchanges: Path,
    teacher: str | None = None,
    twins: Path | None = None,
    ledger: Path | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """What an audit would test, and the smallest effect it would find; nothing is asked or written.

    Raises:
        DataError: a store, escrow or ledger that cannot be read.
        EvidenceError: not one exchange can be tested.
    """
    held = Twins.read(twins, exchanges) if twins else None
    found = read_candidates(exchanges, settings, held, Ledger(ledger).prompts(out or Path()))
    share = smallest_share(len(found.served), settings.level / settings.looks)
    return {
        "pairs": len(found.served),
        "excluded": dict(found.excluded),
        "twins": held.kind if held else f"to be drawn by {teacher}" if teacher else "none yet",
        "level": settings.level / settings.looks,
        "smallest_share_found_with_probability_0.9": share,
    }


def _correct(family: Sequence[dict[str, Any]]) -> None:
    """Write Holm's adjusted p-values beside the others', in what is returned and shown."""
    tested = [one for one in family if one["p_value"] is not None]
    for one, adjusted in zip(tested, holm([one["p_value"] for one in tested]), strict=True):
        one["family"] = {"tests": len(tested), "holm_p_value": adjusted}


@dataclass(frozen=True, slots=True)
class _Audit:
    """What all suspects of one audit share."""

    settings: TwinSettings
    exchanges: Path
    teacher: str | None
    twins: Path | None
    begin: bool
    runs: Path
    progress: Progress
    teacher_lines: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """What the teacher was read to say for an earlier suspect, `models` and `scores`."""

    def of(
        self, suspect: str, folder: Path, suspects: int, spent: Ledger
    ) -> dict[str, Any] | Waiting | Begun:
        """The evidence against one suspect."""
        held = Twins.read(self.twins, self.exchanges) if self.twins else None
        disclosed = spent.prompts(folder)
        found = read_candidates(self.exchanges, self.settings, held, disclosed)
        if (folder / "sealed" / "seal.json").exists():  # the suspect may be gone by now
            there = json.loads((folder / "sealed" / "plan.json").read_text("utf-8"))
            plan = self._plan(suspect, there["access"], held, found, disclosed, suspects)
            told = sealed_evidence(folder, plan | {"begun": there["begun"]})
            if told is not None:
                self.progress.say(f"{folder} is sealed: nothing is asked again")
                return told
        with Suspect(suspect, self.settings, self.runs, self.progress) as opened:
            plan = self._plan(suspect, opened.access, held, found, disclosed, suspects)
            pairs = self._pairs(found, held, opened.access)
            _refuse_what_cannot_tell(pairs, found)
            plan |= {"begun": begun(self._log(), plan, folder)}
            before: dict[str, Any] = {"candidates": pairs.candidates, "pairs": pairs.pairs}
            if held is not None and held.escrow is not None:
                before["escrow"] = pairs.escrow
            # One text, so that one hash binds every coin before the suspect is asked anything.
            reveal = {"nonces": canonical_json(pairs.nonces)} if pairs.nonces else {}
            bundle = Bundle.begin(folder, plan, before=before, secrets=reveal)
            root = plan["escrow"] and plan["escrow"]["root"]
            self.progress.say(f"commitment {bundle.commitment}")
            if self.begin:
                return Begun(suspect, folder, len(pairs.pairs), bundle.commitment, root)
            if plan["teacher_reads"]:
                self._teacher_reads(bundle, [pair for pair in pairs.pairs if has_texts(pair)])
            waiting = self._ask(opened, bundle, pairs, spent, folder)
        if waiting is not None:
            return waiting
        lines = {name: bundle.lines(name) for name in _FILES if bundle.lines(name)}
        told = evidence(plan, {**before, **lines}, reveal)
        bundle.seal(told, reveal=reveal)
        self.progress.say(f"root {bundle.root}")
        return told

    def _log(self) -> Path:
        """The log of the audits that were begun on these exchanges."""
        if self.twins and (self.twins / "escrow.json").exists():
            return self.twins / "audits.jsonl"
        return self.exchanges.with_name(f"{self.exchanges.name}.audits.jsonl")

    def _pairs(self, found: Candidates, held: Twins | None, access: str) -> Pairs:
        if held is not None:
            return pair_up(found, held, Mask(self.settings.redact))
        assert self.teacher is not None
        # Beside the answers, not in the bundle's folder: no second audit draws them again.
        kept = self.exchanges.with_name(f"{self.exchanges.name}.twins")
        with self._open_teacher(found.served) as model:
            lines = draw_twins(
                model, found.served, self.settings, kept,
                prefixed=self._prefix(access, held) > 0, progress=self.progress,
            )  # fmt: skip
        return Pairs(found.rows, lines)

    def _prefix(self, access: str, held: Twins | None) -> int:
        """Tokens of the served answer that the suspect is given to continue."""
        return self.settings.prefix_tokens if access == "text" and held is None else 0

    def _open_teacher(self, served: Sequence[Exchange]) -> Model:
        """The teacher with the engine and precision that the served answers were drawn with."""
        engines = {e.logprobs.engine for e in served if e.logprobs is not None}
        engine = engines.pop() if len(engines) == 1 else None
        assert self.teacher is not None
        kind = parse_spec(self.teacher).kind
        more: dict[str, Any] = {}
        if engine is not None and engine.startswith("torch-") and kind != "endpoint":
            more["precision"] = engine.removeprefix("torch-").split()[0]
            if kind in {"weights", "gguf"}:
                more["engine"] = "local"
        return open_model(
            self.teacher, need=Need(text=True), runs=self.runs, progress=self.progress, **more
        )

    def _plan(
        self,
        suspect: str,
        access: str,
        held: Twins | None,
        found: Candidates,
        spent: Sequence[str],
        suspects: int,
    ) -> dict[str, Any]:
        settings = self.settings
        prefix = self._prefix(access, held)
        # Its own scores taken off the teacher itself would leave nothing but zeros.
        taken_off = access == "logprobs" and self.teacher not in (None, suspect)
        # Scores of what stands after a prefix are not what a gate compares.
        gated = self.teacher is not None and held is None and not prefix
        return {
            "test": "twin",
            "stillhouse": __version__,
            "suspect": name_of(suspect),
            "reached": "batch" if is_batch(suspect) else parse_spec(suspect).kind,
            "access": access,
            "teacher": self.teacher and name_of(self.teacher),
            "taken_off": taken_off,
            "teacher_reads": taken_off or (gated and self._can_score()),
            "twins": held.kind if held else "drawn later",
            "escrow": held.escrow.published() if held and held.escrow else None,
            "draw": found.draw,
            "where": list(settings.where),
            "outside": found.outside,
            "pairs": settings.pairs,
            "samples": settings.samples_per_prompt,
            "prefix_tokens": prefix,
            "temperature": settings.temperature,
            "redact": len(settings.redact),
            "alpha": settings.level,
            "looks": settings.looks * suspects,
            "seed": settings.seed,
            "spent": sorted(spent),
            "statistic": "exact Wilcoxon signed-rank test of the paired differences, one-sided; "
            "the sign test beside it",
        }

    def _can_score(self) -> bool:
        """Whether the teacher gives log-probabilities of given text: an endpoint may not."""
        assert self.teacher is not None
        if parse_spec(self.teacher).kind != "endpoint":
            return True
        with open_model(self.teacher, need=Need(text=True), progress=self.progress) as model:
            return model.capabilities.scoring

    def _ask(
        self, opened: Suspect, bundle: Bundle, pairs: Pairs, spent: Ledger, folder: Path
    ) -> Waiting | None:
        settings = self.settings
        asked = [pair for pair in pairs.pairs if left_out(pair) is None]
        samples, temperature = settings.samples_per_prompt, settings.temperature
        requests = suspect_requests(
            asked, samples=samples, temperature=temperature, seed=settings.seed
        )
        if opened.batch is not None:
            spent.spend(pairs.pairs, folder, name_of(opened.spec))
            return opened.batch.exchange(asked, requests, bundle, opened.access)
        assert opened.model is not None
        note_model(bundle, model_line(opened.model, "suspect"))
        if opened.access == "text":
            ask_texts(opened.model, requests, bundle, self.progress)
            return None
        read_scores(opened.model, "suspect", asked, bundle, self.progress)
        read = {line["exchange"] for line in bundle.lines("scores") if line["logprobs"]}
        again = [pair for pair in asked if pair["exchange"] in read][:REPEATED_PAIRS]
        read_scores(opened.model, "repeat", again, bundle, self.progress)
        return None

    def _teacher_reads(self, bundle: Bundle, pairs: list[dict[str, Any]]) -> None:
        """Before the suspect is asked: a teacher that cannot be read is known in time.

        What it reads is the same for every suspect, and is read once.
        """
        assert self.teacher is not None
        wanted = {(pair["exchange"], side) for pair in pairs for side in SIDES}
        if not bundle.lines("scores"):
            models, scores = (self.teacher_lines.get(name, []) for name in ("models", "scores"))
            bundle.append("models", models)
            bundle.append("scores", [x for x in scores if (x["exchange"], x["side"]) in wanted])
        lines = [line for line in bundle.lines("scores") if line["role"] == "teacher"]
        if wanted - {(line["exchange"], line["side"]) for line in lines}:
            with open_model(
                self.teacher, need=Need(scoring=True), runs=self.runs, progress=self.progress
            ) as model:
                note_model(bundle, model_line(model, "teacher"))
                read_scores(model, "teacher", pairs, bundle, self.progress)
        for name in ("models", "scores"):
            self.teacher_lines[name] = [x for x in bundle.lines(name) if x["role"] == "teacher"]


def _refuse_what_cannot_tell(pairs: Pairs, found: Candidates) -> None:
    """Nothing, where enough pairs may have a sign: known before anybody is asked or shown them."""
    reasons = Counter(filter(None, map(left_out, pairs.pairs)))
    refuse_too_few(
        len(pairs.pairs) - reasons.total(), 0, {**found.excluded, **dict(sorted(reasons.items()))}
    )
