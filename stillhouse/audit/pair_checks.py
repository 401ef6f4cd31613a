"""Do the raw lines of a twin test hang together? Each pair with its request facts, its settings,
the draw, and with what the escrow committed to.

In: plan, raw lines, revealed nonces. Out: the pair lines by exchange, and how many committed pairs
stand outside the exchanges given. What does not fit is an EvidenceError: whoever verifies a bundle
would find the same. Nothing here asks a model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stillhouse.audit.selection import asked_key, facts
from stillhouse.errors import EvidenceError
from stillhouse.escrow import check_pair, commitment, published_root
from stillhouse.exchange import Exchange, from_dict

__all__ = ["SIDES", "check_escrow", "check_models", "has_texts", "pairs_of"]

Line = Mapping[str, Any]
Lines = Mapping[str, Sequence[Line]]

SIDES = ("served", "twin")

# A teacher that gives no twin for more of the pairs drawn than this may have refused by what it
# would have said. Ours.
_MOST_MISSING = 0.1

_ROLES = ("suspect", "repeat", "teacher")


def pairs_of(lines: Lines, chosen: Sequence[str]) -> dict[str, Line]:
    """Exchange -> its pair line, one for each exchange drawn.

    Raises:
        EvidenceError: a pair of an exchange not drawn, none for one that was, a second one, texts
            that are not what the candidates' facts say, different settings, or too many twins
            missing.
    """
    pairs = _once(lines["pairs"], "pairs", lambda pair: pair["exchange"])
    drawn = set(chosen)
    _all_in(set(pairs), drawn, "pairs", "of exchanges that the draw did not choose")
    _all_in(drawn, set(pairs), "pairs", "missing of exchanges that the draw chose")
    rows = {row["exchange"]: row for row in lines["candidates"]}
    for name, pair in pairs.items():
        if has_texts(pair):
            _check_pair(pair, rows[name])
    missing = sum("missing" in pair for pair in pairs.values())
    if missing > _MOST_MISSING * len(pairs):
        raise EvidenceError(
            "pairs", f"{missing} of {len(pairs)} exchanges drawn have no twin",
            f"at most {_MOST_MISSING:.0%}: more, and refusals may follow what was to be said",
            "Use escrowed twins, or a teacher that answers these prompts",
        )  # fmt: skip
    return pairs


def has_texts(pair: Line) -> bool:
    """Whether both answers stand in the line: not where one is missing or must not be shown."""
    return all(side in pair for side in SIDES)


def _once(lines: Iterable[Line], what: str, key: Any) -> dict[Any, Line]:
    found: dict[Any, Line] = {}
    for line in lines:
        if key(line) in found:
            raise _unfit(what, f"{key(line)} a second time")
        found[key(line)] = line
    return found


def _all_in(some: set[str], whole: set[str], where: str, told: str) -> None:
    if outside := some - whole:
        raise _unfit(where, f"{len(outside)} {told}, the first is {min(outside)}")


def _unfit(where: str, found: str) -> EvidenceError:
    return EvidenceError(
        f"{where}.jsonl", found, "the lines that follow from the plan",
        "Take the bundle from its source again",
    )  # fmt: skip


def _check_pair(pair: Line, row: Line) -> None:
    name = pair["exchange"]
    served, twin = (from_dict(pair[side], f"pair of {name}") for side in SIDES)
    # A masked prompt has another hash: what it was is bound by the candidate's line alone.
    if not pair.get("masked") and facts(served, row["twins"]) != dict(row):
        raise _unfit("pairs", f"{name} is not the exchange that its candidate line describes")
    if "prefix" not in pair:
        if asked_key(served) != asked_key(twin):
            raise _unfit("pairs", f"served answer and twin of {name} were asked differently")
        return
    whole, rest = served.response.text or "", pair["rest"]
    fits = (
        whole == pair["prefix"] + rest["served"]
        and (twin.response.text or "") == rest["twin"]
        and twin.prompt[:-1] == served.prompt
        and twin.prompt[-1].role == "assistant"
        and twin.prompt[-1].text == pair["prefix"]
    )
    if not fits:
        raise _unfit("pairs", f"the twin of {name} does not continue the prefix that is named")


# ---- what models made of them ----


def check_models(lines: Lines, pairs: Mapping[str, Line]) -> None:
    """Nothing, once each line of a model is about a pair, has a known role, and stands once.

    Raises:
        EvidenceError: one does not.
    """
    scores = _once(
        lines.get("scores", ()), "scores", lambda s: (s["role"], s["exchange"], s["side"])
    )
    said = _once(
        lines.get("continuations", ()), "continuations",
        lambda c: (c["exchange"], c["sample"], c["round"]),
    )  # fmt: skip
    _all_in({s[1] for s in scores}, set(pairs), "scores", "lines of exchanges that are no pair")
    _all_in({s[0] for s in said}, set(pairs), "continuations", "of exchanges that are no pair")
    strange = {s for s in scores if s[0] not in _ROLES or s[2] not in SIDES}
    if strange:
        raise _unfit("scores", f"a line of role and side {min(strange)[0::2]}")


# ---- the escrow ----


def check_escrow(
    plan: Line, lines: Lines, pairs: Mapping[str, Line], reveal: Mapping[str, Any]
) -> dict[str, int]:
    """How many pairs were committed to, how many of them are candidates, and how many are not.

    Every tested pair is held against its revealed coin, and against its line among all those
    published, from which the root is made again.

    Raises:
        EvidenceError: a coin says otherwise, a pair was not committed to, or the lines are not
            those of the published root.
    """
    published, marks = plan["escrow"], lines["escrow"]
    committed = _once(marks, "escrow", lambda mark: mark["pair"])
    if published_root(marks) != published["root"] or len(marks) != published["pairs"]:
        raise _unfit("escrow", "lines that are not those of the published root")
    rows = {row["exchange"]: row["pair"] for row in lines["candidates"]}
    nonces = json.loads(reveal["nonces"])
    for name, pair in pairs.items():
        if problem := _pair_problem(pair, nonces.get(name), committed.get(rows[name])):
            raise EvidenceError(
                f"pair of {name}", problem, "the pair that the escrow committed to",
                "Take store and escrow from their sources again",
            )  # fmt: skip
    among = len(committed.keys() & set(rows.values()))
    return {
        "committed": len(committed), "among the candidates": among,
        "outside them": len(committed) - among, "revealed": len(nonces),
    }  # fmt: skip


def _pair_problem(pair: Line, nonce: str | None, mark: Line | None) -> str | None:
    if "missing" in pair:
        return "an escrowed twin that is missing"
    if nonce is None:
        return "its coin is not revealed"
    if mark is None:
        return "its commitment is not among those published"
    if not has_texts(pair):
        return None
    served, twin = (from_dict(pair[side]) for side in SIDES)
    secret = bytes.fromhex(nonce)
    if problem := check_pair(secret, served, twin):
        return problem
    same = commitment(secret, pair["exchange"], _twin_id(pair, twin)) == mark["commitment"]
    return None if same else "its commitment is not among those published"


def _twin_id(pair: Line, twin: Exchange) -> str:
    """A masked prompt changes the id that is made from the content; then it stands beside."""
    return pair["twin_id"] if pair.get("masked") else twin.id
