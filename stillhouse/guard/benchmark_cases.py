"""The cases of the benchmark: which weeks they need, and what is scanned in them.

In: sizes and seeds. Out: `Unit`s, each of which gives counts as JSON. Every seed has weeks of its
own: a benign one to calibrate on and the next week of the same accounts and products under test, as
a provider's would be; hard negatives and speed are scanned with the calibration of another world.
What units give is put together in `benchmark_tables`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, get_args

from stillhouse.errors import ConfigError, nearest
from stillhouse.guard.benchmark_settings import BenchmarkSettings, Sizes
from stillhouse.guard.benchmark_weeks import WeekPlan
from stillhouse.guard.benchmark_work import (
    Unit,
    Work,
    compare_baselines,
    scan_counts,
    scan_timed,
    scan_without,
)
from stillhouse.guard.settings import FAMILIES
from stillhouse.guard.simulate import planned
from stillhouse.guard.simulate_settings import (
    BenignSettings,
    CampaignSettings,
    Capability,
    HardNegativeSettings,
    SimulateSettings,
)

__all__ = ["CASES", "Case", "planned_units"]

_DAYS = 7
_WORLDS = 10_000  # simulation seeds of a benchmark seed: seed * this + the world's number
_CAPABILITIES: tuple[str, ...] = get_args(Capability)
_HARD = tuple(HardNegativeSettings.model_fields)
_KIND_SHARE = 0.25
_TRIED = 2000  # accounts from which events an account are estimated
_LEAST_ACCOUNTS = 200


@dataclass(frozen=True)
class Case:
    """One row of the table, or a few."""

    name: str
    line: str
    """What it measures."""
    units: Callable[[Weeks], list[Unit]]


class Weeks:
    """The weeks of one seed."""

    def __init__(self, settings: BenchmarkSettings, seed: int) -> None:
        """All follows from the settings and the seed."""
        self.settings, self.sizes, self.seed = settings, settings.sizes, seed

    def calibration(self, size: str, *, text: bool = True) -> WeekPlan:
        """A benign week."""
        accounts: int = getattr(self.sizes, size)
        return self._plan(
            f"{size}-calibration", 1 if size == "large" else 2, accounts, (), text, week=0
        )

    def large(self) -> WeekPlan:
        """The week of recall, hydra and sizes: each campaign is scanned by itself or with its like,
        beside the same benign traffic. Campaigns of cases that do not run are left out, which
        changes nothing for the others.
        """
        campaigns: list[CampaignSettings] = []
        if self._runs("recall"):
            campaigns += _half_cover(self.sizes, self.seed)
        if self._runs("hydra"):
            campaigns.append(_hydra(self.sizes, self.seed))
        if self._runs("sizes"):
            campaigns += [c for _, group in _by_size(self.sizes, self.seed) for c in group]
        return self._plan("large", 1, self.sizes.large, tuple(campaigns), True)

    def middle(self, *, text: bool = True) -> WeekPlan:
        """The week of ablation, metadata and evasion."""
        campaigns: list[CampaignSettings] = []
        if not text or self._runs("ablation"):
            campaigns += _half_cover(self.sizes, self.seed)
        if text and self._runs("evasion"):
            campaigns += [one for _, one in _grid(self.sizes, self.seed)]
        return self._plan("middle", 2, self.sizes.middle, tuple(campaigns), text)

    def _runs(self, case: str) -> bool:
        return not self.settings.only or case in self.settings.only

    def hard(self, kind: str, number: int) -> WeekPlan:
        """A benign week of a small provider; of a kind, a quarter of its accounts are of it."""
        index = 0 if kind == "mixed" else 1 + _HARD.index(kind)
        shares = HardNegativeSettings()
        if kind != "mixed":
            shares = shares.model_copy(update={kind: _KIND_SHARE})
        spec = self._spec(100 + 100 * index + number, _TRIED, (), True)
        benign = spec.benign.model_copy(update={"hard_negatives": shares})
        tried = planned(spec.model_copy(update={"benign": benign})).events
        accounts = max(round(self.sizes.hard_events * _TRIED / tried), _LEAST_ACCOUNTS)
        benign = benign.model_copy(update={"accounts": accounts})
        name = f"{self.seed}-hard-{kind}-{number}"
        return WeekPlan.of(name, spec.model_copy(update={"benign": benign}))

    def timed(self, events: int) -> WeekPlan:
        """Traffic with one campaign, of about so many events."""
        accounts = max(round(events / (3.1 * _DAYS)), 100)  # benign accounts send 3.1 a day
        campaign = CampaignSettings(
            name="timed",
            accounts=max(accounts // 100, 5),
            paraphrase="templates",
            capability="code",
        )
        return self._plan(f"timed-{events}", 5, accounts, (campaign,), True)

    def _plan(
        self, name: str, number: int, accounts: int, campaigns: tuple[CampaignSettings, ...],
        text: bool, *, week: int = 1,
    ) -> WeekPlan:  # fmt: skip
        """Week 1 of a world, whose week 0 is the calibration."""
        spec = self._spec(number, accounts, campaigns, text).model_copy(update={"week": week})
        return WeekPlan.of(f"{self.seed}-{name}{'' if text else '-metadata'}", spec)

    def _spec(
        self, number: int, accounts: int, campaigns: tuple[CampaignSettings, ...], text: bool
    ) -> SimulateSettings:
        return SimulateSettings(
            seed=self.seed * _WORLDS + number, days=_DAYS, text=text,
            rates=self.settings.rates, prompts=self.settings.prompts,
            benign=BenignSettings(accounts=accounts), campaigns=campaigns,
        )  # fmt: skip


# ---- campaigns ----


def _capability(number: int) -> Any:
    return _CAPABILITIES[number % len(_CAPABILITIES)]


def _half_cover(sizes: Sizes, seed: int) -> tuple[CampaignSettings, ...]:
    """Campaigns of the first row: 26 exchanges a day over the week, half of them cover."""
    kinds: tuple[dict[str, Any], ...] = (
        {"paraphrase": "none"},
        {"paraphrase": "synonyms", "shared_infrastructure": 0.5},
        {"paraphrase": "templates", "rewordings": 5, "signup": "burst"},
        {"paraphrase": "none", "lifetime_days": 4.0, "volume_spread": 0.5},
    )
    return tuple(
        CampaignSettings(
            name=f"half-{at}", accounts=accounts, cover=0.5, exchanges_per_day=26,
            capability=_capability(seed + 3 * at), **kinds[at % len(kinds)],
        ) for at, accounts in enumerate(sizes.recall)
    )  # fmt: skip


def _hydra(sizes: Sizes, seed: int) -> CampaignSettings:
    return CampaignSettings(
        name="hydra", accounts=sizes.hydra, cover=0.9, exchanges_per_day=26,
        paraphrase="templates", rewordings=20, capability=_capability(seed + 1),
    )  # fmt: skip


def _by_size(sizes: Sizes, seed: int) -> list[tuple[tuple[int, int], tuple[CampaignSettings, ...]]]:
    """(accounts, exchanges) and campaigns of that size; exchanges are the campaign's own, and as
    many are cover.
    """
    out = []
    for at, (accounts, exchanges, copies) in enumerate(sizes.by_size):
        campaigns = tuple(
            CampaignSettings(
                name=f"size-{accounts}-{exchanges}-{copy}", accounts=accounts, cover=0.5,
                exchanges_per_day=exchanges / accounts / _DAYS, exchanges_are="campaign",
                paraphrase="templates", rewordings=5, capability=_capability(seed + at + copy),
            ) for copy in range(copies)
        )  # fmt: skip
        out.append(((accounts, exchanges), campaigns))
    return out


def _grid(sizes: Sizes, seed: int) -> list[tuple[dict[str, Any], CampaignSettings]]:
    """Cells of the evasion grid."""
    out = []
    for paraphrase in sizes.paraphrases:
        for cover in sizes.covers:
            for shared in (0.0, 1.0):
                cell = {"paraphrase": paraphrase, "cover": cover, "shared_infrastructure": shared}
                name = f"grid-{paraphrase}-{round(100 * cover)}-{round(shared)}"
                campaign = CampaignSettings(
                    name=name,
                    accounts=sizes.grid,
                    exchanges_per_day=26,
                    capability=_capability(seed),
                    **cell,
                )
                out.append((cell, campaign))
    return out


# ---- units ----


def _names(campaigns: Iterable[CampaignSettings]) -> list[str]:
    return [one.name for one in campaigns]


def _recall(weeks: Weeks) -> list[Unit]:
    note = {"campaigns": _names(_half_cover(weeks.sizes, weeks.seed))}
    return [_unit(weeks, "recall", "scan", _large(weeks), scan_counts, note)]


def _hydras(weeks: Weeks) -> list[Unit]:
    note = {"campaigns": ["hydra"], "windows": weeks.sizes.windows}
    return [
        _unit(weeks, "hydra", "scan", _large(weeks), scan_counts, note),
        _unit(weeks, "hydra", "baselines", _large(weeks), compare_baselines, note),
    ]


def _sizes(weeks: Weeks) -> list[Unit]:
    """Small campaigns share a scan; one of a thousand accounts or more has its own."""
    groups = _by_size(weeks.sizes, weeks.seed)
    largest = max(accounts for (accounts, _), _ in groups)
    limit = min(1000, largest)
    small = [name for (accounts, _), g in groups if accounts < limit for name in _names(g)]
    units = [_unit(weeks, "sizes", "small", _large(weeks), scan_counts, {"campaigns": small})]
    for (accounts, exchanges), group in groups:
        if accounts >= limit:
            note = {"campaigns": _names(group)}
            name = f"{accounts}-{exchanges}"
            units.append(_unit(weeks, "sizes", name, _large(weeks), scan_counts, note))
    return units


def _fresh(weeks: Weeks) -> list[Unit]:
    return [_unit(weeks, "benign", "scan", _large(weeks), scan_counts, {"campaigns": []})]


def _hard_negatives(weeks: Weeks) -> list[Unit]:
    plan = [("mixed", n) for n in range(weeks.sizes.hard_weeks)]
    plan += [(kind, n) for kind in _HARD for n in range(weeks.sizes.kind_weeks)]
    return [
        _unit(
            weeks, "hard-negatives", f"{kind}-{number}",
            (weeks.calibration("middle"), weeks.hard(kind, number)), scan_counts,
            {"campaigns": [], "kind": kind},
        ) for kind, number in plan
    ]  # fmt: skip


def _metadata(weeks: Weeks) -> list[Unit]:
    pair = (weeks.calibration("middle", text=False), weeks.middle(text=False))
    note = {"campaigns": _names(_half_cover(weeks.sizes, weeks.seed))}
    return [_unit(weeks, "metadata", "scan", pair, scan_counts, note)]


def _ablation(weeks: Weeks) -> list[Unit]:
    campaigns = _names(_half_cover(weeks.sizes, weeks.seed))
    return [
        _unit(weeks, "ablation", f"without-{off}", _middle(weeks), scan_without,
              {"campaigns": campaigns, "off": off}) for off in ("nothing", *FAMILIES)
    ]  # fmt: skip


def _evasion(weeks: Weeks) -> list[Unit]:
    return [
        _unit(weeks, "evasion", campaign.name, _middle(weeks), scan_counts,
              {"campaigns": [campaign.name], "cell": cell})
        for cell, campaign in _grid(weeks.sizes, weeks.seed)
    ]  # fmt: skip


def _speed(weeks: Weeks) -> list[Unit]:
    """Once: the seed hardly matters to it."""
    if weeks.seed != weeks.settings.seeds[0]:
        return []
    return [
        _unit(weeks, "speed", f"{events}-events", (weeks.calibration("middle"),), scan_timed,
              {"events": events, "week": weeks.timed(events).spec.model_dump(mode="json")})
        for events in weeks.sizes.speed
    ]  # fmt: skip


def _large(weeks: Weeks) -> tuple[WeekPlan, WeekPlan]:
    return weeks.calibration("large"), weeks.large()


def _middle(weeks: Weeks) -> tuple[WeekPlan, WeekPlan]:
    return weeks.calibration("middle"), weeks.middle()


def _unit(
    weeks: Weeks, case: str, name: str, plans: tuple[WeekPlan, ...],
    work: Work, note: dict[str, Any],
) -> Unit:  # fmt: skip
    return Unit(case, f"{weeks.seed}-{name}", weeks.seed, plans, work, note)


CASES = (
    Case("recall", "campaigns of 200 accounts and more, half cover", _recall),
    Case("hydra", "90 % cover, 20 rewordings, nothing shared; six other methods beside", _hydras),
    Case("sizes", "campaigns of 5 to 24,000 accounts, 1 k to 1 M exchanges", _sizes),
    Case("benign", "false alarms among fresh benign accounts, by language and kind", _fresh),
    Case("ablation", "each evidence family off in turn", _ablation),
    Case("evasion", "paraphrase x cover x shared infrastructure", _evasion),
    Case("metadata", "logs without text", _metadata),
    Case("hard-negatives", "false campaigns in benign weeks, mixed and by kind", _hard_negatives),
    Case("speed", "seconds, memory and stages of whole scans", _speed),
)
"""In the order they run in, so that cases which share weeks follow one another."""


def planned_units(settings: BenchmarkSettings) -> list[Unit]:
    """All steps of a run, seed by seed.

    Raises:
        ConfigError: a case that there is none of.
    """
    names = [case.name for case in CASES]
    for name in settings.only:
        if name not in names:
            raise ConfigError(
                "--only", f"'{name}'", f"one of {', '.join(names)}", nearest(name, names)
            )
    chosen = [case for case in CASES if not settings.only or case.name in settings.only]
    return [
        unit
        for seed in settings.seeds
        for case in chosen
        for unit in case.units(Weeks(settings, seed))
    ]
