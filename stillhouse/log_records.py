"""What a line of a log says: who asked what, when, how and from where.

In: bytes of a line, values as gateways write them. Out: the object on the line, and the checked
values of a `LogRecord`; or `BadLine` with a reason. What the requester wrote never makes a line
bad, or bad requests would hide from the scan; what the gateway wrote must be right. Nothing here
opens files or knows whose format a line is in.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

__all__ = [
    "EARLIEST", "EARLIEST_SIGNUP", "INT32", "BadLine", "LogRecord", "NotAChat", "account_of",
    "cost_of", "count_of", "name_of", "parse", "parsed_text", "requester_of", "time_of",
]  # fmt: skip

ACCOUNT_BYTES = 256
"""Longest account name. Gateways' hashes have 64 characters. Ours, by hand."""
# Language models are not served before this, and clocks are not ahead by more than a day.
EARLIEST = int(datetime(2020, 1, 1, tzinfo=UTC).timestamp() * 1e6)
EARLIEST_SIGNUP = int(datetime(2000, 1, 1, tzinfo=UTC).timestamp() * 1e6)
"""Accounts may be older than the models they ask. Ours, by hand; it shuts out zeros."""
_AHEAD_US = 86_400_000_000
INT32 = 2**31 - 1


class BadLine(ValueError):
    """Why a line is no event: the words rejects are counted under."""


class NotAChat(BadLine):
    """The line is sound, and of a call that is no conversation (an embedding, say)."""


@dataclass(slots=True)
class LogRecord:
    """One request as a log has it. None: not recorded."""

    account: str
    time_us: int
    """Microseconds since 1970, UTC, of the request."""
    model: str | None = None
    organisation: str | None = None
    request: str | None = None
    session: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None
    parameters: Mapping[str, Any] | None = None
    messages: Any = None
    """As sent: a list of messages, or a text."""
    system: Any = None
    """A system prompt that stands apart from the messages."""
    tools: Any = None
    address: str | None = None
    user_agent: str | None = None
    payment: str | None = None
    device: str | None = None
    channel: str | None = None
    signup: Any = None
    """When the account was made, as the log writes it; numbers are seconds."""
    signup_from: int = EARLIEST_SIGNUP
    """Microseconds since 1970; what is earlier is no sign-up."""
    answer: Any = None
    """The response, for those who read exchanges back."""


# ---- lines to objects ----


def parse(line: bytes) -> dict[str, Any]:
    """The object on a line.

    Raises:
        BadLine: it holds none.
    """
    import orjson

    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        found = _parse_slowly(line)
    if not isinstance(found, dict):
        raise BadLine("no JSON object")
    return found


def _parse_slowly(line: bytes) -> Any:
    """For what orjson refuses: halves of surrogate pairs, which any requester can send, and NaN."""
    try:
        return json.loads(line.decode(), parse_int=_whole_of)
    except UnicodeDecodeError:
        raise BadLine("not UTF-8") from None
    except RecursionError:
        raise BadLine("nested too deeply") from None
    except ValueError:
        raise BadLine("no JSON") from None


def _whole_of(digits: str) -> int | float:
    """Python refuses to make whole numbers of over 4,300 digits, which any requester can send."""
    return int(digits) if len(digits) <= 4000 else float(digits)


def parsed_text(value: Any) -> Any:
    """A value that may be JSON written as text inside a column, as an object or list."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return _parse_slowly(value.encode("utf-8", "surrogatepass"))
        except BadLine:
            return value
    return value


# ---- values ----


def time_of(value: Any, unit_seconds: float = 1.0, earliest: int = EARLIEST) -> int:
    """Microseconds since 1970 of a number of seconds (or other units), or of an ISO 8601 text.

    A time without a zone is taken as UTC.

    Raises:
        BadLine: no time, or one before the earliest (2020) or over a day from now.
    """
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise BadLine("time unreadable") from None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        value, unit_seconds = moment.timestamp(), 1.0
    elif isinstance(value, datetime):
        value = (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
        unit_seconds = 1.0
    elif value is None:
        raise BadLine("no time")
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise BadLine("time unreadable")
    try:
        micros = value * unit_seconds * 1e6
    except OverflowError:  # a whole number of hundreds of digits
        micros = math.inf
    if not earliest <= micros <= time.time() * 1e6 + _AHEAD_US:
        raise BadLine("time out of range: before 2020, or over a day ahead")
    return round(micros)


def count_of(value: Any) -> int | None:
    """A count as the gateway wrote it.

    Raises:
        BadLine: it is none, or does not fit 32 bits.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadLine("a count that is no number")
    if not 0 <= value <= INT32:
        raise BadLine("a count out of range")
    return int(value)


def name_of(value: Any) -> str | None:
    """A name or id as text; None where there is none."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float) else None


def account_of(value: Any) -> str:
    """An account's name.

    Raises:
        BadLine: there is none, or it is no name by its length.
    """
    account = name_of(value)
    if account is None:
        raise BadLine("no account")
    if account.isascii() and len(account) <= ACCOUNT_BYTES:  # nearly all
        return account
    if len(account.encode("utf-8", "surrogatepass")) > ACCOUNT_BYTES:
        raise BadLine(f"account name over {ACCOUNT_BYTES} bytes")
    return account.encode("utf-8", "replace").decode()  # half a surrogate pair fits no column


def requester_of(*names: Any) -> str | None:
    """The account by the names that requesters give themselves; None where they gave none.

    The first that is a name counts. An over-long one is known by its digest, as is the first of
    the others where there is no name at all: whatever was sent, the request is not lost.
    """
    given = [name for name in names if name is not None and name != ""]
    named = next((name for name in map(name_of, given) if name is not None), None)
    if named is None:
        return _digest(_text_of_json(given[0])) if given else None
    data = named.encode("utf-8", "surrogatepass")
    return named if len(data) <= ACCOUNT_BYTES else _digest(data)


def _digest(data: bytes) -> str:
    return "blake2b:" + hashlib.blake2b(data, digest_size=16).hexdigest()


def _text_of_json(value: Any) -> bytes:
    try:
        return json.dumps(value, sort_keys=True).encode()
    except RecursionError:
        return b"nested too deeply"


def cost_of(value: Any) -> float | None:
    """A price in dollars; None for what is none."""
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e9 else None
