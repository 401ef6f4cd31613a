"""What is tested is decided by requests: conditions on them, and the draw."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.audit.selection import choose, conditions, draw_of, facts, prompt_key
from stillhouse.errors import ConfigError
from stillhouse.exchange import Exchange, Part, Response, Sampling, Tool, message

SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=9, seed=1, sample_index=0)


def exchange(number: int, text: str = "yes", **changes: Any) -> Exchange:
    plain: dict[str, Any] = {
        "time": datetime(2026, 11, 1, tzinfo=UTC) + timedelta(minutes=number),
        "model": "m",
        "prompt": (message("user", f"question {number}"),),
        "response": Response(text=text),
        "sampling": SAMPLING,
    }
    return Exchange(**(plain | changes))


def draw(*exchanges: Exchange, **options: Any) -> tuple[list[str], dict[str, int]]:
    return choose([facts(e, 1) for e in exchanges], **({"pairs": 99, "draw": "7"} | options))


def test_all_that_fit_are_drawn_and_the_rest_counted_by_reason() -> None:
    fit = exchange(1)
    again = exchange(1, "no", sampling=replace(SAMPLING, sample_index=2, seed=5))
    greedy = exchange(2, sampling=replace(SAMPLING, temperature=0.0))
    silent = exchange(3, sampling=Sampling())
    tools = exchange(4, tools=(Tool(name="search"),))
    image = exchange(5, prompt=(replace(message("user", "x"), content=(Part(kind="image"),)),))
    chosen, excluded = draw(fit, again, greedy, silent, tools, image)
    assert chosen == [fit.id]
    assert excluded == {
        "a request with tools or other media than text": 2,
        "greedy: nothing was drawn": 1,
        "same prompt as an earlier exchange": 1,
        "sampling settings not recorded": 1,
    }


def test_of_a_conversation_the_first_is_tested() -> None:
    first = exchange(1, session="s", account="a")
    later = exchange(2, session="s", account="a")
    elsewhere = exchange(3, session="s", account="b")
    chosen, excluded = draw(later, elsewhere, first)
    assert set(chosen) == {first.id, elsewhere.id}
    assert excluded == {"same conversation as an earlier exchange": 1}


def test_messages_that_begin_alike_are_one_conversation_without_a_session() -> None:
    first = exchange(1)
    grown = exchange(
        2, prompt=(*first.prompt, message("assistant", "yes"), message("user", "and then?"))
    )
    assert draw(grown, first)[0] == [first.id]


def test_the_draw_is_random_by_prompt_and_seed_alone() -> None:
    many = [exchange(number) for number in range(50)]
    chosen, excluded = draw(*many, pairs=10)
    assert len(chosen) == 10
    assert excluded == {"not drawn": 40}
    assert draw(*reversed(many), pairs=10)[0] == chosen
    assert draw(*many, pairs=10, draw="8")[0] != chosen


def test_the_draw_is_nobodys_choice() -> None:
    rows = [facts(exchange(number), 1) for number in range(5)]
    assert draw_of(rows, None) == draw_of(list(reversed(rows)), None) != draw_of(rows[1:], None)
    assert draw_of(rows, {"root": "ab"}) == "ab"


@given(st.permutations(range(4)), st.lists(st.text(min_size=1), min_size=4, max_size=4))
def test_of_several_answers_to_one_prompt_neither_time_nor_length_decides(
    order: list[int], texts: list[str]
) -> None:
    """An answer's time is when it was complete: the shortest came first."""
    several = [
        exchange(1, texts[n], sampling=replace(SAMPLING, sample_index=2 * n, seed=n),
                 time=datetime(2026, 11, 1, tzinfo=UTC) + timedelta(minutes=order[n]))
        for n in range(4)
    ]  # fmt: skip
    assert draw(*several)[0] == [several[0].id]


@given(st.lists(st.text(max_size=20), min_size=8, max_size=8))
def test_no_answer_changes_which_prompts_are_drawn(texts: list[str]) -> None:
    def prompts(answers: list[str]) -> list[str]:
        asked = [exchange(n, text) for n, text in enumerate(answers)]
        by_id = {e.id: prompt_key(e) for e in asked}
        return [by_id[name] for name in draw(*asked, pairs=4)[0]]

    assert prompts(texts) == prompts(["the same"] * 8)


def test_spent_prompts_and_those_without_a_twin_are_left_out() -> None:
    one, two, three = (exchange(number) for number in range(3))
    rows = [facts(one, 1), facts(two, 1), facts(three, 0)]
    chosen, excluded = choose(rows, pairs=9, draw="7", spent=[prompt_key(two)])
    assert chosen == [one.id]
    assert excluded == {
        "no twin with the same prompt and settings": 1, "spent in an earlier audit": 1,
    }  # fmt: skip


def test_where_no_twins_are_at_hand_yet_none_is_missing() -> None:
    assert choose([facts(exchange(1), None)], pairs=9, draw="7")[0] == [exchange(1).id]


@pytest.mark.parametrize(
    ("word", "numbers"),
    [
        ("account=a", [1]),
        ("session=s", [2]),
        ("model=m", [0, 1, 2, 3]),
        ("labels.task=maths", [3]),
        ("after=2026-11-01T00:02", [2, 3]),
        ("before=2026-11-01T00:02:00+00:00", [0, 1]),
    ],
)
def test_conditions_on_requests(word: str, numbers: list[int]) -> None:
    given_ = [
        exchange(0),
        exchange(1, account="a"),
        exchange(2, session="s"),
        exchange(3, labels={"task": "maths"}),
    ]
    (condition,) = conditions([word])
    assert [n for n, e in enumerate(given_) if condition.holds(e)] == numbers


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("output_tokens=3", "field of the answer"),
        ("response.text=hello", "field of the answer"),
        ("finish_reason=stop", "field of the answer"),
        ("logprobs=1", "field of the answer"),
        ("acount=a", "Did you mean 'account'"),
        ("account", "no 'field=value'"),
        ("account=", "no 'field=value'"),
        ("after=yesterday", "no time"),
    ],
)
def test_other_conditions_are_refused(word: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        conditions([word])
