"""A mapping that says which columns of somebody's own log mean what.

In: YAML, and rows as JSON, CSV or Parquet give them. Out: log records. A column may be a dotted
path into nested objects, or a list of columns of which the first that is there counts. A column
that no row has is an error of the mapping, not of the log. Nothing here opens log files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from stillhouse.errors import ConfigError, nearest
from stillhouse.log_records import (
    LogRecord,
    account_of,
    cost_of,
    count_of,
    name_of,
    parsed_text,
    time_of,
)
from stillhouse.settings import Settings, make, read_yaml

__all__ = ["FIELDS", "MappingSettings", "load_mapping", "mapped"]

FIELDS = {
    "account": "who asked (must be mapped)",
    "time": "when (must be mapped): a number, see `time_unit`, or ISO 8601; without a zone, UTC",
    "organisation": "the declared organisation or team the account belongs to",
    "model": "the model asked for",
    "request": "the request's id, by which duplicates are known",
    "session": "the conversation or trace",
    "input_tokens": "prompt tokens",
    "output_tokens": "answer tokens",
    "cost_usd": "what it cost",
    "messages": "messages, as a list or as JSON in a text; or the newest turn's text alone",
    "system": "the system prompt, where it stands apart",
    "tools": "tool definitions, as a list or as JSON in a text",
    "parameters": "all sampling parameters, as an object or as JSON in a text",
    "temperature": "one parameter, where they have columns of their own",
    "top_p": "the same",
    "max_tokens": "the same",
    "address": "the requester's IP address",
    "user_agent": "the requester's user agent",
    "payment": "a fingerprint of the means of payment",
    "device": "a fingerprint of the device or of its TLS",
    "channel": "the programme or plan the account came through",
    "signup": "when the account was made, written as `time` is",
    "answer": "the response, for `read_back` only",
}
"""What a mapping can name, and what it means."""

_PARAMETERS = ("temperature", "top_p", "max_tokens")
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


class MappingSettings(Settings):
    """A mapping file."""

    format: Literal["jsonl", "csv", "parquet"] = "jsonl"
    """What the log files are."""
    columns: dict[str, str | tuple[str, ...]]
    """Field -> column, dotted path, or list of them."""
    time_unit: Literal["s", "ms", "us", "ns"] = "s"
    """Of times that are numbers."""
    delimiter: str = ","
    """Of CSV files."""

    @field_validator("columns")
    @classmethod
    def _known(cls, columns: dict[str, Any]) -> dict[str, Any]:
        for name in columns:
            if name not in FIELDS:
                raise ConfigError(
                    f"mapping, key 'columns.{name}'", "no such field",
                    f"one of: {', '.join(FIELDS)}", nearest(name, FIELDS),
                )  # fmt: skip
        for name in ("account", "time"):
            if name not in columns:
                raise ConfigError(
                    "mapping, key 'columns'", f"no column for '{name}'",
                    "account and time at least", f"Add '{name}: COLUMN'",
                )  # fmt: skip
        return columns

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, delimiter: str) -> str:
        if len(delimiter) != 1 or delimiter in '\n\r"':
            raise ConfigError(
                "mapping, key 'delimiter'", repr(delimiter), "one character", "Correct it"
            )
        return delimiter

    @property
    def paths(self) -> dict[str, tuple[tuple[str, ...], ...]]:
        """Field -> paths to try. A name with dots is tried as it stands first."""
        return {
            field: tuple(
                path
                for name in ((names,) if isinstance(names, str) else names)
                for path in dict.fromkeys([(name,), tuple(name.split("."))])
            )
            for field, names in self.columns.items()
        }


def load_mapping(path: Path) -> MappingSettings:
    """The mapping in a YAML file.

    Raises:
        ConfigError: it cannot be read, is no mapping, or names an unknown field.
    """
    data = read_yaml(path, "a mapping", "the one in docs/guard-ingest.md")
    return make(MappingSettings, data, where=str(path))


def _at(row: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = row
    for name in path:
        if not isinstance(value, Mapping):
            value = parsed_text(value)
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return None if value == "" else value


def mapped(
    row: Mapping[str, Any], paths: Mapping[str, tuple[tuple[str, ...], ...]], unit: str
) -> LogRecord:
    """What a row says.

    Args:
        row: column -> value.
        paths: of the mapping.
        unit: of times that are numbers.

    Raises:
        BadLine: account, time or counts are not what they must be.
    """

    def value(field: str) -> Any:
        found = (_at(row, path) for path in paths.get(field, ()))
        return next((v for v in found if v is not None), None)

    sent = parsed_text(value("parameters"))
    sent = dict(sent) if isinstance(sent, Mapping) else {}
    for name in _PARAMETERS:
        if (own := _number(value(name))) is not None:
            sent[name] = own
    recorded = any(name in paths for name in ("parameters", *_PARAMETERS))
    return LogRecord(
        account=account_of(value("account")),
        time_us=time_of(_number(value("time")), _SECONDS[unit]),
        model=name_of(value("model")), organisation=name_of(value("organisation")),
        request=name_of(value("request")), session=name_of(value("session")),
        input_tokens=count_of(_number(value("input_tokens"))),
        output_tokens=count_of(_number(value("output_tokens"))),
        cost_usd=cost_of(_number(value("cost_usd"))), parameters=sent if recorded else None,
        messages=parsed_text(value("messages")), system=value("system"),
        tools=parsed_text(value("tools")), address=name_of(value("address")),
        user_agent=name_of(value("user_agent")), payment=name_of(value("payment")),
        device=name_of(value("device")), channel=name_of(value("channel")),
        signup=_seconds(_number(value("signup")), unit), answer=parsed_text(value("answer")),
    )  # fmt: skip


def _seconds(value: Any, unit: str) -> Any:
    """A number of the unit in seconds; anything else unchanged."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    try:
        return value * _SECONDS[unit]
    except OverflowError:  # a whole number of hundreds of digits, which is no time either way
        return value


def _number(value: Any) -> Any:
    """A number that a text column holds; anything else unchanged."""
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    return value
