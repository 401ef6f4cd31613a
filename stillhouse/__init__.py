"""Stillhouse: distil a student, guard an API, audit a suspect. One documented entry per verb,
resolved lazily.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# verb -> where the function the CLI calls lives; nothing heavy is imported until the verb is used
_VERBS = {
    "collect": "stillhouse.collect.run",
    "train": "stillhouse.train.loop",
    "evaluate": "stillhouse.evaluate.fidelity",
}

__all__ = ["__version__", "collect", "evaluate", "train"]

if TYPE_CHECKING:
    from stillhouse.collect.run import collect
    from stillhouse.evaluate.fidelity import evaluate
    from stillhouse.train.loop import train


def __getattr__(name: str) -> Any:
    """Resolve a verb on first use (PEP 562)."""
    if name not in _VERBS:
        raise AttributeError(f"module 'stillhouse' has no attribute {name!r}")
    return getattr(importlib.import_module(_VERBS[name]), name)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
