"""What the accused answers: forms in a bundle's `contest` folder, read as they were filled in.

In: the folder. Out: answers, with whether each file they submit is the one they mean. Whoever
writes there need not agree with us, nor write YAML well: nothing here raises over a form, and
nothing it says changes what is said of the sealed part.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from stillhouse.audit.seal import CONTEST, flat
from stillhouse.files import sha256

__all__ = ["Answer", "Submitted", "answers", "empty_form"]

# A form is some kilobytes, and an answer may be long; what is longer belongs in a file beside it.
_FORM_BYTES = 1 << 20
_TEXTS = ("answered_by", "on_behalf_of", "date", "bundle_root")
_LISTS = ("contested", "counter_evidence", "requests")
_KEYS = {"contested": ("claim", "line", "says"), "counter_evidence": ("file", "sha256", "shows")}


@dataclass(frozen=True, slots=True)
class Submitted:
    """A file of counter-evidence."""

    file: str
    """Its path below the `contest` folder, as written in the form."""
    sha256: str
    shows: str
    fits: bool
    """Whether a file of that hash is there."""
    found: str
    """What is there, in words."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One form."""

    form: str
    """The name of its file."""
    filled_in: bool = False
    answered_by: str = ""
    on_behalf_of: str = ""
    date: str = ""
    bundle_root: str = ""
    contested: tuple[Mapping[str, str], ...] = ()
    """Each with `claim`, `line` and `says`."""
    counter_evidence: tuple[Submitted, ...] = ()
    requests: tuple[str, ...] = ()
    problems: tuple[str, ...] = field(default=())
    """What could not be read or does not fit, in sentences."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


@cache
def empty_form() -> bytes:
    """The form as it lies in a new bundle."""
    return (resources.files("stillhouse.audit") / "contest.yaml").read_bytes()


def answers(bundle: Path, *, root: str | None, lines: Mapping[str, int]) -> tuple[Answer, ...]:
    """Every form in the bundle's `contest` folder, in the order of their names.

    Args:
        bundle: the bundle's folder.
        root: the seal's, which a form may name.
        lines: how many raw lines each file has, by name.
    """
    folder = bundle / CONTEST
    try:
        forms = sorted(path for path in folder.iterdir() if path.suffix in (".yaml", ".yml"))
    except OSError as problem:
        return (Answer(CONTEST, problems=(f"The folder cannot be read ({problem}).",)),)
    if not forms:
        return (Answer(CONTEST, problems=("No form is there.",)),)
    return tuple(_answer(folder, form, root, lines) for form in forms)


def _answer(folder: Path, path: Path, root: str | None, lines: Mapping[str, int]) -> Answer:
    content, problem = _read(path)
    if problem is not None:
        return Answer(flat(path.name), filled_in=True, problems=(flat(problem),))
    problems = [
        f"'{key}' is no entry of the form; it says: {_text(content[key])}"
        for key in sorted(content.keys() - {*_TEXTS, *_LISTS})
    ]
    texts = {key: _text(content.get(key)) for key in _TEXTS}
    named = texts["bundle_root"]
    if named and named != root:
        problems.append(f"It answers the bundle with root {named}; this one has {root}.")
    lists = {key: _items(key, content.get(key), problems) for key in _LISTS}
    for item in lists["contested"]:
        file, _, number = item["line"].rpartition(":")
        known = range(1, lines.get(file, 0) + 1)
        if item["line"] and not (number.isascii() and number.isdigit() and int(number) in known):
            problems.append(f"It contests {item['line']!r}, which is no raw line of this bundle.")
    submitted = tuple(_submitted(folder, item) for item in lists["counter_evidence"])
    problems += [f"{item.file}: {item.found}." for item in submitted if not item.fits]
    requests = tuple(item["says"] for item in lists["requests"])
    filled = any(texts.values()) or any(lists.values()) or bool(problems)
    return Answer(
        flat(path.name), filled, **texts, contested=tuple(lists["contested"]),
        counter_evidence=submitted, requests=requests, problems=tuple(map(flat, problems)),
    )  # fmt: skip


def _read(path: Path) -> tuple[dict[str, Any], str | None]:
    """(the form's entries, None), or ({}, why they cannot be read)."""
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > _FORM_BYTES:
            return {}, f"It is no plain file of at most {_FORM_BYTES} bytes."
        data = path.read_bytes()
        if data == empty_form():
            return {}, None
        # Every scalar stays the text it was written as: a hash of digits is no number.
        content = yaml.load(data, Loader=yaml.BaseLoader)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as problem:
        return {}, f"It cannot be read: {problem}."
    if content is None:
        return {}, None
    if not isinstance(content, dict):
        return {}, f"It holds no entries; it says: {_text(content)}"
    return {_text(key): value for key, value in content.items()}, None


def _text(value: Any) -> str:
    """A scalar as it was written; anything else in words."""
    if value is None:
        return ""
    if isinstance(value, str):  # without what would move a terminal's cursor
        return "".join(c if c.isprintable() or c == "\n" else "�" for c in value.strip())
    return f"({'a list' if isinstance(value, list) else 'entries'} of {len(value)})"


def _items(key: str, value: Any, problems: list[str]) -> list[dict[str, str]]:
    """The items of a list of the form; a bare text is what it `says` or the `file`."""
    if value is None or value == "":
        return []
    rows = value if isinstance(value, list) else [value]
    keys = _KEYS.get(key, ("says",))
    bare = "file" if "file" in keys else "says"
    items: list[dict[str, str]] = []
    for row in rows:
        entries = row if isinstance(row, dict) else {bare: row}
        others = sorted(_text(k) for k in entries if k not in keys)
        problems += [f"'{other}' is no entry of an item of `{key}`." for other in others]
        items.append({k: _text(entries.get(k)) for k in keys})
    return items


def _submitted(folder: Path, item: Mapping[str, str]) -> Submitted:
    """A listed file, held against its hash; only what lies in the `contest` folder is opened."""
    name, stated = item["file"], item["sha256"]
    try:
        path = (folder / PurePosixPath(name)).resolve()
        inside = path.is_relative_to(folder.resolve()) and path != folder.resolve()
        if not name or not inside:
            found = "it does not lie in the contest folder"
        elif not path.is_file():
            found = "no such file is there"
        else:
            digest = sha256(path)
            found = f"its SHA-256 is {digest}"
            if digest == stated.lower():
                return Submitted(name, stated, item["shows"], True, found)
            found += f", the form says {stated or 'nothing'}"
    except (OSError, ValueError) as problem:
        found = f"it cannot be read ({problem})"
    return Submitted(name, stated, item["shows"], False, found)
