"""Log lines as a gateway writes them: LiteLLM's StandardLoggingPayload, one JSON object a line.

In: accounts, events and the messages made for them. Out: bytes of a line; day files, written aside
and renamed when whole. Fields that follow from the account alone are serialised once for each.
"""

from __future__ import annotations

import gzip
import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from stillhouse.errors import DataError
from stillhouse.exchange import Exchange
from stillhouse.guard.simulate_accounts import LANGUAGES, Accounts
from stillhouse.guard.simulate_traffic import Events
from stillhouse.guard.simulate_words import mix

__all__ = ["MODELS", "Lines", "account_name", "day_file", "request_name"]

MODELS = (
    ("orrery-4-large", 3.0, 15.0), ("orrery-4-mid", 0.8, 4.0), ("orrery-4-small", 0.15, 0.6),
    ("orrery-4-reason", 2.0, 10.0), ("orrery-5-large", 3.0, 15.0),
)  # fmt: skip
"""Names, and list prices in USD for a million tokens in and out. The last one is the new model."""

_PEOPLE = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) Chrome/139.0", "OpenChat-Desktop/3.4.1",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 14_6) Safari/617.1", "OpenChat-Android/3.4",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5) Mobile/15E148", "OpenChat-iOS/3.4",
    "Mozilla/5.0 (X11; Linux x86_64) Firefox/141.0", "vscode-assist/2.11.0", "termpilot/0.9.2",
    "OpenAI/Python 1.99.1", "jet-assist/251.3", "obsidian-writer/1.2", "neo-chat/0.7", "curl/8.9.1",
)  # fmt: skip
_SERVERS = (
    "OpenAI/Python 1.99.1", "AsyncOpenAI/Python 1.99.1", "OpenAI/JS 5.11.0", "python-httpx/0.28.1",
    "OpenAI/Python 1.86.0", "LangChain/0.3.27", "axios/1.11.0", "Go-http-client/2.0",
    "okhttp/4.12.0", "python-requests/2.32.4", "node-fetch/3.3.2", "aiohttp/3.12.15",
    "OpenAI/Java 3.0.1", "reqwest/0.12.22", "OpenAI/Python 1.61.0", "Ruby/3.4 faraday/2.13",
)  # fmt: skip
_CHANNELS = ("self_serve", "sales", "education", "startup_credits", "security_research")
_TEMPERATURES = (None, 0.7, 0.0, 1.0, 0.2, 0.3, None, 0.5)
_LENGTHS = (None, 1024, 4096)
_TOKEN_BYTES = {"zh": 4.0, "ja": 4.2, "ru": 5.4, "ar": 4.6}  # of UTF-8 for a token; others 4.2
# Answers start after about half a second and come at about 60 tokens a second. Ours.
_FIRST_SECONDS, _TOKENS_A_SECOND = 0.5, 60.0
_KEPT = 50_000
_BUFFER_BYTES = 2**20


def account_name(seed: int, number: int) -> str:
    """64 hex digits, like the hash of a key."""
    return hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=32).hexdigest()


def request_name(seed: int) -> str:
    """The id of a request whose event has this seed."""
    return f"chatcmpl-{mix(seed, 1):016x}{mix(seed, 2) >> 32:08x}"


class Lines:
    """Makes the lines of a range."""

    def __init__(self, seed: int, start: date) -> None:
        """Nothing is made yet.

        Args:
            seed: of the range.
            start: its first day.
        """
        self.seed = seed
        self.begin = datetime(start.year, start.month, start.day, tzinfo=UTC).timestamp()
        self._known: OrderedDict[int, _Fixed] = OrderedDict()

    def line(
        self, accounts: Accounts, row: int, events: Events, at: int,
        messages: list[dict[str, Any]] | None, tools: list[dict[str, Any]] | None,
        answer: Exchange | None,
    ) -> bytes:  # fmt: skip
        """One line, newline included.

        Args:
            accounts: the table the event's row counts in.
            row: the account's row there.
            events: the day's events.
            at: the event's place among them.
            messages: as sent; None writes a line without text.
            tools: definitions sent as parameters.
            answer: whose response is given; None gives none.
        """
        fixed = self._fixed(accounts, row)
        seed, away = int(events.seed[at]), bool(events.away[at])
        model, price_in, price_out = MODELS[events.model[at]]
        tokens_in = round(int(events.prompt_bytes[at]) / fixed.token_bytes) + 4
        tokens_out = int(events.output_tokens[at])
        if answer is not None and answer.output_tokens is not None:
            tokens_out = answer.output_tokens
        start = round(self.begin + float(events.time[at]), 3)
        first = round(start + _FIRST_SECONDS * (0.6 + (seed & 1023) / 1280), 3)
        session = f"{int(events.session[at]):016x}"
        name = request_name(seed)
        record = {
            "id": name, "trace_id": session, "session_id": session, "call_type": "acompletion",
            "stream": fixed.stream, "status": "success", "custom_llm_provider": "hosted",
            "model": model, "model_group": model,
            "startTime": start, "completionStartTime": first,
            "endTime": round(first + tokens_out / _TOKENS_A_SECOND, 3),
            "prompt_tokens": tokens_in, "completion_tokens": tokens_out,
            "total_tokens": tokens_in + tokens_out,
            "response_cost": round((tokens_in * price_in + tokens_out * price_out) / 1e6, 8),
            "cache_hit": False, "end_user": self._end_user(accounts, row, events, at),
            "requester_ip_address": fixed.second if away else fixed.address,
            "user_agent": fixed.agent,
            "model_parameters": _parameters(fixed, tools), "metadata": fixed.metadata,
            "messages": messages, "response": _response(name, model, answer, tokens_in, tokens_out),
        }  # fmt: skip
        return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)

    def _end_user(self, accounts: Accounts, row: int, events: Events, at: int) -> str:
        """The hashed user that a third of declared organisations hand on; else empty."""
        if not accounts.organisation[row] or int(accounts.group_seed[row]) % 3:
            return ""
        return f"u{mix(int(accounts.group_seed[row]), int(events.session[at]) % 400):016x}"

    def _fixed(self, accounts: Accounts, row: int) -> _Fixed:
        number = int(accounts.number[row])
        found = self._known.get(number)
        if found is None:
            if len(self._known) >= _KEPT:
                self._known.popitem(last=False)
            found = self._known[number] = _Fixed(self.seed, accounts, row)
        return found


class _Fixed:
    """What all of an account's lines say."""

    __slots__ = (
        "address", "agent", "metadata", "parameters", "plain", "second", "stream", "token_bytes",
    )  # fmt: skip

    def __init__(self, seed: int, accounts: Accounts, row: int) -> None:
        name = account_name(seed, int(accounts.number[row]))
        organisation, firm = int(accounts.organisation[row]), bool(accounts.organisation[row])
        signup = datetime.fromtimestamp(int(accounts.signup[row]), UTC)
        auth: dict[str, Any] = {
            "signup_time": signup.isoformat().replace("+00:00", "Z"),
            "channel": _CHANNELS[accounts.channel[row]],
        }
        if accounts.payment[row]:
            auth["payment_fingerprint"] = f"card_{int(accounts.payment[row]):016x}"
        if accounts.device[row]:
            auth["device"] = f"dev_{int(accounts.device[row]):016x}"
        self.metadata = orjson.Fragment(orjson.dumps({
            "user_api_key_hash": name, "user_api_key_user_id": f"user-{name[:12]}",
            "user_api_key_team_id": None,
            "user_api_key_org_id": f"org-{organisation:016x}" if firm else None,
            "user_api_key_auth_metadata": auth,
        }))  # fmt: skip
        code = int(accounts.parameters[row])
        self.parameters: dict[str, Any] = {}
        if _TEMPERATURES[code % 8] is not None:
            self.parameters["temperature"] = _TEMPERATURES[code % 8]
        if _LENGTHS[code // 8] is not None:
            self.parameters["max_tokens"] = _LENGTHS[code // 8]
        if code % 8 == 5:
            self.parameters["top_p"] = 0.95
        self.plain = orjson.Fragment(orjson.dumps(self.parameters))
        server, six = bool(accounts.server[row]), bool(accounts.six[row])
        self.agent = (_SERVERS if server else _PEOPLE)[accounts.agent[row]]
        self.stream = not server or code % 4 == 0
        self.address = _address(int(accounts.address[row]), six)
        self.second = _address(int(accounts.second[row]), six)
        self.token_bytes = _TOKEN_BYTES.get(LANGUAGES[accounts.language[row]], 4.2)


def _parameters(fixed: _Fixed, tools: list[dict[str, Any]] | None) -> Any:
    return fixed.plain if not tools else fixed.parameters | {"tools": tools}


def _response(
    name: str, model: str, answer: Exchange | None, tokens_in: int, tokens_out: int
) -> dict[str, Any] | None:
    if answer is None:
        return None
    message = {"role": "assistant", "content": answer.response.text}
    if answer.reasoning is not None:
        message["reasoning_content"] = answer.reasoning
    choice = {"index": 0, "finish_reason": answer.finish_reason, "message": message}
    usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out}
    return {"id": name, "model": model, "choices": [choice], "usage": usage}


def _address(number: int, six: bool) -> str:
    """Dotted; on IPv6 a network of the documentation range with the same bits."""
    if six:
        return f"2001:db8:{number >> 8 & 0xFFFF:x}:{number & 0xFF:x}::{number >> 24:x}"
    return ".".join(str(number >> shift & 0xFF) for shift in (24, 16, 8, 0))


@contextmanager
def day_file(folder: Path, day: date, compress: bool) -> Iterator[BinaryIO]:
    """The file of a day, open for writing; it gets its name when it is whole.

    Raises:
        DataError: the disk refuses.
    """
    path = folder / f"{day.isoformat()}.jsonl{'.gz' if compress else ''}"
    aside = path.with_name(path.name + ".partial")
    try:
        with aside.open("wb", _BUFFER_BYTES) as raw:
            if compress:  # no name and no time in the header: equal content, equal bytes
                with gzip.GzipFile("", "wb", compresslevel=4, fileobj=raw, mtime=0) as file:
                    yield file  # type: ignore[misc]
            else:
                yield raw
        aside.replace(path)
    except OSError as problem:
        raise DataError(
            str(path), f"writing failed ({problem.strerror or problem})", "a disk that takes it",
            "Make room or choose another place",
        ) from problem  # fmt: skip
    finally:
        aside.unlink(missing_ok=True)
