"""Text of simulated people and programs, from small lexicons.

In: a seed and a number of bytes. Out: sentences and requests in nine languages, code, tables, logs
and records. `Writer` is seeded before each
piece, so that any piece can be made again. What the pieces are put together to is the business of
`simulate_text` and `simulate_wrappers`.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from stillhouse.guard.simulate_accounts import LANGUAGES

__all__ = ["Writer", "mix", "pieces"]

Spun = tuple[Any, ...]

_MASK = (1 << 64) - 1


def mix(*numbers: int) -> int:
    """64 well mixed bits of some whole numbers (splitmix64's finaliser)."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state ^ number) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state


@cache
def pieces(name: str) -> Any:
    """The contents of `simulate_NAME.yaml`, read once."""
    file = resources.files("stillhouse.guard").joinpath(f"simulate_{name}.yaml")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(file.read_text("utf-8"), loader)


@dataclass(frozen=True, slots=True)
class _Lexicon:
    slots: tuple[tuple[str, ...], ...]
    """Lists a sentence takes one entry each of, in order."""
    lists: dict[str, tuple[str, ...]]
    space: str
    stop: str
    width: float
    """Bytes of a character, about."""


# Names by syllables; initials and the rest. Made up: whoever has one has it by chance.
_NAMES = {
    "zh": (
        "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗",
        "伟芳娜敏静丽强磊军洋勇艳杰娟涛明超霞平刚桂文英华玉",
    ),
    "ja": (
        "田中山本小林加藤吉井松木清水森池橋石川前岡長",
        "太子郎美介奈人香也恵実里真一花菜悠翔陽葵",
    ),
}
_HEADS = ("Al", "Be", "Ca", "Da", "El", "Fa", "Go", "Ha", "I", "Jo", "Ka", "Li", "Ma", "No", "O",
          "Pe", "Ra", "Sa", "To", "U", "Vi", "We", "Ya", "Ze")  # fmt: skip
_TAILS = ("ra", "lin", "mo", "dar", "na", "vek", "tis", "lo", "ren", "ka", "bo", "shi", "dor", "mi",
          "sen", "ta", "wick", "ley", "zan", "ri")  # fmt: skip
_VERBS = ("load", "parse", "merge", "send", "build", "check", "fetch", "split", "count", "render",
          "store", "group", "trim", "score", "retry", "map", "close", "sync")  # fmt: skip
_NOUNS = ("order", "user", "row", "batch", "token", "page", "image", "price", "queue", "cache",
          "date", "path", "node", "record", "limit", "reply", "ticket", "frame",
          "index")  # fmt: skip
_CODE = (
    "def {f}({a}, {b}={n}):", "    {a} = [x for x in {b} if x.{c} > {n}]", "    return {f}({a})",
    "const {a} = await {f}({b}, {{ {c}: {n} }});",
    "if ({a}.{b} === null) {{ throw new Error('{c}'); }}",
    "SELECT {a}, count(*) FROM {b} WHERE {c} > {n} GROUP BY {a};", "for {a} in range({n}):",
    "    {a}[{b}] += {c} * {n}", "    with open({a}) as {b}:",
    "    raise ValueError(f'{c} {{{a}}}')",
    "public {a} {f}(int {b}) {{", "    this.{c} = {b} % {n};", "    logger.info('{f} %s', {a})",
    "import {a}.{b}", "let mut {a} = Vec::with_capacity({n});", "    {a}.push({f}({b})?);", "}}",
    "    assert {f}({n}) == {c}, {a}", "    try: {a} = {f}({b})", "    except KeyError: {c} = None",
)  # fmt: skip
_LEVELS = ("INFO", "INFO", "WARN", "ERROR", "DEBUG")
_MATHS = (
    "{name} buys {n} {what} for {n} coins each and sells {n} for {n} coins each. How much is left?",
    "A tank holds {n} litres. It fills at {n} litres an hour and leaks {n}. When is it full?",
    "Find all x with {n}x^2 + {n}x - {n} = 0.",
    "What is the remainder of {n}^{n} divided by {n}?",
    "{name} walks {n} km in {n} hours, {name} cycles {n} km in {n} hours. Who is faster?",
    "How many ways are there to seat {n} guests at a round table, {name} next to {name}?",
    "A box has {n} red and {n} blue marbles; two are drawn. What is the chance that both are red?",
    "The sum of {n} consecutive integers is {n}. Which is the smallest?",
    "Compute the integral of {n}x^{n} + {n} from 0 to {n}.",
    "If {n} workers need {n} days for {n} {what}, how long do {n} workers take?",
)
_SLOT = re.compile(r"\{(\w+)\}")


class Writer:
    """Makes text. `seed` it, then call in a fixed order: the same seed, the same text."""

    def __init__(self) -> None:
        """Read the lexicons."""
        self.random = random.Random(0)
        # For whole numbers `random.Random.seed` does no more, at twice the cost.
        self._seed = super(random.Random, self.random).seed
        self._lexicons = {code: _lexicon(code) for code in LANGUAGES}
        self._spun: dict[str, Spun] = {}

    def seed(self, *numbers: int) -> None:
        """Start again from here."""
        self._seed(mix(*numbers))

    # `random.random` only: its sequence is the same in every release of Python

    def below(self, limit: int) -> int:
        """0 to `limit` - 1."""
        return int(self.random.random() * limit)

    def chance(self, share: float) -> bool:
        """True with this probability."""
        return self.random.random() < share

    def one(self, values: Any) -> Any:
        """One of a sequence."""
        return values[int(self.random.random() * len(values))]

    def width(self, language: str) -> float:
        """Bytes of a character, about."""
        return self._lexicons[language].width

    def stop(self, language: str) -> str:
        """What ends a sentence, with the space after it."""
        return self._lexicons[language].stop

    # ---- words ----

    def number(self) -> str:
        """A whole number, small ones being commoner."""
        return str(1 + int(10 ** (3 * self.random.random())))

    def name(self, language: str) -> str:
        """A person's name."""
        if language in _NAMES:
            first, rest = _NAMES[language]
            return self.one(first) + self.one(rest) + (self.one(rest) if self.chance(0.6) else "")
        given = self.one(_HEADS) + self.one(_TAILS)
        return given + " " + self.one(_HEADS) + self.one(_TAILS) + self.one(_TAILS)

    def firm(self) -> str:
        """A firm's or product's name."""
        return (
            self.one(_HEADS)
            + self.one(_TAILS)
            + self.one(_TAILS)
            + self.one(("", "", "ly", " AG", "io"))
        )

    def place(self) -> str:
        """A place's name."""
        return self.one(_HEADS) + self.one(_TAILS) + self.one(("ville", "stad", "berg", "ton", "a"))

    def word(self, language: str, group: str) -> str:
        """An entry of a lexicon's list."""
        return self._filled(self.one(self._lexicons[language].lists[group]), language)

    def _filled(self, text: str, language: str) -> str:
        if "{" not in text:
            return text
        return _SLOT.sub(lambda found: self._slot(found[1], language), text)

    def _slot(self, slot: str, language: str) -> str:
        if slot == "n":
            return self.number()
        if slot == "name":
            return self.name(language)
        if slot == "place":
            return self.place()
        if slot == "what":
            return self.one(_NOUNS) + "s"
        if slot in ("key", "target"):
            return self.one(pieces("apps")[slot + "s"])
        return self.firm()

    # ---- longer ----

    def sentence(self, language: str) -> str:
        """A sentence, with what ends it."""
        lexicon, draw = self._lexicons[language], self.random.random
        words = [entries[int(draw() * len(entries))] for entries in lexicon.slots]
        return self._filled(lexicon.space.join(words), language) + lexicon.stop

    def passage(self, language: str, size: float) -> str:
        """Sentences of at least `size` bytes together, about; at least one."""
        width = self._lexicons[language].width
        text = self.sentence(language)
        while len(text) * width < size:
            text += self.sentence(language)
        return text.rstrip()

    def request(self, language: str) -> str:
        """What a person asks for, in a line."""
        lexicon = self._lexicons[language].lists
        ask, topic = self.one(lexicon["ask"]), self.one(lexicon["topic"])
        text = (
            self.one(lexicon["open"]) + ask + self._lexicons[language].space + topic
            + self.one(lexicon["angle"])
        )  # fmt: skip
        if language not in ("zh", "ja") and not self.chance(0.3):
            text += self.one((".", "?", "", ","))
        return self._filled(text + self.one(lexicon["close"]), language)

    def problem(self, language: str) -> str:
        """A word problem, or its equation where the language has no words for it."""
        if language == "en":
            return self._filled(self.one(_MATHS), language)
        return (
            self.sentence(language) + f"{self.number()}x + {self.number()} = {self.number()}, x = ?"
        )

    def code(self, size: float) -> str:
        """Lines that look like code."""
        names = [f"{self.one(_VERBS)}_{self.one(_NOUNS)}", *(self.one(_NOUNS) for _ in range(3))]
        lines, length = [], 0
        while length < size or not lines:
            if self.chance(0.3):
                names[self.below(4)] = self.one(_NOUNS) + self.one(("", "s", "_id", "_ref", "2"))
            line = self.one(_CODE).format(
                f=names[0], a=names[1], b=names[2], c=names[3], n=self.number()
            )
            lines.append(line)
            length += len(line) + 1
        return "\n".join(lines)

    def table(self, size: float) -> str:
        """Comma-separated values under a header."""
        keys = pieces("apps")["keys"]
        heads = [self.one(keys) for _ in range(2 + self.below(4))]
        lines = [",".join(["id", *heads])]
        length = len(lines[0])
        while length < size or len(lines) < 3:
            cells = [f"{self.random.random() * 10 ** self.below(5):.2f}" for _ in heads]
            line = ",".join([f"{self.one(_NOUNS)}{self.number()}", *cells])
            lines.append(line)
            length += len(line) + 1
        return "\n".join(lines)

    def logs(self, size: float) -> str:
        """Lines of a program's log."""
        lines, length = [], 0
        while length < size or not lines:
            clock = (
                f"{self.below(24):02}:{self.below(60):02}:{self.below(60):02}.{self.below(1000):03}"
            )
            part = f"{self.one(_NOUNS)}-{self.one(_VERBS)}[{self.number()}]"
            said = f"{self.one(_VERBS)} {self.one(_NOUNS)}={self.number()}"
            line = f"{clock} {self.one(_LEVELS)} {part} {said}"
            lines.append(line)
            length += len(line) + 1
        return "\n".join(lines)

    def record(self, size: float) -> str:
        """One object as JSON."""
        keys = pieces("apps")["keys"]
        fields, length = [], 0
        while length < size or not fields:
            value = f'"{self.firm()} {self.number()}"' if self.chance(0.6) else self.number()
            fields.append(f'"{self.one(keys)}": {value}')
            length += len(fields[-1]) + 2
        return "{" + ", ".join(fields) + "}"

    # ---- templates ----

    def spin(self, text: str, language: str = "en") -> str:
        """A template with one of each `{a|b}` drawn and its slots filled."""
        tree = self._spun.get(text)
        if tree is None:
            tree = self._spun[text] = _tree(text)
        return self._spin(tree, language)

    def _spin(self, tree: Spun, language: str) -> str:
        found = []
        for part in tree:
            if isinstance(part, str):
                found.append(part)
            elif len(part) == 1:
                found.append(self._slot(part[0][0], language))
            else:
                found.append(self._spin(self.one(part), language))
        return "".join(found)


def _lexicon(code: str) -> _Lexicon:
    found = pieces("words")[code]
    lists = {name: tuple(v) for name, v in found.items() if isinstance(v, list) and name != "order"}
    width = {"zh": 3.0, "ja": 3.0, "ru": 1.85, "ar": 1.8}.get(code, 1.02)
    slots = tuple(lists[name] for name in found["order"])
    return _Lexicon(slots, lists, found["space"], found["stop"], width)


def _tree(text: str) -> Spun:
    """Strings, and tuples of alternatives (each a tree) for what stood in braces."""
    parts: list[Any] = []
    begin = at = 0
    while at < len(text):
        if text[at] == "{":
            if at > begin:
                parts.append(text[begin:at])
            depth, options, start = 1, [], at + 1
            at += 1
            while depth:
                if text[at] == "{":
                    depth += 1
                elif text[at] == "}":
                    depth -= 1
                if depth == 0 or (depth == 1 and text[at] == "|"):
                    options.append(_tree(text[start:at]))
                    start = at + 1
                at += 1
            parts.append(tuple(options))
            begin = at
        else:
            at += 1
    if begin < len(text):
        parts.append(text[begin:])
    return tuple(parts)
