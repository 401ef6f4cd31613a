"""Asking a teacher: prompts and settings in, exchanges in a store out.

In order: the spec is checked, the terms gate opens or refuses, prompts are read, what the store
already has is left out, and only then is the model loaded and asked. Each answer is on the disk as
soon as it arrives, so killing this at any moment loses nothing that was acknowledged, and running
it again asks only for what is missing. Nothing here trains, judges or filters answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.collect.asking import Asking
from stillhouse.collect.keeping import Failures, Origin
from stillhouse.collect.plan import Held, Plan, Questions, left_to_ask, make_plan
from stillhouse.config import CollectSettings
from stillhouse.errors import CapabilityError, ModelError
from stillhouse.exchange import Request, Terms
from stillhouse.models import Need, open_model, parse_spec
from stillhouse.prompts import Prompts, prompt_files, read_prompts
from stillhouse.report import Progress, Silent
from stillhouse.store import Store
from stillhouse.terms import gate

__all__ = ["CollectReport", "collect", "plan"]

_SILENT = Silent()


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectReport:
    """What a collection did."""

    teacher: str
    model: str | None
    """What stands in the exchanges' `model`."""
    terms: Terms
    store: Path
    prompts: int
    """Distinct usable prompts."""
    rejected: int
    """Records that are no prompts; `rejects.jsonl` in the store says why."""
    duplicates: int
    """Records that ask the same as an earlier one."""
    already_there: int
    """Requests whose answer was in the store."""
    asked: int
    """Requests sent this time, each sending counted."""
    answered: int
    """Answers that arrived and were kept this time."""
    failed: dict[str, int]
    """Reason -> requests without an answer; `failures.jsonl` in the store names them."""
    exchanges: int
    """In the store now."""
    tokens: int | None
    """Answer tokens this time; None where the teacher did not count them."""
    seconds: float
    """From the first request to the last answer."""
    tokens_per_s: float | None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {**dataclasses.asdict(self), "store": str(self.store)}


def plan(
    settings: CollectSettings, *, teacher: str, store: Path, runs: Path = Path("runs")
) -> Plan:
    """What a collection would do, through the same gates; nothing is written or asked.

    Raises:
        ConfigError: an unknown spec, or settings the store was not begun with.
        TermsError: the terms refuse the use or are not known.
        DataError: the prompts or the store cannot be used.
    """
    terms = _terms(settings, teacher, runs)
    prompts = read_prompts(settings.prompts, max_rejected=settings.max_rejected, exclude=[store])
    held = Held(path=store)
    if (store / "store.json").exists():
        with Store(store, "r") as opened:
            held = _held(opened, Origin(opened), Failures(store), settings)
    questions = Questions(prompts.prompts, settings, terms)
    return make_plan(prompts, questions, settings, teacher=teacher, terms=terms, held=held)


def collect(
    settings: CollectSettings,
    *,
    teacher: str,
    store: Path,
    runs: Path = Path("runs"),
    progress: Progress = _SILENT,
) -> CollectReport:
    """What was asked and what came of it; the answers are in the store.

    Args:
        settings: what is asked, and how.
        teacher: model spec.
        store: folder of the exchanges; made where there is none, gone on with where there is.
        runs: where `run:NAME` is looked up.
        progress: told what happens.

    Raises:
        ConfigError: an unknown spec, or settings the store was not begun with.
        TermsError: the terms refuse the use or are not known. Nothing was asked.
        DataError: the prompts or the store cannot be used, or the disk is full.
        ModelError: the teacher cannot do this, or is gone, or left requests unanswered after
            bounded repetition. What was answered is kept; running again asks for the rest.
    """
    terms = _terms(settings, teacher, runs)
    prompt_files(settings.prompts, [store])  # a wrong path is said before a store is made
    with Store(store) as kept:
        origin, failures = Origin(kept), Failures(store)
        held = _held(kept, origin, failures, settings)
        prompts = read_prompts(
            settings.prompts, rejects=store / "rejects.jsonl",
            max_rejected=settings.max_rejected, exclude=[store],
        )  # fmt: skip
        questions = Questions(prompts.prompts, settings, terms)
        work = make_plan(prompts, questions, settings, teacher=teacher, terms=terms, held=held)
        _announce(work, prompts, kept.torn, progress)
        asking = Asking(kept, failures, settings, work, progress)
        # Another spec may name the same model; only the model itself can tell.
        if work.to_ask or not origin.is_from(teacher):
            _ask(asking, origin, left_to_ask(questions, held), runs)
        if asking.answered:
            kept.seal()  # what is complete may be read by anything that reads Parquet
        return CollectReport(
            teacher=teacher, model=origin.known.get("model"), terms=terms, store=store,
            prompts=work.prompts, rejected=work.rejected, duplicates=work.duplicates,
            already_there=work.already_there, asked=asking.asked, answered=asking.answered,
            failed=failures.by_reason(), exchanges=len(kept), tokens=asking.tokens,
            seconds=asking.seconds, tokens_per_s=asking.tokens_per_s,
        )  # fmt: skip


def _terms(settings: CollectSettings, teacher: str, runs: Path) -> Terms:
    """The gate's word, after the spec was found to be one: a typing error is no unknown teacher."""
    parse_spec(teacher)
    return gate(teacher, authorisation=settings.authorisation, runs=runs)


def _held(store: Store, origin: Origin, failures: Failures, settings: CollectSettings) -> Held:
    origin.refuse_other_settings(settings)
    return Held(
        path=store.path, keys=store.keys(), refused=failures.for_good, rows=len(store),
        tokens_per_answer=origin.known.get("tokens_per_answer"),
        tokens_per_s=origin.known.get("tokens_per_s"),
    )  # fmt: skip


def _announce(work: Plan, prompts: Prompts, torn: int, progress: Progress) -> None:
    """Everything a person should know before the first request."""
    terms = work.terms
    if terms.status == "conditional":
        progress.say(f"terms of {work.teacher} ({terms.licence}): {terms.conditions}")
    if terms.authorised_by:
        progress.say(
            f"terms of {work.teacher} are {terms.status}; allowed by {terms.authorised_by}"
        )
    if torn:
        progress.say(f"{torn} torn records of an earlier stop were dropped; they are asked again")
    if prompts.rejects:
        first = prompts.rejects[0]
        progress.say(
            f"{len(prompts.rejects)} records are no prompts, the first at "
            f"{first.file}:{first.line} ({first.reason}); all are in {work.store}/rejects.jsonl"
        )
    if prompts.duplicates:
        progress.say(f"{prompts.duplicates} records ask the same as an earlier one: asked once")
    if prompts.renamed:
        source, name = next(iter(prompts.renamed.items()))
        progress.say(f"{len(prompts.renamed)} ids stood twice; {source} goes by '{name}' now")
    if prompts.not_carried:
        fields = ", ".join(prompts.not_carried)
        progress.say(f"too long or too deep for labels, left in the prompt files: {fields}")
    if work.refused_before:
        progress.say(
            f"{work.refused_before} requests were refused for good before and are not asked again; "
            f"delete {work.store}/failures.jsonl to ask them"
        )
    expected = f", {work.tokens_expected:,} tokens" if work.tokens_expected else ""
    lasts = f", {work.seconds_expected:.0f} s" if work.seconds_expected else ""
    progress.say(
        f"{work.already_there:,} of {work.requests:,} answers are there, "
        f"{work.to_ask:,} to ask{expected}{lasts}"
    )


def _ask(asking: Asking, origin: Origin, todo: Iterator[Request], runs: Path) -> None:
    """Load the model, ask it, and write down how it went, however it ended."""
    settings, work, progress = asking.settings, asking.plan, asking.progress
    progress.start(f"loading {work.teacher}")
    need = Need(text=True, top_logprobs=settings.top_logprobs)
    with open_model(
        work.teacher,
        need=need,
        engine=settings.engine,
        precision=settings.precision,
        slots=settings.concurrency,
        runs=runs,
        progress=progress,
    ) as model:
        progress.finish(model.name)
        origin.refuse_other_model(model.name)
        origin.write(
            teacher=work.teacher, model=model.name, engine=settings.engine,
            precision=settings.precision, top_logprobs=settings.top_logprobs,
        )  # fmt: skip
        try:
            asking.ask(model, todo)
        except CapabilityError:
            raise  # nothing was asked, so there is nothing to add
        except ModelError as error:
            raise asking.ended(error) from error
        except KeyboardInterrupt:
            progress.say(f"stopped; {asking.answered} new answers are kept, run again to go on")
            raise
        finally:
            asking.settle()
            if asking.rate:
                origin.write(**asking.rate)
