"""llama.cpp on the teacher's real weights: every token has its row, settings are what they say, and
nothing is lost when the server dies."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.errors import CapabilityError, ModelError, TransportError
from stillhouse.exchange import Exchange, Part, Request, Sampling, Tool, message
from stillhouse.models import Failure
from stillhouse.models.llamacpp import LlamaCppModel
from stillhouse.models.llamarows import _ask_row, complete_positions, kept_tokens
from tests.models.conftest import ask

pytestmark = pytest.mark.weights

EMOJI = "Say hi with emoji 🎉 and Ärger"


def one(model: LlamaCppModel, request: Request, top_logprobs: int = 20) -> Exchange:
    (came,) = model.answer([request], top_logprobs=top_logprobs)
    assert isinstance(came, Exchange), came
    return came


def test_every_token_has_a_row_also_inside_characters(llama: LlamaCppModel) -> None:
    exchange = one(llama, ask(EMOJI, temperature=0.0, max_tokens=30))
    columns, pieces = exchange.logprobs, llama.vocabulary.pieces
    assert columns is not None
    assert columns.token_ids is not None
    assert columns.top_ids is not None
    assert columns.top is not None
    ids = columns.token_ids.tolist()
    assert len(ids) == exchange.output_tokens == 30
    partial = set(range(30)) - set(complete_positions(ids, pieces))
    assert len(partial) >= 5, "the prompt no longer leads to emoji: choose another"
    written = b"".join(pieces[token] for token in ids)
    assert written.decode(errors="ignore") == (exchange.response.text or "").rstrip("\ufffd")
    assert columns.top.shape == columns.top_ids.shape == (30, 20)
    assert (np.diff(columns.top, axis=1) <= 0).all()
    for position, token in enumerate(ids):
        where = np.flatnonzero(columns.top_ids[position] == token)
        if len(where):
            assert columns.chosen[position] == columns.top[position, where[0]]
        else:
            assert columns.chosen[position] <= columns.top[position, -1]
    assert columns.tokenizer == llama.vocabulary.hash
    assert columns.engine is not None
    assert columns.engine.startswith("llama.cpp 20")


def test_a_row_asked_for_again_is_the_row_that_came(llama: LlamaCppModel) -> None:
    exchange = one(llama, ask("Tell me about bread.", max_tokens=12))
    columns = exchange.logprobs
    assert columns is not None
    assert columns.token_ids is not None
    rendered = llama._loop.run(
        llama.server.call(
            "/apply-template", {"messages": [{"role": "user", "content": "Tell me about bread."}]}
        )
    )["prompt"]
    for position in (0, 5, 11):
        ids = columns.token_ids.tolist()
        nats, top = llama._loop.run(
            _ask_row(
                llama.server, llama.vocabulary, [rendered, *ids[:position]], ids[position], 20, 0
            )
        )
        assert columns.top is not None
        # llama.cpp's kernels round differently for different batches, by up to 0.32 nats as seen
        # here; another row would be off by whole nats
        assert nats == pytest.approx(columns.chosen[position], abs=1.0)
        apart = np.abs(np.array([v for _, v in top]) - columns.top[position])
        assert apart.mean() < 0.4


def test_a_token_outside_the_first_two_thousand_still_gets_its_probability(
    llama: LlamaCppModel,
) -> None:
    rare = llama.vocabulary.tokens.index("Ġsquadron")
    nats, top = llama._loop.run(
        _ask_row(llama.server, llama.vocabulary, ["The capital of France is"], rare, 20, 0)
    )
    assert rare not in dict(top)
    assert len(top) == 20
    assert -40 < nats < top[-1][1]


def test_an_answer_that_ends_has_its_end_of_turn_as_last_row(llama: LlamaCppModel) -> None:
    exchange = one(llama, ask("Say hi.", temperature=0.0, max_tokens=60))
    assert exchange.finish_reason == "stop"
    assert exchange.logprobs is not None
    assert exchange.logprobs.token_ids is not None
    assert exchange.logprobs.token_ids[-1] in llama.vocabulary.end_of_turn
    assert len(exchange.logprobs) == exchange.output_tokens
    assert exchange.served_model == llama.path.name


def test_an_answer_of_half_a_character_has_its_row(llama: LlamaCppModel) -> None:
    """llama.cpp then sends no rows at all."""
    exchange = one(llama, ask(EMOJI, temperature=0.0, max_tokens=1))
    assert exchange.logprobs is not None
    assert exchange.logprobs.token_ids is not None
    piece = llama.vocabulary.pieces[exchange.logprobs.token_ids[0]]
    assert piece == "🎉".encode()[:2]
    assert exchange.logprobs.top is not None
    assert exchange.logprobs.chosen[0] == exchange.logprobs.top[0, 0]


def test_what_is_recorded_is_what_was_asked(llama: LlamaCppModel) -> None:
    request = ask("Tell me a long story.", top_p=0.9, stop=(), max_tokens=4)
    exchange = one(llama, request, top_logprobs=0)
    assert exchange.key == request.key
    assert exchange.logprobs is None
    assert exchange.finish_reason == "length"
    assert exchange.output_tokens == 4
    assert (exchange.input_tokens or 0) > 20


def test_a_seed_repeats_its_answer_and_another_seed_does_not(llama: LlamaCppModel) -> None:
    """Of requests asked alone: among others, the batch and with it the rounding are others."""

    def answer(seed: int) -> str | None:
        return one(llama, ask("Invent a name.", seed=seed, max_tokens=24), 0).response.text

    drawn = [(answer(seed), answer(seed)) for seed in (5, 6, 7, 2**31)]
    assert all(one_time == other for one_time, other in drawn)
    assert len({one_time for one_time, _ in drawn}) >= 3


def test_llama_cpp_s_own_truncation_is_off(llama: LlamaCppModel) -> None:
    """Its defaults (top_k 40, min_p 0.05, top_p 0.95) would never choose what is drawn here."""
    requests = [ask("Write any word.", seed=seed, max_tokens=1) for seed in range(60)]
    below = 0
    for exchange in llama.answer(requests, top_logprobs=20):
        assert isinstance(exchange, Exchange)
        columns = exchange.logprobs
        assert columns is not None
        assert columns.top is not None
        below += bool(columns.chosen[0] < columns.top[0, 0] + np.log(0.05))
    assert below >= 6


def test_every_sampler_setting_arrives_as_sent(llama: LlamaCppModel) -> None:
    sampling = Sampling(temperature=0.7, top_k=7, top_p=0.8, min_p=0.01, frequency_penalty=0.2,
                        presence_penalty=0.1, repeat_penalty=1.1, max_tokens=3, seed=9)  # fmt: skip
    llama.start()
    body = llama._body(Request(prompt=(message("user", "hi"),), sampling=sampling), 2)
    answer = llama._loop.run(llama.server.call("/v1/chat/completions", body))
    used = answer["__verbose"]["generation_settings"]
    for name, value in {
        "temperature": 0.7, "top_k": 7, "top_p": 0.8, "min_p": 0.01, "frequency_penalty": 0.2,
        "presence_penalty": 0.1, "repeat_penalty": 1.1, "n_predict": 3, "seed": 9,
        "typical_p": 1.0, "xtc_probability": 0.0, "dry_multiplier": 0.0, "mirostat": 0,
        "dynatemp_range": 0.0, "post_sampling_probs": False,
    }.items():  # fmt: skip
        assert used[name] == pytest.approx(value), name
    assert used["samplers"] == ["penalties", "temperature", "top_k", "top_p", "min_p"]


def test_a_stop_string_cuts_text_and_rows_alike(llama: LlamaCppModel) -> None:
    whole = one(llama, ask("Say hi.", temperature=0.0, max_tokens=60))
    word = (whole.response.text or "").split()[3]
    cut = one(llama, ask("Say hi.", temperature=0.0, max_tokens=60, stop=(word,)))
    assert cut.finish_reason == "stop"
    assert cut.response.text == (whole.response.text or "").partition(word)[0]
    assert cut.logprobs is not None
    assert cut.logprobs.token_ids is not None
    written = b"".join(llama.vocabulary.pieces[t] for t in cut.logprobs.token_ids.tolist())
    assert (cut.response.text or "").startswith(written.decode())
    assert len(written) >= len(cut.response.text or "") - 2


def test_a_prompt_longer_than_the_context_fails_alone(llama: LlamaCppModel) -> None:
    came = list(llama.answer([ask("word " * 300), ask("Say hi.")], top_logprobs=2))
    failure = next(c for c in came if isinstance(c, Failure))
    assert not failure.retryable
    assert "a prompt of 3" in str(failure.error)
    assert "255" in str(failure.error)
    assert sum(isinstance(c, Exchange) for c in came) == 1


def test_an_answer_ends_where_the_context_ends(llama: LlamaCppModel) -> None:
    for most in (200, None):
        request = ask("word " * 210, temperature=0.0, max_tokens=most)
        exchange = one(llama, request, top_logprobs=0)
        assert exchange.key == request.key
        assert (exchange.input_tokens or 0) > 230
        assert (exchange.input_tokens or 0) + (exchange.output_tokens or 0) <= 256


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (ask("hi", seed=2**32 - 1), "seed 4294967295"),
        (ask("hi", seed=-1), "seed -1"),
        (ask("hi", max_tokens=0), "max_tokens 0"),
        (
            Request(
                prompt=(message("user", "hi"),), sampling=Sampling(), tools=(Tool(name="clock"),)
            ),
            "chat template leaves out",
        ),
        (
            Request(
                prompt=(
                    type(message("user", ""))(
                        role="user", content=(Part(kind="audio", uri="file:a.wav"),)
                    ),
                ),
                sampling=Sampling(),
            ),
            "kind 'audio'",
        ),
    ],
)
def test_what_llama_cpp_would_change_silently_is_refused(
    llama: LlamaCppModel, request_: Request, words: str
) -> None:
    (failure,) = llama.answer([request_])
    assert isinstance(failure, Failure)
    assert not failure.retryable
    assert words in str(failure.error)


def test_it_says_what_it_cannot_do(llama: LlamaCppModel) -> None:
    with pytest.raises(CapabilityError, match=r"top-21 .*top-20 log-probabilities"):
        llama.answer([], top_logprobs=21)
    with pytest.raises(CapabilityError, match="scoring of given text"):
        llama.score([])
    with pytest.raises(CapabilityError, match="full logits"):
        llama.distributions([])


# ---- death and resurrection --------------------------------------------------------------------


def test_a_killed_server_loses_and_doubles_nothing(gguf: Path) -> None:
    requests = [ask(f"Say the number {n}.", seed=n, max_tokens=6) for n in range(12)]
    seen: Counter[str] = Counter()
    with LlamaCppModel(gguf, spec="s", threads=1, slots=4, context_tokens=256) as model:
        for came in model.answer(requests, top_logprobs=5):
            assert isinstance(came, Exchange), came
            seen[came.key] += 1
            if len(seen) in (3, 7) and model.server.restarts < len(seen) // 3:
                assert model.server.pid is not None
                os.kill(model.server.pid, signal.SIGKILL)
        assert model.server.restarts == 2
    assert seen == Counter({request.key: 1 for request in requests})


def test_a_server_that_keeps_dying_ends_in_a_clear_error(
    gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LlamaCppModel(gguf, spec="s", threads=1, slots=2, context_tokens=512) as model:
        answers = model.answer([ask("hi", seed=n, max_tokens=400) for n in range(8)])
        monkeypatch.setattr(
            type(model.server), "_connect", _connect_and_kill(type(model.server)._connect)
        )
        with pytest.raises(TransportError, match=r"died 4 times in a row") as caught:
            list(answers)
        assert caught.value.exit_code == 4
        assert "answers already stored are kept" in caught.value.todo
        assert model.server.pid is None


def _connect_and_kill(connect):  # type: ignore[no-untyped-def]
    def killing(self, address, key):  # type: ignore[no-untyped-def]
        os.kill(self.pid, signal.SIGKILL)
        return connect(self, address, key)

    return killing


def test_a_hanging_server_is_ended_and_started_again(gguf: Path) -> None:
    with LlamaCppModel(
        gguf, spec="s", threads=1, slots=2, context_tokens=512, timeout_seconds=4
    ) as model:
        model.start()
        assert model.server.pid is not None
        os.kill(model.server.pid, signal.SIGSTOP)
        exchange = one(model, ask("Say hi.", max_tokens=3))
        assert exchange.output_tokens == 3
        assert model.server.restarts == 1


def test_the_server_dies_with_a_killed_parent(gguf: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from stillhouse.models.llamacpp import LlamaCppModel\n"
        "model = LlamaCppModel(Path(sys.argv[1]), spec='s', slots=1, context_tokens=256)\n"
        "model.start(); print(model.server.pid, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(gguf)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.kill()
    deadline = time.monotonic() + 5
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    except FileNotFoundError:
        return False


def test_leaving_early_frees_the_slots(llama: LlamaCppModel) -> None:
    answers = llama.answer([ask("Go on.", seed=n, max_tokens=300) for n in range(8)])
    started = time.monotonic()
    quick = one(llama, ask("Say hi.", max_tokens=2), 0)
    assert quick.output_tokens == 2
    answers.close()  # type: ignore[attr-defined]
    assert one(llama, ask("Say hi.", max_tokens=2), 0).output_tokens == 2
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("kept", [4_000_000, 40])
def test_a_damaged_file_is_an_error_with_llama_cpp_s_words(
    gguf: Path, tmp_path: Path, kept: int
) -> None:
    damaged = tmp_path / "half.gguf"
    with gguf.open("rb") as whole:
        damaged.write_bytes(whole.read(kept))
    with pytest.raises(ModelError) as caught, LlamaCppModel(damaged, spec="s") as model:
        list(model.answer([ask("hi")]))
    assert str(damaged) in str(caught.value)
    assert ("could not serve" if kept > 100 else "damaged head") in str(caught.value)


@pytest.mark.slow
def test_long_and_short_requests_share_one_pool(gguf: Path) -> None:
    """The pool holds one long request; slots give up what they read when it is needed."""
    with LlamaCppModel(gguf, spec="s", threads=1, slots=2, context_tokens=2048) as model:
        requests = [
            ask(f"{n} " + "word " * (1500 if n % 3 == 0 else 20), seed=n, max_tokens=8)
            for n in range(9)
        ]
        came = list(model.answer(requests, top_logprobs=3))
        assert model.server.restarts == 0
    assert [c for c in came if isinstance(c, Failure)] == []
    assert {c.key for c in came if isinstance(c, Exchange)} == {r.key for r in requests}


# ---- which rows are missing --------------------------------------------------------------------

PIECES = (
    b"",
    b"a",
    b"\xf0\x9f",
    b"\x8e",
    b"\x89",
    b"\xc3",
    b"\xa4",
    b" b",
    b"\xe2\x80\x99",
    b"\xe2",
)


def test_positions_inside_a_character_are_known() -> None:
    assert complete_positions([1, 2, 3, 4, 1, 5, 6, 0], PIECES) == [0, 3, 4, 6, 7]
    assert complete_positions([2, 0, 1], PIECES) == []  # a lone first byte hides what follows it
    assert complete_positions([9, 1, 1], PIECES) == [2]


@given(st.text(max_size=30), st.data())
def test_of_valid_text_the_complete_positions_are_the_character_ends(
    text: str, data: st.DataObject
) -> None:
    whole = text.encode()
    ends = {len(text[:n].encode()) for n in range(len(text) + 1)}
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(whole))))) | {len(whole)})
    cuts = [cut for cut in cuts if 0 < cut <= len(whole)]
    pieces = [whole[a:b] for a, b in zip([0, *cuts], cuts, strict=False)]
    found = complete_positions(range(len(pieces)), pieces)
    assert found == [n for n, cut in enumerate(cuts) if cut in ends]


def test_tokens_beyond_a_cut_text_are_left_out() -> None:
    assert kept_tokens([1, 7, 1, 7], PIECES, "a ba") == 3
    assert kept_tokens([1, 7, 1, 7], PIECES, "a b") == 2
    assert kept_tokens([1, 7, 1, 7], PIECES, "a ") == 1
    assert kept_tokens([], PIECES, "") == 0
