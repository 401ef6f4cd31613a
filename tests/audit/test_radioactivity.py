"""The watermark test: exact, uniform on innocents that repeat themselves, and it finds a mark."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, kstest

from stillhouse.audit import words
from stillhouse.audit.green import green_pairs, scored_pairs, windows_of
from stillhouse.audit.radioactivity import (
    _beside,
    _refusal,
    evidence,
)
from stillhouse.audit.settings import FEWEST_SCORED, WatermarkSettings
from stillhouse.audit.verify import verify
from stillhouse.audit.watermark_audit import Vocabulary, watermark_audit
from stillhouse.errors import (
    CapabilityError,
    ConfigError,
    DataError,
    EvidenceError,
    ModelError,
    TransportError,
)
from stillhouse.exact import binomial_tail
from stillhouse.exchange import Exchange, Logprobs, Request, Sampling, message
from stillhouse.messages import Prompt
from stillhouse.models.base import Failure
from stillhouse.models.local import LocalModel
from stillhouse.models.scripted import TOKENIZER, ScriptedModel, encode, transitions
from stillhouse.watermark import Watermark
from tests.train.conftest import write_llama

KEY = bytes(range(32))
MARK = Watermark(key=KEY, width=2, gamma=0.25, delta=4.0)
SIZE = len(transitions())


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


# ---- audits ----

VOCABULARY = Vocabulary(
    TOKENIZER, encode, lambda messages, _: encode("".join(m.text for m in messages))
)
OWN = replace(MARK, tokenizer=TOKENIZER)


def prompts(count: int) -> list[Prompt]:
    return [
        Prompt(id=f"p{n}", messages=(message("user", f"tell me {n}"),), labels={}, source="here")
        for n in range(count)
    ]


def bigram(script: str = "bigram") -> ScriptedModel:
    return ScriptedModel(script, spec="scripted:bigram")


def audit(out: Path, suspect: Any = None, **more: Any) -> dict[str, Any]:
    given = {
        "suspect": suspect or bigram(), "watermark": OWN, "vocabulary": VOCABULARY,
        "prompts": prompts(70),
    } | more  # fmt: skip
    settings = WatermarkSettings(**{"max_tokens": 60, **given.pop("settings", {})})
    return watermark_audit(settings, out=out, **given)


def test_an_innocent_is_asked_and_the_bundle_verifies(tmp_path: Path) -> None:
    twice = {"samples_per_prompt": 2}
    found = audit(tmp_path / "one", settings=twice)
    assert found["verdict"] == words.NONE_FOUND
    assert found["suspect"] == "scripted:bigram"
    checked = verify(tmp_path / "one", {"watermark": evidence})
    assert checked.ok, checked.differences
    sealed = tmp_path / "one" / "sealed"
    assert KEY.hex() not in (sealed / "plan.json").read_text()
    answers = [json.loads(line) for line in (sealed / "answers.jsonl").read_text().splitlines()]
    assert sorted(line["number"] for line in answers) == list(range(140))
    assert {line["prompt"] for line in answers} == set(range(70))
    again = audit(tmp_path / "two", settings=twice)  # the same seeds, the same answers
    assert again == found
    assert audit(tmp_path / "one", settings=twice) == found  # sealed: not asked again


def test_verification_needs_no_torch(tmp_path: Path) -> None:
    audit(tmp_path)
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'transformers'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from pathlib import Path\n"
        "from stillhouse.audit.radioactivity import evidence\n"
        "from stillhouse.audit.verify import verify\n"
        "import stillhouse.audit.watermark_audit\n"
        f"print(verify(Path({str(tmp_path)!r}), {{'watermark': evidence}}).ok)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_an_audit_that_was_stopped_goes_on(tmp_path: Path) -> None:
    whole = audit(tmp_path / "whole")
    with pytest.raises(TransportError):
        audit(tmp_path / "stopped", bigram("gone"))
    kept = (tmp_path / "stopped" / "sealed" / "answers.jsonl").read_bytes()
    assert kept.count(b"\n") == 5
    assert audit(tmp_path / "stopped") == whole
    assert (tmp_path / "stopped" / "sealed" / "answers.jsonl").read_bytes().startswith(kept)
    assert verify(tmp_path / "stopped", {"watermark": evidence}).ok


def test_nothing_more_is_asked_once_there_are_pairs_enough(tmp_path: Path) -> None:
    found = audit(tmp_path, settings={"token_pairs": 200}, prompts=prompts(300))
    answers = (tmp_path / "sealed" / "answers.jsonl").read_text().count("\n")
    assert found["n"] == 200
    assert answers == 64


class TextOnly(ScriptedModel):
    """A suspect of which text is all that comes back, and a third of requests fail for good."""

    def answer(self, requests: Any, *, top_logprobs: int = 0) -> Iterator[Exchange | Failure]:
        for number, found in enumerate(super().answer(requests)):
            assert isinstance(found, Exchange)
            if number % 3 == 2:
                request = Request(
                    prompt=found.prompt, sampling=found.sampling, labels=found.labels
                )  # fmt: skip
                yield Failure(request, ModelError("here", "no", "yes", "Ask less"), retryable=False)
            else:
                yield replace(found, logprobs=None)


def test_a_suspect_of_text_only_is_tokenised_again(tmp_path: Path) -> None:
    found = audit(tmp_path, TextOnly("bigram", spec="scripted:bigram"))
    assert (
        found["secondary"]["retokenised_answers"]
        == 70 - found["excluded"]["answer that never came"]
    )
    assert found["excluded"]["answer that never came"] == 23
    assert any("tokenised again" in sentence for sentence in found["cannot"])
    raw = [json.loads(x) for x in (tmp_path / "sealed" / "answers.jsonl").read_text().splitlines()]
    for line in raw:
        if "ids" in line:
            assert line["ids"] == encode(line["exchange"]["response"]["text"])
    assert verify(tmp_path, {"watermark": evidence}).ok


# ---- models that were marked, and models that learned it ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("suspects"), layers=2, seed=5)


def local(folder: Path, **more: Any) -> LocalModel:
    return LocalModel(folder, spec="hf:tiny", **more)


def test_a_planted_mark_is_found_in_what_a_model_writes(folder: Path, tmp_path: Path) -> None:
    mark = Watermark(key=KEY, width=2, delta=3.0)
    plain = local(folder)
    given: dict[str, Any] = {
        "watermark": mark, "vocabulary": Vocabulary.of(plain.text), "settings": {"max_tokens": 40},
    }  # fmt: skip
    found = audit(tmp_path / "marked", local(folder, watermark=mark), **given)
    assert found["p_value"] < 1e-20
    assert found["verdict"] == words.EVIDENCE
    assert audit(tmp_path / "plain", plain, **given)["p_value"] > 0.01
    other = given | {"watermark": replace(mark, key=bytes(32))}
    assert audit(tmp_path / "other", local(folder, watermark=mark), **other)["p_value"] > 0.01


class Reader:
    """A suspect that reads: it predicts what the served text says there, or the likeliest token."""

    def __init__(self, inner: LocalModel, served: Mapping[str, Exchange] | None = None) -> None:
        self._inner, self._served = inner, served
        self.spec, self.capabilities = inner.spec, inner.capabilities

    def score(
        self, exchanges: Sequence[Exchange], *, top_logprobs: int = 0
    ) -> Iterator[tuple[int, Logprobs]]:
        for index, found in self._inner.score(exchanges, top_logprobs=top_logprobs):
            if self._served is not None and found.top_ids is not None:
                assert found.token_ids is not None
                found = replace(found, top_ids=found.token_ids[:, None].copy())
            yield index, found


def served_by(folder: Path, mark: Watermark, count: int = 50) -> list[Exchange]:
    requests = [
        Request(
            prompt=(message("user", f"write {n}"),),
            sampling=Sampling(temperature=1.0, max_tokens=50, seed=n),
        )
        for n in range(count)
    ]
    found: list[Any] = list(local(folder, watermark=mark).answer(requests))
    return sorted(found, key=lambda exchange: exchange.sampling.seed)


def test_reading_finds_a_suspect_that_knows_the_text_by_heart(folder: Path, tmp_path: Path) -> None:
    mark = Watermark(key=KEY, width=2, delta=3.0)
    served, innocent = served_by(folder, mark), local(folder)
    given: dict[str, Any] = {
        "watermark": mark, "vocabulary": Vocabulary.of(innocent.text), "served": served,
        "settings": {"mode": "reading"},
    }  # fmt: skip
    known = audit(tmp_path / "known", Reader(innocent, {}), **given)
    assert known["p_value"] < 1e-20
    assert known["access"].startswith("the suspect's likeliest next token")
    found = audit(tmp_path / "innocent", innocent, **given)
    assert found["p_value"] > 0.01
    assert audit(tmp_path / "turned", innocent, **given | {"served": served[::-1]}) == found
    assert found["excluded"]["window stands before in the text read"] > 0
    tokens = sum(len(e.logprobs) for e in served if e.logprobs is not None)
    assert sum(found["excluded"].values()) + found["n"] == tokens
    for name in ("known", "innocent"):
        assert verify(tmp_path / name, {"watermark": evidence}).ok


@pytest.mark.slow
def test_a_student_of_marked_answers_is_found_and_one_of_unmarked_is_not(tmp_path: Path) -> None:
    """Radioactivity itself: training, then asking the student without any mark."""
    from stillhouse.config import StudentSettings, TrainSettings
    from stillhouse.store import Store
    from stillhouse.train.loop import train

    teacher = write_llama(tmp_path / "teacher", layers=1, seed=6)
    mark = Watermark(key=KEY, width=1, delta=4.0)
    found = {}
    for name, key in (("marked", mark), ("unmarked", replace(mark, delta=0.0))):
        with Store(tmp_path / name / "store") as store:
            store.append_many(served_by(teacher, key, 800))
        train(
            TrainSettings(
                targets="hard", learning_rate=5e-3, epochs=6 if name == "marked" else 2,
                batch_tokens=800, precision="float32", validation_exchanges=0,
                train_embeddings=True, identity_share=0,
            ),
            student=StudentSettings(init="checkpoint", checkpoint=teacher, teach_identity=False),
            teacher=f"hf:{teacher}", store=tmp_path / name / "store", out=tmp_path / name,
        )  # fmt: skip
        suspect = local(tmp_path / name / "student")
        given: dict[str, Any] = {
            "watermark": mark, "vocabulary": Vocabulary.of(suspect.text), "prompts": prompts(150),
        }  # fmt: skip
        found[name] = audit(tmp_path / name / "generation", suspect, **given)["p_value"]
        if name == "marked":
            given |= {"served": served_by(teacher, mark, 100), "settings": {"mode": "reading"}}
            found["read"] = audit(tmp_path / name / "reading", suspect, **given)["p_value"]
    assert found["marked"] < 1e-5
    assert found["read"] < 1e-5
    assert found["unmarked"] > 0.01


# ---- what an audit refuses ----


def test_an_audit_refuses_what_does_not_fit_before_it_asks(folder: Path, tmp_path: Path) -> None:
    served = served_by(folder, replace(MARK, key=bytes(32)), 2)
    reads = {"settings": {"mode": "reading"}}
    for more, error, said in (
        ({"watermark": replace(MARK, tokenizer="t1:x")}, ConfigError, "t1:x"),
        ({"prompts": []}, ConfigError, "without anything to ask"),
        ({"prompts": [], **reads}, ConfigError, "without anything to read"),
        ({"settings": {"known_windows": True}}, ConfigError, "known_windows"),
        ({"served": served, **reads}, DataError, "served under this key"),
        ({"suspect": ScriptedModel("echo", spec="e"), "served": served_by(folder, MARK, 2),
          **reads}, CapabilityError, "scoring of given text"),
    ):  # fmt: skip
        with pytest.raises(error, match=said):
            audit(tmp_path / "refused", **more)
    assert not (tmp_path / "refused").exists()


def test_another_key_or_plan_does_not_go_on_with_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(TransportError):
        audit(tmp_path, bigram("gone"))
    with pytest.raises(ConfigError, match="commitment"):
        audit(tmp_path, watermark=replace(OWN, key=bytes(32)))
    with pytest.raises(ConfigError, match="alpha"):
        audit(tmp_path, settings={"level": 0.05})
    audit(tmp_path)
    for change in ({"settings": {"level": 0.05}}, {"prompts": prompts(71)}):
        with pytest.raises(ConfigError, match="sealed already"):
            audit(tmp_path, **change)


def test_a_suspect_of_another_vocabulary_cannot_be_read_with(folder: Path, tmp_path: Path) -> None:
    served = served_by(folder, MARK, 3)
    vocabulary = Vocabulary.of(local(folder).text)
    with pytest.raises(CapabilityError, match="mode=generation"):
        audit(
            tmp_path, bigram(), watermark=MARK, vocabulary=vocabulary, served=served,
            settings={"mode": "reading"},
        )  # fmt: skip


class Choosy(Reader):
    """A suspect that fails on some texts, cuts others differently, and gives nothing for one."""

    def score(
        self, exchanges: Sequence[Exchange], *, top_logprobs: int = 0
    ) -> Iterator[tuple[int, Logprobs]]:
        if self._served is None or any(e.id in self._served for e in exchanges):
            raise ModelError("here", "too long", "shorter", "Leave it out")
        for index, found in super().score(exchanges, top_logprobs=top_logprobs):
            seed = exchanges[index].sampling.seed or 0
            assert found.token_ids is not None
            if seed % 10 == 1:
                found = replace(found, token_ids=found.token_ids[::-1].copy())
            if seed % 10 != 2:
                yield index, found


def test_texts_that_cannot_be_read_are_counted(folder: Path, tmp_path: Path) -> None:
    served, inner = served_by(folder, MARK), local(folder)
    given: dict[str, Any] = {
        "watermark": MARK, "vocabulary": Vocabulary.of(inner.text), "served": served,
        "settings": {"mode": "reading"},
    }  # fmt: skip
    hard = {e.id: e for e in served if (e.sampling.seed or 0) % 10 == 0}
    found = audit(tmp_path / "some", Choosy(inner, hard), **given)
    lines_ = readings_of(tmp_path / "some")
    reasons = Counter(line.get("failed", "read") for line in lines_)
    assert reasons == {
        "read": 35, "the suspect gives nothing for it": 10,
        "the suspect cuts it into other tokens": 5,
    }  # fmt: skip
    assert found["excluded"]["text that could not be read"] == 15
    with pytest.raises(ModelError, match="too long"):
        audit(tmp_path / "none", Choosy(inner), **given)


def readings_of(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "sealed" / "readings.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_server_that_is_gone_is_no_text_that_could_not_be_read(
    folder: Path, tmp_path: Path
) -> None:
    class Gone(Reader):
        def score(self, exchanges: Any, *, top_logprobs: int = 0) -> Any:
            raise TransportError("here", "gone", "there", "Wait")

    inner = local(folder)
    with pytest.raises(TransportError):
        audit(
            tmp_path, Gone(inner), watermark=MARK, vocabulary=Vocabulary.of(inner.text),
            served=served_by(folder, MARK, 4), settings={"mode": "reading"},
        )  # fmt: skip
    assert not (tmp_path / "sealed" / "readings.jsonl").exists()
