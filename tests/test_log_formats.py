"""Lines of known logs are recognised and read; what the requester wrote makes none of them bad."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from stillhouse.exchange import canonical_json, to_dict
from stillhouse.log_formats import NAMES, read_record, recognise
from stillhouse.log_records import BadLine, NotAChat, parse, parsed_text, time_of
from tests.exchanges import frozen
from tests.guard.log_lines import START, line

CHAT = {
    "timestamp": "2025-11-01T12:00:00Z", "api_key_hash": "k1", "ip": "1.2.3.4",
    "request": {
        "model": "gpt-9", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0.2,
        "tools": [{"type": "function", "function": {"name": "f"}}],
    },
    "response": {
        "id": "c1", "object": "chat.completion", "created": 1762000000,
        "usage": {"prompt_tokens": 5, "completion_tokens": 7}, "choices": [],
    },
}  # fmt: skip
MESSAGES = {
    "ts": 1762000000, "account_id": 77, "metadata": {"device_id": "d", "plan": "edu"},
    "request": {"body": {
        "model": "claude-9", "system": "Be kind.", "max_tokens": 9,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
    }},
    "response": {"body": {
        "id": "m1", "type": "message", "stop_reason": "end_turn",
        "usage": {"input_tokens": 5, "output_tokens": 7, "cache_read_input_tokens": 100},
    }},
}  # fmt: skip


def test_litellm_payload_is_read_field_by_field() -> None:
    found = line(4)
    assert recognise(found) == "litellm"
    record = read_record(found)
    assert (record.account, record.organisation, record.model) == ("account-4", "team-1", "big")
    assert record.time_us == int((START + 240) * 1e6)
    assert (record.request, record.session) == ("chatcmpl-4", "trace-1")
    assert (record.input_tokens, record.output_tokens, record.cost_usd) == (54, 24, 0.002)
    assert record.parameters == {"temperature": 0.7, "max_tokens": 500}
    assert (record.address, record.payment) == ("10.0.0.4", "card-1")
    assert (record.device, record.channel) == ("d1", "education")
    assert record.signup == "2025-10-01T00:00:00Z"
    assert record.messages == found["messages"]


def test_litellm_organisation_comes_before_the_team() -> None:
    found = line(1)
    found["metadata"]["user_api_key_org_id"] = "org"
    assert read_record(found).organisation == "org"


@pytest.mark.parametrize(
    "messages", [None, [], "redacted-by-litellm",
                 [{"role": "user", "content": "redacted-by-litellm"}]],
)  # fmt: skip
def test_litellm_without_text_is_read_as_metadata_alone(messages: Any) -> None:
    assert read_record(line(1, messages=messages)).messages is None


def test_litellm_spend_logs_are_read() -> None:
    row = {
        "request_id": "r1", "call_type": "acompletion", "api_key": "hash", "spend": 0.5,
        "prompt_tokens": 3, "completion_tokens": 4, "startTime": "2025-11-01 12:00:00+00:00",
        "model": "m", "team_id": "t", "metadata": json.dumps({"user_agent": "curl"}),
        "messages": "{}", "session_id": "s", "requester_ip_address": "::1",
        "proxy_server_request": json.dumps(
            {"messages": [{"role": "user", "content": "Hi"}], "temperature": 1}
        ),
    }  # fmt: skip
    record = read_record(row)
    assert (record.account, record.request, record.cost_usd) == ("hash", "r1", 0.5)
    assert (record.user_agent, record.organisation) == ("curl", "t")
    assert record.messages == [{"role": "user", "content": "Hi"}]
    assert record.parameters == {"temperature": 1}


def test_other_calls_of_litellm_are_no_conversation() -> None:
    with pytest.raises(NotAChat):
        read_record(line(1, call_type="aembedding"))


def test_openai_request_and_response_are_read() -> None:
    assert recognise(CHAT) == "openai"
    record = read_record(CHAT)
    assert (record.account, record.request, record.address) == ("k1", "c1", "1.2.3.4")
    assert (record.input_tokens, record.output_tokens) == (5, 7)
    assert record.parameters == {"temperature": 0.2}
    assert record.tools == CHAT["request"]["tools"]
    assert record.time_us == 1761998400_000000


def test_an_id_that_the_requester_chose_is_none() -> None:
    assert read_record(CHAT | {"custom_id": "request-1"}).request == "c1"


def test_anthropic_request_and_response_are_read_and_cached_tokens_count() -> None:
    assert recognise(MESSAGES) == "anthropic"
    record = read_record(MESSAGES)
    assert (record.account, record.device, record.channel) == ("77", "d", "edu")
    assert (record.input_tokens, record.output_tokens) == (105, 7)
    assert (record.system, record.parameters) == ("Be kind.", {"max_tokens": 9})


def test_a_line_that_is_the_request_itself_is_read() -> None:
    record = read_record(
        {"time": 1762000000, "user": "u", "model": "m", "messages": [], "temperature": 2, "x": 1}
    )
    assert (record.account, record.parameters) == ("u", {"temperature": 2})


def test_the_end_user_is_the_account_only_where_no_other_is_recorded() -> None:
    asked = {**CHAT["request"], "safety_identifier": "end"}
    assert read_record({**CHAT, "request": asked}).account == "k1"
    without = {k: v for k, v in CHAT.items() if k != "api_key_hash"}
    assert read_record({**without, "request": asked}).account == "end"
    claude = {**MESSAGES["request"]["body"], "metadata": {"user_id": "who"}}
    assert read_record({**MESSAGES, "account_id": None, "request": claude}).account == "who"


WITHOUT = {name: value for name, value in CHAT.items() if name != "api_key_hash"}


def asked_by(**names: Any) -> str:
    return read_record({**WITHOUT, "request": {**CHAT["request"], **names}}).account


def test_no_name_that_a_requester_chose_hides_the_request() -> None:
    long = asked_by(user="x" * 300)
    assert long.startswith("blake2b:")
    assert long == asked_by(user="x" * 300) != asked_by(user="x" * 301)
    assert asked_by(user="x" * 256) == "x" * 256
    assert asked_by(safety_identifier={"a": 1}, user="u") == "u"
    assert asked_by(user={"a": 1}).startswith("blake2b:")
    assert asked_by(user={"a": 1}) != asked_by(user=[1])
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert asked_by(user=deep).startswith("blake2b:")
    flat = {"time": 1762000000, "user": "x" * 300, "model": "m", "messages": []}
    assert read_record(flat).account == long
    with pytest.raises(BadLine, match="no account"):
        asked_by(user="", safety_identifier=None)


@pytest.mark.parametrize("name", ["account", "user"])
def test_an_overlong_name_that_the_gateway_wrote_is_a_reason(name: str) -> None:
    with pytest.raises(BadLine, match="account name over 256 bytes"):
        read_record({**WITHOUT, name: "x" * 257})


@pytest.mark.parametrize("body", [1, {}, {"messages": []}])
def test_a_body_within_the_request_does_not_hide_it(body: Any) -> None:
    record = read_record({**CHAT, "request": {**CHAT["request"], "body": body}})
    assert record.messages == CHAT["request"]["messages"]


@pytest.mark.parametrize("name", ["user-agent", "User-Agent", "USER-AGENT"])
def test_the_user_agent_is_read_from_headers_in_any_case(name: str) -> None:
    sent = {"host": "h", name: "curl"}
    assert read_record({**CHAT, "headers": sent}).user_agent == "curl"
    inside = {"headers": sent, "body": CHAT["request"]}
    assert read_record({**CHAT, "request": inside}).user_agent == "curl"


def test_the_responses_form_is_read() -> None:
    record = read_record({
        "time": 1762000000, "account": "a", "request": {"model": "m", "input": "Hi"},
        "response": {"object": "response", "usage": {"input_tokens": 1, "output_tokens": 2}},
    })  # fmt: skip
    assert (record.messages, record.input_tokens, record.output_tokens) == ("Hi", 1, 2)


def test_exchanges_are_read() -> None:
    exchange = next(e for e in frozen() if e.account)
    form = json.loads(canonical_json(to_dict(exchange)))
    assert recognise(form) == "exchange"
    record = read_record(form)
    assert (record.account, record.request) == (exchange.account, exchange.id)


def test_every_name_of_a_field_is_found() -> None:
    for names in NAMES.values():
        assert len(set(names)) == len(names)
    for name in NAMES["account"]:
        row = {"time": 1762000000, name: "me", "request": {"model": "m", "messages": []}}
        assert read_record(row).account == "me"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"metadata": {}}, "no account"),
        ({"metadata": {"user_api_key_hash": "x" * 257}}, "account name over 256 bytes"),
        ({"metadata": {"user_api_key_hash": {"a": 1}}}, "no account"),
        ({"startTime": None}, "no time"),
        ({"startTime": "yesterday"}, "time unreadable"),
        ({"startTime": [1]}, "time unreadable"),
        ({"startTime": True}, "time unreadable"),
        ({"startTime": 12.0}, "time out of range"),
        ({"startTime": 1e300}, "time out of range"),
        ({"startTime": 10**400}, "time out of range"),
        ({"startTime": float("nan")}, "time out of range"),
        ({"startTime": time.time() + 2 * 86_400}, "time out of range"),
        ({"prompt_tokens": -1}, "a count out of range"),
        ({"prompt_tokens": 2**31}, "a count out of range"),
        ({"completion_tokens": "many"}, "a count that is no number"),
    ],
)
def test_what_the_gateway_wrote_wrongly_is_a_reason(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadLine, match=reason):
        read_record(line(1, **changes))


def test_an_unknown_format_is_a_reason() -> None:
    assert recognise({"a": 1}) is None
    with pytest.raises(BadLine, match="format not recognised"):
        read_record({"a": 1})


@pytest.mark.parametrize(
    "changes",
    [
        {"messages": 5}, {"messages": {"a": [1]}}, {"messages": [1, None, [], {}]},
        {"messages": [{"role": ["user"], "content": {"x": 1}}]}, {"model_parameters": "none"},
        {"model_parameters": {"temperature": "hot", "tools": "all", "max_tokens": -4}},
        {"user_agent": 7}, {"model_group": None, "model": ["m"]}, {"call_type": ["x"]},
        {"messages": "plain"},
    ],
)  # fmt: skip
def test_what_the_requester_wrote_makes_no_line_bad(changes: dict[str, Any]) -> None:
    assert read_record(line(1, **changes)).account == "account-1"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{", "no JSON"), (b"[1]", "no JSON object"), (b'"text"', "no JSON object"),
        (b'{"a": "\xff"}', "not UTF-8"), (b'{"a":' + b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1} x', "no JSON"), (b"\0\0\0", "no JSON"),
    ],
)  # fmt: skip
def test_a_line_without_an_object_is_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadLine, match=reason):
        parse(data)


def test_half_a_surrogate_pair_hides_no_request() -> None:
    found = parse(json.dumps(line(1, messages=[{"role": "user", "content": "\ud800 hi"}])).encode())
    assert read_record(found).messages[0]["content"] == "\ud800 hi"


def test_a_number_of_thousands_of_digits_hides_no_request() -> None:
    found = parse(json.dumps(line(1, odd=0)).replace('"odd": 0', f'"odd": {"9" * 5000}').encode())
    assert read_record(found).account == "account-1"
    assert found["odd"] == float("inf")


def test_text_columns_that_hold_json_are_parsed_and_others_left() -> None:
    assert parsed_text('{"a": 1}') == {"a": 1}
    assert parsed_text("[not json") == "[not json"
    assert parsed_text("plain") == "plain"


def test_times_are_read_in_units_and_zones() -> None:
    assert time_of(1762000000) == time_of(1762000000000, 1e-3) == time_of("2025-11-01T12:26:40Z")
    assert time_of("2025-11-01T14:26:40+02:00") == time_of("2025-11-01 12:26:40")
