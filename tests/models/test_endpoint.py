"""OpenAI-compatible servers: a real one (llama.cpp's), and one that fails as servers fail."""

import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import numpy as np
import pytest

from stillhouse.errors import CapabilityError, ConfigError, ModelError, TransportError
from stillhouse.exchange import Exchange, Message, Part, Request, Sampling, Tool, ToolCall, message
from stillhouse.models import Failure
from stillhouse.models.endpoint import EndpointModel, _asked_wait
from stillhouse.models.llamacpp import LlamaCppModel
from tests.models.chat_server import ChatServer
from tests.models.conftest import ask


@pytest.fixture
def server() -> Iterator[ChatServer]:
    server = ChatServer()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")


def opened(server: ChatServer, **options: object) -> EndpointModel:
    settings = {"first_wait_seconds": 0.01, "timeout_seconds": 60.0, "attempts": 3, **options}
    return EndpointModel(server.url, "m", spec=f"{server.url}#m", **settings)  # type: ignore[arg-type]


def one(model: EndpointModel, request: Request, top_logprobs: int = 0) -> Exchange | Failure:
    (came,) = model.answer([request], top_logprobs=top_logprobs)
    return came


# ---- a real server -----------------------------------------------------------------------------


@pytest.mark.weights
def test_a_real_server_answers_with_log_probabilities(
    llama: LlamaCppModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama.start()
    monkeypatch.setenv("OPENAI_API_KEY", llama.server.key)
    url = f"{llama.server.address}/v1"
    with EndpointModel(url, llama.path.name, spec=f"{url}#x", slots=2) as model:
        requests = [ask("Say hi.", temperature=0.0, seed=n, max_tokens=8) for n in range(3)]
        came = list(model.answer(requests, top_logprobs=4))
        direct = list(llama.answer(requests[:1], top_logprobs=4))
    assert {c.key for c in came if isinstance(c, Exchange)} == {r.key for r in requests}
    first, other = came[0], direct[0]
    assert isinstance(first, Exchange)
    assert isinstance(other, Exchange)
    assert first.response == other.response
    assert first.served_model == llama.path.name
    assert first.input_tokens == other.input_tokens
    assert first.logprobs is not None
    assert other.logprobs is not None
    assert np.array_equal(first.logprobs.token_ids, other.logprobs.token_ids)  # type: ignore[arg-type]
    assert first.logprobs.top is not None
    assert first.logprobs.top.shape == (8, 4)
    assert first.logprobs.tokenizer == f"served:{url}#{llama.path.name}"


@pytest.mark.weights
def test_a_real_server_s_own_truncation_is_switched_off(
    llama: LlamaCppModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp would keep to min_p 0.05 and top_k 40 where nothing is said."""
    llama.start()
    monkeypatch.setenv("OPENAI_API_KEY", llama.server.key)
    url = f"{llama.server.address}/v1"
    with EndpointModel(url, llama.path.name, spec="s", slots=4) as model:
        requests = [ask("Write any word.", seed=seed, max_tokens=1) for seed in range(40)]
        below = 0
        for exchange in model.answer(requests, top_logprobs=20):
            if isinstance(exchange, Exchange) and exchange.logprobs is not None:
                assert exchange.logprobs.top is not None
                floor = exchange.logprobs.top[0, 0] + np.log(0.05)
                below += bool(exchange.logprobs.chosen[0] < floor)
    assert below >= 4


@pytest.mark.weights
def test_rows_a_real_server_leaves_out_are_no_silent_gap(
    llama: LlamaCppModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama.start()
    monkeypatch.setenv("OPENAI_API_KEY", llama.server.key)
    url = f"{llama.server.address}/v1"
    emoji = ask("Say hi with emoji 🎉 and Ärger", temperature=0.0, max_tokens=4)
    cut = ask("Say hi.", temperature=0.0, max_tokens=40, stop=("help",))
    with EndpointModel(url, llama.path.name, spec="s") as model:
        failure, exchange = one(model, emoji, 3), one(model, cut, 3)
    assert isinstance(failure, Failure)
    assert not failure.retryable
    assert "gguf:PATH" in failure.error.todo
    assert isinstance(exchange, Exchange)
    assert exchange.logprobs is not None


@pytest.mark.weights
def test_a_wrong_key_ends_it_at_once(llama: LlamaCppModel, monkeypatch: pytest.MonkeyPatch) -> None:
    llama.start()
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    with EndpointModel(f"{llama.server.address}/v1", "m", spec="s") as model:
        with pytest.raises(ModelError, match="HTTP 401") as caught:
            one(model, ask("hi"))
        assert "OPENAI_API_KEY" in caught.value.todo
        assert "wrong" not in str(caught.value)


# ---- what is sent and read ---------------------------------------------------------------------


def test_what_was_asked_is_sent_and_recorded(server: ChatServer) -> None:
    call = ToolCall(id="c1", name="clock", arguments="{}")
    request = Request(
        prompt=(
            message("system", "be brief"),
            Message(role="user", content=(Part(text="what "), Part(text="time?"))),
            Message(role="assistant", tool_calls=(call,)),
            Message(role="tool", content=(Part(text="noon"),), tool_call_id="c1"),
            Message(role="user", content=(Part(text="see"), Part(kind="image", uri="data:x"))),
            message("user", "so?"),
        ),
        sampling=Sampling(
            temperature=0.5, top_p=0.9, max_tokens=7, seed=3, stop=("\n",), top_k=0, min_p=0.0,
            frequency_penalty=0.0, presence_penalty=0.1, repeat_penalty=1.0, sample_index=0,
        ),
        tools=(Tool(name="clock", description="tells", parameters='{"type": "object"}'),),
        labels={"prompt_id": "p"},
    )  # fmt: skip
    with opened(server) as model:
        exchange = one(model, request)
    assert server.asked == [
        {
            "model": "m", "temperature": 0.5, "top_p": 0.9, "max_tokens": 7, "seed": 3,
            "stop": ["\n"], "frequency_penalty": 0.0, "presence_penalty": 0.1,
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "what time?"},
                {"role": "assistant", "content": None, "tool_calls": [
                    {"id": "c1", "type": "function",
                     "function": {"name": "clock", "arguments": "{}"}}]},
                {"role": "tool", "content": "noon", "tool_call_id": "c1"},
                {"role": "user", "content": [
                    {"type": "text", "text": "see"},
                    {"type": "image_url", "image_url": {"url": "data:x"}}]},
                {"role": "user", "content": "so?"},
            ],
            "tools": [{"type": "function", "function": {
                "name": "clock", "description": "tells", "parameters": {"type": "object"}}}],
        }
    ]  # fmt: skip
    assert isinstance(exchange, Exchange)
    assert exchange.key == request.key
    assert exchange.labels == {"prompt_id": "p"}
    assert (exchange.model, exchange.served_model) == ("m", "m-2026-11")
    assert (exchange.input_tokens, exchange.output_tokens) == (5, 2)
    assert exchange.finish_reason == "stop"


def test_foreign_settings_go_where_they_say_something(server: ChatServer) -> None:
    with opened(server) as model:
        one(model, ask("a", top_k=0, min_p=0.0, repeat_penalty=1.0))
        one(model, ask("a", top_k=5, min_p=0.1, repeat_penalty=1.2))
    assert not {"top_k", "min_p", "repeat_penalty"} & set(server.asked[0])
    assert {"top_k": 5, "min_p": 0.1, "repeat_penalty": 1.2}.items() <= server.asked[1].items()


@pytest.mark.parametrize(
    ("owner", "sent"),
    [
        ("llamacpp", {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}),
        ("vllm", {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}),
    ],
)
def test_servers_with_defaults_of_their_own_are_told_everything(
    owner: str, sent: dict[str, float]
) -> None:
    server = ChatServer(owned_by=owner)
    try:
        with opened(server) as model:
            one(model, ask("a"))
        assert sent.items() <= server.asked[0].items()
    finally:
        server.close()


def test_tool_calls_and_reasoning_are_kept(server: ChatServer) -> None:
    server.answer = {
        "content": None, "reasoning_content": "hm",
        "tool_calls": [{"id": "c", "type": "function",
                        "function": {"name": "clock", "arguments": '{"a":  1}'}}],
    }  # fmt: skip
    server.choice = {"finish_reason": "tool_calls"}
    with opened(server) as model:
        exchange = one(model, ask("a"))
    assert isinstance(exchange, Exchange)
    assert exchange.response.tool_calls == (ToolCall(id="c", name="clock", arguments='{"a":  1}'),)
    assert exchange.response.text is None
    assert exchange.reasoning == "hm"
    assert exchange.finish_reason == "tool_calls"


def rows(*tokens: dict) -> dict:  # type: ignore[type-arg]
    return {"logprobs": {"content": list(tokens)}}


def row(token: str, nats: float, *top: tuple[str, float]) -> dict:  # type: ignore[type-arg]
    return {"token": token, "logprob": nats,
            "top_logprobs": [{"token": t, "logprob": v} for t, v in top]}  # fmt: skip


def test_vllm_s_token_ids_are_read() -> None:
    server = ChatServer(owned_by="vllm")
    server.choice = rows(
        row("token_id:7", -0.5, ("token_id:7", -0.5), ("token_id:9", -1.5)),
        row("token_id:2", -3.0, ("token_id:1", -0.2)),
    )
    try:
        with opened(server) as model:
            exchange = one(model, ask("a"), 2)
    finally:
        server.close()
    assert server.asked[0]["return_tokens_as_token_ids"] is True
    assert server.asked[0]["top_logprobs"] == 2
    assert isinstance(exchange, Exchange)
    columns = exchange.logprobs
    assert columns is not None
    assert columns.token_ids is not None
    assert columns.top_ids is not None
    assert columns.top is not None
    assert columns.token_ids.tolist() == [7, 2]
    assert columns.top_ids.tolist() == [[7, 9], [1, 0]]
    assert columns.top.tolist()[1] == [pytest.approx(-0.2), -np.inf]
    assert columns.engine == "vllm"


def test_log_probabilities_that_do_not_come_are_an_error(server: ChatServer) -> None:
    with opened(server) as model, pytest.raises(CapabilityError, match="no log-probabilities"):
        one(model, ask("a"), 5)
    server.choice = rows(row("hi", -0.5, ("hi", -0.5)))
    with opened(server) as model, pytest.raises(CapabilityError, match="without token ids"):
        one(model, ask("a"), 5)
    with opened(server) as model, pytest.raises(CapabilityError, match="top-21"):
        model.answer([], top_logprobs=21)
    with opened(server) as model, pytest.raises(CapabilityError, match="scoring"):
        model.score([])
    with opened(server) as model, pytest.raises(CapabilityError, match="full logits"):
        model.distributions([])


# ---- what goes wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "faults",
    [[429, 500], [503], ["cut"], [b"not json"], [b"[]"], [b"{}"], [b'{"choices": [{}]}'], [408]],
)
def test_what_may_pass_is_asked_again(server: ChatServer, faults: list) -> None:  # type: ignore[type-arg]
    server.faults = list(faults)
    with opened(server) as model:
        exchange = one(model, ask("a"))
        assert isinstance(exchange, Exchange)
        assert model.asked_again == len(faults)
    assert len(server.asked) == len(faults) + 1


@pytest.mark.parametrize(
    ("fault", "words"), [(500, "HTTP 500"), (b"<html>", "no chat response"), ("cut", "broke")]
)
def test_what_does_not_pass_fails_alone_and_may_be_asked_later(
    server: ChatServer, fault: object, words: str
) -> None:
    server.faults = [fault] * 3
    with opened(server, slots=1) as model:
        failure, exchange = model.answer([ask("a"), ask("b")])
    assert isinstance(failure, Failure)
    assert failure.retryable
    assert isinstance(failure.error, TransportError)
    assert words in str(failure.error)
    assert isinstance(exchange, Exchange)


def test_a_silent_server_runs_into_the_timeout(server: ChatServer) -> None:
    server.faults = [1.0]
    with opened(server, timeout_seconds=0.2) as model:
        assert isinstance(one(model, ask("a")), Exchange)
        assert model.asked_again == 1
        server.faults = [1.0] * 3
        failure = one(model, ask("b"))
    assert isinstance(failure, Failure)
    assert "no answer within 0.2 s" in str(failure.error)


def test_the_pause_a_server_asks_for_is_kept(server: ChatServer) -> None:
    server.faults = [(429, {"Retry-After": "0.6"})]
    with opened(server) as model:
        one(model, ask("a"))
    assert server.times[1] - server.times[0] >= 0.55
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    wait = _asked_wait({"retry-after": later})
    assert wait is not None
    assert 30 < wait <= 90


def test_pauses_that_make_no_sense_are_not_kept() -> None:
    assert _asked_wait({"retry-after": "soon"}) is None
    assert _asked_wait({}) is None
    assert _asked_wait({"retry-after": "-3"}) == 0.0


def test_a_refused_request_fails_alone_and_for_good(server: ChatServer) -> None:
    server.faults = [400]
    with opened(server, slots=1) as model:
        failure, exchange = model.answer([ask("a"), ask("b")])
    assert isinstance(failure, Failure)
    assert not failure.retryable
    assert "refused (HTTP 400): as scripted" in str(failure.error)
    assert isinstance(exchange, Exchange)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_no_request_would_escape_ends_it(server: ChatServer, status: int) -> None:
    server.faults = [status]
    with opened(server) as model, pytest.raises(ModelError, match=f"HTTP {status}"):
        one(model, ask("a"))


def test_an_unreachable_server_ends_it() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with EndpointModel(url, "m", spec="s", attempts=2, first_wait_seconds=0.01) as model:
        with pytest.raises(TransportError, match="no connection") as caught:
            one(model, ask("a"))
        assert url in caught.value.expected


def test_a_part_the_chat_form_cannot_carry_fails_alone(server: ChatServer) -> None:
    audio = Message(role="user", content=(Part(kind="audio", uri="a.wav"),))
    bad_tool = Request(
        prompt=(message("user", "a"),), sampling=Sampling(), tools=(Tool(name="t", parameters="{"),)
    )
    with opened(server) as model:
        for request, words in (
            (Request(prompt=(audio,), sampling=Sampling()), "kind 'audio'"),
            (bad_tool, "parameters of tool 't' are not JSON"),
        ):
            failure = one(model, request)
            assert isinstance(failure, Failure)
            assert not failure.retryable
            assert words in str(failure.error)
    assert server.asked == []


def test_requests_are_drawn_as_slots_become_free(server: ChatServer) -> None:
    server.seconds = 0.03
    drawn = []

    def requests() -> Iterator[Request]:
        for number in range(12):
            drawn.append(number)
            yield ask(f"{number}")

    with opened(server, slots=4) as model:
        answers = model.answer(requests())
        assert drawn == []
        texts = set()
        for count, came in enumerate(answers, start=1):
            assert isinstance(came, Exchange)
            texts.add(came.response.text)
            assert len(drawn) <= count + 4
    assert texts == {f"to {n}" for n in range(12)}
    assert server.most_open == 4


def test_leaving_early_cancels_what_is_open(server: ChatServer) -> None:
    server.faults = [None, 90.0, 90.0, 90.0]
    threads = threading.active_count()
    started = time.monotonic()
    with opened(server, slots=4, timeout_seconds=100.0) as model:
        next(model.answer(ask(f"{n}") for n in range(100)))
    assert time.monotonic() - started < 45
    assert threading.active_count() <= threads + 4  # the server's own


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="0 attempts"):
        EndpointModel("http://h/v1", "m", spec="s", attempts=0)


def test_the_key_comes_from_the_environment(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "from-here")
    with opened(server) as model:
        one(model, ask("a"))
    assert server.keys == ["Bearer from-here"]
