"""What an answer says about who its model is: the identities it names, and those it claims.

In: the battery (`battery.yaml`, or its copy in an audit's plan) and answers. Out: for each answer
the identities named anywhere, and those claimed, which is named outside a negated clause and not in
a question. Clauses are found by marks and conjunctions, negations by lists of words for each
language: simple rules, which err, so every answer is kept beside what was read in it. Nothing here
counts or concludes.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any, NamedTuple

from stillhouse.errors import EvidenceError
from stillhouse.exchange import canonical_json
from stillhouse.naming import SCRIPTS, pattern, plain

__all__ = ["Claims", "Reading", "battery", "battery_hash", "prompts", "questions", "readings"]

Battery = Mapping[str, Any]
Lines = Mapping[str, Sequence[Mapping[str, Any]]]


def battery() -> dict[str, Any]:
    """The shipped battery: version, questions, identities, negations."""
    import yaml

    text = resources.files("stillhouse.audit").joinpath("battery.yaml").read_text("utf-8")
    return yaml.safe_load(text)


def battery_hash(content: Battery) -> str:
    """Tagged SHA-256 of a battery's canonical JSON."""
    return "sha256:" + hashlib.sha256(canonical_json(content).encode()).hexdigest()


def questions(content: Battery) -> dict[str, dict[str, str]]:
    """Id ('en-neutral-1') -> language, kind and text of each question, in the file's order."""
    return {
        f"{language}-{kind}-{number}": {"language": language, "kind": kind, "text": text}
        for language, entry in content["questions"].items()
        for kind in ("neutral", "pressing")
        for number, text in enumerate(entry[kind], start=1)
    }


class Reading(NamedTuple):
    """The identities found in one text, by id, in alphabetical order."""

    named: tuple[str, ...]
    """Named anywhere."""
    claimed: tuple[str, ...]
    """Named outside a negated clause, and not in a question."""


class Claims:
    """Reads answers by a battery's tables."""

    def __init__(self, content: Battery, extra: Mapping[str, Mapping[str, Any]]) -> None:
        """Prepare the tables.

        Args:
            content: the battery.
            extra: id -> forms (and cased forms) that the caller adds: of a new identity, or to one
                in the table.
        """
        table = content["identities"]
        self._identities = {
            key: _Identity([*_forms(table, key, "forms"), *_forms(extra, key, "forms")],
                           [*_forms(table, key, "cased"), *_forms(extra, key, "cased")])
            for key in sorted({*table, *extra})  # the order of a mapping is lost in a bundle
        }  # fmt: skip
        self._negations, self._everywhere = content["negations"], content["everywhere"]
        self._sought = {
            language: [plain(word).casefold() for kind in lists.values() for word in kind]
            for language, lists in self._negations.items()
        }
        self._rules: dict[tuple[str, ...], _Rules] = {}

    def named(self, text: str) -> tuple[str, ...]:
        """The identities a text names anywhere."""
        folded = plain(text)
        return tuple(key for key, one in self._identities.items() if one.spans(folded))

    def read(self, text: str, language: str) -> Reading:
        """The identities that an answer to a question in this language names and claims."""
        named = self.named(text)
        if not named:
            return Reading((), ())
        rules = self._rules_for(text, language)
        clauses = _clauses(text, rules)
        spans = [
            {key: self._identities[key].spans(clause.text) for key in named} for clause in clauses
        ]
        negated = _carried(clauses, spans, rules)
        claimed = tuple(
            key
            for key in named
            if any(
                not (clause.ends == "question" or negated[at])
                and not _negated(clauses, spans, at, (start, end), rules)
                for at, clause in enumerate(clauses)
                for start, end in spans[at][key]
            )
        )
        return Reading(named, claimed)

    def _rules_for(self, text: str, language: str) -> _Rules:
        """Rules of the question's language, and of those that hold everywhere and have a word in
        the text; the others could not match.
        """
        lower = plain(text).casefold()
        used = (language, *(
            other for other in self._everywhere
            if other != language and any(word in lower for word in self._sought[other])
        ))  # fmt: skip
        if used not in self._rules:
            self._rules[used] = _Rules([self._negations[key] for key in used])
        return self._rules[used]


def _forms(table: Mapping[str, Mapping[str, Any]], key: str, kind: str) -> Sequence[str]:
    return table.get(key, {}).get(kind, ())


# ---- the answers of an audit ----


def readings(plan: Mapping[str, Any], lines: Lines) -> list[dict[str, Any]]:
    """Every answer line with what was read in it: `named`, `claimed` and `instructed` identities
    (instructed: claimed, and named in the prompt that was sent), `suggested` (claimed, and named in
    the question), and `excluded`, the reason it does not count, or None.

    Raises:
        EvidenceError: the plan's battery is not the one it has the hash of, or a line is of another
            role, question or sample than were planned.
    """
    _check_battery(plan)
    known, candidate = questions(plan["battery"]), plan["candidate"]
    claims = Claims(plan["battery"], {candidate["id"]: candidate})
    shown = {role: set(claims.named(text)) for role, text in prompts(lines).items()}
    asked = {key: set(claims.named(question["text"])) for key, question in known.items()}
    sent: dict[str, set[str]] = {}
    read: dict[tuple[str, str], Reading] = {}  # models repeat themselves
    seen: set[tuple[str, str, int]] = set()
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines.get("answers", ()), start=1):
        place = _place(plan, line, known, number)
        text, system = line["text"] or "", line["system"] or ""
        said = (text, line["language"])
        if said not in read:
            read[said] = claims.read(*said)
        if system not in sent:
            sent[system] = set(claims.named(system))
        prompted = sent[system] | shown.get(line["role"], set())
        excluded = (
            "asked twice" if place in seen
            else "another system prompt than planned" if line["system"] != plan["system"]
            else "empty answer" if not text.strip()
            else None
        )  # fmt: skip
        seen.add(place)
        rows.append(
            {
                **line, "named": list(read[said].named), "claimed": list(read[said].claimed),
                "instructed": [key for key in read[said].claimed if key in prompted],
                "suggested": [key for key in read[said].claimed if key in asked[line["question"]]],
                "excluded": excluded,
            }
        )  # fmt: skip
    return rows


def _check_battery(plan: Mapping[str, Any]) -> None:
    found = battery_hash(plan["battery"])
    if found != plan["battery_hash"]:
        raise EvidenceError(
            "plan, battery", found, f"{plan['battery_hash']}, the hash in the plan",
            "Take the bundle from its source again",
        )  # fmt: skip


def _place(
    plan: Mapping[str, Any],
    line: Mapping[str, Any],
    known: Mapping[str, Mapping[str, str]],
    number: int,
) -> tuple[str, str, int]:
    role, question, sample = line["role"], line["question"], line["sample"]
    entry = known.get(question, {})
    told = (line["language"], line["kind"])
    roles = ("suspect", *plan["controls"])
    planned = role in roles and sample in range(plan["samples"])
    if not planned or told != (entry.get("language"), entry.get("kind")):
        raise EvidenceError(
            f"answers.jsonl, line {number}", f"sample {sample} of {role} to {question} {told}",
            "a role, question and sample of the plan", "Take the bundle from its source again",
        )  # fmt: skip
    return role, question, sample


def prompts(lines: Lines) -> dict[str, str]:
    """Role -> what its chat template shows the model around a question, where that can be seen."""
    found: dict[str, str] = {}
    for line in lines.get("models", ()):
        found[line["role"]] = found.get(line["role"], "") + "\n" + (line["prompt"] or "")
    return found


# ---- names ----


class _Identity:
    """Finds one identity's forms; a genitive s may follow ('Googles Modell')."""

    def __init__(self, forms: Sequence[str], cased: Sequence[str]) -> None:
        self._any, self._cased = list(forms), list(cased)
        # Looking for plain substrings first makes reading an answer fifty times as fast.
        self._sought = [plain(form).casefold() for form in [*forms, *cased]]

    def spans(self, folded: str) -> list[tuple[int, int]]:
        """(start, end) of each mention in a `plain` text."""
        lower = folded.casefold()
        if not any(form in lower for form in self._sought):
            return []
        return [m.span() for found in self._patterns for m in found.finditer(folded)]

    @cached_property
    def _patterns(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        whole = ("latin",)
        return (
            pattern(_with_genitive(self._any), whole=whole),
            pattern(_with_genitive(self._cased), cased=True, whole=whole),
        )


def _with_genitive(forms: Iterable[str]) -> list[str]:
    return [form + ending for form in forms for ending in ("", "s")]


# ---- clauses ----

_WORDS = tuple(SCRIPTS)

# Marks after compatibility folding, which turns '？' into '?', '，' into ',' and so on. A full stop
# between letters or digits belongs to a name ('x.ai', 'GPT-3.5'), a comma between digits to a
# number.
_MARK = re.compile(
    r"(?P<question>[?؟])|(?P<sentence>[!。।॥;؛—\n¿¡]|\.(?=\W|$)|:(?=\s|$)|\s[-–]\s)"
    r"|(?P<list>(?<!\d),|,(?!\d)|[،、])"
)


@dataclass(frozen=True, slots=True)
class _Clause:
    """A piece of an answer that one negation can rule."""

    text: str
    """In plain form."""
    ends: str
    """question, sentence, list (a comma) or break (a conjunction)."""


class _Rules:
    """The words of the languages that hold in one answer."""

    def __init__(self, languages: Sequence[Mapping[str, Sequence[str]]]) -> None:
        def words(kind: str) -> re.Pattern[str]:
            forms = [word for language in languages for word in language.get(kind, ())]
            return pattern(forms, whole=_WORDS)

        self.before, self.after = words("before"), words("after")
        self.breaks, self.carries = words("breaks"), words("carries")
        self.follows = re.compile(rf"\W*(?:{words('follows').pattern})", re.IGNORECASE)


def _clauses(text: str, rules: _Rules) -> list[_Clause]:
    """The clauses of an answer, in order; a conjunction stays with the clause before it."""
    folded = unicodedata.normalize("NFKC", text)
    found: list[_Clause] = []
    start = 0
    for mark in [*_MARK.finditer(folded), None]:
        piece = plain(folded[start : mark.start() if mark else None])
        ends = (mark.lastgroup or "sentence") if mark else "sentence"
        begin = 0
        for conjunction in rules.breaks.finditer(piece):
            found.append(_Clause(piece[begin : conjunction.end()], "break"))
            begin = conjunction.end()
        found.append(_Clause(piece[begin:], ends))
        start = mark.end() if mark else start
    return found


# ---- negations ----


Spans = Sequence[Mapping[str, Sequence[tuple[int, int]]]]
"""Of each clause: identity -> where it is named."""


def _carried(clauses: Sequence[_Clause], spans: Spans, rules: _Rules) -> list[bool]:
    """Whether each clause goes on with the negation before it: after a comma, names and little
    else ('I am not A, B or C').
    """
    result: list[bool] = []
    open_ = False  # whether a negation stands in the clause before, or was carried into it
    for at, clause in enumerate(clauses):
        goes_on = open_ and at > 0 and clauses[at - 1].ends == "list"
        result.append(goes_on and _only_names(clause.text, spans[at], rules))
        open_ = result[-1] or rules.before.search(clause.text) is not None
    return result


def _only_names(text: str, spans: Mapping[str, Sequence[tuple[int, int]]], rules: _Rules) -> bool:
    left = list(text)
    for start, end in (span for found in spans.values() for span in found):
        left[start:end] = " " * (end - start)
    return not re.search(r"[^\W\d_]", rules.carries.sub(" ", "".join(left)))


def _negated(
    clauses: Sequence[_Clause], spans: Spans, at: int, span: tuple[int, int], rules: _Rules
) -> bool:
    """Whether one mention is negated by the words of its clause."""
    text = clauses[at].text
    if rules.before.search(text[: span[0]]) or rules.follows.match(text[span[1] :]):
        return True
    # Where negations come last, they rule a list of names before them, commas and all.
    behind = text[span[1] :]
    ends_with_it = not re.search(r"\w", behind)
    while clauses[at].ends == "list" and at + 1 < len(clauses) and ends_with_it:
        at += 1
        behind = clauses[at].text
        ends_with_it = _only_names(behind, spans[at], rules)
    return rules.after.search(behind) is not None
