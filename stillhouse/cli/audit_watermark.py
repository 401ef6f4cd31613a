"""`stillhouse audit watermark` and `audit key`: does a suspect carry a mark that was served?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from stillhouse.audit.settings import WatermarkSettings
from stillhouse.cli.audit_bundle import told
from stillhouse.cli.terminal import Common, all_given, emit, make_progress
from stillhouse.errors import ConfigError
from stillhouse.progress import Progress

__all__ = ["key", "watermark"]

_DEFAULTS = WatermarkSettings.defaults()


def watermark(
    *,
    suspect: str | None = None,
    teacher: str | None = None,
    key: Path | None = None,
    prompts: tuple[Path, ...] = (),
    served: Path | None = None,
    out: Path | None = None,
    runs: Path = Path("runs"),
    settings: Annotated[WatermarkSettings, Parameter(name="*")] = _DEFAULTS,
    common: Common = Common(),  # noqa: B008  (frozen)
) -> None:
    """Test whether a suspect prefers the tokens that a secret key made green.

    Parameters
    ----------
    suspect
        Model spec: smollm2-135m, gguf:PATH, hf:PATH_OR_ID, run:NAME, http://host:port/v1#MODEL.
    teacher
        Model spec whose vocabulary the key marks.
    key
        The key that answers were served under.
    prompts
        Prompt files or folders of them, for the suspect to answer in generation mode.
    served
        The store of answers served under the key, best those that the suspect's makers were given
        (`guard export`): read in reading mode, or with known windows.
    out
        Folder of the bundle.
    runs
        Where runs are kept.
    """
    given = {"--suspect": suspect, "--teacher": teacher, "--key": key, "--out": out}
    if settings.mode == "generation":
        given["--prompts"] = prompts
    if settings.mode == "reading" or settings.known_windows:
        given["--served"] = served
    all_given(
        "audit watermark", given,
        "--suspect SPEC --teacher SPEC --key FILE --out DIR and --prompts FILE or --served STORE",
    )  # fmt: skip
    assert suspect is not None
    assert teacher is not None
    assert key is not None
    assert out is not None
    progress = make_progress(quiet=common.quiet)
    found = _audit(settings, suspect, teacher, key, prompts, served, out, runs, progress)
    emit({**found, "out": str(out)}, told(found, out), as_json=common.json)


def _audit(
    settings: WatermarkSettings,
    suspect: str,
    teacher: str,
    key: Path,
    prompts: tuple[Path, ...],
    served: Path | None,
    out: Path,
    runs: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Open what is named, and test."""
    from stillhouse.audit.watermark_audit import Vocabulary, watermark_audit
    from stillhouse.models import Need, open_model
    from stillhouse.prompts import read_prompts
    from stillhouse.store import Store
    from stillhouse.watermark import read_key

    mark = read_key(key)
    asked = read_prompts(prompts).prompts if prompts else ()
    exchanges = []
    if served is not None:
        with Store(served, "r") as store:
            exchanges = list(store)
    vocabulary = Vocabulary.of(_text_of(teacher, runs, progress))
    reading = settings.mode == "reading"
    need = Need(scoring=reading, top_logprobs=int(reading), text=not reading)
    with open_model(suspect, need=need, runs=runs, progress=progress) as model:
        return watermark_audit(
            settings, suspect=model, watermark=mark, vocabulary=vocabulary, out=out,
            prompts=asked, served=exchanges, progress=progress,
        )  # fmt: skip


def _text_of(teacher: str, runs: Path, progress: Progress) -> Any:
    """The tokenizer and template of a model in this process."""
    from stillhouse.models import Need, open_model

    with open_model(teacher, need=Need(scoring=True), runs=runs, progress=progress) as model:
        text = getattr(model, "text", None)
    if text is None:
        raise ConfigError(
            f"--teacher {teacher}", "a model whose tokenizer is not at hand",
            "weights in this process: smollm2-135m, gguf:, hf: or run:", "Name the weights",
        )  # fmt: skip
    return text


def key(
    *,
    out: Path,
    teacher: str | None = None,
    width: int = 2,
    gamma: float = 0.25,
    delta: float = 3.0,
    runs: Path = Path("runs"),
    common: Common = Common(),  # noqa: B008  (frozen)
) -> None:
    """Make a watermark's secret key, in a file that only its owner reads; prints its commitment.

    Parameters
    ----------
    out
        The key's file; never overwritten.
    teacher
        Model spec whose vocabulary it marks: another's is then refused.
    width
        Preceding tokens that choose the green list, 1 to 4.
    gamma
        Share of the vocabulary that is green.
    delta
        Added to green tokens' logits, in nats.
    runs
        Where runs are kept.
    """
    from stillhouse.watermark import Watermark, write_key

    vocabulary = None
    if teacher is not None:
        progress = make_progress(quiet=common.quiet)
        vocabulary = _text_of(teacher, runs, progress).vocabulary_hash
    mark = Watermark.fresh(width=width, gamma=gamma, delta=delta, tokenizer=vocabulary)
    write_key(out, mark)
    emit(
        {"out": str(out), **mark.facts()},
        [f"{out} holds the key; publish its commitment now: {mark.commitment}"],
        as_json=common.json,
    )
