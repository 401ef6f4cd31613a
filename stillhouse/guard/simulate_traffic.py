"""When they ask, and how much: one day's benign requests, as columns.

In: accounts, a source of rates, a day and its random generator. Out: `Events`, unsorted. Sessions
that run past midnight belong to the next day; `Traffic` keeps them for it. The same code makes a
campaign's cover traffic. No text is made here; sizes are decided, and text follows them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import Any

import numpy as np

from stillhouse.guard.simulate_accounts import KINDS, TURNS, Accounts, Column, unsigned
from stillhouse.guard.simulate_rates import WINDOWS, Rates
from stillhouse.guard.simulate_settings import SimulateSettings

__all__ = ["DAY", "LARGEST_BYTES", "TOOLS_BYTES", "Events", "Traffic", "sized"]

DAY = 86_400.0
LARGEST_BYTES = 2400
"""No prompt is longer, so that logs stay small; production's are (docs/guard-simulate.md)."""
TOOLS_BYTES = 700
"""What an agent program's tool definitions count for."""
HISTORY_TURNS, ANSWER_BYTES = 2, 150
"""Earlier turns a request still carries, and the bytes of an answer among them."""

# People's hours (local) and days of the week: ours, after the usual shape of web traffic.
_PEOPLE = np.array(
    [2, 1, 1, 1, 1, 2, 4, 6, 9, 11, 12, 11, 10, 11, 12, 12, 11, 10, 10, 11, 12, 11, 8, 5], float
)
_DESK = np.array(
    [0, 0, 0, 0, 0, 0, 0, 1, 5, 10, 11, 10, 6, 9, 11, 10, 8, 4, 1, 0, 0, 0, 0, 0], float
)
_WEEK_PEOPLE = (1.05, 1.08, 1.08, 1.05, 1.0, 0.86, 0.88)
_WEEK_DESK = (1.3, 1.35, 1.35, 1.3, 1.2, 0.25, 0.25)


@dataclass(frozen=True, slots=True)
class Events:
    """One entry of each column for each request."""

    row: Column
    """Of the account, in the table the events were made from."""
    time: Column
    """Seconds since the window's beginning."""
    session: Column
    turn: Column
    """Turns of the session before this one."""
    prompt_bytes: Column
    """Everything sent: system prompt, tools, earlier turns, newest turn."""
    turn_bytes: Column
    """The newest turn."""
    output_tokens: Column
    model: Column
    away: Column
    """Whether it came from the second address."""
    item: Column
    """Number of the assignment, benchmark item, document or campaign prompt; -1: none."""
    seed: Column
    """Of its text."""

    def __len__(self) -> int:
        """How many events."""
        return len(self.row)

    def take(self, rows: Column) -> Events:
        """Those at `rows`."""
        return Events(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def set(self, **columns: Column) -> Events:
        """The same with some columns replaced."""
        return replace(self, **columns)

    @staticmethod
    def joined(parts: list[Events]) -> Events:
        """All events of all parts."""
        return Events(
            **{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Events)}
        )


class Traffic:
    """The requests of some accounts, day by day, in order from day 0."""

    def __init__(self, accounts: Accounts, rates: Rates, spec: SimulateSettings) -> None:
        """Nothing is drawn yet."""
        self.accounts, self.rates, self.start, self.days = accounts, rates, spec.begins, spec.days
        self._before = spec.days * spec.week
        """Days of earlier windows: tasks, documents and talk of the day are new each day."""
        behaviour = np.array([kind.behaviour for kind in KINDS])[accounts.kind]
        self._rows = {name: np.flatnonzero(behaviour == name) for name in set(behaviour)}
        self._late: Events | None = None

    def day(self, day: int, release: float, rng: np.random.Generator) -> Events:
        """Every request of a day.

        Args:
            day: counted from 0.
            release: day, with its fraction, on which the new model appears.
            rng: of the day.
        """
        parts: list[dict[str, Column]] = []
        for name, make in (
            ("sessions", self._sessions), ("rush", self._rush), ("meeting", self._meetings),
            ("renewal", self._renewal), ("batch", self._batches), ("run", self._runs),
        ):  # fmt: skip
            rows = self._rows.get(name)
            if rows is not None and len(rows):
                parts.append(make(rows, day, release, rng))
        columns = (
            {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            if parts
            else _none()
        )
        accounts, row = self.accounts, columns["row"]
        moment = columns["time"] / DAY
        fit = (moment >= accounts.first_day[row]) & (moment < accounts.last_day[row])
        events = sized(accounts, {name: values[fit] for name, values in columns.items()}, rng)
        if self._late is not None:
            events = Events.joined([self._late, events])
        late = events.time >= (day + 1) * DAY
        self._late = events.take(np.flatnonzero(late))
        return events.take(np.flatnonzero(~late & (events.time >= day * DAY)))

    # ---- behaviours: columns row, time, session, turn, item ----

    def _sessions(
        self, rows: Column, day: int, release: float, rng: np.random.Generator
    ) -> dict[str, Column]:
        accounts, weekday = self.accounts, (self.start + timedelta(day)).weekday()
        desk = np.array([kind.name == "office" for kind in KINDS])[accounts.kind[rows]]
        factor = np.where(desk, _WEEK_DESK[weekday], _WEEK_PEOPLE[weekday])
        turns = TURNS[accounts.kind[rows]]
        number = rng.poisson(accounts.volume[rows] * factor / turns)
        # who never asks is no account of this window: each person asks on one day of it at least
        number = np.maximum(number, accounts.seed[rows].astype(np.int64) % self.days == day)
        who = np.repeat(np.arange(len(rows)), number)
        people = _hours(rng, _PEOPLE, len(who))
        hour = np.where(desk[who], _hours(rng, _DESK, len(who)), people)
        start = ((hour - accounts.zone[rows[who]]) % 24) * 3600 + day * DAY
        length = rng.geometric(1 / turns[who])
        return _turns(rows[who], start, length, 75.0, rng)

    def _rush(
        self, rows: Column, day: int, release: float, rng: np.random.Generator
    ) -> dict[str, Column]:
        gone = day - int(release)
        factor = 0.05 if gone < 0 else 0.4**gone  # interest in what is new falls by 60 % a day
        number = rng.poisson(self.accounts.volume[rows] * factor / 2.5)
        who = np.repeat(np.arange(len(rows)), number)
        hour = (_hours(rng, _PEOPLE, len(who)) - self.accounts.zone[rows[who]]) % 24
        soon = (release % 1) * 24 + rng.exponential(2.0, len(who))
        start = np.where(gone == 0, soon, hour) * 3600 + day * DAY
        events = _turns(rows[who], start, rng.geometric(1 / 2.5, len(who)), 75.0, rng)
        # half of them begin with one of some twenty questions that went round that day
        popular = (rng.random(len(events["row"])) < 0.5) & (events["turn"] == 0)
        events["item"] = np.where(
            popular, 20 * self._before + rng.geometric(0.15, len(popular)) % 20, -1
        )
        return events

    def _meetings(
        self, rows: Column, day: int, release: float, rng: np.random.Generator
    ) -> dict[str, Column]:
        accounts, weekday = self.accounts, (self.start + timedelta(day)).weekday()
        plan = accounts.group_seed[rows].astype(np.int64)
        meets = ((plan % 5) == weekday) | (((plan % 5) + 2) % 5 == weekday)
        rows, plan = rows[meets], plan[meets]
        start = (9 + plan // 5 % 8 - accounts.zone[rows]) % 24 * 3600 + day * DAY
        start = np.maximum(start + rng.normal(0, 480, len(rows)), day * DAY)
        length = np.maximum(rng.poisson(accounts.volume[rows]), 1)
        events = _turns(rows, start, length, 200.0, rng)
        events["item"] = events["turn"] % 12 + 100 * (self._before + day)
        return events

    def _runs(
        self, rows: Column, day: int, release: float, rng: np.random.Generator
    ) -> dict[str, Column]:
        plan = self.accounts.group_seed[rows].astype(np.int64)
        now = rows[plan % self.days == day]
        plan = plan[plan % self.days == day]
        length = np.maximum(rng.poisson(self.accounts.volume[now]), 1)
        start = (plan // 7 % 20) * 3600 + day * DAY + rng.exponential(60, len(now))
        events = _turns(now, start, length, 3.0 + plan % 8, rng)
        members = np.bincount(plan % 997)[plan % 997]  # keys that share the items among them
        share = np.repeat(members, length)
        events["item"] = events["turn"] * share + self.accounts.member[events["row"]]
        return _separate(events, rng)

    def _batches(
        self, rows: Column, day: int, release: float, rng: np.random.Generator
    ) -> dict[str, Column]:
        accounts = self.accounts
        plan = accounts.group_seed[rows].astype(np.int64)
        nightly = np.array([kind.name == "nightly_batch" for kind in KINDS])[accounts.kind[rows]]
        hour = np.where(nightly, plan % 5, 8 + plan % 9)
        length = rng.poisson(accounts.volume[rows])
        start = (hour - accounts.zone[rows]) % 24 * 3600 + day * DAY
        start = start + rng.exponential(30, len(rows))
        events = _turns(rows, start, length, np.where(nightly, 6.0, 20.0), rng)
        # a document is translated by each key of the firm; records are split between them
        events["item"] = np.where(
            np.repeat(nightly, length), -1, events["turn"] + 10_000 * np.int64(self._before + day)
        )
        return _separate(events, rng)

    def _renewal(
        self, rows: Column, day: int, release: float, rng: np.random.Generator
    ) -> dict[str, Column]:
        accounts = self.accounts
        rate, cv = self.rates.day(
            accounts.client[rows], accounts.zone[rows], self._before + day, rng
        )
        mean = accounts.volume[rows][:, None] * rate / WINDOWS
        who, window = np.nonzero(mean > 1e-9)
        mean, cv = mean[who, window], np.maximum(cv[who, window], 1.001)
        # counts of a renewal process whose gaps have this cv vary by cv^2 times their mean
        counts = rng.negative_binomial(mean / (cv**2 - 1), 1 / cv**2)
        some = counts > 0
        who, window, counts, cv = who[some], window[some], counts[some], cv[some]
        gaps = rng.standard_gamma(np.repeat(1 / cv**2, counts + 1)) + 1e-12
        ends = np.cumsum(counts + 1)
        total = np.add.reduceat(gaps, ends - counts - 1) if len(ends) else gaps
        run = np.cumsum(gaps)
        before = np.repeat(run[ends - 1] - total, counts + 1)
        spot = (run - before) / np.repeat(total, counts + 1)
        inside = np.ones(len(gaps), bool)
        inside[ends - 1] = False  # the last gap of a window leads out of it
        who, window = np.repeat(who, counts), np.repeat(window, counts)
        time = day * DAY + (window + spot[inside] * 0.999) * (DAY / WINDOWS)
        empty = np.zeros(len(who), np.int64)
        events = {"row": rows[who], "time": time, "session": empty, "turn": empty}
        return _separate(events | {"item": empty - 1}, rng)


def sized(accounts: Accounts, columns: dict[str, Column], rng: np.random.Generator) -> Events:
    """Events of columns row, time, session, turn and item, with what was left to decide."""
    row, turn = columns["row"], columns["turn"]
    count = len(row)
    median = accounts.turn_bytes[row]
    size = np.clip(median * np.exp(0.6 * rng.standard_normal(count)), 24, 1500)
    history = np.minimum(turn, HISTORY_TURNS) * history_bytes(median)
    tools = np.where(accounts.kind[row] == _AGENT, TOOLS_BYTES, 0)
    total = np.minimum(accounts.system_bytes[row] + tools + history + size, LARGEST_BYTES)
    output = accounts.output_tokens[row] * np.exp(0.7 * rng.standard_normal(count))
    moved = columns["time"] / DAY >= accounts.switch_day[row]
    return Events(
        row=row, time=columns["time"], session=columns["session"], turn=turn.astype(np.int16),
        prompt_bytes=total.astype(np.int32), turn_bytes=size.astype(np.int32),
        output_tokens=np.clip(output, 1, 4000).astype(np.int32),
        model=np.where(moved, 4, accounts.model[row]).astype(np.int8),
        away=rng.random(count) < 0.2, item=columns["item"].astype(np.int64),
        seed=unsigned(rng, count),
    )  # fmt: skip


def history_bytes(median: Any) -> Any:
    """Bytes of an earlier turn and its answer, of accounts with this median."""
    return np.minimum(median * 0.5, 200).astype(np.int64) + ANSWER_BYTES


_AGENT = next(code for code, kind in enumerate(KINDS) if kind.name == "agent_client")


def _hours(rng: np.random.Generator, weights: Column, count: int) -> Column:
    edges = np.cumsum(weights) / weights.sum()
    hour = np.searchsorted(edges, rng.random(count), side="right")
    return hour + rng.random(count)


def _turns(
    rows: Column, start: Column, length: Column, gap: Any, rng: np.random.Generator
) -> dict[str, Column]:
    """Sessions of `length` turns from `start`, gaps log-normal with a median of `gap` seconds."""
    ends = np.cumsum(length)
    count = int(ends[-1]) if len(ends) else 0
    first = np.repeat(ends - length, length)
    turn = np.arange(count) - first
    wait = np.repeat(np.broadcast_to(gap, len(rows)), length)
    wait = np.where(turn == 0, 0, wait * np.exp(rng.standard_normal(count)))
    run = np.cumsum(wait)
    since = run - run[first] if count else run
    return {
        "row": np.repeat(rows, length), "time": np.repeat(start, length) + since,
        "session": np.repeat(unsigned(rng, len(rows)), length), "turn": turn,
        "item": np.full(count, -1),
    }  # fmt: skip


def _separate(events: dict[str, Column], rng: np.random.Generator) -> dict[str, Column]:
    """The same requests, each a session by itself."""
    count = len(events["row"])
    return events | {"session": unsigned(rng, count), "turn": np.zeros(count, np.int64)}


def _none() -> dict[str, Column]:
    names = ("row", "time", "session", "turn", "item")
    return {name: np.empty(0, np.float64 if name == "time" else np.int64) for name in names}
