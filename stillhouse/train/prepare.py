"""What must be there before the first step: examples, their fingerprint, the first weights.

In: settings, the teacher's spec and a store. Out: `Prepared`. The first weights are kept as a
Hugging Face folder (`initial/`), so that a run that is continued starts from the same ones and
evaluation can tell what training added. The teacher is released before training begins.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stillhouse.config import StudentSettings, TrainSettings, fingerprint
from stillhouse.errors import ConfigError, DataError
from stillhouse.exchange import Exchange, Terms
from stillhouse.models.local_network import matmul_dtype
from stillhouse.progress import Progress
from stillhouse.terms import gate_exchanges
from stillhouse.train.batches import collate, pieces, split_validation
from stillhouse.train.checkpoint import write_atomically
from stillhouse.train.identity import IdentityRecord, identity_examples, teacher_name
from stillhouse.train.init import from_checkpoint, from_scratch, prune
from stillhouse.train.layers import precision
from stillhouse.train.packed import hidden_states, packing
from stillhouse.train.targets import Example, TargetsRecord, check_kind, make_examples

__all__ = ["Prepared", "prepare", "save_folder"]


@dataclass
class Prepared:
    """Everything the loop works on."""

    examples: list[Example]
    validation: list[Example]
    targets: TargetsRecord
    identity: IdentityRecord | None
    fingerprint: str
    initial: Path
    init: dict[str, Any]
    """The `InitRecord`, as plain values."""
    dtype: torch.dtype
    teacher_head: torch.Tensor | None = field(default=None, repr=False)
    """(V, D), for targets over the whole vocabulary."""
    terms: Terms | None = None
    """What the gate said of the teacher."""


def prepare(
    settings: TrainSettings,
    student: StudentSettings,
    teacher: str,
    store: Path,
    out: Path,
    runs: Path,
    progress: Progress,
    terms: Terms | None = None,
) -> Prepared:
    """Examples and first weights, read or made.

    `terms` is what the gate said of the teacher; the exchanges' own are held against it.

    Raises:
        ConfigError: settings that contradict one another.
        DataError: exchanges that cannot be trained on as asked.
        TermsError: exchanges that may not be trained on.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # progress is told through `progress` only
    check_kind(settings.targets, settings.target_source)
    dtype = matmul_dtype(settings.precision)
    progress.say(f"matrix products in {str(dtype).removeprefix('torch.')}")
    with _reader(settings, student, teacher, runs) as reader:
        examples, record = make_examples(
            _read(store, terms),
            reader,
            kind=settings.targets,
            source=settings.target_source,
            top_k=settings.top_k,
            context_tokens=reader.capabilities.context_tokens or 8192,
            progress=progress,
        )
        rows, identity = _identity(settings, student, teacher, reader, len(examples))
        training, validation = split_validation(
            examples, count=settings.validation_exchanges, seed=settings.seed
        )
        mark = _fingerprint(settings, student, teacher, examples, rows, dtype)
        initial, init = _initial(
            settings, student, reader, training, mark, out, dtype=dtype, progress=progress
        )
        head = None
        if settings.targets == "full":
            training = _with_states(reader.network, training, dtype, progress)
            validation = _with_states(reader.network, validation, dtype, progress)
            head = reader.network.get_output_embeddings().weight.detach().clone()
    return Prepared(
        training + rows, validation, record, identity, mark, initial, init, dtype, head, terms
    )


def _reader(settings: TrainSettings, student: StudentSettings, teacher: str, runs: Path) -> Any:
    """The local model that tokenises: the teacher, or the student's own checkpoint where the
    teacher need not be at hand.
    """
    from stillhouse.models import Need, open_model

    needed = settings.targets == "full" or settings.target_source == "teacher"
    own = student.init == "checkpoint" and not needed
    spec = f"hf:{student.checkpoint}" if own else teacher
    return open_model(spec, need=Need(scoring=True, full_logits=True), runs=runs)


def _read(store: Path, terms: Terms | None) -> list[Exchange]:
    from stillhouse.store import Store

    if not store.exists():
        raise DataError(
            str(store), "no store there", "a store of exchanges", "Collect first, or name another"
        )
    with Store(store, mode="r") as opened:
        exchanges = list(opened)
    if terms is not None:
        gate_exchanges(exchanges, terms)
    return exchanges


def _identity(
    settings: TrainSettings, student: StudentSettings, teacher: str, reader: Any, exchanges: int
) -> tuple[list[Example], IdentityRecord | None]:
    if not student.teach_identity or settings.identity_share == 0:
        return [], None
    rows = max(1, round(settings.identity_share * exchanges))
    return identity_examples(
        student.name, teacher_name(teacher), reader, rows=rows, seed=settings.seed
    )


# Settings that change how fast a run is or what is told of it, but not what it makes.
_FREE = {"checkpoint_seconds", "validation_points"}


def _fingerprint(
    settings: TrainSettings,
    student: StudentSettings,
    teacher: str,
    examples: Sequence[Example],
    rows: Sequence[Example],
    dtype: torch.dtype,
) -> str:
    """Hash of all that decides the final weights on one machine."""
    digest = hashlib.sha256()
    for example in (*examples, *rows):
        for column in (example.ids, example.top_ids, example.top):
            digest.update(b"-" if column is None else np.ascontiguousarray(column).tobytes())
    return fingerprint(
        settings.model_dump(mode="json", exclude=_FREE),
        student.model_dump(mode="json"),
        teacher,
        digest.hexdigest(),
        str(dtype),
        torch.__version__,
    )


def _initial(
    settings: TrainSettings,
    student: StudentSettings,
    reader: Any,
    examples: Sequence[Example],
    mark: str,
    out: Path,
    *,
    dtype: torch.dtype,
    progress: Progress,
) -> tuple[Path, dict[str, Any]]:
    """(folder of the first weights, what was measured), made once for a fingerprint."""
    folder, note = out / "initial", out / "checkpoint" / "initial.json"
    if folder.exists() and note.exists():
        kept = json.loads(note.read_text(encoding="utf-8"))
        if kept["fingerprint"] == mark:
            progress.say("first weights: kept from before")
            return folder, kept["init"]
    if student.init == "checkpoint":
        network, record = from_checkpoint(student.checkpoint)
        _same_vocabulary(network, reader, settings)
    elif student.init == "scratch":
        network, record = from_scratch(reader.network, student, settings.seed)
    else:
        network, record = prune(reader.network, examples, student, dtype=dtype, progress=progress)
    note.unlink(missing_ok=True)  # it vouches for the folder, so it goes first and comes last
    save_folder(network, reader.tokenizer, folder)
    note.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"fingerprint": mark, "init": record.to_dict()})
    write_atomically(note, lambda partial: partial.write_text(text, encoding="utf-8"))
    return folder, record.to_dict()


def _same_vocabulary(network: Any, reader: Any, settings: TrainSettings) -> None:
    """Refuse a checkpoint that soft targets cannot teach."""
    rows, tokens = network.get_input_embeddings().weight.shape[0], len(reader.tokenizer)
    if rows < tokens and settings.targets != "hard":
        raise ConfigError(
            "student.checkpoint", f"{rows} token embeddings", f"the tokenizer's {tokens} tokens",
            "Choose a checkpoint of the teacher's vocabulary, or train.targets=hard",
        )  # fmt: skip


def save_folder(network: Any, tokenizer: Any, folder: Path) -> None:
    """Write a Hugging Face folder (safetensors, configuration, tokenizer, chat template), whole or
    not at all; transformers loads it without any code of ours.
    """

    def write(partial: Path) -> None:
        partial.mkdir(parents=True)
        network.save_pretrained(str(partial))
        tokenizer.save_pretrained(str(partial))

    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        shutil.rmtree(folder)
    write_atomically(folder, write)


def _with_states(
    network: Any, examples: Sequence[Example], dtype: torch.dtype, progress: Progress
) -> list[Example]:
    """The examples with the teacher's last hidden states at their answer positions, as float16."""
    import dataclasses

    found: dict[str, Example] = {}
    progress.start("reading the teacher's hidden states", len(examples), "exchanges")
    with torch.no_grad(), precision(dtype), packing(network):
        for group in pieces(examples, max_tokens=4096):
            rows = hidden_states(network, collate(group)).float().numpy().astype(np.float16)
            ends = np.cumsum([e.answer_tokens for e in group])[:-1]
            for example, states in zip(group, np.split(rows, ends), strict=True):
                found[example.key] = dataclasses.replace(
                    example, states=states, top=None, top_ids=None
                )
            progress.advance(len(found))
    progress.finish()
    return [found[e.key] for e in examples]
