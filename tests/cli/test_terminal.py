import io
import json
import sys

import pytest

from stillhouse.cli import terminal
from stillhouse.cli.terminal import duration, emit, make_progress, table


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (725, "12 min 05 s"), (4320, "1 h 12 min")],
)
def test_durations_are_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_tables_align() -> None:
    assert table([["a", "bb"], ["ccc", "d"]]) == ["a    bb", "ccc  d"]


def test_results_go_to_stdout_as_asked(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"a": 1}, ["a is 1"], as_json=True)
    assert json.loads(capsys.readouterr().out) == {"a": 1}
    emit({"a": 1}, ["a is 1"], as_json=False)
    assert capsys.readouterr().out == "a is 1\n"


def test_lines_say_how_long_it_still_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    progress = make_progress(quiet=False)
    progress.start("collecting", 100, "answers")
    progress.advance(20)  # a resumed stage: twenty were there before
    now[0] = 20.0
    progress.advance(40, "105 tokens/s")
    progress.finish("100 answers")
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == "  collecting (100 answers) ..."
    # 20 answers in 20 s, 60 still to come
    assert shown[1] == "  collecting:  40%, 40 of 100 answers, about 1 min 00 s left, 105 tokens/s"
    assert shown[2].startswith("  collecting: done in 20 s; 100 answers")


def test_quiet_progress_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = make_progress(quiet=True)
    progress.start("x", 1, "y")
    progress.advance(1)
    progress.finish()
    progress.say("z")
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_and_text_stays_text(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    progress = make_progress(quiet=False)
    progress.start("training", 10, "steps")
    progress.advance(5, "loss 1.2")
    progress.finish("done [/not markup]")
    progress.say("[1/4] training")
    assert "training" in screen.getvalue()
    assert "[/not markup]" in screen.getvalue()
    assert "[1/4] training" in screen.getvalue()
