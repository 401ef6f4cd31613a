"""What a seal is: the canonical bytes of sealed files, and `seal.json` as a function of them.

In: the bytes of files by name. Out: their values, what is wrong with them in words, and the seal.
JSON files hold one canonical object and a line feed; `.jsonl` files one canonical object a line.
A line that is withheld stands as its leaf hash, in quotes (no raw line is a bare text), and a
withheld `reveal.json` as its SHA-256. Nothing here raises over a file's content, and nothing here
writes; `bundle.py` makes sealed folders, `verify.py` judges them.
"""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from stillhouse import merkle
from stillhouse.errors import DataError
from stillhouse.record import canonical_json

__all__ = [
    "ABSENT",
    "CONTEST",
    "FORMAT",
    "NAME",
    "REQUIRED",
    "SEAL",
    "SEALED",
    "VERSION",
    "Sealed",
    "canonical",
    "commit_of",
    "compare",
    "flat",
    "known_name",
    "read_canonical",
    "seal_of",
    "sha256",
    "shown",
]

FORMAT = "stillhouse audit bundle"
VERSION = 1
SEALED = "sealed"
"""The folder of sealed files in a bundle."""
CONTEST = "contest"
"""The folder in which the accused answers."""
SEAL = "seal.json"
REQUIRED = ("commit.json", "plan.json", "reveal.json", "evidence.json")
"""The JSON files every sealed bundle has, beside the seal."""
NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
"""Names of files of raw lines, without `.jsonl`: the same on every file system."""


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


ABSENT = _Absent()
"""Stands in `compare` for what one side lacks."""

_WITHHELD = re.compile(rb'"([0-9a-f]{64})"')
_SHORT = reprlib.Repr()  # values in sentences: a hash is shown whole, long values are cut
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict = 2, 3, 3


def sha256(data: bytes) -> str:
    """In hex."""
    return hashlib.sha256(data).hexdigest()


def known_name(name: str) -> bool:
    """Whether a sealed folder may hold a file of that name, the seal left out."""
    stem, dot, kind = name.partition(".")
    return name in REQUIRED or (dot + kind == ".jsonl" and NAME.fullmatch(stem) is not None)


def shown(value: Any) -> str:
    """A value in a sentence: on one line, cut where it is long, safe to print."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # a number of more digits than Python writes
        return f"a {type(value).__name__}"


def flat(text: str) -> str:
    """Foreign text on one line, without what would move a terminal's cursor."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))


# ---- canonical bytes ----


def canonical(value: Any, where: str) -> bytes:
    """The canonical line of an object, without the line feed; `where` names it in errors.

    Raises:
        DataError: it is no object of plain JSON values with text as keys.
    """
    data, fault = b"", "it is no object"
    try:
        if isinstance(value, Mapping):
            data = canonical_json(dict(value)).encode()
            fault = read_canonical(data)[1]
    except (ValueError, TypeError, RecursionError) as problem:
        fault = str(problem)
    if fault is not None:
        raise DataError(
            where, f"{shown(value)} has no canonical form: {fault}",
            "an object of text, finite numbers, true, false, null, lists and objects",
            "Turn arrays, tuples of keys, NaN and infinities into such values first",
        )  # fmt: skip
    return data


def read_canonical(data: bytes) -> tuple[dict[str, Any] | None, str | None]:
    """(the object, None), or (None, what is wrong with its bytes)."""
    try:
        text = data.decode("utf-8")
        value = json.loads(text, parse_constant=_refuse)
        again = canonical_json(value).encode()
    except UnicodeDecodeError as problem:
        return None, f"byte {problem.start} is no UTF-8"
    except json.JSONDecodeError as problem:
        return None, f"no JSON ({problem.msg}, character {problem.pos})"
    except (ValueError, RecursionError) as problem:  # half characters, numbers out of range, depth
        return None, f"no JSON that can be kept ({problem})"
    if not isinstance(value, dict):
        return None, f"{shown(value)} is no object"
    if again != data:
        at = next((i for i, (a, b) in enumerate(zip(data, again, strict=False)) if a != b), -1)
        at = at if at >= 0 else min(len(data), len(again))
        return None, f"not in canonical form, from byte {at}"
    return value, None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")


@dataclass(frozen=True)
class Sealed:
    """One file of a sealed folder: its bytes, read as what its name says."""

    name: str
    data: bytes

    @property
    def raw(self) -> bool:
        """Whether it holds lines."""
        return self.name.endswith(".jsonl")

    @cached_property
    def _rows(self) -> list[bytes]:
        rows = self.data.split(b"\n")
        return rows if rows[-1] else rows[:-1]

    @cached_property
    def leaves(self) -> list[bytes]:
        """The leaf hash of each line, withheld or not."""
        hashes = map(_WITHHELD.fullmatch, self._rows)
        return [
            bytes.fromhex(hashed[1].decode()) if hashed else merkle.leaf_hash(row)
            for hashed, row in zip(hashes, self._rows, strict=True)
        ]

    @cached_property
    def merkle_root(self) -> str:
        """Of the lines, in hex."""
        return merkle.root_of(self.leaves).hex()

    @cached_property
    def withheld(self) -> int:
        """Lines that stand as their hash; of `reveal.json`, whether the whole of it does."""
        if self.raw:
            return sum(_WITHHELD.fullmatch(row) is not None for row in self._rows)
        return int(self.name == "reveal.json" and self._own_hash is not None)

    @property
    def _own_hash(self) -> str | None:
        hashed = _WITHHELD.fullmatch(self.data.removesuffix(b"\n"))
        return hashed[1].decode() if hashed else None

    @cached_property
    def read(self) -> tuple[list[dict[str, Any]], list[str]]:
        """(the objects, what is wrong with the bytes); what is withheld is neither."""
        values: list[dict[str, Any]] = []
        faults: list[str] = []
        for number, row in enumerate(self._rows, 1):
            if (self.raw or self.withheld) and _WITHHELD.fullmatch(row):
                continue
            value, fault = read_canonical(row)
            if value is not None:
                values.append(value)
            if fault is not None:
                faults.append(f"line {number}: {fault}")
        if self.data and not self.data.endswith(b"\n"):
            faults.append("its end: no line feed ends the last line")
        if not self.raw and len(self._rows) != 1:
            faults.append(f"{len(self._rows)} lines; a JSON file has one")
        return values, faults

    def entry(self, stated: Any) -> dict[str, Any]:
        """What the seal says of it. Of a redacted file the size and the hash of the whole are not
        known any more: they are taken from `stated`, the seal's own entry, and bound by its root.
        """
        found: dict[str, Any] = {"bytes": len(self.data), "sha256": sha256(self.data)}
        if self.withheld:
            before = stated if isinstance(stated, Mapping) else {}
            kept = {key: before.get(key) for key in found}
            found = {k: v if isinstance(v, int | str) else None for k, v in kept.items()}
        if self.raw:
            return {**found, "lines": len(self.leaves), "merkle_root": self.merkle_root}
        return {**found, "sha256": self._own_hash} if self.withheld else found


def seal_of(files: Iterable[Sealed], stated: Any = None) -> dict[str, Any]:
    """The content of `seal.json`: an entry for each file, and the Merkle root of the entries.

    Args:
        files: every sealed file but the seal, in any order.
        stated: the seal that is there, asked only about redacted files.
    """
    known = stated.get("files") if isinstance(stated, Mapping) else None
    known = known if isinstance(known, Mapping) else {}
    entries = {file.name: file.entry(known.get(file.name)) for file in files}
    rows = (canonical_json({"name": name, **entries[name]}) for name in sorted(entries))
    root = merkle.root_of(merkle.leaf_hash(row.encode()) for row in rows)
    return {"files": entries, "format": FORMAT, "root": root.hex(), "version": VERSION}


def commit_of(
    files: Mapping[str, Sealed], before: Iterable[str], secrets: Mapping[str, str], time: str
) -> dict[str, Any]:
    """The content of `commit.json`.

    Args:
        files: those there are, by file name.
        before: names, without `.jsonl`, of the files of lines that are fixed beforehand.
        secrets: SHA-256 of each secret, in hex.
        time: when, ISO 8601: the word of whoever writes it.
    """
    rows = {name: files[f"{name}.jsonl"] for name in before if f"{name}.jsonl" in files}
    return {
        "before": {
            name: {"lines": len(file.leaves), "merkle_root": file.merkle_root}
            for name, file in rows.items()
        },
        "format": FORMAT,
        "plan": sha256(files["plan.json"].data) if "plan.json" in files else ABSENT,
        "secrets": dict(secrets),
        "time": time,
        "version": VERSION,
    }


# ---- values side by side ----


def compare(
    found: Any, expected: Any, *, relative: float = 0.0
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """(path, found, expected) of each place where two plain values differ, in their order.

    Floats are equal within `relative`; of everything else type and value count, so that 1, 1.0 and
    true differ. What one side lacks is `ABSENT`.
    """
    waiting: list[tuple[tuple[str, ...], Any, Any]] = [((), found, expected)]
    while waiting:
        path, one, other = waiting.pop()
        if isinstance(one, dict) and isinstance(other, dict):
            keys = sorted(one.keys() | other.keys(), reverse=True)
            waiting += [((*path, k), one.get(k, ABSENT), other.get(k, ABSENT)) for k in keys]
        elif isinstance(one, list) and isinstance(other, list):
            for i in reversed(range(max(len(one), len(other)))):
                left, right = (side[i] if i < len(side) else ABSENT for side in (one, other))
                waiting.append(((*path, str(i)), left, right))
        elif type(one) is not type(other) or one is ABSENT or other is ABSENT:
            yield path, one, other
        elif isinstance(one, float):
            if not abs(one - other) <= relative * max(abs(one), abs(other)):
                yield path, one, other
        elif one != other:
            yield path, one, other
