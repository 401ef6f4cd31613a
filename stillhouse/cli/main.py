"""The command line: `stillhouse VERB`. Commands are imported when they are run, so that `--help`
is instant.

In: arguments. Out: results on stdout, progress and errors on stderr, an exit code: 0 done, 1 a
defect of ours, 2 usage or configuration, 3 data, 4 model or network, 5 refused by terms, 130
interrupted. Only this file catches our errors.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal, get_args, get_origin

import cyclopts
from cyclopts.help import DefaultFormatter

from stillhouse import __version__
from stillhouse.cli.quick_help import quick_help
from stillhouse.errors import ConfigError, DataError, StillhouseError, nearest

__all__ = ["VERBS", "app", "main"]


class _Flowing(DefaultFormatter):
    """Help in which a docstring's lines flow, which else keep the source's indent; which does not
    say of a flag that it is off, or of a list that it is empty; and which does say of a list that
    it takes one value at a time.
    """

    def __call__(self, console: Any, options: Any, panel: Any) -> None:
        for entry in panel.entries:
            text = getattr(entry.description, "primary_renderable", None)
            if text is not None:
                text.plain = " ".join(text.plain.split())
                if entry.positive_names and (entry.metavar or "").endswith("..."):
                    entry.metavar = entry.metavar.removesuffix("...")
                    text.plain += " May be given repeatedly."
            if entry.default in ("()", "False"):
                entry.default = None
        super().__call__(console, options, panel)


app = cyclopts.App(
    name="stillhouse",
    help="Distil a student from a teacher whose terms allow it; find extraction campaigns in an "
    "API's logs; audit a suspect model for a teacher's answers.",
    version=__version__,
    help_formatter=_Flowing(),
    help_format="plaintext",  # loading a markdown renderer takes a tenth of `--help`
    help_epilogue="Every command takes --json (result on stdout) and --traceback (the stack behind "
    "an error message).",
    default_parameter=cyclopts.Parameter(negative=()),  # a flag is off, a list empty
)
_GROUPS = {
    "models": cyclopts.App(name="models", help="Manage the weights of embedded models."),
    "audit": cyclopts.App(name="audit", help="Test what a suspect was trained on."),
    "guard": cyclopts.App(name="guard", help="Find extraction campaigns in a provider's own logs."),
}
VERBS = (
    ("distill", "distill:distill",
     "Run a whole recipe: weights, answers, training, evaluation, report.\n\n"
     "Run again, it redoes nothing that is done; killed at any moment and run again, it goes on.",
     "examples/quickstart.yaml train.epochs=3 name=longer"),
    ("collect", "collect:collect",
     "Ask a teacher prompts, keep its answers and their log-probabilities.\n\n"
     "Run again, it asks only what the store does not hold; killed at any moment, no answer is "
     "lost. Give either --teacher, --prompts and --out, or a recipe and overrides.",
     "--teacher smollm2-135m --prompts prompts.jsonl --out answers"),
    ("train", "train:train",
     "Train the recipe's student on the exchanges collected.",
     "examples/quickstart.yaml"),
    ("evaluate", "evaluate:evaluate",
     "Measure how close the recipe's student came to its teacher.",
     "examples/quickstart.yaml"),
    ("report", "report:report",
     "Write a run's report.json and report.html again, and print it.",
     "quickstart"),
    ("chat", "chat:chat",
     "Talk to any model or finished run; an empty line or Ctrl-D ends it.",
     "run:quickstart"),
    ("models list", "models:list_models",
     "The models known by name, and whether their weights are in the cache.",
     ""),
    ("models pull", "models:pull",
     "Fetch a model's weights once; a broken download goes on where it stopped.",
     "smollm2-135m"),
    ("models show", "models:show",
     "Everything known about a model.",
     "smollm2-135m"),
    ("audit twin", "audit_twin:twin",
     "Test whether a suspect leans to the answers that were served, against their twins.",
     "--suspect hf:./model --exchanges served --twins escrow --out audit"),
    ("audit watermark", "audit_watermark:watermark",
     "Test whether a suspect prefers the tokens that a secret key made green.",
     "--suspect hf:./model --teacher smollm2-135m --key mark.key --prompts prompts.jsonl --out "
     "audit"),
    ("audit identity", "audit_identity:identity",
     "Ask a suspect and controls who they are, in twelve languages; a share is no error rate.",
     "--suspect hf:./model --candidate openai --control smollm2-135m --out identity"),
    ("audit change", "audit_identity:change",
     "Say what changed between two identity audits of the same suspect.",
     "identity-may identity-june"),
    ("audit verify", "audit_bundle:verify",
     "Recompute every number of a bundle from its raw lines; exit code 3 on any difference.\n\n"
     "Needs neither a model nor a network.",
     "audit"),
    ("audit redact", "audit_bundle:redact",
     "Copy a bundle with some raw lines shown by their hash only: its seal still holds.",
     "audit --out for-the-public --matching 'patient'"),
    ("audit reveal", "audit_bundle:reveal",
     "Show the coins of some exchanges, with the proofs that they were committed to.",
     "escrow served x1:0a1b2c..."),
    ("audit key", "audit_watermark:key",
     "Make a watermark's secret key, in a file that only its owner reads; prints its commitment.",
     "--out mark.key --teacher smollm2-135m"),
    ("guard scan", "guard:scan",
     "Find extraction campaigns across the accounts of some logs.",
     "logs/ --out scan --calibration benign.cal"),
    ("guard calibrate", "guard:calibrate",
     "Measure what benign traffic looks like, so that scans know their false alarms.",
     "benign-week/ --out benign.cal"),
    ("guard export", "guard:export",
     "Write a campaign's exchanges as a store, for `stillhouse audit twin`.",
     "scan c-51a34ec87e8c5799 --out exchanges"),
    ("guard simulate", "guard:simulate",
     "Write labelled logs of simulated traffic, to measure detection on. Contacts nobody.",
     "examples/guard/small.yaml --out range"),
    ("guard benchmark", "guard:benchmark",
     "Measure the detector on simulated logs, and print the table as JSON.",
     "--quick --work quick"),
)  # fmt: skip
"""Verb, where its function stands, what its docstring says (nothing is imported to read it), and an
example."""
for _verb, _target, _line, _example in VERBS:
    _group, _, _name = _verb.rpartition(" ")
    _GROUPS.get(_group, app).command(
        f"stillhouse.cli.{_target}", name=_name, help=_line,
        help_epilogue=f"Example: stillhouse {_verb} {_example}".rstrip(),
    )  # fmt: skip
for _app in _GROUPS.values():
    app.command(_app)


_EXTRAS = {
    "orjson": "guard", "sknetwork": "guard", "torch": "train", "transformers": "train",
    "safetensors": "train", "gguf": "train", "accelerate": "train", "sklearn": "dev",
}  # fmt: skip
"""Package -> the extra that installs it: a plain installation has none of them."""


_UNFIT_PATHS = (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
"""A file where a folder is meant, and the reverse: whoever named the path has to act, not we."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if "--traceback" in arguments:
        arguments.remove("--traceback")
        os.environ["STILLHOUSE_TRACEBACK"] = "1"
    asked_for_help = bool({"--help", "-h"} & set(arguments))
    try:
        with quick_help() if asked_for_help else nullcontext():
            app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except cyclopts.CycloptsError as error:
        _print_error(_of_usage(error), as_json="--json" in arguments)
        return 2
    except (StillhouseError, ModuleNotFoundError) as error:
        told = _without_extra(error) if isinstance(error, ModuleNotFoundError) else error
        if told is None or os.environ.get("STILLHOUSE_TRACEBACK"):
            raise
        _print_error(told, as_json="--json" in arguments)
        return told.exit_code
    except _UNFIT_PATHS as error:
        if error.filename is None or os.environ.get("STILLHOUSE_TRACEBACK"):
            raise
        told = DataError(
            os.fsdecode(error.filename), error.strerror or type(error).__name__,
            "a path that fits its option: a file or a folder, as its help says",
            "Correct the path or its permissions",
        )  # fmt: skip
        _print_error(told, as_json="--json" in arguments)
        return told.exit_code
    except KeyboardInterrupt:
        print("\nStopped. What was finished is kept; run the same command again.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `stillhouse ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


def _of_usage(error: cyclopts.CycloptsError) -> ConfigError:
    """What is wrong with a command line, in the four parts of our errors."""
    from pydantic import ValidationError

    from stillhouse.settings import expected_by

    command = " ".join(("stillhouse", *(error.command_chain or ())))
    look = f"See {command} --help"
    if isinstance(error.__cause__, ValidationError):
        first = error.__cause__.errors()[0]
        ours = first.get("ctx", {}).get("error")
        if isinstance(ours, ConfigError):  # of a check across several settings
            return ours
        option = "--" + str(first["loc"][0]).replace("_", "-")
        expected = expected_by(first["msg"])
        return ConfigError(f"{command}, {option}", repr(first["input"]), expected, look)
    argument = getattr(error, "argument", None)
    name = "" if argument is None else argument.name
    if argument is not None and argument.index is not None:
        name = name.lstrip("-").upper()
    if isinstance(error, cyclopts.MissingArgumentError) and name:
        return ConfigError(command, f"no {name}", f"a value for {name}", look)
    if isinstance(error, cyclopts.CoercionError) and name and error.token:
        found = repr(error.token.value)
        return ConfigError(f"{command}, {name}", found, _kind(error.target_type), look)
    if isinstance(error, cyclopts.ValidationError) and argument is not None:
        expected = error.exception_message.removeprefix("Must be ").rstrip(".")
        for sign, words in _SIGNS.items():
            expected = expected.replace(sign, words)
        found = ", ".join(repr(token.value) for token in argument.tokens)
        return ConfigError(f"{command}, {name}", found, expected, look)
    if isinstance(error, cyclopts.UnknownOptionError):
        return _unknown_option(error, command)
    if isinstance(error, cyclopts.UnusedCliTokensError):
        many = " ".join(error.unused_tokens or ())
        return ConfigError(
            command, f"'{many}' beside its arguments", "no more of them",
            f"If it was meant for an option, repeat the option for each value. {look}",
        )  # fmt: skip
    found, _, hint = " ".join(str(error).split()).partition(". ")
    meant = hint.partition("?")[0] + "?" if hint.startswith("Did you mean") else look
    return ConfigError(command, found, f"what `{command} --help` shows", meant)


_SIGNS = {
    ">=": "greater than or equal to", "<=": "less than or equal to",
    ">": "greater than", "<": "less than",
}  # fmt: skip
"""In cyclopts' bounds, and the words for them in pydantic's."""


def _kind(wanted: Any) -> str:
    """What a value has to be, in words."""
    if get_origin(wanted) is Literal:
        *others, last = [repr(choice) for choice in get_args(wanted)]
        return f"{', '.join(others)} or {last}"
    words = {int: "a whole number", float: "a number", bool: "no value, or true or false"}
    return words.get(wanted, str(getattr(wanted, "__name__", wanted)))


def _unknown_option(error: cyclopts.UnknownOptionError, command: str) -> ConfigError:
    """The option nearest by its own letters: the dashes, which all have, make none alike."""
    given = error.token.keyword or error.token.value
    known = [name.removeprefix("--") for one in error.argument_collection for name in one.names
             if name.startswith("--")]  # fmt: skip
    meant = re.sub(r"(^Known: |, )(?=\w)", r"\1--", nearest(given.lstrip("-"), known))
    meant = re.sub(r"'(.+)'", r"--\1", meant)
    return ConfigError(command, f"no option {given}", f"what `{command} --help` shows", meant)


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
        told = " ".join(str(error).split())  # one line, whoever said it
        if not told.isprintable():  # names out of files may hold what a terminal obeys
            from stillhouse.pages import visible

            told = visible(told)
        print("error:", told, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
