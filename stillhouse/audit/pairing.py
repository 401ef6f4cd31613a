"""From a store of served exchanges to pairs: each served answer with its twin.

In: the store, the settings, and where twins come from: an escrow, a store of answers that were not
served, or the teacher, asked now. Out: raw lines of candidates and pairs, before the suspect is
asked anything. A twin that was drawn is kept and never drawn again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stillhouse.audit.selection import asked_key, choose, conditions, facts
from stillhouse.audit.settings import TwinSettings
from stillhouse.errors import CapabilityError, ConfigError, EvidenceError
from stillhouse.escrow import Escrow
from stillhouse.exchange import Exchange, Message, Part, Request, from_dict, message, to_dict
from stillhouse.models.base import Failure, Model
from stillhouse.report import Progress
from stillhouse.store import Store

__all__ = ["Pairs", "Redaction", "Twins", "draw_twins", "pair_up", "read_candidates"]

# Added to the sample index of a twin drawn later: no collection asks so many samples of a prompt.
_LATER = 1_000_000


# ---- what may be shown to a suspect ----


class Redaction:
    """What must not be disclosed, as regular expressions."""

    def __init__(self, patterns: Sequence[str]) -> None:
        """Compile them.

        Raises:
            ConfigError: one is no regular expression.
        """
        self._patterns: list[re.Pattern[str]] = []
        for pattern in patterns:
            try:
                self._patterns.append(re.compile(pattern))
            except re.error as problem:
                raise ConfigError(
                    f"--redact {pattern}", str(problem), "a regular expression", "Correct it"
                ) from None

    def hits(self, text: str) -> bool:
        """Whether something in the text must not be disclosed."""
        return any(pattern.search(text) for pattern in self._patterns)

    def shown(self, pair: Mapping[str, Any]) -> dict[str, Any]:
        """A pair as a suspect may see it: every match in the prompt replaced by a mark."""
        if not self._patterns:
            return dict(pair)
        sides = {side: from_dict(pair[side]) for side in ("served", "twin")}
        masked = {
            side: to_dict(replace(exchange, prompt=tuple(map(self._masked, exchange.prompt))))
            for side, exchange in sides.items()
        }
        return {**pair, **masked}

    def _masked(self, said: Message) -> Message:
        return replace(said, content=tuple(map(self._part, said.content)))

    def _part(self, part: Part) -> Part:
        text = part.text or ""
        for pattern in self._patterns:
            text = pattern.sub("[redacted]", text)
        return replace(part, text=text) if part.text is not None else part


# ---- twins at hand ----


@dataclass(frozen=True, slots=True)
class Twins:
    """Answers at hand that were not served."""

    kind: str
    """escrowed, or of a store."""
    path: Path
    by_asked: Mapping[str, Sequence[Exchange]]
    escrow: Escrow | None = None

    @classmethod
    def read(cls, path: Path) -> Twins:
        """Those of an escrow's folder or a store.

        Raises:
            DataError: it is neither, or damaged.
        """
        escrow = Escrow.open(path) if (path / "escrow.json").exists() else None
        found: dict[str, list[Exchange]] = {}
        with Store(escrow.twins if escrow else path, "r") as store:
            for twin in store:
                kept = twin.logprobs and replace(twin.logprobs, top=None, top_ids=None)
                found.setdefault(asked_key(twin), []).append(replace(twin, logprobs=kept))
        for answers in found.values():
            answers.sort(key=lambda twin: (twin.sampling.sample_index or 0, twin.time))
        return cls("escrowed" if escrow else "of a store", path, found, escrow)

    def counts(self) -> dict[str, int]:
        """`asked_key` -> how many."""
        return {asked: len(answers) for asked, answers in self.by_asked.items()}

    def of(self, served: Exchange) -> Exchange | None:
        """The twin of a served answer: of its own pair where escrowed, else the first at hand."""
        for twin in self.by_asked.get(asked_key(served), ()):
            if self.escrow is None or _one_pair(served, twin):
                return twin
        return None

    def unlike(self, served: Iterable[Exchange]) -> str:
        """Why none fits, in words: the settings that differ on the first prompt both share."""
        by_prompt: dict[Any, Exchange] = {}
        for answers in self.by_asked.values():
            by_prompt.update({twin.prompt: twin for twin in answers})
        for exchange in served:
            twin = by_prompt.get(exchange.prompt)
            if twin is not None:
                names = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "stop")
                ours, theirs = exchange.sampling, twin.sampling
                return "; ".join(
                    f"{name} {getattr(ours, name)} served, {getattr(theirs, name)} of the twins"
                    for name in names
                    if getattr(ours, name) != getattr(theirs, name)
                )
        return "they share no prompt"


def _one_pair(served: Exchange, twin: Exchange) -> bool:
    one, other = served.sampling.sample_index or 0, twin.sampling.sample_index or 0
    return one // 2 == other // 2 and one != other


# ---- the pairs ----


@dataclass(frozen=True, slots=True)
class Pairs:
    """Raw lines of what is tested, and what is revealed after."""

    candidates: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    escrow: list[dict[str, Any]] = field(default_factory=list)
    nonces: dict[str, str] = field(default_factory=dict)


def read_candidates(
    exchanges: Path, settings: TwinSettings, twins: Twins | None, spent: Sequence[str]
) -> tuple[list[dict[str, Any]], list[Exchange]]:
    """Request facts of every exchange that the conditions admit, and the exchanges drawn.

    Raises:
        ConfigError: a condition that is none, or is about answers.
        EvidenceError: not one exchange can be tested; the reasons are counted.
    """
    held = conditions(settings.where)
    counts = None if twins is None else twins.counts()
    with Store(exchanges, "r") as store:
        admitted = (e for e in store if all(condition.holds(e) for condition in held))
        rows = [facts(exchange, counts) for exchange in admitted]
    chosen, excluded = choose(rows, pairs=settings.pairs, seed=settings.seed, spent=spent)
    if not chosen:
        reasons = "; ".join(f"{count} {reason}" for reason, count in excluded.items())
        with Store(exchanges, "r") as store:
            unlike = twins.unlike(store) if twins is not None and rows else ""
        raise EvidenceError(
            f"store {exchanges}", f"no exchange to test: {reasons or 'none meets the conditions'}"
            f"{f' ({unlike})' if unlike else ''}",
            "exchanges with recorded settings, drawn at a temperature above 0, with twins of the "
            "same settings",
            "Give other exchanges, other twins or --teacher",
        )  # fmt: skip
    places = {name: place for place, name in enumerate(chosen)}
    with Store(exchanges, "r") as store:
        found = [exchange for exchange in store if exchange.id in places]
    return rows, sorted(found, key=lambda exchange: places[exchange.id])


def pair_up(
    candidates: list[dict[str, Any]], served: Sequence[Exchange], twins: Twins, redact: Redaction
) -> Pairs:
    """The pairs of served answers and the twins at hand."""
    pairs: list[dict[str, Any]] = []
    nonces: dict[str, str] = {}
    matched = [(exchange, twins.of(exchange)) for exchange in served]
    proofs = twins.escrow.proofs(served) if twins.escrow else {}
    if twins.escrow and not proofs:
        raise EvidenceError(
            f"escrow {twins.path}", "not one of these pairs was committed to",
            "the escrow that the answers were collected with, its collection ended",
            "Run `collect` with the same options again, which commits to what is there",
        )  # fmt: skip
    for exchange, twin in matched:
        if twin is None or (twins.escrow and exchange.id not in proofs):
            continue
        pairs.append(_line(exchange, twin, redact))
        if twins.escrow:
            nonces[exchange.id] = twins.escrow.nonce(exchange).hex()
    lines = [{"exchange": name, **proofs[name]} for name in nonces]
    return Pairs(candidates, pairs, lines, nonces)


def _line(served: Exchange, twin: Exchange, redact: Redaction, **more: Any) -> dict[str, Any]:
    line = {
        "exchange": served.id,
        "served": to_dict(replace(served, logprobs=None)),
        "twin": to_dict(replace(twin, logprobs=None)),
        **more,
    }
    engines = [e.logprobs.engine for e in (served, twin) if e.logprobs is not None]
    withheld = None
    if served.model != twin.model or len(set(engines)) > 1:
        withheld = "served answer and twin are from different models or engines"
    elif any(redact.hits(e.response.text or "") for e in (served, twin)):
        withheld = "an answer holds what must not be disclosed"
    return line | ({"withheld": withheld} if withheld else {})


# ---- twins drawn later ----


def draw_twins(
    model: Model,
    served: Sequence[Exchange],
    settings: TwinSettings,
    kept: Path,
    *,
    prefixed: bool,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Pair lines of served answers and twins that the teacher is asked for now.

    Args:
        model: the teacher.
        served: the exchanges drawn.
        settings: of the test.
        kept: the store of the twins; those in it are not drawn again.
        prefixed: whether twins continue a prefix of the served answer.
        progress: told how far it is.

    Raises:
        CapabilityError: prefixes are asked for, and the teacher cannot continue one.
        ModelError: the teacher is gone.
    """
    redact = Redaction(settings.redact)
    asked = {
        e.id: (e, *_continued(model, e, settings.prefix_tokens if prefixed else 0)) for e in served
    }
    wanted = {request.key: name for name, (_, request, _) in asked.items() if request is not None}
    with Store(kept) as store:
        there = store.keys()
        todo = [r for _, r, _ in asked.values() if r is not None and r.key not in there]
        progress.start("the teacher draws twins", len(wanted), "twins")
        done = len(wanted) - len(todo)
        for answer in model.answer(todo):
            if isinstance(answer, Failure):
                if answer.retryable:
                    raise answer.error
                continue  # counted: its pair has no twin
            store.append(answer)
            progress.advance(done := done + 1)
        store.seal()
        twins = {wanted[twin.key]: twin for twin in store if twin.key in wanted}
    progress.finish(f"{len(twins)} twins by {model.name}")
    lines: list[dict[str, Any]] = []
    for name, (exchange, _, prefix) in asked.items():
        if name in twins:
            rest: dict[str, Any] = {}
            if prefix is not None:
                whole, twin = exchange.response.text or "", twins[name].response.text or ""
                rest = {"prefix": prefix, "rest": {"served": whole[len(prefix) :], "twin": twin}}
            lines.append(_line(exchange, twins[name], redact, **rest))
    return lines


def _continued(model: Model, served: Exchange, tokens: int) -> tuple[Request | None, str | None]:
    """What the teacher is asked for a twin, and the prefix it continues; None where the served
    answer has no such prefix, which is decided by the prefix alone.
    """
    sampling = replace(
        served.sampling, seed=_seed(served),
        sample_index=(served.sampling.sample_index or 0) + _LATER,
    )  # fmt: skip
    if not tokens:
        return Request(prompt=served.prompt, tools=served.tools, sampling=sampling), None
    cut = getattr(model, "prefix", None)
    if cut is None:
        raise CapabilityError(
            f"model '{model.spec}'", "cannot say where the tokens of an answer end",
            "a model in this process, for twins that continue a prefix",
            "Use --prefix-tokens 0, or a teacher with the local engine",
        )  # fmt: skip
    prefix = cut(served, tokens)
    if prefix is None:
        return None, None
    if sampling.max_tokens is not None:
        sampling = replace(sampling, max_tokens=sampling.max_tokens - tokens)
    prompt = (*served.prompt, message("assistant", prefix))
    return Request(prompt=prompt, tools=served.tools, sampling=sampling), prefix


def _seed(served: Exchange) -> int:
    """A seed of the twin's own: the same whenever it is asked for, so that it is drawn once."""
    digest = hashlib.sha256(f"twin of {asked_key(served)}".encode()).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFFFFFF
