"""The evidence bundle: a folder whose sealed part is fixed step by step, and the accused's form.

    OUT/sealed/commit.json     what was fixed before the first question, by hash, with its time
    OUT/sealed/plan.json       the plan; plan["test"] names the evidence function
    OUT/sealed/NAME.jsonl      raw lines: fixed before (`before`), or appended as answers come
    OUT/sealed/reveal.json     secrets, revealed after
    OUT/sealed/evidence.json   the evidence
    OUT/sealed/seal.json       hashes and Merkle roots of all these: the last file written
    OUT/contest/contest.yaml   a form in which the accused answers, never sealed

In: plan, lines, secrets, evidence. Out: these files, each whole or not there; lines are on the disk
when `append` returns, and what a crash cut off is dropped and counted. `commitment` binds whoever
publishes it before the questions are asked, `root` before the bundle is handed over: a seal alone
shows that nothing changed since sealing, not when that was. Verification is in `verify.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from stillhouse.audit.contest import empty_form
from stillhouse.audit.disk import check_size, disk, refuse_foreign, turn, write_at
from stillhouse.audit.seal import (
    CONTEST,
    NAME,
    REQUIRED,
    SEAL,
    SEALED,
    Sealed,
    canonical,
    commit_of,
    compare,
    known_name,
    seal_of,
    sha256,
    shown,
)
from stillhouse.errors import ConfigError, DataError, EvidenceError
from stillhouse.files import sync_folder, write_whole

__all__ = ["MIN_SECRET_BYTES", "Bundle", "sealed_evidence"]

MIN_SECRET_BYTES = 16
"""A shorter secret is guessed from its hash, so committing to it would publish it. Ours."""

_NONE: Mapping[str, Any] = MappingProxyType({})


class Bundle:
    """A bundle being made. One process writes at a time; each call leaves the folder whole."""

    def __init__(self, folder: Path, plan: Mapping[str, Any], commit: Mapping[str, Any]) -> None:
        """Made by `begin`."""
        self.folder, self.plan, self._commit = folder, plan, commit
        self._sealed = folder / SEALED
        self._sizes: dict[str, int] = {}
        self.torn = 0
        """Lines that a crash had cut off, dropped on reopening; none of them was acknowledged."""
        self.root: str | None = None
        """The seal's root, in hex, once it is sealed: publish it with the bundle."""

    @classmethod
    def begin(
        cls,
        folder: Path,
        plan: Mapping[str, Any],
        *,
        before: Mapping[str, Iterable[Mapping[str, Any]]] = _NONE,
        secrets: Mapping[str, str] = _NONE,
    ) -> Bundle:
        """A bundle begun in `folder`, or the one begun there with the same plan, to go on with.

        Args:
            folder: made where there is none.
            plan: what is fixed beforehand; `test` names the evidence function.
            before: lines that are fixed beforehand too, by file name without `.jsonl`.
            secrets: values committed to by their SHA-256 (of the UTF-8 text) and revealed when
                sealing.

        Raises:
            ConfigError: another plan, other lines or secrets than those begun with; sealed
                already; foreign files; a name, a test or a secret that cannot be.
            DataError: lines without a canonical form, damaged files, a disk that refuses.
        """
        where = f"bundle {folder}"
        files = _planned(where, plan, before)
        fixed = [name.removesuffix(".jsonl") for name, file in files.items() if file.raw]
        now = datetime.now(UTC).isoformat(timespec="seconds")
        commit = commit_of(files, fixed, _hashed(where, secrets), now)
        with disk(where, "beginning it"):
            (folder / SEALED).mkdir(parents=True, exist_ok=True)
            for made in (folder, folder.parent):
                sync_folder(made)
            with turn(folder / SEALED):
                _write_form(folder)
                if (folder / SEALED / "commit.json").exists():
                    return cls._resume(folder, files, commit)
                refuse_foreign(where, folder / SEALED, set(files))
                for file in files.values():
                    write_whole(folder / SEALED / file.name, file.data, folder)
                path = folder / SEALED / "commit.json"
                write_whole(path, canonical(commit, where) + b"\n", folder)
        return cls(folder, files["plan.json"].read[0][0], commit)

    @classmethod
    def _resume(
        cls, folder: Path, files: Mapping[str, Sealed], commit: Mapping[str, Any]
    ) -> Bundle:
        """The bundle begun there, once it is known to be the same one."""
        where, sealed = f"bundle {folder}", folder / SEALED
        if (sealed / SEAL).exists():
            raise ConfigError(
                where, "it is sealed already", "a bundle that is not sealed",
                "Choose another folder for another audit; a sealed one is only verified",
            )  # fmt: skip
        lines = {path.name for path in sealed.iterdir() if known_name(path.name)}
        refuse_foreign(where, sealed, {*lines, *REQUIRED})
        there, plan = (_object(sealed / name) for name in ("commit.json", "plan.json"))
        changed = (
            "it was changed after it was committed to",
            "the bytes commit.json has the hash of",
        )
        if there.get("plan") != sha256((sealed / "plan.json").read_bytes()):
            raise _damaged(sealed / "plan.json", *changed)
        for path, begun, given in compare(plan, files["plan.json"].read[0][0]):
            raise _other(where, f"plan key '{'.'.join(path)}'", begun, given)
        for path, begun, given in compare({**there, "time": ""}, {**commit, "time": ""}):
            raise _other(where, f"'{'.'.join(path)}'", begun, given)
        for name, file in files.items():
            if not (sealed / name).exists() or (sealed / name).read_bytes() != file.data:
                raise _damaged(sealed / name, *changed)
        bundle = cls(folder, plan, there)
        bundle._recover()
        return bundle

    def _recover(self) -> None:
        """Drop what a crash cut off, and read all the rest."""
        for path in sorted(self._sealed.iterdir()):
            if path.suffix != ".jsonl":
                continue
            data = path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            self._lines_of(path, whole)
            if path.stem not in self._commit["before"]:
                self.torn += whole != data
                os.truncate(path, len(whole))
                self._sizes[path.stem] = len(whole)

    # ---- writing ----

    @property
    def commitment(self) -> str:
        """SHA-256 of commit.json, in hex: publish it before the first question is asked."""
        return sha256(canonical(self._commit, f"bundle {self.folder}") + b"\n")

    def append(self, name: str, lines: Iterable[Mapping[str, Any]]) -> None:
        """Nothing; when it returns, the lines are on the disk, at the end of NAME.jsonl.

        Of several lines a crash may keep the first ones: go on from `lines(name)`. No lines at all
        make an empty file.

        Raises:
            ConfigError: a bad name, lines committed to before, or the bundle is sealed.
            DataError: a line without a canonical form, another writer, a disk that refuses; then
                nothing is kept.
        """
        where = f"bundle {self.folder}, {name}.jsonl"
        _check_name(where, name)
        if name in self._commit["before"]:
            raise ConfigError(
                where, "its lines are in the commitment", "lines that are not fixed yet",
                "Give all of them to `begin`, or append under another name",
            )  # fmt: skip
        data = _joined(where, lines)
        with disk(where, "appending"), turn(self._sealed):
            self._refuse_sealed()
            end = self._sizes.get(name, 0)
            write_at(self._sealed / f"{name}.jsonl", data, end)
            self._sizes[name] = end + len(data)

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The lines of NAME.jsonl as they are on the disk; none where nothing was appended.

        Raises:
            ConfigError: a bad name.
            DataError: a damaged line.
        """
        _check_name(f"bundle {self.folder}", name)
        path = self._sealed / f"{name}.jsonl"
        with disk(str(path), "reading"):
            return self._lines_of(path, path.read_bytes()) if path.exists() else []

    def seal(self, evidence: Mapping[str, Any], *, reveal: Mapping[str, Any] = _NONE) -> None:
        """Nothing; the bundle is sealed, and `root` says by what.

        Args:
            evidence: what the plan's evidence function returned for these lines.
            reveal: every secret that was committed to; what else it holds is bound by the seal
                only, and verification says so.

        Raises:
            ConfigError: a secret is missing or another; foreign files; sealed already.
            EvidenceError: the evidence is of another test than the plan.
            DataError: values without a canonical form, another writer, a disk that refuses.
        """
        where = f"bundle {self.folder}"
        data = {
            "reveal.json": canonical(reveal, f"{where}, reveal") + b"\n",
            "evidence.json": canonical(evidence, f"{where}, evidence") + b"\n",
        }
        if evidence.get("test") != self.plan["test"]:
            raise EvidenceError(
                f"{where}, evidence", f"test {shown(evidence.get('test'))}",
                f"{shown(self.plan['test'])}, as the plan says",
                "Seal what the plan's own evidence function returned",
            )  # fmt: skip
        self._check_revealed(reveal)
        with disk(where, "sealing"), turn(self._sealed):
            self._refuse_sealed()
            names = {f"{name}.jsonl" for name in (*self._commit["before"], *self._sizes)}
            refuse_foreign(where, self._sealed, {*names, *REQUIRED})
            for name, size in self._sizes.items():
                path = self._sealed / f"{name}.jsonl"
                check_size(path, path.stat().st_size, size)
            for name, content in data.items():
                write_whole(self._sealed / name, content, self.folder)
            files = {n: Sealed(n, (self._sealed / n).read_bytes()) for n in {*names, *REQUIRED}}
            self._check_committed(files)
            seal = seal_of(files.values())
            write_whole(self._sealed / SEAL, canonical(seal, where) + b"\n", self.folder)
            for left in self.folder.glob(".*.new"):  # of a crash
                left.unlink()
            self.root = seal["root"]

    # ---- refusals ----

    def _refuse_sealed(self) -> None:
        if (self._sealed / SEAL).exists():
            raise ConfigError(
                f"bundle {self.folder}", "it is sealed", "a bundle that is not sealed",
                "Begin another one in another folder",
            )  # fmt: skip

    def _check_revealed(self, reveal: Mapping[str, Any]) -> None:
        for name, expected in self._commit["secrets"].items():
            value = reveal.get(name)
            if not isinstance(value, str) or sha256(value.encode()) != expected:
                raise ConfigError(
                    f"bundle {self.folder}, secret '{name}'",
                    "another value than was committed to" if name in reveal else "not revealed",
                    f"the text whose SHA-256 is {expected}",
                    "Reveal the secret the bundle was begun with",
                )  # fmt: skip

    def _check_committed(self, files: Mapping[str, Sealed]) -> None:
        now = commit_of(
            files, self._commit["before"], self._commit["secrets"], self._commit["time"]
        )
        for path, found, fixed in compare(now, self._commit):
            raise _damaged(
                self._sealed, f"'{'.'.join(path)}' is {shown(found)} now",
                f"{shown(fixed)}, as committed to",
            )  # fmt: skip
        if files["commit.json"].data != canonical(self._commit, "commit.json") + b"\n":
            raise _damaged(self._sealed / "commit.json", "it was changed", "what `begin` wrote")

    def _lines_of(self, path: Path, data: bytes) -> list[dict[str, Any]]:
        file = Sealed(path.name, data)
        values, faults = file.read
        if file.withheld:
            faults = [*faults, f"{file.withheld} lines are withheld"]
        if faults:
            raise _damaged(path, faults[0], "canonical lines, as they were appended")
        return values


# ---- what is finished ----


def sealed_evidence(
    folder: Path,
    plan: Mapping[str, Any],
    before: Mapping[str, Iterable[Mapping[str, Any]]] = _NONE,
) -> dict[str, Any] | None:
    """The evidence of a bundle that is sealed with this very plan and these earlier lines.

    None where there is no such bundle. What was sealed is not verified here.
    """
    sealed = folder / SEALED
    if not (sealed / SEAL).exists():
        return None
    with disk(f"bundle {folder}", "reading"):
        there = {name: (sealed / name).read_bytes() for name in ("plan.json", "evidence.json")}
        same = there["plan.json"] == canonical(plan, "plan") + b"\n" and all(
            (sealed / f"{name}.jsonl").exists()
            and (sealed / f"{name}.jsonl").read_bytes() == _joined(name, lines)
            for name, lines in before.items()
        )
    return Sealed("evidence.json", there["evidence.json"]).read[0][0] if same else None


# ---- what is planned ----


def _planned(
    where: str, plan: Mapping[str, Any], before: Mapping[str, Iterable[Mapping[str, Any]]]
) -> dict[str, Sealed]:
    """The files that are fixed beforehand, by name."""
    data = {"plan.json": canonical(plan, f"{where}, plan") + b"\n"}
    if not isinstance(plan.get("test"), str):
        raise ConfigError(
            f"{where}, plan", f"test {shown(plan.get('test'))}", "the name of a test",
            "Set plan['test'] to the name of its evidence function",
        )  # fmt: skip
    for name, lines in before.items():
        _check_name(where, name)
        data[f"{name}.jsonl"] = _joined(f"{where}, {name}.jsonl", lines)
    return {name: Sealed(name, content) for name, content in data.items()}


def _hashed(where: str, secrets: Mapping[str, str]) -> dict[str, str]:
    canonical(secrets, f"{where}, secrets")
    for name, value in secrets.items():
        size = len(value.encode()) if isinstance(value, str) else 0
        if size < MIN_SECRET_BYTES:
            raise ConfigError(
                f"{where}, secret '{name}'", f"a {type(value).__name__} of {size} bytes",
                f"text of at least {MIN_SECRET_BYTES}: a shorter one is guessed from its hash",
                "Draw it with secrets.token_hex(32)",
            )  # fmt: skip
    return {name: sha256(value.encode()) for name, value in secrets.items()}


def _joined(where: str, lines: Iterable[Mapping[str, Any]]) -> bytes:
    numbered = enumerate(lines, 1)
    return b"".join(canonical(line, f"{where}, line {n} given") + b"\n" for n, line in numbered)


def _check_name(where: str, name: str) -> None:
    if NAME.fullmatch(name) is None:
        raise ConfigError(
            where, f"the name {name!r}", "small letters, digits, - and _, a letter first",
            "Choose such a name for the file of raw lines",
        )  # fmt: skip


def _other(where: str, what: str, begun: Any, given: Any) -> ConfigError:
    return ConfigError(
        where, f"{what} is {shown(given)}, and the bundle was begun with {shown(begun)}",
        "what was fixed beforehand, unchanged",
        "Go on with the same plan, lines and secrets, or name another --out; if nothing was asked "
        "yet, the folder may be deleted",
    )  # fmt: skip


def _object(path: Path) -> dict[str, Any]:
    values, faults = Sealed(path.name, path.read_bytes()).read
    if faults or not values:
        raise _damaged(path, faults[0] if faults else "it is empty", "one canonical object")
    return values[0]


def _damaged(path: Path, found: str, expected: str) -> DataError:
    return DataError(
        str(path), found, expected,
        "Put the file back from a copy, or begin again in another folder",
    )  # fmt: skip


def _write_form(folder: Path) -> None:
    """The empty form, where there is none; whatever stands there is the accused's."""
    contest = folder / CONTEST
    contest.mkdir(exist_ok=True)
    if not any(contest.glob("*.yaml")):
        write_whole(contest / "contest.yaml", empty_form(), folder)
