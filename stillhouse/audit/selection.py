"""Which exchanges are tested: decided by what was asked, never by what was answered.

In: a store of served exchanges, conditions on request fields, what may serve as a twin. Out: rows
of request facts, and from them alone, by a pure function that verification repeats, the exchanges
tested and a count of the others by reason. A choice by answers would break the exchangeability of
served answer and twin; conditions on answer fields are refused (docs/audit.md shows what they do).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from stillhouse.errors import ConfigError, nearest
from stillhouse.escrow import pair_key
from stillhouse.exchange import Exchange, Request, canonical_json
from stillhouse.record import plain

__all__ = [
    "Condition", "asked_key", "choose", "conditions", "draw_of", "facts", "prompt_key",
]  # fmt: skip

Row = Mapping[str, Any]

_ANSWER_FIELDS = (
    "response", "text", "answer", "reasoning", "finish_reason", "output_tokens", "logprobs",
    "served_model", "id", "length", "score",
)  # fmt: skip


# ---- what is asked about ----


@dataclass(frozen=True, slots=True)
class Condition:
    """One `--where`: a request field and what it must be."""

    text: str
    holds: Callable[[Exchange], bool]


def conditions(words: Sequence[str]) -> list[Condition]:
    """Conditions as written: `account=a1`, `session=...`, `model=...`, `labels.task=...`,
    `after=2026-11-01`, `before=...` (of the exchange's time, UTC).

    Raises:
        ConfigError: no `field=value`, an unknown field, a time that is none, or a field of the
            answer, which would choose exchanges by their answers.
    """
    return [_condition(word) for word in words]


def _condition(word: str) -> Condition:
    field, equals, value = word.partition("=")
    field = field.strip()
    known = ("account", "session", "model", "after", "before", "labels.NAME")
    if field.partition(".")[0] in _ANSWER_FIELDS:
        raise ConfigError(
            f"--where {word}", f"'{field}' is a field of the answer",
            f"a field of the request: {', '.join(known)}",
            "Leave it out: exchanges chosen by their answers differ from their twins for that "
            "reason alone, and the p-value would be wrong",
        )  # fmt: skip
    if not equals or not value:
        raise ConfigError(
            f"--where {word}", "no 'field=value'", f"one of {', '.join(known)}",
            "Write for example account=a1",
        )  # fmt: skip
    if field in ("after", "before"):
        limit = _moment(word, value)
        later = field == "after"
        return Condition(word, lambda e: e.time >= limit if later else e.time < limit)
    if field in ("account", "session", "model"):
        return Condition(word, lambda e: getattr(e, field) == value)
    if field.startswith("labels."):
        label = field.removeprefix("labels.")
        return Condition(word, lambda e: e.labels.get(label) == value)
    raise ConfigError(f"--where {word}", f"no field '{field}'", ", ".join(known),
                      nearest(field, known))  # fmt: skip


def _moment(word: str, value: str) -> datetime:
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise ConfigError(
            f"--where {word}", f"'{value}' is no time", "a date or time in ISO 8601",
            "Write for example after=2026-11-01",
        ) from None  # fmt: skip
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


# ---- keys ----


def prompt_key(asked: Request | Exchange) -> str:
    """Tagged hash of prompt and tools: equal for whatever asks the same."""
    return "p1:" + _digest([plain(m) for m in asked.prompt], [plain(t) for t in asked.tools])


def asked_key(asked: Request | Exchange) -> str:
    """Tagged hash of all that shapes the distribution an answer is drawn from: prompt, tools and
    sampling settings, without the seed and the sample's index. A twin has the same.
    """
    sampling = dict(plain(asked.sampling) or {})
    sampling.pop("seed", None)
    sampling.pop("sample_index", None)
    return "a1:" + _digest(prompt_key(asked), sampling)


def _conversation(exchange: Exchange) -> str:
    """The conversation an exchange belongs to: its session where one is recorded, else all that
    begin with the same messages up to the first of the user.
    """
    if exchange.session is not None:
        return "c1:" + _digest(exchange.account, exchange.session)
    begun: list[Any] = []
    for message in exchange.prompt:
        begun.append(plain(message))
        if message.role == "user":
            break
    return "c1:" + _digest(begun, [plain(t) for t in exchange.tools])


def _digest(*parts: Any) -> str:
    return hashlib.sha256(canonical_json(list(parts)).encode()).hexdigest()


# ---- the choice ----


def facts(exchange: Exchange, twins: int | None) -> dict[str, Any]:
    """The request facts of one exchange that `choose` decides by, as a raw line.

    Args:
        exchange: a served one.
        twins: answers at hand that fit as its twin; None where one will be drawn.
    """
    sampling = exchange.sampling
    return {
        "exchange": exchange.id,
        "prompt": prompt_key(exchange),
        "asked": asked_key(exchange),
        "pair": pair_key(exchange),
        "conversation": _conversation(exchange),
        "messages": len(exchange.prompt),
        "sample_index": sampling.sample_index,
        "temperature": sampling.temperature,
        "text_only": _text_only(exchange),
        "twins": twins,
    }


def _text_only(exchange: Exchange) -> bool:
    """Whether the request is of plain text, without tools: what a model here can be asked."""
    parts = [part.kind for message in exchange.prompt for part in message.content]
    calls = any(message.tool_calls for message in exchange.prompt)
    return all(kind == "text" for kind in parts) and not exchange.tools and not calls


def choose(
    rows: Iterable[Row], *, pairs: int, draw: str, spent: Iterable[str] = ()
) -> tuple[list[str], dict[str, int]]:
    """Ids of the exchanges that are tested, in the order of the draw, and the others by reason.

    Args:
        rows: as `facts` makes them.
        pairs: how many to draw at random; all where there are fewer.
        draw: what the draw is made from, as `draw_of` gives it: nobody's choice.
        spent: prompts that an earlier audit disclosed.
    """
    excluded: Counter[str] = Counter()
    seen_prompts, seen_conversations, gone = set[str](), set[str](), set(spent)
    eligible: list[Row] = []
    for row in sorted(rows, key=_first):
        reason = _unfit(row)
        if reason is None and row["prompt"] in seen_prompts:
            reason = "same prompt as an earlier exchange"
        if reason is None and row["conversation"] in seen_conversations:
            reason = "same conversation as an earlier exchange"
        seen_prompts.add(row["prompt"])
        seen_conversations.add(row["conversation"])
        if reason is None and row["prompt"] in gone:
            reason = "spent in an earlier audit"
        if reason is None and row["twins"] == 0:
            reason = "no twin with the same prompt and settings"
        if reason is None:
            eligible.append(row)
        else:
            excluded[reason] += 1
    eligible.sort(key=lambda row: hashlib.sha256(f"{draw} {row['prompt']}".encode()).digest())
    if len(eligible) > pairs:
        excluded["not drawn"] = len(eligible) - pairs
    return [row["exchange"] for row in eligible[:pairs]], dict(sorted(excluded.items()))


def draw_of(rows: Iterable[Row], escrow: Mapping[str, Any] | None) -> str:
    """What the exchanges are drawn with: the escrow's published root, or else a hash of the rows.

    No seed that somebody could try several of; an escrow's root was there before the audit.
    """
    if escrow is not None:
        return escrow["root"]
    return "d1:" + _digest(sorted([row["asked"], row["exchange"]] for row in rows))


def _first(row: Row) -> tuple[Any, ...]:
    """Which exchange of a prompt or conversation comes first: fewest messages, lowest sample, and
    where these do not tell, a hash.

    Not by time: an answer's time is when it was complete, so the shorter of two samples that ran
    beside one another would come first, which is a choice by the answer. Nor by which sample of an
    escrowed pair (2s or 2s + 1) it is: that is the coin.
    """
    index = row["sample_index"]
    tie = _digest(row["asked"], row["exchange"])
    return (row["messages"], -1 if index is None else index // 2, tie)


def _unfit(row: Row) -> str | None:
    if row["temperature"] is None:
        return "sampling settings not recorded"
    if row["temperature"] == 0:
        return "greedy: nothing was drawn"
    if not row["text_only"]:
        return "a request with tools or other media than text"
    return None
