"""Two records that audits leave behind: what was shown to somebody, and what was begun.

`Ledger` is a file of the exchanges that were handed out; later audits leave them out. The log of
begun audits lies beside the answers (in the escrow's folder, or beside the store), grows by a line
for each audit, and its count is sealed with each: a test that was tried until it spoke is seen.
Whoever keeps a log can leave it out, so it binds the honest only; a published commitment binds all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stillhouse.audit.pair_checks import has_texts
from stillhouse.audit.selection import prompt_key
from stillhouse.errors import DataError
from stillhouse.exchange import canonical_json, from_dict
from stillhouse.files import append_lines, whole_lines

__all__ = ["Ledger", "begun"]

Line = Mapping[str, Any]


class Ledger:
    """Which exchanges were shown to somebody, one JSON line each; no file means none is kept."""

    def __init__(self, path: Path | None) -> None:
        """Read what earlier audits noted.

        Raises:
            DataError: a line that is none of a ledger's.
        """
        self.path = path
        self._entries = [] if path is None else _entries(path, ("prompt", "bundle"))

    def prompts(self, bundle: Path) -> list[str]:
        """Prompts that other audits disclosed before this bundle was begun."""
        plan = bundle / "sealed" / "plan.json"
        if plan.exists():  # what held when it was begun
            return list(json.loads(plan.read_text("utf-8"))["spent"])
        name = _name_of(bundle)
        return sorted({e["prompt"] for e in self._entries if e["bundle"] != name})

    def spend(self, pairs: Sequence[Line], bundle: Path, suspect: str) -> None:
        """Nothing; the pairs that are shown are noted, once."""
        if self.path is None:
            return
        name = _name_of(bundle)
        noted = {e["prompt"] for e in self._entries if e["bundle"] == name}
        entries: list[dict[str, Any]] = []
        for pair in pairs:
            if "withheld" in pair or not has_texts(pair):
                continue
            prompt = prompt_key(from_dict(pair["served"]))
            if prompt not in noted:
                entries.append({"prompt": prompt, "exchange": pair["exchange"], "bundle": name,
                                "suspect": suspect, "time": _now()})  # fmt: skip
        self._entries += entries
        _append(self.path, entries)


def begun(log: Path, plan: Line, bundle: Path) -> int:
    """Which audit of the plan's suspect this is, by a log in which it is noted once.

    Args:
        log: the file; made where there is none.
        plan: all of it that was decided; the same plan in the same folder is the same audit.
        bundle: the folder.

    Raises:
        DataError: a line that is none of the log's.
    """
    entries = _entries(log, ("suspect", "audit"))
    mark = hashlib.sha256(f"{_name_of(bundle)} {canonical_json(dict(plan))}".encode()).hexdigest()
    own = [entry["audit"] for entry in entries if entry["suspect"] == plan["suspect"]]
    if mark not in own:
        own.append(mark)
        _append(log, [{"suspect": plan["suspect"], "audit": mark, "time": _now()}])
    return own.index(mark) + 1


def _entries(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    # an entry that a kill cut short was never acknowledged: nothing was asked after it
    for number, text in enumerate(whole_lines(path), start=1):
        try:
            entry = json.loads(text)
            found.append({key: entry[key] for key in keys})
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{path}:{number}", "no entry of such a file", "a JSON line as audits write",
                "Put it back from a copy; without it earlier audits would go unseen",
            ) from None  # fmt: skip
    return found


def _append(path: Path, entries: Sequence[Line]) -> None:
    try:
        append_lines(path, map(json.dumps, entries))
    except OSError as problem:
        raise DataError(
            str(path), f"writing failed ({problem.strerror or problem})", "a file that takes it",
            "Make room, or allow writing there, then run the command again",
        ) from problem  # fmt: skip


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _name_of(bundle: Path) -> str:
    """A name for a bundle that shows no path: of where it lies."""
    return hashlib.sha256(str(bundle.resolve()).encode()).hexdigest()[:16]
