"""The evidence function of each test, by the name that plans give: what verification recomputes.

In: nothing. Out: a mapping. Importing this needs neither torch nor a model.
"""

from __future__ import annotations

from collections.abc import Mapping

from stillhouse.audit import identity, radioactivity, twin
from stillhouse.audit.verify import EvidenceFunction

__all__ = ["FUNCTIONS"]

FUNCTIONS: Mapping[str, EvidenceFunction] = {
    "twin": twin.evidence,
    "watermark": radioactivity.evidence,
    "identity": identity.evidence,
}
