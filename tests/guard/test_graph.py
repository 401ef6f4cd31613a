"""Templates: the same people under several keys are one, and no popular key glues."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from stillhouse.guard.graph import group_keys, pair_share
from stillhouse.guard.keys import KeyTable

CUSTOMERS = 5000


def table(*owners: np.ndarray) -> KeyTable:
    """Keys with these customers."""
    pairs = np.concatenate([np.full(len(o), i) for i, o in enumerate(owners)])
    count = len(owners)
    return KeyTable(
        kinds=("head",), keys=np.arange(1, count + 1, dtype=np.uint64),
        kind=np.zeros(count, dtype=np.int8),
        customers=np.array([len(o) for o in owners]), pair_key=pairs.astype(np.int32),
        pair_customer=np.concatenate(owners).astype(np.int32),
        pair_events=np.ones(len(pairs), dtype=np.int32),
        payloads=np.ones(count, dtype=np.int64), owned=np.ones(count, dtype=np.int64),
    )  # fmt: skip


def grouped(keys: KeyTable, share: float = 0.02) -> np.ndarray:
    return group_keys(keys, CUSTOMERS, 0.25, keys.customers > share * CUSTOMERS, 7)


def test_twenty_wordings_that_each_reach_a_part_of_the_same_accounts_are_one_template() -> None:
    rng = np.random.default_rng(1)
    label = grouped(table(*[rng.choice(90, 36, replace=False) for _ in range(20)]))
    assert len(set(label.tolist())) == 1


def test_keys_of_different_people_stay_apart() -> None:
    rng = np.random.default_rng(2)
    label = grouped(table(*[rng.choice(CUSTOMERS, 30, replace=False) for _ in range(40)]))
    assert len(set(label.tolist())) == 40


def test_a_single_popular_key_glues_nothing() -> None:
    rng = np.random.default_rng(3)
    small = [np.arange(20 * i, 20 * i + 20) for i in range(10)]
    popular = np.unique(np.concatenate([*small, rng.choice(CUSTOMERS, 900, replace=False)]))
    apart = grouped(table(*small))
    beside = grouped(table(*small, popular), share=1.0)  # not even without the cap
    assert len(set(apart.tolist())) == 10
    assert len(set(beside.tolist())) == 11


def test_a_chain_of_templates_is_cut_into_its_links() -> None:
    blocks = [np.arange(30 * i, 30 * i + 30) for i in range(6)]
    keys = [b for b in blocks for _ in range(6)]
    bridges = [np.concatenate([a[:15], b[:15]]) for a, b in pairwise(blocks)]
    label = grouped(table(*keys, *bridges))
    assert len(set(label[:36].tolist())) >= 3
    assert all(len(set(label[6 * i : 6 * i + 6].tolist())) == 1 for i in range(6))


def test_a_hub_that_touches_everything_links_nothing() -> None:
    small = [np.append(np.arange(10 * i, 10 * i + 10), [4990, 4991, 4992]) for i in range(450)]
    assert len(set(grouped(table(*small)).tolist())) == 450


def test_a_tight_template_is_not_lost_in_a_loose_component() -> None:
    rng = np.random.default_rng(4)
    accounts = np.arange(200)
    template = [rng.choice(accounts, 150, replace=False) for _ in range(20)]
    phrases = [
        np.concatenate([rng.choice(accounts, 40, replace=False), 200 + 40 * i + np.arange(60)])
        for i in range(60)
    ]
    label = grouped(table(*template, *phrases), share=1.0)
    assert len(set(label[:20].tolist())) == 1
    assert not set(label[:20].tolist()) & set(label[20:].tolist())


def test_wordings_of_one_template_are_told_from_a_chain_of_phrases() -> None:
    rng = np.random.default_rng(4)
    wordings = table(*[rng.choice(90, 36, replace=False) for _ in range(20)])
    chain = table(*[np.arange(8 * i, 8 * i + 12) for i in range(20)])
    whole = table(np.arange(CUSTOMERS))
    assert pair_share(wordings.incidence(90)) > 0.95
    assert pair_share(chain.incidence(164)) < 0.2
    assert pair_share(whole.incidence(CUSTOMERS)) == 1.0
    assert pair_share(whole.incidence(CUSTOMERS)[:1]) == 0.0
