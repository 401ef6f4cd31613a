"""A watermark audit, end to end: whom it asks, what it finds, what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stillhouse.audit import words
from stillhouse.audit.radioactivity import (
    evidence,
)
from stillhouse.audit.settings import WatermarkSettings
from stillhouse.audit.verify import verify
from stillhouse.audit.watermark_audit import Vocabulary, watermark_audit
from stillhouse.errors import (
    CapabilityError,
    ConfigError,
    DataError,
    ModelError,
    TransportError,
)
from stillhouse.exchange import Exchange, Logprobs, Request, Sampling, message
from stillhouse.messages import Prompt
from stillhouse.models.base import Failure
from stillhouse.models.local import LocalModel
from stillhouse.models.scripted import TOKENIZER, ScriptedModel, encode
from stillhouse.watermark import Watermark
from tests.no_torch import NO_TORCH
from tests.train.conftest import allowance, write_llama

KEY = bytes(range(32))
MARK = Watermark(key=KEY, width=2, gamma=0.25, delta=4.0)


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
        f"{NO_TORCH}"
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
            authorisation=allowance(tmp_path, f"hf:{teacher}"),
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
