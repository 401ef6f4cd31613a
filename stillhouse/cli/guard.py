"""`stillhouse guard scan|calibrate|export|simulate|benchmark`: campaigns in a provider's logs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from stillhouse.cli.terminal import Common, all_given, duration, emit, make_progress, table
from stillhouse.errors import ConfigError
from stillhouse.guard.benchmark_settings import BenchmarkSettings
from stillhouse.guard.settings import MAX_REJECTED, SCORING, GuardSettings
from stillhouse.settings import make

if TYPE_CHECKING:
    from stillhouse.guard.mapping import MappingSettings

__all__ = ["benchmark", "calibrate", "export", "scan", "simulate"]

_DEFAULTS = GuardSettings.defaults()
_BENCHMARK_DEFAULTS = BenchmarkSettings.defaults()

_MaxRejected = Annotated[float, Parameter(validator=Number(gte=0, lte=1))]


def scan(
    *logs: Path,
    out: Path,
    calibration: Path | None = None,
    key: Path | None = None,
    mapping: Path | None = None,
    max_rejected: _MaxRejected = MAX_REJECTED,
    settings: Annotated[GuardSettings, Parameter(name="*")] = _DEFAULTS,
    common: Common = Common(),  # noqa: B008  (frozen)
) -> None:
    """Find extraction campaigns across the accounts of some logs.

    Parameters
    ----------
    logs
        Log files, stores, or folders of log files; gzip and zstd are read. Give no logs to scan
        again what --out already holds.
    out
        The scan's folder; logs of later days are added to it.
    calibration
        File of `guard calibrate`, of benign traffic of as many days. Without it false alarms are
        not known.
    key
        File of the secret that names are hashed with. Default: CALIBRATION.key where one is given,
        else OUT.key, made if missing.
    mapping
        YAML file that says what columns mean, for logs of no known format.
    max_rejected
        Largest share of unusable records, 0 to 1, before the logs are refused.
    """
    from stillhouse.guard.scan import guard_scan

    found = guard_scan(
        settings, logs=logs, out=out, calibration=calibration, key=key, mapping=_mapping(mapping),
        max_rejected=max_rejected, progress=make_progress(quiet=common.quiet),
    )  # fmt: skip
    facts, listed = found.facts, found.campaigns
    result = {"out": str(out), **facts, "campaigns": [_brief(one) for one in listed]}
    head = ["campaign", "decision", "accounts", "exchanges", "capability", "families", "q"]
    rows = [[one["id"], one["decision"], f"{one['accounts']:,}", f"{one['exchanges']:,}",
             one["capability"], "+".join(one["families"]), f"{one['q_value']:.2g}"]
            for one in listed[:20]]  # fmt: skip
    calls = facts["decisions"]
    lines = [
        *(table([head, *rows]) if rows else ["No campaign was found."]),
        *([f"... and {len(listed) - 20} more in campaigns.json"] if len(listed) > 20 else []),
        f"{facts['accounts']:,} accounts: " + ", ".join(f"{n:,} {w}" for w, n in calls.items()),
        "calibrated" if facts["calibrated"] else "UNCALIBRATED: how often benign traffic looks "
        "like this is not known; see stillhouse guard calibrate --help",
        f"Read {out / 'report.html'}",
    ]  # fmt: skip
    emit(result, lines, as_json=common.json)


def _brief(one: dict[str, Any]) -> dict[str, Any]:
    names = ("id", "decision", "accounts", "exchanges", "first_seen", "last_seen", "capability",
             "p_value", "q_value", "families")  # fmt: skip
    return {name: one[name] for name in names}


def _mapping(path: Path | None) -> MappingSettings | None:
    if path is None:
        return None
    from stillhouse.guard.mapping import load_mapping

    return load_mapping(path)


def calibrate(
    *logs: Path,
    out: Path,
    key: Path | None = None,
    mapping: Path | None = None,
    max_rejected: _MaxRejected = MAX_REJECTED,
    settings: Annotated[GuardSettings, Parameter(name="*")] = _DEFAULTS,
    common: Common = Common(),  # noqa: B008  (frozen)
) -> None:
    """Measure what benign traffic looks like, so that scans know their false alarms.

    Parameters
    ----------
    logs
        Logs of accounts known to be benign, of as many days as will be scanned.
    out
        The calibration's file; its secret is written beside it (OUT.key), for scans to use.
    key
        File of the secret that names are hashed with, a scan's for example. Default: OUT.key, made
        if missing.
    mapping
        YAML file that says what columns mean, for logs of no known format.
    max_rejected
        Largest share of unusable records, 0 to 1, before the logs are refused.
    """
    from stillhouse.guard.scan import guard_calibrate

    if not logs:
        raise ConfigError(
            "stillhouse guard calibrate", "no logs", "logs of benign accounts",
            "Name files or folders: stillhouse guard calibrate benign-week/ --out benign.cal",
        )  # fmt: skip
    ignored = [
        "--" + name.replace("_", "-") for name in GuardSettings.model_fields
        if name not in (*SCORING, "false_discovery_rate", "days", "stratum_accounts", "seed")
        and getattr(settings, name) != getattr(_DEFAULTS, name)
    ]  # fmt: skip
    if ignored:
        raise ConfigError(
            "stillhouse guard calibrate", ", ".join(ignored), "settings that scores depend on",
            "Leave it to `guard scan`, which decides; accounts that are no benign traffic have to "
            "be taken out of the logs",
        )  # fmt: skip
    made = guard_calibrate(
        settings, logs=logs, out=out, key=key, mapping=_mapping(mapping),
        max_rejected=max_rejected, progress=make_progress(quiet=common.quiet),
    )  # fmt: skip
    least, strongest = made["least_p_values"], made["strongest_benign_cluster"]
    lines = [
        f"{made['accounts']:,} accounts over {made['hours'] / 24:.1f} days in {out}",
        f"No p-value of an account will be below {least[0]:.2g}"
        + (f", or {least[-1]:.2g} where its like are few." if len(least) > 1 else "."),
        f"Scan with: stillhouse guard scan LOG... --out DIR --calibration {out}",
    ]
    if strongest:
        lines.insert(
            2, f"One benign cluster has p = {10.0**-strongest:.2g}: a scan calls only what is "
            "stronger. More benign traffic, or another --key, may be without it.",
        )  # fmt: skip
    emit(made, lines, as_json=common.json)


def export(
    scan_dir: Path,
    campaign: str,
    *,
    out: Path,
    log: tuple[Path, ...] = (),
    served: Path | None = None,
    common: Common = Common(),  # noqa: B008  (frozen)
) -> None:
    """Write a campaign's exchanges as a store, for `stillhouse audit twin`.

    Parameters
    ----------
    scan_dir
        The folder that `guard scan` wrote.
    campaign
        Its id, as in campaigns.json.
    out
        The store.
    log
        Log file, store or folder of log files: where they lie now, if they were moved.
    served
        The store of what was served, whose twins lie in an escrow: its own exchanges are written
        for those of the logs, with all settings, so that the escrow's twins fit them.
    """
    from stillhouse.guard.export import guard_export
    from stillhouse.store import Store

    count, left_out = guard_export(
        scan_dir, campaign, out=out, logs=log, served=served,
        progress=make_progress(quiet=common.quiet),
    )  # fmt: skip
    with Store(out, "r") as store:
        held = len(store)
    result = {"exchanges": held, "added": count, "left_out": left_out, "out": str(out)}
    lines = [
        f"{held:,} exchanges in {out}" + ("" if count == held else f", {count:,} of them new"),
        *(f"left out: {n:,} {reason}" for reason, n in left_out.items()),
    ]
    emit(result, lines, as_json=common.json)


def simulate(
    spec: Path,
    *,
    out: Path | None = None,
    rates: Path | None = None,
    prompts: tuple[Path, ...] = (),
    answers: Path | None = None,
    dry_run: bool = False,
    common: Common = Common(),  # noqa: B008  (frozen)
) -> None:
    """Write labelled logs of simulated traffic, to measure detection on. Contacts nobody.

    Parameters
    ----------
    spec
        YAML file of the population and its campaigns (docs/guard-simulate.md).
    out
        A new folder for logs/ and truth.parquet.
    rates
        Table of real clients' rates, in the place of the spec's.
    prompts
        Files or folders of real prompts, in the place of the spec's.
    answers
        Store of exchanges whose answers the campaigns get, in the place of the spec's.
    dry_run
        Say how much it would be, and write nothing.
    """
    from stillhouse.guard.simulate import planned
    from stillhouse.guard.simulate import simulate as write
    from stillhouse.guard.simulate_settings import SimulateSettings, read_spec

    given = {"rates": rates, "prompts": prompts or None, "answers": answers}
    named = {name: value for name, value in given.items() if value is not None}
    both = read_spec(spec).model_dump() | named
    settings = make(SimulateSettings, both, where="guard simulate")  # what was named is checked too
    if dry_run:
        plan = planned(settings)
        line = (
            f"{plan.accounts:,} accounts, about {plan.events:,} requests, {plan.bytes / 1e6:,.0f} "
            f"MB, {duration(plan.seconds)}"
        )
        return emit(dataclasses.asdict(plan), [line], as_json=common.json)
    all_given("guard simulate", {"--out": out}, "--out DIR, or --dry-run")
    assert out is not None
    made = write(settings, out, make_progress(quiet=common.quiet))
    facts = {name: value for name, value in dataclasses.asdict(made).items() if name != "folder"}
    lines = [
        f"{made.accounts:,} accounts, {made.events:,} requests ({made.campaign_events:,} of "
        f"campaigns) in {out / 'logs'}",
        f"Simulated: who is what stands in {out / 'truth.parquet'}.",
    ]
    return emit({"out": str(out), **facts}, lines, as_json=common.json)


def benchmark(
    *,
    work: Path = Path("guard-benchmark"),
    settings: Annotated[BenchmarkSettings, Parameter(name="*")] = _BENCHMARK_DEFAULTS,
    list_cases: Annotated[bool, Parameter(name="--list", negative="")] = False,
    common: Common = Common(),  # noqa: B008  (frozen)
) -> None:
    """Measure the detector on simulated logs, and print the table as JSON.

    Parameters
    ----------
    work
        A folder for what is made on the way. Run the same command again to go on.
    list_cases
        Say which cases there are, and the minutes they take on two quiet cores; run nothing.
    """
    from stillhouse.guard.benchmark import benchmark as measure
    from stillhouse.guard.benchmark import expected_minutes
    from stillhouse.guard.benchmark_cases import CASES

    if list_cases:
        minutes = expected_minutes(settings)
        rows = [[case.name, f"{minutes[case.name]:.1f}", case.line]
                for case in CASES if case.name in minutes]  # fmt: skip
        total = ["", f"{sum(minutes.values()):.1f}", "all of these"]
        lines = table([["case", "minutes", "what"], *rows, total])
        return emit({"expected_minutes": minutes}, lines, as_json=common.json)
    made = measure(settings, work, make_progress(quiet=common.quiet))
    return emit(made, [], as_json=True)
