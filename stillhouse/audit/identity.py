"""The identity audit: how often a suspect gives a candidate's name as its own, beside controls.

In: the plan fixed before, and raw lines: every answer verbatim, of the suspect and of control
models that were asked the same. Out: the evidence, by a pure function that verification repeats.
Everything here is population evidence: with c controls no p below 1 / (c + 1) is given. A name that
the prompt itself gave is no evidence of training, and the audit says so in place of a p-value.
Nothing here asks a model (`identity_audit.py`) or compares audits (`identity_change.py`).

Source: the battery idea of Lee et al. (arXiv 2501.12619), without its adaptive prompts, which
differ between suspects and name vendors themselves; inference from questions and control models.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from stillhouse.audit import identity_words as sentences
from stillhouse.audit import words
from stillhouse.audit.claims import Claims, prompts, questions, readings
from stillhouse.audit.identity_change import paired_share_difference
from stillhouse.errors import EvidenceError
from stillhouse.stats import clustered_share

__all__ = ["CONTROLS_FOR_LEVEL", "LEVEL", "evidence"]

Lines = Mapping[str, Sequence[Mapping[str, Any]]]
Row = Mapping[str, Any]

LEVEL = 0.05
"""At or below this rank p, and with enough controls, the audit speaks of evidence."""
CONTROLS_FOR_LEVEL = 19
"""Controls with which the smallest rank p, 1 / (c + 1), reaches the level."""

# A suspect that answers fewer of the neutral questions is not rated: what it leaves unanswered may
# be what it would have named somebody in. A control that does is no control. Ours.
_LEAST_ANSWERED = 0.5


# ---- the evidence ----


def evidence(plan: Mapping[str, Any], lines: Lines, reveal: Mapping[str, Any]) -> dict[str, Any]:
    """The evidence of an identity audit, from its raw lines.

    Args:
        plan: as `identity_audit.identity_plan` writes it.
        lines: `answers`, `models` and, where requests failed, `failures`.
        reveal: nothing is secret here.

    Raises:
        EvidenceError: lines that do not fit, or fewer than two neutral questions answered.
    """
    del reveal
    rows = readings(plan, lines)
    claims = Claims(plan["battery"], {plan["candidate"]["id"]: plan["candidate"]})
    shown = {role: list(claims.named(text)) for role, text in prompts(lines).items()}
    models: dict[str, Any] = {}
    for role in ("suspect", *plan["controls"]):
        own = [row for row in rows if row["role"] == role]
        models[role] = _model(plan, own, _failed(lines, role), shown.get(role, []))
    suspect = models["suspect"]
    if suspect["neutral"] is None:
        raise EvidenceError(
            "identity audit", f"answers to {suspect['neutral_questions']} neutral questions",
            "answers to at least two", "Ask the suspect again: look at answers.jsonl for the cause",
        )  # fmt: skip
    share = suspect["neutral"]["claimed"]
    controls, left_out = _controls(plan, models)
    rank = _rank(share["value"], [models[name]["neutral"]["claimed"]["value"] for name in controls])
    refusal = _refusal(plan, claims, suspect)
    verdict = _verdict(plan, suspect, rank, refusal, unseen=_unseen(lines))
    mixed = len(suspect["served_models"]) > 1
    if mixed or verdict in (words.REFUSED, words.NOT_ENOUGH):
        rank["p_value"] = None
    what = sentences.counted(plan)
    found = {
        "test": "identity",
        "basis": "population",
        "suspect": plan["suspect"],
        "access": sentences.access(plan, lines),
        "n": share["n"],
        "excluded": suspect["excluded"],
        "statistic": {"name": what, "value": share["value"]},
        "p_value": rank["p_value"],
        "effect": {"name": what, **share},
        "verdict": verdict,
        "secondary": {
            "candidate": plan["candidate"],
            "protocol": _protocol(plan),
            "rank": rank,
            "controls": controls,
            "controls_left_out": left_out,
            "differences": {name: _difference(plan, rows, name) for name in controls},
            "models": models,
            "names": sentences.names_of(plan),
            "questions": _by_question([row for row in rows if row["role"] == "suspect"]),
            "refusal": refusal,
        },
    }  # fmt: skip
    return found | {"says": sentences.says(plan, found), "cannot": sentences.cannot(plan, found)}


def _protocol(plan: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same in two audits that are compared."""
    return {
        "battery_hash": plan["battery_hash"], "battery_version": plan["battery"]["version"],
        "system": plan["system"], "samples": plan["samples"], "sampling": plan["sampling"],
    }  # fmt: skip


def _failed(lines: Lines, role: str) -> set[tuple[str, int]]:
    failures = lines.get("failures", ())
    return {(line["question"], line["sample"]) for line in failures if line["role"] == role}


def _model(
    plan: Mapping[str, Any], rows: Sequence[Row], failed: set[tuple[str, int]], shown: list[str]
) -> dict[str, Any]:
    """One model's figures."""
    heard = [row for row in rows if row["excluded"] is None]
    known, candidate = questions(plan["battery"]), plan["candidate"]["id"]
    there = {(row["question"], row["sample"]) for row in rows}
    excluded = Counter(row["excluded"] for row in rows if row["excluded"] is not None)
    excluded["request failed"] = len(failed - there)
    excluded["not asked"] = plan["samples"] * len(known) - len(there | failed)
    kinds = {kind: [r for r in heard if r["kind"] == kind] for kind in ("neutral", "pressing")}
    named = sorted({key for row in heard for key in row["named"]})
    times = sorted(_time(row["time"]) for row in heard)
    served = Counter(row["served_model"] for row in heard if row["served_model"] is not None)
    return {
        "answers": len(heard),
        "neutral_questions": len({row["question"] for row in kinds["neutral"]}),
        "excluded": {reason: count for reason, count in sorted(excluded.items()) if count},
        "asked": {"first": times[0].isoformat(), "last": times[-1].isoformat()} if times else None,
        "served_models": dict(sorted(served.items())),
        "prompt_names": shown,
        **{kind: _figures(own, candidate) for kind, own in kinds.items()},
        "languages": {
            language: {
                kind: _shares([row for row in own if row["language"] == language], candidate)
                for kind, own in kinds.items()
            }
            for language in plan["battery"]["questions"]
        },
        "identities": {
            key: {kind: _shares(own, key) for kind, own in kinds.items()} for key in named
        },
    }


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.utcoffset() is None:
        raise EvidenceError(
            "answers.jsonl", f"the time {text!r}", "an ISO 8601 time with its offset",
            "Take the bundle from its source again",
        )  # fmt: skip
    return time


def _figures(rows: Sequence[Row], candidate: str) -> dict[str, Any] | None:
    """What is reported over all languages; None of fewer than two questions."""
    shares = _shares(rows, candidate)
    if shares is None:
        return None

    def claimed(row: Row) -> bool:
        return candidate in row["claimed"]

    return {
        **shares,
        "claimed_clustered_by_language": _share(rows, claimed, cluster="language"),
        "instructed": _share(rows, lambda row: bool(row["instructed"])),
        "suggested": _share(rows, lambda row: bool(row["suggested"])),
    }


def _shares(rows: Sequence[Row], identity: str) -> dict[str, Any] | None:
    """Shares of answers that name an identity: outside negated clauses, and anywhere."""
    claimed = _share(rows, lambda row: identity in row["claimed"])
    named = _share(rows, lambda row: identity in row["named"])
    return None if claimed is None else {"claimed": claimed, "named": named}


def _share(
    rows: Sequence[Row], hit: Callable[[Row], bool], *, cluster: str = "question"
) -> dict[str, Any] | None:
    counts = _counts(rows, hit, cluster)
    if len(counts) < 2:
        return None
    hits, trials = zip(*counts.values(), strict=True)
    return clustered_share(hits, trials, unit=f"{cluster}s").to_dict()


def _counts(
    rows: Sequence[Row], hit: Callable[[Row], bool], cluster: str = "question"
) -> dict[str, tuple[int, int]]:
    """Cluster -> answers that hit, and answers."""
    hits, trials = Counter[str](), Counter[str]()
    for row in rows:
        hits[row[cluster]] += hit(row)
        trials[row[cluster]] += 1
    return {key: (hits[key], trials[key]) for key in sorted(trials)}


def _by_question(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Question -> answers that counted, and how many of them claimed whom: what `compare` reads."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["excluded"] is None:
            entry = found.setdefault(row["question"], {"answers": 0, "claimed": {}})
            entry["answers"] += 1
            for key in row["claimed"]:
                entry["claimed"][key] = entry["claimed"].get(key, 0) + 1
    return found


# ---- against controls ----


def _controls(
    plan: Mapping[str, Any], models: Mapping[str, Any]
) -> tuple[list[str], dict[str, str]]:
    """Controls that are ranked, and why others are not; their answers' names decide nothing."""
    ranked: list[str] = []
    left_out: dict[str, str] = {}
    for name in plan["controls"]:
        if not _answered_enough(plan, models[name]):
            left_out[name] = "answered fewer than half of the neutral questions"
        elif plan["candidate"]["id"] in models[name]["prompt_names"]:
            left_out[name] = "its chat template names the candidate"
        else:
            ranked.append(name)
    return ranked, left_out


def _answered_enough(plan: Mapping[str, Any], model: Mapping[str, Any]) -> bool:
    asked = [q for q in questions(plan["battery"]).values() if q["kind"] == "neutral"]
    answered = model["neutral_questions"]
    return answered >= 2 and answered >= _LEAST_ANSWERED * len(asked)


def _rank(share: float, controls: Sequence[float]) -> dict[str, Any]:
    """The suspect's rank among the controls, ties against the suspect, and what it takes."""
    count = len(controls)
    above = sum(other >= share for other in controls)
    needed = math.floor(LEVEL * (count + 1))
    ordered = sorted(controls, reverse=True)
    return {
        "controls": count,
        "at_or_above": above,
        "p_value": (above + 1) / (count + 1) if count else None,
        "smallest_p_value": 1 / (count + 1),
        "level": LEVEL,
        "must_exceed": ordered[needed - 1] if needed >= 1 else None,
        "lowest": ordered[-1] if ordered else None,
        "highest": ordered[0] if ordered else None,
    }


def _difference(
    plan: Mapping[str, Any], rows: Sequence[Row], control: str
) -> dict[str, Any] | None:
    """The suspect's neutral share less a control's, over the questions that both answered; None
    where these are fewer than two.
    """

    def rates(role: str) -> dict[str, float]:
        own = [
            row for row in rows
            if row["role"] == role and row["kind"] == "neutral" and row["excluded"] is None
        ]  # fmt: skip
        counts = _counts(own, lambda row: plan["candidate"]["id"] in row["claimed"])
        return {key: hits / trials for key, (hits, trials) in counts.items()}

    suspect, other = rates("suspect"), rates(control)
    both = [key for key in suspect if key in other]
    if len(both) < 2:
        return None
    return paired_share_difference([suspect[q] for q in both], [other[q] for q in both]).to_dict()


# ---- the verdict ----


def _refusal(plan: Mapping[str, Any], claims: Claims, suspect: Mapping[str, Any]) -> str | None:
    """Why names in these answers say nothing about training."""
    sent = claims.named(plan["system"] or "")
    if sent:
        return f"the system prompt that was sent names {sentences.listed(plan, sent)}"
    if plan["candidate"]["id"] in suspect["prompt_names"]:
        return f"the suspect's own chat template names {plan['candidate']['name']}"
    return None


def _unseen(lines: Lines) -> bool:
    """Whether a provider may have put a prompt before the suspect's questions that nobody saw."""
    own = (line for line in lines.get("models", ()) if line["role"] == "suspect")
    return any(line["prompt_is"] == "unseen" for line in own)


def _verdict(
    plan: Mapping[str, Any], suspect: Mapping[str, Any], rank: Row, refusal: str | None,
    *, unseen: bool,
) -> str:  # fmt: skip
    if refusal:
        return words.REFUSED
    if not _answered_enough(plan, suspect):
        return words.NOT_ENOUGH
    if len(suspect["served_models"]) > 1 or rank["controls"] < CONTROLS_FOR_LEVEL:
        return words.REPORTED
    if rank["p_value"] > LEVEL:
        return words.NONE_FOUND
    return words.REPORTED if unseen else words.EVIDENCE
