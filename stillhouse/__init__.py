"""Stillhouse: distil a student, guard an API, audit a suspect.

One documented entry per verb, resolved on first use: `stillhouse.collect(...)`,
`stillhouse.train(...)`, `stillhouse.evaluate(...)`, `stillhouse.audit_twin(...)`,
`.audit_watermark`, `.audit_identity`, `.audit_verify` and `stillhouse.guard_scan(...)`,
`.guard_calibrate`, `.guard_export`, `.guard_simulate`, `.guard_benchmark` are the functions the
command line calls. A verb that has a room to itself bears its name, so the room itself can be
called.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# verb (and room) -> the file in the room that holds the function of that name
_VERBS = {"collect": "run", "evaluate": "fidelity", "train": "loop"}

# function -> its file and its name there
_FUNCTIONS = {
    "audit_identity": ("audit.identity_audit", "identity_audit"),
    "audit_twin": ("audit.twin_audit", "twin_audit"),
    "audit_verify": ("audit.verify", "verify"),
    "audit_watermark": ("audit.watermark_audit", "watermark_audit"),
    "guard_benchmark": ("guard.benchmark", "benchmark"),
    "guard_calibrate": ("guard.scan", "guard_calibrate"),
    "guard_export": ("guard.export", "guard_export"),
    "guard_scan": ("guard.scan", "guard_scan"),
    "guard_simulate": ("guard.simulate", "simulate"),
}

__all__ = [
    "__version__",
    "audit_identity",
    "audit_twin",
    "audit_verify",
    "audit_watermark",
    "collect",
    "evaluate",
    "guard_benchmark",
    "guard_calibrate",
    "guard_export",
    "guard_scan",
    "guard_simulate",
    "train",
]

if TYPE_CHECKING:
    from stillhouse.audit.identity_audit import identity_audit as audit_identity
    from stillhouse.audit.twin_audit import twin_audit as audit_twin
    from stillhouse.audit.verify import verify as audit_verify
    from stillhouse.audit.watermark_audit import watermark_audit as audit_watermark
    from stillhouse.collect.run import collect
    from stillhouse.evaluate.fidelity import evaluate
    from stillhouse.guard.benchmark import benchmark as guard_benchmark
    from stillhouse.guard.export import guard_export
    from stillhouse.guard.scan import guard_calibrate, guard_scan
    from stillhouse.guard.simulate import simulate as guard_simulate
    from stillhouse.train.loop import train


class Verb(ModuleType):
    """A room that can be called: the call goes to the function of its name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the verb's function returns."""
        verb = self.__name__.rpartition(".")[2]
        return getattr(importlib.import_module(f"{self.__name__}.{_VERBS[verb]}"), verb)(
            *args, **kwargs
        )


def __getattr__(name: str) -> Any:
    """Resolve a verb on first use (PEP 562)."""
    if name in _FUNCTIONS:
        file, function = _FUNCTIONS[name]
        return getattr(importlib.import_module(f"stillhouse.{file}"), function)
    if name not in _VERBS:
        raise AttributeError(f"module 'stillhouse' has no attribute {name!r}")
    return importlib.import_module(f"stillhouse.{name}")


def __dir__() -> list[str]:
    """The public names."""
    return __all__
