"""Memory that this process no longer uses, given back to the system."""

from __future__ import annotations

import ctypes
import gc
import sys

__all__ = ["give_back_memory"]


def give_back_memory() -> None:
    """Return what was freed to the system: glibc keeps freed blocks for itself, and what comes next
    would come on top of them. Elsewhere only collects garbage.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
