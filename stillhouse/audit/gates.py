"""Gates that look at both twins, or at both rounds, alike: is it still the same teacher, and is it
one suspect?

In: raw lines. Out: what a gate found, and why a test is refused. A gate never chooses pairs: it
refuses the whole test, by a statistic that exchanging served answer and twin everywhere leaves as
it is. Nothing here asks a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stillhouse.audit.overlap import overlap
from stillhouse.exact import signed_rank_sides

__all__ = ["changed", "teacher_gate", "unsteady"]

Line = Mapping[str, Any]

# A teacher whose served answers can be told from fresh ones, in either direction, is not the one
# that answered. Strict: each refusal of an unchanged teacher loses an audit. Shared by the signs.
_CHANGED_LEVEL = 1e-3

_FEWEST = 20  # differences that a gate is worth: fewer could not reach its level

# Nats a token by which a repeated score may differ: kernels and batching move it by up to .01.
_REPEAT_SLACK = 0.05

_PERMUTATIONS = 1999
_UNSTEADY_LEVEL = 1e-3


# ---- the teacher ----


def teacher_gate(differences: Mapping[str, Sequence[float]]) -> dict[str, Any] | None:
    """Whether served answers and fresh ones are alike: two-sided, by several signs of change.

    Args:
        differences: name of a quantity -> served less twin, of all pairs.

    Returns:
        `n`, `p_value` (the smallest, corrected for how many there are), `sign` (which one that is)
        and `level`; None where no quantity differs in enough pairs.
    """
    found = {
        name: (sum(value != 0 for value in values), signed_rank_sides(values))
        for name, values in differences.items()
        if sum(value != 0 for value in values) >= _FEWEST
    }
    if not found:
        return None
    two_sided = {name: min(1.0, 2 * min(sides)) for name, (_, sides) in found.items()}
    name = min(two_sided, key=lambda each: two_sided[each])
    return {
        "n": found[name][0], "p_value": min(1.0, len(found) * two_sided[name]), "sign": name,
        "signs": sorted(found), "level": _CHANGED_LEVEL,
    }  # fmt: skip


def changed(gate: Mapping[str, Any] | None) -> str | None:
    """Why the teacher is not the one that answered; None where the gate lets it pass."""
    if gate is None or gate["p_value"] > gate["level"]:
        return None
    return (
        f"served answers and twins are told apart by {gate['sign']} (p = {gate['p_value']:.2g}): "
        "the teacher of today is not the one that answered, or not with these settings"
    )


# ---- the suspect ----


def unsteady(lines: Mapping[str, Sequence[Line]]) -> str | None:
    """Why the suspect is not one model: what was asked twice was not answered alike."""
    answers = lines.get("continuations", ())
    names = {line["served_model"] for line in answers}
    if len(names) > 1:
        return f"answers came from several models: {', '.join(sorted(map(str, names)))}"
    return _moved_scores(lines.get("scores", ())) or _moved_texts(answers)


def _moved_scores(scores: Sequence[Line]) -> str | None:
    first = {(s["exchange"], s["side"]): s["logprobs"] for s in scores if s["role"] == "suspect"}
    moves = [
        abs(float(np.mean(first[place])) - float(np.mean(line["logprobs"])))
        for line in scores
        if line["role"] == "repeat"
        and (place := (line["exchange"], line["side"])) in first
        and _whole(first[place])
        and _whole(line["logprobs"])
    ]
    if not moves or max(moves) <= _REPEAT_SLACK:
        return None
    return (
        f"the suspect scored the same text differently when asked again (by up to {max(moves):.2g} "
        f"nats a token in {len(moves)} repeats): more than one model answers under this name"
    )


def _whole(values: Sequence[float | None]) -> bool:
    return bool(values) and None not in values


def _moved_texts(answers: Sequence[Line]) -> str | None:
    """Whether answers of one round are more like one another than like the other round's.

    All answers to one prompt by one model are exchangeable between the rounds.
    """
    said: dict[str, dict[int, list[str]]] = {}
    for line in answers:
        rounds = said.setdefault(line["exchange"], {1: [], 2: []})
        rounds[line["round"]].append(line["text"])
    again = [(r[1], r[2]) for _, r in sorted(said.items()) if r[1] and len(r[1]) == len(r[2]) > 1]
    if not again:
        return None
    rng = np.random.default_rng(0)
    found, drawn = 0.0, np.zeros(_PERMUTATIONS)
    for first, second in again:
        texts = [*first, *second]
        alike = np.array([[overlap(a, b) for b in texts] for a in texts])
        half = len(first)
        labels = np.repeat([1.0, -1.0], half)
        found += labels @ alike @ labels
        shuffled = rng.permuted(np.tile(labels, (_PERMUTATIONS, 1)), axis=1)
        drawn += np.einsum("ij,jk,ik->i", shuffled, alike, shuffled)
    p_value = (1 + int((drawn >= found - 1e-9).sum())) / (1 + _PERMUTATIONS)
    if p_value > _UNSTEADY_LEVEL:
        return None
    return (
        f"answers to the same {len(again)} requests, asked again at the end, differ from those at "
        f"the beginning (p = {p_value:.2g}): more than one model answers under this name"
    )
