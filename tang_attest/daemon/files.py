"""Open files: each connection is one, and a held request of an agent keeps its connection."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from typing import Final

import structlog

_log: Final = structlog.get_logger("files")


def allow_open_files(count: int) -> int:
    """Raise this process's soft limit to *count*, as far as the hard limit allows; return the limit that
    holds then.

    systemd starts services with a soft limit of 1,024, for programs that still use select(2).  If a
    service's filter of system calls forbids reading and changing it (``~@resources``), the limit stays as its
    unit sets it.
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


class OpenFiles:
    """Logs once that no further file can be opened, and once that files can be opened again.

    libuv then ends connections as it takes them, and reports nothing.
    """

    def __init__(self) -> None:
        self._short = False

    async def look(self) -> None:
        """Try to open a file, and log a change."""
        try:
            os.close(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
            short = False
        except OSError as error:
            if error.errno not in {errno.EMFILE, errno.ENFILE}:
                raise
            short = True
        if short and not self._short:
            _log.error(
                "no-open-files", hint="connections are ended: raise LimitNOFILE, or lower max_connections"
            )
        if self._short and not short:
            _log.info("open-files-again")
        self._short = short
