"""From a store of served exchanges to pairs: each served answer with its twin.

In: the store, the settings, and where twins come from: an escrow, a store of answers that were not
served, or the teacher, asked now. Out: raw lines of candidates and pairs, before the suspect is
asked anything. A twin that was drawn is kept and never drawn again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stillhouse.audit.masking import Mask
from stillhouse.audit.selection import asked_key, choose, conditions, draw_of, facts
from stillhouse.audit.settings import TwinSettings
from stillhouse.errors import CapabilityError, ConfigError, EvidenceError
from stillhouse.escrow import Escrow, pair_key
from stillhouse.exchange import Exchange, Request, message, to_dict
from stillhouse.models.base import Failure, Model
from stillhouse.progress import Progress
from stillhouse.store import Store
from stillhouse.text import seed_from

__all__ = ["Candidates", "Pairs", "Twins", "draw_twins", "pair_up", "read_candidates"]

# Added to the sample index of a twin drawn later: no collection asks so many samples of a prompt.
_LATER = 1_000_000


# ---- twins at hand ----


@dataclass(frozen=True, slots=True)
class Twins:
    """Answers at hand that were not served."""

    kind: str
    """escrowed, or of a store."""
    path: Path
    by_asked: Mapping[str, Sequence[Exchange]]
    escrow: Escrow | None = None
    committed: frozenset[str] = frozenset()
    """Pairs that the escrow committed to."""
    served: frozenset[str] = frozenset()
    """Ids of the served exchanges: none of them is a twin."""

    @classmethod
    def read(cls, path: Path, exchanges: Path) -> Twins:
        """Those of an escrow's folder or a store, for the served exchanges of another store.

        Raises:
            ConfigError: the twins of an escrow, without the escrow.
            DataError: it is neither, or damaged.
        """
        if (path.parent / "escrow.json").exists():
            raise ConfigError(
                f"--twins {path}", "the store inside an escrow", f"the escrow: {path.parent}",
                "Name the escrow's folder: its coins make the test exact",
            )  # fmt: skip
        escrow = Escrow.open(path) if (path / "escrow.json").exists() else None
        found: dict[str, list[Exchange]] = {}
        with Store(escrow.twins if escrow else path, "r") as store:
            for twin in store:
                kept = twin.logprobs and replace(twin.logprobs, top=None, top_ids=None)
                found.setdefault(asked_key(twin), []).append(replace(twin, logprobs=kept))
        for answers in found.values():  # by content, never by time: that follows the length
            answers.sort(key=lambda twin: (twin.sampling.sample_index or 0, twin.id))
        with Store(exchanges, "r") as store:
            served = frozenset(store.ids())
        if escrow is None:
            return cls("of a store", path, found, served=served)
        committed = frozenset(line["pair"] for line in escrow.committed())
        if not committed:
            raise EvidenceError(
                f"escrow {path}", "not one pair was committed to",
                "the escrow that the answers were collected with, its collection ended",
                "Run `collect` with the same options again, which commits to what is there",
            )  # fmt: skip
        return cls("escrowed", path, found, escrow, committed, served)

    def of(self, served: Exchange) -> Exchange | None:
        """The twin of a served answer: of its own pair where escrowed, else the first at hand."""
        if self.escrow is not None and pair_key(served) not in self.committed:
            return None
        for twin in self.by_asked.get(asked_key(served), ()):
            fits = self.escrow is None or pair_key(served) == pair_key(twin)
            if fits and twin.id not in self.served:
                return twin
        return None

    def unlike(self, served: Iterable[Exchange]) -> str:
        """Why none fits, in words: the settings that differ on the first prompt both share."""
        if all(twin.id in self.served for twins in self.by_asked.values() for twin in twins):
            return "they are the served answers themselves"
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


# ---- the pairs ----


@dataclass(frozen=True, slots=True)
class Candidates:
    """What may be tested, and what was drawn of it."""

    rows: list[dict[str, Any]]
    """Request facts of every exchange that the conditions admit."""
    outside: int
    """Exchanges that they do not admit."""
    draw: str
    """What the draw was made from."""
    served: list[Exchange]
    """The exchanges drawn, in the order of the draw."""
    excluded: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Raw lines of what is tested, and what is revealed after."""

    candidates: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    escrow: list[dict[str, str]] = field(default_factory=list)
    nonces: dict[str, str] = field(default_factory=dict)


def read_candidates(
    exchanges: Path, settings: TwinSettings, twins: Twins | None, spent: Sequence[str]
) -> Candidates:
    """Request facts of every exchange that the conditions admit, and the exchanges drawn.

    Raises:
        ConfigError: a condition that is none, or is about answers.
        EvidenceError: not one exchange can be tested; the reasons are counted.
    """
    held = conditions(settings.where)
    rows: list[dict[str, Any]] = []
    met: Counter[bool] = Counter()
    with Store(exchanges, "r") as store:
        for exchange in store:
            admitted = all(condition.holds(exchange) for condition in held)
            met[admitted] += 1
            if admitted:
                rows.append(facts(exchange, twins and int(twins.of(exchange) is not None)))
    rows.sort(key=lambda row: row["exchange"])
    draw = draw_of(rows, twins.escrow.published() if twins and twins.escrow else None)
    chosen, excluded = choose(rows, pairs=settings.pairs, draw=draw, spent=spent)
    if not chosen:
        raise _none_to_test(exchanges, rows, twins, excluded)
    places = {name: place for place, name in enumerate(chosen)}
    with Store(exchanges, "r") as store:
        found = [exchange for exchange in store if exchange.id in places]
    found.sort(key=lambda exchange: places[exchange.id])
    return Candidates(rows, met[False], draw, found, excluded)


def _none_to_test(
    exchanges: Path, rows: Sequence[Any], twins: Twins | None, excluded: Mapping[str, int]
) -> EvidenceError:
    reasons = "; ".join(f"{count} {reason}" for reason, count in excluded.items())
    with Store(exchanges, "r") as store:
        unlike = twins.unlike(store) if twins is not None and rows else ""
    return EvidenceError(
        f"store {exchanges}", f"no exchange to test: {reasons or 'none meets the conditions'}"
        f"{f' ({unlike})' if unlike else ''}",
        "exchanges with recorded settings, drawn at a temperature above 0, with twins of the "
        "same settings",
        "Give other exchanges, other twins or --teacher",
    )  # fmt: skip


def pair_up(found: Candidates, twins: Twins, mask: Mask) -> Pairs:
    """The pairs of served answers and the twins at hand."""
    pairs: list[dict[str, Any]] = []
    nonces: dict[str, str] = {}
    for exchange in found.served:
        twin = twins.of(exchange)
        assert twin is not None  # only such exchanges are drawn
        pairs.append(_line(exchange, twin, mask))
        if twins.escrow:
            nonces[exchange.id] = twins.escrow.nonce(exchange).hex()
    return Pairs(found.rows, pairs, twins.escrow.committed() if twins.escrow else [], nonces)


def _line(served: Exchange, twin: Exchange, mask: Mask, **more: Any) -> dict[str, Any]:
    """A pair as it is sealed, shown and verified: masked before anything is written."""
    if any(mask.hits(e.response.text or "") for e in (served, twin)):
        return {"exchange": served.id, "withheld": "an answer holds what must not be disclosed"}
    sides = {"served": mask.masked(served), "twin": mask.masked(twin)}
    line: dict[str, Any] = {
        "exchange": served.id,
        **{side: to_dict(replace(e, logprobs=None)) for side, e in sides.items()},
        **more,
    }
    if sides["served"].prompt != served.prompt:
        line |= {"masked": True, "twin_id": twin.id}
    engines = [e.logprobs.engine for e in (served, twin) if e.logprobs is not None]
    if served.model != twin.model or len(set(engines)) > 1:
        line["withheld"] = "served answer and twin are from different models or engines"
    return line


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
    """Pair lines of served answers and twins that the teacher is asked for now, one for each.

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
    mask = Mask(settings.redact)
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
    return [
        _drawn_line(exchange, request, prefix, twins.get(name), mask)
        for name, (exchange, request, prefix) in asked.items()
    ]


def _drawn_line(
    served: Exchange, asked: Request | None, prefix: str | None, twin: Exchange | None, mask: Mask
) -> dict[str, Any]:
    if asked is None:  # known from the prefix alone, so it says nothing of what comes after
        return {"exchange": served.id, "withheld": "a served answer no longer than the prefix"}
    if twin is None:
        return {"exchange": served.id, "missing": "the teacher gave no twin"}
    if prefix is None:
        return _line(served, twin, mask)
    whole, rest = served.response.text or "", twin.response.text or ""
    more = {"prefix": prefix, "rest": {"served": whole[len(prefix) :], "twin": rest}}
    return _line(served, twin, mask, **more)


def _continued(model: Model, served: Exchange, tokens: int) -> tuple[Request | None, str | None]:
    """What the teacher is asked for a twin, and the prefix it continues; None where the served
    answer has no such prefix, which is decided by the prefix alone.
    """
    sampling = replace(
        served.sampling, seed=seed_from(f"twin of {asked_key(served)}"),  # drawn once
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
