"""The identity audit on models: specs in, a sealed bundle out.

In order: the plan (battery, candidate's names, sampling, controls) is written and committed to by
hash, and only then is a model asked anything. Every answer is on the disk as it comes; run again,
an audit goes on where it stopped. Where weights are at hand, what their chat template puts around a
question is recorded too: a default system prompt in it names somebody more often than training
does. The evidence is computed from the raw lines by `identity.evidence`, as verification will.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stillhouse import __version__
from stillhouse.audit.bundle import Bundle, sealed_evidence
from stillhouse.audit.claims import Claims, battery, battery_hash, questions
from stillhouse.audit.identity import evidence
from stillhouse.audit.page import write_page
from stillhouse.audit.seal import SEALED
from stillhouse.audit.settings import IdentitySettings
from stillhouse.audit.suspect import failure_of, model_line, name_of
from stillhouse.errors import CapabilityError, ConfigError, ModelError, nearest
from stillhouse.exchange import Exchange, Request, Sampling, message
from stillhouse.models import Failure, Model, Need, open_model, parse_spec
from stillhouse.models.gguf_file import read_head
from stillhouse.progress import Progress, Silent
from stillhouse.record import plain
from stillhouse.text import seed_from

__all__ = ["identity_audit", "identity_plan"]

_SILENT = Silent()

# Requests that failed in a way that may pass are asked again so often, after so long. A model that
# is a server has tried by itself for a minute each time. Ours.
_ROUNDS = 3
_PAUSE_SECONDS = 2.0

_PLACE = "[question]"  # stands for the question where a rendered prompt is recorded


def identity_audit(
    settings: IdentitySettings,
    *,
    suspect: str,
    controls: Sequence[str] | Mapping[str, str] = (),
    out: Path,
    runs: Path = Path("runs"),
    progress: Progress = _SILENT,
) -> dict[str, Any]:
    """The evidence about one suspect; a sealed bundle and its `report.html` lie in `out`.

    Args:
        settings: what is asked, how, and whose name is looked for.
        suspect: model spec.
        controls: model specs; as a mapping, name -> spec, where names from specs would be equal.
        out: folder of the bundle. One that is sealed with this very plan is read, and nothing is
            asked.
        runs: where `run:NAME` is looked up.
        progress: told what happens.

    Raises:
        ConfigError: an unknown spec or candidate, names that fit the questions, a control that is
            the suspect or bears another's name, a bundle of another plan.
        EvidenceError: the suspect answered fewer than two neutral questions.
        ModelError: a model is gone, or refuses every question.
    """
    specs = {"suspect": suspect, **_named(suspect, controls)}
    plan = identity_plan(settings, suspect=name_of(suspect), controls=[*specs][1:])
    finished = sealed_evidence(out, plan)
    if finished is not None:
        progress.say(f"{out} is sealed: nothing is asked again")
        write_page(out, finished)
        return finished
    if not (out / SEALED).exists():  # a misspelt model is found before anything is fixed
        for spec in specs.values():
            with open_model(spec, need=Need(text=True), runs=runs, progress=progress):
                pass
    bundle = Bundle.begin(out, plan)
    for role, spec in specs.items():
        _Asking(plan, role, spec, bundle, progress).ask(settings.concurrency, runs)
    lines = {name: bundle.lines(name) for name in ("answers", "failures", "models")}
    found = evidence(plan, lines, {})
    bundle.seal(found)
    write_page(out, found)
    return found


# ---- what is fixed beforehand ----


def identity_plan(
    settings: IdentitySettings, *, suspect: str, controls: Sequence[str]
) -> dict[str, Any]:
    """The plan: everything that decides what is asked and how it is counted.

    Raises:
        ConfigError: a candidate that is not in the table and has no names, or names that the
            neutral questions contain.
    """
    content = battery()
    sampling = Sampling(
        temperature=settings.temperature, top_p=settings.top_p, top_k=settings.top_k,
        min_p=settings.min_p, frequency_penalty=0.0, presence_penalty=0.0, repeat_penalty=1.0,
        max_tokens=settings.max_tokens, stop=(),
    )  # fmt: skip
    return {
        "test": "identity",
        "stillhouse": __version__,
        "suspect": suspect,
        "controls": list(controls),
        "candidate": _candidate(settings, content),
        "system": settings.system,
        "samples": settings.samples_per_prompt,
        "sampling": plain(sampling),
        "seed": settings.seed,
        "battery": content,
        "battery_hash": battery_hash(content),
        "statistic": "share of the suspect's answers to neutral questions that name the candidate "
        "outside a negated clause, ranked among the controls'",
    }


def _candidate(settings: IdentitySettings, content: Mapping[str, Any]) -> dict[str, Any]:
    table, wanted = content["identities"], settings.candidate
    by_name = {entry["name"].casefold(): key for key, entry in table.items()}
    key = wanted if wanted in table else by_name.get(wanted.casefold())
    if key is None and not settings.names:
        known = [*table, *(entry["name"] for entry in table.values())]
        raise ConfigError(
            "candidate", f"'{wanted}', which is not in the table, and no names",
            "an identity of audit/battery.yaml, or `names` for a new one", nearest(wanted, known),
        )  # fmt: skip
    entry = table.get(key, {"name": wanted})
    named = Claims({**content, "identities": {}}, {"": {"forms": settings.names}}).named
    for question in questions(content).values():
        if question["kind"] == "neutral" and named(question["text"]):
            raise ConfigError(
                "names", f"a name that stands in the neutral question '{question['text']}'",
                "names that no neutral question suggests", "Leave out names that are plain words",
            )  # fmt: skip
    for form in settings.names:
        if not named(form) or len(re.sub(r"[\W_]", "", form)) < 2:
            raise ConfigError(
                "names", f"'{form}'", "names of at least two letters", "Write names out in full"
            )
    return {
        "id": key or "candidate", "name": entry["name"],
        "forms": [*entry.get("forms", ()), *settings.names], "cased": [*entry.get("cased", ())],
    }  # fmt: skip


def _named(suspect: str, controls: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Name -> spec of each control."""
    pairs = (
        list(controls.items()) if isinstance(controls, Mapping)
        else [(name_of(spec), spec) for spec in controls]
    )  # fmt: skip
    taken = {"suspect", name_of(suspect)}
    for name, spec in pairs:
        parse_spec(spec)
        if spec == suspect:
            raise ConfigError(
                "controls", f"'{spec}', which is the suspect", "other models",
                "Leave it out: no model is a control of itself",
            )  # fmt: skip
        if name in taken:
            raise ConfigError(
                "controls", f"a second model called '{name}'", "a name for each model",
                "Give the controls as a mapping from names to specs",
            )  # fmt: skip
        taken.add(name)
    return dict(pairs)


# ---- asking ----


class _Asking:
    """One model and what is left to ask it."""

    def __init__(
        self, plan: Mapping[str, Any], role: str, spec: str, bundle: Bundle, progress: Progress
    ) -> None:
        self.plan, self.role, self.spec = plan, role, spec
        self.bundle, self.progress = bundle, progress
        self.requests = {request.key: request for request in _requests(plan)}
        self._failed: list[Failure] = []
        self._answered = 0

    def ask(self, concurrency: int, runs: Path) -> None:
        """Nothing; the bundle holds an answer or a failure for each question and sample.

        Raises:
            ModelError: the model is gone, refuses every question, or answers what was not asked.
        """
        total = len(self.requests)
        done = {
            (line["question"], line["sample"])
            for name in ("answers", "failures")
            for line in self.bundle.lines(name)
            if line["role"] == self.role
        }
        todo = [request for request in self.requests.values() if _place(request) not in done]
        if not todo:
            return
        self._answered = total - len(todo)
        with open_model(
            self.spec, need=Need(text=True), runs=runs, slots=concurrency, progress=self.progress
        ) as model:
            self._show(model)
            self.progress.start(f"asking {model.name} who it is", total, "answers")
            try:
                self._rounds(model, todo)
            except CapabilityError:
                raise  # nothing was asked, so there is nothing to add
            except ModelError as error:
                raise _ended(error, self._answered, total, self.bundle.folder) from error
            self.progress.finish(f"{self._answered} of {total} answers")
        if self._failed and not self._answered:
            raise self._failed[-1].error
        if self._failed:
            self.bundle.append("failures", [self._failure(failure) for failure in self._failed])

    def _rounds(self, model: Model, todo: Sequence[Request]) -> None:
        for attempt in range(1, _ROUNDS + 1):
            again: list[Failure] = []
            for result in model.answer(iter(todo)):
                if isinstance(result, Exchange):
                    self._keep(model, result)
                    self.progress.advance(self._answered)
                elif result.retryable:
                    again.append(result)
                else:
                    self._failed.append(result)
            if not again:
                return
            if attempt == _ROUNDS:
                raise again[-1].error
            todo = [failure.request for failure in again]
            self.progress.say(f"{len(todo)} requests failed and are asked again")
            time.sleep(_PAUSE_SECONDS * attempt)

    def _keep(self, model: Model, exchange: Exchange) -> None:
        request = self.requests.get(exchange.key)
        if request is None:
            raise ModelError(
                f"model '{model.spec}'", "an answer to what was not asked",
                "the prompt and sampling of a request, unchanged", "Report this",
            )  # fmt: skip
        question, sample = _place(request)
        entry = questions(self.plan["battery"])[question]
        line = {
            "role": self.role, "question": question, "language": entry["language"],
            "kind": entry["kind"], "sample": sample, "time": exchange.time.isoformat(),
            "served_model": exchange.served_model, "system": self.plan["system"],
            "text": exchange.response.text, "finish_reason": exchange.finish_reason,
            "seed": request.sampling.seed,
        }  # fmt: skip
        self.bundle.append("answers", [line])
        self._answered += 1

    def _failure(self, failure: Failure) -> dict[str, Any]:
        question, sample = _place(failure.request)
        return {
            "role": self.role, "question": question, "sample": sample,
            "time": datetime.now(UTC).isoformat(), "error": failure_of(failure.error, self.spec),
        }  # fmt: skip

    def _show(self, model: Model) -> None:
        """Record how the model is reached, and what it is shown around a question."""
        shown, how = _shown(model, self.plan["system"])
        line = dict(model_line(model, self.role))
        how = "unseen" if line["reached"] == "endpoint" else how
        line |= {"prompt": shown, "prompt_is": how}
        there = [
            {key: value for key, value in old.items() if key != "time"}
            for old in self.bundle.lines("models")
        ]
        if line not in there:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            self.bundle.append("models", [{**line, "time": now}])


def _requests(plan: Mapping[str, Any]) -> Iterable[Request]:
    """All first samples before all second ones, the same for every model."""
    system = () if plan["system"] is None else (message("system", plan["system"]),)
    for sample in range(plan["samples"]):
        for key, question in questions(plan["battery"]).items():
            yield Request(
                prompt=(*system, message("user", question["text"])),
                sampling=Sampling(
                    **plan["sampling"], sample_index=sample,
                    seed=seed_from(f"identity {plan['seed']} {key} {sample}"),
                ),
                labels={"question": key, "sample": str(sample)},
            )  # fmt: skip


def _place(request: Request) -> tuple[str, int]:
    return request.labels["question"], int(request.labels["sample"])


def _ended(error: ModelError, answered: int, total: int, folder: Path) -> ModelError:
    return type(error)(
        error.where,
        f"{error.found.rstrip('. ')}; {answered} of {total} answers are kept in {folder}",
        error.expected,
        f"{error.todo.rstrip('. ')}; then run the same command again, which asks only for the rest",
    )


# ---- what a model is shown ----


def _shown(model: Model, system: str | None) -> tuple[str | None, str]:
    """What a model's chat template makes of a question, and how that is known: rendered, the
    template as it stands where it cannot be rendered here, or none.
    """
    tokenizer, path = getattr(model, "tokenizer", None), getattr(model, "path", None)
    template = (
        tokenizer.get_chat_template() if tokenizer is not None
        else read_head(path).get("tokenizer.chat_template") if isinstance(path, Path)
        else None
    )  # fmt: skip
    if not template:
        return None, "none"
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals |= {"raise_exception": _refuse, "strftime_now": str}
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": _PLACE})
    try:
        made = environment.from_string(template)
        return made.render(
            messages=messages, add_generation_prompt=True, bos_token="", eos_token=""
        ), "rendered"
    except (TemplateError, TypeError, ValueError):
        return template, "template"


def _refuse(message: str) -> None:
    raise ValueError(message)
