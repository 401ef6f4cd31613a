"""The watermark test on a suspect: an open model and a key in, a sealed bundle out.

In order: plan, prompts, served text and the key are written and committed to by hash, and only then
is the suspect asked. Every raw line is on the disk as it comes; run again, an audit goes on where
it stopped. What is asked, and how much of it, does not depend on the key. The evidence is computed
from the raw lines by `radioactivity.evidence`, as verification will.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from stillhouse import __version__
from stillhouse.audit.bundle import Bundle, sealed_evidence
from stillhouse.audit.green import scored_pairs
from stillhouse.audit.page import write_page
from stillhouse.audit.radioactivity import evidence
from stillhouse.audit.settings import WatermarkSettings
from stillhouse.audit.suspect import failure_of, model_line, name_of_model, note_model
from stillhouse.errors import CapabilityError, ConfigError, DataError, ModelError, TransportError
from stillhouse.exchange import Exchange, Logprobs, Message, Request, Sampling, Tool, to_dict
from stillhouse.messages import Prompt
from stillhouse.models.base import Failure, Model, Need, require
from stillhouse.progress import Progress, Silent
from stillhouse.record import plain
from stillhouse.text import seed_from
from stillhouse.watermark import Watermark

if TYPE_CHECKING:
    from stillhouse.models.local_text import ChatText

__all__ = ["Vocabulary", "watermark_audit"]

_SILENT = Silent()
_AT_ONCE = 64  # answers between two looks at how many pairs there are


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The vocabulary whose token ids the key marks, and how text becomes ids of it."""

    tokenizer: str
    """Tagged hash, as in `Logprobs.tokenizer`."""
    encode: Callable[[str], Sequence[int]]
    """Token ids of an answer's text, without special tokens."""
    render: Callable[[Sequence[Message], Sequence[Tool]], Sequence[int]]
    """Token ids of a prompt, by the template of the model that was marked."""

    @classmethod
    def of(cls, text: ChatText) -> Self:
        """Of a local model: `LocalModel.text`, or `ChatText(folder, spec)` without its weights."""
        return cls(text.vocabulary_hash, text.ids, text.render)


def watermark_audit(
    settings: WatermarkSettings,
    *,
    suspect: Model,
    watermark: Watermark,
    vocabulary: Vocabulary,
    out: Path,
    prompts: Sequence[Prompt] = (),
    served: Sequence[Exchange] = (),
    progress: Progress = _SILENT,
) -> dict[str, Any]:
    """The evidence against a suspect; a sealed bundle and its `report.html` lie in `out`.

    Args:
        settings: what is fixed beforehand.
        suspect: open; answers requests in generation mode, gives log-probabilities of given text in
            reading mode.
        watermark: the key the answers were served under, and how it marks.
        vocabulary: whose token ids it marks.
        out: folder of the bundle.
        prompts: what the suspect is asked in generation mode, in this order; written without
            knowledge of the key.
        served: exchanges served under this key: read in reading mode, and where
            `settings.known_windows` asks for it the only windows that count. They are taken in the
            order of their `key`: that of their arrival depends on the answers, and so on the mark.
        progress: told what happens.

    Raises:
        ConfigError: nothing to ask or read, a key of another vocabulary, a bundle of another plan.
        DataError: exchanges that were not served under this key.
        CapabilityError: the suspect cannot be read with, or reads in another vocabulary.
        ModelError: it is gone; what was answered is kept.
        EvidenceError: too few pairs count.
    """
    reading = settings.mode == "reading"
    served = sorted(served, key=lambda exchange: exchange.key)
    _fitting(settings, watermark, vocabulary, prompts, served)
    require(suspect, Need(scoring=reading, top_logprobs=int(reading), text=not reading))
    line = model_line(suspect, "suspect")  # once: it hashes the weights
    plan = _plan(settings, line, watermark, vocabulary)
    before = _before(settings, vocabulary, prompts, served)
    reveal = {"key": watermark.key.hex()}
    if (sealed := sealed_evidence(out, plan, before)) is not None:
        progress.say(f"{out} is sealed: nothing is asked again")
        write_page(out, sealed)
        return sealed
    bundle = Bundle.begin(out, plan, before=before, secrets=reveal)
    note_model(bundle, line)
    work = _Work(settings, suspect, vocabulary, plan, before, bundle, progress)
    if reading:
        work.read(served)
    else:
        work.ask(prompts)
    found = evidence(plan, work.lines(), reveal)
    bundle.seal(found, reveal=reveal)
    write_page(out, found)
    return found


def _fitting(
    settings: WatermarkSettings,
    watermark: Watermark,
    vocabulary: Vocabulary,
    prompts: Sequence[Prompt],
    served: Sequence[Exchange],
) -> None:
    """Refuse what cannot be tested, before anything is written."""
    reading = settings.mode == "reading"
    if watermark.tokenizer not in (None, vocabulary.tokenizer):
        raise ConfigError(
            "watermark test", f"a key over the vocabulary {watermark.tokenizer}",
            f"one over {vocabulary.tokenizer}, whose ids are scored",
            "Take key and vocabulary of the same model",
        )  # fmt: skip
    if not (served if reading else prompts):
        raise ConfigError(
            "watermark test", f"mode '{settings.mode}' without anything to "
            f"{'read' if reading else 'ask'}", "served exchanges" if reading else "prompts",
            "Name them",
        )  # fmt: skip
    if settings.known_windows and not served:
        raise ConfigError(
            "key 'known_windows'", "true, without served exchanges",
            "the exchanges whose windows are known", "Name them, or leave known_windows out",
        )  # fmt: skip
    for exchange in served:
        label = exchange.labels.get("watermark")
        if label != watermark.label:
            raise DataError(
                f"exchange {exchange.id}", f"label watermark {label!r}",
                f"'{watermark.label}': served under this key",
                "Name exchanges that were served under the key, or the key of these",
            )  # fmt: skip


def _plan(
    settings: WatermarkSettings, suspect: Mapping[str, Any], watermark: Watermark,
    vocabulary: Vocabulary,
) -> dict[str, Any]:  # fmt: skip
    plain_settings = settings.model_dump(mode="json")
    names = ("mode", "looks", "known_windows", "seed")
    sampling = ("temperature", "top_p", "top_k", "min_p", "max_tokens")
    return {
        "test": "watermark",
        "stillhouse": __version__,
        "suspect": suspect["model"],
        # a name may be many models': a bundle of one is no other's
        "suspect_model": {name: suspect[name] for name in ("reached", "endpoint", "weights")},
        "watermark": {**watermark.facts(), "tokenizer": vocabulary.tokenizer},
        **{name: plain_settings[name] for name in names},
        "alpha": settings.level,
        "pairs": settings.token_pairs,
        "samples": settings.samples_per_prompt,
        "sampling": {name: plain_settings[name] for name in sampling},
        "decoys": {"count": settings.decoys, "seed": settings.decoy_seed},
        "statistic": "green pairs among the distinct pairs that count, exact binomial, one-sided; "
        "the rank among decoy keys beside it",
    }


def _before(
    settings: WatermarkSettings,
    vocabulary: Vocabulary,
    prompts: Sequence[Prompt],
    served: Sequence[Exchange],
) -> dict[str, list[dict[str, Any]]]:
    """The raw lines that are committed to before the suspect is asked."""
    reading = settings.mode == "reading"
    asked = [_Asked.of(one) for one in (served if reading else prompts)]
    before = {"prompts": [one.line(number, vocabulary) for number, one in enumerate(asked)]}
    if reading or settings.known_windows:
        before["served"] = [
            {"number": number, "exchange": exchange.id, "ids": _ids(exchange, vocabulary)[0]}
            for number, exchange in enumerate(served)
        ]
    return before


@dataclass(frozen=True, slots=True)
class _Asked:
    """A prompt, wherever it came from."""

    id: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]

    @classmethod
    def of(cls, source: Prompt | Exchange) -> Self:
        """What it asks."""
        if isinstance(source, Exchange):
            return cls(source.key, source.prompt, source.tools)
        return cls(source.id, source.messages, source.tools)

    def line(self, number: int, vocabulary: Vocabulary) -> dict[str, Any]:
        """The raw line."""
        ids = [int(token) for token in vocabulary.render(self.messages, self.tools)]
        return {
            "number": number, "prompt": self.id, "messages": plain(self.messages),
            "tools": plain(self.tools), "ids": ids,
        }  # fmt: skip


def _ids(exchange: Exchange, vocabulary: Vocabulary) -> tuple[list[int], bool]:
    """An answer's token ids in the vocabulary, and whether they were made from its text."""
    kept = exchange.logprobs
    if kept is not None and kept.token_ids is not None and kept.tokenizer == vocabulary.tokenizer:
        return kept.token_ids.tolist(), False
    return [int(token) for token in vocabulary.encode(exchange.response.text or "")], True


@dataclass(frozen=True, slots=True)
class _Work:
    """An audit under way."""

    settings: WatermarkSettings
    suspect: Model
    vocabulary: Vocabulary
    plan: Mapping[str, Any]
    before: Mapping[str, list[dict[str, Any]]]
    bundle: Bundle
    progress: Progress

    def lines(self) -> dict[str, list[dict[str, Any]]]:
        """Raw lines so far."""
        name = "readings" if self.settings.mode == "reading" else "answers"
        return {**self.before, **{n: self.bundle.lines(n) for n in (name, "models")}}

    def _groups(self, name: str, total: int) -> Iterator[list[int]]:
        """Numbers that have no line yet, some at a time, until there are pairs enough."""
        progress, most = self.progress, self.settings.token_pairs
        progress.start("scoring the suspect", total, name)
        for start in range(0, total, _AT_ONCE):
            there = {line["number"] for line in self.bundle.lines(name)}
            counted = len(scored_pairs(self.plan, self.lines()).tokens)
            progress.advance(start, f"{counted} pairs")
            if counted >= most:
                break
            group = [n for n in range(start, min(start + _AT_ONCE, total)) if n not in there]
            if group:
                yield group
        progress.finish(f"{len(scored_pairs(self.plan, self.lines()).tokens)} pairs")

    # ---- generation ----

    def ask(self, prompts: Sequence[Prompt]) -> None:
        """Nothing; `answers.jsonl` holds the answers, first samples of all prompts first."""
        count = self.settings.samples_per_prompt * len(prompts)
        for group in self._groups("answers", count):
            requests = [self._request(prompts[n % len(prompts)], n) for n in group]
            gone: ModelError | None = None
            for answer in self.suspect.answer(requests):
                failed = isinstance(answer, Failure)
                if failed and answer.retryable:
                    gone = answer.error
                    continue
                asked = answer.request if isinstance(answer, Failure) else answer
                number = int(asked.labels["number"])
                line = {"number": number, "prompt": number % len(prompts)}
                more = self._failed(answer) if isinstance(answer, Failure) else self._answer(answer)
                self.bundle.append("answers", [{**line, **more}])
            if gone is not None:
                raise gone

    def _request(self, prompt: Prompt, number: int) -> Request:
        sampling = Sampling(
            **self.plan["sampling"], frequency_penalty=0.0, presence_penalty=0.0,
            repeat_penalty=1.0, stop=(), sample_index=number,
            seed=seed_from(f"watermark {self.settings.seed} {number}"),
        )  # fmt: skip
        return Request(
            prompt=prompt.messages, tools=prompt.tools, sampling=sampling,
            labels={"number": str(number), "prompt_id": prompt.id},
        )  # fmt: skip

    def _failed(self, failure: Failure) -> dict[str, Any]:
        return {"failed": failure_of(failure.error, self.suspect.spec)}

    def _answer(self, exchange: Exchange) -> dict[str, Any]:
        ids, again = _ids(exchange, self.vocabulary)
        kept = {k: v for k, v in to_dict(exchange).items() if k not in ("logprobs", "prompt")}
        for name in ("model", "served_model"):
            if kept.get(name) == self.suspect.spec:  # a model that was given no name goes by it
                kept[name] = name_of_model(self.suspect)
        tokenizer = self.vocabulary.tokenizer
        return {"exchange": kept, "ids": ids, "tokenizer": tokenizer, "retokenised": again}

    # ---- reading ----

    def read(self, served: Sequence[Exchange]) -> None:
        """Nothing; `readings.jsonl` holds what the suspect would have said at each place."""
        for group in self._groups("readings", len(served)):
            found = dict(self._read([served[n] for n in group]))
            self.bundle.append(
                "readings",
                [{"number": n, **self._reading(n, found.get(at))} for at, n in enumerate(group)],
            )

    def _read(self, group: Sequence[Exchange]) -> Iterator[tuple[int, Logprobs]]:
        """What can be read of a group; where it cannot be read at once, one by one."""
        try:
            found = list(self.suspect.score(group, top_logprobs=1))
        except TransportError:
            raise
        except ModelError:
            if len(group) == 1:
                return
            ones = [list(self._read([exchange])) for exchange in group]
            if not any(ones):  # nothing was wrong with one of them
                raise
            found = [(at, logprobs) for at, one in enumerate(ones) for _, logprobs in one]
        yield from found

    def _reading(self, number: int, found: Logprobs | None) -> dict[str, Any]:
        ids = self.before["served"][number]["ids"]
        if found is None or found.top_ids is None or found.token_ids is None:
            return {"failed": "the suspect gives nothing for it"}
        if found.tokenizer != self.vocabulary.tokenizer:
            raise CapabilityError(
                f"suspect '{self.suspect.spec}'", f"it reads in the vocabulary {found.tokenizer}",
                f"{self.vocabulary.tokenizer}, which the key marks",
                "Set mode=generation, which tokenises its answers again",
            )  # fmt: skip
        if found.token_ids[: len(ids)].tolist() != ids:
            return {"failed": "the suspect cuts it into other tokens"}
        predicted = found.top_ids[: len(ids), 0].tolist()
        return {"predicted": predicted, "tokenizer": found.tokenizer}
