"""Settings of the twin test: what is fixed before anything is asked.

In: options of the command line. Out: a frozen model; each default is written here once.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stillhouse.config import Count, Settings
from stillhouse.exact import MOST_PAIRS

__all__ = ["TwinSettings"]


class TwinSettings(Settings):
    """What the twin test asks, of which exchanges, and at which level it speaks of evidence."""

    pairs: Annotated[int, Field(ge=1, le=MOST_PAIRS)] = 500
    """Exchanges tested, drawn at random from those that fit; all where there are fewer."""
    where: tuple[str, ...] = ()
    """Conditions on request fields: account=A, session=S, model=M, labels.NAME=V, after=DATE,
    before=DATE. Answers may not decide."""
    access: Literal["auto", "logprobs", "text"] = "auto"
    """How the suspect is asked: log-probabilities of given text where it gives them, or text."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Level at or below which a p-value is called evidence."""
    looks: Count = 1
    """Tests of this family, declared beforehand; the level is divided by it. Suspects given
    together are counted by themselves."""
    samples: Count = 4
    """Answers drawn from a suspect that gives text only, for each exchange."""
    prefix_tokens: Annotated[int, Field(ge=0)] = 16
    """Tokens of the served answer that a suspect with text only is given to continue; the twins
    continue the same. 0 asks the prompt alone. Only with --teacher: escrowed twins have none."""
    temperature: Annotated[float, Field(ge=0)] = 0.7
    """Of the answers drawn from a suspect that gives text only."""
    redact: tuple[str, ...] = ()
    """Regular expressions: what they match in prompts is masked, and pairs in which either answer
    matches are withheld, before anything is written or asked."""
    seed: int = 7
    """Of the draw of exchanges and of the suspect's answers. Twins have a seed of their own."""
