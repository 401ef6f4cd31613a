"""The shipped fakes are what they say: a known distribution, and draws that follow it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.errors import CapabilityError, ConfigError, TransportError
from stillhouse.exchange import Exchange
from stillhouse.models import Failure, Model
from stillhouse.models.scripted import (
    ALPHABET,
    END_OF_TURN,
    SCRIPTED,
    TOKENIZER,
    ScriptedModel,
    encode,
    transitions,
)
from tests.models.conftest import ask


def bigram() -> ScriptedModel:
    return ScriptedModel("bigram", spec="scripted:bigram")


def answers(model: Model, *requests, top_logprobs: int = 0) -> list[Exchange]:  # type: ignore[no-untyped-def]
    came = list(model.answer(requests, top_logprobs=top_logprobs))
    assert all(isinstance(one, Exchange) for one in came), came
    return came  # type: ignore[return-value]


def test_all_of_them_are_models() -> None:
    for name in SCRIPTED:
        with ScriptedModel(name, spec=f"scripted:{name}") as model:
            assert isinstance(model, Model)


def test_the_known_distribution_is_one() -> None:
    rows = transitions()
    assert rows.shape == (len(ALPHABET), len(ALPHABET))
    np.testing.assert_allclose(np.exp(rows).sum(axis=1), 1.0, rtol=1e-12)
    # pinned, so that stores and reports made with it stay comparable
    assert rows[3, 7] == pytest.approx(-3.261288599, abs=1e-8)
    assert len(set(ALPHABET)) == len(ALPHABET)


def test_echo_repeats_the_last_message() -> None:
    (exchange,) = answers(ScriptedModel("echo", spec="scripted:echo"), ask("How are you?"))
    assert exchange.response.text == "How are you?"
    with pytest.raises(CapabilityError, match="what it can: text"):
        ScriptedModel("echo", spec="scripted:echo").answer([], top_logprobs=1)


def test_first_tokens_are_drawn_from_the_distribution() -> None:
    requests = [ask("ab", seed=seed, max_tokens=1) for seed in range(2500)]
    drawn = [e.logprobs.token_ids[0] for e in answers(bigram(), *requests, top_logprobs=1)]  # type: ignore[union-attr,index]
    expected = 2500 * np.exp(transitions()[encode("b")[0]])
    counts = np.bincount(drawn, minlength=len(ALPHABET))
    common = expected >= 5
    chi_square = (((counts - expected) ** 2) / expected)[common].sum()
    # 99.99 % point of chi-square with about 40 degrees of freedom is 82; the seeds are fixed
    assert chi_square < 82


def test_rows_are_the_true_log_probabilities() -> None:
    (exchange,) = answers(bigram(), ask("go", seed=4, max_tokens=30), top_logprobs=5)
    columns = exchange.logprobs
    assert columns is not None
    assert columns.token_ids is not None
    assert columns.top is not None
    assert columns.top_ids is not None
    before = [encode("o")[0], *columns.token_ids[:-1]]
    truth = transitions()[before]
    rows = np.arange(len(before))
    np.testing.assert_allclose(columns.chosen, truth[rows, columns.token_ids], rtol=1e-6)
    np.testing.assert_allclose(columns.top, -np.sort(-truth, axis=1)[:, :5], rtol=1e-6)
    np.testing.assert_allclose(
        np.take_along_axis(truth, columns.top_ids.astype(int), 1), columns.top, rtol=1e-6
    )
    assert columns.tokenizer == TOKENIZER


@given(seed=st.integers(0, 2**32), most=st.integers(1, 60))
def test_scoring_finds_what_answering_recorded(seed: int, most: int) -> None:
    model = bigram()
    (exchange,) = answers(model, ask("hello", seed=seed, max_tokens=most), top_logprobs=3)
    ((index, scored),) = model.score([exchange], top_logprobs=3)
    assert index == 0
    assert scored == exchange.logprobs
    ((whole),) = model.distributions([exchange])
    assert exchange.logprobs is not None
    np.testing.assert_array_equal(whole.token_ids, exchange.logprobs.token_ids)
    rows = np.arange(len(whole.token_ids))
    np.testing.assert_array_equal(whole.logprobs[rows, whole.token_ids], exchange.logprobs.chosen)


def test_text_of_others_is_scored_by_its_characters() -> None:
    model = bigram()
    (exchange,) = answers(ScriptedModel("echo", spec="scripted:echo"), ask("Is it?"))
    ((_, scored),) = model.score([exchange])
    assert scored.token_ids is not None
    assert scored.token_ids.tolist() == [*encode("is it?"), END_OF_TURN]
    assert scored.top is None


def test_an_answer_ends_by_its_end_of_turn_or_its_length() -> None:
    made = answers(bigram(), *(ask("x", seed=s, max_tokens=25) for s in range(60)), top_logprobs=1)
    for exchange in made:
        assert exchange.logprobs is not None
        assert exchange.logprobs.token_ids is not None
        ended = exchange.logprobs.token_ids[-1] == END_OF_TURN
        assert exchange.finish_reason == ("stop" if ended else "length")
        assert exchange.output_tokens == len(exchange.logprobs)
    assert {e.finish_reason for e in made} == {"stop", "length"}


@pytest.mark.parametrize(
    ("settings", "kept"),
    [({"top_k": 3}, 3), ({"temperature": 0.0}, 1), ({"top_p": 1e-9}, 1), ({"min_p": 0.9999}, 1)],
)
def test_truncation_keeps_the_likeliest(settings: dict[str, float], kept: int) -> None:
    requests = [ask("q", seed=s, max_tokens=1, **settings) for s in range(200)]
    drawn = {e.logprobs.token_ids[0] for e in answers(bigram(), *requests, top_logprobs=1)}  # type: ignore[union-attr,index]
    assert drawn == set(np.argsort(-transitions()[encode("q")[0]])[:kept])


def test_temperature_sharpens() -> None:
    def likeliest(temperature: float) -> float:
        requests = [ask("q", seed=s, max_tokens=1, temperature=temperature) for s in range(300)]
        best = transitions()[encode("q")[0]].argmax()
        drawn = [e.logprobs.token_ids[0] for e in answers(bigram(), *requests, top_logprobs=1)]  # type: ignore[union-attr,index]
        return float(np.mean(np.array(drawn) == best))

    assert likeliest(0.4) > likeliest(1.0) + 0.1 > likeliest(2.5) + 0.2


def test_seeds_repeat_and_stop_strings_cut() -> None:
    first, again, other = answers(bigram(), *(ask("z", seed=s) for s in (1, 1, 2)))
    assert first.response == again.response != other.response
    word = (first.response.text or "")[4:6]
    (cut,) = answers(bigram(), ask("z", seed=1, stop=(word,)), top_logprobs=1)
    assert cut.response.text == (first.response.text or "").partition(word)[0]
    assert cut.logprobs is not None
    assert len(cut.logprobs) == len(cut.response.text or "")


def test_it_refuses_what_it_does_not_know() -> None:
    (failure,) = bigram().answer([ask("z", repeat_penalty=1.2)])
    assert isinstance(failure, Failure)
    assert not failure.retryable
    assert "repeat_penalty 1.2" in str(failure.error)
    (failure,) = bigram().answer([ask("z" * 2048)])
    assert isinstance(failure, Failure)
    assert "2048 tokens" in str(failure.error)
    with pytest.raises(ConfigError, match="Did you mean 'bigram'"):
        ScriptedModel("bigrm", spec="scripted:bigrm")


def test_flaky_fails_every_third_and_may_be_asked_again() -> None:
    model = ScriptedModel("flaky", spec="scripted:flaky")
    came = list(model.answer([ask("z", seed=s) for s in range(6)]))
    assert [isinstance(one, Failure) for one in came] == [False, False, True, False, False, True]
    assert isinstance(came[2], Failure)
    assert came[2].retryable
    again = next(model.answer([came[2].request]))
    assert isinstance(again, Exchange)
    assert again.key == came[2].request.key


def test_gone_answers_five_and_no_more() -> None:
    model = ScriptedModel("gone", spec="scripted:gone")
    came = model.answer([ask("z", seed=s) for s in range(9)])
    for _ in range(5):
        assert isinstance(next(came), Exchange)
    with pytest.raises(TransportError, match="after 5 answers"):
        next(came)
