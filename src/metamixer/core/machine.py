"""CPU cores and memory available to this process (limits of a container count), and how its threads wait."""

from __future__ import annotations

import os
from pathlib import Path

_CONTAINER = Path("/sys/fs/cgroup")
_SYSTEM = Path("/proc")


def cores() -> int:
    """The number of CPU cores that this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _words(_CONTAINER / "cpu.max")  # "200000 100000": microseconds of CPU time per microseconds of wall time
    if len(quota) == 2 and quota[0] != "max":
        count = min(count, int(quota[0]) // int(quota[1]))
    return max(1, count)


def load() -> float:
    """The average number of busy CPU cores in the last minute; of the whole machine, even in a container."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def limit_spinning() -> None:
    """Let threads of OpenMP spin for microseconds instead of milliseconds before they sleep.

    Threads that wait for each other at the end of an operation spin. If one of them has lost its core to another
    program, the others keep theirs busy for nothing, and training becomes many times slower. Has an effect only before
    torch is imported, with GNU's OpenMP (wheels for Linux); ``GOMP_SPINCOUNT`` and ``OMP_WAIT_POLICY`` are respected.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def available_memory() -> float:
    """Bytes that can still be allocated; infinity if the system does not report it."""
    found = float(_named(_SYSTEM / "meminfo", "MemAvailable:", default="inf")) * 1024
    limit, taken = _words(_CONTAINER / "memory.max"), _words(_CONTAINER / "memory.current")
    if limit and taken and limit != ["max"]:
        cache = int(_named(_CONTAINER / "memory.stat", "inactive_file", default="0"))  # can be reclaimed
        found = min(found, int(limit[0]) - int(taken[0]) + cache)
    return found


def resident_memory(process: int) -> int:
    """Resident memory of a process in bytes; 0 if the system does not report it."""
    return 1024 * int(_named(_SYSTEM / str(process) / "status", "VmRSS:", default="0"))


def _named(path: Path, name: str, default: str) -> str:
    words = _words(path)
    return words[words.index(name) + 1] if name in words else default


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return []
