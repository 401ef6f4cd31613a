"""Calibration: what benign traffic of the same window looks like to the detector.

    benign events -> Calibration: frequencies of keys, scores of accounts by stratum, clusters

In: events of accounts known to be benign. Out: a file that later scans are measured against. The
benign week is scored as an uncalibrated scan would score it. A later scan also leaves out keys that
this week knew, which lowers the scores of benign accounts; so a benign account's p-value is at most
as often below x as x says, as long as the traffic stays like the calibration's, in size, too.
"""

from __future__ import annotations

import io
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from stillhouse.errors import ConfigError, DataError, EvidenceError
from stillhouse.files import write_whole
from stillhouse.guard.hashing import Ints
from stillhouse.guard.key import fingerprint
from stillhouse.guard.keys import Frozen
from stillhouse.guard.population import KINDS, Population
from stillhouse.guard.settings import SCORING, GuardSettings

__all__ = ["Calibration", "conformal", "fewest_of_a_stratum", "strata"]

_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, BadZipFile,
           zlib.error)  # fmt: skip

_VERSION = 5
_VOLUMES = (8, 64, 512)
"""Events of an account at which strata of volume part: a few tries, a light user, a regular one, a
program. 26 a day over a week, the reported campaigns' rate, lies in the third."""
_FINEST, _STRATA = 10_000, 8
"""A p-value is no smaller than 1 over its stratum's accounts. Where there are enough, strata are
joined until the rarest rate that is told, 1e-4, can be reached in each; never to fewer than eight
equal ones."""
_WINDOW = 0.25

Floats = npt.NDArray[np.float64]


def strata(population: Population) -> Ints:
    """(accounts,) stratum of volume and kind, before small ones are joined."""
    volume = np.searchsorted(_VOLUMES, population.traffic.events_of, side="right")
    return volume * len(KINDS) + population.kind[population.customer_of]


def conformal(score: float | Floats, benign: Floats) -> Floats:
    """p-value of scores: the share of benign ones at least as large, the account itself included.

    Args:
        score: of accounts under test.
        benign: sorted scores of the calibration's stratum.

    Source: Vovk, Gammerman and Shafer (2005), Algorithmic Learning in a Random World.
    """
    beyond = len(benign) - np.searchsorted(benign, score, side="left")
    return np.asarray((1 + beyond) / (len(benign) + 1), dtype=np.float64)


@dataclass(frozen=True)
class Calibration:
    """A benign window, measured."""

    frozen: Frozen
    scores: Floats
    """(accounts,) sorted within each joined stratum."""
    joined: Ints
    """(strata,) joined stratum of each stratum."""
    starts: Ints
    """(joined + 1,) where each joined stratum's scores begin."""
    clusters: Floats
    """-log10 p of the benign window's clusters in which two families spoke, ascending."""
    hours: float
    """Length of the window."""
    settings: dict[str, Any]
    key: str = ""
    """Fingerprint of the secret that its hashes were made with."""

    @property
    def accounts(self) -> int:
        """Benign accounts it rests on."""
        return len(self.scores)

    @property
    def strongest(self) -> float:
        """-log10 p of the strongest benign cluster; 0 where there was none."""
        return float(self.clusters[-1]) if len(self.clusters) else 0.0

    def p_values(self, population: Population, score: Floats) -> Floats:
        """(accounts,) conformal p-values within strata."""
        stratum = self.joined[strata(population)]
        out = np.ones(len(score))
        for number in np.unique(stratum):
            ours = stratum == number
            benign = self.scores[self.starts[number] : self.starts[number + 1]]
            out[ours] = conformal(score[ours], benign)
        return out

    @property
    def least_p_values(self) -> list[float]:
        """Least p-value that each joined stratum can give, ascending."""
        return sorted((1 / (1.0 + np.diff(self.starts))).tolist())

    def least_p(self, population: Population) -> Floats:
        """(accounts,) least p-value that each account's stratum can give."""
        sizes = np.diff(self.starts)
        return 1 / (1.0 + sizes[self.joined[strata(population)]])

    def check_key(self, key: bytes) -> None:
        """Refuse a scan whose names are hashed with another secret: no key of one is in the other.

        Raises:
            DataError: they are.
        """
        if self.key and self.key != fingerprint(key):
            raise DataError(
                "calibration, keyed hashes", "made with another secret", "the scan's",
                "Scan with the calibration's key file (--key), into a new folder where this one "
                "has events already",
            )  # fmt: skip

    def check(self, population: Population, settings: GuardSettings) -> None:
        """Refuse a calibration that does not fit a scan.

        Args:
            population: of the scan.
            settings: of the scan.

        Raises:
            ConfigError: settings that scores follow from are others.
            EvidenceError: its window is of another length.
        """
        for name, value in settings.model_dump(mode="json", include=set(SCORING)).items():
            if self.settings.get(name) != value:
                raise ConfigError(
                    f"calibration, setting '{name}'",
                    f"{self.settings.get(name)} there, {value} here",
                    "the same in both: scores follow from it", "Calibrate again with this setting",
                )  # fmt: skip
        first, last = population.traffic.span
        hours = (last - first) / 3.6e9
        if abs(hours - self.hours) > _WINDOW * max(hours, self.hours):
            raise EvidenceError(
                "calibration, length of the window", f"{self.hours:.0f} hours against "
                f"{hours:.0f} of the scan", "windows of the same length (within a quarter)",
                f"Scan the last days only (--days {self.hours / 24:.3g}), or calibrate on benign "
                "traffic of as many days as are scanned",
            )  # fmt: skip

    def save(self, path: Path) -> None:
        """Write it to a file."""
        facts = {"version": _VERSION, "hours": self.hours, "settings": self.settings,
                 "customers": self.frozen.customers, "key": self.key}  # fmt: skip
        held = io.BytesIO()
        np.savez_compressed(
            held, facts=np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8),
            keys=self.frozen.keys, counts=self.frozen.counts.astype(np.uint32),
            scores=self.scores, joined=self.joined, starts=self.starts, clusters=self.clusters,
        )  # fmt: skip
        write_whole(path, held.getvalue())

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read it back.

        Raises:
            DataError: the file is none, or of another version.
        """
        try:
            # numpy leaves a file open that turns out to be no archive
            with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
                facts = json.loads(held["facts"].tobytes())
                arrays = {name: held[name] for name in held.files if name != "facts"}
            version = facts.get("version")
            frozen = Frozen(
                arrays["keys"], arrays["counts"].astype(np.int64), int(facts["customers"])
            )
            found = cls(
                frozen, arrays["scores"], arrays["joined"], arrays["starts"], arrays["clusters"],
                float(facts["hours"]), dict(facts["settings"]), str(facts.get("key", "")),
            )  # fmt: skip
        except _DAMAGE as problem:
            raise DataError(
                f"calibration {path}", str(problem).partition("\n")[0] or "nothing readable",
                "a file that `guard calibrate` wrote", "Calibrate again",
            ) from None  # fmt: skip
        if version != _VERSION:
            raise DataError(
                f"calibration {path}", f"version {version}", f"version {_VERSION}",
                "Calibrate again with this release",
            )  # fmt: skip
        return found

    @classmethod
    def of_scores(
        cls, population: Population, score: Floats, clusters: Floats, frozen: Frozen,
        settings: GuardSettings,
    ) -> Calibration:  # fmt: skip
        """A calibration from a scored benign window.

        Raises:
            EvidenceError: too few accounts for one stratum.
        """
        stratum = strata(population)
        if len(score) < settings.stratum_accounts:
            raise EvidenceError(
                "calibration", f"{len(score)} accounts", f"at least {settings.stratum_accounts}",
                "Calibrate on more benign accounts, or lower stratum_accounts and read the "
                "p-values with care",
            )  # fmt: skip
        joined = _join(stratum, fewest_of_a_stratum(len(score), settings))
        order = np.lexsort((score, joined[stratum]))
        sizes = np.bincount(joined[stratum], minlength=int(joined.max()) + 1)
        first, last = population.traffic.span
        return cls(
            frozen, score[order], joined, np.concatenate([[0], np.cumsum(sizes)]),
            np.sort(clusters), (last - first) / 3.6e9, settings.model_dump(mode="json"),
        )  # fmt: skip


def fewest_of_a_stratum(accounts: int, settings: GuardSettings) -> int:
    """Accounts that each stratum of a calibration of so many has at least."""
    return max(settings.stratum_accounts, min(_FINEST, accounts // _STRATA))


def _join(stratum: Ints, fewest: int) -> Ints:
    """(strata,) number of the joined stratum: kinds of a volume first, then neighbouring volumes.

    Decided by the calibration's numbers alone, before any score is looked at, so p-values within
    joined strata stay valid.
    """
    kinds, volumes = len(KINDS), len(_VOLUMES) + 1
    count = np.bincount(stratum, minlength=kinds * volumes).reshape(volumes, kinds)
    label = np.arange(kinds * volumes).reshape(volumes, kinds)
    for volume in range(volumes):
        small = count[volume] < fewest
        if small.any():
            largest = int(np.argmax(count[volume]))
            small[largest] = True
            label[volume][small] = label[volume][largest]
    for volume in list(range(volumes - 1, 0, -1)) + list(range(volumes - 1)):
        for mark in np.unique(label[volume]):
            if count[label == mark].sum() < fewest:
                near = volume - 1 if volume else 1
                label[label == mark] = label[near][int(np.argmax(count[near]))]
    return np.unique(label.ravel(), return_inverse=True)[1]
