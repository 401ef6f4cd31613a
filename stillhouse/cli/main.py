"""The command line: `stillhouse VERB`. Commands are imported when they are run, so that `--help`
is instant.

In: arguments. Out: results on stdout, progress and errors on stderr, an exit code: 0 done, 1 a
defect of ours, 2 usage or configuration, 3 data, 4 model or network, 5 refused by terms, 130
interrupted. Only this file catches our errors.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

import cyclopts

from stillhouse import __version__
from stillhouse.errors import ConfigError, StillhouseError

__all__ = ["app", "main"]

app = cyclopts.App(
    name="stillhouse",
    help="Distil a student from a teacher whose terms allow it; find extraction campaigns in an "
    "API's logs; audit a suspect model for a teacher's answers.",
    version=__version__,
    help_format="plaintext",  # loading a markdown renderer takes a tenth of `--help`
    help_epilogue="Every command takes --json (result on stdout) and --traceback (our defects).",
)
for _name, _line in {
    "distill": "Run a whole recipe: weights, answers, training, evaluation, report.",
    "collect": "Ask a teacher prompts, keep its answers and their log-probabilities.",
    "train": "Train the recipe's student on the exchanges collected.",
    "evaluate": "Measure how close the recipe's student came to its teacher.",
    "report": "Write a run's report.json and report.html again, or print it.",
    "chat": "Talk to any model or finished run.",
}.items():
    app.command(f"stillhouse.cli.{_name}:{_name}", name=_name, help=_line)
models = cyclopts.App(name="models", help="Manage the weights of embedded models.")
models.command("stillhouse.cli.models:list_models", name="list", help="The models known by name.")
models.command("stillhouse.cli.models:pull", name="pull", help="Fetch a model's weights once.")
models.command("stillhouse.cli.models:show", name="show", help="Everything known about a model.")
app.command(models)
audit = cyclopts.App(name="audit", help="Test what a suspect was trained on; verify evidence.")
for _name, _target, _line in (
    ("twin", "audit_twin:twin", "Does a suspect lean to the answers that were served?"),
    ("watermark", "audit_watermark:watermark", "Does a suspect carry a served watermark?"),
    ("identity", "audit_identity:identity", "Who does a suspect say it is, beside controls?"),
    ("change", "audit_identity:change", "What changed between two identity audits?"),
    ("verify", "audit_bundle:verify", "Recompute every number of a bundle from its raw lines."),
    ("redact", "audit_bundle:redact", "Copy a bundle with some raw lines withheld."),
    ("reveal", "audit_bundle:reveal", "Show the coins of some escrowed pairs."),
    ("key", "audit_watermark:key", "Make a watermark's secret key."),
):
    audit.command(f"stillhouse.cli.{_target}", name=_name, help=_line)
app.command(audit)
guard = cyclopts.App(name="guard", help="Find extraction campaigns in a provider's own logs.")
for _name, _line in {
    "scan": "Find campaigns across the accounts of some logs.",
    "calibrate": "Measure what benign traffic looks like, so that false alarms are known.",
    "export": "Write a campaign's exchanges as a store, for an audit.",
    "simulate": "Write labelled logs of simulated traffic.",
    "benchmark": "Measure the detector on simulated logs.",
}.items():
    guard.command(f"stillhouse.cli.guard:{_name}", name=_name, help=_line)
app.command(guard)


_EXTRAS = {
    "orjson": "guard", "sknetwork": "guard", "torch": "train", "transformers": "train",
    "safetensors": "train", "gguf": "train", "accelerate": "train", "sklearn": "dev",
}  # fmt: skip
"""Package -> the extra that installs it: a plain installation has none of them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if "--traceback" in arguments:
        arguments.remove("--traceback")
        os.environ["STILLHOUSE_TRACEBACK"] = "1"
    try:
        app(arguments, exit_on_error=False, print_error=True, result_action="return_value")
    except cyclopts.CycloptsError:
        return 2  # cyclopts has printed what was wrong with the usage
    except (StillhouseError, ModuleNotFoundError) as error:
        told = _without_extra(error) if isinstance(error, ModuleNotFoundError) else error
        if told is None or os.environ.get("STILLHOUSE_TRACEBACK"):
            raise
        _print_error(told, as_json="--json" in arguments)
        return told.exit_code
    except KeyboardInterrupt:
        print("\nStopped. What was done is kept; run the same command to go on.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `stillhouse ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


def _without_extra(missing: ModuleNotFoundError) -> ConfigError | None:
    """What to install for a package that is not there; None where it is no extra's."""
    package = (missing.name or "").partition(".")[0]
    extra = _EXTRAS.get(package)
    if extra is None:
        return None
    return ConfigError(
        "this command", f"package '{package}' cannot be imported",
        f"the packages of the extra '{extra}'", f"Install them: pip install 'stillhouse[{extra}]'",
    )  # fmt: skip


def _print_error(error: StillhouseError, *, as_json: bool) -> None:
    """One line for people, one object for programs."""
    if as_json:
        parts = {
            "kind": type(error).__name__,
            "exit_code": error.exit_code,
            "where": error.where,
            "found": error.found,
            "expected": error.expected,
            "todo": error.todo,
        }
        print(json.dumps({"error": parts}, ensure_ascii=False), file=sys.stderr)
    else:
        print(f"error: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
