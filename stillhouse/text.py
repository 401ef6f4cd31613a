"""Text as data: tagged hashes of vocabularies, normal forms, and how near two texts are.

In: strings and vocabularies. Out: hashes, normalised texts, pairs that are the same or nearly so. Nothing here reads
files or knows of exchanges; what a caller does with a pair (drop it, refuse the run) is the caller's word.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

__all__ = ["tokenizer_hash"]


def tokenizer_hash(vocabulary: Mapping[str, int]) -> str:
    """'t1:' and the SHA-256 of the canonical {token: id}: equal for equal vocabularies, in whatever order they come.

    Token ids of two models mean the same exactly when these hashes are equal. Pass the whole vocabulary, added and
    special tokens included.
    """
    # ASCII escapes, so that tokens holding half a surrogate pair hash too.
    canonical = json.dumps(
        {token: int(number) for token, number in vocabulary.items()},
        sort_keys=True, separators=(",", ":"), ensure_ascii=True,
    )  # fmt: skip
    return "t1:" + hashlib.sha256(canonical.encode()).hexdigest()
