"""Settings of the detector: every threshold that decides is written here once, with its source.

In: options of the command line. Out: a frozen model. Nothing heavy is imported, so that `--help`
is instant.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from stillhouse.settings import Count, Settings, Share

__all__ = ["FAMILIES", "MAX_REJECTED", "SCORING", "GuardSettings"]

MAX_REJECTED = 0.01
"""Share of lines that may be no events before logs are refused. Ours, by hand."""
FAMILIES = ("content", "timing", "infrastructure", "onboarding", "succession")
"""Evidence families: each speaks for itself, and two of them must."""
SCORING = (
    "fewest_customers", "one_customer_accounts", "popular_share", "popular_customers", "linked",
    "disjoint_share", "cohesion", "unshared", "one_place", "least_share", "per_customer",
    "same_schedule", "even_load", "counted", "sharing", "families", "bin_hours", "most_tested",
    "family_level", "permutations",
)  # fmt: skip
"""Settings on which scores depend: a scan has those of its calibration."""


class GuardSettings(Settings):
    """What links accounts, what is tested, and which error rates the decisions keep."""

    # ---- what is judged ----
    days: Annotated[float, Field(gt=0)] | None = None
    """Only requests of the last so many days, counted from the newest; all by default. A folder
    that grows by a log a day is scanned over as many days as its calibration has."""

    # ---- what may be linked ----
    fewest_customers: Annotated[int, Field(ge=3)] = 5
    """Unrelated customers that a cluster has at least; fewer are no campaign. Also the least that
    a report may name without describing single people."""
    one_customer_accounts: Annotated[int, Field(ge=0)] = 25
    """Up to so many accounts with one payment method count as one customer; with more, the shared
    payment counts as evidence. 0 lets every account stand for itself."""
    popular_share: Annotated[float, Field(gt=0, le=1)] = 0.02
    """Without a calibration, a key that more of all customers have than this links nothing to
    others (a client's system prompt); what it marks is still tested by itself. With one, popular
    keys are those that benign customers are known to have."""
    popular_customers: Count = 300
    """A key that no more customers have than this is never popular, however few there are."""
    known_share: Annotated[float, Field(ge=0, le=1)] = 5e-5
    """A key that more of the calibration's customers have than this is known as benign and left
    out."""
    linked: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Correlation (phi) of the customers of two keys from which they are one template."""
    disjoint_share: Share = 0.5
    """Least share of payloads on a template that no second customer sent. A class or a public
    benchmark has few; lists shared out over accounts have nearly all."""
    cohesion: Share = 0.6
    """Least probability that two customers of a content cluster have a key of it in common. A
    template's have 0.8 and more, twenty wordings at random too; phrases that make a chain through
    the writers of one language 0.1 to 0.5."""
    unshared: Share = 0.9
    """Least share of such payloads in a cluster that is called for review. Students of one class
    reword their exercises and have 0.5 to 0.75, several classes together up to 0.87, campaigns
    0.98."""
    least_share: Share = 0.02
    """Least share of what its customers send that a cluster called for review is (median). Firms
    that send thousands of requests hit one another's phrases by chance: some thousandths of their
    traffic. A campaign's own requests are a twentieth even under 95 % of cover."""
    per_customer: Annotated[float, Field(ge=1)] = 2.0
    """Least events of a template per customer and half of the window; below it nothing can be said
    about their timing."""
    one_place: Share = 0.8
    """Share of a cluster's customers at home in one network from which it is not called for
    review: an office, a campus. It is observed, and its page says so."""

    same_schedule: Annotated[float, Field(gt=0)] = 0.5
    """Least ratio of coincidences in time between customers to those within one from which a
    cluster can be one schedule (1: a single queue dealt out; people who share a product have 0.05
    to 0.3, since each works in sessions of his own)."""
    even_load: Annotated[float, Field(gt=0)] = 0.5
    """Largest spread (standard deviation of the logarithm, counting noise taken out) of customers'
    daily rates from which a load can be balanced. Clients of real services have 1.5 and more."""

    counted: Annotated[float, Field(ge=0)] = 5.0
    """Median events a customer, in the testing half of the days, that the test of load balance
    needs. Of two or three events each, any load looks even."""
    sharing: Share = 0.2
    """Least share of a cluster's customers, beyond that of random groups, who have a payment,
    network, device or sign-up in common with another; below it a few who belong together (a class,
    an office) are among many who do not."""

    # ---- how it is tested ----
    families: tuple[str, ...] = FAMILIES
    """Evidence families used; the others are neither found by nor tested."""
    bin_hours: Annotated[float, Field(gt=0, le=24)] = 2.0
    """Width of the bins of activity."""
    permutations: Annotated[int, Field(ge=9_999)] = 299_999
    """Draws from the null of a cluster that looks like a campaign; others are given up after 99 or
    9,999. No p-value of a test that draws is below 1 / (draws + 1)."""
    most_tested: Annotated[int, Field(ge=20)] = 150
    """Customers of a cluster that enter the permutation tests, drawn at random."""

    # ---- what is decided ----
    false_discovery_rate: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Of clusters called for review (Benjamini and Hochberg). Where no campaign is there it is the
    probability of calling any, so 0.01 is one false campaign in 100 scans."""
    family_level: Annotated[float, Field(gt=0, lt=1)] = 0.001
    """A family speaks where its p-value is no larger."""
    account_level: Annotated[float, Field(gt=0, lt=1)] = 0.001
    """Conformal p-value from which a member of a campaign is called for review."""
    fewest_events: Count = 5
    """Events below which an account that nothing links is `insufficient`, not `allow`."""
    stratum_accounts: Count = 1000
    """Calibration accounts that a stratum has at least; smaller ones are joined."""

    # ---- what is excused and priced ----
    allow_organisations: tuple[str, ...] = ()
    """Declared organisations whose accounts are excused after scoring and listed: their names as
    the logs have them."""
    allow_accounts: tuple[str, ...] = ()
    """Accounts that are excused after scoring and listed."""
    input_usd_per_million_tokens: Annotated[float, Field(ge=0)] = 3.0
    """List price for the estimate where the log states no cost; set your own."""
    output_usd_per_million_tokens: Annotated[float, Field(ge=0)] = 15.0
    """List price for the estimate where the log states no cost; set your own."""
    seed: int = 7
    """Random seed of the permutation tests."""

    def popular(self, customers: int) -> float:
        """Customers above which a key is popular, where nothing is known of benign traffic."""
        return max(self.popular_share * customers, self.popular_customers)
