"""Asking a teacher: prompts and settings in, exchanges in a store out.

In order: the spec is checked, the terms gate opens or refuses, prompts are read, what the store
already has is left out, and only then is the model loaded and asked. Each answer is on the disk as
soon as it arrives, so killing this at any moment loses nothing that was acknowledged, and running
it again asks only for what is missing. Nothing here trains, judges or filters answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.collect.asking import Asking
from stillhouse.collect.keeping import Divided, Failures, Origin
from stillhouse.collect.plan import Held, Plan, Questions, left_to_ask, make_plan
from stillhouse.config import CollectSettings
from stillhouse.errors import CapabilityError, ConfigError, ModelError
from stillhouse.escrow import Escrow
from stillhouse.exchange import Request, Terms
from stillhouse.models import Need, open_model, parse_spec
from stillhouse.progress import Progress, Silent
from stillhouse.prompts import Prompts, prompt_files, read_prompts
from stillhouse.store import Store
from stillhouse.terms import gate
from stillhouse.watermark import Watermark, read_key

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
    escrow: dict[str, Any] | None = None
    """`key_sha256`, `pairs` and `root` of the escrow: what to publish. None without one."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        told = dataclasses.asdict(self)
        return {"out": str(told.pop("store")), **told}


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
    prompts = read_prompts(
        settings.prompts, max_rejected=settings.max_rejected, exclude=_own(settings, store)
    )
    held = Held(path=store)
    if (store / "store.json").exists():
        with Store(store, "r") as opened:
            origin = Origin(opened)
            held = _held(opened, origin, Failures(store), settings)
            if settings.escrow is not None:
                escrow = Escrow.open(settings.escrow)
                origin.refuse_other_secret("escrow", escrow.fingerprint)
                with Store(escrow.twins, "r") as twins:
                    both = Divided(opened, escrow, twins)
                    held = dataclasses.replace(held, keys=both.keys(), rows=len(both))
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
    own = _own(settings, store)
    prompt_files(settings.prompts, own)  # a wrong path is said before a store is made
    with ExitStack() as open_stores:
        kept = served = open_stores.enter_context(Store(store))
        origin, failures = Origin(served), Failures(store)
        escrow = Escrow.begin(settings.escrow) if settings.escrow else None
        origin.refuse_other_secret("escrow", escrow.fingerprint if escrow else None)
        mark = _mark(settings, teacher)
        origin.refuse_other_secret("watermark", mark.commitment if mark else None)
        if escrow is not None:
            twins = open_stores.enter_context(Store(escrow.twins))
            kept = Divided(served, escrow, twins)
            progress.say(f"escrow {escrow.folder}: publish its key's hash {escrow.fingerprint}")
        held = _held(kept, origin, failures, settings)
        prompts = read_prompts(
            settings.prompts, rejects=store / "rejects.jsonl",
            max_rejected=settings.max_rejected, exclude=own,
        )  # fmt: skip
        questions = Questions(prompts.prompts, settings, terms)
        work = make_plan(prompts, questions, settings, teacher=teacher, terms=terms, held=held)
        _announce(work, prompts, served.torn, progress)
        asking = Asking(kept, failures, settings, work, progress)
        # Another spec may name the same model; only the model itself can tell.
        if work.to_ask or not origin.is_from(teacher):
            _ask(asking, origin, left_to_ask(questions, held), runs, escrow, mark)
        if asking.answered or (escrow is not None and escrow.behind(kept)):
            kept.seal()  # what is complete may be read by anything that reads Parquet
        return CollectReport(
            teacher=teacher, model=origin.known.get("model"), terms=terms, store=store,
            prompts=work.prompts, rejected=work.rejected, duplicates=work.duplicates,
            already_there=work.already_there, asked=asking.asked, answered=asking.answered,
            failed=failures.by_reason(), exchanges=len(served), tokens=asking.tokens,
            seconds=asking.seconds, tokens_per_s=asking.tokens_per_s,
            escrow=escrow.published() if escrow else None,
        )  # fmt: skip


def _terms(settings: CollectSettings, teacher: str, runs: Path) -> Terms:
    """The gate's word, after the spec was found to be one: a typing error is no unknown teacher."""
    parse_spec(teacher)
    return gate(teacher, authorisation=settings.authorisation, runs=runs)


def _mark(settings: CollectSettings, teacher: str) -> Watermark | None:
    """The watermark that answers are marked with, where one is asked for.

    Raises:
        ConfigError: the teacher is not sampled in this process.
        DataError: the key cannot be read.
    """
    if settings.watermark is None:
        return None
    kind = parse_spec(teacher).kind
    if kind in {"endpoint", "scripted"} or settings.engine == "llamacpp":
        raise ConfigError(
            f"watermark {settings.watermark}", f"the teacher '{teacher}', which others sample",
            "one that the local engine samples: weights, gguf:, hf: or run:",
            "Leave the watermark out, or take the weights",
        )  # fmt: skip
    return read_key(settings.watermark)


def _own(settings: CollectSettings, store: Path) -> list[Path]:
    """Folders of ours, which are no prompt files."""
    return [store] if settings.escrow is None else [store, settings.escrow]


def _held(
    store: Store | Divided, origin: Origin, failures: Failures, settings: CollectSettings
) -> Held:
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


def _ask(
    asking: Asking,
    origin: Origin,
    todo: Iterator[Request],
    runs: Path,
    escrow: Escrow | None,
    mark: Watermark | None,
) -> None:
    """Load the model, ask it, and write down how it went, however it ended."""
    settings, work, progress = asking.settings, asking.plan, asking.progress
    progress.start(f"loading {work.teacher}")
    need = Need(text=True, top_logprobs=settings.top_logprobs)
    marked: dict[str, Any] = {"watermark": mark} if mark else {}
    with open_model(
        work.teacher,
        need=need,
        engine="local" if mark and settings.engine == "auto" else settings.engine,
        precision=settings.precision,
        slots=settings.concurrency,
        runs=runs,
        progress=progress,
        **marked,
    ) as model:
        progress.finish(model.name)
        origin.refuse_other_model(model.name)
        origin.write(
            teacher=work.teacher, model=model.name, engine=settings.engine,
            precision=settings.precision, top_logprobs=settings.top_logprobs,
            **({"escrow": escrow.fingerprint} if escrow else {}),
            **({"watermark": mark.commitment} if mark else {}),
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
