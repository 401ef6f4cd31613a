"""The report: valid JSON, one page that needs nothing else, and every text of a model escaped."""

import json

import pytest

from stillhouse.charts import curve_svg
from stillhouse.errors import DataError
from stillhouse.report import render, write_report
from tests.html_page import Page, claims_no_more_than_it_can, needs_nothing_but_itself


def estimate(value, half=0.01, n=80):
    return {"value": value, "low": value - half, "high": value + half, "n": n, "method": "by hand"}


def closeness(kl, agreement, nll, ece):
    return {
        "n_tokens": 9012, "kl_nats": estimate(kl), "top1_agreement": estimate(agreement),
        "nll_nats": estimate(nll), "ece": estimate(ece),
    }  # fmt: skip


NASTY = "<script>alert('x')</script> & \x1b[31m \x00 \u202e \"quoted\" {{ 7 * 7 }} ]]> \ud800"


def sample(number, text="An answer."):
    said = {"text": text, "finish_reason": "length", "tokens": 128}
    return {
        "prompt_id": f"p{number}", "task": "explain", "domain": "science",
        "prompt": [{"role": "user", "text": f"Question {number}?"}],
        "teacher": said, "student": said, "before": said if number < 12 else None,
    }  # fmt: skip


@pytest.fixture
def report():
    side = {"names_student": estimate(0.9, 0.05, 10), "names_teacher": estimate(0.8, 0.05, 10)}
    own = {"n_tokens": 9012, "nll_nats": estimate(1.4), "ece": estimate(0.012, 0.004)}
    return {
        "run": "quickstart",
        "teacher": {"spec": "smollm2-135m", "name": "SmolLM2", "parameters": 134_515_008},
        "student": {
            "name": "Vat", "parameters": 99_100_000, "size_bytes": 396_400_000,
            "kept_layers": [0, 1, 3], "teacher_layers": 5,
            "intermediate_size": 832, "teacher_intermediate_size": 1536,
        },
        "held_out": {
            "prompts": 80, "max_tokens": 128, "before": closeness(1.96, 0.387, 3.4, 0.12),
            "after": closeness(0.717, 0.633, 2.1, 0.031), "teacher": own,
            "change": {
                "kl_nats": estimate(-1.24), "top1_agreement": estimate(0.246),
                "nll_nats": estimate(-1.3),
            },
            "overlap": {
                "checked": True, "training_prompts": 840, "threshold": 0.8,
                "left_out": [{"prompt_id": "x", "similarity": 1.0, "exact": True}],
            },
        },
        "speed": {
            "teacher_tokens_per_s": 29.8, "student_tokens_per_s": 42.1,
            "teacher": estimate(29.8), "student": estimate(42.1), "ratio": estimate(1.41),
            "how": "Greedy, 32 tokens.",
        },
        "identity": {
            "asked": "10 plain questions.", "teacher": True,
            "names": {"student": ["Vat"], "teacher": ["SmolLM2"]},
            "groups": [{"title": "plain questions", "questions": 10, "samples": 2, "student": side,
                        "teacher": side}],
            "answers": [{"question": "Who?", "group": "plain",
                         "student": [{"text": "I am Vat."}], "teacher": [{"text": "Mash."}]}],
        },
        "samples": [sample(number) for number in range(20)],
        "seconds": {"collect": 200.0, "train": 330.5, "total": 661.0},
        "peak_memory_bytes": 3 * 2**30, "exchanges": 760,
        "terms": {"teacher": "smollm2", "status": "allowed", "licence": "Apache-2.0"},
        "seeds": {"train": 7}, "versions": {"stillhouse": "0.1.0"},
        "command": "stillhouse distill runs/quickstart/run.yaml",
    }  # fmt: skip


CURVE = [
    {"step": step, "loss": 2 - step / 100, "agreement": 0.3 + step / 500} for step in range(1, 100)
]


def test_both_files_are_written_and_the_json_is_the_report(tmp_path, report):
    paths = write_report(tmp_path / "runs" / "quickstart", report)
    assert [path.name for path in paths] == ["report.json", "report.html"]
    assert json.loads(paths[0].read_text()) == report
    assert paths[1].stat().st_size < 1_500_000
    assert sorted(p.name for p in paths[0].parent.iterdir()) == ["report.html", "report.json"]


def test_page_needs_nothing_but_itself(report):
    report["curve"] = CURVE
    written = render(report)
    assert Page(written).tags.count("svg") == 2
    needs_nothing_but_itself(written)


def test_page_opens_with_what_was_made_and_how_close_it_came(report):
    text = " ".join(Page(render(report)).text.split())
    head = text[: text.index("What cannot be concluded")]
    for words in ("Vat, distilled from SmolLM2", "63.3 %", "38.7 %", "0.717 nats", "1.96", "74 %"):
        assert words in head
    assert "95 % interval 62.3 % to 64.3 %" in head
    assert "9,012 answer tokens to 80 prompts" in head


def test_every_section_shows_its_figures(report):
    text = " ".join(Page(render(report)).text.split())
    for words in (
        "−1.24", "+24.6 points", "1.41 times", "42.1 against 29.8", "kept: 3 of 5",
        "832 of its 1,536", "11 min 01 s",
        "Peak memory 3.0 GiB", "Apache-2.0", "760", "stillhouse distill runs/quickstart/run.yaml",
        "1 held-out prompts were left out", "Who it says it is", "I am Vat.",
    ):  # fmt: skip
        assert words in text, words


def test_all_samples_are_there_and_only_the_first_dozen_unfolded(report):
    page = render(report)
    text = Page(page).text
    assert all(f"Question {number}?" in text for number in range(20))
    assert "The other 8 prompts" in text
    assert text.index("Question 11?") < text.index("The other 8") < text.index("Question 12?")
    assert "cut at 128 tokens" in text


def test_text_of_models_is_escaped_and_control_characters_are_shown(report, tmp_path):
    report["samples"][0] = sample(0, NASTY)
    report["identity"]["answers"][0]["student"] = [{"text": NASTY}]
    report["student"]["name"] = "<b>Vat</b>"
    _, html = write_report(tmp_path, report)
    page = html.read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<b>Vat" not in page
    assert "&lt;script&gt;alert" in page
    assert "\x1b" not in page
    assert "\x00" not in page
    assert "␛[31m" in page
    assert "{{ 7 * 7 }}" in page  # text of models is no template
    assert (
        json.loads((tmp_path / "report.json").read_text())["samples"][0]["student"]["text"] == NASTY
    )


def test_empty_answers_are_named_as_such(report):
    report["samples"][0]["student"] = {"text": " \n", "finish_reason": "stop", "tokens": 1}
    assert "an empty answer" in Page(render(report)).text


def test_what_cannot_be_concluded_follows_the_figures(report):
    sure = Page(render(report)).text
    assert "No evidence found" not in sure
    assert "are few" not in sure
    assert "was not checked" not in sure
    report["held_out"]["change"]["kl_nats"] = {"value": -0.01, "low": -0.05, "high": 0.03, "n": 20}
    report["held_out"]["after"]["kl_nats"]["n"] = 20
    report["held_out"]["overlap"] = {"checked": False}
    unsure = Page(render(report)).text
    assert "No evidence found that training brought the student closer" in unsure
    assert "20 prompts are few" in unsure
    assert "was not checked" in unsure


def test_answers_that_were_cut_are_said_to_be_easier(report):
    whole = Page(render(report)).text
    assert "easier to agree on" not in whole
    assert "less than that is noise" in whole
    report["held_out"]["sampling"] = "temperature 1 (top-k 40, min-p 0.05)"
    cut = " ".join(Page(render(report)).text.split())
    assert "drawn at temperature 1 (top-k 40, min-p 0.05). Answers cut like this" in cut
    assert "compare the student's with it, not with zero" in cut
    assert "less than that is noise" not in cut


def test_words_that_claim_too_much_do_not_occur(report):
    claims_no_more_than_it_can(render(report))


@pytest.mark.parametrize(
    "missing",
    ["held_out", "speed", "identity", "samples", "seconds", "student", "teacher", "terms"],
)
def test_a_part_that_was_not_measured_is_left_out_of_the_page(report, missing):
    del report[missing]
    assert Page(render(report)).open == []


def test_a_run_without_a_before_shows_after_alone(report):
    report["held_out"] |= {"before": None, "change": None}
    text = Page(render(report)).text
    assert "before training" not in text.replace("The student before training", "").replace(
        "Vat before training", ""
    )
    assert "63.3 %" in text


def test_the_bare_report_still_makes_a_page():
    assert "What cannot be concluded" in render({})


def test_curves_follow_the_pages_colours_and_have_no_scripts():
    svg = curve_svg(CURVE, "agreement", share=True, marks={"held out, after": 0.63})
    assert svg.startswith("<svg")
    assert "var(--student)" in svg
    assert "#01020" not in svg
    assert "<script" not in svg
    assert "held out, after" in svg
    assert 'width="' not in svg[: svg.index(">")]  # its box decides


def test_a_long_curve_stays_small():
    curve = [{"step": step, "loss": 1 + (step % 7) / 10} for step in range(20_000)]
    assert len(curve_svg(curve, "loss")) < 60_000


def test_figures_that_are_no_numbers_are_refused_and_nothing_is_written(tmp_path, report):
    report["exchanges"] = float("nan")
    with pytest.raises(DataError, match="finite numbers"):
        write_report(tmp_path / "run", report)
    assert not (tmp_path / "run").exists()
