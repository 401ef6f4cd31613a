"""A campaign's exchanges, from the logs into a store: what an audit tests a suspect against.

In: a scan's folder, a campaign's id, logs. Out: a store of the exchanges of its sub-stream: of the
requests that link the campaign, found by what was asked; of an answer the scan has read its number
of tokens and no word. Where the provider keeps what it served in a store, its own exchanges are
written in the logs' place: with the sampling settings that logs leave out, and under the ids that
an escrow committed to; logs without answers will do then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.errors import ConfigError, DataError, nearest
from stillhouse.exchange import Exchange, Message, Tool
from stillhouse.guard.reread import read_back, records_at
from stillhouse.guard.sources import files_of
from stillhouse.guard.turns import canonical
from stillhouse.log_exchanges import asked_of
from stillhouse.log_records import BadLine, LogRecord, parsed_text
from stillhouse.progress import Progress, Silent
from stillhouse.store import Store

__all__ = ["guard_export"]

_SILENT = Silent()
_AT_ONCE = 1000
_NOT_THERE = "asked nothing that the store of what was served has"
_NOT_THEIRS = "asked what the store of what was served has for other accounts only"


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
        served: the provider's store of what it served; its exchanges with prompts, tools and (where
            it has them) accounts of the logs are written.
        progress: told how far it is.

    Raises:
        ConfigError: no such campaign.
        DataError: no scan, a log that is gone or changed, or nothing to write.
    """
    own = _substream(scan, campaign)
    moved = list(files_of(logs))  # before anything is written, as is the store of what was served
    refs = list(zip(own["file"].to_pylist(), own["offset"].to_pylist(), strict=True))
    progress.start("reading the logs again", own.num_rows, "exchanges")
    left_out = Counter[str]()
    if served is None:
        found = read_back(scan, refs, moved, left_out=left_out)
    else:
        Store(served, "r").close()
        found = _as_served(records_at(scan, refs, moved), served, left_out)
    batches = _batches(found, _AT_ONCE)
    first = next(batches, None)
    if first is None:
        raise _nothing(campaign, own.num_rows, left_out, served)
    done = 0
    with Store(out) as store:
        for some in chain([first], batches):
            done += store.append_many(some)
            progress.advance(done)
        store.seal()
    progress.finish(f"{done:,} exchanges written to {out}")
    return done, dict(left_out)


def _substream(scan: Path, campaign: str) -> pa.Table:
    """Where the campaign's events stand in the logs."""
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
    return own


def _nothing(campaign: str, asked: int, left_out: Counter[str], served: Path | None) -> DataError:
    reason, count = left_out.most_common(1)[0]
    found = f"none of its {asked:,} requests makes an exchange, mostly ({count:,}): {reason}"
    if served is None:
        return DataError(
            f"campaign '{campaign}'", found, "logs that keep text and answers",
            "Export from logs that keep both, or name the store of what was served with --served",
        )  # fmt: skip
    return DataError(
        f"campaign '{campaign}'", found, f"what was served to it in {served}",
        "Name the store of what was served on those days, from logs that keep what was asked",
    )  # fmt: skip


def _batches(exchanges: Iterable[Exchange], size: int) -> Iterator[list[Exchange]]:
    """So many at a time."""
    source = iter(exchanges)
    while some := list(islice(source, size)):
        yield some


def _as_served(
    logged: Iterable[tuple[int, int, LogRecord]], served: Path, left_out: Counter[str]
) -> Iterator[Exchange]:
    """The store's exchanges of what the logs say was asked, whatever was answered: were a pair
    chosen by the answer that stands in a log (or by there being one), the choice would follow the
    escrow's coin.
    """
    wanted: dict[bytes, Counter[str]] = {}
    for _, _, record in logged:
        try:
            wanted.setdefault(_asked(*asked_of(record)), Counter())[record.account] += 1
        except BadLine as problem:
            left_out[str(problem)] += 1
    met: dict[bytes, set[str | None]] = {}
    with Store(served, "r") as store:
        for exchange in store:
            asked = _asked(exchange.prompt, exchange.tools)
            if asked not in wanted:
                continue
            met.setdefault(asked, set()).add(exchange.account)
            if exchange.account is None or exchange.account in wanted[asked]:
                yield exchange
    for asked, accounts in wanted.items():
        by = met.get(asked, set())
        missing = sum(n for account, n in accounts.items() if account not in by)
        if missing and None not in by:
            left_out[_NOT_THEIRS if by else _NOT_THERE] += missing


def _asked(prompt: Sequence[Message], tools: Sequence[Tool]) -> bytes:
    """A digest of what was asked, without settings, times and names of calls."""
    turns = [
        [m.role, [[p.kind, p.text, p.uri] for p in m.content],
         [[c.name, parsed_text(c.arguments)] for c in m.tool_calls]]
        for m in prompt
    ]  # fmt: skip
    # Gateways write schemas as objects, stores as texts: their spaces and order say nothing.
    offered = [[t.name, t.description or None, parsed_text(t.parameters)] for t in tools]
    return sha256(canonical([turns, offered])).digest()
