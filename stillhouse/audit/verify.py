"""Verification: what a bundle says, recomputed from its raw lines by whoever holds it.

In: a bundle's folder and the evidence functions by name. Out: a `Verification`. Three questions are
kept apart: are the sealed bytes those that were sealed; are plan, earlier lines and secrets those
that were committed to; and does the plan's evidence function return `evidence.json` for these
lines. It takes neither a model, a network nor torch. What a seal cannot say is when it was made: a
bundle that was changed and sealed anew holds together, and is told by its root and its commitment
where these were published before.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.audit.contest import Answer, answers
from stillhouse.audit.seal import (
    ABSENT,
    REQUIRED,
    SEAL,
    SEALED,
    Sealed,
    canonical,
    commit_of,
    compare,
    flat,
    known_name,
    read_canonical,
    seal_of,
    sha256,
    shown,
)
from stillhouse.errors import DataError, StillhouseError

if TYPE_CHECKING:
    from stillhouse.audit.functions import EvidenceFunction

__all__ = ["RELATIVE", "Verification", "verify"]

RELATIVE = 1e-9
"""Relative difference up to which two floats of the evidence are the same: sums and special
functions differ by less between machines, and no verdict hangs on so little. Ours."""

# Differences that are listed of one file; the rest are counted. Ours.
_LISTED = 5
# What evidence functions raise over lines that they cannot use.
_UNUSABLE = (
    StillhouseError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError,
    RecursionError,
)  # fmt: skip


@dataclass(frozen=True)
class Verification:
    """What was found in a bundle. `ok` only if the seal holds and the numbers came out the same."""

    folder: Path
    differences: tuple[str, ...]
    """Sentences: where, what is there, what was expected. Of the sealed part only."""
    seal_holds: bool
    """The sealed bytes are those that were sealed, and committed to where they were."""
    numbers_hold: bool | None
    """The evidence came out again; None where it could not be recomputed."""
    not_recomputed: str | None
    """Why it could not be, in a sentence."""
    withheld: Mapping[str, int]
    """Lines that stand as their hash, by file; `reveal.json` where the secrets do."""
    uncommitted: tuple[str, ...]
    """Revealed values that nothing was committed to beforehand: the seal alone binds them."""
    answers: tuple[Answer, ...]
    """The forms in which the accused answers, filled in or not. They change nothing above."""
    plan: Mapping[str, Any] | None
    evidence: Mapping[str, Any] | None
    """As they stand in the bundle; None where they cannot be read."""
    lines_read: int
    commitment: str | None
    """SHA-256 of commit.json: compare it with what was published before the test."""
    root: str | None
    """The root that the sealed files have: compare it with what was published with the bundle."""
    time: str | None
    """When the commitment was made, by the word of whoever made it."""
    seconds: float

    @property
    def ok(self) -> bool:
        """Nothing differs, and every number was recomputed."""
        return self.seal_holds and self.numbers_hold is True and not self.differences

    def sentences(self) -> list[str]:
        """What was found, for people: the seal, the numbers, what is withheld, the answers."""
        found = [
            "The seal holds: every byte of the sealed part is as it was sealed."
            if self.seal_holds
            else "The seal does not hold.",
            {
                True: f"Every number was recomputed from {self.lines_read} raw lines and is the "
                "same.",
                False: "The numbers do not come out again.",
                None: f"The numbers were not recomputed: {self.not_recomputed}.",
            }[self.numbers_hold],
            *self.differences,
        ]
        if self.uncommitted:
            found.append(
                f"Revealed, and not committed to beforehand: {', '.join(self.uncommitted)}."
            )
        answered = [answer for answer in self.answers if answer.filled_in]
        names = ", ".join(answer.form for answer in answered)
        found.append(f"The accused answers in: {names}." if names else "No form was filled in.")
        found += [
            f"{answer.form}: {problem}" for answer in self.answers for problem in answer.problems
        ]
        return found


def verify(
    folder: Path,
    functions: Mapping[str, EvidenceFunction] | None = None,
    *,
    root: str | None = None,
    commitment: str | None = None,
    escrow_root: str | None = None,
) -> Verification:
    """Everything that can be checked of a bundle, with what differs.

    Args:
        folder: the bundle's.
        functions: the evidence function of each test, by the name that plans give; those of
            Stillhouse where none are named.
        root: the root that was published for it, where one is known.
        commitment: the commitment that was published before the test, where one is known.
        escrow_root: the root that was published of the escrow, where one is known.

    Raises:
        DataError: no bundle is there, or a file of it cannot be read.
    """
    began = time.perf_counter()
    if functions is None:  # here: whoever brings others, as tests do, need not load these
        from stillhouse.audit.functions import FUNCTIONS

        functions = FUNCTIONS
    notes = _Notes()
    files, seal = _read(folder, notes)
    _check_bytes(files, notes)
    sealed_root = _check_seal(files, seal, notes)
    commit, reveal = _value(files, "commit.json"), _value(files, "reveal.json")
    _check_commit(files, commit, reveal, notes)
    own = sha256(files["commit.json"].data) if "commit.json" in files else None
    escrow = (_value(files, "plan.json") or {}).get("escrow") or {}
    for name, known, found in (
        ("root", root, sealed_root), ("commitment", commitment, own),
        ("escrow's root", escrow_root, escrow.get("root")),
    ):  # fmt: skip
        if known is not None and known.strip().lower() != found:
            notes.add("known", f"the {name} is {found}, and {known} was published")
    seal_holds = not notes.found
    withheld = {name: file.withheld for name, file in files.items() if file.withheld}
    why, holds = _recompute(files, functions, reveal, withheld, notes)
    rows = {name: len(file.leaves) for name, file in files.items() if file.raw}
    hashed = commit.get("secrets") if commit else None
    named = hashed if isinstance(hashed, dict) else {}
    return Verification(
        folder=folder, differences=tuple(notes.sentences()), seal_holds=seal_holds,
        numbers_hold=holds, not_recomputed=why, withheld=withheld,
        uncommitted=tuple(sorted(map(flat, (reveal or {}).keys() - named.keys()))),
        answers=answers(folder, root=sealed_root, lines=rows),
        plan=_value(files, "plan.json"), evidence=_value(files, "evidence.json"),
        lines_read=sum(len(f.read[0]) for f in files.values() if f.raw), commitment=own,
        root=sealed_root, time=flat(str(commit["time"])) if commit and "time" in commit else None,
        seconds=time.perf_counter() - began,
    )  # fmt: skip


@dataclass
class _Notes:
    """Differences, by the file they are about."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, sentence: str) -> None:
        self.found.setdefault(name, []).append(sentence)

    def sentences(self) -> Iterator[str]:
        for name, several in self.found.items():
            for sentence in several[:_LISTED]:
                yield f"{SEALED}/{name}: {sentence}." if name != "known" else f"{sentence}."
            if len(several) > _LISTED:
                yield f"{SEALED}/{name}: {len(several) - _LISTED} more differences."


# ---- the folder ----


def _read(folder: Path, notes: _Notes) -> tuple[dict[str, Sealed], bytes | None]:
    """The sealed files by name, and the bytes of the seal; what does not belong is noted."""
    where = folder / SEALED
    files: dict[str, Sealed] = {}
    seal = None
    try:
        if where.is_symlink():
            notes.add("", "it is a link to another folder; a bundle holds its sealed files itself")
        for path in sorted(where.iterdir()):
            name = path.name
            shown_name = name if known_name(name) else ascii(name)
            if not stat.S_ISREG(path.lstat().st_mode):
                notes.add(shown_name, "a folder, link or device; plain files were expected")
            elif name == SEAL:
                seal = path.read_bytes()
            elif known_name(name):
                files[name] = Sealed(name, path.read_bytes())
            else:
                notes.add(shown_name, "a file that no bundle has")
    except OSError as problem:
        raise DataError(
            f"bundle {folder}", f"{SEALED}/ cannot be read ({problem})",
            "the folder of a bundle, with its sealed files",
            "Check the path and its permissions, or take the bundle from its source again",
        ) from problem  # fmt: skip
    if not files and seal is None:
        raise DataError(
            f"bundle {folder}", f"{SEALED}/ holds no file of a bundle",
            "the folder of a bundle, with its sealed files", "Check the path",
        )  # fmt: skip
    for name in REQUIRED:
        if name not in files:
            notes.add(name, "the file is missing")
    return files, seal


def _value(files: Mapping[str, Sealed], name: str) -> dict[str, Any] | None:
    """The object in a JSON file; None where the file is missing or not as it must be."""
    values, faults = files[name].read if name in files else ([], [])
    return values[0] if len(values) == 1 and not faults else None


def _check_bytes(files: Mapping[str, Sealed], notes: _Notes) -> None:
    for name, file in files.items():
        for fault in file.read[1]:
            notes.add(name, fault)


def _check_seal(files: Mapping[str, Sealed], seal: bytes | None, notes: _Notes) -> str:
    """The root that the files have. The seal must be theirs, byte for byte."""
    there = {SEAL: Sealed(SEAL, seal)} if seal is not None else {}
    stated = _value(there, SEAL)
    expected = seal_of(files.values(), stated)
    if seal == canonical(expected, SEAL) + b"\n":
        return expected["root"]
    if seal is None:
        notes.add(SEAL, "the file is missing: never sealed, or taken away")
    elif stated is None:
        notes.add(SEAL, "; ".join(there[SEAL].read[1]))
    else:
        _name_seal(stated, expected, notes)
    return expected["root"]


def _name_seal(stated: dict[str, Any], expected: dict[str, Any], notes: _Notes) -> None:
    """Which entries of the seal differ. A root that differs with them is no news."""
    of_files = False
    for path, says, is_now in compare(stated, expected):
        head, *rest = path
        if head == "files" and rest:
            of_files = True
            name = rest[0] if known_name(rest[0]) else ascii(rest[0])
            if rest[1:]:
                notes.add(
                    name, f"{_place(rest[1:])} is {shown(is_now)}, the seal says {shown(says)}"
                )
            elif is_now is ABSENT:
                notes.add(name, "the seal lists it, and it is missing")
            else:
                notes.add(name, f"the seal says {shown(says)} of it")
        elif head != "root" or not of_files:
            notes.add(SEAL, f"{_place(path)} is {shown(says)}, the files give {shown(is_now)}")


def _place(path: Sequence[str]) -> str:
    """A dotted path, safe to print."""
    return repr(".".join(path))


def _check_commit(
    files: Mapping[str, Sealed],
    commit: dict[str, Any] | None,
    reveal: dict[str, Any] | None,
    notes: _Notes,
) -> None:
    """Hold plan, earlier lines and secrets against what was committed to."""
    if commit is None:  # noted already
        return
    before, secrets, when = (commit.get(key) for key in ("before", "secrets", "time"))
    hashed = dict(secrets) if isinstance(secrets, dict) else {}
    if reveal is not None:  # withheld, or noted already
        values = {name: reveal[name] for name in hashed if name in reveal}
        hashed = {n: sha256(v.encode()) for n, v in values.items() if isinstance(v, str)}
    names = before if isinstance(before, dict) else ()
    expected = commit_of(files, names, hashed, str(when))
    for path, says, is_now in compare(commit, expected):
        notes.add("commit.json", f"{_place(path)} is {shown(says)}, the files give {shown(is_now)}")
    try:
        aware = datetime.fromisoformat(str(when)).utcoffset() is not None
    except ValueError:
        aware = False
    if not aware:
        notes.add("commit.json", f"'time' is {shown(when)}, which is no time with its offset")


# ---- the numbers ----


def _recompute(
    files: Mapping[str, Sealed],
    functions: Mapping[str, EvidenceFunction],
    reveal: Mapping[str, Any] | None,
    withheld: Mapping[str, int],
    notes: _Notes,
) -> tuple[str | None, bool | None]:
    """(why the numbers could not be recomputed, whether they are the same).

    The function is given only what was sealed: over other bytes its answer would say nothing.
    """
    plan, evidence = _value(files, "plan.json"), _value(files, "evidence.json")
    if changed := sorted(notes.found.keys() - {"evidence.json", "known"}):
        return f"{', '.join(changed[:_LISTED])} differ from what was sealed", None
    if withheld:
        rows = sum(count for name, count in withheld.items() if name != "reveal.json")
        parts = [f"{rows} lines are withheld"] * (rows > 0)
        parts += ["the secrets are withheld"] * ("reveal.json" in withheld)
        return " and ".join(parts), None
    if plan is None or reveal is None or evidence is None:
        return "evidence.json cannot be read", None
    test = plan.get("test")
    function = functions.get(test) if isinstance(test, str) else None
    if function is None:
        known = ", ".join(sorted(functions)) or "none"
        return f"the plan names the test {shown(test)}, and known here are: {known}", None
    lines = {name.removesuffix(".jsonl"): file.read[0] for name, file in files.items() if file.raw}
    try:
        again = read_canonical(canonical(function(plan, lines, reveal), f"test {test}"))[0]
    except _UNUSABLE as problem:
        cause = flat(f"{type(problem).__name__}: {problem}")
        notes.add("evidence.json", f"the test {shown(test)} takes no such lines ({cause})")
        return None, False
    places = list(compare(evidence, again, relative=RELATIVE))
    for path, says, is_now in places:
        notes.add(
            "evidence.json", f"{_place(path)} is {shown(says)}, the lines give {shown(is_now)}"
        )
    return None, not places
