"""Twin audits from stores to sealed bundles, on scripted and on tiny real models."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

import stillhouse.audit.twin_audit as module
from stillhouse.audit import words
from stillhouse.audit.batch import Waiting
from stillhouse.audit.bundle import Bundle
from stillhouse.audit.functions import FUNCTIONS
from stillhouse.audit.settings import TwinSettings
from stillhouse.audit.twin import evidence
from stillhouse.audit.twin_audit import Begun, planned, twin_audit
from stillhouse.audit.verify import verify
from stillhouse.collect.run import collect
from stillhouse.config import CollectSettings
from stillhouse.errors import CapabilityError, ConfigError, DataError, EvidenceError, ModelError
from stillhouse.models.local import LocalModel
from stillhouse.store import Store
from tests.audit.conftest import ask, tuned
from tests.train.conftest import write_llama


def audit(folder: Path, out: Path, *suspects: str, **options: Any) -> Any:
    settings = TwinSettings(**options.pop("settings", {}))
    if "teacher" not in options:
        options.setdefault("twins", folder / "escrow")
    found = twin_audit(
        settings, suspects=suspects or ("scripted:bigram",), exchanges=folder / "served", out=out,
        **options,
    )  # fmt: skip
    return found[0] if len(found) == 1 else found


# ---- what comes out ----


def test_an_escrowed_audit_ends_in_a_bundle_whose_evidence_follows_from_its_lines(
    escrowed: Path, tmp_path: Path
) -> None:
    found = audit(escrowed, tmp_path / "out")
    assert found["verdict"] == words.NONE_FOUND
    assert found["n"] == 60
    sealed = tmp_path / "out" / "sealed"
    read = {p.stem: json.loads(p.read_text()) for p in sealed.glob("*.json")}
    lines = {
        p.stem: [json.loads(line) for line in p.read_text().splitlines()]
        for p in sealed.glob("*.jsonl")
    }
    assert evidence(read["plan"], lines, read["reveal"]) == read["evidence"]
    assert read["plan"]["escrow"]["pairs"] == 60
    assert len(lines["scores"]) == 2 * (60 + 8)  # and eight pairs again


def test_two_stores_that_share_an_escrow_are_both_audited(escrowed: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "others.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"And {n}?"}) + "\n" for n in range(30)))
    others = CollectSettings(
        prompts=(prompts,), max_tokens=40, top_logprobs=0, escrow=escrowed / "escrow"
    )
    collect(others, teacher="scripted:bigram", store=escrowed / "more")
    for name in ("served", "more"):
        (found,) = twin_audit(
            TwinSettings(), suspects=["scripted:bigram"], exchanges=escrowed / name,
            twins=escrowed / "escrow", out=tmp_path / name,
        )  # fmt: skip
        assert isinstance(found, dict)
        assert found["n"] > 20
        checked = verify(tmp_path / name)
        assert checked.ok, checked.differences
        assert (checked.plan or {})["escrow"]["pairs"] == 90


def test_a_finished_audit_is_shown_again_and_another_plan_refused(
    escrowed: Path, tmp_path: Path
) -> None:
    first = audit(escrowed, tmp_path / "out")
    seal = (tmp_path / "out" / "sealed" / "seal.json").stat().st_mtime_ns
    assert audit(escrowed, tmp_path / "out") == first
    assert (tmp_path / "out" / "sealed" / "seal.json").stat().st_mtime_ns == seal
    with pytest.raises(ConfigError):
        audit(escrowed, tmp_path / "out", settings={"seed": 8})


def test_an_interrupted_audit_goes_on_and_asks_nothing_twice(
    escrowed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = audit(escrowed, tmp_path / "whole")
    append, calls = Bundle.append, 0

    def dies(self: Bundle, name: str, lines: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:  # after which model it is, and the first scores
            raise KeyboardInterrupt
        append(self, name, lines)

    with monkeypatch.context() as patch:
        patch.setattr(Bundle, "append", dies)
        with pytest.raises(KeyboardInterrupt):
            audit(escrowed, tmp_path / "out")
    scores = tmp_path / "out" / "sealed" / "scores.jsonl"
    before = scores.read_bytes()
    assert before
    found = audit(escrowed, tmp_path / "out")
    for same in ("differences", "p_value", "excluded"):  # not the level: this is the second begun
        assert found[same] == whole[same]
    assert scores.read_bytes().startswith(before)
    assert scores.read_bytes() == (tmp_path / "whole" / "sealed" / "scores.jsonl").read_bytes()


def test_several_suspects_share_the_level_and_get_holms_correction(
    escrowed: Path, tmp_path: Path
) -> None:
    found = audit(escrowed, tmp_path / "out", "scripted:bigram", "scripted:slow")
    assert [one["family"]["tests"] for one in found] == [2, 2]
    assert all(one["secondary"]["level"] == 0.005 for one in found)
    assert all(one["family"]["holm_p_value"] >= one["p_value"] for one in found)
    assert (tmp_path / "out" / "2" / "sealed" / "seal.json").exists()


def test_the_teacher_reads_once_for_several_suspects(
    escrowed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = module.read_scores

    def counted(model: Any, role: str, *more: Any) -> None:
        read.append(role)
        real(model, role, *more)

    monkeypatch.setattr(module, "read_scores", counted)
    suspects = [f"hf:{write_llama(tmp_path / name, seed=seed)}" for seed, name in enumerate("ab")]
    options = {"teacher": "scripted:bigram", "twins": escrowed / "escrow"}
    found = audit(escrowed, tmp_path / "out", *suspects, **options)
    assert read.count("teacher") == 1
    assert read.count("suspect") == 2
    alone = audit(escrowed, tmp_path / "alone", suspects[1], **options)
    assert alone["differences"] == found[1]["differences"]
    assert verify(tmp_path / "out" / "2", FUNCTIONS).ok


def test_twins_drawn_later_are_drawn_once(tmp_path: Path) -> None:
    folder = ask(tmp_path / "plain", "scripted:bigram", escrow=False)
    found = audit(folder, tmp_path / "out", teacher="scripted:bigram", twins=None)
    assert found["n"] == 60
    assert found["secondary"]["teacher_gate"]["p_value"] > 0.001
    with Store(folder / "served.twins", "r") as store:
        ids = store.ids()
    again = audit(folder, tmp_path / "elsewhere", teacher="scripted:bigram", twins=None)
    with Store(folder / "served.twins", "r") as store:
        assert store.ids() == ids
    assert again["secondary"]["level"] == found["secondary"]["level"] / 2  # the second begun
    assert any("2 audits of this suspect were begun" in line for line in again["cannot"])


def test_conditions_narrow_what_is_tested_and_the_report_says_so(
    escrowed: Path, tmp_path: Path
) -> None:
    with pytest.raises(EvidenceError, match="none meets the conditions"):
        audit(escrowed, tmp_path / "out", settings={"where": ("account=nobody",)})
    found = audit(escrowed, tmp_path / "out", settings={"where": ("model=scripted:bigram",)})
    assert any("model=scripted:bigram" in line for line in found["cannot"])


def test_a_dry_run_says_what_would_be_found_and_writes_nothing(
    escrowed: Path, tmp_path: Path
) -> None:
    plan = planned(
        TwinSettings(pairs=40), exchanges=escrowed / "served", twins=escrowed / "escrow",
        out=tmp_path / "out",
    )  # fmt: skip
    assert (plan["pairs"], plan["excluded"]) == (40, {"not drawn": 20})
    assert 0.7 < plan["smallest_share_found_with_probability_0.9"] < 0.8
    assert not (tmp_path / "out").exists()


# ---- refusals ----


def test_answers_that_were_not_served_are_needed(escrowed: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither --twins nor --teacher"):
        audit(escrowed, tmp_path / "out", twins=None)


def test_an_unknown_suspect_is_named_before_anything_is_done(
    escrowed: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="scripted"):
        audit(escrowed, tmp_path / "out", "scriptd:bigram")
    assert not (tmp_path / "out").exists()


def test_a_suspect_without_log_probabilities_is_refused_where_they_are_asked_for(
    escrowed: Path, tmp_path: Path
) -> None:
    with pytest.raises(CapabilityError, match="batch:FOLDER"):
        audit(escrowed, tmp_path / "out", "scripted:echo", settings={"access": "logprobs"})
    assert audit(escrowed, tmp_path / "out", "scripted:echo")["access"].startswith("text only")


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"temperature": 0.0}, "60 greedy: nothing was drawn"), ({"count": 12}, "12 pairs")],
)
def test_greedy_logs_and_too_few_exchanges_are_refused(
    settings: dict[str, Any], says: str, tmp_path: Path
) -> None:
    folder = ask(tmp_path / "asked", "scripted:bigram", **settings)
    with pytest.raises(EvidenceError, match=says):
        audit(folder, tmp_path / "out")


def test_a_store_without_sampling_settings_is_refused(escrowed: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from stillhouse.exchange import Sampling

    with Store(escrowed / "served", "r") as store, Store(tmp_path / "bare") as bare:
        bare.append_many(replace(exchange, sampling=Sampling()) for exchange in store)
    with pytest.raises(EvidenceError, match="60 sampling settings not recorded"):
        twin_audit(
            TwinSettings(), suspects=("scripted:bigram",), exchanges=tmp_path / "bare",
            out=tmp_path / "out", twins=escrowed / "escrow",
        )  # fmt: skip


def test_twins_of_other_settings_do_not_fit_and_the_setting_is_named(
    escrowed: Path, tmp_path: Path
) -> None:
    other = ask(tmp_path / "other", "scripted:bigram", escrow=False, temperature=0.7)
    with pytest.raises(EvidenceError, match=r"temperature 1.0 served, 0.7 of the twins"):
        audit(escrowed, tmp_path / "out", twins=other / "served")


def test_the_served_answers_are_no_twins_of_their_own(escrowed: Path, tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="they are the served answers themselves"):
        audit(escrowed, tmp_path / "out", twins=escrowed / "served")


def test_an_escrow_of_other_answers_does_not_fit(escrowed: Path, tmp_path: Path) -> None:
    other = ask(tmp_path / "other", "scripted:bigram", seed=99)
    with pytest.raises(EvidenceError, match=r"no pair|not among those|other one was"):
        audit(escrowed, tmp_path / "out", twins=other / "escrow")


def test_a_folder_that_is_no_store_of_twins_is_named(escrowed: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing-here"):
        audit(escrowed, tmp_path / "out", twins=tmp_path / "nothing-here")


def test_a_pattern_that_is_none_is_refused(escrowed: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="redact"):
        audit(escrowed, tmp_path / "out", settings={"redact": ("(",)})


# ---- files for a suspect that someone else runs ----


def test_a_batch_waits_for_its_answers_and_reads_them(escrowed: Path, tmp_path: Path) -> None:
    spec, ledger = f"batch:{tmp_path / 'batch'}", tmp_path / "ledger.jsonl"
    settings = {"redact": (r"number 7\b", "~.*~")}
    waiting = audit(escrowed, tmp_path / "out", spec, ledger=ledger, settings=settings)
    assert isinstance(waiting, Waiting)
    assert "both answers of" in waiting.discloses
    requests = [json.loads(line) for line in waiting.requests.read_text().splitlines()]
    shown = waiting.requests.read_text()
    assert 'number 7"' not in shown
    assert "[redacted]" in shown
    assert not {"served", "twin"} & {key for r in requests for key in r}
    assert [r["id"] for r in requests] == sorted(r["id"] for r in requests)
    rng = random.Random(1)
    waiting.answers.write_text(
        "".join(
            json.dumps({"id": r["id"], "logprobs": [-rng.random() for _ in range(5)]}) + "\n"
            for r in requests
        )
    )
    found = audit(escrowed, tmp_path / "out", spec, ledger=ledger, settings=settings)
    assert found["n"] == len(requests) / 2 - 8  # eight pairs are asked twice
    withheld = found["excluded"].get("an answer holds what must not be disclosed", 0)
    assert found["n"] + withheld == 60
    with pytest.raises(EvidenceError, match="spent in an earlier audit"):
        audit(escrowed, tmp_path / "later", ledger=ledger)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda lines: lines[:-1], "1 of 136 answers missing"),
        (lambda lines: [*lines, lines[0]], "a second time"),
        (lambda lines: ["{", *lines], "answers.jsonl:1.*not JSON"),
        (lambda lines: [lines[0].replace('"id": "', '"id": "0"}#')], "not JSON"),
        (lambda lines: ['{"id": "nobody", "logprobs": [-1]}', *lines], "which was not asked"),
        (lambda lines: [lines[0].replace("-1.0", "1.0"), *lines[1:]], "no usable 'logprobs'"),
    ],
)
def test_answers_that_do_not_fit_are_named_by_line(
    spoil: Any, says: str, escrowed: Path, tmp_path: Path
) -> None:
    spec = f"batch:{tmp_path / 'batch'}"
    waiting = audit(escrowed, tmp_path / "out", spec)
    ids = [json.loads(line)["id"] for line in waiting.requests.read_text().splitlines()]
    lines = [json.dumps({"id": name, "logprobs": [-1.0, -2.0]}) for name in ids]
    waiting.answers.write_text("\n".join(spoil(lines)) + "\n")
    with pytest.raises(DataError, match=says):
        audit(escrowed, tmp_path / "out", spec)


def test_answers_are_lines_whatever_their_text_holds_and_however_the_file_ends(
    escrowed: Path, tmp_path: Path
) -> None:
    spec, settings = f"batch:{tmp_path / 'batch'}", {"access": "text", "samples_per_prompt": 1}
    waiting = audit(escrowed, tmp_path / "out", spec, settings=settings)
    ids = [json.loads(line)["id"] for line in waiting.requests.read_text("utf-8").split("\n")[:-1]]
    lines = [
        json.dumps({"id": name, "text": f"a\u2028b\u2029c\x85 {n}"}, ensure_ascii=False)
        for n, name in enumerate(ids)
    ]
    told = "\r\n".join([*lines[:3], "", *lines[3:]]).encode()
    waiting.answers.write_bytes(told.replace(b"a\xe2", b"a\xff\xe2", 1))
    with pytest.raises(DataError, match=r"answers\.jsonl:1.*UTF-8"):
        audit(escrowed, tmp_path / "out", spec, settings=settings)
    waiting.answers.write_bytes(told)
    assert audit(escrowed, tmp_path / "out", spec, settings=settings)["n"] > 0
    kept = (tmp_path / "out" / "sealed" / "continuations.jsonl").read_bytes().split(b"\n")[:-1]
    assert "a\u2028b\u2029c\x85 0" in {json.loads(line)["text"] for line in kept}


def test_a_batch_without_a_folder_and_a_torn_ledger_are_refused(
    escrowed: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="nothing after 'batch:'"):
        audit(escrowed, tmp_path / "out", "batch:")
    (tmp_path / "ledger.jsonl").write_text("{\n")
    with pytest.raises(DataError, match=r"ledger\.jsonl:1"):
        audit(escrowed, tmp_path / "out", ledger=tmp_path / "ledger.jsonl")


# ---- tiny real models ----


@pytest.fixture(scope="module")
def real(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny teacher's served answers and escrow, a student of them, and one of the twins."""
    folder = ask(tmp_path_factory.mktemp("real") / "asked", f"hf:{llama}", count=60, max_tokens=24)
    model, rows = LocalModel(llama, spec="hf:tiny"), {}
    for name, path in (("served", "served"), ("twins", "escrow/twins")):
        with Store(folder / path, "r") as store:
            answers = sorted(store, key=lambda exchange: exchange.key)
        rows[name] = [
            (model.render(e.prompt), [*model.text.ids(e.response.text or ""), 2]) for e in answers
        ]
    out = tmp_path_factory.mktemp("students")
    return {
        "asked": folder,
        "student": tuned(llama, rows["served"], out / "student", 1200),
        "control": tuned(llama, rows["twins"], out / "control", 300),
    }


def test_a_student_of_the_served_answers_is_found_and_one_of_the_others_is_not(
    real: dict[str, Path], llama: Path, tmp_path: Path
) -> None:
    for name, verdict in (("student", words.EVIDENCE), ("control", words.NONE_FOUND)):
        found = audit(
            real["asked"], tmp_path / name, f"hf:{real[name]}", teacher=f"hf:{llama}",
            twins=real["asked"] / "escrow",
        )  # fmt: skip
        assert found["verdict"] == verdict, found["says"]
        if name == "student":
            assert found["p_value"] < 1e-4
        assert found["secondary"]["refusal"] is None


def test_the_student_is_found_by_another_tokenizer_and_without_the_teacher(
    real: dict[str, Path], tmp_path: Path
) -> None:
    found = audit(real["asked"], tmp_path / "out", f"hf:{real['student']}")
    assert found["p_value"] < 1e-4


def test_with_text_only_twins_continue_the_same_prefix(
    real: dict[str, Path], llama: Path, tmp_path: Path
) -> None:
    found = audit(
        real["asked"], tmp_path / "out", f"hf:{real['student']}", teacher=f"hf:{llama}",
        twins=None, settings={"access": "text", "prefix_tokens": 8, "temperature": 0.2},
    )  # fmt: skip
    assert found["p_value"] < 0.05
    pairs = [
        json.loads(line)
        for line in (tmp_path / "out" / "sealed" / "pairs.jsonl").read_text().splitlines()
    ]
    for pair in (pair for pair in pairs if "served" in pair):
        served = pair["served"]["response"].get("text", "")
        assert served == pair["prefix"] + pair["rest"]["served"]
        assert pair["twin"]["prompt"][-1]["content"][0]["text"] == pair["prefix"]
        assert len(pair["prefix"]) == 8  # this tokenizer's tokens are bytes


def test_a_text_longer_than_the_suspects_context_leaves_its_pair_out(
    real: dict[str, Path], tmp_path: Path
) -> None:
    short = write_llama(tmp_path / "short", layers=1)
    config = json.loads((short / "config.json").read_text())
    text, lengths = LocalModel(short, spec="hf:short").text, []
    for path in ("served", "escrow/twins"):
        with Store(real["asked"] / path, "r") as store:
            lengths += [len(text.render(e.prompt) + text.ids(e.response.text or "")) for e in store]
    config["max_position_embeddings"] = sorted(set(lengths))[-2]  # several may be the longest
    (short / "config.json").write_text(json.dumps(config))
    found = audit(real["asked"], tmp_path / "out", f"hf:{short}")
    assert 0 < found["excluded"]["an answer that could not be scored"] <= 20
    config["max_position_embeddings"] = 10
    (short / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="at most the context"):
        audit(real["asked"], tmp_path / "none", f"hf:{short}")


def test_prefixes_need_a_teacher_that_knows_its_tokens(escrowed: Path, tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="--prefix-tokens 0"):
        audit(escrowed, tmp_path / "out", "scripted:echo", teacher="scripted:bigram", twins=None)
    found = audit(
        escrowed, tmp_path / "out", "scripted:echo", teacher="scripted:bigram", twins=None,
        settings={"prefix_tokens": 0},
    )  # fmt: skip
    assert found["n"] > 50


# ---- what is fixed before, and what cannot be tried twice ----


def test_an_audit_that_is_begun_only_asks_nothing_and_goes_on_with_the_same_commitment(
    escrowed: Path, tmp_path: Path
) -> None:
    begun = audit(escrowed, tmp_path / "out", begin=True)
    assert isinstance(begun, Begun)
    sealed = tmp_path / "out" / "sealed"
    assert not (sealed / "scores.jsonl").exists()
    assert not (sealed / "models.jsonl").exists()
    audit(escrowed, tmp_path / "out")
    found = verify(tmp_path / "out", FUNCTIONS, commitment=begun.commitment,
                   escrow_root=begun.escrow_root)  # fmt: skip
    assert found.ok
    other = verify(tmp_path / "out", FUNCTIONS, escrow_root="00")
    assert not other.ok
    assert "escrow's root" in other.differences[0]


def test_another_settings_seed_does_not_draw_other_pairs(escrowed: Path, tmp_path: Path) -> None:
    def drawn(out: str, seed: int) -> list[str]:
        audit(escrowed, tmp_path / out, settings={"pairs": 30, "seed": seed})
        text = (tmp_path / out / "sealed" / "pairs.jsonl").read_text()
        return [json.loads(line)["exchange"] for line in text.splitlines()]

    assert drawn("one", 1) == drawn("two", 2)


def test_all_that_was_committed_to_is_counted(escrowed: Path, tmp_path: Path) -> None:
    found = audit(escrowed, tmp_path / "out", settings={"pairs": 30})
    assert found["secondary"]["committed_pairs"] == {
        "committed": 60, "among the candidates": 60, "outside them": 0, "revealed": 30,
    }  # fmt: skip
    with Store(escrowed / "served", "r") as store:
        some = sorted(store, key=lambda exchange: exchange.key)[:40]
    with Store(tmp_path / "some") as store:
        store.append_many(some)
    found = twin_audit(
        TwinSettings(), suspects=("scripted:bigram",), exchanges=tmp_path / "some",
        out=tmp_path / "less", twins=escrowed / "escrow",
    )[0]  # fmt: skip
    assert isinstance(found, dict)
    assert found["secondary"]["committed_pairs"]["outside them"] == 20


@pytest.mark.parametrize(
    ("name", "spoil", "says"),
    [
        ("pairs", lambda lines: lines[1:], "1 missing of exchanges that the draw chose"),
        ("pairs", lambda lines: [lines[0], *lines], "a second time"),
        ("pairs", lambda lines: [lines[0] | {"twin": lines[1]["twin"]}, *lines[1:]], "differently"),
        ("pairs", lambda lines: [{**lines[0], "served": lines[0]["twin"], "twin":
                                  lines[0]["served"]}, *lines[1:]], "candidate line"),
        ("pairs", lambda lines: [{"exchange": x["exchange"], "missing": "gone"} for x in lines],
         "have no twin"),
        ("escrow", lambda lines: lines[1:], "published root"),
        ("candidates", lambda lines: [lines[0] | {"twins": 0}, *lines[1:]], "did not choose"),
        ("scores", lambda lines: [*lines, lines[0]], "a second time"),
        ("scores", lambda lines: [*lines, lines[0] | {"role": "friend"}], "friend"),
        ("scores", lambda lines: [*lines, lines[0] | {"exchange": "x1:0"}], "no pair"),
    ],
)  # fmt: skip
def test_raw_lines_that_do_not_hang_together_are_refused(
    name: str, spoil: Any, says: str, escrowed: Path, tmp_path: Path
) -> None:
    audit(escrowed, tmp_path / "out")
    sealed = tmp_path / "out" / "sealed"
    read = {p.stem: json.loads(p.read_text()) for p in sealed.glob("*.json")}
    lines = {
        p.stem: [json.loads(line) for line in p.read_text().splitlines()]
        for p in sealed.glob("*.jsonl")
    }
    lines[name] = spoil(lines[name])
    with pytest.raises(EvidenceError, match=says):
        evidence(read["plan"], lines, read["reveal"])


def test_the_twins_inside_an_escrow_are_no_store_of_twins(escrowed: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Name the escrow's folder"):
        audit(escrowed, tmp_path / "out", twins=escrowed / "escrow" / "twins")


def test_a_bundle_shows_no_path_and_says_which_weights_it_was(
    real: dict[str, Path], tmp_path: Path
) -> None:
    audit(real["asked"], tmp_path / "out", f"hf:{real['student']}")
    sealed = tmp_path / "out" / "sealed"
    everything = "".join(path.read_text() for path in sealed.iterdir())
    assert str(real["student"]) not in everything
    (model,) = [json.loads(x) for x in (sealed / "models.jsonl").read_text().splitlines()]
    assert model["model"] == "student"
    assert model["weights"].startswith("w1:")
    assert {"torch", "transformers"} == set(model["versions"])


def test_what_is_masked_stands_nowhere_in_the_bundle(escrowed: Path, tmp_path: Path) -> None:
    found = audit(escrowed, tmp_path / "out", settings={"redact": (r"number \d+", "0")})
    everything = "".join(p.read_text() for p in (tmp_path / "out" / "sealed").glob("pairs.jsonl"))
    assert "number 1" not in everything
    assert found["excluded"]["an answer holds what must not be disclosed"] > 0
    assert any("prompts are masked" in line for line in found["cannot"])
    assert verify(tmp_path / "out", FUNCTIONS).ok


def test_an_answer_held_impossible_leaves_its_pair_out(escrowed: Path, tmp_path: Path) -> None:
    spec = f"batch:{tmp_path / 'batch'}"
    waiting = audit(escrowed, tmp_path / "out", spec)
    ids = [json.loads(line)["id"] for line in waiting.requests.read_text().splitlines()]
    rng = random.Random(3)
    lines = [
        json.dumps({"id": name, "logprobs": [-rng.random(), -float("inf") if n == 0 else -1.0]})
        for n, name in enumerate(ids)
    ]
    waiting.answers.write_text("\n".join(lines) + "\n")
    found = audit(escrowed, tmp_path / "out", spec)
    assert found["excluded"].get("an answer held impossible", 0) <= 1
    assert found["n"] >= 59
    assert any("Whoever ran the suspect" in line for line in found["cannot"])


def test_too_few_pairs_are_known_before_a_file_discloses_them(tmp_path: Path) -> None:
    folder = ask(tmp_path / "asked", "scripted:bigram", count=12)
    with pytest.raises(EvidenceError, match="12 pairs"):
        audit(folder, tmp_path / "out", f"batch:{tmp_path / 'batch'}")
    assert not (tmp_path / "batch").exists()
