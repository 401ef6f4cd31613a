"""Lines of known logs: LiteLLM's, requests with responses in two forms, exchanges.

In: a parsed line. Out: its format, and the `LogRecord` it stands for. The fields are those of
LiteLLM 1.109 (StandardLoggingPayload, and rows of SpendLogs), of OpenAI's chat completions,
completions and responses, and of Anthropic's messages. Nothing here opens files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from stillhouse.log_records import (
    EARLIEST,
    INT32,
    BadLine,
    LogRecord,
    NotAChat,
    account_of,
    cost_of,
    count_of,
    name_of,
    parsed_text,
    requester_of,
    time_of,
)

__all__ = ["FORMATS", "NAMES", "read_record", "recognise"]

REDACTED = "redacted-by-litellm"
"""What LiteLLM writes in the place of every text where message logging is off."""

NAMES: dict[str, tuple[str, ...]] = {
    "account": ("account", "account_id", "api_key_hash", "api_key_id", "key_id",
                "user_api_key_hash", "customer_id", "user_id", "user"),
    "organisation": ("organisation", "organization", "organisation_id", "organization_id",
                     "org_id", "team_id"),
    "time": ("time", "timestamp", "ts", "@timestamp", "request_time", "start_time", "startTime",
             "created_at"),
    "request_id": ("request_id", "id"),  # not custom_id: requesters choose it, and repeat it
    "session": ("session", "session_id", "conversation_id", "trace_id"),
    "address": ("address", "ip", "ip_address", "client_ip", "remote_addr", "client.address",
                "requester_ip_address"),
    "user_agent": ("user_agent", "user-agent", "user_agent.original"),
    "payment": ("payment", "payment_fingerprint"),
    "device": ("device", "device_id", "ja4", "ja3"),
    "channel": ("channel", "programme", "program", "plan"),
    "signup": ("signup", "signup_time", "account_created_at"),
    "cost_usd": ("cost_usd", "response_cost", "spend"),
}  # fmt: skip
"""What a field may be called beside a request and its response, or in their `metadata`."""

# What LiteLLM calls everything that is no conversation, with and without an 'a' before it.
_OTHER_CALLS = frozenset(
    name
    for call in (
        "embedding", "moderation", "transcription", "speech", "image_generation", "image_edit",
        "rerank", "create_file", "retrieve_file", "delete_file", "list_files", "file_content",
        "create_batch", "retrieve_batch", "list_batches", "call_mcp_tool", "list_mcp_tools",
    )
    for name in (call, "a" + call)
)  # fmt: skip
_NOT_PARAMETERS = frozenset([
    "model", "messages", "input", "prompt", "system", "instructions", "tools", "functions", "user",
    "safety_identifier", "metadata", "extra_headers", "extra_body",
])  # fmt: skip


def _object(value: Any) -> Mapping[str, Any]:
    value = parsed_text(value)
    return value if isinstance(value, dict) else {}


def _parameters(sent: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sent.items() if name not in _NOT_PARAMETERS}


# ---- LiteLLM ----


def _is_litellm(line: Mapping[str, Any]) -> bool:
    return "startTime" in line and ("metadata" in line or "api_key" in line)


def _litellm(line: Mapping[str, Any]) -> LogRecord:
    """StandardLoggingPayload (LiteLLM 1.109), and rows of LiteLLM_SpendLogs."""
    if name_of(line.get("call_type")) in _OTHER_CALLS:
        raise NotAChat("not a conversation")
    meta = _object(line.get("metadata"))
    known = _object(meta.get("user_api_key_auth_metadata"))
    sent = _object(line.get("model_parameters") or line.get("proxy_server_request"))
    messages = parsed_text(line.get("messages"))
    if not messages or messages == "{}" or _redacted(messages):
        messages = sent.get("messages") or None  # SpendLogs keep them with the request
        messages = None if messages is None or _redacted(messages) else messages
    get = line.get
    return LogRecord(
        account=account_of(meta.get("user_api_key_hash") or get("api_key")),
        time_us=time_of(get("startTime")),
        model=name_of(get("model_group") or get("model")),
        organisation=name_of(
            meta.get("user_api_key_org_id") or meta.get("user_api_key_team_id")
            or get("organization_id") or get("team_id")
        ),
        request=name_of(get("id") or get("request_id") or get("litellm_call_id")),
        session=name_of(get("session_id") or get("trace_id")),
        input_tokens=count_of(get("prompt_tokens")),
        output_tokens=count_of(get("completion_tokens")),
        cost_usd=cost_of(get("response_cost", get("spend"))),
        parameters=_parameters(sent),
        messages=messages,
        tools=sent.get("tools") or sent.get("functions"),
        address=name_of(get("requester_ip_address") or meta.get("requester_ip_address")),
        user_agent=name_of(get("user_agent") or meta.get("user_agent")),
        payment=_known(known, "payment") if known else None,
        device=_known(known, "device") if known else None,
        channel=_known(known, "channel") if known else None,
        signup=_first(known, _SIGNUP) if known else None,
        signup_from=EARLIEST,  # the detector was measured on such lines with it
        answer=get("response"),
    )  # fmt: skip


_SIGNUP = ("signup_time", "signup", "account_created_at")


def _known(known: Mapping[str, Any], field: str) -> str | None:
    for name in NAMES[field]:
        if name in known:
            return name_of(known[name])
    return None


def _redacted(messages: Any) -> bool:
    if isinstance(messages, str):
        return messages == REDACTED
    first = messages[0] if isinstance(messages, list) and messages else None
    return isinstance(first, dict) and first.get("content") == REDACTED


# ---- a request and its response ----


_TEXTS = ("messages", "input", "prompt")


def _body(value: Any) -> Mapping[str, Any]:
    """What was sent or answered, out of the envelope some gateways put around it.

    What has text of its own is no envelope: a requester may have sent a `body`, too.
    """
    value = _object(value)
    if "body" in value and not any(name in value for name in _TEXTS):
        return _object(value["body"])
    return value


def _request_of(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """The request's body: under `request` or `body`, or the line itself."""
    for name in ("request", "request_body", "body"):
        if name in line:
            return _body(line[name])
    return line


def _response_of(line: Mapping[str, Any]) -> Mapping[str, Any]:
    return _body(line["response"] if "response" in line else line.get("response_body"))


def _asks(line: Mapping[str, Any]) -> bool:
    asked = _request_of(line)
    has_text = any(name in asked for name in _TEXTS)
    return has_text and ("model" in asked or asked is not line)


def _is_anthropic(line: Mapping[str, Any]) -> bool:
    if not _asks(line):
        return False
    asked, answered = _request_of(line), _response_of(line)
    if answered.get("type") == "message" or "stop_reason" in answered:
        return True
    by_name = name_of(asked.get("model")) or ""
    return "object" not in answered and (
        "anthropic_version" in asked or "system" in asked or by_name.startswith("claude")
    )


def _pair(line: Mapping[str, Any], used: tuple[tuple[str, ...], tuple[str, ...]]) -> LogRecord:
    """What both forms have in common; `used` names the counts in the response's `usage`."""
    asked, answered = _request_of(line), _response_of(line)
    meta = _object(line.get("metadata")) if asked is not line else {}
    usage = _object(answered.get("usage"))
    found = _found(line, meta)
    account = found.get("account")
    if not account or (asked is line and line.keys().isdisjoint(NAMES["account"][:-1])):
        account = requester_of(  # the gateway names nobody: `user` is a request's own field
            account, asked.get("safety_identifier"), asked.get("user"),
            _object(asked.get("metadata")).get("user_id"),
        )  # fmt: skip
    when = found.get("time")
    when = answered.get("created", answered.get("created_at")) if when is None else when
    return LogRecord(
        account=account_of(account), time_us=time_of(when),
        model=name_of(asked.get("model")),
        organisation=name_of(found.get("organisation")),
        request=name_of(found.get("request_id") or answered.get("id")),
        session=name_of(found.get("session")),
        input_tokens=count_of(_first(usage, used[0])),
        output_tokens=count_of(_first(usage, used[1])),
        cost_usd=cost_of(found.get("cost_usd")),
        parameters=_flat_parameters(line) if asked is line else _parameters(asked),
        messages=_first(asked, _TEXTS),
        system=_first(asked, ("system", "instructions")),
        tools=asked.get("tools") or asked.get("functions"),
        address=name_of(found.get("address")),
        user_agent=name_of(found.get("user_agent") or _agent_in_headers(line)),
        payment=name_of(found.get("payment")), device=name_of(found.get("device")),
        channel=name_of(found.get("channel")), signup=found.get("signup"),
        answer=line.get("response", line.get("response_body")),
    )  # fmt: skip


def _agent_in_headers(line: Mapping[str, Any]) -> Any:
    """The User-Agent among a request's headers, whose names have letters of any case."""
    headers = _object(_object(line.get("request")).get("headers") or line.get("headers"))
    return next((held for name, held in headers.items() if name.lower() == "user-agent"), None)


_FLAT = ("temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens", "n", "stop",
         "stream", "frequency_penalty", "presence_penalty", "response_format",
         "tool_choice", "reasoning_effort", "thinking")  # fmt: skip


def _flat_parameters(line: Mapping[str, Any]) -> dict[str, Any]:
    """Of a line that is the request itself: what is known to be a parameter."""
    return {name: line[name] for name in _FLAT if name in line}


def _first(values: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    for name in names:
        value = values.get(name)
        if value is not None:
            return value
    return None


def _found(line: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `NAMES` that the line, or else its `metadata`, has."""
    found: dict[str, Any] = {}
    for part in (meta, line):
        for field, name in _names_in(tuple(part)):
            if part[name] is not None:
                found[field] = part[name]
    return found


@lru_cache(maxsize=4096)
def _names_in(keys: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """(field, the first of its names that is among the keys)."""
    chosen = ((field, [n for n in names if n in keys]) for field, names in NAMES.items())
    return tuple((field, names[0]) for field, names in chosen if names)


def _openai(line: Mapping[str, Any]) -> LogRecord:
    """A request to /chat/completions, /completions or /responses, with its response."""
    return _pair(line, (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens")))


def _anthropic(line: Mapping[str, Any]) -> LogRecord:
    """A request to /messages, with its response."""
    record = _pair(line, (("input_tokens",), ("output_tokens",)))
    usage = _object(_response_of(line).get("usage"))
    cached = [count_of(usage.get(f"cache_{how}_input_tokens")) for how in ("read", "creation")]
    if record.input_tokens is not None:  # the API counts cached tokens apart
        record.input_tokens = min(INT32, record.input_tokens + sum(c or 0 for c in cached))
    return record


# ---- exchanges ----


def _is_exchange(line: Mapping[str, Any]) -> bool:
    return "version" in line and "sampling" in line and isinstance(line.get("response"), dict)


def _exchange(line: Mapping[str, Any]) -> LogRecord:
    """An exchange in its JSON form; infrastructure stands in its labels."""
    labels = _object(line.get("labels"))
    found = _found({}, labels)
    return LogRecord(
        account=account_of(line.get("account")), time_us=time_of(line.get("time")),
        model=name_of(line.get("model")), organisation=name_of(found.get("organisation")),
        request=name_of(line.get("id")), session=name_of(line.get("session")),
        input_tokens=count_of(line.get("input_tokens")),
        output_tokens=count_of(line.get("output_tokens")),
        parameters=_parameters(_object(line.get("sampling"))),
        messages=line.get("prompt"), tools=line.get("tools") or None,
        address=name_of(found.get("address")), user_agent=name_of(found.get("user_agent")),
        payment=name_of(found.get("payment")), device=name_of(found.get("device")),
        channel=name_of(found.get("channel")), signup=found.get("signup"), answer=line,
    )  # fmt: skip


# ---- recognition ----

FORMATS: dict[str, tuple[Callable[[Mapping[str, Any]], bool], Callable[..., LogRecord]]] = {
    "litellm": (_is_litellm, _litellm),
    "exchange": (_is_exchange, _exchange),
    "anthropic": (_is_anthropic, _anthropic),
    "openai": (_asks, _openai),
}
"""Format -> (whether a line is of it, how it is read), in the order they are tried."""


def recognise(line: Mapping[str, Any]) -> str | None:
    """The format of a line; None for one that is none of `FORMATS`."""
    return next((name for name, (fits, _) in FORMATS.items() if fits(line)), None)


def read_record(line: Mapping[str, Any]) -> LogRecord:
    """What a line of any of `FORMATS` says.

    Raises:
        BadLine: it is of none of them, or lacks account or time.
    """
    for fits, read in FORMATS.values():
        if fits(line):
            return read(line)
    raise BadLine("format not recognised")
