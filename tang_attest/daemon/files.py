"""Open files: each connection is one, and a held request of an agent keeps its connection."""

from __future__ import annotations

import resource
from pathlib import Path


def allow_open_files(count: int) -> int:
    """Raise this process's soft limit to *count*, as far as the hard limit lets it; the limit that holds then.

    systemd starts services with a soft limit of 1,024, for programs that still use select(2).  Where a service's
    filter of system calls forbids to look and to change (``~@resources``), the limit is what its unit says.
    """
    try:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY or soft >= count:
            return count if soft == resource.RLIM_INFINITY else soft
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except OSError:
        return _limit_of_unit()
    return wanted


def _limit_of_unit() -> int:
    lines = Path("/proc/self/limits").read_text().splitlines()
    words = next(line for line in lines if line.startswith("Max open files")).split()
    return int(words[3])
