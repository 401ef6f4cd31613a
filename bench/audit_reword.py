"""Light rewording of answers, as somebody does in passing who would hide where a text is from.

In: a text and a salt. Out: the text with phrases of a small table replaced and some sentences
turned round or joined, the same for the same salt; and how much that changed. Meaning is kept, the
tokens are not. Nothing here knows of models.
"""

from __future__ import annotations

import difflib
import hashlib
import re

# A phrase of the table is replaced with this chance, a sentence turned round or joined with half.
_PHRASES_REPLACED = 0.75
_SENTENCES_CHANGED = 0.5

_TABLE = """
to find out = to work out / to learn; to find = to work out / to determine
to calculate = to compute / to work out; to determine = to find / to establish
to solve this problem = to answer this / to solve this; calculate = compute / work out
let's break it down = let us take it apart / let us look at its parts; let's = let us
step by step = one step at a time / in steps; start by = begin by; add up = sum up / put together
we need to = we have to / we must; you need to = you have to / you must; want to = wish to
we know that = it is given that / we are told that; first, = to begin with, / to start,
next, = then, / after that,; finally, = lastly, / in the end,; therefore, = hence, / that means
so, = thus, / hence,; because = since; however, = yet / still,; in addition, = besides, / moreover,
for example, = for instance, / say,; such as = like; in order to = to; a lot of = plenty of
total number of = overall number of / whole number of; the number of = the count of
total amount of = overall amount of / whole amount of; total cost = overall cost / whole cost
multiply = take the product of; subtract = take away / deduct; is equal to = equals / comes to
each = every; per = for each / a; remaining = left over / rest of the; during = in the course of
important = essential / significant; make sure = ensure / see to it; help you = assist you
provide = give / offer; will be = is going to be; it is = it's; do not = don't; cannot = can't
here are = these are; here is = this is; here's = this is; big = large; great = excellent
children = kids; purchased = bought; bought = purchased; we can = one can / we may; use = apply
it's = it is; i'm = I am; you're = you are; that's = that is; don't = do not; i'll = I will
doesn't = does not; isn't = is not; is not = isn't; can't = cannot; i've = I have
can be = may be; but = yet / though; to help = to aid; to create = to make / to build
to make = to prepare / to produce; also = likewise; just = simply / only; often = frequently
people = folks; a few = some / several; a little = a bit; a bit = a little; that can = which can
that is = which is; which is = that is; known as = called; there's = there is
always = at all times; understand = grasp; around = about; the answer is = the result is
consider = think about; one of the = among the; as well as = and; and then = and after that
designed to = made to; in this case = here; to get = to obtain; has to = must
"""
_PHRASES: dict[str, list[str]] = {
    old.strip(): [new.strip() for new in others.split("/")]
    for old, others in (entry.split("=") for entry in re.split(r";|\n", _TABLE.strip()))
}
_LONGEST_FIRST = sorted(_PHRASES, key=len, reverse=True)
_WORDS = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, _LONGEST_FIRST))})(?!\w)", re.IGNORECASE)
_AIM = re.compile(  # at the beginning of a sentence
    r"(?:(?<=^)|(?<=[.!?] )|(?<=\n))"
    r"To ([^,.\n]+), (we|you|I) (need to|can|must|should) ([^.\n]+)\."
)
_TWO_SENTENCES = re.compile(r"(?<=[a-z])\. (It|This|They|You|We|There|The) ")


def reword(text: str, *, salt: str) -> str:
    """The text without its opener and with numbered points marked otherwise, some aims put behind
    what is done for them, some sentences joined, most phrases of the table replaced.
    """

    def chance(kind: str, place: int) -> float:
        digest = hashlib.sha256(f"{salt} {kind} {place}".encode()).digest()
        return int.from_bytes(digest[:4], "big") / 2**32

    def turned(found: re.Match[str]) -> str:
        after = f"{_capital(found[2])} {found[3]} {found[4]} to {found[1]}."
        return after if chance("aim", found.start()) < _SENTENCES_CHANGED else found[0]

    def joined(found: re.Match[str]) -> str:
        is_joined = chance("join", found.start()) < _SENTENCES_CHANGED
        return f"; {found[1].lower()} " if is_joined else found[0]

    def other(found: re.Match[str]) -> str:
        if chance("phrase", found.start()) >= _PHRASES_REPLACED:
            return found[0]
        choices = _PHRASES[found[0].lower()]
        chosen = choices[int(chance("which", found.start()) * len(choices))]
        return _capital(chosen) if found[0][0].isupper() else chosen

    text = re.sub(r"^(Sure|Certainly|Of course|Absolutely)[!,.]\s+", "", text)
    text = re.sub(r"(?m)^(\s*\d+)\. ", r"\1) ", text)
    return _WORDS.sub(other, _TWO_SENTENCES.sub(joined, _AIM.sub(turned, text)))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def changed_share(before: str, after: str) -> float:
    """1 - 2 * words in common, in their order, / words of both; 0 of equal texts."""
    old, new = before.split(), after.split()
    same = difflib.SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks()
    both = len(old) + len(new)
    return 1 - 2 * sum(block.size for block in same) / both if both else 0.0
