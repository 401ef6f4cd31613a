"""Settings of the benchmark: which cases, which seeds, how large.

In: options of the command line. Out: a frozen model and the sizes that follow from it. The seeds
of the published table stand here and are used for nothing else: whoever develops uses the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from stillhouse.settings import InputPath, Settings

__all__ = ["DEVELOPMENT_SEEDS", "FINAL_SEEDS", "BenchmarkSettings", "Sizes"]

FINAL_SEEDS = (835_337, 918_571, 990_719, 1_087_439, 1_153_889)
"""Of the published table. Nothing was tuned on them, and nothing may be."""
DEVELOPMENT_SEEDS = (11, 12, 13, 14, 15, 660_103, 724_211)
"""For everything else; `quick` uses the first. The last two stood in the table until they were
looked at and the detector was changed for what they showed."""

_LEAST_BENIGN = 2500  # so that a calibration has the thousand accounts that one stratum takes


class BenchmarkSettings(Settings):
    """What is measured, and on which simulated weeks."""

    quick: bool = False
    """Every case at toy sizes on one development seed, in minutes: that it runs, not how well."""
    scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Accounts, exchanges and weeks as a share of the published table's; below 1 goals are not
    judged."""
    seed: tuple[int, ...] = ()
    """Seeds, instead of the published table's five."""
    only: tuple[str, ...] = ()
    """Cases to run; none runs all."""
    rates: InputPath | None = None
    """Table of real clients' rates, for the benign populations; none: the fitted model."""
    prompts: tuple[InputPath, ...] = ()
    """Files or folders of real prompts, used beside synthetic ones."""
    keep: bool = False
    """Keep the simulated weeks' events; else they go when nothing needs them any more."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Processes side by side; each takes steps that share no week with another's, and some 3 GiB.
    Seconds of single scans then mean little, except those of `speed`, which runs last and alone."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of this run."""
        if self.seed:
            return self.seed
        return DEVELOPMENT_SEEDS[:1] if self.quick else FINAL_SEEDS

    @property
    def judged(self) -> bool:
        """Whether goals are judged: full sizes, and the seeds that nothing was tuned on."""
        return not self.quick and self.scale == 1.0 and self.seeds == FINAL_SEEDS

    @property
    def sizes(self) -> Sizes:
        """The sizes of this run."""
        return _QUICK if self.quick else _FULL.scaled(self.scale)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large everything is."""

    large: int = 100_000
    """Benign accounts of the weeks that recall, error rates and sizes are measured on."""
    middle: int = 20_000
    """Benign accounts of the weeks of ablation, metadata and evasion."""
    recall: tuple[int, ...] = (200, 200, 300, 400)
    """Accounts of the campaigns with half cover."""
    hydra: int = 1000
    """Accounts of the campaign with 90 % cover."""
    by_size: tuple[tuple[int, int, int], ...] = (
        (5, 1000, 4), (20, 1000, 3), (20, 10_000, 2), (200, 1000, 1), (200, 10_000, 1),
        (200, 100_000, 1), (1000, 10_000, 1), (1000, 100_000, 1), (24_000, 100_000, 1),
        (24_000, 1_000_000, 1),
    )  # fmt: skip
    """(accounts, exchanges of the campaign's own, campaigns of each seed)."""
    grid: int = 200
    """Accounts of each campaign of the evasion grid."""
    paraphrases: tuple[str, ...] = ("none", "synonyms", "templates", "rewriting")
    covers: tuple[float, ...] = (0.0, 0.5, 0.9, 0.95)
    hard_events: int = 100_000
    """Expected events of a week of hard negatives."""
    hard_weeks: int = 20
    """Mixed benign weeks of each seed."""
    kind_weeks: int = 1
    """Weeks of each seed in which one kind of hard negative has a quarter of the accounts."""
    speed: tuple[int, ...] = (1_000_000, 4_000_000)
    """Events of the timed scans."""
    windows: int = 1500
    """Events of a window of the MMD test, as in its source."""

    def scaled(self, share: float) -> Sizes:
        """The same with accounts, exchanges and weeks cut to a share, within what can be run.

        Campaigns of fixed size are only cut to a hundredth of the benign accounts, so that they
        stay as rare as in the published table.
        """
        if share == 1.0:
            return self

        def cut(number: int, least: int) -> int:
            return min(number, max(least, round(share * number)))

        large, middle = cut(self.large, _LEAST_BENIGN), cut(self.middle, _LEAST_BENIGN)
        rare, rare_middle = max(large // 100, 20), max(middle // 100, 20)
        by_size: dict[tuple[int, int], int] = {}
        for accounts, exchanges, copies in self.by_size:
            small = (cut(accounts, 5), cut(exchanges, 200))
            by_size[small] = max(by_size.get(small, 0), copies)
        return replace(
            self, large=large, middle=middle, hydra=min(self.hydra, rare),
            recall=tuple(min(number, rare) for number in self.recall),
            by_size=tuple((*size, copies) for size, copies in by_size.items()),
            grid=min(self.grid, rare_middle), hard_weeks=cut(self.hard_weeks, 1),
            hard_events=cut(self.hard_events, 5000), windows=cut(self.windows, 200),
            speed=tuple(cut(number, 5000) for number in self.speed),
        )  # fmt: skip


_FULL = Sizes()
_QUICK = Sizes(
    large=_LEAST_BENIGN, middle=_LEAST_BENIGN, recall=(20, 20, 25, 30), hydra=40,
    by_size=((5, 200, 2), (20, 400, 1), (40, 400, 1), (100, 2000, 1)), grid=20,
    paraphrases=("none", "rewriting"), covers=(0.5, 0.9), hard_events=8000, hard_weeks=1,
    kind_weeks=1, speed=(5000, 20_000), windows=200,
)  # fmt: skip
