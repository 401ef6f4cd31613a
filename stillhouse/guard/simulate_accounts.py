"""Who asks: simulated accounts of every kind, as columns.

In: the benign settings and a source of client rates. Out: `Accounts`, a table of plain columns:
kind and group, region, language, volume, and the metadata that an account's requests carry (model,
parameters, client, addresses, card, device, organisation, sign-up). Text and times are made
elsewhere. Addresses lie in 240.0.0.0/4 and 2001:db8::/32, which nobody has.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np

from stillhouse.guard.simulate_rates import Rates
from stillhouse.guard.simulate_settings import BenignSettings, SimulateSettings

__all__ = [
    "CAMPAIGN", "KINDS", "LANGUAGES", "NEVER", "TURNS", "Accounts", "Kind", "benign_accounts",
    "day_of_release", "expected_events", "place", "signup_times", "unsigned",
]  # fmt: skip

Column = np.ndarray[Any, np.dtype[Any]]

LANGUAGES = ("en", "zh", "ru", "es", "fr", "de", "pt", "ja", "ar")
NEVER = 1e9
"""A day that does not come."""


class Kind(NamedTuple):
    """What tells one kind of account from another. All figures are assumptions of ours."""

    name: str
    behaviour: str
    """sessions, renewal, batch, meeting, run or rush: how its times come about."""
    sizes: tuple[int, int]
    """Least and most accounts of a group; (1, 1): each for itself."""
    volume: float
    """Mean exchanges of an account a day (of a meeting, a run, the day of release)."""
    spread: float
    """Deviation of the log of volumes (nats)."""
    firm: bool
    """Whether its accounts are keys of one declared organisation with one card, on servers."""
    turn_bytes: float
    """Median bytes of the newest turn."""
    system_bytes: tuple[int, int]
    """Least and most bytes of the system prompt; (0, 0): none."""
    output_tokens: float
    """Median answer tokens."""
    models: tuple[float, float, float, float]
    """Weights of the large, mid, small and reasoning model."""


KINDS = (
    Kind("light_user", "sessions", (1, 1), 0, 1.2, False, 150, (0, 400), 260, (5, 3, 1, 1)),
    Kind("api_customer", "renewal", (1, 1), 0, 0, False, 290, (120, 600), 180, (3, 4, 3, 1)),
    Kind("agent_client", "sessions", (5, 3000), 8, 1.0, False, 150, (450, 750), 150, (6, 2, 0, 1)),
    Kind("saas_template", "renewal", (1, 6), 60, 0.8, True, 360, (120, 450), 220, (2, 5, 3, 0)),
    Kind("reseller", "renewal", (1, 4), 120, 0.6, True, 180, (0, 300), 250, (4, 4, 1, 1)),
    Kind("class_hackathon", "meeting", (20, 60), 8, 0.5, False, 180, (0, 300), 260, (2, 4, 3, 0)),
    Kind("benchmark", "run", (1, 3), 400, 0.6, True, 260, (0, 200), 220, (5, 3, 2, 3)),
    Kind("synthetic_data", "renewal", (2, 12), 80, 0.4, True, 280, (0, 300), 320, (4, 3, 0, 3)),
    Kind("judge_pipeline", "renewal", (1, 5), 80, 0.7, True, 420, (0, 400), 60, (3, 4, 2, 0)),
    Kind("nightly_batch", "batch", (1, 8), 80, 0.5, True, 300, (100, 400), 90, (0, 4, 6, 0)),
    Kind("office", "sessions", (10, 50), 2, 1.0, False, 190, (0, 400), 240, (5, 3, 1, 1)),
    Kind("release_rush", "rush", (1, 10**6), 6, 0.8, False, 150, (0, 300), 280, (5, 3, 1, 1)),
    Kind("localisation", "batch", (2, 10), 50, 0.4, True, 330, (100, 400), 260, (2, 5, 3, 0)),
)  # fmt: skip
"""Benign kinds, in the order of their codes."""

TURNS = np.array([6.0 if kind.name == "agent_client" else 2.5 for kind in KINDS])
"""Mean turns of a session, by kind. Ours."""

CAMPAIGN = len(KINDS)
"""The code after the last benign kind."""


@dataclass(frozen=True, slots=True)
class Accounts:
    """One entry of each column for each account."""

    number: Column
    """Unique over the range; the account's name follows from it."""
    kind: Column
    """Whose generator makes its (cover) traffic: index into KINDS."""
    group: Column
    """Number of its firm, class, office or product; -1: none."""
    member: Column
    """Its place in the group."""
    seed: Column
    """Of its own text."""
    group_seed: Column
    """Of what its group has in common; its own seed where it has no group."""
    region: Column
    zone: Column
    """Hours ahead of UTC."""
    language: Column
    """Index into LANGUAGES."""
    volume: Column
    """Mean exchanges a day, or a meeting, or a run."""
    client: Column
    """Of the source of rates."""
    model: Column
    """Index into the models."""
    parameters: Column
    """Index into the common settings of parameters."""
    agent: Column
    """Index into the user agents of its sort (servers, or people's clients)."""
    server: Column
    """Whether it runs on servers."""
    channel: Column
    """How it came: index into the channels."""
    payment: Column
    """Card; 0: none recorded."""
    device: Column
    """Device; 0: none recorded."""
    organisation: Column
    """Declared organisation; 0: none."""
    signup: Column
    """Seconds since 1970."""
    address: Column
    """Home address; `second` is the one sometimes used instead."""
    second: Column
    six: Column
    """Whether it is on IPv6."""
    system_bytes: Column
    """Length of its system prompt; 0: none."""
    turn_bytes: Column
    """Median bytes of its newest turns."""
    output_tokens: Column
    """Median tokens of its answers."""
    first_day: Column
    """Day, with its fraction, from which it is active."""
    last_day: Column
    """Day up to which it is active."""
    switch_day: Column
    """Day, with its fraction, on which it moves to the new model."""

    def __len__(self) -> int:
        """How many accounts."""
        return len(self.number)

    def take(self, rows: Column) -> Accounts:
        """The accounts at `rows`, in that order, repeated where asked."""
        return Accounts(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def set(self, **columns: Column) -> Accounts:
        """The same with some columns replaced."""
        return replace(self, **columns)

    @staticmethod
    def joined(parts: list[Accounts]) -> Accounts:
        """All accounts of all parts, in order."""
        return Accounts(
            **{
                f.name: np.concatenate([getattr(part, f.name) for part in parts])
                for f in fields(Accounts)
            }
        )


# Regions: hours ahead of UTC, and of each language how likely its writers are there. Ours.
_ZONES = np.array([-5.0, -8.0, 0.0, 1.0, 3.0, 5.5, 8.0, -3.0])
_WHERE = np.array([
    [4, 3, 3, 2, 1, 3, 1, 0], [0, 0.3, 0, 0.2, 0, 0, 9, 0], [0, 0, 0, 1, 9, 0, 0, 0],
    [1, 1, 0, 4, 0, 0, 0, 4], [0.5, 0, 0, 9, 1, 0, 0, 0], [0, 0, 0, 9, 0, 0, 0, 0],
    [0, 0, 1, 0, 0, 0, 0, 9], [0, 0, 0, 0, 0, 0, 9, 0], [0, 0, 0, 1, 9, 0, 0, 0],
])  # fmt: skip
_REGIONS = len(_ZONES)
_PARAMETERS = 24  # common settings: `simulate_log.PARAMETERS`
_PEOPLES_AGENTS, _SERVERS_AGENTS = 14, 16
# channels: self serve, sales, education, start-up credits, security research
_CHANNELS = {
    "class_hackathon": 2, "synthetic_data": 1, "saas_template": 1, "reseller": 1,
    "localisation": 1, "nightly_batch": 1, "judge_pipeline": 1,
}  # fmt: skip


def benign_accounts(spec: SimulateSettings, rates: Rates) -> Accounts:
    """Every benign account of a spec, hard negatives first, then API customers and light users."""
    benign, rng = spec.benign, np.random.default_rng([spec.seed, 1])
    kinds, groups, members = _membership(benign, rng)
    count = len(kinds)
    table = _columns(kinds, rng)
    firm, sessions = table["firm"], kinds != 1
    lead = np.arange(count)  # the first account of the group decides what the group shares
    grouped = np.flatnonzero(groups >= 0)
    first = np.full(groups.max(initial=-1) + 1, -1)
    first[groups[grouped][::-1]] = grouped[::-1]
    lead[grouped] = first[groups[grouped]]
    shares_place = firm | _is(kinds, "class_hackathon", "office")
    seed = rng.integers(1, 1 << 62, count)
    weights = [benign.languages.get(code, 0.0) for code in LANGUAGES]  # type: ignore[call-overload]
    language = _pick(rng, weights, count)
    cumulative = np.cumsum(_WHERE / _WHERE.sum(axis=1, keepdims=True), axis=1)
    region = (rng.random(count)[:, None] > cumulative[language]).sum(axis=1).clip(0, _REGIONS - 1)
    language = np.where(shares_place, language[lead], language)
    region = np.where(shares_place, region[lead], region)
    client, relative = rates.clients(count, rng)
    for _ in range(3):  # a product that runs every day has the busiest of four clients' hours
        another, busier = rates.clients(count, rng)
        client = np.where(firm & (busier > relative), another, client)
        relative = np.where(firm, np.maximum(busier, relative), relative)
    server = firm | (kinds == 1)
    address, second = place(region, server, rng)
    address = np.where(_is(kinds, "class_hackathon", "office"), address[lead], address)
    block = (address[lead] & ~np.int64(0xFF)) | (address & 0xFF)
    address = np.where(firm, block, address)
    second = np.where(shares_place, address, second)
    card = unsigned(rng, count) * (server | (rng.random(count) < 0.35) | _is(kinds, "office"))
    card = np.where(firm | _is(kinds, "office"), card[lead], card)
    card = card * ~_is(kinds, "class_hackathon")
    device = unsigned(rng, count) * (~server & (rng.random(count) < 0.8))
    declares = firm | ((kinds == 1) & (rng.random(count) < 0.5))
    organisation = np.where(declares, unsigned(rng, count)[lead], np.uint64(0))
    model, parameters = table["model"], rng.integers(0, _PARAMETERS, count)
    volume = _volumes(benign, kinds, relative, rng)
    signup, first_day = signup_times(spec, kinds, lead, rng)
    release = day_of_release(spec)
    lag = np.exp(rng.normal(1.2, 1.2, count))  # half of those who move have moved after three days
    switch = np.where(rng.random(count) < 0.4, release + lag, NEVER)
    switch = np.where(_is(kinds, "release_rush"), release, switch)
    return Accounts(
        number=np.arange(count), kind=kinds, group=groups, member=members, seed=seed,
        group_seed=seed[lead], region=region, zone=_ZONES[region], language=language,
        volume=volume, client=client, model=np.where(firm, model[lead], model),
        parameters=np.where(firm | _is(kinds, "agent_client"), parameters[lead], parameters),
        agent=table["agent"], server=server, channel=table["channel"], payment=card, device=device,
        organisation=organisation, signup=signup, address=address, second=second,
        six=sessions & ~server & ~shares_place & (rng.random(count) < 0.15),
        system_bytes=np.where(
            firm | _is(kinds, "agent_client"), table["system"][lead], table["system"]
        ),
        turn_bytes=table["turn"], output_tokens=table["output"], first_day=first_day,
        last_day=np.full(count, NEVER), switch_day=switch,
    )  # fmt: skip


def expected_events(accounts: Accounts, days: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Events to expect of each account in a window: what campaigns weigh benign accounts by."""
    behaviour = np.array([kind.behaviour for kind in KINDS])[accounts.kind]
    times = np.full(len(accounts), float(days))
    times[behaviour == "meeting"] = 2 * days / 7
    times[behaviour == "run"] = 1
    times[behaviour == "rush"] = 1.5
    alive = np.clip(np.minimum(accounts.last_day, days) - np.maximum(accounts.first_day, 0), 0, 1e9)
    turns = TURNS[accounts.kind]
    once = turns * np.exp(-accounts.volume / turns) * (behaviour == "sessions")
    return (accounts.volume * times + once) * np.minimum(alive / days, 1)


def day_of_release(spec: SimulateSettings) -> float:
    """When the new model appears: its day, at 17:00 UTC."""
    return spec.release + 17 / 24


def place(
    region: Column, server: Column, rng: np.random.Generator
) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """A home and a second address for each account. Networks are shared by chance as real ones are:
    300 blocks of a region's clouds, 200 of its mobile carriers, and crowded ones among homes.
    """
    count = len(region)
    base = np.int64(0xF0000000) + (region.astype(np.int64) << 25)
    cloud = (1 << 24) + (rng.integers(0, 300, count) << 8)
    home = (65_000 * rng.random(count) ** 2).astype(np.int64) << 8
    mobile = (65_200 + rng.integers(0, 200, count)) << 8
    first = base + np.where(server, cloud, home) + rng.integers(1, 255, count)
    second = base + np.where(server, cloud, mobile) + rng.integers(1, 255, count)
    return first, second


def signup_times(
    spec: SimulateSettings, kinds: Column, lead: Column, rng: np.random.Generator
) -> tuple[Column, Column]:
    """Sign-up times in seconds since 1970, and the day from which each account is active.

    Ages are exponential with a mean of 200 days; a tenth of the people sign up within the window;
    classes do so together some days before, and two of five who rush to a release at that hour.
    """
    count = len(kinds)
    age = -rng.exponential(200, count) - 0.5
    people = np.array([not kind.firm for kind in KINDS])[kinds]
    age = np.where(people & (rng.random(count) < 0.1), rng.random(count) * spec.days, age)
    together = -3 - 4 * rng.random(count)[lead] + 0.02 * rng.standard_normal(count)
    age = np.where(_is(kinds, "class_hackathon"), together, age)
    rushed = _is(kinds, "release_rush") & (rng.random(count) < 0.4)
    age = np.where(rushed, day_of_release(spec) + rng.exponential(0.2, count), age)
    begin = np.datetime64(spec.begins, "s").astype(np.int64)
    return (begin + age * 86_400).astype(np.int64), np.maximum(age, -1.0)


def _membership(benign: BenignSettings, rng: np.random.Generator) -> tuple[Column, Column, Column]:
    """Kind, group and place in the group of each account."""
    kinds, groups, members = [], [], []
    number = 0
    for code, kind in enumerate(KINDS[2:], start=2):
        wanted = round(getattr(benign.hard_negatives, kind.name) * benign.accounts)
        if not getattr(benign.hard_negatives, kind.name):
            continue
        low, high = kind.sizes
        left = max(wanted, low)
        while left > 0:
            # a popular product has many users: sizes are log-uniform
            size = int(np.exp(rng.uniform(np.log(low), np.log(high + 1))))
            size = min(max(size, low), high, left) if kind.name != "release_rush" else left
            kinds += [code] * size
            groups += [number] * size
            members += range(size)
            number, left = number + 1, left - size
    rest = max(benign.accounts - len(kinds), 0)
    customers = round(rest * benign.api_share)
    kinds += [1] * customers + [0] * (rest - customers)
    groups += [-1] * rest
    members += [0] * rest
    return np.array(kinds), np.array(groups, int), np.array(members)


def _columns(kinds: Column, rng: np.random.Generator) -> dict[str, Column]:
    """What follows from the kind, drawn for each account."""
    count = len(kinds)
    firm = np.array([kind.firm for kind in KINDS])[kinds]
    server = firm | (kinds == 1)
    weights = np.array([kind.models for kind in KINDS], float)
    cumulative = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)
    low, high = (np.array([kind.system_bytes[at] for kind in KINDS])[kinds] for at in (0, 1))
    system = low + (high - low) * rng.random(count) ** 1.5
    system = np.where((low == 0) & (rng.random(count) < 0.4), 0, np.maximum(system, 60))
    median = {
        name: np.array([getattr(kind, name) for kind in KINDS])[kinds]
        for name in ("turn_bytes", "output_tokens")
    }
    channel = np.where(rng.random(count) < 0.08, 3, np.where(rng.random(count) < 0.01, 4, 0))
    for name, code in _CHANNELS.items():
        channel = np.where(_is(kinds, name), code, channel)
    zipf = 1 / np.arange(1, _SERVERS_AGENTS + 1)
    agents = np.where(server, _pick(rng, zipf, count), _pick(rng, zipf[:_PEOPLES_AGENTS], count))
    return {
        "firm": firm, "channel": channel, "agent": agents,
        "model": (rng.random(count)[:, None] > cumulative[kinds]).sum(axis=1).clip(0, 3),
        "system": np.where(high == 0, 0, system).astype(np.int64),
        "turn": median["turn_bytes"] * np.exp(0.35 * rng.standard_normal(count)),
        "output": median["output_tokens"] * np.exp(0.4 * rng.standard_normal(count)),
    }  # fmt: skip


def _volumes(
    benign: BenignSettings, kinds: Column, relative: Column, rng: np.random.Generator
) -> Column:
    mean = np.array([kind.volume for kind in KINDS], float)[kinds]
    spread = np.array([kind.spread for kind in KINDS])[kinds]
    mean[kinds == 0] = benign.light_per_day
    customers = kinds == 1
    if customers.any():
        mean[customers] = benign.api_per_day * relative[customers] / relative[customers].mean()
    factor = np.exp(spread * rng.standard_normal(len(kinds)) - spread**2 / 2)
    return benign.intensity * mean * factor


def _is(kinds: Column, *names: str) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.isin(kinds, [code for code, kind in enumerate(KINDS) if kind.name in names])


def _pick(rng: np.random.Generator, weights: Column | list[float], count: int) -> Column:
    edges = np.cumsum(weights) / np.sum(weights)
    return np.searchsorted(edges, rng.random(count), side="right").clip(0, len(edges) - 1)


def unsigned(rng: np.random.Generator, count: int) -> Column:
    """Random non-zero 64-bit numbers."""
    return rng.integers(1, 1 << 63, count).astype(np.uint64)
