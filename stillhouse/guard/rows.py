"""Log records to rows of the events table, a batch at a time; the text is forgotten here.

In: what lines of a log say, and where they stand. Out: record batches in the schema `EVENTS`. A
batch holds the capped text of at most a thousand newest turns while its sketches are made.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from stillhouse.guard.events import EVENTS, SKETCH_SLOTS
from stillhouse.guard.key import NOTHING, FieldHash
from stillhouse.guard.mask import capped, mask
from stillhouse.guard.shape import Facts, Shapes, signs_of
from stillhouse.guard.sketch import Sketcher, windows
from stillhouse.guard.turns import UNREADABLE, Turn, canonical, newest_turn, tool_marks
from stillhouse.log_records import BadLine, LogRecord, time_of

__all__ = ["Rows", "network_of"]

_ROWS = 1024
_CHARACTERS = 2**19
_REMEMBERED = 65_536
_NO_TURN = Turn("", 0, "", 0)
_LONGEST_ADDRESS = 64
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_DOTTED = re.compile(rf"({_OCTET}\.{_OCTET}\.{_OCTET})\.{_OCTET}")
_LONGEST_REMEMBERED = 1024
_Sent = tuple[bytes, float | None, float | None, int | None]
_HASHED = (
    "organisation", "address", "network", "user_agent", "payment", "device", "channel", "request",
    "session", "parameters", "tools", "whole", "system",
)  # fmt: skip
_PLAIN = (
    "account", "time", "model", "input_tokens", "output_tokens", "turn_bytes", "turns", "cost_usd",
    "temperature", "top_p", "max_tokens", "signup", "file", "offset",
)  # fmt: skip


def network_of(address: str) -> str | None:
    """The /24 or /48 that an address lies in; None for what is no address."""
    dotted = _DOTTED.fullmatch(address)  # most are, and `ipaddress` takes ten times as long
    if dotted is not None:
        return f"{dotted[1]}.0/24"
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped:
        found = found.ipv4_mapped
    bits = 24 if found.version == 4 else 48
    return str(ipaddress.ip_network(f"{found.compressed}/{bits}", strict=False))


class Rows:
    """Takes records in, gives record batches out. One for each process: it remembers hashes."""

    def __init__(self, key: bytes) -> None:
        """The key is the scan's."""
        self._hash = {name: FieldHash(key, name) for name in _HASHED}
        self._sketcher, self._shapes = Sketcher(key), Shapes()
        self._networks: dict[str, str | None] = {}
        self._systems: dict[bytes, bytes] = {}
        self._origins: dict[tuple[str | None, ...], tuple[bytes, ...]] = {}
        self._parameters: dict[bytes, _Sent] = {}
        self._signups: dict[tuple[str, int], int] = {}
        self.notes: Counter[str] = Counter()
        """What was left out of rows that were kept, by reason."""
        self._begin()

    def _begin(self) -> None:
        self._plain: list[tuple[Any, ...]] = []
        self._hashes: list[tuple[bytes, ...]] = []
        self._texts: list[str] = []
        self._unknown: dict[bytes, str] = {}
        self._marks: list[int] = []
        self._characters = 0

    def __len__(self) -> int:
        """Records taken in and not given out yet."""
        return len(self._texts)

    @property
    def full(self) -> bool:
        """Whether it is time for `batch`."""
        return len(self._texts) >= _ROWS or self._characters >= _CHARACTERS

    def add(self, record: LogRecord, file: int, offset: int) -> None:
        """Take a record in."""
        has_text = record.messages is not None
        turn = newest_turn(record.messages, record.system) if has_text else _NO_TURN
        data = turn.text.encode("utf-8", "surrogatepass")
        parameters, temperature, top_p, limit = self._sent(record.parameters)
        request, session = record.request, record.session
        tools = record.tools
        of = self._hash
        self._hashes.append((
            *self._origin(record),
            _of_text(of["request"], request), _of_text(of["session"], session), parameters,
            of["tools"].of(canonical(tools)) if tools else NOTHING,
            of["whole"].of(data), self._system(turn.system),
        ))  # fmt: skip
        self._plain.append((
            record.account, record.time_us, _printable(record.model), record.input_tokens,
            record.output_tokens, len(data) if has_text else None,
            min(turn.before, 32_767) if has_text else None, record.cost_usd,
            temperature, top_p, limit, self._signup(record), file, offset,
        ))  # fmt: skip
        text = capped(turn.text)
        self._texts.append(text)
        self._marks.append(turn.marks | tool_marks(tools) if tools else turn.marks)
        self._characters += len(text)

    def _origin(self, record: LogRecord) -> tuple[bytes, ...]:
        """The hashes of who asked from where, the first of `_HASHED`: accounts come again."""
        names = (
            record.organisation, record.address, record.user_agent, record.payment,
            record.device, record.channel,
        )  # fmt: skip
        found = self._origins.get(names)
        if found is None:
            of, address = self._hash, record.address
            address = address.split(",", 1)[0].strip() if address else None
            found = (
                of["organisation"].name(record.organisation), of["address"].name(address),
                of["network"].name(self._network(address) if address else None),
                of["user_agent"].name(record.user_agent), of["payment"].name(record.payment),
                of["device"].name(record.device), of["channel"].name(record.channel),
            )  # fmt: skip
            if sum(len(name) for name in names if name) <= _LONGEST_REMEMBERED:
                _remember(self._origins, names, found)
        return found

    def _sent(self, sent: Mapping[str, Any] | None) -> _Sent:
        """Of the parameters: their hash without the seed, temperature, top_p, limit of tokens."""
        if sent is None:
            return NOTHING, None, None, None
        if "seed" in sent:  # it changes where nothing else does
            sent = {name: value for name, value in sent.items() if name != "seed"}
        form = canonical(sent)
        found = self._parameters.get(form)
        if found is None:
            hashed = self._hash["parameters"].of(form)
            found = hashed, _real(sent.get("temperature")), _real(sent.get("top_p")), _limit(sent)
            if len(form) <= _LONGEST_REMEMBERED and form != UNREADABLE:
                _remember(self._parameters, form, found)
        return found

    def _network(self, address: str) -> str | None:
        if len(address) > _LONGEST_ADDRESS:
            return None
        if address not in self._networks:
            _remember(self._networks, address, network_of(address))
        return self._networks[address]

    def _system(self, text: str) -> bytes:
        """The exact text's hash, by which `batch` finds the masked text's."""
        if not text:
            return NOTHING
        exact = self._hash["system"].of(text.encode("utf-8", "surrogatepass"))
        if exact not in self._systems and exact not in self._unknown:
            self._unknown[exact] = capped(text)
            self._characters += len(self._unknown[exact])
        return exact

    def _signup(self, record: LogRecord) -> int | None:
        value, earliest = record.signup, record.signup_from
        if value is None:
            return None
        if isinstance(value, str) and (value, earliest) in self._signups:
            return self._signups[value, earliest]
        try:
            found = time_of(value, earliest=earliest)
        except BadLine:
            self.notes["signup time unreadable"] += 1
            return None
        if isinstance(value, str):
            _remember(self._signups, (value, earliest), found)  # a time that was read is short
        return found

    # ---- out ----

    def batch(self) -> pa.RecordBatch:
        """The rows of all records taken in since the last call."""
        plain = dict(zip(_PLAIN, zip(*self._plain, strict=True), strict=True))
        hashed: dict[str, Any] = dict(zip(_HASHED, zip(*self._hashes, strict=True), strict=True))
        masked = mask(self._texts)
        grams = windows(masked.data)
        hashed["head"], hashed["tail"], hashed["skeleton"] = self._sketcher.hashes(masked)
        hashed["system"] = self._masked_systems(hashed["system"])
        facts = Facts(
            np.array(self._marks, np.int64),
            np.array([0 if size is None else size for size in plain["turn_bytes"]], np.int64),
            np.array([-1 if n is None else n for n in plain["output_tokens"]], np.int64),
        )
        scores = self._shapes.scores(masked, grams, signs_of(self._texts, facts))
        bits, best = self._shapes.decided(scores)
        sketches = self._sketcher.sketches(masked, grams)
        made: dict[str, Any] = {
            name: np.frombuffer(b"".join(column), "<u8") for name, column in hashed.items()
        }
        # Zeros, not null: pyarrow cannot read null lists of fixed size back from Parquet
        # (apache/arrow issue 35692, seen with 25.0). `head` is 0 in the same rows.
        sketches[np.diff(masked.words) == 0] = 0
        made["sketch"] = pa.FixedSizeListArray.from_arrays(
            pa.array(sketches.reshape(-1)), type=pa.list_(pa.uint32(), SKETCH_SLOTS)
        )
        made |= {"shape": bits, "capability": best}
        arrays = [_column(field, made.get(field.name, plain.get(field.name))) for field in EVENTS]
        self._begin()
        return pa.RecordBatch.from_arrays(arrays, schema=EVENTS)

    def _masked_systems(self, exact: Sequence[bytes]) -> list[bytes]:
        """System prompts often hold a date or a path: their masked words are what is hashed."""
        if self._unknown:
            masked = mask(list(self._unknown.values()))
            data, ends = masked.data.tobytes(), masked.texts.tolist()
            if len(self._systems) + len(self._unknown) > _REMEMBERED:
                self._systems = {known: self._systems[known] for known in exact
                                 if known in self._systems}  # fmt: skip
            for known, begin, end in zip(self._unknown, ends[:-1], ends[1:], strict=True):
                self._systems[known] = self._hash["system"].of(data[begin:end])
        return [NOTHING if known == NOTHING else self._systems[known] for known in exact]


def _remember(known: dict[Any, Any], name: Any, value: Any) -> None:
    if len(known) >= _REMEMBERED:
        known.clear()
    known[name] = value


def _of_text(field: FieldHash, text: str | None) -> bytes:
    return field.of(text.encode("utf-8", "surrogatepass")) if text else NOTHING


def _column(field: pa.Field, values: Any) -> pa.Array:
    if pa.types.is_dictionary(field.type):
        return pa.array(values, pa.string()).dictionary_encode().cast(field.type)
    return values if isinstance(values, pa.Array) else pa.array(values, field.type)


def _printable(text: str | None) -> str | None:
    return None if text is None else text.encode("utf-8", "replace").decode()[:256]


def _real(value: Any) -> float | None:
    """A number as a requester sent it; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if math.isfinite(value) and abs(value) < 1e30 else None


def _limit(sent: Any) -> int | None:
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        value = _real(sent.get(name))
        if value is not None and 0 <= value < 2**31:
            return int(value)
    return None
