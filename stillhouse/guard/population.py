"""Who is unrelated to whom, and what is known of everybody before any key is looked at.

    Traffic -> Population: customers, the two halves of the days, kinds, daily phases

A *customer* is a declared organisation, else the accounts that pay with one instrument (up to a
small firm's number), else one account. Links and tests count customers: accounts whose relation is
declared say nothing by agreeing. The days are dealt out in turn to a half that clusters are found
on and a half that they are tested on. Nothing here judges.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from stillhouse.errors import EvidenceError
from stillhouse.guard.hashing import Hashes, Ints, run_starts
from stillhouse.guard.settings import GuardSettings
from stillhouse.guard.traffic import HOUR, Traffic

__all__ = ["KINDS", "Population", "home_network", "populate"]

KINDS = ("no text", "single turns", "conversations", "tools")
"""What most of a customer's events are."""

_BLOCKS_HOURS = (24, 6, 1)
_FEWEST_BLOCKS = 4
_MOST_BINS = 96
_FLAT = 0.3  # resultant length below which a day has no peak; office hours give 0.6 and more


@dataclass(frozen=True)
class Population:
    """The customers of a scan, numbered by their first account's fingerprint."""

    traffic: Traffic
    customer_of: npt.NDArray[np.int32]
    """(accounts,) index of the customer."""
    customers: int
    customer: npt.NDArray[np.int32]
    """(events,) index of the customer."""
    testing: npt.NDArray[np.bool_]
    """(events,) whether the event lies in the half of the days that clusters are tested on."""
    bin: npt.NDArray[np.int16]
    """(events,) bin of activity within the testing half; -1 in the finding half."""
    bins: int
    block_hours: float
    begins: int
    """Microseconds; blocks and bins are counted from here."""

    @cached_property
    def volume(self) -> Ints:
        """(customers,) events."""
        return np.bincount(self.customer, minlength=self.customers)

    @cached_property
    def linkable(self) -> npt.NDArray[np.bool_]:
        """(accounts,) whose log tells anything that could link them to others: text, or a payment,
        a device or a network. Of the others nothing was looked at.
        """
        columns = self.traffic.columns
        some = columns["whole"] != 0
        for name in ("payment", "device", "network"):
            some |= columns[name] != 0
        return np.bincount(self.traffic.account[some], minlength=len(self.traffic.names)) > 0

    @cached_property
    def founding(self) -> Ints:
        """(customers,) events in the finding half."""
        return np.bincount(self.customer[~self.testing], minlength=self.customers)

    @cached_property
    def kind(self) -> npt.NDArray[np.int8]:
        """(customers,) index into KINDS."""
        columns = self.traffic.columns
        of = np.where(columns["turns"] > 0, 2, 1)
        of = np.where(columns["tools"] != 0, 3, of)
        of = np.where((columns["whole"] == 0) & (columns["head"] == 0), 0, of)
        table = np.bincount(self.customer * 4 + of, minlength=4 * self.customers)
        return table.reshape(-1, 4).argmax(axis=1).astype(np.int8)

    @cached_property
    def phase(self) -> npt.NDArray[np.int8]:
        """(customers,) 0: no daily peak in the finding half; else 1 to 4, which quarter of the day
        it lies in. Time zones make people look synchronised; strata of phase take that out.
        """
        found = ~self.testing
        turn = self.traffic.time[found] % (24 * HOUR) * (2 * np.pi / (24 * HOUR))
        who = self.customer[found]
        x = np.bincount(who, np.cos(turn), self.customers)
        y = np.bincount(who, np.sin(turn), self.customers)
        n = np.maximum(np.bincount(who, minlength=self.customers), 1)
        quarter = 1 + np.floor((np.arctan2(y, x) % (2 * np.pi)) / (np.pi / 2)).astype(np.int8) % 4
        return np.where(np.hypot(x, y) / n < _FLAT, 0, quarter).astype(np.int8)

    @cached_property
    def home(self) -> Ints:
        """(customers,) number of the network that most of a customer's events come from; -1 where
        none has more than half of them.
        """
        return home_network(self.traffic.columns["network"], self.customer, self.customers)

    @cached_property
    def size_class(self) -> npt.NDArray[np.int8]:
        """(customers,) volume in powers of two."""
        return np.floor(np.log2(np.maximum(self.volume, 1))).astype(np.int8)

    @cached_property
    def lives(self) -> tuple[Ints, Ints]:
        """(customers,) times of the first and of the last event."""
        low = np.full(self.customers, np.iinfo(np.int64).max)
        high = np.full(self.customers, np.iinfo(np.int64).min)
        np.minimum.at(low, self.customer, self.traffic.time)
        np.maximum.at(high, self.customer, self.traffic.time)
        return low, high


def home_network(network: Hashes, customer: npt.NDArray[np.integer], customers: int) -> Ints:
    """(customers,) number of the network of more than half of a customer's events; -1 for none.

    Args:
        network: (events,) keyed hashes; 0 is unknown.
        customer: (events,) whose they are, below `customers`.
        customers: how many.
    """
    names, at = np.unique(network, return_inverse=True)
    packed = np.sort(customer.astype(np.int64) * len(names) + at)
    starts = run_starts(packed)
    count = np.diff(np.append(starts, len(packed)))
    who, where = packed[starts] // len(names), packed[starts] % len(names)
    most = (2 * count > np.bincount(customer, minlength=customers)[who]) & (names[where] != 0)
    home = np.full(customers, -1, dtype=np.int64)
    home[who[most]] = where[most]
    return home


def populate(traffic: Traffic, settings: GuardSettings) -> Population:
    """Customers and halves of a scan.

    Raises:
        EvidenceError: the window is too short to be halved.
    """
    customer_of = _customers(traffic, settings)
    first, last = traffic.span
    hours = next((h for h in _BLOCKS_HOURS if (last - first) / HOUR >= (_FEWEST_BLOCKS - 1) * h), 0)
    if not hours:
        raise EvidenceError(
            "guard, window of the logs", f"{(last - first) / HOUR:.2g} hours",
            f"at least {(_FEWEST_BLOCKS - 1) * _BLOCKS_HOURS[-1]} hours: clusters are found on one "
            "half and tested on the other", "Scan more days at once",
        )  # fmt: skip
    begins = first - first % (hours * HOUR)
    block = (traffic.time - begins) // (hours * HOUR)
    testing = block % 2 == 1
    width = max(settings.bin_hours, hours * int(block.max() + 1) / 2 / _MOST_BINS)
    width = min(width, hours)
    slot = ((traffic.time - begins) // int(width * HOUR)).astype(np.int64)
    used, compact = np.unique(slot[testing], return_inverse=True)
    bins = np.full(len(traffic), -1, dtype=np.int16)
    bins[testing] = compact
    return Population(
        traffic=traffic, customer_of=customer_of, customers=int(customer_of.max()) + 1,
        customer=customer_of[traffic.account], testing=testing, bin=bins, bins=len(used),
        block_hours=float(hours), begins=begins,
    )  # fmt: skip


def _customers(traffic: Traffic, settings: GuardSettings) -> npt.NDArray[np.int32]:
    """(accounts,) the customer each account belongs to."""
    accounts = len(traffic.names)
    own = np.arange(accounts, dtype=np.uint64) + np.uint64(1)
    keys = own.copy()
    marks = np.zeros(accounts, dtype=np.uint8)
    payment = traffic.first_known("payment")
    if settings.one_customer_accounts:
        paying = np.flatnonzero(payment)
        order = paying[np.argsort(payment[paying], kind="stable")]
        starts = run_starts(payment[order])
        sizes = np.diff(np.append(starts, len(order)))
        joined = order[np.repeat(sizes <= settings.one_customer_accounts, sizes)]
        keys[joined], marks[joined] = payment[joined], 1
    organisation = traffic.first_known("organisation")
    declared = organisation != 0
    keys[declared], marks[declared] = organisation[declared], 2
    pairs: npt.NDArray[Any] = np.lexsort((keys, marks))  # stable: first accounts first
    heads = np.concatenate([[True], (np.diff(keys[pairs]) != 0) | (np.diff(marks[pairs]) != 0)])
    leader = pairs[np.flatnonzero(heads)][np.cumsum(heads) - 1]
    first_account = np.empty(accounts, dtype=np.int64)
    first_account[pairs] = leader
    _, number = np.unique(first_account, return_inverse=True)
    return number.astype(np.int32)
