"""Room for worker processes on this machine: its processors, and the memory that the service may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

#: Memory of one worker, in bytes: under attack it stays below 300 MB (docs/performance.md).
WORKER_BYTES: Final = 400 * 2**20
#: The most that the setting ``workers`` takes.
MOST_WORKERS: Final = 64

_PROC: Final = Path("/proc")
_GROUPS: Final = Path("/sys/fs/cgroup")


def fitting_workers() -> int:
    """Return the number of workers that fit: one for each processor that this process may use and each
    :data:`WORKER_BYTES` of its memory, and always one.
    """
    fitting = usable_memory() // WORKER_BYTES
    return max(1, min(len(os.sched_getaffinity(0)), fitting, MOST_WORKERS))


def usable_memory(proc: Path = _PROC, groups: Path = _GROUPS) -> int:
    """Return the bytes of memory that this process and its siblings may use in all.

    They are the machine's, or less by a limit of a control group (systemd's ``MemoryMax``, a container's) as cgroups(7),
    version 2, has them.  *proc* and *groups* are the places of both file systems.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_limits(proc, groups)])


def _limits(proc: Path, groups: Path) -> Iterator[int]:
    """Yield the limits of the process's control group and of those around it; none that cannot be read."""
    for line in _read(proc / "self/cgroup").splitlines():
        if not line.startswith("0::/"):
            continue
        own = groups / line.removeprefix("0::/")
        for group in (own, *own.parents):
            if not group.is_relative_to(groups):
                break
            limit = _read(group / "memory.max").strip()
            if limit.isascii() and limit.isdecimal():
                yield int(limit)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
