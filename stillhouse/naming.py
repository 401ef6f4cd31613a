"""Names of models in text: which forms of a name count, and where one stands.

In: names and texts in any script. Out: forms of a name, a plain form of a text, patterns that find
forms in it. A Latin name may stand right behind Chinese characters ('我是DeepSeek'), a Cyrillic one
may be inflected, an Arabic one takes its conjunction on its front; none is found inside another
word of its own script. Nothing here knows whose name it is, or what naming it means.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence

__all__ = ["SCRIPTS", "aliases", "names", "pattern", "plain"]

# A name shorter than this, or one of these words, would be found in answers that name nobody.
_SHORTEST = 3
_COMMON = frozenset(
    [
        "student",
        "teacher",
        "model",
        "assistant",
        "chat",
        "instruct",
        "base",
        "quickstart",
        "tiny",
        "small",
        "large",
        "mini",
        "the",
        "gguf",
    ]
)

SCRIPTS = {
    "latin": "A-Za-zÀ-ÖØ-öø-ɏ",
    "cyrillic": "\u0400-\u04ff",
    "arabic": "\u0620-\u064a\u066e-\u06d3",
    "devanagari": "\u0900-\u0963\u0966-\u097f",
}
"""Letters of the scripts that separate words, as character classes; others have no word ends."""

# What stands in a word without changing it: zero-width and direction marks, soft hyphens, Arabic
# vowel signs and stretching. The carriers of Arabic's hamza, and apostrophes, become one.
_MARKS = [
    0xAD, 0x61C, 0x640, 0x670, 0xFEFF,
    *range(0x64B, 0x653), *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2065),
]  # fmt: skip
_FOLDED = dict.fromkeys(_MARKS) | str.maketrans("أإآٱ‘’ʼ", "اااا'''")

# Arabic writes 'and', 'by', 'for', 'like' and the article together with the word they go before.
_ARABIC_FRONT = "(?:[وف]?[بلك]?(?:ال)?)"


def aliases(name: str) -> tuple[str, ...]:
    """The forms of a model's name that count as naming it, the whole name first.

    The name without its file ending and owner, and its stem: 'SmolLM2-135M-Instruct' is also named
    by 'SmolLM2' and 'SmolLM'. Words that name no model ('student', 'chat') are never a form.
    """
    whole = re.sub(r"\.gguf$", "", name.rsplit("/", 1)[-1].strip(), flags=re.IGNORECASE)
    first = re.split(r"[\s\-_:.]", whole, maxsplit=1)[0]
    stem = re.sub(r"\d+$", "", first)
    forms = [whole, first, stem]
    return tuple(
        dict.fromkeys(f for f in forms if len(f) >= _SHORTEST and f.casefold() not in _COMMON)
    )


def names(text: str, forms: Sequence[str]) -> bool:
    """Whether the text names one of the forms, whatever the case and the marks between words."""
    return pattern(forms).search(plain(text)) is not None


def plain(text: str) -> str:
    """Compatibility forms, invisible marks left out; runs of spaces, hyphens and underscores are
    one space. Case stays.
    """
    folded = unicodedata.normalize("NFKC", text).translate(_FOLDED)
    return re.sub(r"[\s\-‐‑–_]+", " ", folded).strip()


def pattern(
    forms: Iterable[str], *, cased: bool = False, whole: Collection[str] = ()
) -> re.Pattern[str]:
    """What finds any of the forms in a `plain` text, at the beginning of a word of their script.

    Args:
        forms: names or words; the longest that fits is found.
        cased: whether capitals must be as the form has them.
        whole: scripts (of `SCRIPTS`) whose forms must also end where their word ends; digits may
            follow ('GPT4').
    """
    folded = sorted({plain(form) for form in forms} - {""}, key=lambda form: (-len(form), form))
    parts = [_front(form) + re.escape(form) + _end(form, whole) for form in folded]
    return re.compile("|".join(parts) or "(?!)", re.NOFLAG if cased else re.IGNORECASE)


def _front(form: str) -> str:
    script = _script(form[0])
    if script is None:
        return ""
    letters = SCRIPTS[script] + ("0-9" if script == "latin" else "")
    return f"(?<![{letters}])" + (_ARABIC_FRONT if script == "arabic" else "")


def _end(form: str, whole: Collection[str]) -> str:
    script = _script(form[-1])
    return f"(?![{SCRIPTS[script]}])" if script is not None and script in whole else ""


def _script(character: str) -> str | None:
    """The script a form's word ends by; digits belong to Latin words."""
    if character.isascii() and character.isdigit():
        return "latin"
    return next((s for s, letters in SCRIPTS.items() if re.match(f"[{letters}]", character)), None)
