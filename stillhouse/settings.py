"""What all settings are: frozen models, each default written once, unknown keys refused with the
nearest known one.

In: YAML files, plain values. Out: checked, frozen settings, or an error in the four parts of ours.
Paths are not opened.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic.functional_validators import AfterValidator

from stillhouse.errors import ConfigError, nearest

__all__ = [
    "Count", "InputPath", "Settings", "Share", "expected_by", "make", "parsed_yaml", "read_yaml",
]  # fmt: skip

S = TypeVar("S", bound="Settings")


class Settings(BaseModel):
    """Base of all settings: frozen, no unknown keys, field docstrings are the help texts."""

    # A validator is built when first needed: `--help` needs none.
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, defer_build=True)

    @classmethod
    def defaults(cls) -> Self:
        """What nobody changed. Building a validator to make it would take a tenth of `--help`."""
        return cls.model_construct()


def _from_base(path: Path, info: ValidationInfo) -> Path:
    """A relative path, joined to the folder of the recipe it stands in (the current one for
    overrides).
    """
    base = (info.context or {}).get("base")
    return path if base is None else Path(os.path.normpath(Path(base) / path))


InputPath = Annotated[Path, AfterValidator(_from_base)]
"""A path relative to the recipe it is written in."""
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


def make(kind: type[S], data: Mapping[str, Any], *, where: str, base: Path | None = None) -> S:
    """Checked settings from plain values.

    Raises:
        ConfigError: an unknown key (the nearest known one is named) or a value that does not fit.
    """
    try:
        return kind.model_validate(dict(data), context={"base": base})
    except ValidationError as problem:
        raise _config_error(kind, problem, where) from None


def _config_error(kind: type[Settings], problem: ValidationError, where: str) -> ConfigError:
    """The first complaint of pydantic in the four parts of our errors."""
    first = problem.errors()[0]
    ours = first.get("ctx", {}).get("error")
    if isinstance(ours, ConfigError):  # of a check across several keys
        return ours
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        known = _known_keys(kind, path[:-1])
        return ConfigError(
            f"{where}, key '{key}'", "no such setting", f"one of: {', '.join(known)}",
            nearest(path[-1], known),
        )  # fmt: skip
    if first["type"] == "missing":
        return ConfigError(where, f"no '{key}'", f"the setting '{key}'", f"Add '{key}: ...'")
    return ConfigError(
        f"{where}, key '{key}'", repr(first["input"]), expected_by(first["msg"]),
        f"Correct the value of '{key}'",
    )  # fmt: skip


def expected_by(message: str) -> str:
    """What a complaint of pydantic asks for, in the words of our errors."""
    message = message.removeprefix("Value error, ").removeprefix("Input should be ")
    message = message.partition(", unable")[0].partition(", got")[0]
    message = message.replace("a valid integer", "a whole number")
    message = message.replace("a valid boolean", "true or false").replace("a valid ", "a ")
    return message[0].lower() + message[1:]


def _known_keys(kind: type[Settings], path: list[str]) -> list[str]:
    """The setting names at a place inside nested settings."""
    for part in path:
        if part.isdecimal():  # a place in a list: its entries' keys are known already
            continue
        inner = kind.model_fields[part].annotation if part in kind.model_fields else None
        if get_origin(inner) is tuple:
            inner = get_args(inner)[0]
        if not (isinstance(inner, type) and issubclass(inner, Settings)):
            break
        kind = inner
    return list(kind.model_fields)


def read_yaml(path: Path, what: str, example: str) -> dict[str, Any]:
    """The settings in a YAML file, unchecked; `what` names the file's kind in errors.

    Raises:
        ConfigError: no such file, not readable, not YAML, or no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            str(path), "no such file", f"{what} in YAML",
            f"Check the path; {example} is one to start from",
        ) from None  # fmt: skip
    except (OSError, UnicodeDecodeError) as problem:
        readable = what.replace("a ", "a readable ", 1)
        found = getattr(problem, "strerror", None) or str(problem)
        raise ConfigError(str(path), found, readable, "Check the path") from None
    data = parsed_yaml(text, str(path), f"{what} in YAML", "Correct the line named")
    if not isinstance(data, dict):
        found = f"{data!r:.60}"
        raise ConfigError(str(path), found, "settings as `key: value`", f"Write {what}")
    return data


def parsed_yaml(text: str, where: str, expected: str, todo: str) -> Any:
    """What a YAML text says; an error names the line that is none."""
    import yaml  # `--help` reads none

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        said = getattr(problem, "problem", None) or " ".join(str(problem).split())
        found = f"line {mark.line + 1}, column {mark.column + 1}: {said}" if mark else said
        raise ConfigError(where, found, expected, todo) from None
