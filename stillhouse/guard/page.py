"""The page of a scan: one self-contained HTML file from which an analyst decides in ten minutes.

In: campaigns and facts as a scan writes them, the accounts' table. Out: `report.html`. The order is
that of the questions an analyst has: how much is there, how sure, which first; then for each
campaign what it is, why its accounts belong together, what speaks against it, what to do next.
Names come from logs, so all of them are escaped; no request's own text stands here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stillhouse.files import write_whole
from stillhouse.pages import markup, page_template, stylesheet

__all__ = ["write_page"]

_FULL = 30  # campaigns that are laid out in full; the others stand in the table and in the JSON
_MEMBERS = 25  # accounts of a campaign that are listed on the page
_LINKS = 12
_ALIKE = 3.0  # times as many accounts as a calibration has, or as few, from which that is said

_FAMILIES = {
    "content": "the same templates with payloads shared out",
    "infrastructure": "shared payment, devices or networks",
    "onboarding": "accounts made together",
    "succession": "accounts that take over from others",
}
_TIMING = {
    "one schedule": "one schedule",
    "load balance": "equal loads",
}
_DECISIONS = {
    "review": "for a person to decide now",
    "observe": "watched: no action",
    "allow": "excused by the allow-list",
}


def write_page(
    folder: Path, campaigns: Sequence[Mapping[str, Any]], accounts: pa.Table,
    facts: Mapping[str, Any],
) -> Path:  # fmt: skip
    """The path of `report.html`, written whole or not at all."""
    template = resources.files("stillhouse").joinpath("guard/page.html.jinja")
    own = resources.files("stillhouse").joinpath("guard/page.css")
    called = {
        word: [c for c in campaigns if c["decision"] == word] for word in ("review", "observe")
    }
    page = page_template(template.read_text("utf-8")).render(
        css=stylesheet(), own_css=markup(own.read_text("utf-8")), facts=facts,
        lede=_lede(called), limits=_limits(facts), tiles=_tiles(called, facts),
        campaigns=[_campaign(one) for one in campaigns],
        full=[_full(one) for one in campaigns[:_FULL]], left=max(0, len(campaigns) - _FULL),
        decisions=_decisions(accounts), provenance=_provenance(facts),
    )  # fmt: skip
    return write_whole(folder / "report.html", page)


# ---- the whole scan ----


def _lede(called: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[str, str]:
    review, observe = called["review"], called["observe"]
    if not review:
        verb = "is" if len(observe) == 1 else "are"
        watched = f" {_plural(len(observe), 'cluster')} {verb} watched." if observe else ""
        return "No campaign calls for review.", watched
    members = [m for c in review for m in c["members"] if m["decision"] == "review"]
    accounts, exchanges = len(members), sum(m["exchanges"] for m in members)
    return (
        f"{_plural(len(review), 'campaign')} {'calls' if len(review) == 1 else 'call'} for review",
        f": {accounts:,} accounts that obtained {exchanges:,} exchanges between them."
        + (f" {_plural(len(observe), 'further cluster')} watched." if observe else ""),
    )


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def _limits(facts: Mapping[str, Any]) -> list[str]:
    """What no figure of the page says."""
    lines = [
        "Who runs these accounts, and why, cannot be seen from logs. Resale, research and "
        "distillation can look alike, and one account can do all three.",
        "A campaign that shares neither words, hours, payment nor networks is not found, and no "
        "monitor of queries prevents extraction: it raises its cost.",
        "Language, region and nationality are no evidence here and are not used.",
    ]
    if facts["calibrated"]:
        lines.append(
            f"Error rates hold as far as this traffic is like that of the calibration "
            f"({facts['calibration_accounts']:,} accounts); a change of products or customers "
            "calls for a new one."
        )
    else:
        lines.append(
            "Uncalibrated: no benign traffic was given, so p-values are those of permutations "
            "within these logs, and how many false alarms to expect is not known. Calibrate before "
            "acting: stillhouse guard calibrate."
        )
    known = facts["calibration_accounts"]
    if known is not None and not 1 / _ALIKE <= facts["accounts"] / known <= _ALIKE:
        lines.append(
            f"The calibration has {known:,} accounts, this scan {facts['accounts']:,}: scores rise "
            "with how many people there are to share words with, so error rates are not those "
            "stated. Calibrate on as much traffic as is scanned."
        )
    if facts["without_text"] == facts["events"]:
        lines.append(
            "All requests are logged without their text. From metadata alone, none of 20 campaigns "
            "was found in simulation (docs/guard.md): that nothing is found here says little."
        )
    elif facts["without_text"]:
        lines.append(
            f"{facts['without_text'] / facts['events']:.0%} of the requests are logged without "
            "their text: what they asked for was compared with nobody's."
        )
    if facts["unlinkable_accounts"]:
        lines.append(
            f"{_plural(facts['unlinkable_accounts'], 'account')} could not be judged: the logs "
            "have neither text nor a payment, device or network of theirs."
        )
    return lines


def _tiles(
    called: Mapping[str, Sequence[Mapping[str, Any]]], facts: Mapping[str, Any]
) -> list[dict[str, str]]:
    usd = [c["estimate"]["usd"] for c in called["review"] if c["estimate"]["usd"] is not None]
    priced = sum(c["estimate"]["events_priced"] for c in called["review"])
    exchanges = sum(c["exchanges"] for c in called["review"])
    expected, campaigns = (
        facts[f"expected_false_{what}_a_week"] for what in ("accounts", "campaigns")
    )
    level = facts["settings"]["account_level"]
    return [
        {"title": "Campaigns for review", "big": str(len(called["review"])),
         "note": f"{len(called['observe'])} watched; {facts['clusters_tested']:,} clusters tested"},
        {"title": "Accounts for review", "big": f"{facts['decisions']['review']:,}",
         "note": f"of {facts['accounts']:,} in {facts['events']:,} requests over "
         f"{facts['hours'] / 24:.1f} days"},
        {"title": "Value at list price", "big": _dollars(sum(usd)) if usd else "not known",
         "note": f"from {priced:,} of {exchanges:,} exchanges of campaigns for review"},
        {"title": "False alarms to expect",
         "big": "not known" if campaigns is None else f"{campaigns:.2g}",
         "note": "without a calibration on benign traffic" if campaigns is None else
         f"campaigns a week, where there is none. At most {expected:.2g} accounts a week have a "
         f"p-value of {level:g} or less by themselves; they are called only inside a campaign"},
    ]  # fmt: skip


def _decisions(accounts: pa.Table) -> list[tuple[str, int]]:
    words, counts = np.unique(accounts["decision"].to_numpy(zero_copy_only=False),
                              return_counts=True)  # fmt: skip
    return sorted(zip(words.tolist(), counts.tolist(), strict=True), key=lambda row: -row[1])


def _provenance(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    read, held = facts["read"], facts["held"]
    days = f", {held['first'][:10]} to {held['last'][:10]}" if held["first"] else ""
    return [
        ("Requests held", f"{held['events']:,} of {_plural(held['logs'], 'log')}{days}"),
        ("Lines that are no events", _reasons(held["rejects"])),
        ("Added now", f"{read['events_added']:,} of {_plural(read['files'], 'log')}; "
         f"lines that are no events: {_reasons(read['rejects'])}"),
        ("Duplicates left out now", f"{read['duplicates']:,}"),
        ("Set aside", f"{facts['strays']:,} days apart from all others (a clock that was wrong), "
         f"{facts['older']:,} before the days that were asked for"),
        ("Customers", f"{facts['customers']:,} (accounts that pay together count once)"),
        ("Calibration", f"{facts['calibration_accounts']:,} accounts" if facts["calibrated"]
         else "none"),
        ("Families used", ", ".join(facts["settings"]["families"])),
        ("Stillhouse", str(facts["stillhouse"])),
    ]  # fmt: skip


def _reasons(rejects: Mapping[str, int]) -> str:
    return "; ".join(f"{n:,} {why}" for why, n in rejects.items()) or "none"


# ---- one campaign ----


def _campaign(one: Mapping[str, Any]) -> dict[str, Any]:
    usd = one["estimate"]["usd"]
    return {
        "id": one["id"], "decision": one["decision"], "accounts": one["accounts"],
        "exchanges": one["exchanges"], "capability": one["capability"].replace("_", " "),
        "q": one["q_value"], "families": ", ".join(one["families"]) or "none",
        "usd": None if usd is None else _dollars(usd),
        "days": f"{one['first_seen'][:10]} to {one['last_seen'][:10]}",
    }  # fmt: skip


def _words(family: str, evidence: Sequence[Mapping[str, Any]]) -> str:
    """What a family that speaks says; of timing, the test that says it."""
    timing = [f for f in evidence if f["family"] == family and f["test"] in _TIMING]
    if timing:
        return _TIMING[min(timing, key=lambda found: found["p_value"])["test"]]
    return _FAMILIES.get(family, family)


def _dollars(usd: float) -> str:
    return f"${usd:,.0f}" if usd >= 10 else f"${usd:.2f}"


def _task(capability: str) -> str:
    """A capability named leans beyond what benign traffic does; `other` is the lack of one."""
    if capability == "other":
        return "with no task that stands out"
    return f"leaning to {capability.replace('_', ' ')}"


def _full(one: Mapping[str, Any]) -> dict[str, Any]:
    volumes, members = one["volumes"], one["members"]
    most = max((day["exchanges"] for day in one["timeline"]), default=1)
    each = volumes["exchanges_per_account"]
    return {
        **_campaign(one),
        "means": _DECISIONS.get(one["decision"], one["decision"]),
        "sentence": (
            f"{one['accounts']:,} accounts of {one['customers']:,} unrelated customers obtained "
            f"{one['exchanges']:,} exchanges, {_task(one['capability'])}, "
            f"{each['p50']} each in the middle (nine in ten between {each['p5']} and "
            f"{each['p95']}). {_cover(volumes['share_of_their_traffic'])}{_uncalled(one)}"
        ),
        "why": [_finding(one, found) for found in one["evidence"]],
        "spoke": [f"{name}: {_words(name, one['evidence'])}" for name in one["families"]],
        "template": one.get("template") or {"skeletons": [], "why_none": "not made"},
        "timeline": [
            {**day, "height": 100 * day["exchanges"] / most, "day": day["day"][5:]}
            for day in one["timeline"]
        ],
        "shares": {
            "Capabilities": _shares({
                name.replace("_", " "): n for name, n in volumes["capabilities"].items()
            }),
            "Models": _shares(volumes["models"]),  # names of others, left as they are
        },
        "payloads": volumes["distinct_payloads"],
        "disjoint": one["disjoint_share"],
        "estimate": one["estimate"],
        "against": one["against"],
        "next": one["next_step"],
        "members": [
            {**m, "of": m["events"], "share": m["exchanges"] / max(1, m["events"])}
            for m in members[:_MEMBERS]
        ],
        "members_left": max(0, len(members) - _MEMBERS),
        "links": one["links"][:_LINKS],
        "links_left": max(0, len(one["links"]) - _LINKS),
    }  # fmt: skip


def _uncalled(one: Mapping[str, Any]) -> str:
    others = one["accounts"] - one["decisions"].get(one["decision"], 0)
    if one["decision"] != "review" or not others:
        return ""
    return (
        f" {_plural(others, 'account')} of them {'is' if others == 1 else 'are'} not called: what "
        "each did alone is too common among benign accounts."
    )


def _cover(share: float) -> str:
    if share > 0.995:
        return "These accounts asked for nothing else."
    return f"They are {share:.0%} of what these accounts asked; the rest is other traffic."


def _finding(one: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "family": found["family"], "test": found["test"].replace("_", " "),
        "p": found["p_value"], "n": found["n"], "effect": found["effect"] + 0.0,  # no minus zero
        "typical": found["typical"] + 0.0, "speaks": found["family"] in one["families"],
    }  # fmt: skip


def _shares(counts: Mapping[str, int]) -> list[dict[str, Any]]:
    whole = sum(counts.values()) or 1
    rows = sorted(counts.items(), key=lambda row: -row[1])[:5]
    return [{"name": name, "share": count / whole, "count": count} for name, count in rows]
