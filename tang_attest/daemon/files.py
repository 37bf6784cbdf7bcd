"""Open files: each connection is one, and a held request of an agent keeps its connection."""

from __future__ import annotations

import resource


def allow_open_files(count: int) -> int:
    """Raise this process's soft limit to *count*, as far as the hard limit lets it; the limit that holds then.

    systemd starts services with a soft limit of 1,024, for programs that still use select(2).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return count if soft == resource.RLIM_INFINITY else soft
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
