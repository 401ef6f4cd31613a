"""A suspect that someone else runs: requests in a file, answers from one.

    FOLDER/requests.jsonl   handed to whoever runs the suspect
    FOLDER/answers.jsonl    comes back
    FOLDER/key              stays here: without it nobody tells served answers from twins

In: pairs, requests. Out: raw lines in the bundle. Each answer of a pair is a request of its own
under a name that says nothing, in an order that says nothing, so that whoever runs the suspect
cannot lean. The format of both files is in docs/audit.md.
"""

from __future__ import annotations

import hmac
import json
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.audit.bundle import Bundle
from stillhouse.audit.pair_checks import SIDES
from stillhouse.errors import ConfigError, DataError
from stillhouse.exchange import Exchange, Request
from stillhouse.files import read_secret, whole_lines, write_secret, write_whole

__all__ = ["REPEATED_PAIRS", "Batch", "Waiting", "is_batch", "jsonable", "place_of"]

Line = Mapping[str, Any]

REPEATED_PAIRS = 8
"""Pairs asked a second time at the end: a suspect that changed in between shows there."""


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
            lines = [
                json.dumps({"id": name, **shown[name][0]}, ensure_ascii=False) + "\n"
                for name in sorted(shown)
            ]
            write_whole(self.requests, "".join(lines))
            return Waiting(self.spec, self.requests, self.answers, len(shown), _discloses(pairs))
        kind = "scores" if access == "logprobs" else "continuations"
        there = [_place(line) for line in bundle.lines(kind)]  # of a run that was cut short
        answered = list(self._lines(shown, access))
        bundle.append(kind, [line for line in answered if _place(line) not in there])
        return None

    def _shown(
        self, pairs: Sequence[Line], requests: Sequence[Request], access: str
    ) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
        """Name -> (the request as it is shown, the beginning of the raw line its answer makes)."""
        if access == "text":
            return {
                self._name(r.labels["exchange"], r.labels["sample"], r.labels["round"]): (
                    {
                        "task": "answer", "messages": _plain(r.prompt),
                        "temperature": r.sampling.temperature,
                        "max_tokens": r.sampling.max_tokens, "seed": r.sampling.seed,
                    },
                    place_of(r),
                )
                for r in requests
            }  # fmt: skip
        return {
            self._name(pair["exchange"], side, role): (
                {
                    "task": "score", "messages": _plain_lines(pair[side]["prompt"]),
                    "answer": pair[side]["response"].get("text") or "",
                    "ended": pair[side].get("finish_reason") == "stop",
                },
                {"role": role, "exchange": pair["exchange"], "side": side},
            )
            for role, some in (("suspect", pairs), ("repeat", pairs[:REPEATED_PAIRS]))
            for pair in some
            for side in SIDES
        }  # fmt: skip

    def _name(self, *parts: str) -> str:
        return hmac.digest(self._key, " ".join(parts).encode(), "sha256").hex()[:24]

    @property
    def _key(self) -> bytes:
        path = self.folder / "key"
        if not path.exists():
            write_secret(path, secrets.token_bytes(32))
        key = read_secret(path, "the batch's key", "Take it from a copy, or begin in a new folder")
        if len(key) != 32:
            raise DataError(
                str(path), f"{len(key)} bytes", "the 32 bytes of the batch's key",
                "Delete it if no requests were handed out yet; else take it from a copy",
            )  # fmt: skip
        return key

    def _lines(self, shown: Mapping[str, Any], access: str) -> Iterator[dict[str, Any]]:
        wanted = "logprobs" if access == "logprobs" else "text"
        seen: set[str] = set()
        for number, text in enumerate(whole_lines(self.answers), start=1):
            where = f"{self.answers}:{number}"
            if not text.strip():
                continue
            try:
                line = json.loads(text.decode())
            except ValueError:  # bytes that are not UTF-8, too
                raise _unfit(where, "a line that is not JSON in UTF-8") from None
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
            told = jsonable(value) if wanted == "logprobs" else value
            yield shown[name][1] | {wanted: told} | (more if wanted == "text" else {})
        if len(seen) < len(shown):
            missing = sorted(set(shown) - seen)
            raise _unfit(str(self.answers), f"{len(missing)} of {len(shown)} answers missing, "
                         f"the first is {missing[0]}")  # fmt: skip


def _place(line: Line) -> tuple[Any, ...]:
    return tuple(line.get(key) for key in ("role", "exchange", "side", "sample", "round"))


def place_of(request: Request | Exchange) -> dict[str, Any]:
    """What the raw line of a request's answer begins with."""
    labels = request.labels
    return {"exchange": labels["exchange"], "sample": int(labels["sample"]),
            "round": int(labels["round"])}  # fmt: skip


def jsonable(logprobs: Any) -> list[float | None]:
    """Log-probabilities as raw lines hold them: null for a token held impossible."""
    return [float(value) if math.isfinite(value) else None for value in logprobs]


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
    characters = sum(len(pair[s]["response"].get("text") or "") for pair in pairs for s in SIDES)
    return (
        f"the prompts and both answers of {len(pairs)} exchanges ({characters:,} characters of "
        "answers). Whoever trains on them afterwards is tested in vain with them: with --ledger "
        "they are noted, and later audits leave them out. Whoever kept the served answers can tell "
        "them from their twins"
    )
