"""The example that tells all three sides: its page says what came out, whatever that is."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from stillhouse.errors import ConfigError
from stillhouse.progress import Silent
from tests.html_page import claims_no_more_than_it_can, needs_nothing_but_itself

FILE = Path(__file__).resolve().parent.parent / "examples" / "whole_story.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("whole_story", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def audited(p_value: float | None, verdict: str, number: int) -> dict[str, Any]:
    return {
        "p_value": p_value, "n": 180, "verdict": verdict, "share": 0.5, "low": 0.4, "high": 0.6,
        "at_most": 0.57, "level": 0.005, "says": [], "cannot": [], "excluded": {}, "root": "r",
        "verified": True, "bundle": f"bundle/{number}", "commitment": f"c{number}c",
        "differences": [],
    }  # fmt: skip


def told(example: ModuleType, folder: Path, called: int, false: int, *audits: Any) -> Any:
    story = example.Story(folder, 7, Silent())
    kl = {"value": 1.5, "low": 1.2, "high": 1.8, "n": 16}
    student = {"exchanges": 200, "steps": 33, "loss": [2.0, 1.0], "parameters": 9, "kl_nats": kl}
    campaign = {"id": "c-1", "accounts": called, "exchanges": 90, "p_value": 1e-3, "q_value": 2e-3,
                "families": ["content", "timing"], "capability": "code"}  # fmt: skip
    story.stages |= {
        "spent": {chapter.__name__: 2.0 for chapter in example.CHAPTERS},
        "logged": {"events": 5000}, "suspect": student, "control": student,
        "found": {"members": 30, "members_called": called, "benign": 2400,
                  "false_accounts": false, "campaigns": [campaign]},
        "audited": dict(zip(("suspect", "control"), audits, strict=True)),
        "others": {"exchanges": 200}, "served": {"exchanges": 200, "escrow_root": "e5c0"},
        "exported": {"exchanges": 197, "ended": None,
                     "left_out": {"c-1": {"why": 2}, "c-2": {"why": 1}, "c-3": {}}},
    }  # fmt: skip
    example.tell(story)
    page = " ".join((folder / "report.html").read_text("utf-8").split())
    return json.loads((folder / "story.json").read_text("utf-8")), page


def test_the_page_tells_a_story_that_went_wrong(example: ModuleType, tmp_path: Path) -> None:
    suspect, control = audited(None, "refused", 1), audited(1e-7, "evidence", 2)
    control |= {"verified": False, "differences": ["seal.json differs."]}
    figures, page = told(example, tmp_path, 3, 12, suspect, control)
    assert figures["guard"]["recall"] == 0.1
    assert figures["guard"]["false_accounts"] == 12
    assert figures["audit"]["suspect"]["p_value"] is None
    assert figures["seconds"] == 2.0 * len(example.CHAPTERS)
    met = {goal["what"]: goal["met"] for goal in figures["goals"]}
    assert met == {
        "accounts of the campaign called": False, "other accounts called": False,
        "p of the suspect": False, "verdict on the control": False,
        f"time on {os.cpu_count()} cores": True,
    }  # fmt: skip
    assert page.count("<td>missed</td>") == 4
    assert "197<small> of 200" in page
    assert "; 3 other requests that guard holds for a campaign's were served nothing" in page
    assert "leaning to code (planted: reasoning elicitation)" in page
    assert "verify bundle/2 \\ --commitment c2c \\ --escrow-root e5c0" in page
    assert "<b>3 of the 30</b> for review, and 12 of the others" in page
    assert "<b>refused</b>, refused" in page
    assert "evidence, p = 1.0 × 10" in page
    assert page.count("no evidence") == 1  # what the goal was
    assert "<b>Verification failed</b> for the control's bundle" in page
    assert "seal.json differs. See for yourself" in page
    assert "Both bundles were verified" not in page
    written = (tmp_path / "report.html").read_text("utf-8")
    claims_no_more_than_it_can(written)
    reports = ["scan", "students/suspect", "students/control", "bundle/1", "bundle/2"]
    needs_nothing_but_itself(written, [f"{folder}/report.html" for folder in reports])


def test_a_campaign_that_guard_misses_is_told_too(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The whole main: what was measured so far is written, and every goal behind it is missed."""
    chapters = {
        "ordinary_week": {"events": 5, "accounts": 4},
        "asked": {"events": 5, "campaign_events": 2},
        "served": {"exchanges": 2, "escrow_root": "e5c0"},
        "logged": {"events": 5, "megabytes": 1, "accounts": 4},
        "found": {"members": 30, "members_called": 0, "benign": 2400, "false_accounts": 0,
                  "campaigns": []},
    }  # fmt: skip
    story = example.Story(tmp_path / "out", 7, Silent())
    for name, result in chapters.items():
        story.stage(name, "line", lambda result=result: result)
    monkeypatch.setattr("sys.argv", ["whole_story.py", "--out", str(story.folder), "--quiet"])
    with pytest.raises(SystemExit) as ended:
        example.main()
    assert ended.value.code == 3
    assert "recall 0.000" in capsys.readouterr().out
    figures = json.loads((story.folder / "story.json").read_text("utf-8"))
    assert figures["audit"]["suspect"]["p_value"] is None
    missed = {goal["what"] for goal in figures["goals"] if not goal["met"]}
    assert missed == {
        "accounts of the campaign called", "p of the suspect", "verdict on the control"
    }  # fmt: skip
    written = (story.folder / "report.html").read_text("utf-8")
    assert "Guard did not find the campaign: it called no campaign" in written
    assert "bundle" not in written
    needs_nothing_but_itself(written, ["scan/report.html"])


def test_a_folder_of_a_run_is_no_story(example: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "stages.json").write_text('{"stages": {}}')
    with pytest.raises(ConfigError, match="no story"):
        example.Story(tmp_path, 7, Silent())


def test_a_refused_control_is_not_the_absence_of_evidence(
    example: ModuleType, tmp_path: Path
) -> None:
    suspect, control = audited(1e-12, "evidence", 1), audited(None, "refused", 2)
    figures, _ = told(example, tmp_path, 30, 0, suspect, control)
    missed = [goal["what"] for goal in figures["goals"] if not goal["met"]]
    assert missed == ["verdict on the control"]


def test_another_seed_is_not_mixed_in(example: ModuleType, tmp_path: Path) -> None:
    suspect, control = audited(1e-9, "evidence", 1), audited(0.4, "no evidence found", 2)
    told(example, tmp_path, 30, 0, suspect, control)
    story = example.Story(tmp_path, 7, Silent())
    story.stage("found", "never shown", lambda: {"members": 1})  # kept for the next time
    with pytest.raises(ConfigError, match="other settings"):
        example.Story(tmp_path, 8, Silent())


def test_a_folder_of_other_things_is_left_alone(example: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "week").mkdir()
    with pytest.raises(ConfigError, match="no story"):
        example.Story(tmp_path, 7, Silent())
    assert [path.name for path in tmp_path.iterdir()] == ["week"]


def test_a_stage_that_is_stopped_has_taken_its_time(example: ModuleType, tmp_path: Path) -> None:
    def stopped() -> dict[str, Any]:
        raise KeyboardInterrupt

    story = example.Story(tmp_path, 7, Silent())
    with pytest.raises(KeyboardInterrupt):
        story.stage("found", "line", stopped)
    again = example.Story(tmp_path, 7, Silent())
    assert "found" in again.stages["spent"]
    assert again.stage("found", "line", lambda: {"members": 1}) == {"members": 1}
    assert example.Story(tmp_path, 7, Silent()).stages["found"] == {"members": 1}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_is_told_from_beginning_to_end_and_goes_on_after_a_stop(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All chapters, with a tiny teacher of random weights; its figures mean little."""
    from tests.train.conftest import write_llama

    teacher = write_llama(tmp_path / "teacher", context_tokens=4096)
    (teacher / "README.md").write_text("---\nlicense: nvidia-open-model-license\n---\n")
    out = tmp_path / "out"
    student = {"layers": 4, "measure_tokens": 2000, "teach_identity": False}
    train = example.TRAIN | {"learning_rate": 5e-3, "epochs": 4}
    chapters = example.CHAPTERS
    for name, value in {
        "TEACHER": f"hf:{teacher}", "BENIGN": 1200, "STUDENT": student, "TRAIN": train
    }.items():  # fmt: skip
        monkeypatch.setattr(example, name, value)

    def stopped(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["whole_story.py", "--out", str(out), "--quiet"])
    monkeypatch.setattr(example, "CHAPTERS", (*chapters[:4], stopped, *chapters[4:]))
    with pytest.raises(SystemExit) as ended:
        example.main()
    assert ended.value.code == 130
    served = (out / "escrow" / "commitments.jsonl").read_bytes()
    monkeypatch.setattr(example, "CHAPTERS", chapters)
    example.main()
    assert (out / "escrow" / "commitments.jsonl").read_bytes() == served
    figures = json.loads((out / "story.json").read_text("utf-8"))
    assert figures["guard"]["recall"] >= 0.95
    assert figures["guard"]["false_accounts"] == 0
    assert figures["exchanges"]["exported"] == figures["exchanges"]["served"]
    assert figures["audit"]["suspect"]["p_value"] < figures["audit"]["control"]["p_value"]
    for number, name in enumerate(("suspect", "control"), start=1):
        assert figures["audit"][name]["verified"]
        models = (out / "bundle" / str(number) / "sealed" / "models.jsonl").read_text("utf-8")
        report = json.loads((out / "students" / name / "report.json").read_text("utf-8"))
        assert report["student"]["hash"] in models
