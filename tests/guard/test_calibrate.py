"""Calibrations: read back as written, refused where they do not fit, valid p-values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stillhouse.errors import ConfigError, DataError, EvidenceError
from stillhouse.guard.calibrate import Calibration, conformal, fewest_of_a_stratum
from stillhouse.guard.detect import detect
from stillhouse.guard.keys import Frozen
from stillhouse.guard.settings import GuardSettings
from tests.guard.traffic_writer import Traffic
from tests.guard.weeks import benign_week


def test_conformal_p_values_of_exchangeable_scores_are_uniform() -> None:
    rng = np.random.default_rng(1)
    p = np.concatenate([conformal(rng.random(50), np.sort(rng.random(199))) for _ in range(400)])
    for level in (0.01, 0.1, 0.5):
        assert abs((p <= level).mean() - level) < 0.01
    assert p.min() >= 1 / 200


def test_equal_scores_never_make_a_p_value_too_small() -> None:
    benign = np.array([0.0, 0.0, 0.0, 1.0])
    assert conformal(np.array([0.0, 1.0, 2.0]), benign) == pytest.approx([1.0, 2 / 5, 1 / 5])


def test_a_calibration_is_read_back_as_it_was_written(
    tmp_path: Path, calibration: Calibration
) -> None:
    path = tmp_path / "benign.calibration"
    calibration.save(path)
    again = Calibration.load(path)
    assert again.settings == calibration.settings
    assert again.hours == calibration.hours
    assert again.frozen.customers == calibration.frozen.customers
    for one, other in (
        (again.frozen.keys, calibration.frozen.keys), (again.scores, calibration.scores),
        (again.frozen.counts, calibration.frozen.counts), (again.joined, calibration.joined),
        (again.starts, calibration.starts), (again.clusters, calibration.clusters),
    ):  # fmt: skip
        assert np.array_equal(one, other)
    assert not list(tmp_path.glob("*.new"))


def test_every_stratum_has_enough_accounts(calibration: Calibration) -> None:
    assert np.diff(calibration.starts).min() >= GuardSettings().stratum_accounts
    assert calibration.starts[-1] == calibration.accounts


def test_strata_of_a_large_calibration_reach_the_rarest_rate() -> None:
    settings = GuardSettings()
    fewest = [fewest_of_a_stratum(n, settings) for n in (2_750, 20_000, 80_000, 10**6)]
    assert fewest == [1000, 2500, 10_000, 10_000]
    assert conformal(1.0, np.zeros(fewest[-1])) < 1e-4


def test_frozen_frequencies_are_looked_up(calibration: Calibration) -> None:
    frozen = Frozen(np.array([3, 9], dtype=np.uint64), np.array([5, 7]), 100)
    assert frozen.of(np.array([1, 3, 9, 12], dtype=np.uint64)).tolist() == [0, 5, 7, 0]
    nothing = Frozen(np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64), 1)
    assert nothing.of(np.array([3], dtype=np.uint64)).tolist() == [0]


def test_what_is_no_calibration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"no")
    with pytest.raises(DataError, match="Calibrate again"):
        Calibration.load(path)
    with pytest.raises(DataError, match="Calibrate again"):
        Calibration.load(tmp_path / "missing")
    np.savez(tmp_path / "other.npz", a=np.zeros(1))
    with pytest.raises(DataError, match="Calibrate again"):
        Calibration.load(tmp_path / "other.npz")


def test_a_damaged_calibration_is_refused(tmp_path: Path, calibration: Calibration) -> None:
    path = tmp_path / "file"
    calibration.save(path)
    whole = path.read_bytes()
    middle = len(whole) // 2
    damaged = [whole[:middle], whole[:middle] + bytes(64) + whole[middle + 64 :]]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(DataError, match="Calibrate again"):
            Calibration.load(path)


def test_another_version_is_refused(
    tmp_path: Path, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillhouse.guard.calibrate._VERSION", 99)
    calibration.save(tmp_path / "newer")
    monkeypatch.undo()
    with pytest.raises(DataError, match="version 99"):
        Calibration.load(tmp_path / "newer")


def test_a_window_of_another_length_is_refused(tmp_path: Path, calibration: Calibration) -> None:
    week = Traffic(1, days=4)
    week.benign(300)
    with pytest.raises(EvidenceError, match="windows of the same length"):
        detect(week.write(tmp_path), GuardSettings(permutations=19_999), calibration)


def test_a_calibration_under_other_settings_is_refused(
    tmp_path: Path, calibration: Calibration
) -> None:
    week = benign_week(2, 300)
    with pytest.raises(ConfigError, match="'linked'"):
        detect(week.write(tmp_path), GuardSettings(linked=0.4), calibration)
