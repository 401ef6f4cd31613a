"""Events tables from seeds, without text: benign people, hard negatives, campaigns.

Straight to the columns that detection reads. It is a stand-in for development and shares nothing
with `guard simulate`; every rate here is assumed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.guard.events import EVENTS, SKETCH_SLOTS

DAY = 86_400.0
BEGIN = 1_793_577_600  # 2 November 2026, a Monday
HASHES = (
    "organisation", "request", "session", "parameters", "whole", "head", "tail", "skeleton",
    "system", "tools", "address", "network", "user_agent", "payment", "device", "channel",
)  # fmt: skip
CAPABILITIES = 9


class Traffic:
    """Events gathered group by group."""

    def __init__(self, seed: int, days: float = 7.0) -> None:
        self.rng = np.random.default_rng(seed)
        self.days = days
        self.parts: list[dict[str, Any]] = []
        self.truth: dict[str, str] = {}
        self._accounts = 0
        self.accounts: dict[int, dict[str, Any]] = {}
        world = np.random.default_rng(99)  # the same in every week
        self.public = world.integers(1, 2**63, 400, dtype=np.uint64)  # prompts that people copy
        self.products = world.integers(1, 2**63, (20, 8), dtype=np.uint64)

    # ---- pieces ----

    def hashes(self, *shape: int) -> np.ndarray:
        return self.rng.integers(1, 2**63, shape, dtype=np.uint64)

    def people(self, count: int, kind: str, **shared: np.ndarray) -> np.ndarray:
        """New accounts with payment, device, network, sign-up and channel of their own."""
        ids = np.arange(self._accounts, self._accounts + count)
        self._accounts += count
        facts = {
            "payment": self.hashes(count), "device": self.hashes(count),
            "network": self.hashes(count), "address": self.hashes(count),
            "channel": self.rng.choice(np.array([11, 12, 13, 14], dtype=np.uint64), count),
            "organisation": np.zeros(count, dtype=np.uint64),
            "signup": BEGIN - self.rng.uniform(0, 700 * DAY, count),
            "phase": self.rng.normal(14, 4, count) % 24,
        }  # fmt: skip
        crowded = self.rng.random(count) < 0.15  # behind a provider's shared addresses
        facts["network"][crowded] = self.rng.integers(1, 60, int(crowded.sum())).astype(np.uint64)
        facts |= shared
        for i, account in enumerate(ids):
            self.accounts[int(account)] = {k: v[i] for k, v in facts.items()}
            self.truth[f"a{account:07d}"] = kind
        return ids

    def human_times(self, owner: np.ndarray) -> np.ndarray:
        """Seconds: sessions at each one's own hours, events close together inside a session."""
        rng, total = self.rng, len(owner)
        new = rng.random(total) < 0.25
        new[np.concatenate([[True], owner[1:] != owner[:-1]])] = True
        session = np.cumsum(new) - 1
        whose = owner[new]
        phase = np.array([self.accounts[int(a)]["phase"] for a in whose])
        day = rng.integers(0, int(np.ceil(self.days)), len(whose))
        start = (day + ((phase + rng.normal(0, 2.5, len(whose))) % 24) / 24) * DAY
        within = rng.exponential(240, total)
        step = np.cumsum(within)
        first = np.maximum.accumulate(np.where(new, np.arange(total), 0))
        return np.minimum(start[session] + step - step[first], self.days * DAY - 1)

    def add(self, owner: np.ndarray, time: np.ndarray, **columns: Any) -> None:
        """Events of accounts; columns not given are drawn."""
        n, rng = len(owner), self.rng
        row: dict[str, Any] = {name: np.zeros(n, dtype=np.uint64) for name in HASHES}
        for name in ("request", "whole", "head", "tail", "skeleton", "session"):
            row[name] = self.hashes(n)
        for name in ("payment", "device", "network", "address", "channel", "organisation"):
            row[name] = np.array([self.accounts[int(a)][name] for a in owner], dtype=np.uint64)
        row["signup"] = np.array([self.accounts[int(a)]["signup"] for a in owner])
        row["sketch"] = rng.integers(0, 2**31, (n, SKETCH_SLOTS), dtype=np.uint32)
        row["capability"] = rng.integers(0, CAPABILITIES, n)
        row["turns"] = rng.integers(0, 6, n)
        row["model"] = rng.choice(np.array(["large", "small"]), n, p=[0.3, 0.7])
        row |= {"owner": owner, "time": time} | columns
        self.parts.append(row)

    # ---- benign ----

    def benign(self, count: int, mean: float = 8.0, spread: float = 1.5) -> np.ndarray:
        """People and programs: volumes heavy-tailed, a taste each, public prompts now and then."""
        rng = self.rng
        ids = self.people(count, "benign")
        volume = np.ceil(rng.lognormal(np.log(mean), spread, count)).astype(int)
        volume = np.minimum(volume, 4000)
        owner = np.repeat(ids, volume)
        n = len(owner)
        taste = np.repeat(rng.dirichlet(np.full(CAPABILITIES, 0.5), count).cumsum(axis=1), volume,
                          axis=0)  # fmt: skip
        capability = (rng.random((n, 1)) > taste).sum(axis=1).clip(0, CAPABILITIES - 1)
        head, tail, whole = self.hashes(n), self.hashes(n), self.hashes(n)
        own = np.repeat(self.hashes(count), volume)  # a template of one's own, of some
        uses = np.repeat(rng.random(count) < 0.3, volume) & (rng.random(n) < 0.6)
        head[uses] = own[uses]
        copied = rng.random(n) < 0.05
        pick = np.minimum(rng.zipf(1.6, n) - 1, len(self.public) - 1)
        head[copied] = whole[copied] = self.public[pick[copied]]
        tail[copied] = self.public[pick[copied]] ^ np.uint64(5)
        again = (rng.random(n) < 0.04) & np.concatenate([[False], owner[1:] == owner[:-1]])
        at = np.flatnonzero(again)
        for column in (head, tail, whole):
            column[at] = column[at - 1]
        self.add(owner, self.human_times(owner), head=head, tail=tail, whole=whole,
                 capability=capability)  # fmt: skip
        return ids

    def client(
        self, ids: np.ndarray, mean: float = 20.0, product: int | None = None, focus: float = 0.5
    ) -> None:
        """A product on people's accounts: one system prompt, tools and wrappers for all.

        `product`: one that is there every week; None: one that nobody has seen before.
        """
        rng = self.rng
        marks = self.hashes(8) if product is None else self.products[product]
        volume = np.ceil(rng.lognormal(np.log(mean), 1.2, len(ids))).astype(int)
        owner = np.repeat(ids, volume)
        n = len(owner)
        capability = np.where(rng.random(n) < focus, 5, rng.integers(0, CAPABILITIES, n))
        self.add(owner, self.human_times(owner), head=marks[rng.integers(0, 3, n)],
                 system=np.full(n, marks[3]), tools=np.full(n, marks[4]),
                 capability=capability)  # fmt: skip

    def course(self, count: int, prompts: int = 12) -> np.ndarray:
        """A class: the same prompts in the same hours."""
        ids = self.people(count, "class")
        asked = self.hashes(prompts)
        owner = np.repeat(ids, prompts)
        which = np.tile(np.arange(prompts), count)
        start = self.rng.integers(0, int(self.days), prompts) * DAY + 10 * 3600
        time = start[which] + self.rng.uniform(0, 5400, len(owner))
        self.add(owner, time, head=asked[which], whole=asked[which] ^ np.uint64(9),
                 tail=asked[which] ^ np.uint64(7), capability=np.full(len(owner), 5))  # fmt: skip
        return ids

    def service(self, count: int, mean: float = 300.0, nightly: bool = False) -> np.ndarray:
        """One organisation's keys with one template: a product, or a batch at night."""
        organisation = np.full(count, self.hashes(1)[0])
        ids = self.people(count, "nightly" if nightly else "service", organisation=organisation)
        owner = np.repeat(ids, self.rng.poisson(mean, count))
        n = len(owner)
        time = self.rng.uniform(0, self.days * DAY, n)
        if nightly:
            time = self.rng.integers(0, int(self.days), n) * DAY + self.rng.uniform(7200, 14_400, n)
        self.add(owner, time, head=np.full(n, self.hashes(1)[0]), capability=np.full(n, 6))
        return ids

    def office(self, count: int, mean: float = 25.0) -> np.ndarray:
        """Colleagues behind one address with one payment, busy with different things."""
        one = self.hashes(3)
        ids = self.people(
            count, "office", payment=np.full(count, one[0]), network=np.full(count, one[1]),
            address=np.full(count, one[2]), signup=np.full(count, BEGIN - 90 * DAY),
        )  # fmt: skip
        owner = np.repeat(ids, np.ceil(self.rng.lognormal(np.log(mean), 1, count)).astype(int))
        self.add(owner, self.human_times(owner))
        return ids

    def release(self, share: float = 0.2, day: float = 3.0) -> None:
        """A new model, which many try on its first day."""
        for part in self.parts:
            eager = np.isin(part["owner"], [a for a in self.accounts if self.rng.random() < share])
            part["model"] = np.where(eager & (part["time"] > day * DAY), "new", part["model"])

    # ---- campaigns ----

    def campaign(
        self, count: int, *, per_day: float = 26.0, cover: float = 0.5, rewordings: int = 1,
        each: bool = False, shared: bool = False, kept: float = 0.6, spread: float = 0.0,
        capability: int = 1, lifetime: float | None = None, name: str = "campaign",
    ) -> np.ndarray:  # fmt: skip
        """Accounts under one controller: a sharded list of payloads under reworded templates.

        `each`: an account keeps to one wording. `kept`: slots of a sketch that the wrapper fills.
        `spread`: sigma of the accounts' log volumes. `lifetime`: days until an account is replaced.
        """
        rng = self.rng
        facts: dict[str, np.ndarray] = {}
        if shared:
            facts = {
                "payment": self.hashes(max(1, count // 60))[rng.integers(0, max(1, count // 60),
                                                                         count)],
                "network": self.hashes(1 + count // 10)[rng.integers(0, 1 + count // 10,
                                                                         count)],
                "signup": BEGIN - 20 * DAY + rng.uniform(0, 3, count).round() * DAY
                + rng.uniform(0, 3600, count),
            }  # fmt: skip
        ids = self.people(count, name, **facts)
        start, end = np.zeros(count), np.full(count, self.days * DAY)
        if lifetime is not None:
            start = rng.uniform(-lifetime, self.days, count) * DAY
            end = np.minimum(start + lifetime * DAY, self.days * DAY)
            start = np.maximum(start, 0)
        alive = np.maximum(end - start, 0) / DAY
        rate = per_day * np.exp(rng.normal(0, spread, count) if spread else np.zeros(count))
        work = rng.poisson(rate * (1 - cover) * alive)
        owner = np.repeat(ids, work)
        n = len(owner)
        time = np.repeat(start, work) + rng.random(n) * np.repeat(end - start, work)
        wording = rng.integers(0, rewordings, n)
        if each:
            wording = np.repeat(rng.integers(0, rewordings, count), work)
        slots = rng.integers(0, 2**31, (rewordings, SKETCH_SLOTS), dtype=np.uint32)
        common = rng.random((rewordings, SKETCH_SLOTS)) < 0.7  # what rewording leaves as it was
        slots = np.where(common, slots[0], slots)
        sketch = np.where(rng.random((n, SKETCH_SLOTS)) < kept, slots[wording],
                          rng.integers(0, 2**31, (n, SKETCH_SLOTS), dtype=np.uint32))  # fmt: skip
        heads, tails = self.hashes(rewordings), self.hashes(rewordings)
        self.add(owner, time, head=heads[wording], tail=tails[wording], sketch=sketch,
                 capability=np.where(rng.random(n) < 0.8, capability,
                                     rng.integers(0, CAPABILITIES, n)))  # fmt: skip
        hidden = rng.poisson(rate * cover * alive)
        owner = np.repeat(ids, hidden)
        when = np.repeat(start, hidden) + rng.random(len(owner)) * np.repeat(end - start, hidden)
        self.add(owner, when)
        return ids

    # ---- files ----

    def table(self) -> pa.Table:
        joined = {k: np.concatenate([np.asarray(p[k]) for p in self.parts]) for k in self.parts[0]}
        n = len(joined["time"])
        owner = joined["owner"]
        names = np.array([f"a{a:07d}" for a in range(self._accounts)])
        micro = ((BEGIN + joined["time"]) * 1e6).astype(np.int64)
        when = pa.timestamp("us", tz="UTC")
        columns: dict[str, Any] = {name: pa.array(joined[name], pa.uint64()) for name in HASHES}
        columns |= {
            "account": pa.DictionaryArray.from_arrays(pa.array(owner, pa.int32()),
                                                      pa.array(names)),
            "time": pa.array(micro, when),
            "model": pa.array(joined["model"]).dictionary_encode(),
            "input_tokens": pa.array(self.rng.integers(20, 900, n), pa.int32()),
            "output_tokens": pa.array(self.rng.integers(20, 900, n), pa.int32()),
            "turns": pa.array(joined["turns"], pa.int16()),
            "sketch": pa.FixedSizeListArray.from_arrays(
                pa.array(joined["sketch"].ravel(), pa.uint32()), SKETCH_SLOTS),
            "shape": pa.array((1 << joined["capability"].astype(np.int64)) >> 1, pa.uint16()),
            "capability": pa.array(joined["capability"], pa.uint8()),
            "signup": pa.array((joined["signup"] * 1e6).astype(np.int64), when),
            "file": pa.array(np.zeros(n), pa.uint16()),
            "offset": pa.array(np.arange(n), pa.uint64()),
        }  # fmt: skip
        full = [
            columns[f.name].cast(f.type) if f.name in columns else pa.nulls(n, f.type)
            for f in EVENTS
        ]
        return pa.Table.from_arrays(full, schema=EVENTS).sort_by("time")

    def write(self, folder: Path, parts: int = 3) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        table = self.table()
        step = -(-len(table) // parts)
        for number in range(parts):
            pq.write_table(table.slice(number * step, step), folder / f"part-{number:05d}.parquet")
        return folder
