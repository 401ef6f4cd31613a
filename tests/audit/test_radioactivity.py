"""The watermark test: exact, uniform on innocents that repeat themselves, and it finds a mark."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest, kstest

from stillhouse.audit import words
from stillhouse.audit.green import green_pairs, scored_pairs, windows_of
from stillhouse.audit.radioactivity import (
    _beside,
    _refusal,
    evidence,
)
from stillhouse.audit.settings import FEWEST_SCORED, WatermarkSettings
from stillhouse.errors import (
    EvidenceError,
)
from stillhouse.exact import binomial_tail
from stillhouse.exchange import Request, Sampling, message
from stillhouse.models.scripted import ScriptedModel, transitions
from stillhouse.watermark import Watermark

KEY = bytes(range(32))
MARK = Watermark(key=KEY, width=2, gamma=0.25, delta=4.0)
SIZE = len(transitions())


def plan(mark: Watermark = MARK, **more: Any) -> dict[str, Any]:
    settings = WatermarkSettings()
    return {
        "test": "watermark", "suspect": "somebody", "mode": "generation",
        "watermark": {**mark.facts(), "tokenizer": "t1:words"}, "pairs": settings.token_pairs,
        "known_windows": False, "alpha": 0.01, "looks": 1, "decoys": {"count": 99, "seed": 7},
    } | more  # fmt: skip


def lines(
    answers: Sequence[Sequence[int]], prompts: Sequence[Sequence[int]] = ()
) -> dict[str, Any]:
    """Raw lines of generation mode; each answer has its own prompt, empty where none is given."""
    asked = [*prompts, *[[]] * (len(answers) - len(prompts))]
    return {
        "prompts": [{"number": n, "ids": list(ids)} for n, ids in enumerate(asked)],
        "answers": [
            {"number": n, "prompt": n, "ids": list(ids), "tokenizer": "t1:words"}
            for n, ids in enumerate(answers)
        ],
    }


def reveal(mark: Watermark = MARK) -> dict[str, str]:
    return {"key": mark.key.hex()}


def keys(count: int, width: int = 2) -> list[Watermark]:
    rng = np.random.default_rng(count)
    return [Watermark(key=rng.bytes(32), width=width, delta=4.0) for _ in range(count)]


@cache
def repetitive() -> list[list[int]]:
    """Answers of an innocent that says much the same each time, as models do."""
    requests = [
        Request(
            prompt=(message("user", f"say {n}"),),
            sampling=Sampling(temperature=0.6, max_tokens=80, seed=n),
        )
        for n in range(150)
    ]
    model = ScriptedModel("bigram", spec="scripted:bigram")
    return [e.logprobs.token_ids.tolist() for e in model.answer(requests, top_logprobs=1)]  # type: ignore[union-attr]


# ---- the binomial ----


@pytest.mark.parametrize("gamma", [0.1, 0.25, 0.5])
def test_the_p_value_is_scipys(gamma: float) -> None:
    for n in (1, 7, 150, 40_000):
        for green in {0, 1, n // 4, n // 4 + n // 50, n // 2, n}:
            expected = binomtest(green, n, gamma, alternative="greater").pvalue
            assert binomial_tail(green, n, gamma) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("share", "published"), [(0.2588, 2.6e-24), (0.2475, 0.97)])
def test_published_counts_give_published_p_values(share: float, published: float) -> None:
    """248,000 pairs, gamma .25: Sander et al.'s student of 5 % marked text, and a control."""
    found = binomial_tail(round(share * 248_000), 248_000, 0.25)
    assert published / 3 < found < published * 3


def test_evidence_reports_the_exact_p_value_of_the_distinct_pairs() -> None:
    rng = np.random.default_rng(0)
    answers = rng.integers(0, 30, (40, 60)).tolist()
    found = evidence(plan(), lines(answers), reveal())
    pairs = {
        (*window, token)
        for ids in answers
        for window, token in zip(windows_of(ids, 2), ids[2:], strict=False)
    }
    green = sum(bool(MARK.green_list(pair[:2], 30)[pair[2]]) for pair in pairs)
    assert (found["n"], found["statistic"]["value"]) == (len(pairs), green)
    assert found["p_value"] == pytest.approx(
        binomtest(green, len(pairs), 0.25, alternative="greater").pvalue, rel=1e-8
    )
    assert found["effect"]["value"] == green / len(pairs)
    assert found["effect"]["low"] < 0.25 < found["effect"]["high"]
    assert sum(found["excluded"].values()) + found["n"] == sum(map(len, answers))
    assert found["excluded"]["no whole window before it"] == 2 * 40


# ---- innocents ----


def uniform(counts: Sequence[int], trials: Sequence[int], gamma: float) -> float:
    """p of the KS test that randomised p-values of these counts are uniform."""
    rng = np.random.default_rng(1)
    p = [
        binomial_tail(c + 1, n, gamma)
        + rng.random() * (binomial_tail(c, n, gamma) - binomial_tail(c + 1, n, gamma))
        for c, n in zip(counts, trials, strict=True)
    ]
    return float(kstest(p, "uniform").pvalue)


def test_p_is_uniform_over_keys_where_raw_counting_breaks_the_size() -> None:
    """300 keys on one innocent, repetitive corpus: each pair once holds the level; every
    occurrence, as raw detectors count, does not.
    """
    pairs = scored_pairs(plan(), lines(repetitive()))
    every = np.array([
        [*window, token]
        for ids in repetitive()
        for window, token in zip(windows_of(ids, 2), ids[2:], strict=False)
    ])  # fmt: skip
    tried = keys(300)
    once, n = green_pairs(pairs, tried), len(pairs.tokens)
    raw = [int(m.is_green(m.seeds(every[:, :2]), every[:, 2]).sum()) for m in tried]
    assert n < len(every) / 5  # repetitive it is
    assert uniform(once, [n] * 300, 0.25) > 1e-3
    false_alarms = np.mean([binomial_tail(green, n, 0.25) <= 0.05 for green in once])
    assert binomtest(round(false_alarms * 300), 300, 0.05).pvalue > 0.01
    raw_alarms = np.mean([binomial_tail(green, len(every), 0.25) <= 0.05 for green in raw])
    assert raw_alarms > 0.2
    assert uniform(raw, [len(every)] * 300, 0.25) < 1e-6


@cache
def green_table(mark: Watermark) -> np.ndarray:
    """(V, V, V) green or not after two characters of the scripted model's alphabet."""
    windows = np.stack(np.meshgrid(range(SIZE), range(SIZE), indexing="ij"), -1).reshape(-1, 2)
    seeds = np.repeat(mark.seeds(windows), SIZE)
    table = mark.is_green(seeds, np.tile(np.arange(SIZE), len(windows)))
    return table.reshape(SIZE, SIZE, SIZE)


def marked_texts(mark: Watermark, count: int, length: int, seed: int) -> np.ndarray:
    """(count, length) texts of the scripted model under a mark; no end of turn."""
    rng = np.random.default_rng(seed)
    own = np.array(transitions()) / 0.7
    own[:, 0] = -np.inf
    texts = rng.integers(1, SIZE - 1, (count, length))
    green = green_table(mark)
    for at in range(2, length):
        logits = own[texts[:, at - 1]] + mark.delta * green[texts[:, at - 2], texts[:, at - 1]]
        weights = np.exp(logits - logits.max(1, keepdims=True)).cumsum(1)
        texts[:, at] = (weights < rng.random((count, 1)) * weights[:, -1:]).sum(1)
    return texts


def repeats_itself(text: np.ndarray) -> list[int]:
    """What an innocent that has seen no marked text predicts: what followed this window before in
    the text it reads, as models do, and else its own likeliest token.
    """
    last: dict[tuple[int, int], int] = {}
    predicted = [0, 0]
    for at in range(2, len(text)):
        window = (int(text[at - 2]), int(text[at - 1]))
        predicted.append(last.get(window, int(transitions()[window[1], 1:].argmax()) + 1))
        last[window] = int(text[at])
    return predicted


def test_reading_marked_text_shows_nothing_of_an_innocent_that_repeats_what_it_reads() -> None:
    """Fresh text under each of 300 keys. Counting windows that were read before breaks the size."""
    counts, trials, raw, raw_trials = [], [], [], []
    for number, mark in enumerate(keys(300)):
        texts = marked_texts(mark, 12, 160, number)
        told = [repeats_itself(text) for text in texts]
        raw_lines: dict[str, Any] = {
            "prompts": [{"number": n, "ids": [5, 6]} for n in range(12)],
            "served": [{"number": n, "ids": text.tolist()} for n, text in enumerate(texts)],
            "readings": [
                {"number": n, "predicted": p, "tokenizer": "t1:words"} for n, p in enumerate(told)
            ],
        }
        pairs = scored_pairs(plan(mark, mode="reading"), raw_lines)
        counts += green_pairs(pairs, [mark])
        trials.append(len(pairs.tokens))
        every = {
            (*window, token)
            for text, p in zip(texts.tolist(), told, strict=True)
            for window, token in zip(windows_of(text, 2), p[2:], strict=False)
        }
        table = green_table(mark)
        raw.append(sum(bool(table[pair]) for pair in every))
        raw_trials.append(len(every))
    assert uniform(counts, trials, 0.25) > 1e-3
    assert uniform(raw, raw_trials, 0.25) < 1e-6


def test_windows_in_prompts_do_not_count() -> None:
    """Prompts that quote marked text, and an innocent that copies them."""
    texts = marked_texts(MARK, 40, 60, 3).tolist()
    blamed = evidence(plan(), lines(texts), reveal())
    assert blamed["p_value"] < 1e-6
    answers = [[*text, *said] for text, said in zip(texts, repetitive(), strict=False)]
    copied = evidence(plan(), lines(answers, texts), reveal())
    assert copied["p_value"] > 0.01
    assert copied["excluded"]["window stands in the prompt"] > 40 * 55
    swapped = evidence(plan(), lines(answers, texts[::-1]), reveal())  # of its own prompt only
    assert swapped["excluded"]["window stands in the prompt"] < 40 * 55


def test_only_known_windows_count_where_the_plan_says_so() -> None:
    answers, served = repetitive()[:60], marked_texts(MARK, 4, 60, 5).tolist()
    held = {window for text in served for window in windows_of(text, 2)}
    given = lines(answers) | {"served": [{"number": n, "ids": t} for n, t in enumerate(served)]}
    pairs = scored_pairs(plan(known_windows=True), given)
    assert {tuple(window) for window in pairs.windows.tolist()} <= held
    everything = scored_pairs(plan(), given)
    left = len(everything.tokens) - len(pairs.tokens)
    assert 0 < left <= pairs.excluded["window not in the served text"]


def test_no_more_pairs_than_planned_are_scored_and_the_rest_is_counted() -> None:
    pairs = scored_pairs(plan(pairs=150), lines(repetitive()))
    assert len(pairs.tokens) == 150
    everything = scored_pairs(plan(), lines(repetitive()))
    assert np.array_equal(pairs.tokens, everything.tokens[:150])
    total = sum(map(len, repetitive()))
    assert sum(pairs.excluded.values()) + 150 == total


# ---- decoys ----


def test_decoys_rank_the_true_key_beside_the_exact_p() -> None:
    innocent = evidence(plan(), lines(repetitive()), reveal())
    beside = innocent["secondary"]["decoys"]
    assert beside["count"] == 99
    assert beside["rank_p_value"] == (1 + beside["as_green"]) / 100
    assert abs(beside["mean_share"] - 0.25) < 0.01
    assert 0.7 < beside["spread"] < 1.3
    assert abs(beside["rank_p_value"] - innocent["p_value"]) < 0.2
    marked = evidence(plan(), lines(marked_texts(MARK, 20, 80, 1).tolist()), reveal())
    assert marked["secondary"]["decoys"]["rank_p_value"] == 0.01
    assert marked["verdict"] == words.EVIDENCE


def test_pairs_that_decoys_find_green_are_refused_as_evidence() -> None:
    """Text that leans to the decoys' lists, and to the true one: no longer chosen without keys."""
    decoys = MARK.decoys(7, 99)
    answers, rng = [], np.random.default_rng(4)
    for _ in range(30):
        ids = rng.integers(0, 400, 2).tolist()
        for _ in range(20):
            lists = sum(decoy.green_list(ids[-2:], 400).astype(int) for decoy in decoys)
            ids.append(int(np.argmax(lists + 200 * MARK.green_list(ids[-2:], 400))))
        answers.append(ids)
    found = evidence(plan(), lines(answers), reveal())
    assert found["verdict"] == words.REFUSED
    assert found["p_value"] is None
    assert found["secondary"]["exact_p_value"] < 1e-6
    assert "decoy keys do not behave" in found["says"][0]
    assert "Nothing can be concluded" in found["cannot"][0]


@pytest.mark.parametrize(("z", "as_green"), [(-1.0, 0), (1.0, 99)])
def test_a_rank_that_the_exact_p_does_not_allow_is_refused(z: float, as_green: int) -> None:
    n = 40_000
    innocent = [round(n * 0.25 + z * (n * 0.1875) ** 0.5)] * 99
    beside = _beside(n // 4, innocent, n, 0.25, binomial_tail(n // 4, n, 0.25))
    assert beside["as_green"] == as_green
    assert beside["spread_p_value"] > 0.5
    assert "exact p-value and decoys disagree" in (_refusal(beside) or "")
    at_random = np.random.default_rng(2).binomial(n, 0.25, 99).tolist()
    assert _refusal(_beside(n // 4, at_random, n, 0.25, 0.5)) is None


# ---- what it says ----


def sentences() -> list[dict[str, Any]]:
    marked = marked_texts(MARK, 30, 90, 2).tolist()
    return [
        evidence(plan(), lines(repetitive()), reveal()),
        evidence(plan(), lines(marked), reveal()),
        evidence(plan(alpha=1e-300), lines(marked), reveal()),
    ]


def test_evidence_is_plain_json_in_the_words_of_the_house() -> None:
    verdicts = []
    for found in sentences():
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        said = " ".join([*found["says"], *found["cannot"]]).casefold()
        assert not [w for w in words.FORBIDDEN if re.search(rf"\b{w}", said)]
        assert found["verdict"] in words.VERDICTS
        assert found["basis"] == "design-based"
        verdicts.append(found["verdict"])
    assert verdicts == [words.NONE_FOUND, words.EVIDENCE, words.NONE_FOUND]


def test_the_smallest_share_is_one_that_is_found_nine_times_in_ten() -> None:
    found = evidence(plan(), lines(repetitive()), reveal())
    n, share = found["n"], found["secondary"]["smallest_share_found_with_probability_0.9"]
    drawn = np.random.default_rng(0).binomial(n, share, 2000)
    power = np.mean([binomial_tail(int(green), n, 0.25) <= 0.01 for green in drawn])
    assert abs(power - 0.9) < 0.03


def test_an_overwhelming_share_has_a_p_value_above_0() -> None:
    rng = np.random.default_rng(8)
    answers = []
    for _ in range(40):
        ids = rng.integers(0, 3000, 2).tolist()
        for _ in range(40):
            green = np.flatnonzero(MARK.green_list(ids[-2:], 3000))
            ids.append(int(rng.choice(green)))
        answers.append(ids)
    found = evidence(plan(), lines(answers), reveal())
    assert found["statistic"]["value"] == found["n"]
    assert 0 < found["p_value"] < 1e-300


# ---- refusals ----


def test_unfit_lines_are_refused() -> None:
    with pytest.raises(EvidenceError, match=f"at least {FEWEST_SCORED}"):
        evidence(plan(), lines([[1, 2, 3, 4, 5]]), reveal())
    with pytest.raises(EvidenceError, match="committed to before"):
        evidence(plan(), lines(repetitive()), reveal(Watermark(key=bytes(32))))
    other = lines(repetitive())
    other["answers"][3]["tokenizer"] = "t1:others"
    with pytest.raises(EvidenceError, match="t1:others"):
        evidence(plan(), other, reveal())
