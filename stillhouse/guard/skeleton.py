"""The template of a campaign, without its payloads: what its accounts' requests have in common.

In: texts of a campaign's requests, by customer. Out: skeletons in which only words stand that most
of the texts share; the rest is a mark. What single customers wrote is shown to nobody.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from stillhouse.guard.mask import UNSPACED

__all__ = ["PAYLOAD", "Skeleton", "ends", "skeletons"]

PAYLOAD = "[…]"
"""Stands for whatever the texts do not share."""

_SHARED = 0.8  # share of the texts (and of the customers) that a shown word stands in, at least
_FEWEST = 4  # texts of that many customers; of fewer, a shared word could be one's own
_MOST = 3  # wordings that are shown
_LONGEST = 160  # words of a skeleton that are shown
_BEGINNING = 3  # words by which texts are told apart as wordings
_EITHER_END = 2048  # characters of a text that are looked at: a wrapper stands at an end
# One character of a script that writes no spaces is a word, or a whole text would be one.
_WORD = re.compile(rf"\s*(?:[{UNSPACED}]|[^\s{UNSPACED}]+)")


@dataclass(frozen=True, slots=True)
class Skeleton:
    """One wording of a template."""

    text: str
    texts: int
    """Texts it was made of."""
    customers: int


def skeletons(texts: Sequence[tuple[int, str]]) -> list[Skeleton]:
    """The commonest wordings of the template behind some texts.

    Args:
        texts: (customer, text) of requests.

    Returns:
        At most three, those of most texts first; wordings of fewer than four customers are left
        out.
    """
    groups: dict[tuple[str, ...], list[tuple[int, list[str]]]] = {}
    rest = [(customer, words) for customer, text in texts if (words := _words(text))]
    for side in (1, -1):
        # Wrappers stand at either end: texts are grouped by whichever end they share.
        common = Counter(_end(words, side) for _, words in rest)
        left: list[tuple[int, list[str]]] = []
        for customer, words in rest:
            end = _end(words, side)
            if common[end] >= _FEWEST:
                groups.setdefault((str(side), *end), []).append((customer, words))
            else:
                left.append((customer, words))
        rest = left
    found = [made for group in groups.values() if (made := _skeleton(group)) is not None]
    return sorted(found, key=lambda one: -one.texts)[:_MOST]


def ends(text: str) -> str:
    """What of a text is looked at, for those who keep many: the whole of a short one."""
    if len(text) <= 2 * _EITHER_END:
        return text
    return f"{text[:_EITHER_END]}\n{text[-_EITHER_END:]}"


def _words(text: str) -> list[str]:
    """Words with the space before them; of a long text the first and the last."""
    if len(text) > 2 * _EITHER_END:
        return _words(text[:_EITHER_END]) + _words("\n" + text[-_EITHER_END:])
    return _WORD.findall(text.rstrip())  # space at the end would be tried from each of its places


def _end(words: Sequence[str], side: int) -> tuple[str, ...]:
    some = words[:_BEGINNING] if side > 0 else words[-_BEGINNING:]
    return tuple(word.strip().casefold() for word in some)


def _skeleton(group: Sequence[tuple[int, list[str]]]) -> Skeleton | None:
    customers = {customer for customer, _ in group}
    if len(customers) < _FEWEST:
        return None
    stands = Counter(word for _, words in group for word in {_plain(w) for w in words})
    by = Counter(
        word
        for customer in customers
        for word in {_plain(w) for other, words in group if other == customer for w in words}
    )
    shared = {
        word
        for word, count in stands.items()
        if count >= _SHARED * len(group) and by[word] >= _SHARED * len(customers)
    }
    # Of all texts the shortest: what is shared stands in it in its order, with the least between.
    model = min((words for _, words in group), key=len)
    shown: list[str] = []
    for word in model[:_LONGEST]:
        if _plain(word) in shared:
            shown.append(word)
        elif not shown or shown[-1] != f" {PAYLOAD}":
            shown.append(f" {PAYLOAD}")
    if not any(word.strip() != PAYLOAD for word in shown):
        return None
    return Skeleton("".join(shown).strip(), len(group), len(customers))


def _plain(word: str) -> str:
    return word.strip().casefold()
