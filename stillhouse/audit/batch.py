"""A suspect that someone else runs: requests in a file, answers from one, and a ledger of what was
shown.

    FOLDER/requests.jsonl   handed to whoever runs the suspect
    FOLDER/answers.jsonl    comes back
    FOLDER/key              stays here: without it nobody tells served answers from twins

In: pairs, requests. Out: raw lines in the bundle. Each answer of a pair is a request of its own
under a name that says nothing, in an order that says nothing, so that whoever runs the suspect
cannot lean. The format of both files is in docs/audit.md.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stillhouse.audit.bundle import Bundle
from stillhouse.errors import ConfigError, DataError
from stillhouse.exchange import Request

__all__ = ["Batch", "Ledger", "Waiting", "is_batch"]

Line = Mapping[str, Any]

_SIDES = ("served", "twin")


def is_batch(spec: str) -> bool:
    """Whether a suspect is asked through files."""
    return spec.startswith("batch:")


@dataclass(frozen=True, slots=True)
class Waiting:
    """An audit that waits for a file of answers."""

    suspect: str
    requests: Path
    answers: Path
    count: int
    discloses: str
    """What whoever gets the requests learns."""


class Batch:
    """The folder of a suspect that is asked through files."""

    def __init__(self, spec: str) -> None:
        """The folder of `batch:FOLDER`; made when requests are written.

        Raises:
            ConfigError: no folder is named.
        """
        target = spec.removeprefix("batch:")
        if not target:
            raise ConfigError(
                f"suspect '{spec}'", "nothing after 'batch:'", "batch:FOLDER",
                "Name the folder that requests and answers lie in",
            )  # fmt: skip
        self.spec, self.folder = spec, Path(target)
        self.requests, self.answers = (self.folder / f"{n}.jsonl" for n in ("requests", "answers"))

    def exchange(
        self, pairs: Sequence[Line], requests: Sequence[Request], bundle: Bundle, access: str
    ) -> Waiting | None:
        """What is waited for; None when the answers are there and their lines in the bundle.

        Raises:
            DataError: the answers do not fit the requests.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        shown = self._shown(pairs, requests, access)
        if not self.answers.exists():
            ordered = sorted(shown, key=lambda name: name)
            lines = [json.dumps({"id": name, **shown[name][0]}, ensure_ascii=False) for name in
                     ordered]  # fmt: skip
            _write_whole(self.requests, "".join(line + "\n" for line in lines))
            return Waiting(self.spec, self.requests, self.answers, len(shown), _discloses(pairs))
        kind = "scores" if access == "logprobs" else "continuations"
        if not any(line.get("role", "suspect") == "suspect" for line in bundle.lines(kind)):
            bundle.append(kind, list(self._lines(shown, access)))
        return None

    def _shown(
        self, pairs: Sequence[Line], requests: Sequence[Request], access: str
    ) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
        """Name -> (the request as it is shown, the beginning of the raw line its answer makes)."""
        if access == "text":
            return {
                self._name(r.labels["exchange"], r.labels["sample"]): (
                    {
                        "task": "answer", "messages": _plain(r.prompt),
                        "temperature": r.sampling.temperature,
                        "max_tokens": r.sampling.max_tokens, "seed": r.sampling.seed,
                    },
                    {"exchange": r.labels["exchange"], "sample": int(r.labels["sample"])},
                )
                for r in requests
            }  # fmt: skip
        return {
            self._name(pair["exchange"], side): (
                {
                    "task": "score", "messages": _plain_lines(pair[side]["prompt"]),
                    "answer": pair[side]["response"].get("text") or "",
                    "ended": pair[side].get("finish_reason") == "stop",
                },
                {"role": "suspect", "exchange": pair["exchange"], "side": side},
            )
            for pair in pairs
            if "withheld" not in pair
            for side in _SIDES
        }  # fmt: skip

    def _name(self, *parts: str) -> str:
        return hmac.digest(self._key, " ".join(parts).encode(), "sha256").hex()[:24]

    @property
    def _key(self) -> bytes:
        path = self.folder / "key"
        if not path.exists():
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
                f.write(secrets.token_bytes(32))
        return path.read_bytes()

    def _lines(self, shown: Mapping[str, Any], access: str) -> Iterator[dict[str, Any]]:
        wanted = "logprobs" if access == "logprobs" else "text"
        seen: set[str] = set()
        for number, text in enumerate(self.answers.read_text("utf-8").splitlines(), start=1):
            where = f"{self.answers}:{number}"
            try:
                line = json.loads(text)
            except ValueError:
                raise _unfit(where, "a line that is not JSON") from None
            name = str(line.get("id")) if isinstance(line, dict) else ""
            if name not in shown:
                raise _unfit(where, f"id {name!r}, which was not asked")
            if name in seen:
                raise _unfit(where, f"id {name!r} a second time")
            seen.add(name)
            value = line.get(wanted)
            fits = isinstance(value, str) if wanted == "text" else _are_logprobs(value)
            if not fits:
                raise _unfit(where, f"no usable '{wanted}'")
            more = {"served_model": line.get("model"), "time": line.get("time")}
            yield shown[name][1] | {wanted: value} | (more if wanted == "text" else {})
        if len(seen) < len(shown):
            missing = sorted(set(shown) - seen)
            raise _unfit(str(self.answers), f"{len(missing)} of {len(shown)} answers missing, "
                         f"the first is {missing[0]}")  # fmt: skip


def _are_logprobs(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and v <= 1e-3 for v in value
    )


def _unfit(where: str, found: str) -> DataError:
    return DataError(
        where, found, "one JSON object for each request, with its 'id' and 'logprobs' (nats, one "
        "for each token of the answer) or 'text'", "Correct the file, then run the command again",
    )  # fmt: skip


def _plain(prompt: Sequence[Any]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.text} for message in prompt]


def _plain_lines(prompt: Sequence[Line]) -> list[dict[str, str]]:
    return [
        {"role": m["role"], "content": "".join(p.get("text") or "" for p in m.get("content", ()))}
        for m in prompt
    ]


def _discloses(pairs: Sequence[Line]) -> str:
    shown = [pair for pair in pairs if "withheld" not in pair]
    characters = sum(len(pair[s]["response"].get("text") or "") for pair in shown for s in _SIDES)
    return (
        f"the prompts and both answers of {len(shown)} exchanges ({characters:,} characters of "
        "answers). Whoever trains on them afterwards is tested in vain with them: with --ledger "
        "they are noted, and later audits leave them out. Whoever kept the served answers can tell "
        "them from their twins"
    )


# ---- what was shown before ----


class Ledger:
    """Which exchanges were shown to somebody, one JSON line each; no file means none is kept."""

    def __init__(self, path: Path | None) -> None:
        """Read what earlier audits noted.

        Raises:
            DataError: a line that is none of a ledger's.
        """
        self.path = path
        self._entries: list[dict[str, Any]] = []
        if path is not None and path.exists():
            for number, text in enumerate(path.read_text("utf-8").splitlines(), start=1):
                try:
                    entry = json.loads(text)
                    self._entries.append({key: entry[key] for key in ("prompt", "bundle")})
                except (ValueError, KeyError, TypeError):
                    raise DataError(
                        f"{path}:{number}", "no entry of a ledger", "a JSON line as audits write",
                        "Put it back from a copy; without it spent exchanges would be used again",
                    ) from None  # fmt: skip

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
        from stillhouse.audit.selection import prompt_key
        from stillhouse.exchange import from_dict

        name = _name_of(bundle)
        noted = {e["prompt"] for e in self._entries if e["bundle"] == name}
        time = datetime.now(UTC).isoformat(timespec="seconds")
        lines: list[str] = []
        for pair in pairs:
            prompt = prompt_key(from_dict(pair["served"]))
            if prompt not in noted and "withheld" not in pair:
                entry = {"prompt": prompt, "exchange": pair["exchange"], "bundle": name,
                         "suspect": suspect, "time": time}  # fmt: skip
                self._entries.append(entry)
                lines.append(json.dumps(entry) + "\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())


def _name_of(bundle: Path) -> str:
    """A name for a bundle that shows no path: of where it lies."""
    return hashlib.sha256(str(bundle.resolve()).encode()).hexdigest()[:16]


def _write_whole(path: Path, text: str) -> None:
    aside = path.with_suffix(".new")
    aside.write_text(text, "utf-8")
    aside.replace(path)
