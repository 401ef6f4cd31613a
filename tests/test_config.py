from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse.audit.settings import TwinSettings, WatermarkSettings
from stillhouse.cli.run_yaml import changed_keys, write_run
from stillhouse.config import CollectSettings, Recipe, StudentSettings, fingerprint, load_recipe
from stillhouse.errors import ConfigError, nearest
from stillhouse.guard.benchmark_settings import BenchmarkSettings
from stillhouse.guard.settings import GuardSettings
from stillhouse.settings import Settings, make

MINIMAL = "name: tiny\nteacher: scripted:bigram\n"


def recipe_file(folder: Path, text: str = MINIMAL) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_paths_in_a_recipe_are_relative_to_the_recipe(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, MINIMAL + "collect:\n  prompts: [p/a.jsonl]\n")
    assert load_recipe(path).collect.prompts == (tmp_path / "p/a.jsonl",)


def test_paths_in_overrides_are_relative_to_the_current_folder(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, MINIMAL + "collect:\n  prompts: [p/a.jsonl]\n")
    assert load_recipe(path, ["collect.prompts=mine.txt"]).collect.prompts == (Path("mine.txt"),)


def test_overrides_reach_nested_settings_and_keep_the_others(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, MINIMAL + "train:\n  epochs: 3\n")
    recipe = load_recipe(path, ["train.learning_rate=3e-4", "name=other"])
    assert (recipe.train.learning_rate, recipe.train.epochs, recipe.name) == (3e-4, 3, "other")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.learning_rat=3", "Did you mean 'learning_rate'?"),
        ("trian.epochs=2", "Did you mean 'train'?"),
        ("train.epochs=-1", "greater than 0"),
        ("train.epochs=many", "'many'. Expected a number. Correct"),
        ("train.seed=1.5", "1.5. Expected a whole number. Correct"),
        ("train.epochs=[", "line 1, column 2: expected the node content"),
        ("train.epochs", "no 'key=value'"),
        ("name.x=1", "'name' has no settings inside"),
        ("collect.engine=vllm", "'auto', 'llamacpp' or 'local'"),
    ],
)
def test_a_wrong_override_is_refused_in_words(tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe_file(tmp_path), [override])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: x\nteacher: [", "line 2, column 11: "),
        ("just words", "a recipe"),
        ("name: x\n", "no 'teacher'"),
        (MINIMAL + "studnet: {}\n", "Did you mean 'student'?"),
    ],
)
def test_a_wrong_recipe_is_refused_in_words(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe_file(tmp_path, text))
    assert words in str(caught.value)


def test_a_missing_or_unreadable_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="readable recipe"):
        load_recipe(tmp_path)


def test_a_run_can_be_repeated_from_its_run_yaml(tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file(tmp_path), ["train.epochs=5", f"runs={tmp_path}"])
    write_run(tmp_path / "run.yaml", recipe, {"p.jsonl": "sha256:0"})
    again = load_recipe(tmp_path / "run.yaml")
    assert again.model_dump(exclude={"recorded"}) == recipe.model_dump(exclude={"recorded"})
    written = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert written["recorded"]["inputs"] == {"p.jsonl": "sha256:0"}
    assert "python" in written["recorded"]["versions"]


def test_fingerprints_tell_values_apart_and_ignore_key_order() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_changed_keys_names_old_and_new() -> None:
    old, new = (
        {"train": {"epochs": 2, "seed": 7}, "x": 1},
        {"train": {"epochs": 3, "seed": 7}, "x": 1},
    )
    assert changed_keys(old, new) == ["train.epochs: 2 -> 3"]


def test_settings_are_frozen() -> None:
    recipe = make(Recipe, {"name": "a", "teacher": "b"}, where="test")
    with pytest.raises(ValueError, match="frozen"):
        recipe.name = "c"  # type: ignore[misc]


@pytest.mark.parametrize(
    "kind", [CollectSettings, TwinSettings, WatermarkSettings, GuardSettings, BenchmarkSettings]
)
def test_defaults_are_what_a_validator_would_make(kind: type[Settings]) -> None:
    assert kind.defaults() == kind()


def test_nearest_lists_what_is_known_where_nothing_is_near() -> None:
    assert nearest("zzz", ["beta", "alpha"]) == "Known: alpha, beta"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"intermediate_size": 64, "heal": False}, "student.heal"),
        ({"init": "prune", "hidden_size": 64}, "student.hidden_size"),
        ({"init": "checkpoint", "checkpoint": "x", "layers": 3}, "student.layers"),
        ({"init": "scratch", "keep": [0, 1]}, "student.keep"),
    ],
)
def test_settings_of_a_student_that_would_be_ignored_are_refused(
    settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        make(StudentSettings, settings, where="a recipe")
