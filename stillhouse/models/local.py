"""Models in this process, through torch: answers, scores of given text, whole distributions.

In: a Hugging Face folder (a downloaded model, a de-quantised GGUF, a run's student), requests,
exchanges. Out: exchanges with the model's own log-probabilities, log-probabilities of given
answers, full next-token distributions. Plain Llamas on the CPU are computed by `local_llama.py`,
everything else by transformers. This file downloads only what `hf:` asks for by name.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import torch

from stillhouse.errors import CapabilityError, ModelError, TransportError
from stillhouse.exchange import Exchange, Logprobs, Message, Request, Response, Tool
from stillhouse.models import local_llama
from stillhouse.models.base import Capabilities, Failure, Need, Scored, leaves_tools_out, require
from stillhouse.models.local_draw import Shape, log_normaliser, most_likely, uniforms
from stillhouse.models.local_general import GeneralNetwork
from stillhouse.models.local_network import Answered, Network, matmul_dtype
from stillhouse.models.local_sampler import Finished, Job, Limits, sample
from stillhouse.models.local_text import ChatText
from stillhouse.models.local_watermark import make_mark
from stillhouse.watermark import Watermark

__all__ = ["LocalModel", "hub_folder"]

# Tokens read through at once when scoring: some 300 MB of activations, masks of at most 100 MB.
_SCORE_TOKENS = 4096
# Answers in one row do not see one another: attention computes those pairs of tokens, masked.
# So many, one token of each answer, take as long as reading a token again (measured with
# SmolLM2-135M: 1,200; more in wider models).
_MASKED_PAIRS = 1000
_PENALTIES = (("frequency_penalty", 0.0), ("presence_penalty", 0.0), ("repeat_penalty", 1.0))


def hub_folder(path_or_id: str) -> Path:
    """The folder `hf:PATH_OR_ID` names: a local one, or the hub's snapshot, fetched if need be.

    HF_HUB_OFFLINE is honoured: then only what is in the hub's cache already is found.

    Raises:
        TransportError: the hub cannot be reached, or does not have it.
    """
    if Path(path_or_id).expanduser().is_dir():
        return Path(path_or_id).expanduser()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(path_or_id, allow_patterns=wanted))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as problem:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise TransportError(
            f"model 'hf:{path_or_id}'",
            f"no such folder, and the model hub did not give it{offline}: {problem}",
            "a folder with config.json and safetensors weights, or an id the hub can be asked for",
            "Correct the path or id, or connect to the network",
        ) from problem


class LocalModel:
    """A `Model` (models/base.py) over a Hugging Face folder, float32 unless told otherwise."""

    def __init__(
        self,
        path: Path,
        *,
        spec: str,
        name: str | None = None,
        precision: Literal["auto", "float32", "bfloat16"] = "float32",
        limits: Limits | None = None,
        watermark: Watermark | None = None,
        synthid: Any = None,
    ) -> None:
        """Read the folder's configuration and tokenizer; weights are read when first needed.

        Args:
            path: the Hugging Face folder.
            spec: the spec it was opened by.
            name: what stands in `Exchange.model`; the spec unless given.
            precision: of the matrix products. bfloat16 is faster and moves log-probabilities by
                some hundredths of a nat; `Logprobs.engine` says which it was. 'auto' takes it where
                the processor has instructions for it.
            limits: how much may be in flight.
            watermark: a keyed green list that answers are marked with. Log-probabilities, recorded
                or scored, stay the model's own, before any mark; the label `watermark` of each
                exchange names the key by its commitment.
            synthid: a `transformers.SynthIDTextWatermarkingConfig`, to mark answers with instead.
                Slow where no top_k, top_p or min_p cuts: every key is hashed with every token.

        Raises:
            ConfigError: both marks, or one that does not fit the model.
            ModelError: the folder holds no causal language model that transformers can read.
        """
        self.spec, self.name = spec, name or spec
        self.folder = path
        self._dtype, self._limits = matmul_dtype(precision), limits or Limits()
        self._config = self._read_config()
        self.text = ChatText(path, spec)
        self.tokenizer: Any = self.text.tokenizer
        self._mark = make_mark(watermark, synthid, self.text.vocabulary_hash, f"model '{spec}'")
        self.capabilities = Capabilities(
            text=True,
            top_logprobs=self._config["vocab_size"],
            scoring=True,
            full_logits=True,
            context_tokens=self._config["max_position_embeddings"],
        )

    def _read_config(self) -> dict[str, Any]:
        """The language model's configuration with the few names used here, as transformers says."""
        from transformers.models.auto.configuration_auto import AutoConfig

        try:
            config = AutoConfig.from_pretrained(self.folder, local_files_only=True)
            text = config.get_text_config()
            names = ("vocab_size", "max_position_embeddings")
            return {name: int(getattr(text, name)) for name in names}
        except (OSError, ValueError, AttributeError) as problem:
            raise ModelError(
                f"model '{self.spec}'", f"{self.folder} cannot be read ({problem})",
                "a Hugging Face folder of a causal language model",
                "Correct the path; `stillhouse models list` shows what is at hand",
            ) from problem  # fmt: skip

    # ---- what it is made of ----

    @cached_property
    def network(self) -> Any:
        """The model as a transformers module in evaluation mode, loaded on first use."""
        from transformers.models.auto.modeling_auto import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()  # ours are the only ones on stderr
        return AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=self._dtype, local_files_only=True
        ).eval()

    @cached_property
    def engine(self) -> Network[Any]:
        """What answers and scores: the packed weights where they fit, else the module."""
        if torch.cuda.is_available() or not local_llama.fits(self.folder):
            module = self.network.to("cuda") if torch.cuda.is_available() else self.network
            return GeneralNetwork(module)
        try:
            return local_llama.PackedLlama(self.folder, self._dtype)
        except KeyError as problem:
            raise ModelError(
                f"model '{self.spec}'", f"{self.folder} lacks the tensor {problem}",
                "all tensors its config.json asks for", "Make or fetch the folder again",
            ) from problem  # fmt: skip

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """Prompt token ids by the model's chat template, generation prompt included."""
        return self.text.render(messages, tools)

    def answer_ids(self, exchange: Exchange) -> list[int]:
        """The answer's token ids, end of turn included where it ended (`ChatText.answer_ids`)."""
        return self.text.answer_ids(exchange)

    def prefix(self, exchange: Exchange, tokens: int) -> str | None:
        """The text of an answer's first tokens, to be continued (`ChatText.prefix`)."""
        return self.text.prefix(exchange, tokens)

    # ---- answering ----

    def answer(
        self, requests: Iterable[Request], *, top_logprobs: int = 0
    ) -> Iterator[Exchange | Failure]:
        """Exchanges as they finish, in any order; see `Model.answer`.

        Settings left open mean the model's own distribution: temperature 1, nothing truncated, as
        many tokens as the context holds.
        """
        require(self, Need(text=True, top_logprobs=top_logprobs))
        failures: deque[Failure] = deque()

        def jobs() -> Iterator[Job]:
            for request in requests:
                try:
                    yield self._job(request)
                except ModelError as problem:
                    failures.append(Failure(request, problem, retryable=False))

        for finished in sample(
            self.engine, jobs(), self.text.ends, top_logprobs, self._limits, self._mark
        ):
            while failures:
                yield failures.popleft()
            yield self._exchange(finished, top_logprobs)
        yield from failures

    def _job(self, request: Request) -> Job:
        sampling = request.sampling
        for setting, off in _PENALTIES:
            if getattr(sampling, setting) not in (None, off):
                raise CapabilityError(
                    f"model '{self.spec}'", f"{setting} = {getattr(sampling, setting)}",
                    f"{off}, which switches it off: models in this process have no penalties",
                    f"Set {setting} to {off}, or use the llamacpp engine",
                )  # fmt: skip
        prompt = self.render(request.prompt, request.tools)
        if request.tools and self.text.leaves_tools_out(request.prompt, prompt):
            raise leaves_tools_out(self.spec)
        left = self._config["max_position_embeddings"] - len(prompt)
        if left < 1:
            raise ModelError(
                f"model '{self.spec}'", f"a prompt of {len(prompt)} tokens",
                f"fewer than the context of {self._config['max_position_embeddings']}",
                "Shorten the prompt, or choose a model with a longer context",
            )  # fmt: skip
        room = left if sampling.max_tokens is None else min(left, max(1, sampling.max_tokens))
        return Job(
            prompt, room, Shape.of(sampling), uniforms(request, room),
            self.text.watch(sampling.stop or ()), request,
        )  # fmt: skip

    def _exchange(self, done: Finished, top: int) -> Exchange:
        request = done.job.about
        assert isinstance(request, Request)
        kept, text = self.text.cut(done.tokens.tolist(), request.sampling.stop or ())
        logprobs = Logprobs(
            tokenizer=self.text.vocabulary_hash,
            engine=self.engine.engine,
            token_ids=done.tokens[:kept],
            chosen=done.chosen[:kept],
            top_ids=done.top_ids[:kept] if top else None,
            top=done.top[:kept] if top else None,
        )
        return Exchange(
            time=datetime.now(UTC),
            model=self.name,
            served_model=self.name,
            prompt=request.prompt,
            tools=request.tools,
            response=Response(text=text),
            finish_reason=done.reason,
            sampling=request.sampling,
            input_tokens=len(done.job.prompt),
            output_tokens=len(done.tokens),
            logprobs=logprobs,
            terms=request.terms,
            labels={**request.labels, "watermark": self._mark.label}
            if self._mark
            else request.labels,
        )

    # ---- given text ----

    def score(
        self, exchanges: Sequence[Exchange], *, top_logprobs: int = 0
    ) -> Iterator[tuple[int, Logprobs]]:
        """(index, log-probabilities of the exchange's own answer), in any order.

        Raises ModelError when a prompt and answer together exceed the context.
        """
        require(self, Need(scoring=True, top_logprobs=top_logprobs))
        for index, ids, chunks in self._read(exchanges):
            rows: list[tuple[np.ndarray, ...]] = []
            for position, logits in chunks:
                values, best = most_likely(logits, max(1, top_logprobs))
                normaliser = log_normaliser(logits, values[:, :1])
                mine = torch.tensor(ids[position : position + len(logits)])[:, None]
                chosen = (logits.gather(1, mine).double() - normaliser)[:, 0]
                rows.append((chosen.numpy(), best.numpy(), (values.double() - normaliser).numpy()))
            columns = [np.concatenate(c) for c in zip(*rows, strict=True)] if rows else None
            yield (
                index,
                Logprobs(
                    tokenizer=self.text.vocabulary_hash,
                    engine=self.engine.engine,
                    token_ids=np.array(ids, np.int32),
                    chosen=columns[0] if columns else np.empty(0, np.float32),
                    top_ids=columns[1] if columns and top_logprobs else None,
                    top=columns[2] if columns and top_logprobs else None,
                ),
            )

    def distributions(self, exchanges: Sequence[Exchange]) -> Iterator[Scored]:
        """The whole distribution at each answer position, an exchange at a time, in any order."""
        for index, ids, chunks in self._read(exchanges):
            width = self.engine.vocabulary
            found = np.empty((len(ids), width), np.float32)
            for position, logits in chunks:
                found[position : position + len(logits)] = logits.log_softmax(-1).numpy()
            yield Scored(index, np.array(ids, np.int32), found)

    def _read(
        self, exchanges: Sequence[Exchange]
    ) -> Iterator[tuple[int, list[int], Iterator[tuple[int, torch.Tensor]]]]:
        """(index, answer ids, chunks of (answer position, logits)); a prompt is read once for its
        answers.
        """
        prompts = [self.render(exchange.prompt, exchange.tools) for exchange in exchanges]
        answers = [self.answer_ids(exchange) for exchange in exchanges]
        for exchange, prompt, answer in zip(exchanges, prompts, answers, strict=True):
            length = len(prompt) + len(answer)
            if length > self._config["max_position_embeddings"]:
                raise ModelError(
                    f"exchange {exchange.id}", f"{length} tokens, prompt and answer",
                    f"at most the context of {self._config['max_position_embeddings']}",
                    "Leave it out, or choose a model with a longer context",
                )  # fmt: skip
        yield from ((index, [], iter(())) for index, answer in enumerate(answers) if not answer)
        for rows in _together(prompts, answers):
            texts = [Answered(prompts[row[0]], [answers[i] for i in row]) for row in rows]
            coming = _Ahead(self.engine.logits(texts))
            for place, index in enumerate(index for row in rows for index in row):
                yield index, answers[index], coming.of(place)

    # ---- ending ----

    def close(self) -> None:
        """Let go of the weights."""
        for held in ("network", "engine"):
            self.__dict__.pop(held, None)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


def _together(
    prompts: Sequence[list[int]], answers: Sequence[list[int]]
) -> Iterator[list[list[int]]]:
    """Which exchanges are read through at once: rows of answers to the same prompt, in the order
    given, as long as that is cheaper than reading it again; rows of like width, the widest first.
    Empty answers are left out.
    """
    same: dict[tuple[int, ...], list[int]] = {}
    for index, answer in enumerate(answers):
        if answer:
            same.setdefault(tuple(prompts[index]), []).append(index)
    rows: list[list[int]] = []
    for prompt, asked in same.items():
        beside = 0  # answer tokens in the last row
        for index in asked:
            size = len(answers[index])
            cheap = beside * size <= _MASKED_PAIRS * len(prompt)
            if not beside or not cheap or len(prompt) + beside + size > _SCORE_TOKENS:
                rows.append([])
                beside = 0
            rows[-1].append(index)
            beside += size

    def width(row: list[int]) -> int:
        return len(prompts[row[0]]) + sum(len(answers[index]) for index in row)

    rows.sort(key=width)
    while rows:
        count = max(1, _SCORE_TOKENS // width(rows[-1]))
        yield rows[-count:]
        del rows[-count:]


class _Ahead:
    """Splits a stream of (answer, position, logits) by answer without holding it."""

    def __init__(self, chunks: Iterator[tuple[int, int, torch.Tensor]]) -> None:
        self._chunks = chunks
        self._next = next(chunks, None)

    def of(self, place: int) -> Iterator[tuple[int, torch.Tensor]]:
        """The chunks (position, logits) of one answer."""
        while self._next is not None and self._next[0] <= place:
            at, position, logits = self._next
            if at == place:  # chunks of an answer that the caller skipped are let go
                yield position, logits
            del logits
            self._next = next(self._chunks, None)
