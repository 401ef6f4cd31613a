"""The baselines against hand-worked cases and short loops."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import shapiro

from stillhouse.guard.benchmark_baselines import (
    METHODS,
    account_features,
    busiest_hour,
    link_scores,
    p_values,
    rule_fires,
    scored,
)
from stillhouse.guard.benchmark_events import HOUR, Requests, read_requests
from stillhouse.guard.benchmark_queries import (
    embedded,
    mmd2_unbiased,
    mmd_scores,
    mmd_windows,
    prada_scores,
    prada_w,
)
from stillhouse.guard.events import EVENTS

MINUTE = HOUR // 60
HASHES = ("whole", "head", "tail", "skeleton", "system", "tools", "address", "network",
          "payment", "device")  # fmt: skip


def requests(*accounts: list[int], **columns: list[int]) -> Requests:
    """Accounts by the minutes of their events; hashes as given, else distinct."""
    account = np.repeat(np.arange(len(accounts)), [len(one) for one in accounts])
    time = np.array([MINUTE * m for one in accounts for m in one], np.int64)
    count = len(time)
    held = {
        name: np.array(columns.get(name, range(1, count + 1)), np.uint64) for name in HASHES
    } | {
        name: np.array(columns.get(name, [0] * count), np.int64)
        for name in ("input_tokens", "output_tokens", "turns", "capability", "model")
    }  # fmt: skip
    rng = np.random.default_rng(5)
    sketch = rng.integers(1, 2**32, (count, 32), dtype=np.uint32)
    names = np.array([f"a{n}" for n in range(len(accounts))], dtype=object)
    return Requests(names, account, time, held, sketch)


def test_requests_are_read_by_account_and_time_whatever_their_order(tmp_path: Path) -> None:
    facts = {
        "account": ["b", "a", "b"], "model": ["m", "n", "m"], "head": [3, 1, 2],
        "time": [datetime(2026, 1, 1, hour, tzinfo=UTC) for hour in (5, 7, 4)],
        "input_tokens": [None, 8, 9], "capability": [4, 0, 1], "sketch": [[1] * 32] * 3,
    }  # fmt: skip
    columns = [
        pa.array(facts.get(f.name, [0 if f.name in HASHES else None] * 3), _plain(f.type))
        for f in EVENTS
    ]
    table = pa.table(columns, names=EVENTS.names).cast(EVENTS)
    for number, rows in enumerate(([0], [1, 2])):  # parts with dictionaries of their own
        pq.write_table(table.take(rows), tmp_path / f"part-{number:05d}.parquet")
    log = read_requests(tmp_path)
    assert log.names.tolist() == ["a", "b"]
    assert log.account.tolist() == [0, 1, 1]
    assert log.columns["head"].tolist() == [1, 2, 3]
    assert log.columns["input_tokens"].tolist() == [8, 9, -1]
    assert log.columns["model"].tolist() == [1, 0, 0]
    assert log.sketch.shape == (3, 32)


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def test_the_busiest_hour_slides() -> None:
    log = requests([0, 50, 70, 109, 110, 200], [0, 60, 120])
    assert busiest_hour(log).tolist() == [3.0, 1.0]  # 110 lies an hour after 50, not within it


def test_the_volume_rule_fires_at_five_hundred_an_hour() -> None:
    log = requests([0] * 500, [0] * 499 + [60])
    assert rule_fires(log).tolist() == [True, False]


def test_linking_counts_accounts_that_share_the_rarest_common_key() -> None:
    heads = [7, 7, 7, 8, 0, 9]  # three events of key 7 in two accounts, 0 is nothing
    log = requests([0, 1], [0], [0], [0], [0], head=heads)
    assert np.exp(link_scores(log, ("head",))).round(6).tolist() == [2, 2, 1, 1, 1]


def test_a_popular_key_links_nothing() -> None:
    log = requests(*[[0]] * 200, head=[7] * 5 + list(range(1000, 1195)))
    assert link_scores(log, ("head",)).max() == 0  # 5 of 200 accounts are more than a fiftieth
    fewer = requests(*[[0]] * 200, head=[7] * 4 + list(range(1000, 1196)))
    assert np.exp(link_scores(fewer, ("head",)).max()) == pytest.approx(4)


def test_what_a_benign_week_knows_links_nothing() -> None:
    log = requests([0], [0], [0], [0], head=[7, 7, 8, 8])
    known = requests([0], head=[7])
    assert np.exp(link_scores(log, ("head",), known)).round(6).tolist() == [1, 1, 2, 2]


def test_p_values_are_conformal_within_volumes() -> None:
    benign = np.arange(4000.0)
    events = np.repeat([1, 100], 2000)  # scores of busy accounts: 2000 to 3999
    p = p_values(benign, events, np.array([1999.0, 1999.0, 5000.0]), np.array([1, 100, 100]))
    assert p.tolist() == pytest.approx([2 / 2001, 1.0, 1 / 2001])


def test_a_small_stratum_takes_smaller_volumes_along() -> None:
    benign, events = np.arange(2000.0), np.repeat([1, 100], [1990, 10])
    p = p_values(benign, events, np.array([3000.0]), np.array([100]))
    assert p[0] == pytest.approx(1 / 2001)


def test_features_are_of_the_account_alone() -> None:
    log = requests([0, 30], [0], capability=[1, 0, 1], whole=[5, 5, 6], turns=[1, 0, 0])
    made = account_features(log)
    assert made.shape[0] == 2
    assert np.isfinite(made).all()
    assert made[:, 0].tolist() == pytest.approx(np.log1p([2, 1]).tolist())
    assert made[0, 7] == 0.5  # half of its requests go on with a conversation
    assert made[0, 10] == 0.5  # one distinct payload in two


def test_inner_products_of_vectors_estimate_similarity() -> None:
    log = requests([0, 1, 2])
    log.sketch[1, :16] = log.sketch[0, :16]  # half of the slots agree
    log.sketch[2] = 0  # no text
    made = embedded(log, np.arange(3))
    assert made[0] @ made[1] - 0.5 == pytest.approx(0.5, abs=0.2)
    assert made[2] @ made[2] == pytest.approx(0.5)  # the topic alone


def test_mmd_equals_a_double_loop() -> None:
    rng = np.random.default_rng(3)
    x, y = (rng.standard_normal((n, 4)).astype(np.float32) for n in (6, 5))

    def mean(one: np.ndarray, other: np.ndarray, same: bool) -> float:
        values = [
            np.exp(-float(((a - b) ** 2).sum()) / (2 * 1.5**2))
            for i, a in enumerate(one) for j, b in enumerate(other) if not (same and i == j)
        ]  # fmt: skip
        return float(np.mean(values))

    wanted = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    assert mmd2_unbiased(x, y, 1.5) == pytest.approx(wanted, abs=1e-6)


def test_mmd_ranks_an_account_of_one_template_above_others() -> None:
    log = requests(*[list(range(30))] * 4, [0])
    template = np.flatnonzero(log.account == 3)
    log.sketch[template] = log.sketch[template[0]]
    (scores,) = mmd_scores(log, [log], np.random.default_rng(1))
    assert scores.argmax() == 3
    assert scores[4] == -1.0  # one query fills no window


def test_mmd_flags_windows_of_another_distribution_and_few_benign_ones() -> None:
    benign = requests(list(range(2000)))
    test = requests(list(range(400)), capability=[3] * 400)
    test.sketch[:] = test.sketch[0]
    own = np.arange(400) >= 200
    counts = mmd_windows(benign, test, own, 100, 0.01, np.random.default_rng(2))
    assert [counts[f"{n}_windows"] for n in ("benign", "test_benign", "test")] == [20, 2, 4]
    assert counts["test_sampled"] == counts["test_ordered"] == 4
    assert counts["benign_sampled"] <= 4
    assert counts["benign_ordered"] == 1  # the quantile lies below the largest


def test_prada_takes_outliers_out_and_tests_what_is_left() -> None:
    rng = np.random.default_rng(4)
    normal = rng.normal(0.5, 0.05, 200)
    assert prada_w(np.append(normal, 50.0)) == pytest.approx(shapiro(normal).statistic)
    assert prada_w(np.full(30, 0.3)) == 1.0
    assert prada_w(rng.exponential(1, 200)) < 0.95


def test_prada_scores_streams_of_twenty_queries_and_more() -> None:
    log = requests(list(range(40)), list(range(40)), [0] * 19)
    half = np.flatnonzero(log.account == 1)[20:]
    log.sketch[half] = log.sketch[half[0]]  # distances pile up at 0 and at 1
    scores = prada_scores(log)
    assert scores[2] == -1.0
    assert scores[1] > 0.2


@pytest.mark.parametrize("name", METHODS)
def test_every_method_scores_every_account(name: str) -> None:
    benign = requests(*[[0, 5, 9]] * 30, list(range(25)))
    test = requests(*[[0, 5]] * 20, list(range(25)), capability=[2] * 65)
    p, score = scored(name, benign, test, 7)
    assert p.shape == score.shape == (21,)
    assert ((p > 0) & (p <= 1)).all()
