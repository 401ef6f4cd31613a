"""`stillhouse chat MODEL_OR_RUN`: talk to any model or finished run."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from stillhouse.cli.terminal import Common, emit

if TYPE_CHECKING:  # at run time only inside of functions: `--help` does without numpy
    from stillhouse.exchange import Exchange, Message, Sampling
    from stillhouse.models.base import Model

__all__ = ["chat"]


def chat(
    model: str,
    *,
    message: str | None = None,
    system: str | None = None,
    temperature: Annotated[float, Parameter(validator=Number(gte=0))] = 0.7,
    max_tokens: Annotated[int, Parameter(validator=Number(gte=1))] = 256,
    seed: int | None = None,
    runs: Path = Path("runs"),
    common: Common = Common(),  # noqa: B008  (frozen)
) -> None:
    """Talk to any model or finished run; an empty line or Ctrl-D ends it.

    Parameters
    ----------
    model
        A model spec, or the name of a finished run.
    message
        Say this one thing, print the answer and end. Standard input that is no terminal is read so.
    system
        The system prompt to begin with. Without it none is sent.
    temperature
        Sampling temperature; 0 is greedy.
    max_tokens
        Answer tokens allowed.
    seed
        Random seed of the answers. Default: another each time.
    runs
        Where runs are kept.
    """
    from stillhouse.exchange import Sampling
    from stillhouse.models import open_model
    from stillhouse.models.base import Need

    spec = f"run:{model}" if (runs / model / "student").is_dir() else model
    history = (_text("system", system),) if system else ()
    base = Sampling(
        temperature=temperature,
        top_p=1.0,
        top_k=0,
        min_p=0.0,
        max_tokens=max_tokens,
        seed=time.time_ns() % 2**31 if seed is None else seed,
    )
    if message is None and not sys.stdin.isatty():
        message = sys.stdin.read().strip()
    with open_model(spec, need=Need(text=True), runs=runs) as opened:
        if message is not None:
            exchange = _ask(opened, (*history, _text("user", message)), base)
            answer = exchange.response.text or ""
            emit({"model": spec, "answer": answer}, [answer], as_json=common.json)
            return
        _talk(opened, history, base)


def _talk(model: Model, history: tuple[Message, ...], sampling: Sampling) -> None:
    """Turn by turn, until an empty line."""
    print(f"{model.name}: say something (an empty line ends it)", file=sys.stderr)
    while True:
        try:
            said = input("> ").strip()
        except EOFError:
            return
        if not said:
            return
        history = (*history, _text("user", said))
        answer = _ask(model, history, sampling).response.text or ""
        print(answer)
        history = (*history, _text("assistant", answer))


def _ask(model: Model, prompt: tuple[Message, ...], sampling: Sampling) -> Exchange:
    """The one answer, or the model's own error raised."""
    from stillhouse.exchange import Exchange, Request

    outcome = next(iter(model.answer([Request(prompt=prompt, sampling=sampling)])))
    if isinstance(outcome, Exchange):
        return outcome
    raise outcome.error


def _text(role: str, text: str) -> Message:
    from stillhouse.exchange import message

    return message(role, text)
