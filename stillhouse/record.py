"""What every frozen record shares: one declaration of the fields, strict values, one JSON form.

In: dataclasses whose fields carry a type and a line of documentation, and the values put into
them. Out: values of exactly the declared types, or a DataError that names the field; plain JSON
values; Arrow types. This file does not know what the records are about (`exchange.py`), nor where
they are kept (`store.py`).
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from stillhouse.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "Record",
    "array_fields",
    "arrow_type",
    "canonical_json",
    "declared",
    "fits",
    "plain",
    "schema_fields",
]

_INT64 = range(-(2**63), 2**63)  # what Parquet, Arrow and most other readers hold


def declared(doc: str, **kwargs: Any) -> Any:
    """A dataclass field that carries its line of documentation."""
    return dataclasses.field(metadata={"doc": doc}, **kwargs)


class Record:
    """Base of frozen dataclasses whose fields hold exactly what they declare.

    Text, whole and real numbers, times, labels, arrays, other records, and tuples of these, each
    also `| None`. On construction values are brought to that form (a list becomes a tuple, 1
    becomes 1.0 where a real number is declared, so that equal settings have equal hashes) or
    refused.
    """

    __slots__ = ()

    def __post_init__(self) -> None:
        """Bring every field to its declared form.

        Raises:
            DataError: a value that does not fit, named by its path.
        """
        for name, optional, fit in fits(type(self)):
            value = getattr(self, name)
            if value is None and optional:
                continue
            try:
                fitted = fit(value)
            except DataError as problem:
                raise _moved(problem, f"{_root(type(self))}.{name}{problem.where}") from None
            if fitted is not value:
                object.__setattr__(self, name, fitted)

    @classmethod
    def build(cls, value: Any, where: str) -> typing.Self:
        """The record that a plain mapping stands for; `where` begins the path of an error.

        Raises:
            DataError: a missing, unknown or wrongly typed field.
        """
        try:
            return _fit_record(cls, value)
        except DataError as problem:
            raise _moved(problem, where + problem.where) from None


@cache
def schema_fields(record: type) -> tuple[tuple[str, Any, str], ...]:
    """(name, type, documentation line) of each declared field of a record class, in order."""
    hints = typing.get_type_hints(record)
    return tuple(
        (f.name, hints[f.name], f.metadata.get("doc", "")) for f in dataclasses.fields(record)
    )


def optional_of(kind: Any) -> tuple[Any, bool]:
    """A declared type without its `| None`, and whether it had one."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return typing.get_args(kind)[0], True
    return kind, False


def array_fields(record: type) -> tuple[tuple[str, np.dtype[Any], int], ...]:
    """(name, dtype, number of axes) of each field of a record class that holds an array."""
    kinds = ((name, optional_of(kind)[0]) for name, kind, _ in schema_fields(record))
    return tuple(
        (name, *_array_kind(kind)) for name, kind in kinds if typing.get_origin(kind) is np.ndarray
    )


def _array_kind(kind: Any) -> tuple[np.dtype[Any], int]:
    shape, dtype = typing.get_args(kind)
    return np.dtype(typing.get_args(dtype)[0]), len(typing.get_args(shape))


# ---- values of the declared types ----
# A fit raises DataError whose `where` is the path below the value itself ('' for the value).


@cache
def fits(record: type) -> tuple[tuple[str, bool, Callable[[Any], Any]], ...]:
    """(name, whether None may stand there, what brings a value to its type) of each field."""
    return tuple(
        (name, optional_of(kind)[1], _fit_of(optional_of(kind)[0]))
        for name, kind, _ in schema_fields(record)
    )


@cache
def _names(record: type) -> tuple[frozenset[str], frozenset[str]]:
    """The declared fields, and those without a default."""
    absent, fields = dataclasses.MISSING, dataclasses.fields(record)
    required = (f.name for f in fields if f.default is absent and f.default_factory is absent)
    return frozenset(f.name for f in fields), frozenset(required)


def _fit_of(kind: Any) -> Callable[[Any], Any]:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        item = _fit_of(args[0])
        return lambda value: _fit_tuple(item, value)
    if origin is np.ndarray:
        dtype, axes = _array_kind(kind)
        return lambda value: _fit_array(dtype, axes, value)
    if origin is Mapping:
        return _fit_labels
    scalar = {str: _fit_text, int: _fit_whole, float: _fit_real, datetime: _fit_time}.get(kind)
    return scalar or (lambda value: _fit_record(kind, value))


def _fit_record(kind: type, value: Any) -> Any:
    if type(value) is kind:
        return value
    if not isinstance(value, Mapping):
        raise _misfit(value, "an object")
    known, required = _names(kind)
    if not known >= value.keys():
        raise DataError(
            "", f"unknown field {min(map(str, value.keys() - known))!r} of {kind.__name__}",
            f"one of {', '.join(name for name, *_ in fits(kind))}",
            "Rename the field, or keep it under `labels`",
        )  # fmt: skip
    if not required <= value.keys():
        raise DataError(
            "", f"`{min(required - value.keys())}` is missing",
            f"every required field of {kind.__name__}", "Add the missing field or drop the record",
        )  # fmt: skip
    try:
        return kind(**value)
    except DataError as problem:
        raise _moved(problem, problem.where.removeprefix(_root(kind))) from None


def _fit_tuple(item: Callable[[Any], Any], value: Any) -> tuple[Any, ...]:
    if not isinstance(value, tuple | list):
        raise _misfit(value, "a list")
    fitted = []
    for index, found in enumerate(value):
        try:
            fitted.append(item(found))
        except DataError as problem:
            raise _moved(problem, f"[{index}]{problem.where}") from None
    return tuple(fitted)


def _fit_text(value: Any) -> str:
    if not isinstance(value, str):
        raise _misfit(value, "text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as problem:
            raise DataError(
                "", f"half a character (a lone surrogate) at {problem.start}", "whole characters",
                "Replace it: text.encode('utf-8', 'replace').decode()",
            ) from None  # fmt: skip
    return value if type(value) is str else str.__str__(value)


def _fit_whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise _misfit(value, "a whole number")
    if int(value) not in _INT64:
        raise _misfit(value, "a whole number of at most 64 bits, signed")
    return value if type(value) is int else int(value)


def _fit_real(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise _misfit(value, "a number")
    try:
        real = value if type(value) is float else float(value)
    except OverflowError:
        real = math.inf
    if not math.isfinite(real):
        raise _misfit(value, "a finite number")
    return real


def _fit_time(value: Any) -> datetime:
    try:
        time = datetime.fromisoformat(value) if type(value) is str else value
        if type(time) is not datetime:
            raise _misfit(value, "a time (ISO 8601)")
        if time.tzinfo is UTC:
            return time
        if time.utcoffset() is None:
            raise DataError(
                "", f"no timezone ({time.isoformat()})", "an aware time",
                "Add the offset it was recorded with",
            )  # fmt: skip
        return time.astimezone(UTC)
    except DataError:
        raise
    except (ValueError, OverflowError):  # no ISO 8601; or outside the years 1 to 9999 in UTC
        raise _misfit(value, "a time (ISO 8601)") from None


def _fit_labels(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise _misfit(value, "an object of texts")
    fitted = {}
    for name, text in value.items():
        try:
            fitted[_fit_text(name)] = _fit_text(text)
        except DataError as problem:
            raise _moved(problem, f"[{name!r}]") from None
    return fitted


def _fit_array(dtype: np.dtype[Any], axes: int, value: Any) -> np.ndarray[Any, Any]:
    """`value` as a contiguous array; null stands for -inf among real numbers; nothing wraps."""
    try:
        found = np.asarray(value)
    except ValueError:
        raise _misfit(value, "rows of equal length") from None
    if found.dtype == object and dtype.kind == "f":
        holes = [-math.inf if item is None else item for item in found.flat]
        if all(type(item) in (int, float) for item in holes):
            found = np.array(holes, dtype=np.float64).reshape(found.shape)
    if axes == 2 and len(np.atleast_1d(found)) == 0:  # JSON's [] does not say how wide it is
        found = np.empty((0, 0), dtype)
    if found.ndim != axes:
        raise _misfit(value, f"an array of {axes} axes, not {found.ndim}")
    if found.size and found.dtype.kind not in ("iu" if dtype.kind == "i" else "iuf"):
        raise _misfit(value, "whole numbers" if dtype.kind == "i" else "numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        fitted = np.ascontiguousarray(found, dtype=dtype)
    wraps = fitted != found if dtype.kind == "i" else np.isinf(fitted) != np.isinf(found)
    if fitted.dtype != found.dtype and wraps.any():
        raise _misfit(value, f"numbers that {dtype.name} holds")
    return fitted


def _misfit(value: Any, expected: str) -> DataError:
    return DataError("", f"{value!r:.80}", expected, "Correct the field or drop the record")


def _moved(problem: DataError, where: str) -> DataError:
    return DataError(where, problem.found, problem.expected, problem.todo)


def _root(kind: type) -> str:
    return kind.__name__.lower()


# ---- other forms of the same declaration ----

_PLAIN = frozenset((str, int, float, type(None)))  # the same in JSON


def _numbers(array: np.ndarray[Any, Any]) -> list[Any]:
    """Nested lists; -inf, which JSON does not know, becomes null."""
    if array.dtype.kind == "f" and np.isneginf(array).any():
        array = array.astype(object)
        array[array == -math.inf] = None
    return array.tolist()


def plain(value: Any, array: Callable[[np.ndarray[Any, Any]], Any] = _numbers) -> Any:
    """The value in JSON's types: records to dicts without fields that are not recorded (None).

    Tuples become lists, times ISO 8601 in UTC, arrays whatever `array` makes of them.
    """
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Record):
        items = ((name, getattr(value, name)) for name, _, _ in schema_fields(type(value)))
        return {
            name: item if type(item) in _PLAIN else plain(item, array)
            for name, item in items
            if item is not None
        }
    if isinstance(value, tuple):
        return [plain(item, array) for item in value]
    if isinstance(value, np.ndarray):
        return array(value)
    if isinstance(value, datetime):
        return value.isoformat()
    return dict(value)  # labels


def canonical_json(value: Any) -> str:
    """The one JSON text of a plain value: sorted keys, no spaces, UTF-8 as it is."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def arrow_type(kind: Any) -> pa.DataType:
    """The Arrow type of a declared type."""
    import pyarrow as pa

    kind, _ = optional_of(kind)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return pa.list_(arrow_type(args[0]))
    if origin is np.ndarray:
        dtype, axes = _array_kind(kind)
        found = pa.from_numpy_dtype(dtype)
        for _ in range(axes):
            found = pa.list_(found)
        return found
    if origin is Mapping:
        return pa.map_(pa.string(), pa.string())
    if kind is datetime:
        return pa.timestamp("us", "UTC")
    scalar = {str: pa.string(), int: pa.int64(), float: pa.float64()}.get(kind)
    return scalar or pa.struct([(name, arrow_type(k)) for name, k, _ in schema_fields(kind)])
