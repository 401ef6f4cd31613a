"""Collecting from a real server on loopback: once each, resumable, bounded, and refused in time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stillhouse.collect import asking, keeping
from stillhouse.collect.plan import Questions, request_seed
from stillhouse.collect.run import CollectReport, collect, plan
from stillhouse.config import CollectSettings
from stillhouse.errors import (
    CapabilityError,
    ConfigError,
    DataError,
    ModelError,
    StoreError,
    TermsError,
    TransportError,
)
from stillhouse.exchange import Exchange, Request, Sampling
from stillhouse.models import Capabilities, open_model
from stillhouse.prompts import read_prompts
from stillhouse.store import Store
from stillhouse.terms import check
from tests.collect.teacher_server import TeacherServer, teacher_server


@pytest.fixture
def server() -> Iterator[TeacherServer]:
    with teacher_server() as running:
        yield running


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same waits as a user's, only shorter."""

    def impatient(spec: str, **options: Any) -> Any:
        short = {"attempts": 2, "first_wait_seconds": 0.01} if spec.startswith("http") else {}
        return open_model(spec, **options, **short)

    monkeypatch.setattr("stillhouse.collect.run.open_model", impatient)
    monkeypatch.setattr(asking, "PAUSE_SECONDS", 0.01)


class Told:
    """A progress that remembers, and may be interrupted at an answer."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.lines: list[str] = []
        self.advances: list[tuple[float, str]] = []
        self.stages: list[tuple[str, float | None]] = []
        self.interrupt_at = interrupt_at

    def start(self, stage: str, total: float | None = None, unit: str = "") -> None:
        self.stages.append((stage, total))

    def advance(self, done: float, note: str = "", left_seconds: float | None = None) -> None:
        left = "" if left_seconds is None else f", {left_seconds:.0f} s left"
        self.advances.append((done, note + left))
        if self.interrupt_at is not None and done >= self.interrupt_at:
            raise KeyboardInterrupt

    def finish(self, note: str = "") -> None:
        self.lines.append(note)

    def say(self, line: str) -> None:
        self.lines.append(line)

    @property
    def said(self) -> str:
        return "\n".join(self.lines)


def prompts_file(folder: Path, *texts: str, name: str = "prompts.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(json.dumps({"prompt": text, "task": "test"}) + "\n" for text in texts))
    return file


def numbered(count: int) -> list[str]:
    return [f"prompt {i}" for i in range(count)]


def settings_for(file: Path, **changes: Any) -> CollectSettings:
    return CollectSettings(prompts=(file,), **{"top_logprobs": 0, "max_tokens": 32, **changes})


def kept(store: Path) -> list[Exchange]:
    with Store(store, "r") as opened:
        return list(opened)


def texts(store: Path) -> list[str]:
    return [exchange.prompt[-1].text for exchange in kept(store)]


# ---- what is asked ----


def test_every_prompt_is_asked_once_and_a_second_run_asks_nothing(
    tmp_path: Path, server: TeacherServer
) -> None:
    settings, store = settings_for(prompts_file(tmp_path, *numbered(40))), tmp_path / "store"
    first = collect(settings, teacher=server.spec, store=store)
    assert (first.asked, first.answered, first.already_there) == (40, 40, 0)
    assert (first.exchanges, first.tokens, first.failed) == (40, 400, {})
    assert first.tokens_per_s
    assert sorted(texts(store)) == sorted(numbered(40))
    second = collect(settings, teacher=server.spec, store=store)
    assert (second.asked, second.answered, second.already_there) == (0, 0, 40)
    assert (second.exchanges, second.tokens, second.tokens_per_s) == (40, 0, None)
    assert set(server.asked.values()) == {1}


def test_exchanges_carry_settings_labels_terms_and_the_key_of_their_request(
    tmp_path: Path, server: TeacherServer
) -> None:
    file = prompts_file(tmp_path, *numbered(5))
    settings = settings_for(file, temperature=0.7, top_p=0.9, top_k=40, min_p=0.05, seed=3)
    collect(settings, teacher=server.spec, store=tmp_path / "store")
    asked = {
        r.key: r for r in Questions(read_prompts([file]).prompts, settings, check(server.spec))
    }
    for exchange in kept(tmp_path / "store"):
        request = asked.pop(exchange.key)
        assert exchange.sampling == request.sampling
        for name in (
            "temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty",
            "repeat_penalty", "max_tokens", "stop", "seed", "sample_index",
        ):  # fmt: skip
            assert getattr(exchange.sampling, name) is not None, name
        assert exchange.terms == check(server.spec)
        assert exchange.labels["task"] == "test"
        assert exchange.labels["prompt_id"].startswith("p1:")
        assert str(exchange.sampling.seed) in (exchange.response.text or "")
    assert not asked


def test_the_server_is_sent_every_setting(tmp_path: Path, server: TeacherServer) -> None:
    settings = settings_for(
        prompts_file(tmp_path, "one"), temperature=0.7, top_p=0.9, top_k=40, min_p=0.05
    )
    collect(settings, teacher=server.spec, store=tmp_path / "store")
    (body,) = server.bodies
    sent = {name: body[name] for name in ("temperature", "top_p", "top_k", "min_p", "seed")}
    (exchange,) = kept(tmp_path / "store")
    assert sent == {
        "temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.05,
        "seed": exchange.sampling.seed,
    }  # fmt: skip
    assert 32 in (body.get("max_tokens"), body.get("max_completion_tokens"))


def test_several_samples_have_their_own_index_and_seed(
    tmp_path: Path, server: TeacherServer
) -> None:
    settings = settings_for(prompts_file(tmp_path, *numbered(4)), samples_per_prompt=3)
    report = collect(settings, teacher=server.spec, store=tmp_path / "store")
    assert report.exchanges == 12
    exchanges = kept(tmp_path / "store")
    assert len({e.sampling.seed for e in exchanges}) == 12
    assert {(e.prompt[0].text, e.sampling.sample_index) for e in exchanges} == {
        (text, index) for text in numbered(4) for index in range(3)
    }


def test_the_order_of_asking_is_fixed_and_does_not_follow_the_files(tmp_path: Path) -> None:
    def order(*texts: str, **changes: Any) -> list[tuple[str, int | None]]:
        file = prompts_file(tmp_path, *texts)
        asked = Questions(
            read_prompts([file]).prompts, settings_for(file, **changes), check("smollm2-135m")
        )
        return [(request.prompt[0].text, request.sampling.sample_index) for request in asked]

    names = numbered(50)
    assert order(*names) == order(*reversed(names))
    assert order(*names) != [(name, 0) for name in names]
    assert order(*names, seed=8) != order(*names)
    twice = order(*names, samples_per_prompt=2)
    assert twice[:50] == order(*names)  # all first samples before any second one
    assert [index for _, index in twice] == [0] * 50 + [1] * 50
    some = names[:25]  # more prompts later leave the order among the earlier ones as it was
    assert [pair for pair in order(*names) if pair[0] in some] == order(*some)


def test_seeds_fit_31_bits_and_depend_on_prompt_sample_and_run(tmp_path: Path) -> None:
    file = prompts_file(tmp_path, *numbered(300))
    asked = list(Questions(read_prompts([file]).prompts, settings_for(file), check("smollm2-135m")))
    seeds = [request.sampling.seed for request in asked]
    assert all(seed is not None and 0 <= seed < 2**31 for seed in seeds)
    assert len(set(seeds)) == 300
    assert [request_seed(7, replace(r, sampling=Sampling()).key, 0) for r in asked] == seeds
    assert (
        request_seed(8, asked[0], 0) != request_seed(7, asked[0], 0) != request_seed(7, asked[0], 1)
    )


# ---- budget ----


def test_a_budget_stops_and_a_larger_one_goes_on(tmp_path: Path, server: TeacherServer) -> None:
    file, store = prompts_file(tmp_path, *numbered(30)), tmp_path / "store"
    few = settings_for(file, exchanges=10)
    assert collect(few, teacher=server.spec, store=store).exchanges == 10
    assert collect(few, teacher=server.spec, store=store).asked == 0
    first = set(texts(store))
    order = [r.prompt[0].text for r in Questions(read_prompts([file]).prompts, few, check("gpt2"))]
    assert first == set(order[:10])
    more = collect(settings_for(file, exchanges=25), teacher=server.spec, store=store)
    assert (more.exchanges, more.asked, more.already_there) == (25, 15, 10)
    assert set(texts(store)) == set(order[:25])
    assert collect(settings_for(file), teacher=server.spec, store=store).exchanges == 30
    assert set(server.asked.values()) == {1}


def test_a_budget_is_filled_although_some_prompts_are_refused(
    tmp_path: Path, server: TeacherServer
) -> None:
    bad = [f"long {i}" for i in range(10)]
    settings = settings_for(prompts_file(tmp_path, *numbered(30), *bad), exchanges=25)
    report = collect(settings, teacher=server.spec, store=tmp_path / "store")
    assert report.exchanges == 25
    assert len(server.asked) <= 35


# ---- failures ----


def test_a_request_that_fails_for_a_while_is_asked_again_and_answered(
    tmp_path: Path, server: TeacherServer
) -> None:
    settings = settings_for(prompts_file(tmp_path, *numbered(5), "flaky a", "flaky b"))
    report = collect(settings, teacher=server.spec, store=tmp_path / "store")
    assert report.exchanges == 7
    assert report.failed == {}
    assert server.asked["flaky a"] == server.asked["flaky b"] == 3
    assert not (tmp_path / "store" / "failures.jsonl").exists()


def test_a_request_that_keeps_failing_ends_the_run_with_what_is_done_and_what_to_do(
    tmp_path: Path, server: TeacherServer
) -> None:
    settings = settings_for(prompts_file(tmp_path, *numbered(20), "down with it"))
    store = tmp_path / "store"
    with pytest.raises(ModelError, match="20 of 21 answers are kept in") as ended:
        collect(settings, teacher=server.spec, store=store)
    assert str(store) in str(ended.value)
    assert "run the same command again" in ended.value.todo
    assert ended.value.exit_code == 4
    (failure,) = map(json.loads, (store / "failures.jsonl").read_text().splitlines())
    assert failure["retryable"] is True
    assert failure["prompt_id"].startswith("p1:")
    assert failure["reason"]
    # twice by the model, in the first round and in each that brought nothing
    assert server.asked["down with it"] == 2 * (1 + asking.BARREN_ROUNDS)
    with pytest.raises(ModelError):
        collect(settings, teacher=server.spec, store=store)
    assert [count for text, count in server.asked.items() if text.startswith("prompt")] == [1] * 20


def test_a_request_is_asked_a_bounded_number_of_times(
    tmp_path: Path, server: TeacherServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "ATTEMPTS", 2)
    settings = settings_for(prompts_file(tmp_path, "a", "b", "down c"))
    with pytest.raises(ModelError, match="2 of 3"):
        collect(settings, teacher=server.spec, store=tmp_path / "store")
    assert server.asked["down c"] == 2 * 2


def test_a_prompt_longer_than_the_context_is_counted_and_not_asked_again(
    tmp_path: Path, server: TeacherServer
) -> None:
    settings, store = settings_for(prompts_file(tmp_path, "a", "b", "long c")), tmp_path / "store"
    report = collect(settings, teacher=server.spec, store=store)
    assert report.exchanges == 2
    assert sum(report.failed.values()) == 1
    assert "context" in next(iter(report.failed))
    told = Told()
    again = collect(settings, teacher=server.spec, store=store, progress=told)
    assert again.asked == 0
    assert again.failed == report.failed
    assert "failures.jsonl" in told.said
    assert server.asked["long c"] == 1
    (store / "failures.jsonl").unlink()
    assert collect(settings, teacher=server.spec, store=store).asked == 1


def test_when_nothing_is_answered_the_run_ends_before_everything_was_tried(
    tmp_path: Path, server: TeacherServer
) -> None:
    settings = settings_for(prompts_file(tmp_path, *(f"long {i}" for i in range(300))))
    with pytest.raises(ModelError, match="0 of 300"):
        collect(settings, teacher=server.spec, store=tmp_path / "store")
    assert len(server.asked) <= 32 + settings.concurrency


def test_a_single_refused_prompt_alone_is_an_error(tmp_path: Path, server: TeacherServer) -> None:
    settings = settings_for(prompts_file(tmp_path, "long alone"))
    with pytest.raises(ModelError, match="context"):
        collect(settings, teacher=server.spec, store=tmp_path / "store")


def test_a_server_that_is_gone_is_an_error_that_says_so(tmp_path: Path) -> None:
    with teacher_server() as server:
        spec = server.spec
    settings = settings_for(prompts_file(tmp_path, "a"))
    with pytest.raises(ModelError, match=re.escape("127.0.0.1")) as gone:
        collect(settings, teacher=spec, store=tmp_path / "store")
    assert gone.value.exit_code == 4


# ---- scripted teachers ----


def test_log_probabilities_are_kept_bit_for_bit(tmp_path: Path) -> None:
    file, store = prompts_file(tmp_path, *numbered(3)), tmp_path / "store"
    settings = settings_for(file, top_logprobs=5, max_tokens=20)
    report = collect(settings, teacher="scripted:bigram", store=store)
    assert report.terms.teacher == "scripted"
    (model,) = {exchange.model for exchange in kept(store)}
    assert model == report.model
    exchanges = {exchange.key: exchange for exchange in kept(store)}
    with open_model("scripted:bigram") as teacher:
        questions = Questions(read_prompts([file]).prompts, settings, report.terms)
        for answer in teacher.answer(questions, top_logprobs=5):
            assert isinstance(answer, Exchange)
            assert answer.logprobs is not None
            assert exchanges[answer.key].logprobs == answer.logprobs
            assert exchanges[answer.key].response == answer.response


def test_a_teacher_that_fails_now_and_then_gives_every_answer_in_the_end(tmp_path: Path) -> None:
    settings = settings_for(prompts_file(tmp_path, *numbered(20)))
    report = collect(settings, teacher="scripted:flaky", store=tmp_path / "store")
    assert (report.exchanges, report.failed) == (20, {})
    assert report.asked > 20


def test_a_teacher_that_is_gone_for_good_ends_the_run_and_running_again_goes_on(
    tmp_path: Path,
) -> None:
    settings, store = settings_for(prompts_file(tmp_path, *numbered(12))), tmp_path / "store"
    for there in (5, 10):
        with pytest.raises(TransportError, match=f"{there} of 12 answers are kept") as gone:
            collect(settings, teacher="scripted:gone", store=store)
        assert "run the same command again" in gone.value.todo
    assert collect(settings, teacher="scripted:gone", store=store).exchanges == 12
    assert sorted(texts(store)) == sorted(numbered(12))


def test_log_probabilities_a_teacher_cannot_give_are_refused(tmp_path: Path) -> None:
    settings = settings_for(prompts_file(tmp_path, "a"), top_logprobs=5)
    with pytest.raises(CapabilityError, match="top-5"):
        collect(settings, teacher="scripted:echo", store=tmp_path / "store")


# ---- the gate, and bad input ----


def test_a_refused_teacher_is_refused_before_model_store_and_request(
    tmp_path: Path, server: TeacherServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was opened")

    monkeypatch.setattr("stillhouse.collect.run.open_model", never)
    settings, store = settings_for(prompts_file(tmp_path, "a")), tmp_path / "store"
    unknown = server.spec.replace("smollm2-135m", "our-model")
    for teacher in ("https://api.openai.com/v1#gpt-4o", unknown):
        for verb in (collect, plan):
            with pytest.raises(TermsError):
                verb(settings, teacher=teacher, store=store)
    assert not store.exists()
    assert not server.asked


def test_an_authorised_teacher_is_asked_and_the_authorisation_travels(
    tmp_path: Path, server: TeacherServer
) -> None:
    teacher = server.spec.replace("smollm2-135m", "our-model")
    paper = tmp_path / "authorisation.yaml"
    paper.write_text(
        "who: Ada Example\norganisation: Example Ltd\nwhy: our own model\ndate: 2026-03-01\n"
        f"teacher: {teacher}\nscope: a test\n"
    )
    settings = settings_for(prompts_file(tmp_path, "a"), authorisation=paper)
    told = Told()
    collect(settings, teacher=teacher, store=tmp_path / "store", progress=told)
    (exchange,) = kept(tmp_path / "store")
    assert exchange.terms
    assert "Ada Example" in (exchange.terms.authorised_by or "")
    assert "Ada Example" in told.said


def test_a_condition_is_said_aloud(tmp_path: Path, server: TeacherServer) -> None:
    teacher, told = server.spec.replace("smollm2-135m", "llama3.2:1b"), Told()
    settings = settings_for(prompts_file(tmp_path, "a"))
    collect(settings, teacher=teacher, store=tmp_path / "store", progress=told)
    assert "Built with Llama" in told.said


def test_an_unknown_spec_is_a_typing_error_and_no_unknown_teacher(tmp_path: Path) -> None:
    settings = settings_for(prompts_file(tmp_path, "a"))
    for verb in (collect, plan):
        with pytest.raises(ConfigError, match="smollm2-135m"):
            verb(settings, teacher="smollm2-135n", store=tmp_path / "store")


def test_bad_lines_are_kept_in_the_store_and_counted(tmp_path: Path, server: TeacherServer) -> None:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    file = prompts_file(inputs, "a", "a", "b")
    file.write_text(file.read_text() + "{not json\n")
    told, store = Told(), tmp_path / "store"
    report = collect(settings_for(file), teacher=server.spec, store=store, progress=told)
    assert (report.rejected, report.duplicates, report.exchanges) == (1, 1, 2)
    (reject,) = map(json.loads, (store / "rejects.jsonl").read_text().splitlines())
    assert (reject["line"], reject["content"]) == (4, "{not json")
    assert f"{file}:4" in told.said
    assert [path.name for path in inputs.iterdir()] == ["prompts.jsonl"]


def test_unusable_prompts_are_an_error_before_the_model_is_loaded(
    tmp_path: Path, server: TeacherServer
) -> None:
    store = tmp_path / "store"
    with pytest.raises(DataError, match="no such file"):
        collect(settings_for(tmp_path / "none.jsonl"), teacher=server.spec, store=store)
    assert not store.exists()
    for content in ("", "{bad\n"):
        file = tmp_path / "p.jsonl"
        file.write_text(content)
        with pytest.raises(DataError, match=r"p\.jsonl"):
            collect(settings_for(file), teacher=server.spec, store=store)
    assert not server.asked
    collect(settings_for(prompts_file(tmp_path, "a")), teacher=server.spec, store=store)


# ---- one store, one teacher ----


def test_a_store_takes_answers_of_one_teacher_only(tmp_path: Path, server: TeacherServer) -> None:
    settings, store = settings_for(prompts_file(tmp_path, "a")), tmp_path / "store"
    collect(settings, teacher=server.spec, store=store)
    other = server.spec.replace("smollm2-135m", "qwen3-0.6b")
    with pytest.raises(ConfigError, match=r"qwen3-0\.6b"):
        collect(settings, teacher=other, store=store)
    (store / "collect.json").unlink()  # then the exchanges themselves tell
    with pytest.raises(ConfigError, match="smollm2-135m"):
        collect(settings, teacher=other, store=store)
    assert server.asked["a"] == 1


def test_the_same_model_at_another_address_goes_on(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with teacher_server() as one:
        collect(settings_for(prompts_file(tmp_path, "a")), teacher=one.spec, store=store)
    with teacher_server() as two:
        settings = settings_for(prompts_file(tmp_path, "a", "b"))
        report = collect(settings, teacher=two.spec, store=store)
        assert report.already_there == 1
        assert dict(two.asked) == {"b": 1}


@pytest.mark.parametrize(
    "changes", [{"top_logprobs": 5}, {"engine": "local"}, {"precision": "float32"}]
)
def test_settings_that_resuming_cannot_see_are_refused(
    tmp_path: Path, server: TeacherServer, changes: dict[str, Any]
) -> None:
    file, store = prompts_file(tmp_path, "a"), tmp_path / "store"
    collect(settings_for(file), teacher=server.spec, store=store)
    for verb in (collect, plan):
        with pytest.raises(ConfigError, match=next(iter(changes))):
            verb(settings_for(file, **changes), teacher=server.spec, store=store)


def test_a_broken_collect_json_is_an_error(tmp_path: Path, server: TeacherServer) -> None:
    settings, store = settings_for(prompts_file(tmp_path, "a")), tmp_path / "store"
    collect(settings, teacher=server.spec, store=store)
    (store / "collect.json").write_text("{")
    with pytest.raises(StoreError, match=r"collect\.json"):
        collect(settings, teacher=server.spec, store=store)


# ---- the plan, and what is told ----


def test_a_plan_counts_without_writing_or_asking(tmp_path: Path, server: TeacherServer) -> None:
    file, store = prompts_file(tmp_path, *numbered(20), "prompt 1"), tmp_path / "store"
    before = plan(settings_for(file, samples_per_prompt=2), teacher=server.spec, store=store)
    assert (before.prompts, before.requests, before.to_ask, before.duplicates) == (20, 40, 40, 1)
    assert (before.tokens_at_most, before.tokens_expected) == (40 * 32, None)
    assert before.seconds_expected is None
    assert not store.exists()
    assert not server.asked
    collect(settings_for(file, exchanges=15), teacher=server.spec, store=store)
    there = sorted(path.name for path in store.iterdir())
    after = plan(settings_for(file, exchanges=18), teacher=server.spec, store=store)
    assert (after.already_there, after.to_ask, after.tokens_expected) == (15, 3, 30)
    assert after.seconds_expected
    assert sorted(path.name for path in store.iterdir()) == there
    assert json.dumps(after.to_dict())
    assert plan(settings_for(file, exchanges=5), teacher=server.spec, store=store).to_ask == 0


def test_progress_counts_up_with_speed_and_time_left(tmp_path: Path, server: TeacherServer) -> None:
    file, store, told = prompts_file(tmp_path, *numbered(30)), tmp_path / "store", Told()
    collect(settings_for(file, exchanges=10), teacher=server.spec, store=store)
    report = collect(settings_for(file), teacher=server.spec, store=store, progress=told)
    assert ("asking the teacher", 30) in told.stages
    assert [done for done, _ in told.advances] == list(range(10, 31))
    assert all(re.fullmatch(r"\d+ tokens/s, \d+ s left", note) for _, note in told.advances[1:])
    assert told.advances[-1][1].endswith(", 0 s left")
    assert "10 of 30 answers are there, 20 to ask" in told.said
    assert isinstance(report, CollectReport)
    assert json.loads(json.dumps(report.to_dict()))["terms"]["status"] == "allowed"


# ---- stopping ----


def test_ctrl_c_keeps_what_was_answered_and_the_next_run_asks_for_the_rest(
    tmp_path: Path, server: TeacherServer
) -> None:
    settings, store = settings_for(prompts_file(tmp_path, *numbered(60))), tmp_path / "store"
    told = Told(interrupt_at=25)
    with pytest.raises(KeyboardInterrupt):
        collect(settings, teacher=server.spec, store=store, progress=told)
    assert "25 new answers are kept" in told.said
    there = texts(store)
    assert len(there) == 25
    collect(settings, teacher=server.spec, store=store)
    assert sorted(texts(store)) == sorted(numbered(60))
    assert {server.asked[text] for text in there} == {1}


def test_a_disk_that_refuses_ends_the_run_with_its_error(
    tmp_path: Path, server: TeacherServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, store = settings_for(prompts_file(tmp_path, *numbered(200))), tmp_path / "store"
    append_many = Store.append_many

    def full(self: Store, exchanges: list[Exchange]) -> int:
        if len(self) >= 20:
            raise StoreError(str(self.path), "no space left", "room", "Make room")
        return append_many(self, exchanges)

    monkeypatch.setattr(Store, "append_many", full)
    with pytest.raises(StoreError, match="no space left"):
        collect(settings, teacher=server.spec, store=store)
    assert len(server.asked) < 200
    there = texts(store)
    assert len(there) >= 20
    monkeypatch.undo()
    collect(settings, teacher=server.spec, store=store)
    assert sorted(texts(store)) == sorted(numbered(200))
    assert {server.asked[text] for text in there} == {1}


# ---- the parts ----


class Odd:
    """A model that answers wrongly: every answer to another prompt, or none at all."""

    spec = name = "smollm2-135m"
    capabilities = Capabilities(text=True)

    def __init__(self, answers: list[Exchange]) -> None:
        self.answers = answers

    def answer(self, asked: Iterator[Request], *, top_logprobs: int = 0) -> Iterator[Exchange]:
        list(asked)
        return iter(self.answers)

    def __enter__(self) -> Odd:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("wrong", "says"), [(True, "what was not asked"), (False, "to nothing")])
def test_a_model_that_breaks_the_protocol_is_an_error(
    tmp_path: Path,
    server: TeacherServer,
    monkeypatch: pytest.MonkeyPatch,
    wrong: bool,
    says: str,
) -> None:
    collect(settings_for(prompts_file(tmp_path, "a")), teacher=server.spec, store=tmp_path / "one")
    model = Odd(kept(tmp_path / "one") if wrong else [])
    monkeypatch.setattr("stillhouse.collect.run.open_model", lambda *_, **__: model)
    settings = settings_for(prompts_file(tmp_path, "b"))
    with pytest.raises(ModelError, match=says):
        collect(settings, teacher=server.spec, store=tmp_path / "two")
    assert kept(tmp_path / "two") == []


def test_answers_that_arrive_together_share_a_commit(
    tmp_path: Path, server: TeacherServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect(
        settings_for(prompts_file(tmp_path, *numbered(100))),
        teacher=server.spec,
        store=tmp_path / "one",
    )
    exchanges, batches = kept(tmp_path / "one"), []
    append_many = Store.append_many

    def counted(self: Store, batch: list[Exchange]) -> int:
        batches.append(len(batch))
        return append_many(self, batch)

    monkeypatch.setattr(Store, "append_many", counted)
    with Store(tmp_path / "two") as store, keeping.Keeper(store) as keeper:
        for exchange in exchanges:
            keeper.put(exchange)
    assert kept(tmp_path / "two") == exchanges
    assert sum(batches) == 100
    assert len(batches) < 50


def test_a_torn_line_of_the_failures_file_is_forgotten(tmp_path: Path) -> None:
    line = json.dumps({"key": "k1:a", "retryable": False, "reason": "12 tokens of 1,024"})
    (tmp_path / "failures.jsonl").write_text(line + "\n" + line[: len(line) // 2])
    failures = keeping.Failures(tmp_path)
    assert failures.for_good == {"k1:a"}
    assert failures.by_reason() == {"N tokens of N": 1}
    failures.settle({"k1:a"})
    assert not (tmp_path / "failures.jsonl").exists()
