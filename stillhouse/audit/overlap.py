"""How alike two texts are: the F-score of their character n-grams.

In: two texts. Out: a share in [0, 1]. It needs no tokenizer and works for any script. Used where a
suspect gives text only; both answers of a pair are held against the same text of the suspect's.
"""

from __future__ import annotations

from collections import Counter

__all__ = ["overlap"]

_LONGEST = 6
"""Characters of the longest n-gram, as in chrF."""


def overlap(first: str, second: str) -> float:
    """The mean F1 over n = 1..6 of the multisets of character n-grams; 0 where a text has none.

    Runs of white space count as one space. Symmetric.

    Source: chrF, Popovic (2015), with beta = 1 and n-grams across words.
    """
    one, two = (" ".join(text.split()) for text in (first, second))
    scores: list[float] = []
    for n in range(1, _LONGEST + 1):
        grams = [Counter(t[i : i + n] for i in range(len(t) - n + 1)) for t in (one, two)]
        sizes = [sum(g.values()) for g in grams]
        if not min(sizes):
            break
        scores.append(2 * (grams[0] & grams[1]).total() / sum(sizes))
    return sum(scores) / _LONGEST if scores else 0.0
