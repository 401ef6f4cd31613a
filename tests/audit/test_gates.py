"""Gates: the same teacher, and one suspect. Fair where nothing changed, strict where it did."""

from __future__ import annotations

from typing import Any

import numpy as np

from stillhouse.audit.gates import changed, teacher_gate, unsteady


def said(rounds: dict[int, list[str]], pairs: int = 8) -> list[dict[str, Any]]:
    return [
        {"exchange": f"x{n}", "sample": s, "round": r, "text": f"{text} {n}", "served_model": "m"}
        for n in range(pairs)
        for r, texts in rounds.items()
        for s, text in enumerate(texts)
    ]


def drawn(rng: np.random.Generator, words: list[str]) -> list[str]:
    return [" ".join(rng.choice(words, 12)) for _ in range(4)]


def test_a_suspect_that_answers_otherwise_at_the_end_is_refused_and_a_steady_one_is_not() -> None:
    rng = np.random.default_rng(1)
    old, new = ["river", "lamp", "bread", "moss"], ["violin", "chess", "salt", "ink"]
    lines = [x for n in range(8) for x in _of(n, drawn(rng, old), drawn(rng, new))]
    assert "differ from those at the beginning" in str(unsteady({"continuations": lines}))
    refused = 0
    for seed in range(60):
        rng = np.random.default_rng(100 + seed)
        lines = [x for n in range(8) for x in _of(n, drawn(rng, old), drawn(rng, old))]
        refused += unsteady({"continuations": lines}) is not None
    assert refused == 0


def _of(number: int, first: list[str], second: list[str]) -> list[dict[str, Any]]:
    return [
        {"exchange": f"x{number}", "sample": s, "round": r, "text": text, "served_model": "m"}
        for r, texts in ((1, first), (2, second))
        for s, text in enumerate(texts)
    ]


def test_a_greedy_suspect_and_one_asked_once_are_steady() -> None:
    assert unsteady({"continuations": said({1: ["the same"] * 4, 2: ["the same"] * 4})}) is None
    assert unsteady({"continuations": said({1: ["a", "b"]})}) is None
    assert unsteady({}) is None


def test_names_of_several_models_are_refused() -> None:
    lines = said({1: ["a", "b"]})
    lines[0]["served_model"] = "another"
    assert "several models: another, m" in str(unsteady({"continuations": lines}))


def test_an_unchanged_teacher_passes_as_often_as_the_level_says() -> None:
    rng = np.random.default_rng(5)
    seen = [
        teacher_gate({"length": rng.normal(0, 40, 60).tolist(),
                      "end": rng.choice([-1.0, 0.0, 1.0], 60).tolist()})
        for _ in range(300)
    ]  # fmt: skip
    assert sum(changed(gate) is not None for gate in seen) <= 2
    assert all(gate is not None and gate["signs"] == ["end", "length"] for gate in seen)


def test_longer_answers_of_today_are_a_changed_teacher_in_either_direction() -> None:
    rng = np.random.default_rng(5)
    longer = rng.normal(30, 40, 80).tolist()
    for lengths in (longer, [-value for value in longer]):
        told = changed(teacher_gate({"length": lengths, "end": [0.0] * 80}))
        assert told is not None
        assert "told apart by length" in told


def test_nothing_that_differs_is_no_gate() -> None:
    assert teacher_gate({"length": [0.0] * 50, "end": [1.0] * 5}) is None
    assert changed(None) is None
