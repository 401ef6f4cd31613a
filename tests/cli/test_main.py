import importlib
import inspect
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
    ("arguments", "where", "says"),
    [
        (["distil"], "stillhouse", 'Did you mean "distill"?'),
        (["distill"], "stillhouse distill", "no RECIPE"),
        (["chat", "x", "--runs"], "stillhouse chat", "no --runs"),
        (["distill", "r", "--agian"], "stillhouse distill", "Did you mean --again?"),
        (["guard", "scan", "--bin-hours", "x", "--out", "o"], "stillhouse guard scan, --bin-hours",
         "'x'. Expected a number"),
        (["audit", "twin", "--pairs", "5000"], "stillhouse audit twin, --pairs",
         "'5000'. Expected less than or equal to 2000. See stillhouse audit twin --help"),
        (["collect", "r.yaml", "--runs", "x"], "stillhouse collect",
         "options beside the recipe r.yaml"),
        (["collect", "r.yaml", "--exchanges", "5"], "stillhouse collect",
         "options beside the recipe r.yaml"),
        (["audit", "twin", "--samples", "5"], "stillhouse audit twin",
         "no option --samples. Expected what `stillhouse audit twin --help` shows. "
         "Did you mean --samples-per-prompt?"),
        (["audit", "twin", "--colour", "red"], "stillhouse audit twin", "Known: --access, "),
        (["chat", "x", "--temperature", "hot"], "stillhouse chat, --temperature",
         "'hot'. Expected a number. See"),
        (["chat", "x", "--temperature", "-1"], "stillhouse chat, --temperature",
         "'-1'. Expected greater than or equal to 0. See"),
        (["models", "pull", "x", "--source", "web"], "stillhouse models pull, --source",
         "'web'. Expected 'index' or 'hub'. See"),
        (["audit", "verify", "a", "b", "c"], "stillhouse audit verify",
         "'b c' beside its arguments"),
        (["guard", "scan", "l", "--out", "o", "--max-rejected", "2"],
         "stillhouse guard scan, --max-rejected", "'2'. Expected less than or equal to 1. See"),
        (["collect", "--json=3"], "stillhouse collect, --json", "Expected no value, or true"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("as_json", [False, True])
def test_wrong_usage_is_one_line_or_object_and_exits_with_2(
    arguments: list[str], where: str, says: str, as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments + ["--json"] * as_json) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    if as_json:
        found = json.loads(streams.err)["error"]
        assert (found["where"], found["kind"]) == (where, "ConfigError")
    else:
        assert streams.err.startswith(f"error: {where}: ")
        assert says in streams.err
        assert streams.err.count("\n") == 1


@pytest.mark.parametrize("verb", [verb for verb, *_ in entry.VERBS])
def test_every_command_shows_an_example_of_itself(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*verb.split(), "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Example: stillhouse {verb}" in shown
    assert "--empty-" not in shown
    assert "--no-" not in shown


@pytest.mark.parametrize(("verb", "target", "line", "_example"), entry.VERBS)
def test_help_says_what_the_function_says(verb: str, target: str, line: str, _example: str) -> None:
    module, _, name = target.partition(":")
    said = getattr(importlib.import_module(f"stillhouse.cli.{module}"), name).__doc__
    assert inspect.cleandoc(said).partition("Parameters\n")[0].split() == line.split(), verb


@pytest.mark.parametrize("verb", ["collect", "guard scan", "chat"])
def test_quick_help_is_the_same_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*verb.split(), "--help"]) == 0
    quick = capsys.readouterr().out
    entry.app([*verb.split(), "--help"], result_action="return_value")
    assert capsys.readouterr().out == quick


def test_help_flows_whatever_the_source_is_indented_by(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "watermark", "--help"]) == 0
    options = capsys.readouterr().out.partition("Parameters")[2].splitlines()
    rest = [line[1:] for line in options if line.startswith("│") and "--" not in line]
    assert len(rest) > 10
    assert len({len(line) - len(line.lstrip()) for line in rest}) == 1


def test_a_file_in_the_place_of_a_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STILLHOUSE_TRACEBACK", "")
    taken = tmp_path / "taken"
    taken.write_text("{}")
    logs = [str(Path(__file__).parent), "--out", str(taken)]
    assert main(["guard", "scan", *logs, "--quiet"]) == 3
    said = capsys.readouterr().err
    assert said.startswith(f"error: {taken}: File exists. Expected a path that fits its option")
    with pytest.raises(FileExistsError):
        main(["guard", "scan", *logs, "--quiet", "--traceback"])


def test_an_error_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "no-such-recipe.yaml"]) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith("error: no-such-recipe.yaml: no such file.")
    assert streams.err.count("\n") == 1


def test_what_a_terminal_would_obey_is_shown_in_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("who,\x1b[2J\x1b]0;owned\x07,\x9b31m\u202e\nk,1,2\n")
    (tmp_path / "m.yaml").write_text("format: csv\ncolumns: {account: who, time: at}\n")
    arguments = ["guard", "scan", str(tmp_path / "a.csv"), "--mapping", str(tmp_path / "m.yaml")]
    assert main([*arguments, "--out", str(tmp_path / "scan")]) == 3
    said = capsys.readouterr().err
    assert "who, \u241b[2J\u241b]0;owned\u2407, <009B>31m<202E>" in said
    assert not set(said) & set("\x1b\x07\x9b\u202e")


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
    assert "run the same command again" in capsys.readouterr().err


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
