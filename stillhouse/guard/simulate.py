"""A range to measure detection on: labelled logs of benign traffic and extraction campaigns.

    OUT/logs/2026-09-07.jsonl    a day's requests in order of time, as LiteLLM's payloads
    OUT/truth.parquet            account, kind, campaign, capability: every account that asked
    OUT/exchanges.parquet        request, account, campaign: every exchange of a campaign's own
    OUT/prompts/NAME.jsonl       what a campaign asked, to be answered by a teacher
    OUT/spec.json                the spec as it was understood

In: a spec. Out: the files; one day is in memory at a time. Everything follows from the seed, and
nobody is contacted. Rates measured on what is written here are rates on simulated traffic.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.errors import ConfigError, DataError
from stillhouse.exchange import Exchange
from stillhouse.guard.simulate_accounts import (
    CAMPAIGN,
    KINDS,
    Accounts,
    benign_accounts,
    day_of_release,
    expected_events,
)
from stillhouse.guard.simulate_campaign import SMALLEST_BYTES, Campaign, volumes
from stillhouse.guard.simulate_log import Lines, account_name, day_file, request_name
from stillhouse.guard.simulate_prompts import Answers, offered, read_pool
from stillhouse.guard.simulate_rates import open_rates
from stillhouse.guard.simulate_settings import SimulateSettings, read_spec
from stillhouse.guard.simulate_text import BenignText, Turn
from stillhouse.guard.simulate_traffic import TOOLS_BYTES, Events, Traffic
from stillhouse.guard.simulate_wrappers import CampaignText
from stillhouse.progress import Progress, Silent

__all__ = ["Planned", "Simulated", "planned", "simulate"]

# Measured on one core, 100,000 to 1,000,000 events (docs/guard-simulate.md).
_SECONDS_AN_EVENT = {True: 75e-6, False: 18e-6}
_BYTES_AN_EVENT = {True: 1800, False: 965}
_TELL_EVERY = 2000

_TRUTH = pa.schema([
    ("account", pa.string()), ("kind", pa.string()), ("campaign", pa.string()),
    ("capability", pa.string()),
])  # fmt: skip
_OWN = pa.schema([("request", pa.string()), ("account", pa.string()), ("campaign", pa.string())])


@dataclass(frozen=True, slots=True)
class Planned:
    """What a spec would make; nothing is written for it."""

    accounts: int
    """Benign and campaign accounts, those that may stay silent included."""
    events: int
    """Expected; traffic is random."""
    bytes: int
    """Expected size of the logs, uncompressed."""
    seconds: float
    """Expected on one core of 2.5 GHz or so."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """What was written."""

    folder: Path
    accounts: int
    """Accounts that asked anything."""
    events: int
    campaign_events: int
    """Exchanges of campaigns' own, cover traffic left out."""
    answered: int
    """Exchanges whose response came from the store of answers."""
    bytes: int
    """Of the logs, before compression."""
    kinds: dict[str, int]
    """Accounts by kind."""


def planned(spec: Path | SimulateSettings) -> Planned:
    """Accounts, events, bytes and seconds to expect.

    Raises:
        StillhouseError: as `simulate`, for what is wrong with the spec or the table of rates.
    """
    spec = spec if isinstance(spec, SimulateSettings) else read_spec(spec)
    accounts = benign_accounts(spec, open_rates(spec.rates))
    events, count = expected_events(accounts, spec.days).sum(), len(accounts)
    for campaign in spec.campaigns:
        days = min(campaign.days or spec.days, spec.days - campaign.start_day)
        events += sum(volumes(campaign)) * campaign.accounts * days
        lives = 1 if campaign.lifetime_days is None else 1 + days / campaign.lifetime_days
        count += round(campaign.accounts * lives)
    return Planned(
        count, round(events), round(events * _BYTES_AN_EVENT[spec.text]),
        float(events * _SECONDS_AN_EVENT[spec.text]),
    )  # fmt: skip


def simulate(
    spec: Path | SimulateSettings, out: Path, progress: Progress | None = None
) -> Simulated:
    """Write the range of a spec into a new or empty folder.

    Args:
        spec: settings, or the YAML file they stand in.
        out: the folder.
        progress: told about events written.

    Raises:
        ConfigError: a spec that is none, or a folder that holds something.
        DataError: rates, prompts or answers that cannot be read, or a disk that refuses.
    """
    spec = spec if isinstance(spec, SimulateSettings) else read_spec(spec)
    progress = progress or Silent()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"--out {out}", "something is there", "a new or empty folder", "Choose another one"
        )
    work = _Range(spec)
    expected = planned(spec)
    out.mkdir(parents=True, exist_ok=True)
    (out / "logs").mkdir()
    progress.start("simulating traffic", expected.events, "events")
    whole = False
    try:
        (out / "spec.json").write_text(spec.model_dump_json(indent=2) + "\n", "utf-8")
        with _exchanges(out) as keep, _prompt_files(out, spec) as files:
            for day in range(spec.days):
                work.write_day(day, out, keep, files, progress)
        kinds = work.write_truth(out)
        whole = True
    except OSError as problem:
        raise DataError(
            str(out), f"writing failed ({problem.strerror or problem})", "a disk that takes it",
            "Make room or choose another place",
        ) from problem  # fmt: skip
    finally:
        if not whole:  # half a range is none, and would be refused the next time
            shutil.rmtree(out, ignore_errors=True)
    progress.finish(
        f"{work.events} events, {work.own} of campaigns, {sum(kinds.values())} accounts"
    )
    answered = work.answers.given if work.answers else 0
    return Simulated(
        out, sum(kinds.values()), work.events, work.own, answered, work.bytes, dict(kinds)
    )


class _Source:
    """Accounts, and who writes for them."""

    def __init__(self, accounts: Accounts, campaign: Campaign | None) -> None:
        self.accounts, self.campaign = accounts, campaign
        self.asked = np.zeros(len(accounts), bool)


class _Range:
    """A range while it is being written."""

    def __init__(self, spec: SimulateSettings) -> None:
        self.spec = spec
        rates, prompts = open_rates(spec.rates), read_pool(spec.prompts)
        self.answers = Answers(spec.answers) if spec.answers else None
        benign = benign_accounts(spec, rates)
        self.traffic = Traffic(benign, rates, spec)
        self.sources = [_Source(benign, None)]
        number = len(benign)
        for index in range(len(spec.campaigns)):
            campaign = Campaign(spec, index, benign, rates, number)
            number += len(campaign.accounts)
            self.sources.append(_Source(campaign.accounts, campaign))
        self.lines = Lines(spec.seed, spec.begins)
        self.benign_text = BenignText(spec.seed, prompts)
        self.texts = [
            CampaignText(source.campaign.settings, source.campaign.seed, prompts)
            for source in self.sources[1:] if source.campaign
        ]  # fmt: skip
        self.events = self.own = self.bytes = 0

    def write_day(
        self, day: int, out: Path, keep: Any, files: dict[str, BinaryIO], progress: Progress
    ) -> None:
        """The log of one day, and the campaigns' exchanges in it."""
        rng = np.random.default_rng([self.spec.seed, 3, day, *self.spec.traffic_seed])
        events = self.traffic.day(day, day_of_release(self.spec), rng)
        parts, sources, owns = [events], [0], [False]
        benign = self.sources[0].accounts
        for at, source in enumerate(self.sources[1:], start=1):
            if source.campaign is not None:
                cover, own = source.campaign.day(day, benign, events)
                parts += [cover, own]
                sources += [at, at]
                owns += [False, True]
        lengths = [len(part) for part in parts]
        together = Events.joined(parts)
        source, own = np.repeat(sources, lengths), np.repeat(owns, lengths)
        for at, known in enumerate(self.sources):
            known.asked[np.unique(together.row[source == at])] = True
        date = self.spec.begins + timedelta(day)
        with day_file(out / "logs", date, self.spec.gzip) as file:
            for at in np.argsort(together.time, kind="stable"):
                line = self._line(together, int(at), int(source[at]), bool(own[at]), files)
                file.write(line)
                self.bytes += len(line)
                self.events += 1
                if self.events % _TELL_EVERY == 0:
                    progress.advance(self.events, str(date))
        self.own += int(own.sum())
        keep(self._own_rows(together, source, own))

    def _line(
        self, events: Events, at: int, source: int, own: bool, files: dict[str, BinaryIO]
    ) -> bytes:
        accounts, row = self.sources[source].accounts, int(events.row[at])
        if not self.spec.text:
            return self.lines.line(accounts, row, events, at, None, None, None)
        if own:
            messages, tools = self._own_asked(events, at, source, accounts, row)
            answer = self._answer(messages)
            if answer is not None:  # whom it was collected from may have been offered others
                tools = offered(answer)
            campaign = self.spec.campaigns[source - 1].name
            asked: dict[str, Any] = {
                "id": request_name(int(events.seed[at])), "messages": messages
            }  # fmt: skip
            # A campaign's own tools are part of its task; an agent program's are left out, since
            # few small teachers have a template that takes any.
            if own_tools := self.texts[source - 1].tools:
                asked["tools"] = own_tools
            files[campaign].write(orjson.dumps(asked, option=orjson.OPT_APPEND_NEWLINE))
            return self.lines.line(accounts, row, events, at, messages, tools, answer)
        turn = Turn(
            int(events.session[at]), int(events.turn[at]), int(events.turn_bytes[at]),
            int(events.item[at]),
        )  # fmt: skip
        messages, tools = self.benign_text.asked(accounts, row, turn)
        return self.lines.line(accounts, row, events, at, messages, tools, None)

    def _own_asked(
        self, events: Events, at: int, source: int, accounts: Accounts, row: int
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """A campaign's request. Through an agent program, it goes as that program sends things."""
        text, size = self.texts[source - 1], int(events.prompt_bytes[at])
        context = self.benign_text.context(accounts, row)
        tools = text.tools
        before: list[dict[str, Any]] = []
        if context.tools is not None:
            before = [{"role": "system", "content": context.system}]
            size = max(size - len(context.system) - TOOLS_BYTES, SMALLEST_BYTES)
            tools = tools or context.tools
        messages = text.asked(int(events.item[at]), size, int(events.seed[at]))
        return before + messages, tools

    def _answer(self, messages: list[dict[str, Any]]) -> Exchange | None:
        return self.answers.of(messages) if self.answers else None

    def _own_rows(self, events: Events, source: Any, own: Any) -> dict[str, list[str]]:
        rows: dict[str, list[str]] = {"request": [], "account": [], "campaign": []}
        chosen = np.flatnonzero(own)
        for at in chosen[np.argsort(events.time[chosen], kind="stable")]:
            accounts = self.sources[source[at]].accounts
            number = int(accounts.number[int(events.row[at])])
            rows["request"].append(request_name(int(events.seed[at])))
            rows["account"].append(account_name(self.spec.seed, number))
            rows["campaign"].append(self.spec.campaigns[source[at] - 1].name)
        return rows

    def write_truth(self, out: Path) -> Counter[str]:
        """Accounts by kind, once `truth.parquet` is there."""
        rows: dict[str, list[str | None]] = {name: [] for name in _TRUTH.names}
        for source in self.sources:
            settings = source.campaign.settings if source.campaign else None
            for row in np.flatnonzero(source.asked):
                code = int(source.accounts.kind[row]) if settings is None else CAMPAIGN
                kind = KINDS[code].name if code < CAMPAIGN else "campaign"
                number = int(source.accounts.number[row])
                rows["account"].append(account_name(self.spec.seed, number))
                rows["kind"].append(kind)
                rows["campaign"].append(settings.name if settings else None)
                rows["capability"].append(settings.capability if settings else None)
        pq.write_table(pa.table(rows, _TRUTH), out / "truth.parquet")
        return Counter(str(kind) for kind in rows["kind"])


@contextmanager
def _exchanges(out: Path) -> Iterator[Any]:
    """A function that adds rows to `exchanges.parquet`."""
    with pq.ParquetWriter(out / "exchanges.parquet", _OWN) as writer:
        yield lambda rows: writer.write_table(pa.table(rows, _OWN))


@contextmanager
def _prompt_files(out: Path, spec: SimulateSettings) -> Iterator[dict[str, BinaryIO]]:
    """Open files for what each campaign asks; none where no text is written."""
    if not (spec.text and spec.campaigns):
        yield {}
        return
    folder = out / "prompts"
    folder.mkdir()
    with ExitStack() as opened:
        yield {
            campaign.name: opened.enter_context((folder / f"{campaign.name}.jsonl").open("wb"))
            for campaign in spec.campaigns
        }
