"""Which (window, token) pairs of a watermark test count, and how many of them are green.

In: raw lines of an audit: token ids of prompts and of a suspect's answers, or of served text and of
what the suspect predicted in its place. Out: the pairs that count, each once, a count of all other
tokens by reason, and green pairs by key. Pairs are chosen without the key: what comes often counts
once (common pairs would weigh as much as they are common, and the binomial would not hold), and
what a prompt, or the text just read, may have put into the suspect's mouth does not count.

Source: Sander et al. (arXiv 2402.14904), whose rules these are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stillhouse.errors import EvidenceError
from stillhouse.watermark import Watermark

__all__ = ["Lines", "Pairs", "green_pairs", "scored_pairs", "windows_of"]

Lines = Mapping[str, Sequence[Mapping[str, Any]]]
Window = tuple[int, ...]


class Pairs(NamedTuple):
    """The pairs that count, each once, and how many answer tokens were left out why."""

    windows: npt.NDArray[np.int64]
    """(N, width)."""
    tokens: npt.NDArray[np.int64]
    """(N,)."""
    excluded: dict[str, int]


def scored_pairs(plan: Mapping[str, Any], lines: Lines) -> Pairs:
    """The pairs that count; the key has no part in it.

    Windows lie wholly inside the answer. In generation mode a window of the answer's own prompt
    does not count; in reading mode none that stands anywhere before in the text read: what followed
    it there was drawn by the key, and any model may repeat it. Where a window comes first, nothing
    read so far depends on its list.

    Raises:
        EvidenceError: token ids of another vocabulary than the key's.
    """
    width, most = plan["watermark"]["width"], plan["pairs"]
    reading = plan["mode"] == "reading"
    known = _known(plan, lines)
    kept: dict[tuple[Window, int], None] = {}
    excluded: Counter[str] = Counter()
    for before, ids, said in _texts(plan, lines, excluded):
        barred = set(windows_of([*before, *ids[: width - 1]] if reading else before, width))
        excluded["no whole window before it"] += min(width, len(said))
        for window, token in zip(windows_of(ids, width), said[width:], strict=False):
            pair = (window, token)
            if window in barred:
                excluded[_BARRED[plan["mode"]]] += 1
            elif known is not None and window not in known:
                excluded["window not in the served text"] += 1
            elif pair in kept:
                excluded["pair counted before"] += 1
            elif len(kept) == most:
                excluded[f"beyond the first {most} pairs"] += 1
            else:
                kept[pair] = None
            if reading:
                barred.add(window)
    counted = {reason: count for reason, count in sorted(excluded.items()) if count}
    windows = np.array([window for window, _ in kept], np.int64).reshape(-1, width)
    return Pairs(windows, np.array([token for _, token in kept], np.int64), counted)


_BARRED = {
    "generation": "window stands in the prompt",
    "reading": "window stands before in the text read",
}


def windows_of(ids: Sequence[int], width: int) -> Iterator[Window]:
    """Every run of `width` token ids, in order."""
    return zip(*(ids[start:] for start in range(width)), strict=False)


def _known(plan: Mapping[str, Any], lines: Lines) -> set[Window] | None:
    """Windows of the served text, where only those count.

    Windows, never pairs: which token follows in marked text is what the key decided.
    """
    if not plan["known_windows"]:
        return None
    width = plan["watermark"]["width"]
    return {window for line in lines["served"] for window in windows_of(line["ids"], width)}


def _texts(
    plan: Mapping[str, Any], lines: Lines, excluded: Counter[str]
) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """(prompt ids, ids that make the windows, ids that are scored), in the order of asking."""
    prompts = {line["number"]: line["ids"] for line in lines["prompts"]}
    reading = plan["mode"] == "reading"
    served = {line["number"]: line["ids"] for line in lines["served"]} if reading else {}
    name = "readings" if reading else "answers"
    for line in sorted(lines[name], key=lambda line: line["number"]):
        if "failed" in line:
            excluded["text that could not be read" if reading else "answer that never came"] += 1
            continue
        if line["tokenizer"] != plan["watermark"]["tokenizer"]:
            raise EvidenceError(
                f"{name}.jsonl, number {line['number']}",
                f"token ids of the vocabulary {line['tokenizer']}",
                f"of {plan['watermark']['tokenizer']}, which the key marks",
                "Take token ids of the vocabulary that was marked",
            )  # fmt: skip
        if reading:
            yield prompts[line["number"]], served[line["number"]], line["predicted"]
        else:
            yield prompts[line["prompt"]], line["ids"], line["ids"]


def green_pairs(pairs: Pairs, marks: Sequence[Watermark]) -> list[int]:
    """How many of the pairs are green under each key."""
    windows, place = np.unique(pairs.windows, axis=0, return_inverse=True)
    return [
        int(mark.is_green(mark.seeds(windows)[place.ravel()], pairs.tokens).sum()) for mark in marks
    ]
