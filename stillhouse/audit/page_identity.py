"""The part of an audit's page that only identity audits have: tables by model, language and answer.

In: evidence, plan, and the raw lines as far as they are at hand. Out: rows of text and places of
marks for the template. Everything a model said is passed on verbatim; the template escapes it.
Nothing here counts or concludes: what was read in an answer is read again by `claims.readings`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stillhouse.audit.claims import questions, readings
from stillhouse.audit.page_charts import interval_scale
from stillhouse.audit.page_figures import (
    Figures,
    Row,
    Unread,
    chance,
    interval,
    is_estimate,
    number,
    plain,
)
from stillhouse.pages import figure, signed

__all__ = ["identity_rows", "identity_tiles", "identity_view", "said"]

KINDS = ("neutral", "pressing")

# Up to so many controls each has a column of its own; more are a range, and a table behind it.
_COLUMNS = 4


def identity_tiles(unread: Unread) -> list[dict[str, Any]]:
    """The four figures at the head of an identity audit."""
    effect, name = unread("effect"), _candidate(unread)
    above, controls, smallest = (
        unread("secondary", "rank", key) for key in ("at_or_above", "controls", "smallest_p_value")
    )
    pressing = unread("secondary", "models", "suspect", "pressing", "claimed")
    p_value = unread("p_value")
    tiles: list[dict[str, Any]] = [
        {"title": f"Neutral answers that name {name}", "big": figure(effect["value"], "share"),
         "scale": interval_scale(effect), "ends": ["0 %", "100 %"],
         "note": f"95 % interval {interval(effect, 'share')}, n = {number(effect['n'])} questions"}
    ]  # fmt: skip
    if is_estimate(pressing):
        tiles.append(
            {"title": "Pressing questions, apart", "big": figure(pressing["value"], "share"),
             "scale": interval_scale(pressing), "ends": ["0 %", "100 %"],
             "note": f"95 % interval {interval(pressing, 'share')}, n = {number(pressing['n'])} "
             "questions"}
        )  # fmt: skip
    if controls:
        tiles.append(
            {"title": "Controls that name it as often", "big": plain(above),
             "small": f"of {number(controls)}", "note": "at the suspect's share or above"}
        )  # fmt: skip
    note = "no control models were ranked" if not controls else (
        f"n = {number(controls)} controls; none below {figure(smallest, 'chance')} is possible"
    )  # fmt: skip
    big = "not given" if p_value is None else figure(p_value, "chance")
    return [*tiles, {"title": "Rank p among controls", "big": big, "note": note}]


def identity_rows(unread: Unread) -> list[Row]:
    """The primary figures of an identity audit."""
    effect, what = unread("effect"), str(unread("statistic")["name"])
    rank = {key: unread("secondary", "rank", key) for key in (
        "controls", "at_or_above", "p_value", "smallest_p_value", "level", "must_exceed", "lowest",
        "highest",
    )}  # fmt: skip
    count, verdict = rank["controls"], unread("verdict")
    n = "" if count is None else number(count)
    rows = [
        Row(what[:1].upper() + what[1:], figure(effect["value"], "share"),
            interval(effect, "share"), number(effect["n"]), effect.get("method", "")),
        Row("Controls ranked", n or "not given"),
    ]  # fmt: skip
    if count:
        rows += [
            Row("Controls at the suspect's share or above", plain(rank["at_or_above"]), n=n),
            Row("Lowest and highest control",
                " to ".join(_share(rank[key]) for key in ("lowest", "highest")), n=n),
            Row("p, rank among the controls", chance(unread("p_value"), None, ""), n=n,
                note=f"verdict: {verdict}; none below {_chance(rank['smallest_p_value'])} is "
                "possible with so many"),
            Row("Level of the rank p", _chance(rank["level"]),
                note="at or below it, with controls enough, the audit speaks of evidence"),
        ]  # fmt: skip
        if rank["p_value"] is not None and unread("p_value") is None:
            note = "not to be read: the audit does not rank this suspect"
            rows.append(Row("Rank p, had there been one", _chance(rank["p_value"]), n=n, note=note))
        if rank["must_exceed"] is not None:
            least = f"above {_share(rank['must_exceed'])}"
            rows.append(Row("Share that would have stood out", least, n=n))
    if refusal := unread("secondary", "refusal"):
        rows.append(Row("Refused", refusal))
    return rows


def identity_view(
    unread: Unread, plan: Figures, lines: Mapping[str, Sequence[Any]]
) -> dict[str, Any]:
    """What the template shows of an identity audit beside its head."""
    found = unread_models(unread)
    controls = [name for name in found if name != "suspect"]
    columns = ["suspect", *controls] if len(controls) <= _COLUMNS else ["suspect"]
    names = {**_names(plan), **(unread("secondary", "names") or {})}
    ranked = unread("secondary", "controls")
    left_out = unread("secondary", "controls_left_out") or {}
    return {
        "candidate": _candidate(unread),
        "controls": controls,
        "columns": columns,
        "strip": _strip(unread, found),
        "overall": {kind: _overall(unread, found, kind) for kind in KINDS},
        "languages": {kind: _languages(unread, plan, columns, controls, kind) for kind in KINDS},
        "every": {kind: _languages(unread, plan, ["suspect", *controls], [], kind)
                  for kind in KINDS} if len(columns) <= len(controls) else None,
        "identities": _identities(unread, found, names),
        "answered": [_answered(unread, role, names, ranked, left_out) for role in found],
        "prompts": [line for line in lines.get("models", ()) if isinstance(line, Mapping)],
        "asked_of": _reached(lines),
    }  # fmt: skip


def unread_models(unread: Unread) -> list[str]:
    """Roles in the evidence, the suspect first."""
    found = unread.names("secondary", "models")
    return ["suspect"] * ("suspect" in found) + [name for name in found if name != "suspect"]


def _candidate(unread: Unread) -> str:
    return str(unread("secondary", "candidate", "name") or "the candidate")


def _names(plan: Figures) -> dict[str, str]:
    table = plan["battery"]["identities"]
    return {key: entry["name"] for key, entry in table.items()}


def _share(value: float | None) -> str:
    return "not given" if value is None else figure(value, "share")


def _chance(value: float | None) -> str:
    return "not given" if value is None else figure(value, "chance")


def _cell(estimate: Any, kind: str = "share") -> dict[str, Any] | None:
    """A share for a table; None where too few questions were answered."""
    if not is_estimate(estimate):
        return None
    return {
        "value": figure(estimate["value"], kind), "interval": interval(estimate, kind),
        "n": number(estimate["n"]),
    }  # fmt: skip


# ---- beside the controls ----


def _strip(unread: Unread, roles: Sequence[str]) -> list[dict[str, Any]]:
    """Neutral shares as dots with whiskers, the suspect first and controls from high to low."""
    rows = [
        {"role": role, "share": share, "places": interval_scale(share),
         "says": figure(share["value"], "share")}
        for role in roles
        if is_estimate(share := unread("secondary", "models", role, "neutral", "claimed"))
    ]  # fmt: skip
    return sorted(rows, key=lambda row: (row["role"] != "suspect", -row["share"]["value"]))


def _overall(unread: Unread, roles: Sequence[str], kind: str) -> list[dict[str, Any]]:
    """A row for each model: shares over all languages, and how far the suspect is from it."""
    rows: list[dict[str, Any]] = []
    for role in roles:
        own = {
            key: _cell(unread("secondary", "models", role, kind, key))
            for key in (
                "claimed", "named", "claimed_clustered_by_language", "instructed", "suggested",
            )
        }  # fmt: skip
        gap = _gap(unread("secondary", "differences", role)) if kind == "neutral" else None
        rows.append({"role": role, "cells": own, "gap": gap})
    return rows


def _gap(difference: Any) -> dict[str, Any] | None:
    """The suspect less a control; None where they share too few questions."""
    if not is_estimate(difference):
        return None
    return {
        "value": signed(difference["value"], "share"), "n": number(difference["n"]),
        "interval": interval(difference, "share", sign=True).replace(" points to", " to"),
    }  # fmt: skip


def _languages(
    unread: Unread, plan: Figures, columns: Sequence[str], controls: Sequence[str], kind: str
) -> list[dict[str, Any]]:
    """A row for each language: the share of each column's model, and the range of the others."""
    rows: list[dict[str, Any]] = []
    for language, entry in plan["battery"]["questions"].items():

        def shares(role: str, key: str, language: str = language) -> Any:
            return unread("secondary", "models", role, "languages", language, kind, key)

        cells = [
            {"claimed": _cell(shares(role, "claimed"), "percent"),
             "named": _cell(shares(role, "named"), "percent")}
            for role in columns
        ]  # fmt: skip
        others = [
            found["value"]
            for role in controls
            if role not in columns and is_estimate(found := shares(role, "claimed"))
        ]
        span = (
            " to ".join(figure(end, "percent") for end in (min(others), max(others)))
            if others
            else None
        )
        rows.append({"name": entry["name"], "cells": cells, "range": span})
    return rows


def _identities(
    unread: Unread, roles: Sequence[str], names: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Every identity that a model named, with its shares."""
    rows: list[dict[str, Any]] = []
    for role in roles:
        for key in unread.names("secondary", "models", role, "identities"):
            cells = [
                _cell(unread("secondary", "models", role, "identities", key, kind, what))
                for kind in KINDS
                for what in ("claimed", "named")
            ]
            rows.append({"role": role, "name": names.get(key, key), "cells": cells})
    return rows


def _answered(
    unread: Unread, role: str, names: Mapping[str, str], ranked: Any, left_out: Figures
) -> dict[str, Any]:
    """Who answered, how much of it, and when."""
    own = {key: unread("secondary", "models", role, key) for key in (
        "answers", "neutral_questions", "excluded", "asked", "served_models", "prompt_names",
    )}  # fmt: skip
    asked = own["asked"] or {}
    return {
        "role": role,
        "answers": plain(own["answers"]),
        "neutral_questions": plain(own["neutral_questions"]),
        "excluded": plain(own["excluded"] or None),
        "asked": " to ".join(day(asked[end]) for end in ("first", "last") if asked.get(end)),
        "served": plain(own["served_models"] or None),
        "prompt": plain([names.get(key, key) for key in own["prompt_names"] or ()]),
        "ranked": "" if role == "suspect" else left_out.get(role) or (
            "ranked" if role in (ranked or ()) else "not ranked"),
    }  # fmt: skip


def day(time: Any) -> str:
    """An ISO 8601 time to the minute, as it was given."""
    text = str(time)
    return text[:16].replace("T", " ") + (" UTC" if text.endswith(("Z", "+00:00")) else text[19:])


def _reached(lines: Mapping[str, Sequence[Any]]) -> list[Row]:
    """How each model was reached."""
    return [
        Row(str(line["role"]), f"{line['model']}, reached as {line['reached']}"
            + (f" at {line['endpoint']}" if line.get("endpoint") else ""))
        for line in lines.get("models", ())
    ]  # fmt: skip


# ---- what it said ----


def said(unread: Unread, plan: Figures, lines: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Language by language each question with every answer, and what was read in it."""
    names = {**_names(plan), plan["candidate"]["id"]: plan["candidate"]["name"]}
    heard: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in readings(plan, lines):
        heard.setdefault((row["role"], row["question"]), []).append(
            {"text": row["text"], "sample": row["sample"], "cut": row["finish_reason"] == "length",
             "tags": _tags(row, names)}
        )  # fmt: skip
    groups: dict[str, list[dict[str, Any]]] = {}
    for key, question in questions(plan["battery"]).items():
        counted, claimed = (
            unread("secondary", "questions", key, what) for what in ("answers", "claimed")
        )
        groups.setdefault(question["language"], []).append(
            {
                "kind": question["kind"], "text": question["text"],
                "counted": plain(counted or 0),
                "claimed": [f"{names.get(who, who)} in {plain(times)}"
                            for who, times in (claimed or {}).items()],
                "suspect": heard.get(("suspect", key), []),
                "controls": [{"role": role, "answers": heard[role, key]}
                             for role in plan["controls"] if (role, key) in heard],
            }
        )  # fmt: skip
    asked = plan["battery"]["questions"]
    return [{"name": asked[key]["name"], "questions": rows} for key, rows in groups.items()]


def _tags(row: Figures, names: Mapping[str, str]) -> list[str]:
    """What was read in an answer, in words."""
    if row["excluded"] is not None:
        return [f"not counted: {row['excluded']}"]
    tags: list[str] = []
    for key in row["named"]:
        name = names.get(key, key)
        if key not in row["claimed"]:
            tags.append(f"mentions {name}, negated or asked")
        elif key in row["instructed"]:
            tags.append(f"names {name}, which its prompt named")
        elif key in row["suggested"]:
            tags.append(f"names {name}, which the question named")
        else:
            tags.append(f"names {name}")
    return tags
