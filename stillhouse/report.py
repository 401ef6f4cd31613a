"""What a distillation says when it is done: `report.json` and `report.html`.

In: a run's figures. Out: the two files; all text of models is escaped. The fields of `report.json`
are listed in docs/evaluate.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from stillhouse.errors import DataError
from stillhouse.files import write_whole
from stillhouse.pages import markup, page_template, stylesheet

__all__ = ["render", "write_report"]


def write_report(run: Path, report: Mapping[str, Any]) -> tuple[Path, Path]:
    """Paths of `report.json` and `report.html` in the run's folder, both written whole or not at
    all.

    Raises:
        DataError: a figure that is no number, or a value that JSON has no form for.
    """
    try:
        text = json.dumps(report, ensure_ascii=False, indent=2, allow_nan=False)
    except (TypeError, ValueError) as problem:
        raise DataError(
            str(run / "report.json"), str(problem), "plain values and finite numbers",
            "Look at the stage whose figure it is",
        ) from None  # fmt: skip
    page = render(report)
    run.mkdir(parents=True, exist_ok=True)
    return write_whole(run / "report.json", text + "\n"), write_whole(run / "report.html", page)


def render(report: Mapping[str, Any]) -> str:
    """The page of a report, as HTML; sections whose figures are missing are left out."""
    template = resources.files("stillhouse").joinpath("report.html.jinja")
    return page_template(template.read_text("utf-8")).render(_view(report) | {"css": stylesheet()})


# ---- what the page shows ----

_MEASURES = (
    ("kl_nats", "KL(teacher ‖ student)", "nats", "nats; 0 is the teacher itself"),
    ("top1_agreement", "Same most likely token", "share", "share of answer tokens"),
    ("nll_nats", "NLL of the teacher's answers", "nats", "nats; beside it the teacher's own"),
    ("ece", "Calibration error", "ece", "of the top-1 token, 15 bins"),
)


def _view(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the template names, from the report's fields."""
    held_out = report.get("held_out") or {}
    speed, identity = report.get("speed"), report.get("identity")
    student, teacher = report.get("student") or {}, report.get("teacher") or {}
    sizes = student.get("parameters"), teacher.get("parameters")
    seconds = dict(report.get("seconds") or {})
    total = seconds.pop("total", None)
    return {
        "r": report,
        "finished": str(report.get("finished") or "")[:16].replace("T", " "),
        "student_name": student.get("name") or "The student",
        "teacher_name": teacher.get("name") or teacher.get("spec") or "its teacher",
        "before": held_out.get("before"),
        "after": held_out.get("after"),
        "gap": held_out.get("change"),
        "own": held_out.get("teacher"),
        "max_tokens": held_out.get("max_tokens"),
        "overlap": _overlap(held_out.get("overlap")),
        "measures": _MEASURES,
        "size_ratio": sizes[0] / sizes[1] if sizes[0] and sizes[1] else None,
        "speed": speed if speed and speed.get("ratio") else None,
        "identity": identity,
        "curves": _curves(report.get("curve") or [], held_out),
        "cautions": _cautions(report),
        "stages": list(seconds.items()),
        "longest": max([*seconds.values(), 1e-9]),
        "total": total,
        "layers": _layers(student),
        "provenance": _provenance(report),
    }


def _curves(curve: list[Mapping[str, Any]], held_out: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The curves that have at least two points."""
    from stillhouse.charts import curve_svg

    def points(column: str) -> int:
        return sum(point.get(column) is not None for point in curve)

    after = (held_out.get("after") or {}).get("top1_agreement")
    before = (held_out.get("before") or {}).get("top1_agreement")
    marks = {"held-out prompts, before": before, "held-out prompts, after": after}
    marks = {label: e["value"] for label, e in marks.items() if e}
    kept_out = points("validation_loss") > 1
    drawn: list[dict[str, Any]] = []
    if points("loss") > 1:
        svg = markup(curve_svg(curve, "loss", beside="validation_loss"))
        note = "nats a token" + ("; blue: on answers kept out of training" if kept_out else "")
        drawn.append({"title": "Loss", "note": note, "svg": svg})
    if points("agreement") > 1:
        svg = markup(curve_svg(curve, "agreement", share=True, marks=marks))
        note = f"share of tokens of {'kept-out' if kept_out else 'training'} answers"
        drawn.append({"title": "Same most likely token", "note": note, "svg": svg})
    return drawn


def _cautions(report: Mapping[str, Any]) -> list[str]:
    """What the figures do not say, each line true of this report."""
    held_out = report.get("held_out") or {}
    after, own = held_out.get("after"), held_out.get("teacher")
    lines = [
        "Closeness is to this teacher, on prompts like these. It is no evidence that either model "
        "is right, safe or useful, and none about other tasks, languages or longer answers.",
    ]
    if after:
        n = after["kl_nats"]["n"]
        lines += [
            f"The intervals cover the chance in which {n} prompts and which answers were drawn. "
            "They do not cover another training run: how far a second seed would land from this "
            "one was not measured.",
            f"Answers were read up to {held_out.get('max_tokens')} tokens; what the student does "
            "after that was not measured.",
        ]
        if n < _ENOUGH_PROMPTS:
            lines.append(f"{n} prompts are few: figures of {_ENOUGH_PROMPTS} or more are steadier.")
        change = (held_out.get("change") or {}).get("kl_nats")
        if change and change["low"] <= 0 <= change["high"]:
            lines.append(
                "No evidence found that training brought the student closer: the interval of the "
                f"change in KL, {change['low']:.3f} to {change['high']:.3f} nats, holds zero."
            )
        cut = "nothing cut" not in (held_out.get("sampling") or "nothing cut")
        if cut:
            lines.append(
                f"The teacher's answers were drawn at {held_out['sampling']}. Answers cut like "
                "this hold fewer unlikely tokens than answers from the whole distribution and are "
                "easier to agree on: figures under other settings are not comparable."
            )
        if own and cut:
            lines.append(
                f"The teacher's own calibration error is {own['ece']['value']:.3f} on answers cut "
                "like this: compare the student's with it, not with zero."
            )
        if own and not cut:
            lines.append(
                f"Calibration error never reaches zero on so few tokens: the teacher's own is "
                f"{own['ece']['value']:.3f} on its own samples, so less than that is noise."
            )
        if not (held_out.get("overlap") or {}).get("checked"):
            lines.append(
                "Whether held-out prompts occur among the training prompts was not checked."
            )
    if report.get("identity"):
        lines.append(
            "What a model says of itself depends on the wording: the shares hold for questions "
            "like those listed below, and are no evidence of what a model was trained on."
        )
    if report.get("speed"):
        lines.append("Speed is of this machine, engine and precision; others differ.")
    return lines


# The main job is judged on at least this many held-out prompts.
_ENOUGH_PROMPTS = 60


def _overlap(overlap: Mapping[str, Any] | None) -> str | None:
    if not overlap or not overlap.get("checked"):
        return None
    left_out = overlap.get("left_out") or []
    against = f"{overlap['training_prompts']:,} training prompts"
    if not left_out:
        return (
            f"None of the held-out prompts is among the {against} or nearly so "
            f"(similarity of {overlap['threshold']:g} or more)."
        )
    exact = sum(bool(pair.get("exact")) for pair in left_out)
    return (
        f"{len(left_out)} held-out prompts were left out: {exact} asked the same as one of the "
        f"{against}, {len(left_out) - exact} nearly so (similarity of {overlap['threshold']:g} "
        "or more)."
    )


def _layers(student: Mapping[str, Any]) -> list[dict[str, Any]]:
    kept, of = student.get("kept_layers"), student.get("teacher_layers")
    if not kept or not of:
        return []
    return [{"number": number, "kept": number in kept} for number in range(of)]


def _provenance(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of what the run was made from."""
    teacher, student = report.get("teacher") or {}, report.get("student") or {}
    terms = report.get("terms") or {}
    parts = [terms.get(k) for k in ("teacher", "status", "licence", "conditions", "authorised_by")]
    read = " ".join(str(terms[k]) for k in ("source", "date") if terms.get(k))
    rows: list[tuple[str, Any]] = [
        ("Teacher", teacher.get("spec")),
        ("Teacher's weights", teacher.get("hash")),
        ("Student's weights", student.get("hash")),
        ("Terms of the teacher", "; ".join([str(part) for part in parts if part])),
        ("Terms read at", read),
        ("Exchanges trained on", report.get("exchanges")),
        ("Training", report.get("training")),
        ("Seeds", _pairs(report.get("seeds"))),
        ("Versions", _pairs(report.get("versions"))),
        ("Inputs", _pairs(report.get("inputs"))),
        ("Machine", report.get("machine")),
    ]
    return [
        (name, f"{value:,}" if isinstance(value, int) else str(value))
        for name, value in rows
        if value not in (None, "", {}, [])
    ]


def _pairs(values: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name} {value}" for name, value in (values or {}).items())
