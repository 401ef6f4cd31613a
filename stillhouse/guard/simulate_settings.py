"""Settings of the simulated range: who asks, how much, and which campaigns hide among them.

In: a spec in YAML. Out: frozen, checked settings; each default is written here once. The docstring
under a field is the documentation. Nothing heavy is imported.
"""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from stillhouse.errors import ConfigError
from stillhouse.settings import Count, InputPath, Settings, Share, make, read_yaml

__all__ = [
    "BenignSettings",
    "CampaignSettings",
    "Capability",
    "HardNegativeSettings",
    "Languages",
    "SimulateSettings",
    "read_spec",
]

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Languages = dict[
    Literal["en", "zh", "ru", "es", "fr", "de", "pt", "ja", "ar"], Annotated[float, Field(gt=0)]
]
Capability = Literal[
    "reasoning_elicitation", "rubric_grading", "sensitive_rewriting", "tool_use", "code",
    "data_analysis", "computer_use", "vision",
]  # fmt: skip


class HardNegativeSettings(Settings):
    """Innocent traffic that looks coordinated: each kind's share of the benign accounts.

    A share above 0 makes at least one whole group (a firm, a class, an office), however small the
    population is. Group sizes are ours; `docs/guard-simulate.md` lists them.
    """

    agent_client: Share = 0.04
    """Users of a few popular agent programs: the same system prompt and tools everywhere."""
    saas_template: Share = 0.004
    """Firms whose product sends one template with its customers' data, over one to six keys."""
    reseller: Share = 0.002
    """Firms that pass other people's requests on, over one to four keys."""
    class_hackathon: Share = 0.02
    """Students who work on the same assignment at the same hours, from one campus."""
    benchmark: Share = 0.001
    """Evaluators who send a public benchmark's items through one template of theirs."""
    synthetic_data: Share = 0.003
    """Firms that may generate training data by contract: one template, items spread over keys."""
    judge_pipeline: Share = 0.002
    """Firms that have their own systems' answers graded against a rubric."""
    nightly_batch: Share = 0.003
    """Firms that enrich their records every night at the same hour, spread over keys."""
    office: Share = 0.03
    """Colleagues behind one address, paid for by one card."""
    release_rush: Share = 0.02
    """People who come to try a new model on the day it appears, many with the same questions."""
    localisation: Share = 0.003
    """Firms that have texts translated, one key for each target language."""


class BenignSettings(Settings):
    """Everybody who does not distil."""

    accounts: Count = 1000
    """Benign accounts, hard negatives included. People ask at least once in the window; an API
    customer may stay silent."""
    intensity: Positive = 1.0
    """Multiplies every benign rate."""
    light_per_day: NotNegative = 0.6
    """Mean exchanges a day of a light user; log-normal between users with a deviation of 1.2."""
    api_share: Share = 0.05
    """API customers among the accounts that are no hard negatives."""
    api_per_day: NotNegative = 15.0
    """Mean exchanges a day of an API customer; their shape over customers and time is that of the
    rate table or its fitted model, only the scale is set here."""
    languages: Languages = {  # noqa: RUF012  -- pydantic copies it
        "en": 0.53, "zh": 0.14, "ru": 0.10, "fr": 0.05, "es": 0.05, "de": 0.04, "pt": 0.04,
        "ja": 0.03, "ar": 0.02,
    }  # fmt: skip
    """Weights of the languages people write in. An assumption, after public chat logs."""
    hard_negatives: HardNegativeSettings = HardNegativeSettings()


class CampaignSettings(Settings):
    """One extraction campaign: one operator, many accounts, one list of prompts to be answered."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
    """How truth.parquet calls it: letters, digits, - and _."""
    accounts: Count = 200
    """Accounts in use at any one time."""
    exchanges_per_day: Positive = 26.0
    """Mean exchanges of an account a day."""
    exchanges_are: Literal["all", "campaign"] = "all"
    """What `exchanges_per_day` counts: everything the account sends, cover traffic included, or the
    campaign's own exchanges, with the cover on top."""
    start_day: Annotated[int, Field(ge=0)] = 0
    """First day, counted from 0."""
    days: Count | None = None
    """Days it lasts; None: to the end of the window."""
    cover: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of an account's exchanges that are unrelated traffic of other people, made by the
    generator that makes benign users."""
    capability: Capability = "reasoning_elicitation"
    """What it wants the model's answers for."""
    paraphrase: Literal["none", "synonyms", "templates", "rewriting"] = "none"
    """How the wrapper around each prompt varies: not at all, by synonyms, among `rewordings` fixed
    wordings, or composed anew for every exchange."""
    rewordings: Count = 20
    """Fixed wordings, for paraphrase 'templates'."""
    languages: Languages = {"en": 1.0}  # noqa: RUF012  -- pydantic copies it
    """Weights of the languages its prompts are in."""
    lifetime_days: Positive | None = None
    """Mean days after which an account is closed and another takes over; None: never closed."""
    volume_spread: NotNegative = 0.0
    """Deviation of the log of accounts' volumes: 0 is load balancing; benign customers have 2."""
    shaping: Literal["benign", "flat"] = "benign"
    """Times of day: those of benign exchanges from the same region, or all hours alike."""
    jitter_minutes: NotNegative = 10.0
    """Deviation of each time from the one it was planned for."""
    synchrony: Share = 0.0
    """Share of its exchanges sent in a few windows a day that all accounts have in common."""
    shared_infrastructure: Share = 0.0
    """Share of its accounts that share cards, addresses and devices with about 15 others each."""
    signup: Literal["aged", "burst"] = "aged"
    """When accounts were made: like benign ones (bought in stock), or in bursts."""
    structured_tools: bool = False
    """Send tool definitions as parameters, for tool_use and computer_use. The default writes them
    into the prompt; definitions sent as parameters are seen by a classifier of metadata."""
    pivot_share: Share = 0.0
    """Share of its exchanges that go to the new model within a day of its release."""
    repeat_share: Share = 0.02
    """Share of its exchanges that ask an earlier prompt again."""


class SimulateSettings(Settings):
    """A range: one window of a provider's traffic, with labels. `stillhouse guard simulate`."""

    seed: int = 7
    """Everything follows from it. Benign traffic is the same whatever campaigns are added."""
    week: Annotated[int, Field(ge=0)] = 0
    """Which window of this world is written: the accounts, their products, templates and campaigns
    stay, what they ask and when is new. 0 to calibrate on and 1 to scan is one provider twice."""
    start: date = date(2026, 9, 7)
    """First day (UTC) of window 0; later windows follow in whole weeks."""
    days: Count = 7
    """Length of the window."""
    release_day: Annotated[int, Field(ge=0)] | None = None
    """Day on which a new model appears, counted from 0; None: the middle of the window."""
    text: bool = True
    """Write messages; without them the log is metadata only, equal in every other field."""
    gzip: bool = False
    """Compress the day files."""
    rates: InputPath | None = None
    """Table of real clients' rates in ten-minute windows; None: the fitted model."""
    prompts: tuple[InputPath, ...] = ()
    """Files (JSONL, CSV, text) or folders of real prompts, used beside synthetic ones."""
    answers: InputPath | None = None
    """A store of exchanges: their answers are given where the campaigns ask their prompts."""
    benign: BenignSettings = BenignSettings()
    campaigns: tuple[CampaignSettings, ...] = ()
    """Extraction campaigns; none makes benign traffic only."""

    @model_validator(mode="after")
    def _fits_together(self) -> SimulateSettings:
        """Refuse what could not be simulated as written."""
        names = [campaign.name for campaign in self.campaigns]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(
                "campaigns", f"two are called '{twice}'", "a name for each",
                "Rename one of them",
            )  # fmt: skip
        for campaign in self.campaigns:
            if campaign.start_day + (campaign.days or 1) > self.days:
                raise ConfigError(
                    f"campaign '{campaign.name}'",
                    f"days {campaign.start_day} to {campaign.start_day + (campaign.days or 1)}",
                    f"days within the window of {self.days}", "Change start_day, or its days",
                )  # fmt: skip
        if self.release_day is not None and self.release_day >= self.days:
            raise ConfigError(
                "release_day", str(self.release_day), f"a day before {self.days}",
                "Count days from 0",
            )  # fmt: skip
        if self.answers is not None and not (self.text and self.campaigns):
            raise ConfigError(
                "answers", "a store, but no campaign's text to answer",
                "a campaign, and text: true", "Leave out answers, or add a campaign",
            )  # fmt: skip
        return self

    @property
    def begins(self) -> date:
        """First day of this window. Sign-ups keep their distance to it."""
        return self.start + timedelta(7 * self.week * -(-self.days // 7))

    @property
    def traffic_seed(self) -> tuple[int, ...]:
        """What is added to the seeds of traffic; nothing in window 0."""
        return (self.week,) if self.week else ()

    @property
    def release(self) -> int:
        """The day the new model appears."""
        return self.days // 2 if self.release_day is None else self.release_day


def read_spec(path: Path) -> SimulateSettings:
    """The spec in a YAML file; paths in it are relative to the file.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, or a value that does not fit.
    """
    data = read_yaml(path, "a simulation spec", "examples/guard/small.yaml")
    return make(SimulateSettings, data, where=str(path), base=path.parent)
