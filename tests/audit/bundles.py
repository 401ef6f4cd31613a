"""Bundles for tests: an exact sign test over pairs, sealed, and what is found in them."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stillhouse.audit.bundle import Bundle
from stillhouse.audit.verify import Verification, verify
from stillhouse.exchange import canonical_json

KEY = "c0ffee" * 8
PLAN: dict[str, Any] = {"test": "sign", "alpha": 0.05, "seeds": [1, 2], "suspect": "echo"}


def sign_test(
    plan: Mapping[str, Any], lines: Mapping[str, Any], reveal: Mapping[str, Any]
) -> dict[str, Any]:
    """An exact one-sided sign test over pairs, flipped by a secret coin."""
    coins = hashlib.shake_256(reveal["key"].encode()).digest(len(lines["pairs"]))
    gaps = [
        (1 if coin & 1 else -1) * (pair["served"] - pair["twin"])
        for coin, pair in zip(coins, lines["pairs"], strict=True)
    ]
    n, positive = sum(g != 0 for g in gaps), sum(g > 0 for g in gaps)
    tail = sum(math.comb(n, k) for k in range(positive, n + 1))
    return {
        "test": "sign", "suspect": plan["suspect"], "n": n, "p_value": tail / 2**n,
        "excluded": {"tied": len(gaps) - n}, "prompts": len(lines["prompts"]),
        "effect": {"name": "mean gap", "value": math.fsum(gaps) / max(1, n)},
    }  # fmt: skip


FUNCTIONS = {"sign": sign_test}
PROMPTS = [{"id": f"p{i}", "prompt": f"Wie spät ist es um {i} Uhr? ☕"} for i in range(6)]


def pairs(count: int = 6, seed: int = 1) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [
        {"id": f"p{i}", "served": draw.gauss(-2, 1), "twin": draw.gauss(-2, 1)}
        for i in range(count)
    ]


def begun(folder: Path, **changes: Any) -> Bundle:
    given: dict[str, Any] = {"before": {"prompts": PROMPTS}, "secrets": {"key": KEY}, **changes}
    return Bundle.begin(folder, given.pop("plan", PLAN), **given)


def sealed(folder: Path, rows: list[dict[str, Any]] | None = None) -> Bundle:
    """A sealed bundle of a few pairs."""
    bundle = begun(folder)
    bundle.append("pairs", pairs() if rows is None else rows)
    lines = {name: bundle.lines(name) for name in ("prompts", "pairs")}
    bundle.seal(sign_test(PLAN, lines, {"key": KEY}), reveal={"key": KEY})
    return bundle


def found(folder: Path) -> Verification:
    return verify(folder, FUNCTIONS)


def refused(folder: Path, *words: str) -> Verification:
    """A verification that is not ok and names what differs."""
    result = found(folder)
    assert not result.ok
    told = "\n".join(result.differences)
    for word in words:
        assert word in told
    return result


def edit(path: Path, change: Callable[[Any], None]) -> None:
    """Change a JSON file's value and keep it canonical."""
    value = json.loads(path.read_text("utf-8"))
    change(value)
    path.write_text(canonical_json(value) + "\n", "utf-8")


def changed(folder: Path, name: str, data: bytes) -> Verification:
    """What is found while a sealed file holds other bytes."""
    path = folder / "sealed" / name
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        return found(folder)
    finally:
        path.write_bytes(before)
