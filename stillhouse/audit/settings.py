"""Settings of the audits: what is fixed before anything is asked.

In: options of the command line. Out: frozen models; each default is written here once. Nothing
heavy is imported, so that `--help` is instant.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stillhouse.settings import Count, Settings, Share

__all__ = ["FEWEST_SCORED", "IdentitySettings", "TwinSettings", "WatermarkSettings"]

_MOST_PAIRS = 2000  # what the exact test takes: `exact.MOST_PAIRS` (a test holds them equal)

FEWEST_SCORED = 100
"""Fewer pairs are refused: a student of nothing but marked text is hardly seen in them."""


class TwinSettings(Settings):
    """What the twin test asks, of which exchanges, and at which level it speaks of evidence."""

    pairs: Annotated[int, Field(ge=1, le=_MOST_PAIRS)] = 500
    """Exchanges tested, drawn at random from those that fit; all where there are fewer."""
    where: tuple[str, ...] = ()
    """Conditions on request fields: account=A, session=S, model=M, labels.NAME=V, after=DATE,
    before=DATE. Answers may not decide."""
    access: Literal["auto", "logprobs", "text"] = "auto"
    """How the suspect is asked: log-probabilities of given text where it gives them, or text."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Level at or below which a p-value is called evidence."""
    looks: Count = 1
    """How many tests were planned in advance. The level is divided by it, or by how many audits of
    the suspect were begun if those are more. Suspects given together count by themselves."""
    samples_per_prompt: Count = 4
    """Answers drawn for each prompt from a suspect that gives text only."""
    prefix_tokens: Annotated[int, Field(ge=0)] = 16
    """Tokens of the served answer that a suspect with text only is given to continue; the twins
    continue the same. 0 asks the prompt alone. Only with --teacher: escrowed twins have none."""
    temperature: Annotated[float, Field(ge=0)] = 0.7
    """Sampling temperature of the answers of a suspect that gives text only."""
    redact: tuple[str, ...] = ()
    """Regular expressions: what they match in prompts is masked, and pairs in which either answer
    matches are withheld, before anything is written or asked."""
    seed: int = 7
    """Random seed of the suspect's answers. It does not affect which exchanges are tested: that
    follows from the escrow or the store. Twins have one of their own."""


class WatermarkSettings(Settings):
    """What the watermark test asks and counts, and at which level it speaks of evidence."""

    mode: Literal["generation", "reading"] = "generation"
    """What is scored: the suspect's own answers to prompts, or its likeliest next tokens while it
    reads served text, which shows more and takes log-probabilities or logits."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Level at or below which a p-value is called evidence."""
    looks: Count = 1
    """How many tests were planned in advance; the level is divided by it."""
    token_pairs: Annotated[int, Field(ge=FEWEST_SCORED)] = 50_000
    """Distinct (window, token) pairs scored; the suspect is asked no more once they are reached."""
    known_windows: bool = False
    """Count only windows that occur in the served text: all that a student can have learned."""
    decoys: Annotated[int, Field(ge=99)] = 99
    """Innocent keys scored on the same pairs."""
    decoy_seed: int = 7
    """Public seed the decoy keys follow from."""
    samples_per_prompt: Count = 1
    """Answers drawn for each prompt, in generation mode."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Sampling temperature of the suspect's answers."""
    top_p: Share = 1.0
    """Nucleus mass of the suspect's answers; 1 keeps all."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Most likely tokens kept in the suspect's answers; 0 keeps all."""
    min_p: Share = 0.0
    """Floor relative to the likeliest token; 0 is none."""
    max_tokens: Count = 160
    """Answer tokens allowed."""
    seed: int = 7
    """Random seed of the suspect's answers."""


class IdentitySettings(Settings):
    """What an identity audit asks, how, and whose name it looks for."""

    candidate: str
    """Whose name is looked for: an identity of audit/battery.yaml (its key or name), or a new one
    with `names`."""
    names: tuple[str, ...] = ()
    """Names that count as the candidate's beside those in the table, in any case."""
    samples_per_prompt: Annotated[int, Field(ge=3)] = 3
    """Answers drawn for each question."""
    system: str | None = None
    """The system prompt sent with every question. Without it none is sent, and chat templates or
    providers may then add their own; an empty one ('') takes the place of a template's."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Sampling temperature of the answers."""
    top_p: Share = 1.0
    """Nucleus mass; 1 keeps all."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Most likely tokens kept; 0 keeps all."""
    min_p: Share = 0.0
    """Floor relative to the likeliest token; 0 is none."""
    max_tokens: Count = 160
    """Answer tokens allowed; models that reason before they answer need more."""
    concurrency: Count = 16
    """Requests in flight."""
    seed: int = 7
    """Random seed of the answers; each request's own is derived from it."""
