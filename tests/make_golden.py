"""Writes the frozen files of version 1 under tests/data, once: they are never rewritten.

`python -m tests.make_golden`
"""

from __future__ import annotations

from pathlib import Path

from stillhouse.formats import to_jsonl
from stillhouse.store import Store
from tests.exchanges import frozen

DATA = Path(__file__).parent / "data"

if __name__ == "__main__":
    if (DATA / "exchange-v1.jsonl").exists():
        raise SystemExit("the files of version 1 are frozen; add a version instead")
    to_jsonl(frozen(), DATA / "exchange-v1.jsonl")
    with Store(DATA / "store-v1") as store:
        store.append_many(frozen()[:3])
        store.seal()
        store.append(frozen()[3])
        store.append(frozen()[1])  # kept once
    (DATA / "store-v1" / "lock").unlink()
