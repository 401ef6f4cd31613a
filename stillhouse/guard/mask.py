"""What of a text stays the same when its payload changes: the masked words of many texts at once.

In: texts. Out: `Masked`: their words in one byte buffer, in lower case, without marks. Numbers,
quoted passages, code between back quotes, links and very long words stand as placeholders. A word
is a run of letters, or one character of a script that writes no spaces (Chinese, Japanese, Thai,
also Korean), so that any language works. Everything is done on whole buffers with numpy: about
ten passes over the bytes of a batch. Nothing here is keyed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["CAP", "PAD", "UNSPACED", "Masked", "capped", "mask"]

CAP = 4096
"""Characters of a text that are looked at: half from its beginning, half from its end, where
wrappers stand. Ours; research put the newest turn's cap at about 4 KB."""
PAD = 32
"""Bytes behind the last text, so that windows may be read over its end."""
UNSPACED = "\u0e00-\u0eff\u3040-\udfff"
"""Characters that are words of their own, as a class of a regular expression has them; on bytes
`_beyond_ascii` finds the same."""

_LONG = 24  # characters of a word that is no word of a language but a hash or an encoding
_HELD, _NUMBER, _SPACE, _QUOTE, _END = 0x01, 0x30, 0x20, 0x22, 0xFF  # 0xFF occurs in no UTF-8 text
_LINK = re.compile(rb"https?://[^ \xff]*")
# Whitespace and control characters become spaces, digits 0.
_PLAIN = bytes(
    _SPACE if code < 33 or code == 127 else _NUMBER if 48 <= code <= 57 else code
    for code in range(256)
)  # fmt: skip
_LETTERS = np.zeros(256, bool)
_LETTERS[[*range(97, 123), _NUMBER, 95, *range(128, 255)]] = True  # a-z, 0, _, beyond ASCII

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def capped(text: str) -> str:
    """Beginning and end of a long text, the whole of a short one; in lower case."""
    if len(text) > CAP:
        text = f"{text[: CAP // 2]} {text[-CAP // 2 :]}"
    return text.lower()


@dataclass(frozen=True, slots=True)
class Masked:
    """The masked words of a batch of texts, one after the other in one buffer."""

    data: Bytes
    """The words; each that a space went before has one. `PAD` zeros at the end."""
    texts: Ints
    """(texts + 1,) where each text begins in `data`; the last entry is the end."""
    starts: Ints
    """(words,) where each word begins in `data`."""
    sizes: Ints
    """(words,) its bytes."""
    words: Ints
    """(texts + 1,) index of each text's first word; the last entry is their number."""


def mask(texts: Sequence[str]) -> Masked:
    """The masked words of texts that `capped` gave."""
    held = b"\xff ".join(text.encode("utf-8", "surrogatepass") for text in texts)
    held = (b" " + held + b"\xff").translate(_PLAIN)
    if b"://" in held:
        held = _LINK.sub(b" \x01 ", held)
    data = np.frombuffer(held, np.uint8).copy()
    ends = np.flatnonzero(data == _END)
    unspaced = _beyond_ascii(data)
    data = _without_spans(data, ends, _QUOTE, 1)
    data = _without_spans(data, ends, 96, 3)
    data = _without_spans(data, ends, 96, 1)
    return _words(data, ends, unspaced)


def _without_spans(data: Bytes, ends: Ints, mark: int, least: int) -> Bytes:
    """The buffer with all between paired runs of a mark put to one placeholder and spaces.

    A mark without a partner in its text is left alone: the last one, where their number is odd.
    """
    found = np.flatnonzero(data == mark)
    if not found.size:
        return data
    first = np.flatnonzero(np.diff(found, prepend=-2) != 1)  # of each run
    length = np.diff(np.append(first, found.size))
    opens, closes = found[first], found[first] + length
    fits = length >= least
    opens, closes = opens[fits], closes[fits]
    text = np.searchsorted(ends, opens)
    rank = np.arange(text.size) - np.searchsorted(text, text)
    number = np.bincount(text, minlength=ends.size)[text]
    begin = np.flatnonzero((rank % 2 == 0) & (rank + 1 < number))
    opened = opens[begin]
    data[_ranges(opened, closes[begin + 1] - opened)] = _SPACE
    data[opened] = _HELD
    return data


def _ranges(begins: Ints, sizes: Ints) -> Ints:
    """All places of ranges, one range after the other."""
    return np.arange(sizes.sum()) + np.repeat(begins - np.cumsum(sizes) + sizes, sizes)


def _words(data: Bytes, ends: Ints, unspaced: Ints) -> Masked:
    letter = _LETTERS[data]
    held = data == _HELD
    letter |= held
    turns = np.flatnonzero(letter[1:] != letter[:-1]) + 1  # a run's beginning, its end, ...
    start = held
    start[turns[::2]] = True  # the buffer begins with a space and ends with a mark
    start[unspaced] |= letter[unspaced]
    start[unspaced + 3] |= letter[unspaced + 3]
    starts = np.flatnonzero(start)
    if not starts.size:
        nothing = np.zeros(0, np.int64)
        texts = np.zeros(ends.size + 1, np.int64)
        return Masked(np.zeros(PAD, np.uint8), texts, nothing, nothing, texts)
    stops = np.append(starts[1:], data.size)
    stops[np.searchsorted(starts, turns[1::2]) - 1] = turns[1::2]
    sizes = stops - starts
    kind = _placeholders(data, starts, sizes)
    kind[data[starts] == _HELD] = _HELD
    text = np.repeat(np.arange(ends.size), np.diff(np.searchsorted(starts, ends), prepend=0))
    kept = np.ones(starts.size, bool)
    kept[1:] = (kind[1:] == 0) | (kind[1:] != kind[:-1]) | (text[1:] != text[:-1])
    return _compact(data, letter, starts, sizes, kind, kept, text, ends.size)


def _placeholders(data: Bytes, starts: Ints, sizes: Ints) -> Bytes:
    """(words,) what stands for a word: of a number, of a word that is too long, or 0 for itself."""
    kind = np.zeros(starts.size, np.uint8)
    over = np.flatnonzero(sizes > _LONG)
    if over.size:
        places = np.flatnonzero((data & 0xC0) == 0x80)  # inside of characters
        inside = np.searchsorted(places, np.stack([starts[over], starts[over] + sizes[over]]))
        kind[over[sizes[over] - (inside[1] - inside[0]) > _LONG]] = _HELD
    kind[np.searchsorted(starts, np.flatnonzero(data == _NUMBER), "right") - 1] = _NUMBER
    return kind


def _beyond_ascii(data: Bytes) -> Ints:
    """Where a character of a script without spaces begins.

    Quotation marks beyond ASCII are made plain ones in `data`, other marks spaces.
    """
    lead = np.flatnonzero((data >= 0xC2) & (data < 0xF0))
    first, second, third = data[lead], data[lead + 1], data[np.minimum(lead + 2, data.size - 1)]
    two = (first == 0xC2) & ((second == 0xAB) | (second == 0xBB))  # « »
    quote = (first == 0xE2) & (second == 0x80) & (third >= 0x9C) & (third <= 0x9F)  # “ ” „ ‟
    quote |= (first == 0xE3) & (second == 0x80) & (third >= 0x8A) & (third <= 0x8F)  # 《》「」『』
    quote |= (first == 0xEF) & (second == 0xBC) & (third == 0x82)  # ＂
    mark = (first == 0xE2) & (second == 0x80)  # Unicode's general punctuation
    mark |= (first == 0xE3) & (second == 0x80)  # of Chinese and Japanese
    wide = (third <= 0x8F) | ((third >= 0x9A) & (third <= 0xA0)) | (third >= 0xBB)
    mark |= (first == 0xEF) & (second == 0xBC) & wide  # of full width
    thai = (first == 0xE0) & (second >= 0xB8) & (second <= 0xBB)  # and Lao
    unspaced = lead[~mark & (thai | ((first >= 0xE3) & (first <= 0xED)))]
    for shift in range(3):
        data[lead[mark] + shift] = _SPACE
    data[lead[two] + 1] = _SPACE
    data[lead[quote | two]] = _QUOTE
    return unspaced


def _compact(
    data: Bytes, keep: Bools, starts: Ints, sizes: Ints, kind: Bytes, kept: Bools, text: Ints,
    number: int,
) -> Masked:  # fmt: skip
    """The words next to one another, placeholders as one byte, a space where one stood before.

    `keep` says which bytes are of words; it and `data` are used up. `number` is of texts.
    """
    space = kept & ~keep[starts - 1]
    spaced = starts[space] - 1
    other = np.flatnonzero(kind)
    first = starts[other]
    keep[_ranges(first, sizes[other])] = False
    keep[first[kept[other]]] = True
    data[first] = kind[other]
    keep[spaced] = True
    data[spaced] = _SPACE
    size = np.where(kind > 0, 1, sizes)[kept]
    stops = np.cumsum(size + space[kept])
    own, total = stops - size, int(stops[-1])
    out = np.zeros(total + PAD, np.uint8)
    out[:total] = data[keep]
    words = np.searchsorted(text[kept], np.arange(number + 1))
    begins = np.append(own - space[kept], total)
    return Masked(out, begins[words], own, size, words)
