"""A whole evaluation of tiny real models: against transformers and numpy, broken off, resumed."""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch

import stillhouse.evaluate.fidelity as module
from stillhouse.audit.suspect import model_line
from stillhouse.config import EvaluateSettings
from stillhouse.errors import CapabilityError, ConfigError, DataError, EvidenceError
from stillhouse.evaluate.compare import COLUMNS
from stillhouse.evaluate.fidelity import evaluate, fidelity
from stillhouse.evaluate.held_out import draw, requests_for
from stillhouse.evaluate.kept import Rows
from stillhouse.exchange import Exchange, Request, Response, Sampling, message
from stillhouse.models import open_model
from stillhouse.models.local import LocalModel
from stillhouse.models.scripted import transitions
from stillhouse.progress import Silent
from stillhouse.prompts import read_prompts
from stillhouse.report import write_report
from stillhouse.store import Store
from tests.train.conftest import write_llama


def run_evaluation(settings, teacher, student, run, **options):
    return evaluate(settings, teacher=f"hf:{teacher}", student=student, run=run, **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs") / "run"


@pytest.fixture(scope="module")
def report(settings, teacher, student, untrained, run):
    return run_evaluation(settings, teacher, student, run, before=untrained, student_name="Vat")


def stored(run: Path, name: str) -> list[Exchange]:
    (folder,) = (run / "evaluation").glob(f"{name}-*")
    with Store(folder, mode="r") as store:
        return list(store)


def by_transformers(folder: Path, answers: list[Exchange]):
    """(token ids, float64 log-probabilities (T, V)) of each answer, straight from transformers."""
    model = LocalModel(folder, spec="oracle")
    for answer in answers:
        prompt, ids = model.render(answer.prompt), model.answer_ids(answer)
        with torch.no_grad():
            logits = model.network(torch.tensor([prompt + ids])).logits[0]
        rows = logits[len(prompt) - 1 : -1].double().numpy()
        yield ids, rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))


def test_figures_equal_transformers_and_plain_numpy(report, teacher, student, untrained, run):
    answers = stored(run, "answers-teacher")
    assert len(answers) == 20
    for side, folder in (("after", student), ("before", untrained)):
        kl = agree = nll = tokens = 0.0
        pairs = zip(
            by_transformers(teacher, answers), by_transformers(folder, answers), strict=True
        )
        for (ids, theirs), (_, ours) in pairs:
            for t, token in enumerate(ids):
                kl += float((np.exp(theirs[t]) * (theirs[t] - ours[t])).sum())
                agree += theirs[t].argmax() == ours[t].argmax()
                nll -= ours[t][token]
                tokens += 1
        found = report["held_out"][side]
        assert found["n_tokens"] == tokens
        assert found["kl_nats"]["value"] == pytest.approx(kl / tokens, rel=1e-4)
        assert found["top1_agreement"]["value"] == pytest.approx(agree / tokens)
        assert found["nll_nats"]["value"] == pytest.approx(nll / tokens, rel=1e-5)
        assert found["kl_nats"]["n"] == 20
    gap = report["held_out"]["change"]["kl_nats"]["value"]
    sides = [report["held_out"][side]["kl_nats"]["value"] for side in ("after", "before")]
    assert gap == pytest.approx(sides[0] - sides[1])


def test_report_fields_of_the_issue_are_there_and_the_page_is_written(report, student, tmp_path):
    assert report["student"]["name"] == "Vat"
    network = LocalModel(student, spec="oracle").network
    assert report["student"]["parameters"] == sum(p.numel() for p in network.parameters())
    size = (student / "model.safetensors").stat().st_size
    assert report["student"]["size_bytes"] == size
    assert report["teacher"]["name"] == "Mash-7"
    assert report["teacher"]["spec"].startswith("hf:")
    speed = report["speed"]
    ratio = [after / before for before, after in speed["timings"]]
    assert speed["ratio"]["value"] == pytest.approx(np.median(ratio))
    assert speed["teacher_tokens_per_s"] == speed["teacher"]["value"] > 0
    assert {"held-out answers", "identity", "fidelity", "speed"} <= set(report["seconds"])
    assert json.loads(json.dumps(report)) == report
    _, page = write_report(tmp_path, report)
    assert "What would a river say on day 0?" in page.read_text()


def test_every_held_out_prompt_has_the_students_answer_and_the_first_also_the_untrained(report):
    assert len(report["samples"]) == 20
    assert [s["prompt_id"] for s in report["samples"]] == [f"h{i}" for i in range(20)]
    assert all(s["student"]["tokens"] >= 1 and s["teacher"] for s in report["samples"])
    assert [s["before"] is not None for s in report["samples"]] == [True] * 12 + [False] * 8
    assert report["samples"][0]["prompt"] == [
        {"role": "user", "text": "What would a river say on day 0?"}
    ]


def test_models_have_the_hash_that_an_audit_of_the_same_folder_seals(report, teacher, student):
    for role, folder in (("teacher", teacher), ("student", student)):
        with open_model(f"hf:{folder}") as model:
            assert model_line(model, "suspect")["weights"] == report[role]["hash"]


def test_answers_are_drawn_at_temperature_one_with_nothing_cut(report, run):
    for answer in stored(run, "answers-teacher"):
        sampling = answer.sampling
        assert (sampling.temperature, sampling.top_p) == (1, 1)
        assert (sampling.top_k, sampling.min_p) == (0, 0)
        assert answer.terms is not None


def test_a_second_call_asks_and_computes_nothing(
    report, settings, teacher, student, untrained, run, monkeypatch
):
    def refuse(*_args, **_options):
        raise AssertionError("asked again")

    for name in ("answer", "distributions"):
        monkeypatch.setattr(LocalModel, name, refuse)
    again = run_evaluation(settings, teacher, student, run, before=untrained, student_name="Vat")
    assert {k: v for k, v in again.items() if k != "seconds"} == {
        k: v for k, v in report.items() if k != "seconds"
    }


def test_an_evaluation_broken_off_anywhere_ends_with_the_same_figures(
    report, settings, teacher, student, untrained, tmp_path, monkeypatch
):
    """Break off after each of several numbers of answers and scored groups, then go on."""

    class Stop(Exception):
        pass

    left = 0

    def limited(real):
        def method(self, *args, **options):
            nonlocal left
            for item in real(self, *args, **options):
                if left == 0:
                    raise Stop
                left -= 1
                yield item

        return method

    for name in ("answer", "distributions"):
        monkeypatch.setattr(LocalModel, name, limited(getattr(LocalModel, name)))
    monkeypatch.setattr(module, "_GROUP_TOKENS", 60)  # several groups of some five answers
    stops = 0
    while stops < 30:
        left = 21
        try:
            again = run_evaluation(
                settings, teacher, student, tmp_path / "other", before=untrained, student_name="Vat"
            )
            break
        except Stop:
            stops += 1
    assert 5 <= stops < 30
    asked = stored(tmp_path / "other", "answers-teacher")
    assert len({e.key for e in asked}) == len(asked) == 20
    for side in ("before", "after", "change"):
        figure = again["held_out"][side]["kl_nats"]["value"]
        assert figure == pytest.approx(report["held_out"][side]["kl_nats"]["value"], rel=1e-4)
    assert again["samples"] == report["samples"]
    assert again["identity"] == report["identity"]


def test_another_student_meets_the_same_answers_and_does_not_inherit_figures(
    report, settings, teacher, untrained, run
):
    other = run_evaluation(settings, teacher, untrained, run)
    assert len(stored(run, "answers-teacher")) == 20
    before = report["held_out"]["before"]
    assert other["held_out"]["after"]["kl_nats"] == before["kl_nats"]
    assert other["held_out"]["before"] is None
    assert other["identity"] is None


def test_the_teacher_as_its_own_student_is_at_no_distance(settings, teacher, tmp_path):
    found = run_evaluation(settings, teacher, teacher, tmp_path / "run")["held_out"]
    assert found["after"]["kl_nats"]["value"] == pytest.approx(0, abs=1e-6)
    assert found["after"]["top1_agreement"]["value"] == 1
    assert found["after"]["nll_nats"] == found["teacher"]["nll_nats"]


def trained_on(prompt) -> Exchange:
    return Exchange(
        time=datetime(2026, 1, 1, tzinfo=UTC), model="m", prompt=prompt, sampling=Sampling(),
        response=Response(text="So."),
    )  # fmt: skip


def test_prompts_that_training_saw_are_left_out_and_counted(settings, teacher, student, tmp_path):
    seen = tmp_path / "trained"
    asked = ["what would a RIVER say on day 0", "What would a lamp say on day 1? Well?", "Else?"]
    with Store(seen) as store:
        for text in asked:
            store.append(trained_on((message("system", "Be brief."), message("user", text))))
    report = run_evaluation(settings, teacher, student, tmp_path / "run", store=seen)
    overlap = report["held_out"]["overlap"]
    assert overlap["checked"]
    assert overlap["training_prompts"] == 3
    first = overlap["left_out"][0]
    assert (first["prompt_id"], first["exact"]) == ("h0", True)
    assert "h1" in {p["prompt_id"] for p in overlap["left_out"]}
    assert {p["prompt_id"] for p in overlap["left_out"]}.isdisjoint(
        sample["prompt_id"] for sample in report["samples"]
    )
    assert report["held_out"]["after"]["kl_nats"]["n"] == 20 - len(overlap["left_out"])


def test_training_that_saw_every_prompt_leaves_nothing_to_measure(
    settings, teacher, student, tmp_path
):
    with Store(tmp_path / "seen") as store:
        for prompt in read_prompts(settings.prompts).prompts:
            store.append(trained_on(prompt.messages))
    with pytest.raises(EvidenceError, match="all 20 of them"):
        run_evaluation(settings, teacher, student, tmp_path / "run", store=tmp_path / "seen")


def test_fewer_prompts_are_spread_over_the_files_and_get_the_same_answers(settings, report):
    fewer = settings.model_copy(update={"exchanges": 5})
    from stillhouse.evaluate.held_out import held_out_prompts

    ids = [prompt.id for prompt in held_out_prompts(fewer, None).prompts]
    assert ids == ["h0", "h4", "h8", "h12", "h16"]
    all_prompts = read_prompts(settings.prompts).prompts
    drawn = EvaluateSettings(max_tokens=12, seed=11, top_k=40)
    keys = {r.key for r in requests_for(all_prompts, drawn)}
    some = [p for p in all_prompts if p.id in ids]
    assert {r.key for r in requests_for(some, drawn)} < keys


def test_no_prompt_files_is_an_error_of_the_recipe(settings, teacher, student, tmp_path):
    none = settings.model_copy(update={"prompts": ()})
    with pytest.raises(ConfigError, match="prompts"):
        run_evaluation(none, teacher, student, tmp_path / "run")


def test_a_student_that_was_not_trained_yet_is_named(settings, teacher, tmp_path):
    with pytest.raises(DataError, match="Train it first"):
        run_evaluation(settings, teacher, tmp_path / "nothing", tmp_path / "run")


def test_a_teacher_without_whole_distributions_is_refused_by_name(settings, student, tmp_path):
    with pytest.raises(CapabilityError, match="full logits"):
        evaluate(settings, teacher="scripted:echo", student=student, run=tmp_path / "run")


def test_models_of_different_tokenizers_are_not_compared(settings, student, tmp_path):
    with pytest.raises(EvidenceError, match=r"one tokenizer|share a vocabulary"):
        evaluate(settings, teacher="scripted:bigram", student=student, run=tmp_path / "run")


def test_a_known_language_is_measured_at_its_known_entropy(tmp_path):
    """The scripted bigram's own distribution is the oracle: every row of figures is known."""
    requests = [
        Request(
            prompt=(message("user", f"say {number}"),),
            sampling=Sampling(temperature=1.0, max_tokens=60, seed=number),
        )
        for number in range(12)
    ]
    rows = Rows(tmp_path / "rows.jsonl")
    with open_model("scripted:bigram") as model:
        answers, _ = draw(model, requests, tmp_path / "store", Silent(), "asking", top_logprobs=1)
        found = fidelity(
            answers, model, {"student": model}, rows,
            marks={"teacher": "t", "student": "s"}, progress=Silent(),
        )["student"]  # fmt: skip
        truth = transitions()
        own_entropy = -(np.exp(truth) * truth).sum(axis=1)  # after each token, nats
        assert found.shape == (12, COLUMNS)
        for answer, row in zip(answers, found, strict=True):
            (scored,) = model.distributions([answer])
            entropies = -(np.exp(scored.logprobs) * scored.logprobs).sum(axis=1)
            assert entropies[1:] == pytest.approx(own_entropy[scored.token_ids[:-1]], abs=1e-5)
            assert row[0] == len(scored.token_ids) == answer.output_tokens
            assert row[1] == pytest.approx(0, abs=1e-5)
            assert row[5] == pytest.approx(entropies.sum(), rel=1e-5)


def test_requests_too_long_for_a_model_are_left_out_and_said(settings, teacher, tmp_path):
    long = Request(
        prompt=(message("user", "word " * 200),),
        sampling=Sampling(temperature=1.0, max_tokens=4, seed=1),
    )
    short = Request(
        prompt=(message("user", "word"),),
        sampling=Sampling(temperature=1.0, max_tokens=4, seed=1),
    )
    lines: list[str] = []

    class Told(Silent):
        def say(self, line: str) -> None:
            lines.append(line)

    with open_model(f"hf:{teacher}") as model:
        found, failures = draw(model, [long, short], tmp_path / "store", Told(), "asking")
    assert [e.key for e in found] == [short.key]
    assert [f.request.key for f in failures] == [long.key]
    assert any("left out" in line for line in lines)


def test_retryable_failures_stop_and_keep_what_came(tmp_path):
    from stillhouse.errors import ModelError

    requests = [
        Request(
            prompt=(message("user", f"say {n}"),),
            sampling=Sampling(temperature=1.0, max_tokens=9, seed=n),
        )
        for n in range(9)
    ]
    with open_model("scripted:flaky") as model, pytest.raises(ModelError):
        draw(model, requests, tmp_path / "store", Silent(), "asking")
    with Store(tmp_path / "store", mode="r") as store:
        assert len(store) >= 1


def test_a_deeper_model_decodes_slower(settings, tmp_path):
    from stillhouse.evaluate.speed import compare_speed

    deep = LocalModel(write_llama(tmp_path / "deep", layers=10, seed=1), spec="deep")
    flat = LocalModel(write_llama(tmp_path / "flat", layers=1, seed=1), spec="flat")
    longer = settings.model_copy(update={"speed_tokens": 24, "speed_batch": 2})
    speed = compare_speed(deep.engine, flat.engine, longer, Silent())
    assert speed["ratio"]["value"] > 1.5
    assert speed["settings"]["batch"] == 2
    assert "2 answers at a time" in speed["how"]


def test_speeds_of_different_engines_are_not_compared(settings, teacher):
    from stillhouse.evaluate.speed import compare_speed

    a = LocalModel(teacher, spec="a")
    b = LocalModel(teacher, spec="b", precision="bfloat16")
    with pytest.raises(EvidenceError, match="one engine"):
        compare_speed(a.engine, b.engine, settings, Silent())
