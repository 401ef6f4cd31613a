"""LocalModel through the Model protocol, on a tiny random Llama; real weights where marked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from stillhouse.errors import CapabilityError, ModelError, TransportError
from stillhouse.exchange import (
    Exchange,
    Message,
    Part,
    Request,
    Response,
    Tool,
    ToolCall,
    message,
)  # fmt: skip
from stillhouse.models.base import Failure, Model
from stillhouse.models.dequantise import dequantised_folder
from stillhouse.models.local import LocalModel, hub_folder
from stillhouse.models.local_general import GeneralNetwork
from stillhouse.models.local_network import Answered
from stillhouse.models.local_sampler import Limits
from tests.models.conftest import ask
from tests.train.conftest import write_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("local"), layers=2, seed=1)


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[LocalModel]:
    with LocalModel(folder, spec="hf:tiny", name="tiny", limits=Limits(rows=8)) as opened:
        yield opened


@pytest.fixture(scope="module")
def answers(model: LocalModel) -> list[Exchange]:
    asked = [ask(f"Say {n}" * (1 + n % 4), seed=n, max_tokens=5 + n % 7) for n in range(20)]
    found = list(model.answer(asked, top_logprobs=6))
    assert {e.key for e in found if isinstance(e, Exchange)} == {r.key for r in asked}
    return [e for e in found if isinstance(e, Exchange)]


def test_it_serves_the_protocol(model: LocalModel) -> None:
    assert isinstance(model, Model)
    can = model.capabilities
    assert can.text
    assert can.scoring
    assert can.full_logits
    assert (can.context_tokens, can.top_logprobs) == (512, 259)


def test_exchanges_say_what_was_asked_and_what_came(
    model: LocalModel, answers: list[Exchange]
) -> None:
    for exchange in answers:
        assert exchange.model == "tiny"
        kept = exchange.logprobs
        assert kept is not None
        assert kept.token_ids is not None
        assert kept.top is not None
        assert kept.engine == f"torch-float32 {torch.__version__.split('+')[0]}"
        assert exchange.output_tokens == len(kept)
        assert exchange.input_tokens == len(model.render(exchange.prompt))
        ended = kept.token_ids[-1] == 2
        assert exchange.finish_reason == ("stop" if ended else "length")
        assert exchange.response.text == model.text.text(kept.token_ids.tolist())


def test_answers_carry_labels_and_terms(model: LocalModel) -> None:
    (exchange,) = model.answer([replace(ask("Hi"), labels={"task": "greet"})])
    assert isinstance(exchange, Exchange)
    assert dict(exchange.labels) == {"task": "greet"}
    assert exchange.logprobs is not None
    assert exchange.logprobs.top is None


def test_the_same_requests_give_the_same_answers(
    model: LocalModel, answers: list[Exchange]
) -> None:
    asked = [Request(prompt=e.prompt, sampling=e.sampling) for e in answers]
    again = {e.key: e for e in model.answer(asked, top_logprobs=6) if isinstance(e, Exchange)}
    for exchange in answers:
        assert again[exchange.key].response == exchange.response


def test_scores_of_its_own_answers_are_those_it_sampled_with(
    model: LocalModel, answers: list[Exchange]
) -> None:
    scored = dict(model.score(answers, top_logprobs=6))
    assert sorted(scored) == list(range(len(answers)))
    for index, exchange in enumerate(answers):
        kept = exchange.logprobs
        assert kept is not None
        assert kept.top is not None
        assert np.array_equal(scored[index].token_ids, kept.token_ids)
        assert np.allclose(scored[index].chosen, kept.chosen, atol=1e-4)
        assert np.allclose(scored[index].top, kept.top, atol=1e-4)


def test_scores_agree_with_one_forward_pass_a_token(
    model: LocalModel, answers: list[Exchange]
) -> None:
    """The naive loop: the prompt and each prefix of the answer by itself, through transformers."""
    for index, scored in model.score(answers[:4]):
        ids = model.render(answers[index].prompt)
        for token, value in zip(model.answer_ids(answers[index]), scored.chosen, strict=True):
            with torch.inference_mode():
                logits = model.network(torch.tensor([ids])).logits[0, -1]
            assert abs(float(logits.log_softmax(-1)[token]) - float(value)) < 1e-4
            ids.append(token)


def test_distributions_hold_the_scores(model: LocalModel, answers: list[Exchange]) -> None:
    scored = dict(model.score(answers))
    seen = []
    for whole in model.distributions(answers):
        seen.append(whole.index)
        assert np.allclose(np.exp(whole.logprobs.astype(np.float64)).sum(1), 1, atol=1e-5)
        chosen = whole.logprobs[np.arange(len(whole.token_ids)), whole.token_ids]
        assert np.allclose(chosen, scored[whole.index].chosen, atol=1e-5)
    assert sorted(seen) == list(range(len(answers)))


def test_distributions_may_be_left_unread(model: LocalModel, answers: list[Exchange]) -> None:
    expected = dict(model.score(answers[:5]))
    found = {whole.index: whole for whole in model.distributions(answers[:5])}
    assert found.keys() == expected.keys()
    assert next(model.distributions(answers)).logprobs.shape[1] == 259


def test_an_answer_of_another_tokenizer_is_scored_by_its_text(
    model: LocalModel, answers: list[Exchange]
) -> None:
    assert answers[0].logprobs is not None
    foreign = replace(
        answers[0],
        response=replace(answers[0].response, text="Yes."),
        finish_reason="stop",
        logprobs=replace(answers[0].logprobs, tokenizer="t1:other"),
    )
    ids = model.answer_ids(foreign)
    assert model.text.text(ids) == "Yes."
    assert ids[-1] == model.text.end_of_turn == 2
    assert model.answer_ids(replace(foreign, finish_reason="length")) == ids[:-1]
    ((_, scored),) = model.score([foreign])
    assert scored.token_ids is not None
    assert scored.token_ids.tolist() == ids


def test_an_empty_answer_scores_to_nothing(model: LocalModel, answers: list[Exchange]) -> None:
    empty = replace(
        answers[0],
        response=replace(answers[0].response, text=""),
        finish_reason="length",
        logprobs=None,
    )
    found = dict(model.score([empty, answers[1]], top_logprobs=2))
    assert len(found[0]) == 0
    assert len(found[1]) == len(answers[1].logprobs or ())


def given(prompt: str, text: str) -> Exchange:
    """An answer that nobody drew."""
    request = ask(prompt)
    return Exchange(
        time=datetime(2026, 5, 1, tzinfo=UTC), model="somebody", prompt=request.prompt,
        response=Response(text=text), finish_reason="length", sampling=request.sampling,
    )  # fmt: skip


def of_shared_prompts() -> list[Exchange]:
    """Three answers to a prompt, single ones, empty ones, the same one twice, a prompt that begins
    another, and more answers than stand in one row.
    """
    river = "Tell me about the river"
    many = [given("Count", "one two three " * (1 + n % 5)) for n in range(30)]
    return [
        given(river, "It is long."), given("Say 3", "three"), given(river, "It is wide, and slow."),
        given(river[:7], "What?"), given(river, ""), given("Nothing", ""), *many,
        given(river, "Wet"), given(river[:7], "A tale. " * 20), given("Say 3", "three"),
    ]  # fmt: skip


def test_answers_that_share_a_prompt_score_as_one_by_one(model: LocalModel) -> None:
    exchanges = of_shared_prompts()
    scored = dict(model.score(exchanges, top_logprobs=3))
    whole = {found.index: found for found in model.distributions(exchanges)}
    assert sorted(scored) == sorted(whole) == list(range(len(exchanges)))
    for index, exchange in enumerate(exchanges):
        ((_, alone),) = model.score([exchange], top_logprobs=3)
        assert np.array_equal(scored[index].token_ids, alone.token_ids)
        assert np.array_equal(whole[index].token_ids, alone.token_ids)
        assert len(scored[index]) == len(exchange.response.text or "")
        assert np.abs(scored[index].chosen - alone.chosen).max(initial=0) < 1e-4
        if len(alone):
            assert np.abs(scored[index].top - alone.top).max() < 1e-4
            assert np.abs(whole[index].logprobs.max(1) - alone.top[:, 0]).max() < 1e-4
    assert np.array_equal(scored[1].chosen, scored[38].chosen)  # the same answer to one prompt


def test_the_general_network_scores_shared_prompts_alike(folder: Path, model: LocalModel) -> None:
    exchanges = of_shared_prompts()
    with LocalModel(folder, spec="hf:tiny") as other:
        other.__dict__["engine"] = GeneralNetwork(other.network)
        for index, scored in other.score(exchanges):
            ((_, alone),) = model.score([exchanges[index]])
            assert np.abs(scored.chosen - alone.chosen).max(initial=0) < 1e-4


def test_scoring_again_gives_the_same_bits(model: LocalModel) -> None:
    runs = [dict(model.score(of_shared_prompts(), top_logprobs=2)) for _ in range(2)]
    for index, scored in runs[0].items():
        assert np.array_equal(scored.chosen, runs[1][index].chosen)


def test_a_prompt_is_read_once_for_its_answers_as_long_as_that_is_cheaper(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[tuple[int, int]] = []
    real = model.engine.logits

    def noted(texts: Sequence[Answered]) -> Iterator[tuple[int, int, torch.Tensor]]:
        rows.extend((len(text.answers), sum(map(len, text.answers))) for text in texts)
        return real(texts)

    monkeypatch.setattr(model.engine, "logits", noted)
    list(model.score([given("Hi", "x" * n) for n in (9, 30, 9)] + [given("Ho", "y" * 20)]))
    assert sorted(rows) == [(1, 20), (3, 48)]
    rows.clear()
    list(model.score([given("Count", "z" * 100) for _ in range(12)]))
    assert rows == [(3, 300)] * 4


def test_a_prompt_longer_than_the_context_fails_by_itself(model: LocalModel) -> None:
    found = list(model.answer([ask("x" * 600), ask("short")]))
    (failure,) = [f for f in found if isinstance(f, Failure)]
    assert not failure.retryable
    assert "context of 512" in str(failure.error)
    assert len(found) == 2


def test_an_answer_ends_where_the_context_does(model: LocalModel) -> None:
    prompt = "x" * 470
    (exchange,) = model.answer([ask(prompt, max_tokens=None, seed=3)])
    assert isinstance(exchange, Exchange)
    total = (exchange.input_tokens or 0) + (exchange.output_tokens or 0)
    assert total <= 512
    assert exchange.finish_reason == "stop" or total == 512


def test_an_exchange_longer_than_the_context_is_not_scored(
    model: LocalModel, answers: list[Exchange]
) -> None:
    long = replace(answers[0], prompt=(message("user", "x" * 600),))
    with pytest.raises(ModelError, match="context of 512"):
        list(model.score([long]))


def test_a_stop_string_ends_the_answer_before_it(model: LocalModel) -> None:
    (free,) = model.answer([ask("Tell", max_tokens=40, seed=5)])
    assert isinstance(free, Exchange)
    text = free.response.text or ""
    stop = text[6:8]
    (cut,) = model.answer([ask("Tell", max_tokens=40, seed=5, stop=("never so", stop))])
    assert isinstance(cut, Exchange)
    assert cut.finish_reason == "stop"
    # other settings, other random numbers: compare with its own tokens instead of the text above
    assert stop not in (cut.response.text or "")
    assert cut.logprobs is not None
    assert cut.logprobs.token_ids is not None
    assert (cut.output_tokens or 0) > len(cut.logprobs)
    assert (cut.response.text or "").startswith(
        model.text.text(cut.logprobs.token_ids.tolist()).rstrip("\ufffd")
    )
    assert model.answer_ids(cut) == cut.logprobs.token_ids.tolist()


def test_penalties_are_refused_by_name(model: LocalModel) -> None:
    (failure,) = model.answer([ask("Hi", frequency_penalty=0.5)])
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, CapabilityError)
    assert "frequency_penalty = 0.5" in str(failure.error)
    (fine,) = model.answer([ask("Hi", frequency_penalty=0.0, repeat_penalty=1.0)])
    assert isinstance(fine, Exchange)


def test_more_alternatives_than_words_are_refused(model: LocalModel) -> None:
    with pytest.raises(CapabilityError, match="top-1000"):
        next(model.answer([ask("Hi")], top_logprobs=1000))


def test_images_are_refused(model: LocalModel) -> None:
    picture = Message(role="user", content=(Part(kind="image", uri="x.png"),))
    (failure,) = model.answer([replace(ask("Hi"), prompt=(picture,))])
    assert isinstance(failure, Failure)
    assert "was given image" in str(failure.error)


def test_tools_that_the_template_leaves_out_are_refused(folder: Path, tmp_path: Path) -> None:
    offered = replace(ask("Hi"), tools=(Tool(name="weather"),))
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for template, refused in (
        ("{{ messages[0].content }}", True), ("{{ tools[0].function.name }}", False)
    ):  # fmt: skip
        (tmp_path / "chat_template.jinja").write_text(template)
        (outcome,) = LocalModel(tmp_path, spec="hf:x").answer([offered])
        assert isinstance(outcome, Failure) == refused
        if isinstance(outcome, Failure):
            assert "leaves out" in str(outcome.error)


def test_a_template_that_refuses_is_quoted(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('users first') }}")
    (failure,) = LocalModel(tmp_path, spec="hf:x").answer([ask("Hi")])
    assert isinstance(failure, Failure)
    assert "users first" in str(failure.error)
    (tmp_path / "chat_template.jinja").unlink()
    (failure,) = LocalModel(tmp_path, spec="hf:x").answer([ask("Hi")])
    assert isinstance(failure, Failure)
    assert "no chat template" in str(failure.error)


def test_tools_and_calls_reach_the_template(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text(
        "{{ tools[0].function.name }}|{{ messages[1].tool_calls[0].function.arguments.city }}"
        "|{{ messages[2].tool_call_id }}"
    )
    model = LocalModel(tmp_path, spec="hf:x")
    call = ToolCall(id="c1", name="weather", arguments='{"city": "Bonn"}')
    prompt = (
        message("user", "Weather?"),
        Message(role="assistant", tool_calls=(call,)),
        Message(role="tool", tool_call_id="c1", content=(Part(text="Rain"),)),
    )
    ids = model.render(prompt, [Tool(name="weather", parameters="{}")])
    assert model.text.text(ids) == "weather|Bonn|c1"


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        LocalModel(tmp_path, spec="hf:nothing")


def test_a_folder_without_a_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(ModelError, match="no readable tokenizer"):
        LocalModel(tmp_path, spec="hf:x")


def test_a_folder_that_lacks_a_tensor_is_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"lacks the tensor .*layers\.2"):
        list(LocalModel(tmp_path, spec="hf:x").answer([ask("Hi")]))


def test_the_hub_is_not_asked_when_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # read at import by the library, here by our message
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert hub_folder(str(tmp_path)) == tmp_path
    for name in ("nobody/nothing", "not a name"):
        with pytest.raises(TransportError, match="HF_HUB_OFFLINE is set"):
            hub_folder(name)


def test_closing_lets_go_of_the_weights(folder: Path) -> None:
    with LocalModel(folder, spec="hf:x") as model:
        next(model.answer([ask("Hi")]))
        assert "engine" in vars(model)
    assert "engine" not in vars(model)


# ---- the teacher's own weights ----


@pytest.fixture(scope="module")
def dequantised(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dequantised_folder(gguf, tmp_path_factory.mktemp("cache"))


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.timeout(600)
def test_the_teachers_weights_answer_and_score_as_transformers_computes(
    dequantised: Path,
) -> None:
    with LocalModel(dequantised, spec="smollm2-135m") as model:
        asked = [ask(text, max_tokens=20) for text in ("Why is rain wet?", "Name a fish.")]
        answers = [e for e in model.answer(asked, top_logprobs=64) if isinstance(e, Exchange)]
        assert len(answers) == 2
        scored = dict(model.score(answers, top_logprobs=64))
        for index, exchange in enumerate(answers):
            kept = exchange.logprobs
            assert kept is not None
            assert kept.top is not None
            ids = model.render(exchange.prompt) + model.answer_ids(exchange)
            with torch.inference_mode():
                logits = model.network(torch.tensor([ids])).logits[0]
            expected = logits[-len(kept) - 1 : -1].log_softmax(-1).topk(64).values.numpy()
            assert np.abs(kept.top - expected).max() < 5e-4
            assert np.abs(scored[index].top - expected).max() < 5e-4


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.timeout(600)
def test_the_teachers_weights_score_answers_that_share_a_prompt_as_one_by_one(
    dequantised: Path,
) -> None:
    exchanges = of_shared_prompts()
    with LocalModel(dequantised, spec="smollm2-135m") as model:
        for index, scored in model.score(exchanges):
            ((_, alone),) = model.score([exchanges[index]])
            assert np.abs(scored.chosen - alone.chosen).max(initial=0) < 1e-4
