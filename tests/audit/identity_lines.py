"""Plans and raw lines of identity audits, as `identity_audit.py` writes them, without a model."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from stillhouse.audit.claims import questions
from stillhouse.audit.identity_audit import identity_plan
from stillhouse.audit.settings import IdentitySettings

Says = Callable[[str, Mapping[str, str], int], str | None]
"""(question's id, question, sample) -> answer; None leaves the question unasked."""


def plan_with(controls: int = 0, **settings: Any) -> dict[str, Any]:
    asked = IdentitySettings(**{"candidate": "openai", **settings})
    names = [f"control {number}" for number in range(controls)]
    return identity_plan(asked, suspect="Vat", controls=names)


def always(text: str) -> Says:
    return lambda key, question, sample: text


def lines_of(
    plan: Mapping[str, Any], says: Mapping[str, Says], *, day: int = 1, served: str | None = "m",
    prompt: Mapping[str, str] | None = None, **changes: Any,
) -> dict[str, list[dict[str, Any]]]:  # fmt: skip
    """`answers` and `models` of what each role says; controls that are not named say nothing of
    themselves.
    """
    began = datetime(2026, 11, day, 9, tzinfo=UTC)
    answers: list[dict[str, Any]] = []
    for role in ("suspect", *plan["controls"]):
        own = says.get(role, always("I am an assistant."))
        for key, question in questions(plan["battery"]).items():
            for sample in range(plan["samples"]):
                text = own(key, question, sample)
                if text is not None:
                    answers.append(
                        {
                            "role": role, "question": key, "language": question["language"],
                            "kind": question["kind"], "sample": sample,
                            "time": (began + timedelta(seconds=len(answers))).isoformat(),
                            "served_model": served, "system": plan["system"], "text": text,
                            "finish_reason": "stop", **changes,
                        }
                    )  # fmt: skip
    models = [
        {"role": role, "model": role, "reached": "hf", "endpoint": None, "prompt": text,
         "prompt_is": "rendered", "time": began.isoformat()}
        for role, text in (prompt or {}).items()
    ]  # fmt: skip
    return {"answers": answers, "models": models}
