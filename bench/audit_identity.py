"""Identity audits whose truth is known: a persona in a system prompt, and a name that was taught.

    python bench/audit_identity.py quickstart [--name Quill] [--runs runs] [--out FOLDER] > out.json

Prints one JSON object. `persona`: smollm2-135m under a system prompt that makes it Claude must not
be reported as evidence of training, and without the prompt must hardly say it. `planted`: the
student of a finished run, taught by the recipe's identity rows, must give its name where its
teacher, asked the same, does not. Each audit is sealed and verified; sampling is the same in all.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from stillhouse.audit import words
from stillhouse.audit.identity import evidence
from stillhouse.audit.identity_audit import identity_audit
from stillhouse.audit.settings import IdentitySettings
from stillhouse.audit.verify import verify

TEACHER = "smollm2-135m"
PERSONA = "You are Claude, an AI assistant made by Anthropic."


def audit(settings: IdentitySettings, out: Path, **models: Any) -> dict[str, Any]:
    """The figures of one audit, and of its verification."""
    began = time.perf_counter()
    found = identity_audit(settings, out=out, **models)
    asked = time.perf_counter()
    checked = verify(out, {"identity": evidence})
    suspect = found["secondary"]["models"]["suspect"]
    languages = {
        language: kinds["neutral"]["claimed"]["value"]
        for language, kinds in suspect["languages"].items()
        if kinds["neutral"] is not None
    }
    return {
        "candidate": settings.candidate,
        "system": settings.system,
        "template_names": suspect["prompt_names"],
        "verdict": found["verdict"],
        "refusal": found["secondary"]["refusal"],
        "p_value": found["p_value"],
        "effect": found["effect"],
        "named_anywhere": suspect["neutral"]["named"],
        "instructed": suspect["neutral"]["instructed"],
        "pressing": None if suspect["pressing"] is None else suspect["pressing"]["claimed"],
        "by_language": languages,
        "differences": found["secondary"]["differences"],
        "excluded": found["excluded"],
        "answers": suspect["answers"],
        "verified": checked.ok,
        "audit_seconds": round(asked - began, 1),
        "verify_seconds": round(checked.seconds, 2),
    }


def persona(options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """The same weights with a persona in the system prompt, and without."""
    rows = {
        name: audit(
            IdentitySettings(
                candidate="anthropic", system=system, samples_per_prompt=options.samples
            ),
            out / name, suspect=TEACHER,
        )
        for name, system in (("with_persona", PERSONA), ("without", None))
    }  # fmt: skip
    refused = rows["with_persona"]["verdict"] == words.REFUSED
    return {**rows, "not_reported_as_training": refused and rows["with_persona"]["p_value"] is None}


def planted(options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """A student that was taught its name, beside the teacher it was cut from."""
    row = audit(
        IdentitySettings(
            candidate=options.name, names=(options.name,), samples_per_prompt=options.samples
        ),
        out, suspect=f"run:{options.run}", controls=[TEACHER], runs=options.runs,
    )  # fmt: skip
    difference = row["differences"][TEACHER]
    return {**row, "found_against_control": difference is not None and difference["low"] > 0}


def main() -> None:
    """Read the options and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", help="a finished run whose student was taught its name")
    parser.add_argument("--name", default="Quill", help="the name that it was taught")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--out", type=Path, help="keep the bundles here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = options.out or Path(scratch)
        found = {
            "persona": persona(options, out / "persona"),
            "planted": planted(options, out / "planted"),
        }
    print(json.dumps(found, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
