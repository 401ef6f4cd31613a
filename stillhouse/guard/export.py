"""A campaign's exchanges, from the logs into a store: what an audit tests a suspect against.

In: a scan's folder, a campaign's id, logs. Out: a store of the exchanges of its sub-stream, chosen
by what was asked alone: by the keys of requests that link the campaign, never by an answer. Where
the provider keeps what it served in a store, its own exchanges are written in the logs' place: with
the sampling settings that logs leave out, and under the ids that an escrow committed to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from stillhouse.errors import ConfigError, DataError, nearest
from stillhouse.exchange import Exchange, canonical_json
from stillhouse.guard.reread import read_back
from stillhouse.guard.sources import files_of
from stillhouse.progress import Progress, Silent
from stillhouse.store import Store

__all__ = ["guard_export"]

_SILENT = Silent()
_AT_ONCE = 1000


def guard_export(
    scan: Path, campaign: str, *, out: Path, logs: Sequence[Path] = (), served: Path | None = None,
    progress: Progress = _SILENT,
) -> tuple[int, dict[str, int]]:  # fmt: skip
    """Exchanges that were written, and reasons with how many requests make none.

    Args:
        scan: the scan's folder.
        campaign: id, as in campaigns.json.
        out: the store; exchanges that are there already are kept once.
        logs: where the logs lie now, if they were moved: files, stores or folders of files.
        served: the provider's store of what it served; its exchanges with the prompts of the logs
            are written.
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
    moved = list(files_of(logs))  # before anything is written, as is the store of what was served
    refs = zip(own["file"].to_pylist(), own["offset"].to_pylist(), strict=True)
    progress.start("reading the logs again", own.num_rows, "exchanges")
    if served is not None:
        Store(served, "r").close()
    left_out = Counter[str]()
    found: Iterable[Exchange] = read_back(scan, refs, moved, left_out=left_out)
    if served is not None:
        found = _as_served(found, served, left_out)
    done = 0
    with Store(out) as store:
        for some in _batches(found, _AT_ONCE):
            done += store.append_many(some)
            progress.advance(done)
        store.seal()
    progress.finish(f"{done:,} exchanges in {out}")
    return done, dict(left_out)


def _batches(exchanges: Iterable[Exchange], size: int) -> Iterator[list[Exchange]]:
    """So many at a time."""
    source = iter(exchanges)
    while some := list(islice(source, size)):
        yield some


def _as_served(
    logged: Iterable[Exchange], served: Path, left_out: Counter[str]
) -> Iterator[Exchange]:
    """The store's exchanges of the prompts that the logs have, whatever was answered: were a pair
    chosen by the answer that stands in a log, the choice would follow the escrow's coin.
    """
    wanted = Counter(map(_asked, logged))
    met: set[bytes] = set()
    with Store(served, "r") as store:
        for exchange in store:
            asked = _asked(exchange)
            if asked in wanted:
                met.add(asked)
                yield exchange
    missing = sum(count for asked, count in wanted.items() if asked not in met)
    if missing:
        left_out["asked nothing that the store of what was served has"] += missing


def _asked(exchange: Exchange) -> bytes:
    """A digest of what was asked, without settings, times and names."""
    turns = [[m.role, [[p.kind, p.text, p.uri] for p in m.content]] for m in exchange.prompt]
    return sha256(canonical_json(turns).encode()).digest()
