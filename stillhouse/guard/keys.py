"""Keys that customers share, by evidence family, with how rare they are.

    events x columns -> KeyTable: (key, customer) pairs, customers of a key, benign customers of it

In: a population, a choice of events, the benign frequencies of a calibration where there is one.
Out: keys of at least a few customers each. A key is a hash of a column's value and the column's
name. What one customer alone has links nobody and is dropped by a linear pass first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import scipy.sparse as sparse

from stillhouse.guard.hashing import Hashes, Ints, distinct_per_group, mixed_with, run_starts
from stillhouse.guard.population import Population
from stillhouse.guard.traffic import BANDS, HOUR

__all__ = [
    "CONTENT",
    "INFRASTRUCTURE",
    "ONBOARDING",
    "STATIC",
    "Frozen",
    "KeyTable",
    "event_keys",
    "shared_keys",
]

CONTENT = ("head", "tail", "skeleton", "system", "tools", *(f"band{i}" for i in range(BANDS)))
"""Kinds of content keys. `whole` is none: the same payload is the opposite of a shared-out list."""
INFRASTRUCTURE = ("payment", "device", "address", "network_hour")
STATIC = ("payment", "device", "address", "network")
"""What is tested: a customer's own, however many hours it is active in."""
ONBOARDING = ("signup",)

_BUCKETS = 1 << 22
_SIGNUP_HOURS = 6  # a burst of sign-ups; scripted ones take minutes to hours


@dataclass(frozen=True)
class Frozen:
    """How many benign customers had each key, in the calibration."""

    keys: Hashes
    """Sorted."""
    counts: Ints
    customers: int

    def of(self, keys: Hashes) -> Ints:
        """Benign customers of each of these keys; 0 where the calibration has fewer than two."""
        if not len(self.keys):
            return np.zeros(len(keys), dtype=np.int64)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, self.counts[at], 0)


@dataclass(frozen=True)
class KeyTable:
    """Keys shared by at least a few customers, and who has them."""

    kinds: tuple[str, ...]
    keys: Hashes
    """(keys,)"""
    kind: npt.NDArray[np.int8]
    """(keys,) index into `kinds`."""
    customers: Ints
    """(keys,) how many."""
    pair_key: npt.NDArray[np.int32]
    """(pairs,) index into `keys`; sorted."""
    pair_customer: npt.NDArray[np.int32]
    pair_events: npt.NDArray[np.int32]
    payloads: Ints
    """(keys,) distinct payloads."""
    owned: Ints
    """(keys,) distinct (payload, customer) pairs; equal to `payloads` where nobody shares one."""

    def chosen(self, keep: npt.NDArray[np.bool_]) -> KeyTable:
        """The table of some of the keys."""
        new = np.cumsum(keep) - 1
        pairs = keep[self.pair_key]
        return KeyTable(
            kinds=self.kinds, keys=self.keys[keep], kind=self.kind[keep],
            customers=self.customers[keep], pair_key=new[self.pair_key[pairs]].astype(np.int32),
            pair_customer=self.pair_customer[pairs], pair_events=self.pair_events[pairs],
            payloads=self.payloads[keep], owned=self.owned[keep],
        )  # fmt: skip

    @classmethod
    def together(cls, tables: Sequence[KeyTable]) -> KeyTable:
        """Tables of the same kinds and of different keys as one."""
        shift = np.cumsum([0, *(len(t.keys) for t in tables)])[:-1]
        pairs = [t.pair_key + at for t, at in zip(tables, shift, strict=True)]
        return cls(
            kinds=tables[0].kinds,
            keys=np.concatenate([t.keys for t in tables]),
            kind=np.concatenate([t.kind for t in tables]),
            customers=np.concatenate([t.customers for t in tables]),
            pair_key=np.concatenate(pairs).astype(np.int32),
            pair_customer=np.concatenate([t.pair_customer for t in tables]),
            pair_events=np.concatenate([t.pair_events for t in tables]),
            payloads=np.concatenate([t.payloads for t in tables]),
            owned=np.concatenate([t.owned for t in tables]),
        )

    @cached_property
    def disjoint(self) -> npt.NDArray[np.float64]:
        """(keys,) share of payloads that only one customer sent; 0 where no payload is known."""
        # p distinct payloads among o (payload, customer) pairs: all sent by one only gives p == o
        return np.where(self.owned > 0, self.payloads / np.maximum(self.owned, 1), 0.0)

    def incidence(self, customers: int) -> sparse.csr_matrix:
        """(customers, keys) who has what: the bipartite graph with star edges."""
        ones = np.ones(len(self.pair_key), dtype=np.float32)
        shape = (customers, len(self.keys))
        return sparse.csr_matrix((ones, (self.pair_customer, self.pair_key)), shape=shape)


def event_keys(
    population: Population, kind: str, chosen: npt.NDArray[np.bool_] | Ints | None
) -> Hashes:
    """(events,) the key of one kind that each event has, or each of those chosen; 0 for none."""
    columns = population.traffic.columns
    pick = slice(None) if chosen is None else chosen
    if kind.startswith("band"):
        return mixed_with(columns["bands"][:, int(kind[4:])][pick], _tag(kind))
    if kind == "network_hour":
        hour = population.traffic.time[pick] // HOUR
        return mixed_with(mixed_with(columns["network"][pick], hour), _tag(kind))
    if kind == "signup":
        signup = columns["signup"][pick]
        slot = mixed_with((signup // (_SIGNUP_HOURS * HOUR)).astype(np.uint64), _tag(kind))
        keys = mixed_with(slot, columns["channel"][pick])
        return np.where(signup == np.iinfo(np.int64).min, np.uint64(0), keys)
    return mixed_with(columns[kind][pick], _tag(kind))


def _tag(kind: str) -> int:
    return int.from_bytes(kind.encode()[:7].ljust(7), "big")


def shared_keys(
    population: Population,
    kinds: tuple[str, ...],
    chosen: npt.NDArray[np.bool_] | None,
    *,
    fewest: int,
    payloads: bool = False,
) -> KeyTable:
    """Keys that at least `fewest` customers have.

    Args:
        population: the customers.
        kinds: which columns.
        chosen: (events,) which events count; all where None.
        fewest: customers of a key.
        payloads: count payloads of each key, too.
    """
    everyone = population.customer if chosen is None else population.customer[chosen]
    whole = population.traffic.columns["whole"]
    whole = whole if chosen is None else whole[chosen]
    tables = [
        _one_kind(event_keys(population, kind, chosen), everyone, whole, fewest, payloads)
        for kind in kinds
    ]
    sizes = [len(t[0]) for t in tables]
    shift = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    joined = [np.concatenate(columns) for columns in zip(*tables, strict=True)]
    offset = np.repeat(shift, [len(t[2]) for t in tables])
    return KeyTable(
        kinds=kinds, keys=joined[0], kind=np.repeat(np.arange(len(kinds)), sizes).astype(np.int8),
        customers=joined[1], pair_key=(joined[2] + offset).astype(np.int32),
        pair_customer=joined[3].astype(np.int32), pair_events=joined[4].astype(np.int32),
        payloads=joined[5], owned=joined[6],
    )  # fmt: skip


def _one_kind(
    keys: Hashes,
    customer: npt.NDArray[np.int32],
    whole: Hashes,
    fewest: int,
    payloads: bool,
) -> tuple[npt.NDArray[np.generic], ...]:
    """keys, customers, pair key, pair customer, pair events, payloads, owned."""
    bucket = (keys & np.uint64(_BUCKETS - 1)).astype(np.int32)
    often = np.bincount(bucket, minlength=_BUCKETS) >= fewest
    at = np.flatnonzero(often[bucket] & (keys != 0))
    order = at[np.argsort(keys[at], kind="stable")]
    starts = run_starts(keys[order])
    number = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(order))))
    packed = (number.astype(np.uint64) << np.uint64(32)) | customer[order].astype(np.uint64)
    packed.sort()
    first = run_starts(packed)
    events = np.diff(np.append(first, len(packed)))
    pairs = packed[first]
    pair_key = (pairs >> np.uint64(32)).astype(np.int64)
    customers = np.bincount(pair_key, minlength=len(starts))
    keep = customers >= fewest
    new = np.cumsum(keep) - 1
    kept_pairs = keep[pair_key]
    sent = owned = np.zeros(int(keep.sum()), dtype=np.int64)
    if payloads and keep.any():
        rows = order[keep[number]]
        group = new[number[keep[number]]]
        known = whole[rows] != 0
        rows, group = rows[known], group[known]
        sent = distinct_per_group(group, whole[rows], len(sent))
        owned = distinct_per_group(group, mixed_with(whole[rows], customer[rows]), len(sent))
    return (
        keys[order][starts][keep], customers[keep], new[pair_key[kept_pairs]],
        (pairs[kept_pairs] & np.uint64(0xFFFFFFFF)).astype(np.int64), events[kept_pairs],
        sent, owned,
    )  # fmt: skip
