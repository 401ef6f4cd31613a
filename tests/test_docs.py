"""The documentation is tested: generated pages are fresh, links lead somewhere, README blocks run.

`python -m tests.test_docs` rewrites the generated pages (`make docs`).
"""

import os
import re
import subprocess
import sys
import typing
from pathlib import Path

import docstring_parser
import pytest

from stillhouse.audit.settings import IdentitySettings, TwinSettings, WatermarkSettings
from stillhouse.cli.main import VERBS
from stillhouse.config import Recipe
from stillhouse.guard.settings import SCORING, GuardSettings
from stillhouse.guard.simulate_settings import CampaignSettings, SimulateSettings
from stillhouse.settings import Settings
from tests.exchange_page import PAGE, fresh_page

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def type_words(hint: object) -> str:
    """A setting's type in words a recipe's author knows."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is typing.Annotated:
        return type_words(arguments[0])
    if origin is dict:
        return f"map of {type_words(arguments[0])} to {type_words(arguments[1])}"
    if origin is tuple:
        return f"list of {type_words(arguments[0])}"
    if arguments:
        return " or ".join(type_words(a) for a in arguments if a is not type(None))
    return {
        "str": "text",
        "Path": "path",
        "int": "whole number",
        "float": "number",
        "bool": "yes or no",
    }.get(getattr(hint, "__name__", ""), getattr(hint, "__name__", str(hint)))


def explanations(kind: type[Settings]) -> dict[str, str]:
    """The docstring under each field, on one line: what `--help` shows too."""
    found = docstring_parser.parse_from_object(kind).params
    return {p.arg_name: " ".join((p.description or "").split()) for p in found}


def recipe_page() -> str:
    """`docs/recipe.md`, made from the settings classes."""
    return settings_page(
        [
            "# Settings of a recipe", "",
            "Made from `stillhouse/config.py` by `make docs`. Keys can be set on the command line "
            "too:", "`stillhouse distill RECIPE.yaml train.epochs=3`. Unknown keys are refused.",
        ],
        {"The recipe": Recipe},
    )  # fmt: skip


def audit_page() -> str:
    """`docs/audit-settings.md`, made from the settings classes."""
    return settings_page(
        [
            "# Settings of audits", "",
            "Made from `stillhouse/audit/` by `make docs`. Each is an option of its command:",
            "`stillhouse audit twin --prefix-tokens 8`. What they mean: [audit.md](audit.md).",
        ],
        AUDITS,
    )  # fmt: skip


def settings_page(head: list[str], kinds: dict[str, type[Settings]]) -> str:
    """A page of tables, one for each settings class and those inside it."""
    lines = [*head, ""]

    def section(kind: type[Settings], title: str, prefix: str) -> None:
        lines.extend(
            [f"## {title}", "", "| key | type | default | what it does |", "|---|---|---|---|"]
        )
        inner, words = [], explanations(kind)
        for name, field in kind.model_fields.items():
            annotation = field.annotation
            if isinstance(annotation, type) and issubclass(annotation, Settings):
                inner.append((annotation, name))
                continue
            if name == "recorded":
                continue
            default = "required" if field.is_required() else f"`{field.default}`"
            hints = typing.get_type_hints(kind, include_extras=True)
            row = (f"`{prefix}{name}`", type_words(hints[name]), default, words[name])
            lines.append(f"| {' | '.join(row)} |")
        lines.append("")
        for annotation, name in inner:
            section(annotation, f"`{prefix}{name}`", f"{prefix}{name}.")

    for title, kind in kinds.items():
        section(kind, title, "")
    return "\n".join(lines)


AUDITS = {
    "`stillhouse audit twin`": TwinSettings,
    "`stillhouse audit watermark`": WatermarkSettings,
    "`stillhouse audit identity`": IdentitySettings,
}
RANGE = {"A range": SimulateSettings, "Each of its `campaigns`": CampaignSettings}


def range_page() -> str:
    """`docs/guard-simulate-settings.md`, made from the settings classes."""
    return settings_page(
        [
            "# Settings of a simulated range", "",
            "Made from `stillhouse/guard/simulate_settings.py` by `make docs`. Keys of a spec for",
            "`stillhouse guard simulate SPEC.yaml --out DIR`; unknown ones are refused. What they",
            "mean: [guard-simulate.md](guard-simulate.md).",
        ],
        RANGE,
    )  # fmt: skip


GUARD = {"`stillhouse guard scan` and `calibrate`": GuardSettings}


def guard_page() -> str:
    """`docs/guard-settings.md`, made from the settings class."""
    return settings_page(
        [
            "# Settings of guard", "",
            "Made from `stillhouse/guard/settings.py` by `make docs`. Each is an option:",
            "`stillhouse guard scan LOG... --out DIR --account-level 0.0001`. A scan with a",
            f"calibration has to have the calibration's values of {', '.join(SCORING)}.",
            "`calibrate` takes these, `false_discovery_rate`, `days`, `stratum_accounts` and",
            "`seed`. Where each comes from: [guard-detector.md](guard-detector.md).",
        ],
        GUARD,
    )  # fmt: skip


GENERATED = {
    ROOT / "docs" / "recipe.md": recipe_page,
    ROOT / "docs" / "audit-settings.md": audit_page,
    ROOT / "docs" / "guard-settings.md": guard_page,
    ROOT / "docs" / "guard-simulate-settings.md": range_page,
    PAGE: fresh_page,
}


@pytest.mark.parametrize("path", GENERATED, ids=lambda p: p.name)
def test_generated_pages_are_fresh(path: Path) -> None:
    assert path.read_text() == GENERATED[path](), "run `make docs`"


def test_every_setting_is_explained() -> None:
    def check(kind: type[Settings]) -> None:
        for name, field in kind.model_fields.items():
            annotation = field.annotation
            if isinstance(annotation, type) and issubclass(annotation, Settings):
                check(annotation)
            else:
                assert explanations(kind).get(name), f"{kind.__name__}.{name} has no docstring"

    for kind in (Recipe, *AUDITS.values(), *GUARD.values(), *RANGE.values()):
        check(kind)


def test_readme_keeps_its_length() -> None:
    assert len(README.read_text().splitlines()) <= 200


def test_every_command_stands_in_the_readme_or_the_docs() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    for verb, *_ in VERBS:
        assert f"stillhouse {verb}" in text, verb


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_dependency_has_its_reason_in_the_readme() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["train"] + extras["guard"]
    text = README.read_text()
    for requirement in wanted:
        name = re.split(r"[<>=!~\[ ;]", requirement)[0]
        assert f"`{name}`" in text, f"{name} has no reason in the README"


def readme_blocks() -> list[tuple[str, str]]:
    """(language, text) of the README's code blocks, those marked long left out."""
    text = README.read_text()
    blocks = re.findall(r"(<!-- long[^>]*-->\n)?```(\w+)\n(.*?)```", text, flags=re.DOTALL)
    return [(language, body) for long, language, body in blocks if not long and language != "text"]


@pytest.mark.parametrize(("language", "body"), readme_blocks(), ids=lambda v: v.split("\n")[0][:40])
def test_readme_blocks_run(language: str, body: str, tmp_path: Path) -> None:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    command = {
        "sh": ["bash", "-euo", "pipefail", "-c", body],
        "python": [sys.executable, "-c", body],
    }
    done = subprocess.run(
        command[language],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr


if __name__ == "__main__":
    for path, make in GENERATED.items():
        path.write_text(make())
