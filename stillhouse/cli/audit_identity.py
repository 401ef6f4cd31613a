"""`stillhouse audit identity` and `audit change`: who a suspect says it is, beside controls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from stillhouse.audit.settings import IdentitySettings
from stillhouse.cli.audit_bundle import told
from stillhouse.cli.terminal import Common, emit, make_progress
from stillhouse.errors import ConfigError, DataError

__all__ = ["change", "identity"]


def identity(
    *,
    suspect: str,
    control: tuple[str, ...] = (),
    out: Path,
    settings: Annotated[IdentitySettings, Parameter(name="*")],
    runs: Path = Path("runs"),
    common: Common = Common(),  # noqa: B008  (frozen)
) -> None:
    """Ask a suspect and controls who they are, in twelve languages; a share is no error rate.

    Parameters
    ----------
    suspect
        Model spec: smollm2-135m, gguf:PATH, hf:PATH_OR_ID, run:NAME, http://host:port/v1#MODEL.
    control
        Model spec of a model that is known to be innocent.
    out
        Folder of the bundle.
    runs
        Where runs are kept.
    """
    from stillhouse.audit.identity_audit import identity_audit

    if not suspect:
        raise ConfigError("--suspect", "nothing", "a model spec", "Name the suspect")
    found = identity_audit(
        settings, suspect=suspect, controls=control, out=out, runs=runs,
        progress=make_progress(quiet=common.quiet),
    )  # fmt: skip
    emit({**found, "out": str(out)}, told(found, out), as_json=common.json)


def change(
    earlier: Path,
    later: Path,
    *,
    common: Common = Common(),  # noqa: B008  (frozen)
) -> None:
    """Say what changed between two identity audits of the same suspect.

    Parameters
    ----------
    earlier
        The folder of the earlier audit.
    later
        The folder of the later one.
    """
    from stillhouse.audit.identity_change import compare

    found = compare(_evidence(earlier), _evidence(later))
    lines = [*found["says"], "What cannot be concluded:", *(f"  {x}" for x in found["cannot"])]
    emit(found, lines, as_json=common.json)


def _evidence(folder: Path) -> dict[str, Any]:
    path = folder / "sealed" / "evidence.json"
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as problem:
        raise DataError(
            str(path), str(problem), "the evidence of a finished audit", "Name an audit's folder"
        ) from None
