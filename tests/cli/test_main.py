import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from stillhouse import errors
from stillhouse.cli import main as entry
from stillhouse.cli.main import main
from stillhouse.errors import StillhouseError

KINDS = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]


@pytest.mark.parametrize(
    "arguments", [["distil"], ["distill"], ["chat"], ["distill", "r", "--agian"]]
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    streams = capsys.readouterr()
    assert streams.out + streams.err


def test_a_near_miss_of_a_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    main(["distil"])
    streams = capsys.readouterr()
    assert 'Did you mean "distill"' in streams.out + streams.err


def test_an_error_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "no-such-recipe.yaml"]) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith("error: no-such-recipe.yaml: no such file.")
    assert streams.err.count("\n") == 1


def test_an_error_is_an_object_with_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "no-such-recipe.yaml", "--json"]) == 2
    found = json.loads(capsys.readouterr().err)["error"]
    assert found["kind"] == "ConfigError"
    assert found["where"] == "no-such-recipe.yaml"


def test_traceback_shows_the_error_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_TRACEBACK", "")
    with pytest.raises(errors.ConfigError):
        main(["distill", "no-such-recipe.yaml", "--traceback"])


def test_an_interrupt_exits_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, "app", interrupted)
    assert main(["distill", "x"]) == 130
    assert "run the same command to go on" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_errors_pickle_and_say_four_things(kind: type[StillhouseError]) -> None:
    error = kind("here", "this.", "that", "Do it")
    assert str(pickle.loads(pickle.dumps(error))) == "here: this. Expected that. Do it."
    assert error.exit_code in {1, 2, 3, 4, 5}


def test_collect_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect", "--teacher", "scripted:bigram"]) == 2
    assert "no --prompts, --out" in capsys.readouterr().err


def test_report_names_the_nearest_run(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/quickstart").mkdir(parents=True)
    (tmp_path / "runs/quickstart/run.yaml").write_text("name: quickstart\nteacher: x\n")
    assert main(["report", "quikstart"]) == 3
    assert "Did you mean 'quickstart'?" in capsys.readouterr().err


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['orjson'] = None; from stillhouse.cli.main import main; "
        "sys.exit(main(sys.argv[1:]))"
    )
    given = ["guard", "simulate", "examples/guard/small.yaml", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", program, *given], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.endswith("Install them: pip install 'stillhouse[guard]'.\n")
    assert done.stderr.count("\n") == 1
