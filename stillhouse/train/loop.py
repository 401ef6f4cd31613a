"""The loop: steps of AdamW on batches of examples, from the first weights to a student folder.

In: settings, the teacher's spec, a store. Out: `out/student/` (a Hugging Face folder),
`out/initial/` (the student before training) and `out/train.json` (the curve and how everything came
about). Work is counted in steps, never in seconds, and every choice depends on content and seed
only: on one machine the same exchanges give bitwise the same student, also when the run is killed
and continued any number of times. Nothing is printed; `progress` is told.

A step is the sum of `_piece` over the pieces of its batch, each divided by the batch's own number
of answer tokens, so several devices would each take some pieces and add their gradients.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillhouse.config import StudentSettings, TrainSettings
from stillhouse.errors import DataError
from stillhouse.memory import give_back_memory
from stillhouse.progress import Progress, Silent
from stillhouse.terms import gate
from stillhouse.train import checkpoint as checkpoints
from stillhouse.train.batches import Batch, collate, pieces, plan
from stillhouse.train.layers import precision
from stillhouse.train.losses import Hidden, TopK, head_loss
from stillhouse.train.packed import hidden_states, read_packed
from stillhouse.train.prepare import Prepared, prepare, save_folder

__all__ = ["TrainReport", "train"]


@dataclass
class TrainReport:
    """What training did; `train.json`."""

    student: str
    """Folder of the student."""
    steps: int = 0
    seconds: float = 0.0
    """In the steps themselves, over all the times the run was continued."""
    tokens_per_second: float = 0.0
    """Answer tokens trained on, a second of those."""
    curve: list[dict[str, float]] = field(default_factory=list)
    """{step, seconds, tokens, loss, agreement} on the exchanges kept apart; tokens are answer
    tokens trained on so far, loss is in nats a token.
    """
    losses: list[float] = field(default_factory=list)
    """Training loss of every step, nats a token."""
    record: dict[str, Any] = field(default_factory=dict)
    """Targets, identity, first weights, precision, versions, fingerprint."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dict(vars(self))


def train(
    settings: TrainSettings,
    *,
    student: StudentSettings,
    teacher: str,
    store: Path,
    out: Path,
    runs: Path = Path("runs"),
    authorisation: Path | None = None,
    progress: Progress | None = None,
) -> TrainReport:
    """Train a student on a store's exchanges; continues where an earlier call was stopped.

    Args:
        settings: how.
        student: what.
        teacher: model spec of the teacher whose exchanges these are.
        store: folder of exchanges.
        out: the run's folder.
        runs: where `run:NAME` is looked up.
        authorisation: a file that says who allows a use the terms do not (docs/terms.md).
        progress: told of stages, figures and decisions.

    Raises:
        TermsError: the teacher's terms, or those recorded with an exchange, do not permit it.
        ConfigError: settings that contradict one another.
        DataError: exchanges, a checkpoint or a disk that training cannot work with.
    """
    progress = progress or Silent()
    terms = gate(teacher, authorisation=authorisation, runs=runs)
    ready = prepare(settings, student, teacher, store, out, runs, progress, terms)
    done = _finished(out, ready.fingerprint)
    if done is not None:
        progress.say("student: trained before")
        return done
    give_back_memory()
    run = _Run(settings, ready, out)
    run.resume(progress)
    run.steps(progress)
    return run.finish()


def _finished(out: Path, mark: str) -> TrainReport | None:
    """The report of a run that was finished before, if it is this one."""
    path = out / "train.json"
    if not path.exists() or not (out / "student" / "config.json").exists():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    return TrainReport(**kept) if kept["record"].get("fingerprint") == mark else None


class _Run:
    """Network, optimiser and place in the plan."""

    def __init__(self, settings: TrainSettings, ready: Prepared, out: Path) -> None:
        from transformers.models.auto.modeling_auto import AutoModelForCausalLM
        from transformers.models.auto.tokenization_auto import AutoTokenizer

        self.settings, self.ready, self.out = settings, ready, out
        folder = str(ready.initial)
        self.network: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        read_packed(self.network)
        self.network.train()
        self.names = _trainable(self.network, settings.train_embeddings)
        self.optimiser = _optimiser(self.network, self.names, settings)
        self.plan = plan(
            ready.examples, epochs=settings.epochs, batch_tokens=settings.batch_tokens,
            seed=settings.seed,
        )  # fmt: skip
        self.report = TrainReport(student=str(out / "student"))
        self.tokens = 0
        self.path = out / "checkpoint" / "state.safetensors"

    # ---- place in the plan ----

    def resume(self, progress: Progress) -> None:
        """Go to the last checkpoint, if there is one."""
        found = checkpoints.load(self.path, self.ready.fingerprint)
        if found is None:
            return
        self.network.load_state_dict(
            {n: t for n, t in found.tensors.items() if not n.startswith("adam.")}, strict=False
        )
        checkpoints.restore_optimiser(self.optimiser, self.names, found.tensors)
        self.report = TrainReport(**found.plain["report"])
        self.tokens = found.plain["tokens"]
        progress.say(f"continuing after step {found.step} of {len(self.plan)}")

    def save(self) -> None:
        """Write a checkpoint of this moment."""
        weights = {
            name: p.detach() for name, p in self.network.named_parameters() if p.requires_grad
        }
        moments = checkpoints.optimiser_tensors(self.optimiser, self.names)
        plain = {"report": self.report.to_dict(), "tokens": self.tokens}
        checkpoints.save(
            self.path,
            checkpoints.Checkpoint(
                self.report.steps, self.ready.fingerprint, {**weights, **moments}, plain
            ),
        )

    def steps(self, progress: Progress) -> None:
        """Every step that is left, with its checkpoints and points of the curve."""
        total = len(self.plan)
        every = max(1, math.ceil(total / self.settings.validation_points))
        progress.start("training the student", total, "steps")
        if self.report.steps == 0:
            self._point()
        saved = time.monotonic()
        while self.report.steps < total:
            loss = self._step(self.plan[self.report.steps])
            if self.report.steps % every == 0 or self.report.steps == total:
                self._point()
            pace = self.report.seconds / self.report.steps
            left = pace * (total - self.report.steps)
            rate = self.tokens / self.report.seconds
            note = f"loss {loss:.2f} nats, {rate:.0f} answer tokens/s"
            progress.advance(self.report.steps, note, left)
            due = time.monotonic() - saved >= self.settings.checkpoint_seconds
            if due and self.report.steps < total:
                self.save()
                saved = time.monotonic()
        progress.finish(self._summary())

    # ---- one step ----

    def _step(self, indices: list[int]) -> float:
        """Loss in nats a token; weights and place move on."""
        began = time.monotonic()
        examples = [self.ready.examples[i] for i in indices]
        count = sum(e.answer_tokens for e in examples)
        loss = 0.0
        for piece in pieces(examples, max_tokens=self.settings.piece_tokens):
            part = self._piece(collate(piece, self.ready.teacher_head), count)
            part.backward()
            loss += float(part.detach())
        if not math.isfinite(loss):
            raise DataError(
                f"training, step {self.report.steps + 1}", f"a loss of {loss}", "a finite number",
                "Lower train.learning_rate, or look for log-probabilities that are no numbers",
            )  # fmt: skip
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip_norm)
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.learning_rate * _schedule(
                self.report.steps, len(self.plan), self.settings.warmup_steps
            )
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.report.steps % _TRIM_STEPS == 0:
            give_back_memory()
        self.tokens += count
        self.report.steps += 1
        self.report.losses.append(round(loss, 5))
        self.report.seconds += time.monotonic() - began
        return loss

    def _hidden(self, batch: Batch) -> Tensor:
        """(T, D) the student's last hidden states where answers are predicted."""
        with precision(self.ready.dtype):
            return hidden_states(self.network, batch)

    def _piece(self, batch: Batch, count: float) -> Tensor:
        """The loss of one piece of a batch whose answer tokens number `count`."""
        hidden = self._hidden(batch)
        head = self.network.get_output_embeddings().weight
        losses = [
            head_loss(hidden[rows], head, targets, count=count, dtype=self.ready.dtype)
            for rows, targets in batch.groups
        ]
        return torch.stack(losses).sum()

    # ---- the curve ----

    def _point(self) -> None:
        """One point of the curve, on the exchanges kept apart."""
        if not self.ready.validation:
            return
        loss, agreed, tokens = 0.0, 0, sum(e.answer_tokens for e in self.ready.validation)
        with torch.no_grad():
            for piece in pieces(self.ready.validation, max_tokens=self.settings.piece_tokens):
                batch = collate(piece, self.ready.teacher_head)
                loss += float(self._piece(batch, tokens))
                agreed += self._agreed(batch)
        self.report.curve.append(
            {
                "step": self.report.steps,
                "seconds": round(self.report.seconds, 1),
                "tokens": self.tokens,
                "loss": round(loss, 4),
                "agreement": round(agreed / tokens, 4),
            }
        )

    def _agreed(self, batch: Batch) -> int:
        """Positions where the student's likeliest token is the target's likeliest."""
        head = self.network.get_output_embeddings().weight
        hidden = self._hidden(batch)
        wanted = batch.token_ids.clone()
        for rows, targets in batch.groups:
            if isinstance(targets, TopK):
                wanted[rows] = targets.ids[:, 0].long()
            elif isinstance(targets, Hidden):
                wanted[rows] = _likeliest(targets.states, targets.head, self.ready.dtype)
        return int((_likeliest(hidden, head, self.ready.dtype) == wanted).sum())

    def _summary(self) -> str:
        point = self.report.curve[-1] if self.report.curve else None
        last = f"loss {self.report.losses[-1]:.2f} nats" if self.report.losses else ""
        return f"{last}, agreement {point['agreement']:.3f}" if point else last

    # ---- the end ----

    def finish(self) -> TrainReport:
        """Write the student and `train.json`, then drop what only a continued run needs."""
        report = self.report
        rate = self.tokens / report.seconds if report.seconds else 0.0
        report.tokens_per_second = round(rate, 1)
        report.seconds = round(report.seconds, 1)
        ready = self.ready
        report.record = {
            "fingerprint": ready.fingerprint,
            "precision": str(ready.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "trained_parameters": sum(
                p.numel() for p in self.network.parameters() if p.requires_grad
            ),
            "answer_tokens": self.tokens,
            "targets": ready.targets.to_dict(),
            "identity": ready.identity.to_dict() if ready.identity else None,
            "init": ready.init,
            "terms": asdict(ready.terms) if ready.terms else None,
        }
        save_folder(self.network.eval(), self.tokenizer, self.out / "student")
        text = json.dumps(report.to_dict(), indent=1)
        checkpoints.write_atomically(
            self.out / "train.json", lambda partial: partial.write_text(text, encoding="utf-8")
        )
        self.path.unlink(missing_ok=True)
        return report


# Batches of many shapes leave the C library's heap full of holes: 5.4 GB of it after 68 steps, for
# 3.2 GB in use (docs/lab-notes.md). Fetching returned pages again takes a second.
_TRIM_STEPS = 8


def _schedule(step: int, steps: int, warmup: int) -> float:
    """Share of the peak learning rate in step `step` (from 0): up in `warmup` steps, then linearly
    down; the last step is not 0, or it would do nothing.
    """
    if step < warmup:
        return (step + 1) / warmup
    return (steps - step) / max(1, steps - warmup)


def _trainable(network: Any, embeddings: bool) -> dict[int, str]:
    """Names of the trained parameters by identity; the others are frozen."""
    frozen = set()
    if not embeddings:
        for module in (network.get_input_embeddings(), network.get_output_embeddings()):
            frozen.add(id(module.weight))
    names: dict[int, str] = {}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(id(parameter) not in frozen)
        if parameter.requires_grad:
            names[id(parameter)] = name
    return names


def _optimiser(network: Any, names: dict[int, str], settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW in one pass over all parameters; weight decay on matrices only."""
    trained = [p for p in network.parameters() if id(p) in names]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=settings.learning_rate, betas=(0.9, settings.beta2), fused=True
    )


def _likeliest(hidden: Tensor, head: Tensor, dtype: torch.dtype) -> Tensor:
    """(T,) the most likely token at each position, a few hundred positions at a time."""
    weight = head.detach().to(dtype)
    return torch.cat([(h.to(dtype) @ weight.T).argmax(dim=-1) for h in hidden.split(256)])
