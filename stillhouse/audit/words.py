"""The words a verdict may be given in, and sentences that more than one test must say.

In: nothing. Out: constants. They are fixed for all audits; a test holds every sentence
of a report against `FORBIDDEN`.
"""

from __future__ import annotations

__all__ = [
    "EVIDENCE",
    "FORBIDDEN",
    "INTENT",
    "NONE_FOUND",
    "NOT_ENOUGH",
    "NOT_INNOCENT",
    "REFUSED",
    "REPORTED",
    "VERDICTS",
]

EVIDENCE = "evidence"
"""A design-based p-value at or below the level fixed beforehand, after correction."""
NONE_FOUND = "no evidence found"
"""A test that could have seen something did not; it says how small an effect it could have seen."""
NOT_ENOUGH = "not enough evidence"
"""Too few units for any outcome to reach the level."""
REPORTED = "reported only"
"""A figure without an error rate of its own."""
REFUSED = "refused"
"""A check that looks at both sides alike failed, so the number would not mean what it says."""

VERDICTS = (EVIDENCE, NONE_FOUND, NOT_ENOUGH, REPORTED, REFUSED)

FORBIDDEN = ("prove", "clears", "cleared", "conclusive", "guilty")
"""Words no verdict uses; matched at the beginning of words, whatever the case."""

INTENT = (
    "Why a model was trained on these answers, by whom, and whether directly or through text that "
    "others published cannot be seen from its behaviour."
)
NOT_INNOCENT = (
    "A large p-value is no sign of innocence: it says that this test, on these data, saw nothing."
)
