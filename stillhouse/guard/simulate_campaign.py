"""Who extracts, when, and how much: a campaign's accounts and its requests, as columns.

In: a campaign's settings, the benign accounts, and each day's benign requests. Out: accounts made
after benign ones drawn by their volume, their cover traffic (from the generator that makes benign
traffic), and the campaign's own requests, whose times, sizes, models, parameters and addresses come
from benign requests, so that one request without its text tells nothing. Texts are made elsewhere.
"""

from __future__ import annotations

import numpy as np

from stillhouse.guard.simulate_accounts import (
    KINDS,
    NEVER,
    Accounts,
    Column,
    day_of_release,
    expected_events,
    place,
    unsigned,
)
from stillhouse.guard.simulate_rates import Rates
from stillhouse.guard.simulate_settings import CampaignSettings, SimulateSettings
from stillhouse.guard.simulate_traffic import DAY, Events, Traffic

__all__ = ["SHARERS", "SMALLEST_BYTES", "Campaign"]

SMALLEST_BYTES = 200
"""The least room that a wrapper and its prompt take; benign requests that are smaller lend none of
their sizes."""
SHARERS = 15
"""Accounts to a card, a device and a network, where infrastructure is shared. Ours."""

_BURST = 20  # accounts made within an hour, where sign-ups come in bursts
_WINDOWS_A_DAY = 3
_PROMPTS_A_WINDOW = 10_000_000  # a campaign goes on in its list, far behind what it asked before
_OWN_KINDS = {0, 1, 2}  # light user, API customer, agent client: people one can pass for alone


class Campaign:
    """One campaign, day by day, in order from day 0."""

    def __init__(
        self, spec: SimulateSettings, index: int, benign: Accounts, rates: Rates, first_number: int
    ) -> None:
        """Draw its accounts.

        Args:
            spec: of the whole range.
            index: of the campaign in it.
            benign: the benign accounts.
            rates: source of client rates.
            first_number: the first free account number.
        """
        self.spec, self.index = spec, index
        self.settings: CampaignSettings = spec.campaigns[index]
        # its name and not its place seeds it: campaigns stay the same when others are added
        self._seed = [spec.seed, 2, *self.settings.name.encode()]
        rng = np.random.default_rng(self._seed)
        self.seed = int(unsigned(rng, 1)[0])
        """Of its wrappers and prompts."""
        own, cover = volumes(self.settings)
        self.accounts, self._origin, weight = self._recruit(benign, rng, first_number)
        self._own = own * weight
        """Mean own exchanges of each account a day."""
        self.accounts = self.accounts.set(volume=cover * weight)
        self._cover = Traffic(self.accounts, rates, spec)
        self._benign_a_day = expected_events(benign, spec.days).sum() / spec.days
        self._asked = 0

    def day(self, day: int, benign: Accounts, events: Events) -> tuple[Events, Events]:
        """Cover traffic and own exchanges of a day; `row` counts in `accounts`.

        Args:
            day: counted from 0.
            benign: the benign accounts.
            events: the benign events of that day.
        """
        rng = np.random.default_rng([*self._seed, 1 + day, *self.spec.traffic_seed])
        cover = self._cover.day(day, day_of_release(self.spec), rng)
        accounts, settings = self.accounts, self.settings
        last = settings.start_day + (settings.days or self.spec.days)
        if not settings.start_day <= day < last or len(events) == 0:
            return cover, cover.take(np.empty(0, np.int64))
        alive = np.clip(
            np.minimum(accounts.last_day, day + 1) - np.maximum(accounts.first_day, day), 0, 1
        )
        rate = self._own * alive
        if settings.shaping == "benign":  # days of the week as benign ones
            rate = rate * np.clip(len(events) / self._benign_a_day, 0.5, 1.5)
        counts = np.floor(rate + rng.random(len(rate))).astype(np.int64)
        if settings.volume_spread > 0:
            counts = rng.poisson(rate)
        rows = np.repeat(np.arange(len(accounts)), counts)
        model = _lend(benign, events, self._origin[rows], accounts.region[rows], rng)
        time = self._times(day, rows, events.time[model], rng)
        own = Events(
            row=rows, time=time, session=unsigned(rng, len(rows)),
            turn=np.zeros(len(rows), np.int16), prompt_bytes=events.prompt_bytes[model],
            turn_bytes=events.prompt_bytes[model], output_tokens=events.output_tokens[model],
            model=self._models(rows, time, rng), away=rng.random(len(rows)) < 0.2,
            item=np.zeros(len(rows), np.int64), seed=unsigned(rng, len(rows)),
        ).take(np.argsort(time, kind="stable"))  # fmt: skip
        return cover, own.set(item=self._items(len(own), rng))

    def _times(self, day: int, rows: Column, lent: Column, rng: np.random.Generator) -> Column:
        settings, accounts = self.settings, self.accounts
        time = day * DAY + DAY * rng.random(len(rows)) if settings.shaping == "flat" else lent
        if settings.synchrony > 0 and len(rows):
            together = rng.random(len(rows)) < settings.synchrony
            windows = lent[rng.integers(0, len(lent), _WINDOWS_A_DAY)]
            time = np.where(together, windows[rng.integers(0, _WINDOWS_A_DAY, len(rows))], time)
        time = time + rng.normal(0, 60 * settings.jitter_minutes, len(rows))
        low = np.maximum(accounts.first_day[rows], day) * DAY
        high = np.minimum(accounts.last_day[rows], day + 1) * DAY
        # what jitter pushed out of the account's day is put somewhere in it
        inside = low + (high - low) * rng.random(len(rows)) * 0.999
        return np.where((time >= low) & (time < high), time, inside)

    def _models(self, rows: Column, time: Column, rng: np.random.Generator) -> Column:
        moved = time / DAY >= self.accounts.switch_day[rows]
        late = time / DAY >= day_of_release(self.spec) + 1
        soon = (time / DAY >= day_of_release(self.spec)) & (rng.random(len(rows)) < 0.5)
        pivots = (late | soon) & (rng.random(len(rows)) < self.settings.pivot_share)
        return np.where(moved | pivots, 4, self.accounts.model[rows]).astype(np.int8)

    def _items(self, count: int, rng: np.random.Generator) -> Column:
        """Numbers of its prompts: each new, or now and then an earlier one again."""
        again = rng.random(count) < self.settings.repeat_share
        again &= np.arange(count) + self._asked > 0
        fresh = self._asked + np.cumsum(~again) - 1
        self._asked += int((~again).sum())
        earlier = (rng.random(count) * np.maximum(fresh + 1, 1)).astype(np.int64)
        return np.where(again, earlier, fresh) + _PROMPTS_A_WINDOW * self.spec.week

    def _recruit(
        self, benign: Accounts, rng: np.random.Generator, first_number: int
    ) -> tuple[Accounts, Column, Column]:
        """Its accounts, the kind of the benign account each was made after, and relative volumes.

        Benign accounts are drawn by the events to expect of them, so that an event of the campaign
        is as likely to have an account's model, parameters or client as a benign event is.
        """
        slots, first, last = self._lives(rng)
        count = len(slots)
        weight = expected_events(benign, self.spec.days)
        edges = np.cumsum(weight) / weight.sum()
        donors = np.searchsorted(edges, rng.random(count), side="right").clip(0, len(edges) - 1)
        made = benign.take(donors)
        firms = np.array([kind.firm for kind in KINDS])[made.kind]
        alone = np.isin(made.kind, list(_OWN_KINDS))
        kind = np.where(alone, made.kind, np.where(firms, 1, 0))
        seed = unsigned(rng, count).astype(np.int64)
        product = kind == 2
        address, second = place(made.region, made.server, rng)
        accounts = made.set(
            number=first_number + np.arange(count), kind=kind, seed=seed,
            group=np.where(product, made.group, -1), member=np.zeros(count, np.int64),
            group_seed=np.where(product, made.group_seed, seed),
            organisation=_own(made.organisation, rng), address=address, second=second,
            payment=_own(made.payment, rng), device=_own(made.device, rng),
            first_day=first, last_day=last, signup=self._signups(made, first, rng),
        )  # fmt: skip
        spread = self.settings.volume_spread
        slot_weight = np.exp(spread * rng.standard_normal(self.settings.accounts))
        slot_weight = slot_weight / slot_weight.mean()
        return self._shared(accounts, rng), made.kind, slot_weight[slots]

    def _lives(self, rng: np.random.Generator) -> tuple[Column, Column, Column]:
        """Slot, first and last day of each account; a slot's accounts follow one another."""
        settings, days = self.settings, self.spec.days
        end = min(days, settings.start_day + (settings.days or days))
        slots, first, last = [], [], []
        for slot in range(settings.accounts):
            begin = float(settings.start_day)
            while begin < end:
                lives = settings.lifetime_days
                close = begin + max(rng.exponential(lives), 0.25) if lives else NEVER
                slots.append(slot)
                first.append(begin)
                last.append(min(close, end))
                begin = close + rng.exponential(0.1)
        return np.array(slots), np.array(first), np.array(last)

    def _signups(self, made: Accounts, first: Column, rng: np.random.Generator) -> Column:
        begin = np.datetime64(self.spec.begins, "s").astype(np.int64)
        used = begin + first * DAY
        if self.settings.signup == "burst":
            groups = np.arange(len(first)) // _BURST
            ahead = (1 + 2 * rng.random(groups.max(initial=0) + 1))[groups]
            return (used - ahead * DAY + rng.random(len(first)) * 3600).astype(np.int64)
        bought = used - (0.5 + rng.exponential(200, len(first))) * DAY
        # stock is older than the account it was made after, so two never have one moment in common
        aged = made.signup - rng.exponential(20, len(first)) * DAY
        return np.where(made.signup < used, aged, bought).astype(np.int64)

    def _shared(self, accounts: Accounts, rng: np.random.Generator) -> Accounts:
        count, share = len(accounts), self.settings.shared_infrastructure
        if share == 0:
            return accounts
        shares = rng.random(count) < share
        group = rng.permutation(count) // SHARERS
        groups = count // SHARERS + 1
        lead = np.full(groups, -1)
        lead[group[::-1]] = np.arange(count)[::-1]
        hosts = (accounts.address[lead[group]] & ~np.int64(0xFF)) + 10 + rng.integers(0, 4, count)
        cards, devices = (unsigned(rng, groups)[group] for _ in range(2))
        return accounts.set(
            address=np.where(shares, hosts, accounts.address),
            second=np.where(shares, hosts, accounts.second), six=accounts.six & ~shares,
            payment=np.where(shares, cards, accounts.payment),
            device=np.where(shares, devices, accounts.device),
        )  # fmt: skip


def _own(lent: Column, rng: np.random.Generator) -> Column:
    """A number of its own wherever the benign account has one."""
    return np.where(lent > 0, unsigned(rng, len(lent)), np.uint64(0))


def volumes(settings: CampaignSettings) -> tuple[float, float]:
    """Own and cover exchanges of an account a day."""
    if settings.exchanges_are == "campaign":
        own = settings.exchanges_per_day
        return own, own * settings.cover / (1 - settings.cover)
    own = settings.exchanges_per_day * (1 - settings.cover)
    return own, settings.exchanges_per_day * settings.cover


def _lend(
    benign: Accounts, events: Events, kind: Column, region: Column, rng: np.random.Generator
) -> Column:
    """For each exchange a benign event of the day, of an account of the same kind and region where
    there is one, else of the same kind, else any; none too small to hold a wrapper.
    """
    roomy = np.flatnonzero(events.prompt_bytes >= SMALLEST_BYTES)
    roomy = roomy if len(roomy) else np.arange(len(events))
    who = events.row[roomy]
    found = roomy[rng.integers(0, len(roomy), len(kind))]
    # a later, finer match replaces a coarser one
    for have, want in (
        (benign.kind[who], kind),
        (benign.kind[who] * 64 + benign.region[who], kind * 64 + region),
    ):
        order = np.argsort(have, kind="stable")
        low = np.searchsorted(have[order], want, side="left")
        high = np.searchsorted(have[order], want, side="right")
        pick = low + (rng.random(len(want)) * (high - low)).astype(np.int64)
        some = high > low
        found[some] = roomy[order[pick[some]]]
    return found
