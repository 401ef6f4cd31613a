"""From the name of a model to the model, by what is asked of it.

    smollm2-135m             weights Stillhouse knows (`stillhouse models list`)
    gguf:PATH                a GGUF file
    hf:PATH_OR_ID            a Hugging Face folder, or a repository of the model hub
    run:NAME                 the student of a finished run
    scripted:NAME            a shipped fake
    http://HOST:PORT/v1#MODEL   an OpenAI-compatible server

In: a spec and a `Need`. Out: an open `Model`. GGUF weights answer through llama.cpp, and score
through torch on the same weights, de-quantised. Engines are imported when they are chosen.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import stillhouse.models.weights as weights
from stillhouse.errors import ConfigError, ModelError, nearest
from stillhouse.models.base import Capabilities, Model, Need, require
from stillhouse.progress import Progress, Silent

__all__ = ["ENGINES", "Engine", "Precision", "Spec", "open_model", "parse_spec"]

Engine = Literal["auto", "llamacpp", "local"]
ENGINES: tuple[Engine, ...] = ("auto", "llamacpp", "local")
Precision = Literal["auto", "float32", "bfloat16"]
Kind = Literal["weights", "gguf", "hf", "run", "scripted", "endpoint"]
_PREFIXES: tuple[Kind, ...] = ("gguf", "hf", "run", "scripted")
_FORMS = "gguf:PATH, hf:PATH_OR_ID, run:NAME, scripted:NAME or http://HOST:PORT/v1#MODEL"


@dataclass(frozen=True, slots=True)
class Spec:
    """A model's name, taken apart."""

    text: str
    """As it was given."""
    kind: Kind
    target: str
    """Known name, path, repository, run, script or base URL."""
    model: str | None = None
    """The model asked of an endpoint."""


def parse_spec(text: str) -> Spec:
    """The parts of a spec.

    Raises:
        ConfigError: no such kind or known name (the nearest is named), or a part is missing.
    """
    if text in weights.known():
        return Spec(text, "weights", text)
    prefix, colon, target = text.partition(":")
    if prefix in {"http", "https"} and colon:
        return _endpoint(text)
    for kind in _PREFIXES:
        if prefix == kind and colon:
            if not target:
                raise _wrong(text, f"nothing after '{kind}:'", "Name the model")
            return Spec(text, kind, target)
    names = [*weights.known(), *(f"{kind}:" for kind in _PREFIXES), "http://", "https://"]
    hint = nearest(f"{prefix}:" if colon else text, names)
    raise _wrong(text, "no such model or kind", hint)


def _endpoint(text: str) -> Spec:
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018  (read so that it is checked)
    except ValueError as problem:
        raise _wrong(text, f"no URL ({problem})", "Write http://HOST:PORT/v1#MODEL") from None
    if not parts.hostname:
        raise _wrong(text, "a URL without a host", "Write http://HOST:PORT/v1#MODEL")
    if not parts.fragment:
        raise _wrong(text, "a URL without a model", "Add '#' and the model's name to the URL")
    return Spec(text, "endpoint", parts._replace(fragment="").geturl(), parts.fragment)


def _wrong(text: str, found: str, todo: str) -> ConfigError:
    known = ", ".join(weights.known())
    return ConfigError(f"model spec '{text}'", found, f"{known}, {_FORMS}", todo)


def open_model(
    spec: str,
    *,
    need: Need = Need(text=True),  # noqa: B008  # frozen
    engine: Engine = "auto",
    cache: Path | None = None,
    runs: Path = Path("runs"),
    slots: int | None = None,
    precision: Precision = "float32",
    progress: Progress = Silent(),  # noqa: B008  # holds no state
    **options: Any,
) -> Model:
    """An open model that meets the need.

    Args:
        spec: see the module's docstring.
        need: what is about to be asked of it.
        engine: for GGUF weights, what runs them; 'auto' takes llama.cpp where it meets the need.
        cache: folder of weights; `weights.cache_folder()` by default.
        runs: folder of finished runs, for run:NAME.
        slots: requests open at a time, for servers; each has its own default.
        precision: of the matrix products, where torch computes them.
        progress: told of downloads and de-quantising.
        options: passed on to the engine.

    Raises:
        ConfigError: the spec or engine is unknown, or a precision is asked of what is not torch.
        CapabilityError: the model cannot do what is needed.
        ModelError: weights or packages are missing or damaged.
    """
    _check_engine(engine)
    parsed = parse_spec(spec)
    if parsed.kind in {"weights", "gguf"}:
        path = _gguf(parsed, cache, progress)
        chosen = _choose(need) if engine == "auto" else engine
        if chosen == "local":
            folder = _local("dequantise").dequantised_folder(
                path, cache or weights.cache_folder(), progress
            )
            model = _local("local").LocalModel(
                folder, spec=spec, name=_name(parsed), precision=precision, **options
            )
        else:
            _only_float32(parsed, precision)
            from stillhouse.models.llamacpp import LlamaCppModel

            more = {} if slots is None else {"slots": slots}
            model = LlamaCppModel(path, spec=spec, name=_name(parsed), **more, **options)
    else:
        _no_engine(parsed, engine)
        model = _open_other(parsed, runs, slots, precision, options)
    try:
        require(model, need)
    except ModelError:
        model.close()
        raise
    return model


def _check_engine(engine: str) -> None:
    if engine not in ENGINES:
        raise ConfigError(
            "engine", f"'{engine}'", f"one of {', '.join(ENGINES)}", nearest(engine, ENGINES)
        )


def _choose(need: Need) -> Engine:
    """The engine for GGUF weights that meets a need; llama.cpp where both do."""
    from stillhouse.models.llamacpp import TOP_LOGPROBS

    can = Capabilities(text=True, top_logprobs=TOP_LOGPROBS)
    return "local" if need.missing(can) else "llamacpp"


def _gguf(parsed: Spec, cache: Path | None, progress: Progress) -> Path:
    if parsed.kind == "weights":
        return weights.pull(parsed.target, cache=cache, progress=progress)
    path = Path(parsed.target).expanduser()
    if not path.is_file():
        raise ModelError(
            f"model spec '{parsed.text}'", f"no file {path}", "a GGUF file", "Correct the path"
        )
    return path


def _name(parsed: Spec) -> str:
    """What stands in `Exchange.model`: never a path of this machine."""
    if parsed.kind in {"gguf", "hf"}:
        return Path(parsed.target).stem if parsed.kind == "gguf" else Path(parsed.target).name
    return parsed.target


def _no_engine(parsed: Spec, engine: Engine) -> None:
    """Refuse an engine that this kind of model does not run on."""
    runs_on = "local" if parsed.kind in {"hf", "run"} else None
    if engine not in {"auto", runs_on}:
        raise ConfigError(
            f"model spec '{parsed.text}'", f"engine '{engine}' for it",
            "an engine for GGUF weights only" if runs_on is None else "engine 'auto' or 'local'",
            "Leave the engine at 'auto'",
        )  # fmt: skip


def _only_float32(parsed: Spec, precision: Precision) -> None:
    """Refuse to set the precision of what does not compute here, or computes its own way."""
    if precision == "bfloat16":
        raise ConfigError(
            f"model spec '{parsed.text}'", f"precision '{precision}' for it",
            "a precision for weights that torch computes only",
            "Set engine=local, or leave the precision out",
        )  # fmt: skip


def _open_other(
    parsed: Spec, runs: Path, slots: int | None, precision: Precision, options: dict[str, Any]
) -> Model:
    """A model of a kind that has one engine only."""
    if parsed.kind not in {"hf", "run"}:
        _only_float32(parsed, precision)
    if parsed.kind == "scripted":
        from stillhouse.models.scripted import ScriptedModel

        return ScriptedModel(parsed.target, spec=parsed.text, **options)
    if parsed.kind == "endpoint":
        from stillhouse.models.endpoint import EndpointModel

        more = {} if slots is None else {"slots": slots}
        return EndpointModel(parsed.target, parsed.model or "", spec=parsed.text, **more, **options)
    if parsed.kind == "run":
        folder = _run(parsed, runs)
    else:
        folder = _local("local").hub_folder(parsed.target)
    return _local("local").LocalModel(
        folder, spec=parsed.text, name=_name(parsed), precision=precision, **options
    )


def _run(parsed: Spec, runs: Path) -> Path:
    """The student's folder of a finished run."""
    folder = runs / parsed.target / "student"
    if not (folder / "config.json").is_file():
        finished = sorted(path.parents[1].name for path in runs.glob("*/student/config.json"))
        raise ConfigError(
            f"model spec '{parsed.text}'", f"no finished run at {folder}",
            "the name of a run that has a student",
            nearest(parsed.target, finished) if finished else "Run a recipe first",
        )  # fmt: skip
    return folder


def _local(module: str) -> Any:
    """A module of the local engine; torch comes with it.

    Raises:
        ModelError: the packages of the extra 'train' are not installed.
    """
    try:
        return importlib.import_module(f"stillhouse.models.{module}")
    except ImportError as problem:
        raise ModelError(
            "local engine", f"package '{problem.name}' cannot be imported ({problem})",
            "the packages of the extra 'train'", "Install them: pip install 'stillhouse[train]'",
        ) from problem  # fmt: skip
