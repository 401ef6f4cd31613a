"""Text as data: tagged hashes of vocabularies, a normal form, and how near two texts are.

In: strings and vocabularies. Out: hashes, normalised texts, and the pairs that are the same or
nearly so. Nothing here reads files or knows of exchanges; what is done with a pair (drop it,
refuse the run) is the caller's word.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

__all__ = [
    "NEAR", "Near", "bare_url", "near_duplicates", "ngrams", "normalise", "seed_from", "similarity",
    "tokenizer_hash",
]  # fmt: skip

NEAR = 0.8
"""Similarity from which two prompts count as near duplicates: a changed word or two in a
sentence. Ours, by hand."""

# Characters of an n-gram: long enough that unrelated sentences share few (99.9 % of random pairs of
# examples/prompts are under 0.1 similar), short enough that one changed word costs a short prompt
# little.
_NGRAM = 5
_PIECE = re.compile(r"\w+|[^\w\s]")
# Marks that a person or an editor changes without changing the question; operators (+ - * / = < >)
# are not among them.
_MARKS = frozenset(".,;:!?…\"'`´“”„‘’‚«»()[]{}¿¡")


def bare_url(url: str) -> str:
    """A URL without the user and password in it, which let somebody in.

    Raises:
        ValueError: brackets of an address that do not match.
    """
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def tokenizer_hash(vocabulary: Mapping[str, int]) -> str:
    """'t1:' and the SHA-256 of the canonical {token: id}, whatever order the entries come in.

    Token ids of two models mean the same exactly when these hashes are equal. Pass the whole
    vocabulary, added and special tokens included.
    """
    # ASCII escapes, so that tokens holding half a surrogate pair hash too.
    canonical = json.dumps(
        {token: int(number) for token, number in vocabulary.items()},
        sort_keys=True, separators=(",", ":"), ensure_ascii=True,
    )  # fmt: skip
    return "t1:" + hashlib.sha256(canonical.encode()).hexdigest()


def seed_from(text: str) -> int:
    """A sampler's seed, 0 to 2^31 - 1, that follows from a text.

    31 bits: llama.cpp reads an unsigned 32-bit seed whose highest value means 'random'.
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") & 0x7FFFFFFF


def normalise(text: str) -> str:
    """The text in compatibility form and lower case, without quotation and sentence marks.

    Words, numbers and operators stand one space apart.
    Two prompts with the same normal form ask the same: '  What is 2+2 ? ' and 'what is 2 + 2'.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(piece for piece in _PIECE.findall(folded) if piece not in _MARKS)


def ngrams(text: str, n: int = _NGRAM) -> frozenset[str]:
    """The distinct runs of `n` characters of the normal form; a shorter text is one run."""
    normal = normalise(text)
    if len(normal) <= n:
        return frozenset([normal]) if normal else frozenset()
    return frozenset(normal[i : i + n] for i in range(len(normal) - n + 1))


def similarity(a: str, b: str) -> float:
    """Jaccard similarity of the texts' n-grams, 0 to 1; 1 for texts of one normal form.

    Two texts without any n-gram (nothing but marks and spaces) have similarity 1.
    """
    if normalise(a) == normalise(b):
        return 1.0
    left, right = ngrams(a), ngrams(b)
    return len(left & right) / len(left | right)


@dataclass(frozen=True, slots=True)
class Near:
    """A pair that is the same or nearly so."""

    index: int
    """Position among the held-out texts."""
    other: int
    """Position among the other texts."""
    similarity: float
    """Jaccard similarity of their n-grams; 1 for equal normal forms."""
    exact: bool
    """Whether the normal forms are equal."""


def near_duplicates(
    held_out: Sequence[str], others: Iterable[str], threshold: float = NEAR
) -> Iterator[Near]:
    """Every pair at or above `threshold`, in the order of `others`; no pair is missed.

    Only the held-out texts are kept in memory, `others` are streamed. Cost: one look-up an n-gram
    of `others`, and one count for each held-out text that has it too.
    """
    grams = [ngrams(text) for text in held_out]
    having: defaultdict[str, list[int]] = defaultdict(list)
    normal: defaultdict[str, list[int]] = defaultdict(list)
    for index, text in enumerate(held_out):
        normal[normalise(text)].append(index)
        for gram in grams[index]:
            having[gram].append(index)
    for position, text in enumerate(others):
        same = normal.get(normalise(text), [])
        yield from (Near(index, position, 1.0, True) for index in same)
        own = ngrams(text)
        shared = Counter(index for gram in own for index in having.get(gram, ()))
        for index, count in sorted(shared.items()):
            near = count / (len(own) + len(grams[index]) - count)
            if near >= threshold and index not in same:
                yield Near(index, position, near, False)
