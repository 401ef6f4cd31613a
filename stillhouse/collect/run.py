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
    with ExitStack() as opened:
        served = _there(store, opened)
        origin = None if served is None else Origin(served)
        escrow, _ = _gates(settings, teacher, origin)
        twins = None if escrow is None else _there(escrow.twins, opened)
        held = _held(served, twins, origin, Failures(store))
        questions = Questions(prompts.prompts, settings, terms)
        work = make_plan(prompts, questions, settings, teacher=teacher, terms=terms, held=held)
        _keep_promises(escrow, work, questions, held, _SILENT)
        return work


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
        origin, failures, twins = Origin(served), Failures(store), None
        escrow, mark = _gates(settings, teacher, origin)
        if settings.escrow is not None:
            escrow = escrow or Escrow.begin(settings.escrow)
            twins = open_stores.enter_context(Store(escrow.twins))
            kept = Divided(served, escrow, twins)
            progress.say(f"escrow {escrow.folder}: publish its key's hash {escrow.fingerprint}")
        held = _held(served, twins, origin, failures)
        prompts = read_prompts(
            settings.prompts, rejects=store / "rejects.jsonl",
            max_rejected=settings.max_rejected, exclude=own,
        )  # fmt: skip
        questions = Questions(prompts.prompts, settings, terms)
        work = make_plan(prompts, questions, settings, teacher=teacher, terms=terms, held=held)
        _keep_promises(escrow, work, questions, held, progress)
        _announce(work, prompts, served.torn, progress)
        asking = Asking(kept, failures, settings, work, progress)
        # Another spec may name the same model; only the model itself can tell.
        if work.to_ask or not origin.is_from(teacher):
            _ask(asking, origin, left_to_ask(questions, held), runs, escrow, mark)
        if asking.answered or (escrow is not None and escrow.behind(served)):
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


def _gates(
    settings: CollectSettings, teacher: str, origin: Origin | None
) -> tuple[Escrow | None, Watermark | None]:
    """The escrow, if one was begun, and the watermark; what they cannot go on with is refused
    before a key is made.

    Args:
        settings: what is asked for.
        teacher: model spec.
        origin: of the store; None where there is none yet.

    Raises:
        ConfigError: settings the store was not begun with, or a watermark on what others sample.
        DataError: an escrow or a key that cannot be read.
    """
    escrow = Escrow.find(settings.escrow) if settings.escrow else None
    mark = _mark(settings, teacher)
    if origin is not None:
        new = "a new one" if settings.escrow else None
        origin.refuse_other_secret("escrow", escrow.fingerprint if escrow else new)
        origin.refuse_other_secret("watermark", mark.commitment if mark else None)
        origin.refuse_other_settings(settings)
    return escrow, mark


def _keep_promises(
    escrow: Escrow | None, work: Plan, questions: Questions, held: Held, progress: Progress
) -> None:
    """Refuse to answer committed pairs anew, and say what more pairs mean for audits under way."""
    if escrow is None or not work.to_ask:
        return
    escrow.refuse_promised(left_to_ask(questions, held))
    if (escrow.folder / "audits.jsonl").exists():
        progress.say(
            f"audits were begun on {escrow.folder}: those that are not sealed yet cannot go on "
            "once pairs are added"
        )


def _there(path: Path, opened: ExitStack) -> Store | None:
    """A store to read, where there is one."""
    return opened.enter_context(Store(path, "r")) if (path / "store.json").exists() else None


def _held(
    served: Store | None, twins: Store | None, origin: Origin | None, failures: Failures
) -> Held:
    known = {} if origin is None else origin.known
    theirs = set() if twins is None else twins.keys()
    ours = set() if served is None else served.keys()
    return Held(
        path=failures.path.parent, keys=ours | theirs, twins=theirs, refused=failures.for_good,
        rows=0 if served is None else len(served),
        tokens_per_answer=known.get("tokens_per_answer"), tokens_per_s=known.get("tokens_per_s"),
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
