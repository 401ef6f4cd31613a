"""The twin test on suspects: stores and model specs in, a sealed bundle for each suspect out.

In order: exchanges are drawn by what was asked, twins are found or drawn, plan and pairs are
written and committed to by hash, and only then is a suspect asked anything. Every raw line is on
the disk as it comes; run again, an audit goes on where it stopped. The evidence is computed from
the raw lines by `twin.evidence`, as verification will.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse import __version__
from stillhouse.audit.batch import Ledger, Waiting, is_batch
from stillhouse.audit.bundle import Bundle
from stillhouse.audit.page import write_page
from stillhouse.audit.pairing import (
    Pairs,
    Redaction,
    Twins,
    draw_twins,
    pair_up,
    read_candidates,
)  # fmt: skip
from stillhouse.audit.power import smallest_share
from stillhouse.audit.scoring import (
    REPEATED_PAIRS,
    ask_texts,
    read_scores,
    suspect_requests,
)  # fmt: skip
from stillhouse.audit.selection import choose
from stillhouse.audit.settings import TwinSettings
from stillhouse.audit.suspect import Suspect
from stillhouse.audit.twin import evidence
from stillhouse.errors import ConfigError
from stillhouse.exact import holm
from stillhouse.exchange import Exchange, canonical_json
from stillhouse.models import Need, open_model, parse_spec
from stillhouse.models.base import Model
from stillhouse.report import Progress, Silent

__all__ = ["Waiting", "planned", "twin_audit"]

_SILENT = Silent()
_FILES = ("scores", "continuations")  # raw lines of models


def twin_audit(
    settings: TwinSettings,
    *,
    suspects: Sequence[str],
    exchanges: Path,
    out: Path,
    teacher: str | None = None,
    twins: Path | None = None,
    ledger: Path | None = None,
    runs: Path = Path("runs"),
    progress: Progress = _SILENT,
) -> list[dict[str, Any] | Waiting]:
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
        runs: where `run:NAME` is looked up.
        progress: told what happens.

    Raises:
        ConfigError: no twins and no teacher, an unknown spec, a bundle of another plan, a condition
            on answers.
        DataError: a store or an escrow that cannot be read.
        EvidenceError: too few exchanges, greedy or without settings, or twins that do not fit.
        ModelError: a model is gone, or gives no log-probabilities where they are asked for.
    """
    audit = _Audit(settings, exchanges, out, teacher, twins, runs, progress)
    for suspect in suspects:
        if not is_batch(suspect):
            parse_spec(suspect)
    if teacher is None and twins is None:
        raise ConfigError(
            "audit twin", "neither --twins nor --teacher", "answers that were not served",
            "Give the escrow or store of twins, or a teacher that draws them now",
        )  # fmt: skip
    spent = Ledger(ledger)
    found: dict[Path, dict[str, Any] | Waiting] = {}
    for number, suspect in enumerate(suspects, start=1):
        folder = out / str(number) if len(suspects) > 1 else out
        found[folder] = audit.of(suspect, folder, len(suspects), spent)
    done = {folder: one for folder, one in found.items() if isinstance(one, dict)}
    if len(done) == len(suspects) > 1:
        _correct(list(done.values()))
    for folder, one in done.items():
        plan = json.loads((folder / "sealed" / "plan.json").read_text("utf-8"))
        write_page(folder, one, plan)
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
    held = Twins.read(twins) if twins else None
    spent = Ledger(ledger).prompts(out or Path())
    rows, served = read_candidates(exchanges, settings, held, spent)
    _, excluded = choose(rows, pairs=settings.pairs, seed=settings.seed, spent=spent)
    share = smallest_share(len(served), settings.alpha / settings.looks)
    return {
        "pairs": len(served),
        "excluded": excluded,
        "twins": held.kind if held else f"to be drawn by {teacher}" if teacher else "none yet",
        "level": settings.alpha / settings.looks,
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
    out: Path
    teacher: str | None
    twins: Path | None
    runs: Path
    progress: Progress

    def of(
        self, suspect: str, folder: Path, suspects: int, spent: Ledger
    ) -> dict[str, Any] | Waiting:
        """The evidence against one suspect."""
        sealed = self._sealed(suspect, folder, suspects)
        if sealed is not None:
            self.progress.say(f"{folder} is sealed: nothing is asked again")
            return sealed
        with Suspect(suspect, self.settings, self.runs, self.progress) as opened:
            held = Twins.read(self.twins) if self.twins else None
            disclosed = spent.prompts(folder)
            rows, served = read_candidates(self.exchanges, self.settings, held, disclosed)
            pairs = self._pairs(rows, served, held, opened.access)
            plan = self._plan(suspect, opened.access, held, disclosed, suspects)
            before = {"candidates": pairs.candidates, "pairs": pairs.pairs}
            if held is not None and held.escrow is not None:
                before["escrow"] = pairs.escrow
            # One text, so that one hash binds every coin before the suspect is asked anything.
            reveal = {"nonces": canonical_json(pairs.nonces)} if pairs.nonces else {}
            bundle = Bundle.begin(folder, plan, before=before, secrets=reveal)
            waiting = self._ask(opened, bundle, pairs, spent, folder)
        if waiting is not None:
            return waiting
        if plan["teacher"] is not None:
            self._teacher_reads(bundle, pairs.pairs)
        lines = {name: bundle.lines(name) for name in _FILES if bundle.lines(name)}
        found = evidence(plan, {**before, **lines}, reveal)
        bundle.seal(found, reveal=reveal)
        return found

    def _sealed(self, suspect: str, folder: Path, suspects: int) -> dict[str, Any] | None:
        """The evidence of a finished audit with this very plan; None where there is none."""
        if not (folder / "sealed" / "seal.json").exists():
            return None
        read = {n: json.loads((folder / "sealed" / f"{n}.json").read_text("utf-8"))
                for n in ("plan", "evidence")}  # fmt: skip
        held = Twins.read(self.twins) if self.twins else None
        plan = read["plan"]
        same = self._plan(suspect, plan["access"], held, plan["spent"], suspects) == plan
        return read["evidence"] if same else None

    def _pairs(
        self, rows: list[dict[str, Any]], served: list[Exchange], held: Twins | None, access: str
    ) -> Pairs:
        if held is not None:
            return pair_up(rows, served, held, Redaction(self.settings.redact))
        assert self.teacher is not None
        with self._open_teacher(served) as model:
            lines = draw_twins(
                model, served, self.settings, self.out / "twins",
                prefixed=access == "text", progress=self.progress,
            )  # fmt: skip
        return Pairs(rows, lines)

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
        self, suspect: str, access: str, held: Twins | None, spent: Sequence[str], suspects: int
    ) -> dict[str, Any]:
        settings = self.settings
        return {
            "test": "twin",
            "stillhouse": __version__,
            "suspect": suspect,
            "access": access,
            # Its own scores taken off the teacher itself would leave nothing but zeros.
            "teacher": self.teacher if access == "logprobs" and self.teacher != suspect else None,
            "twins": held.kind if held else "drawn later",
            "escrow": held.escrow.published() if held and held.escrow else None,
            "where": list(settings.where),
            "pairs": settings.pairs,
            "samples": settings.samples,
            "prefix_tokens": settings.prefix_tokens if access == "text" and not held else 0,
            "temperature": settings.temperature,
            "redact": list(settings.redact),
            "alpha": settings.alpha,
            "looks": settings.looks * suspects,
            "seed": settings.seed,
            "spent": sorted(spent),
            "statistic": "exact Wilcoxon signed-rank test of the paired differences, one-sided; "
            "the sign test beside it",
        }

    def _ask(
        self, opened: Suspect, bundle: Bundle, pairs: Pairs, spent: Ledger, folder: Path
    ) -> Waiting | None:
        settings, redact = self.settings, Redaction(self.settings.redact)
        shown = [redact.shown(pair) for pair in pairs.pairs]
        requests = suspect_requests(
            shown, samples=settings.samples, temperature=settings.temperature, seed=settings.seed
        )
        if opened.batch is not None:
            spent.spend(pairs.pairs, folder, opened.spec)
            return opened.batch.exchange(shown, requests, bundle, opened.access)
        assert opened.model is not None
        if opened.access == "text":
            ask_texts(opened.model, requests, bundle, self.progress)
            return None
        read_scores(opened.model, "suspect", shown, bundle, self.progress)
        read = {line["exchange"] for line in bundle.lines("scores") if line["logprobs"]}
        again = [pair for pair in shown if pair["exchange"] in read][:REPEATED_PAIRS]
        read_scores(opened.model, "repeat", again, bundle, self.progress)
        return None

    def _teacher_reads(self, bundle: Bundle, pairs: list[dict[str, Any]]) -> None:
        assert self.teacher is not None
        with open_model(
            self.teacher, need=Need(scoring=True), runs=self.runs, progress=self.progress
        ) as model:
            read_scores(model, "teacher", pairs, bundle, self.progress)
