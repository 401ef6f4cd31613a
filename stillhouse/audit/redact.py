"""A copy of a sealed bundle in which chosen lines stand as their hash.

In: a sealed bundle whose seal holds. Out: another folder with the same seal, root and commitment.
Whoever holds the copy can check every hash and cannot recompute the numbers. A hash hides a line
only as far as the line cannot be guessed: a line of which everything but a yes or no is known is
not hidden by it. `plan.json` and `evidence.json` are copied as they are, and so is the `contest`
folder; reports are not, since they may quote what is withheld.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stillhouse import merkle
from stillhouse.audit.disk import disk
from stillhouse.audit.seal import CONTEST, SEAL, SEALED, Sealed, sha256
from stillhouse.audit.verify import verify
from stillhouse.errors import ConfigError, DataError
from stillhouse.files import write_whole

__all__ = ["redact"]


def redact(
    folder: Path,
    out: Path,
    drop: Callable[[str, Mapping[str, Any]], bool],
    *,
    secrets: bool = False,
) -> int:
    """How many lines were withheld from the copy in `out`, those withheld before not counted.

    Args:
        folder: the sealed bundle.
        out: a new or empty folder.
        drop: whether to withhold a line, given its file's name without `.jsonl` and the line.
        secrets: withhold `reveal.json` too, e.g. a key that is still in use.

    Raises:
        ConfigError: `out` holds something already.
        DataError: no bundle is there, its seal does not hold, or the disk refuses.
    """
    found = verify(folder, {})
    if not found.seal_holds:
        raise DataError(
            f"bundle {folder}", found.differences[0], "a bundle whose seal holds",
            "Take it from its source again: a redacted copy carries the same seal",
        )  # fmt: skip
    withheld = 0
    with disk(f"bundle {out}", "writing the redacted copy"):
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise ConfigError(
                f"folder {out}", "it holds files already", "a new or empty folder",
                "Choose another folder for the redacted copy",
            )  # fmt: skip
        (out / SEALED).mkdir()
        names = sorted(path.name for path in (folder / SEALED).iterdir())
        for name in [*(name for name in names if name != SEAL), SEAL]:
            file = Sealed(name, (folder / SEALED / name).read_bytes())
            data = file.data
            if file.raw:
                data, count = _redacted(file, drop)
                withheld += count
            elif name == "reveal.json" and secrets and not file.withheld:
                data = f'"{sha256(file.data)}"\n'.encode()
            write_whole(out / SEALED / name, data, out)
        if (folder / CONTEST).is_dir():
            shutil.copytree(folder / CONTEST, out / CONTEST, symlinks=True)
    return withheld


def _redacted(file: Sealed, drop: Callable[[str, Mapping[str, Any]], bool]) -> tuple[bytes, int]:
    """(the file's bytes with the dropped lines as their hashes, how many those are)."""
    stem, rows, count = file.name.removesuffix(".jsonl"), list[bytes](), 0
    for row in file.data.split(b"\n")[:-1]:
        dropped = row.startswith(b"{") and drop(stem, json.loads(row))
        rows.append(f'"{merkle.leaf_hash(row).hex()}"'.encode() if dropped else row)
        count += dropped
    return b"".join(row + b"\n" for row in rows), count
