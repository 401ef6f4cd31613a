"""The sentences of an identity audit: what was counted, what it says, and what it does not show.

In: the plan and figures of `identity.evidence`. Out: sentences, none with a word of
`words.FORBIDDEN`. Nothing here counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stillhouse.audit import words

__all__ = ["access", "cannot", "counted", "listed", "names_of", "says"]

Plan = Mapping[str, Any]
Lines = Mapping[str, Sequence[Mapping[str, Any]]]


def names_of(plan: Plan) -> dict[str, str]:
    """Identity -> what it is called."""
    table = {key: entry["name"] for key, entry in plan["battery"]["identities"].items()}
    return table | {plan["candidate"]["id"]: plan["candidate"]["name"]}


def listed(plan: Plan, identities: Iterable[str]) -> str:
    """The names of identities, in words."""
    known = names_of(plan)
    return ", ".join(known[key] for key in identities)


def counted(plan: Plan) -> str:
    """What the primary number is."""
    return (
        "share of the suspect's answers to neutral questions that name "
        f"{plan['candidate']['name']} outside a negated clause"
    )


# ---- how it was asked ----


def access(plan: Plan, lines: Lines) -> str:
    """How the suspect was asked, and what may have stood before the questions, in words."""
    own = [line for line in lines.get("models", ()) if line["role"] == "suspect"]
    sent = (
        "no system prompt was sent" if plan["system"] is None
        else "the system prompt that was sent is recorded" if plan["system"]
        else "an empty system prompt was sent"
    )  # fmt: skip
    asked = f"text answers, one question at a time; {sent}"
    if not own:
        return f"{asked}; how the model was reached is not recorded"
    line = own[-1]
    if line["prompt_is"] == "unseen":
        return f"{asked}; an endpoint ({line['endpoint']}), whose provider may add its own, unseen"
    if line["prompt_is"] == "none":
        return f"{asked}; nothing was put before a question"
    how = "rendered" if line["prompt_is"] == "rendered" else "which could not be rendered"
    return f"{asked}; weights at hand, with the chat template recorded ({how})"


# ---- what it says ----


def says(plan: Plan, found: Mapping[str, Any]) -> list[str]:
    """What can be read from the figures, the verdict first."""
    more, name = found["secondary"], plan["candidate"]["name"]
    suspect = more["models"]["suspect"]
    effect, asked = found["effect"], suspect["asked"]
    return [
        _verdict(found, suspect, name),
        f"{_percent(effect['value'])} of the answers to neutral questions name {name} outside a "
        f"negated clause (95 % interval {_percent(effect['low'])} to {_percent(effect['high'])}, "
        f"{effect['n']} questions in {len(plan['battery']['questions'])} languages, "
        f"{plan['samples']} answers each); {_percent(suspect['neutral']['named']['value'])} name "
        "it anywhere.",
        f"Asked from {asked['first'][:10]} to {asked['last'][:10]}; a repeated audit shows whether "
        "this changes.",
        *_ranked(found),
        *_apart(plan, suspect),
    ]


def _verdict(found: Mapping[str, Any], suspect: Mapping[str, Any], name: str) -> str:
    verdict, more = found["verdict"], found["secondary"]
    if verdict == words.REFUSED:
        return (
            f"Refused as evidence of training: {more['refusal']}. "
            f"{_percent(suspect['neutral']['instructed']['value'])} of the answers to neutral "
            "questions name an identity that stands in the prompt."
        )
    if verdict == words.NOT_ENOUGH:
        return (
            f"Not enough evidence: only {suspect['neutral_questions']} neutral questions were "
            "answered, fewer than half."
        )
    if verdict == words.EVIDENCE:
        return (
            f"Evidence, relative to these control models, that the suspect names {name} more often "
            "than models like them do."
        )
    if verdict == words.NONE_FOUND:
        return (
            "No evidence found that the suspect stands out from these controls; the smallest share "
            f"that could have is one above {_percent(more['rank']['must_exceed'])}."
        )
    return "Reported only: a figure without an error rate of its own."


def _ranked(found: Mapping[str, Any]) -> list[str]:
    rank = found["secondary"]["rank"]
    if not rank["controls"]:
        lines = [
            "No control models were ranked: nothing here says how often an innocent model gives "
            "that name."
        ]
    else:
        lines = [
            f"{_models(rank['controls'])}, asked the same: {_percent(rank['lowest'])} to "
            f"{_percent(rank['highest'])}; {rank['at_or_above']} at the suspect's share or above."
        ]
    if found["p_value"] is not None:
        lines.append(
            f"Rank p {found['p_value']:.3g}; with {_models(rank['controls'])} none below "
            f"{rank['smallest_p_value']:.3g} is possible"
            + (
                "." if rank["smallest_p_value"] <= rank["level"]
                else f", so that none can be called significant at {rank['level']:g}."
            )
        )  # fmt: skip
    lines += [
        f"The control {name} was not ranked: {why}."
        for name, why in found["secondary"]["controls_left_out"].items()
    ]
    return lines


def _apart(plan: Plan, suspect: Mapping[str, Any]) -> list[str]:
    """Languages, pressing questions, and what the endpoint called itself."""
    by_language = {
        plan["battery"]["questions"][key]["name"]: shares["neutral"]["claimed"]["value"]
        for key, shares in suspect["languages"].items()
        if shares["neutral"] is not None
    }
    lines: list[str] = []
    if by_language:
        lines.append(
            "By language: "
            + ", ".join(f"{name} {_percent(by_language[name])}" for name in sorted(by_language))
            + "."
        )
    pressing = suspect["pressing"]
    if pressing is not None:
        lines.append(
            f"Pressing questions, apart: {_percent(pressing['claimed']['value'])} name "
            f"{plan['candidate']['name']} outside a negated clause; in "
            f"{_percent(pressing['suggested']['value'])} an identity is named that the question "
            "itself had named."
        )
    if len(suspect["served_models"]) > 1:
        lines.append(
            "The endpoint said that more than one model answered ("
            + ", ".join(f"{name}: {count}" for name, count in suspect["served_models"].items())
            + "): the share is a mixture, and it is not ranked."
        )
    return lines


def _models(count: int) -> str:
    return f"{count} control model{'' if count == 1 else 's'}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


# ---- what it does not show ----


def cannot(plan: Plan, found: Mapping[str, Any]) -> list[str]:
    """What cannot be concluded."""
    name = plan["candidate"]["name"]
    lines = [
        f"It does not show that the suspect was trained on answers of {name}: a system prompt, a "
        "persona that was taught on purpose, text of the web in which assistants name themselves, "
        "or training on what other models wrote lead to the same words.",
        "By itself it is no evidence of distillation, and its absence is no evidence of the "
        "opposite: what a model calls itself is easily trained in and trained away.",
        "The interval speaks of questions like these, asked of this model; it says nothing of "
        "other models.",
        "Names and negations were found by lists of words, which err; every answer is in "
        "answers.jsonl as it came.",
    ]
    if found["secondary"]["rank"]["controls"]:
        lines.append(
            "A rank among controls means something only so far as the suspect, were it innocent, "
            "would be a model like them, by age, size, languages and training data; this is no "
            "design-based p-value and is never combined with one."
        )
    if "unseen" in found["access"]:
        lines.append(
            "The provider may put a system prompt of its own before every question. It cannot be "
            "seen from here, and it may name anybody."
        )
    elif plan["system"] is None and found["secondary"]["models"]["suspect"]["prompt_names"]:
        shown = listed(plan, found["secondary"]["models"]["suspect"]["prompt_names"])
        lines.append(
            f"The suspect's own chat template names {shown} before every question; most templates "
            "leave that out where a system prompt is sent, be it an empty one (system '')."
        )
    return lines
