"""A campaign's exchanges, from the logs into a store: what an audit tests a suspect against.

In: a scan's folder, a campaign's id, logs. Out: a store of the exchanges of its sub-stream, chosen
by what was asked alone: by the keys of requests that link the campaign, never by an answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from stillhouse.errors import ConfigError, DataError, nearest
from stillhouse.guard.reread import read_back
from stillhouse.report import Progress, Silent
from stillhouse.store import Store

__all__ = ["guard_export"]

_SILENT = Silent()
_AT_ONCE = 1000


def guard_export(
    scan: Path, campaign: str, *, out: Path, logs: Sequence[Path] = (), progress: Progress = _SILENT
) -> tuple[int, dict[str, int]]:
    """Exchanges that were written, and reasons with how many requests make none.

    Args:
        scan: the scan's folder.
        campaign: id, as in campaigns.json.
        out: the store; exchanges that are there already are kept once.
        logs: where the logs lie now, if they were moved.
        progress: told how far it is.

    Raises:
        ConfigError: no such campaign.
        DataError: no scan, or a log that is gone, changed or holds no answers.
    """
    path = scan / "substreams.parquet"
    if not path.exists():
        raise DataError(
            str(scan), "no substreams.parquet", "a folder that `guard scan` wrote", "Scan first"
        )
    table = pq.read_table(path)
    names = table["campaign"].to_numpy(zero_copy_only=False)
    own = table.take(np.flatnonzero(names == campaign))
    if not own.num_rows:
        known = sorted(set(table["campaign"].to_pylist()))
        raise ConfigError(
            f"campaign '{campaign}'", f"none of that name in {scan}",
            f"one of {', '.join(known[:5]) or 'none at all'}", nearest(campaign, known),
        )  # fmt: skip
    refs = zip(own["file"].to_pylist(), own["offset"].to_pylist(), strict=True)
    progress.start("reading the logs again", own.num_rows, "exchanges")
    done, waiting, left_out = 0, [], Counter[str]()
    with Store(out) as store:
        for exchange in read_back(scan, refs, logs, left_out=left_out):
            waiting.append(exchange)
            if len(waiting) == _AT_ONCE:
                done += store.append_many(waiting)
                waiting = []
                progress.advance(done)
        done += store.append_many(waiting)
        store.seal()
    progress.finish(f"{done:,} exchanges in {out}")
    return done, dict(left_out)
