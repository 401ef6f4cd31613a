"""One row of log-probabilities for every token that llama.cpp sampled.

In: the server's detailed answer. Out: `Logprobs` columns. llama.cpp's server records no row for a
token after which the text ends inside a UTF-8 character (server-context.cpp, `process_token`);
which rows are missing follows from the bytes of the tokens, and is checked against the ids of those
that came. A missing row is asked for again: the model's distribution after the same prompt and
tokens, for which one token that ends a character is forced (a bias changes what is sampled, not the
log-probabilities of the model that are recorded).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stillhouse.errors import ModelError
from stillhouse.exchange import Logprobs
from stillhouse.models.chat import logprob_columns
from stillhouse.models.gguf_file import Vocabulary
from stillhouse.models.llamaserver import LlamaServer

__all__ = ["answer_columns", "complete_positions", "kept_tokens"]

_FORCE = 1000.0  # logit bias: far beyond any logit
_MORE = 2048  # alternatives asked for when the chosen token is not among the first


async def answer_columns(
    server: LlamaServer, words: Vocabulary, told: Mapping[str, Any], *, width: int, slot: int,
    engine: str,
) -> Logprobs:  # fmt: skip
    """The columns of an answer, (T,) chosen and (T, width) alternatives.

    Raises:
        ModelError: the server's rows are not those of its tokens.
    """
    try:
        tokens: list[int] = told["tokens"]
        prompt = told["prompt"]
        came = told.get("completion_probabilities", ())  # left out where no row is recorded
    except KeyError as problem:
        raise _unknown_form(f"no field {problem} in the answer", engine) from problem
    at = complete_positions(tokens, words.pieces)
    rows: dict[int, Mapping[str, Any]] = dict(zip(at, came, strict=False))
    cut = told.get("stop_type") == "word"  # a stop string's tokens lose their rows; how many varies
    if any(row["id"] != tokens[p] for p, row in rows.items()) or len(came) > len(at) or (
        len(came) < len(at) and not cut
    ):  # fmt: skip
        raise _unknown_form(f"{len(came)} rows for {len(tokens)} tokens, of other ids", engine)
    kept = kept_tokens(tokens, words.pieces, told["content"]) if cut else len(tokens)
    chosen: list[float] = []
    tops: list[list[tuple[int, float]]] = []
    for position in range(kept):
        if position in rows:
            row = rows[position]
            chosen.append(row["logprob"])
            tops.append([(top["id"], top["logprob"]) for top in row["top_logprobs"]])
            continue
        nats, top = await _ask_row(
            server, words, [prompt, *tokens[:position]], tokens[position], width, slot
        )
        chosen.append(nats)
        tops.append(top)
    return logprob_columns(
        chosen, tops, token_ids=tokens[:kept], tokenizer=words.hash, engine=engine
    )


async def _ask_row(
    server: LlamaServer, words: Vocabulary, prefix: list[str | int], token: int, width: int,
    slot: int,
) -> tuple[float, list[tuple[int, float]]]:  # fmt: skip
    """Log-probability of `token` after `prefix` in nats, and the first `width` alternatives."""
    vocabulary = len(words.tokens)
    for asked in (width, min(_MORE, vocabulary), vocabulary):
        body = {
            "prompt": prefix, "n_predict": 1, "n_probs": asked, "post_sampling_probs": False,
            "temperature": 0.0, "samplers": ["temperature"], "cache_prompt": True, "id_slot": slot,
            "logit_bias": [[_whole_character(words.pieces), _FORCE]],
        }  # fmt: skip
        answer = await server.call("/completion", body)
        (row,) = answer["completion_probabilities"]
        top = [(entry["id"], entry["logprob"]) for entry in row["top_logprobs"]]
        nats = dict(top).get(token)
        if nats is not None:
            return nats, top[:width]
    raise ModelError(
        str(server.gguf), f"token {token} has no log-probability among all {vocabulary}",
        "one for every token", "Report it with the model's name",
    )  # fmt: skip


def _whole_character(pieces: Sequence[bytes]) -> int:
    """Some token that is a whole ASCII letter or word."""
    return next(number for number, piece in enumerate(pieces) if piece.isalpha())


def complete_positions(tokens: Sequence[int], pieces: Sequence[bytes]) -> list[int]:
    """The positions after which the text so far does not end inside a UTF-8 character."""
    return [at for at, text in enumerate(_tails(tokens, pieces)) if not _ends_inside(text)]


def _tails(tokens: Sequence[int], pieces: Sequence[bytes]) -> Iterator[bytes]:
    """The last four bytes of the text after each token: as many as a character has at most."""
    tail = b""
    for token in tokens:
        tail = (tail + pieces[token])[-4:]
        yield tail


def _ends_inside(text: bytes) -> bool:
    """Whether a character that begins in the last four bytes lacks some of its own.

    As llama.cpp has it (`validate_utf8`): it looks at first bytes only, not at what follows them.
    """
    return any(
        back < size and byte & mask == first
        for back, byte in enumerate(reversed(text[-4:]), start=1)
        for size, mask, first in ((2, 0xE0, 0xC0), (3, 0xF0, 0xE0), (4, 0xF8, 0xF0))
    )


def kept_tokens(tokens: Sequence[int], pieces: Sequence[bytes], text: str) -> int:
    """How many tokens lie wholly within the text, which a stop string has cut."""
    room = len(text.encode())
    for count, token in enumerate(tokens):
        room -= len(pieces[token])
        if room < 0:
            return count
    return len(tokens)


def _unknown_form(found: str, engine: str) -> ModelError:
    return ModelError(
        engine, found, "the ids of all sampled tokens, and a row for each that ends a character",
        "Install a version of xllamacpp that Stillhouse was tested with (constraints.txt)",
    )  # fmt: skip
