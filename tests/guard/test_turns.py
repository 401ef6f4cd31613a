"""The newest turn of a request, in all the forms it is sent in; nothing breaks it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.guard.turns import (
    COMPUTER,
    IMAGE,
    RESULT,
    TOOLS,
    Turn,
    canonical,
    newest_turn,
    tool_marks,
)


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize(
    ("messages", "turn"),
    [
        ("Hi", Turn("Hi", 0, "", 0)),
        ([said("user", "Hi")], Turn("Hi", 0, "", 0)),
        ([said("system", "S"), said("user", "Hi")], Turn("Hi", 0, "S", 0)),
        ([said("user", "1"), said("assistant", "2"), said("user", "3")], Turn("3", 2, "", 0)),
        ([said("user", "1"), said("user", "2")], Turn("1\n2", 0, "", 0)),
        ([said("user", "1"), said("assistant", "{")], Turn("1", 0, "", 0)),
        ([said("user", "1"), said("assistant", None, tool_calls=[{}]), said("tool", "R")],
         Turn("R", 2, "", RESULT)),
        ([said("user", [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}])],
         Turn("a", 0, "", IMAGE)),
        ([said("assistant", "c"), said("user", [
            {"type": "tool_result", "content": [{"type": "text", "text": "R"}, {"type": "image"}]},
            {"type": "text", "text": "and?"},
        ])], Turn("R\nand?", 1, "", RESULT | IMAGE)),
        ([{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]},
          {"type": "function_call", "name": "f"},
          {"type": "function_call_output", "output": "R"}], Turn("R", 2, "", RESULT)),
        ([{"role": "user", "content": [{"kind": "text", "text": "e"}]}], Turn("e", 0, "", 0)),
        ([], Turn("", 0, "", 0)),
    ],
)  # fmt: skip
def test_newest_turns(messages: Any, turn: Turn) -> None:
    assert newest_turn(messages) == turn


def test_a_system_prompt_that_stands_apart_counts() -> None:
    blocks = [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]
    assert newest_turn([said("user", "x")], blocks).system == "A\nB"
    assert newest_turn([said("system", "C"), said("user", "x")], "A").system == "A\nC"


def test_tools_are_marked() -> None:
    assert tool_marks(None) == tool_marks([]) == tool_marks("f") == 0
    assert tool_marks([{"type": "function", "function": {"name": "search"}}]) == TOOLS
    assert tool_marks([{"name": "search"}, {"type": "computer_20251124"}]) == TOOLS | COMPUTER


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["role", "content", "type", "text", "output", "kind", "function", "name"]),
        inner | st.sampled_from(["user", "assistant", "tool", "tool_result", "image", "text"]),
        max_size=4,
    ), max_leaves=12,
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(JSON, JSON)
def test_any_json_is_a_turn(messages: Any, system: Any) -> None:
    turn = newest_turn(messages, system)
    assert isinstance(turn.text, str)
    assert isinstance(turn.system, str)
    assert tool_marks(messages) >= 0
    assert canonical(messages)


def test_what_no_json_can_hold_is_one_constant() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert canonical(deep) == b'"unreadable"'
    assert canonical({"b": 1, "a": 2}) == canonical({"a": 2, "b": 1})
    assert canonical("\ud800")
    assert newest_turn([said("user", [deep])]).text == '"unreadable"'
