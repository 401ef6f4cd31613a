"""Peak memory of a process and its children, sampled from /proc.

In: a running process. Out: bytes. Pages that processes share are counted once (proportional set
size); where the system does not say, pages in memory are. A peak shorter than the sampling interval
can be missed.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

__all__ = ["memory_of", "peak_of"]

_EVERY_SECONDS = 0.2
_PROC = Path("/proc")


def peak_of(child: subprocess.Popen[bytes]) -> int | None:
    """Peak bytes until the process ends; None where there is no /proc."""
    peak = 0
    while True:
        try:
            child.wait(_EVERY_SECONDS)
        except subprocess.TimeoutExpired:
            peak = max(peak, memory_of(child.pid))
        else:
            return peak or None


def memory_of(pid: int) -> int:
    """Bytes of a process and all that it started; 0 where nothing is known."""
    return sum(_bytes(one) for one in _family(pid))


def _family(pid: int) -> list[int]:
    """The process and its descendants, as far as they still run."""
    children: dict[int, list[int]] = {}
    for folder in _PROC.glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text()
        except OSError:
            continue  # it has ended meanwhile
        parent = int(state.rpartition(")")[2].split()[1])  # a name may hold blanks and brackets
        children.setdefault(parent, []).append(int(folder.name))
    found, index = [pid], 0
    while index < len(found):
        found += children.get(found[index], [])
        index += 1
    return found


def _bytes(pid: int) -> int:
    for name, field in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        try:
            lines = (_PROC / str(pid) / name).read_text().splitlines()
        except OSError:
            continue  # ended meanwhile, or not ours to read
        for line in lines:
            if line.startswith(field):
                return 1024 * int(line.split()[1])
    return 0
