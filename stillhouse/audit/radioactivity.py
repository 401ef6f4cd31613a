"""The watermark test: does a suspect lean to the tokens that a secret key marked in served answers?

In: raw lines of an audit (the suspect's answers, or what it would have said over served text) and
the plan fixed before; the key, revealed after. Out: the evidence, by a pure function that
verification repeats. Of the pairs that count (`green.py`), a suspect that never met marked text has
binomially many green ones, whatever the suspect is. Decoy keys are scored on the same pairs, to
show it. Nothing here asks a model.

Source: Fernandez et al. (arXiv 2308.00113) for exact tests over distinct pairs; Sander et al.
(arXiv 2402.14904) for suspects.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stillhouse.audit import words
from stillhouse.audit.green import Lines, Pairs, green_pairs, scored_pairs
from stillhouse.audit.settings import FEWEST_SCORED
from stillhouse.errors import EvidenceError
from stillhouse.exact import binomial_tail, critical_count, share_bound
from stillhouse.stats import clopper_pearson
from stillhouse.watermark import Watermark

__all__ = ["evidence"]

# The exact p-value is held against the decoys twice; where either is this unlikely, the number does
# not mean what it says. Strict: each false alarm loses an audit.
_DISAGREE = 1e-3
_POWER = 0.9


# ---- the evidence ----


def evidence(plan: Mapping[str, Any], lines: Lines, reveal: Mapping[str, Any]) -> dict[str, Any]:
    """The evidence of a watermark test, from its raw lines.

    Args:
        plan: as `watermark_audit.py` writes it.
        lines: `prompts` with ids; `answers` with ids, or `served` with ids and `readings` with the
            ids the suspect predicted in their place.
        reveal: `key`, in hex.

    Raises:
        EvidenceError: the key does not fit its commitment, the ids are of another vocabulary, or
            fewer than `FEWEST_SCORED` pairs count.
    """
    mark = _revealed(plan, reveal)
    pairs = scored_pairs(plan, lines)
    n = len(pairs.tokens)
    if n < FEWEST_SCORED:
        left_out = "; ".join(f"{count} {why}" for why, count in pairs.excluded.items()) or "none"
        raise EvidenceError(
            "watermark test", f"{n} distinct pairs that count (tokens left out: {left_out})",
            f"at least {FEWEST_SCORED}", "Ask more prompts, for longer answers",
        )  # fmt: skip
    decoys = mark.decoys(plan["decoys"]["seed"], plan["decoys"]["count"])
    green, *innocent = green_pairs(pairs, [mark, *decoys])
    # A smaller tail than any number has is not 0.
    exact = max(binomial_tail(green, n, mark.gamma), sys.float_info.min)
    beside = _beside(green, innocent, n, mark.gamma, exact)
    return _report(plan, lines, pairs, mark, green, exact, beside)


def _revealed(plan: Mapping[str, Any], reveal: Mapping[str, Any]) -> Watermark:
    """The watermark the plan committed to."""
    facts = plan["watermark"]
    settings = {name: facts[name] for name in ("width", "gamma", "delta", "tokenizer")}
    mark = Watermark(key=bytes.fromhex(reveal["key"]), **settings)
    if mark.commitment != facts["commitment"]:
        raise EvidenceError(
            "revealed key", f"its SHA-256 is {mark.commitment}",
            f"{facts['commitment']}, which was committed to before the suspect was asked",
            "Reveal the key that was committed to; another one tests nothing",
        )  # fmt: skip
    return mark


def _beside(
    green: int, innocent: Sequence[int], n: int, gamma: float, exact: float
) -> dict[str, Any]:
    """What the decoys say: the rank of the true key, and whether the binomial holds for them."""
    from scipy.special import gammainc, gammaincc  # about 0.2 s to import

    counts, m = np.array(innocent, np.float64), len(innocent)
    z = (counts - n * gamma) / np.sqrt(n * gamma * (1 - gamma))
    as_green = int((counts >= green).sum())
    square = float((z**2).sum())
    fewer, more = gammainc(m / 2, square / 2), gammaincc(m / 2, square / 2)
    # Under the exact p each decoy is as green as the true key with that very probability.
    above, below = binomial_tail(as_green, m, exact), binomial_tail(m - as_green, m, 1 - exact)
    return {
        "count": m,
        "as_green": as_green,
        "rank_p_value": (1 + as_green) / (1 + m),
        "mean_share": float(counts.mean() / n),
        "spread": float(np.sqrt(square / m)),
        "spread_p_value": min(1.0, 2 * float(min(fewer, more))),
        "agreement_p_value": min(1.0, 2 * min(above, below)),
    }


def _report(
    plan: Mapping[str, Any],
    lines: Lines,
    pairs: Pairs,
    mark: Watermark,
    green: int,
    exact: float,
    beside: dict[str, Any],
) -> dict[str, Any]:
    n, gamma, level = len(pairs.tokens), mark.gamma, plan["alpha"] / plan["looks"]
    refusal = _refusal(beside)
    found = words.EVIDENCE if exact <= level else words.NONE_FOUND
    verdict = words.REFUSED if refusal else found
    smallest = _smallest(n, gamma, level)
    return {
        "test": "watermark",
        "basis": "design-based",
        "suspect": plan["suspect"],
        "access": _ACCESS[plan["mode"]],
        "n": n,
        "excluded": pairs.excluded,
        "statistic": {"name": "green (window, token) pairs", "value": green},
        "p_value": None if refusal else exact,
        "effect": {
            "name": f"share of green pairs; {gamma:g} is innocent",
            **clopper_pearson(green, n, unit="distinct pairs").to_dict(),
        },
        "verdict": verdict,
        "says": _says(green, n, gamma, exact, beside, verdict, refusal, smallest),
        "cannot": _cannot(plan, lines, refusal),
        "secondary": {
            "exact_p_value": exact,
            "level": level,
            "z": (green - n * gamma) / float(np.sqrt(n * gamma * (1 - gamma))),
            "share_upper_bound": share_bound(green, n),
            "smallest_share_found_with_probability_0.9": smallest,
            "decoys": beside,
            "retokenised_answers": _retokenised(lines),
            "refusal": refusal,
        },
    }


_ACCESS = {
    "generation": "text only: the tokens of the suspect's own answers",
    "reading": "the suspect's likeliest next token at each place of served text",
}


def _smallest(n: int, gamma: float, level: float) -> float:
    """The smallest share of green pairs that so many would show with probability 0.9."""
    from scipy.special import betaincinv

    fewest = min(n, critical_count(n, level, gamma))
    return float(betaincinv(fewest, n - fewest + 1, _POWER))


def _refusal(beside: Mapping[str, Any]) -> str | None:
    if beside["spread_p_value"] < _DISAGREE:
        return (
            f"decoy keys do not behave as innocent keys do (their z-scores spread by "
            f"{beside['spread']:.2f}, not 1; p = {beside['spread_p_value']:.1g})"
        )
    if beside["agreement_p_value"] < _DISAGREE:
        return (
            f"exact p-value and decoys disagree: {beside['as_green']} of {beside['count']} decoy "
            f"keys are as green as the true one (p = {beside['agreement_p_value']:.1g})"
        )
    return None


def _says(
    green: int,
    n: int,
    gamma: float,
    exact: float,
    beside: Mapping[str, Any],
    verdict: str,
    refusal: str | None,
    smallest: float,
) -> list[str]:
    if refusal:
        return [f"Refused: {refusal}. The exact p-value beside is not to be read."]
    lean = (
        f"{green} of {n} distinct pairs are green ({green / n:.4f}; {gamma:g} is expected of a "
        "suspect that never met marked text). If it never did, so many or more have probability "
        f"{exact:.2g} (exact binomial)."
    )
    rank = (
        f"Of {beside['count']} decoy keys on the same pairs {beside['as_green']} are as green as "
        f"the true one (rank p {beside['rank_p_value']:.2g}): the two agree."
    )
    if verdict == words.EVIDENCE:
        return [
            lean, rank,
            "Evidence, at the level fixed beforehand, that the suspect was trained on text that "
            "was marked with this key.",
        ]  # fmt: skip
    return [
        lean, rank,
        "No evidence found that the suspect was trained on text marked with this key. So many "
        f"pairs would have shown a green share of {smallest:.4f} with probability 0.9; a smaller "
        "one may have gone unseen.",
    ]  # fmt: skip


def _cannot(plan: Mapping[str, Any], lines: Lines, refusal: str | None) -> list[str]:
    said = [
        words.INTENT,
        words.NOT_INNOCENT,
        "A mark that is absent says little: paraphrase, later training on other text, and sampling "
        "against the mark remove it.",
        f"A mark that is present may be forged: windows of {plan['watermark']['width']} tokens can "
        "be learned from enough marked text, and a model made to write like it.",
        "That the key was fixed before the suspect was asked is shown by its commitment; that it "
        "is the key the answers were served under rests on the provider's own record.",
        "No dose is given: how green share and share of training data go together was not measured "
        "for this kind of model.",
    ]
    if refusal:
        said.insert(0, f"Nothing can be concluded from the p-value: {refusal}.")
    if plan["mode"] == "generation":
        said.append("The prompts must not have been written with knowledge of the key.")
        if _retokenised(lines):
            said.append(
                "Answers were tokenised again from their text; verification starts from these "
                "token ids. Other cuts between tokens blur a mark, and add none."
            )
    return said


def _retokenised(lines: Lines) -> int:
    return sum(bool(line.get("retokenised")) for line in lines.get("answers", ()))
