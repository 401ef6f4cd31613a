"""The terms gate: whether a teacher's answers may train another model.

It stands before the first request, and before the first step of training on answers at hand. In: a
model spec, and where needed a file in which somebody allows what the terms do not. Out: `Terms`,
which travel with every exchange, or a refusal (`TermsError`, exit code 5). What is known
about teachers stands in `teachers.yaml`, with source, day and confidence; it is a reading, no legal
advice. The gate believes names: what a server or a file says of itself. It cannot see through a
wrong name (docs/terms.md says what else it cannot do).
"""

from __future__ import annotations

import ipaddress
import json
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import yaml

from stillhouse.errors import TermsError, nearest
from stillhouse.exchange import Exchange, Terms
from stillhouse.files import sha256

__all__ = [
    "STATUSES",
    "Authorisation",
    "Teacher",
    "check",
    "gate",
    "gate_exchanges",
    "read_authorisation",
    "teachers",
]

STATUSES = ("allowed", "conditional", "unknown", "forbidden")
"""From the mildest to the strictest."""
_PERMITTING = ("allowed", "conditional")


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """One entry of the table of teachers; `teachers.yaml` explains the fields."""

    id: str
    status: str
    licence: str | None = None
    source: str | None = None
    read: date | None = None
    confidence: str | None = None
    condition: str
    names: tuple[re.Pattern[str], ...] = ()
    hosts: tuple[str, ...] = ()
    licences: tuple[str, ...] = ()
    files: Mapping[str, int] | None = None
    """SHA-256 -> bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorisation:
    """Who allows a use that the terms refuse or do not settle, and why."""

    who: str
    organisation: str
    why: str
    date: date
    teacher: str
    scope: str

    def __str__(self) -> str:
        """One line, as it travels with the exchanges."""
        return f"{self.who} ({self.organisation}), {self.date}: {self.why} (scope: {self.scope})"


_SCRIPTED = Teacher(
    id="scripted", status="allowed", licence="Apache-2.0, part of Stillhouse",
    condition="A shipped fake: it holds no model.",
)  # fmt: skip
_UNKNOWN = Teacher(
    id="unknown", status="unknown",
    condition="Nothing in the table of teachers matches what this model says of itself.",
)  # fmt: skip


@cache
def teachers() -> tuple[Teacher, ...]:
    """The table of teachers, in its order."""
    table = yaml.safe_load((resources.files("stillhouse") / "teachers.yaml").read_text("utf-8"))
    return tuple(_entry(fields) for fields in table["teachers"])


def _entry(fields: Mapping[str, Any]) -> Teacher:
    # A name is sought at the start of a word: 'llama-3' in 'meta-llama-3-8b', not in 'ollama-3'.
    names = tuple(re.compile(f"(?:^|[-/.])(?:{name})") for name in fields.get("names", ()))
    known = {file["sha256"]: file["bytes"] for file in fields.get("files", ())}
    lists = {key: tuple(fields.get(key, ())) for key in ("hosts", "licences")}
    return Teacher(**{**fields, **lists, "names": names, "files": known})


def check(teacher: str, *, runs: Path = Path("runs")) -> Terms:
    """What the table says of a model spec; refuses nothing.

    An endpoint is judged by its host and by its model's name, a local file by its hash and by what
    it says of itself, a run by its own teacher. Where several entries match, the strictest holds
    and every condition is said.
    """
    return _verdict(_matches(teacher, runs, frozenset()))


def gate(teacher: str, *, authorisation: Path | None = None, runs: Path = Path("runs")) -> Terms:
    """The terms under which the teacher's answers may train a student.

    Args:
        teacher: model spec.
        authorisation: a YAML file that names who allows a refused or unknown use, and why.
        runs: where `run:NAME` is looked up.

    Raises:
        TermsError: the terms forbid the use or are not known, and no valid authorisation is given;
            or the authorisation is incomplete or for another teacher.
    """
    matches = _matches(teacher, runs, frozenset())
    terms = _verdict(matches)
    allowed_by = None
    if authorisation is not None:
        allowed_by = read_authorisation(authorisation)
        names = {teacher, *(entry.id for entry in matches if entry is not _UNKNOWN)}
        if allowed_by.teacher not in names:
            raise TermsError(
                str(authorisation), f"an authorisation for '{allowed_by.teacher}'",
                f"one for '{teacher}'", "Have the use of this very teacher authorised",
            )  # fmt: skip
    if terms.status in _PERMITTING:
        return terms
    if allowed_by is not None:
        return replace(terms, authorised_by=str(allowed_by))
    read = f", read {terms.date}" if terms.date else ""
    source = f" ({terms.licence}, {terms.source}{read})" if terms.licence else ""
    raise TermsError(
        f"teacher '{teacher}'",
        f"training on its answers is {terms.status}: {terms.conditions}{source}",
        "a teacher whose terms permit it, or somebody's authorisation",
        "Choose another teacher; or, if you are entitled to this one, write who allows it and why "
        "in a file (docs/terms.md): --authorisation FILE, in a recipe collect.authorisation",
    )


def gate_exchanges(exchanges: Iterable[Exchange], allowed: Terms) -> None:
    """Nothing, where every exchange may be trained on by what is recorded with it.

    Args:
        exchanges: those at hand, whoever collected them. Those without terms pass: of them the gate
            knows no more than their teacher, whom `gate` has judged.
        allowed: what `gate` said of the teacher; an authorisation holds for its answers only.

    Raises:
        TermsError: one was given under terms that forbid it or are not known, and nobody allowed
            its use.
    """
    for exchange in exchanges:
        own = exchange.terms
        if own is None or own.status in _PERMITTING or own.authorised_by:
            continue
        # whoever is unknown bears the same entry as everybody unknown
        if allowed.authorised_by and own.teacher == allowed.teacher != _UNKNOWN.id:
            continue
        raise TermsError(
            f"exchange {exchange.id}, an answer of {exchange.model}",
            f"training on it is {own.status}: {own.conditions or own.teacher}",
            "answers whose terms permit it, or somebody's authorisation",
            "Leave such exchanges out; or, if you are entitled to them, collect them with an "
            "authorisation (docs/terms.md), which then travels with them",
        )  # fmt: skip


def _verdict(matches: list[Teacher]) -> Terms:
    """The strictest of the entries, with the conditions of all."""
    strictest = max(matches, key=lambda entry: STATUSES.index(entry.status))
    said = dict.fromkeys(entry.condition for entry in [strictest, *matches])
    return Terms(
        teacher=strictest.id, status=strictest.status, licence=strictest.licence,
        source=strictest.source, date=strictest.read.isoformat() if strictest.read else None,
        conditions=" ".join(said),
    )  # fmt: skip


# ---- which entries a spec stands for ----


def _matches(spec: str, runs: Path, seen: frozenset[str]) -> list[Teacher]:
    """Every entry that speaks of the spec, or the unknown one."""
    kind, _, rest = spec.partition(":")
    if kind == "scripted":
        return [_SCRIPTED]
    if kind in ("http", "https"):
        return _by_endpoint(spec)
    if kind == "run":
        teacher = _teacher_of_run(runs / rest)
        # A run that was taught by itself, however many steps away, says nothing.
        if teacher is None or spec in seen:
            return [_UNKNOWN]
        return _matches(teacher, runs, seen | {spec})
    if kind == "gguf":
        return _by_file(Path(rest).expanduser())
    if kind == "hf" and Path(rest).expanduser().is_dir():
        return _by_claims(*_folder_claims(Path(rest).expanduser()))
    return _by_name(rest if kind == "hf" else spec) or [_UNKNOWN]


def _by_name(name: str) -> list[Teacher]:
    plain = re.sub(r"[^a-z0-9./]+", "-", name.lower())
    return [entry for entry in teachers() if any(sought.search(plain) for sought in entry.names)]


def _by_endpoint(url: str) -> list[Teacher]:
    try:
        parts = urlsplit(url)
    except ValueError:  # no URL at all: whoever opens the model says so
        return [_UNKNOWN]
    host, of_name = parts.hostname or "", _by_name(parts.fragment)
    of_host = [each for each in teachers() if any(fnmatchcase(host, name) for name in each.hosts)]
    if of_host or _is_own(host):
        return of_host + [entry for entry in of_name if entry not in of_host] or [_UNKNOWN]
    # Somebody else's server has terms of its own, which we do not know, whatever it serves.
    return [_UNKNOWN, *of_name]


def _is_own(host: str) -> bool:
    """Whether a host is this machine or its own network, where no provider's terms apply."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return host == "localhost" or host.endswith((".local", ".localhost")) or "." not in host


def _by_claims(names: list[str], licences: list[str]) -> list[Teacher]:
    """By what a file says of itself; a licence tag alone also counts, as its own claim."""
    found = dict.fromkeys(entry.id for name in names for entry in _by_name(name))
    tags = {tag.lower().strip() for tag in licences}
    found |= dict.fromkeys(entry.id for entry in teachers() if tags & set(entry.licences))
    return [entry for entry in teachers() if entry.id in found] or [_UNKNOWN]


def _by_file(path: Path) -> list[Teacher]:
    """By hash, where a known file has this size; else by the header."""
    if not path.is_file():
        return _by_claims([path.name], [])  # not there yet: opening it will say so
    size = path.stat().st_size
    if any(size in (entry.files or {}).values() for entry in teachers()):
        found = sha256(path)
        known = [entry for entry in teachers() if found in (entry.files or {})]
        if known:
            return known
    return _by_claims(*_gguf_claims(path))


# ---- what a local file says of itself: (names, licence tags) ----

_Claims = tuple[list[str], list[str]]
# Bytes of a value by its type number; 8 is a string, 9 an array.
# Source: GGUF specification, ggml-org/ggml, docs/gguf.md.
_GGUF_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_GGUF_TEXT, _GGUF_ARRAY = 8, 9
_LONGEST = 1 << 20  # no name or licence is a megabyte long; a longer one is a broken header


def _gguf_claims(path: Path) -> _Claims:
    """Names and licence tags in a GGUF header; nothing from a file that is none."""
    found: dict[str, str] = {}
    try:
        with path.open("rb") as file:
            magic, version, _, count = struct.unpack("<4sIQQ", file.read(24))
            if magic != b"GGUF" or version < 2:
                return [], []
            for _ in range(count):
                key = _gguf_text(file)
                if key.startswith("tokenizer."):  # writers put `general.` first; skip megabytes
                    break
                value = _gguf_value(file, *struct.unpack("<I", file.read(4)))
                if isinstance(value, str):
                    found[key] = value
    except (OSError, struct.error, UnicodeDecodeError, KeyError, ValueError):
        pass  # what was read before the break still counts; the model's loader reports the break
    names = r"general\.(name|basename|finetune|base_model\.\d+\.(name|repo_url))"
    return (
        [value for key, value in found.items() if re.fullmatch(names, key)],
        [value for key, value in found.items() if re.fullmatch(r"general\.license(\.name)?", key)],
    )


def _gguf_text(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > _LONGEST:
        raise ValueError("a broken header")
    return file.read(length).decode("utf-8")


def _gguf_value(file: BinaryIO, kind: int) -> str | None:
    """A string's text; anything else is stepped over."""
    if kind == _GGUF_TEXT:
        return _gguf_text(file)
    if kind == _GGUF_ARRAY:
        item, count = struct.unpack("<IQ", file.read(12))
        if count > _LONGEST:
            raise ValueError("a broken header")
        for _ in range(count):
            _gguf_value(file, item)
    else:
        file.seek(_GGUF_BYTES[kind], 1)
    return None


def _folder_claims(folder: Path) -> _Claims:
    """Names and licence tags in a Hugging Face folder: `config.json` and the model card's head."""
    names: list[str] = []
    licences: list[str] = []
    config = _mapping(folder / "config.json", json.loads)
    names += [config["_name_or_path"]] if isinstance(config.get("_name_or_path"), str) else []
    card = _mapping(folder / "README.md", _front_matter)
    for key, into in (
        ("base_model", names), ("model_name", names),
        ("license", licences), ("license_name", licences),
    ):  # fmt: skip
        value = card.get(key, [])
        into += [str(item) for item in (value if isinstance(value, list) else [value])]
    return names, licences


def _front_matter(text: str) -> Any:
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    return yaml.safe_load(head.group(1)) if head else {}


def _mapping(path: Path, parse: Any) -> Mapping[str, Any]:
    """A file's content as a mapping; empty when it is missing or says nothing that can be read."""
    try:
        content = parse(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _teacher_of_run(run: Path) -> str | None:
    """The teacher's spec a finished run recorded, in `run.yaml` or else in `report.json`."""
    teacher = _mapping(run / "run.yaml", yaml.safe_load).get("teacher")
    if teacher is None:
        reported = _mapping(run / "report.json", json.loads).get("teacher")
        teacher = reported.get("spec") if isinstance(reported, dict) else reported
    return teacher if isinstance(teacher, str) else None


# ---- authorisation ----


def read_authorisation(path: Path) -> Authorisation:
    """The authorisation a YAML file holds, complete and dated.

    Raises:
        TermsError: no such file, not YAML, an unknown, missing or empty field, or no past date.
    """
    fields = ("who", "organisation", "why", "date", "teacher", "scope")
    whole = f"the fields {', '.join(fields)}, each filled"
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as problem:
        said = " ".join(str(problem).split())
        raise _no_authorisation(path, said, whole, "Check the path and the file") from problem
    if not isinstance(content, dict):
        raise _no_authorisation(path, f"{content!r:.40}", whole, "Write one field a line")
    for key in content:
        if key not in fields:
            raise _no_authorisation(path, f"field '{key}'", whole, nearest(str(key), fields))
    for key in fields:
        value = content.get(key)
        # '...', 'TODO' and '<name>' are what templates are left with.
        if not re.search(r"\w", str(value or "")) or re.match(r"(?i)<|todo\b|tbd\b", str(value)):
            raise _no_authorisation(path, f"no '{key}' ({value!r:.40})", whole, f"Fill in '{key}'")
    day = content["date"]
    try:
        day = day if type(day) is date else date.fromisoformat(str(day))
    except ValueError:
        day = None
    if day is None or day > datetime.now().astimezone().date():
        raise _no_authorisation(
            path, f"date {content['date']}", "the day it was given, such as 2026-03-01, not in the "
            "future", "Correct 'date'",
        )  # fmt: skip
    return Authorisation(**{**{key: str(content[key]).strip() for key in fields}, "date": day})


def _no_authorisation(path: Path, found: str, expected: str, todo: str) -> TermsError:
    return TermsError(f"authorisation {path}", found, expected, todo)
