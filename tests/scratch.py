"""The directory for scratch files of tests: in memory where there is room, because databases flush to it.

    python -m tests.scratch           prints it, for `make check` and the first part of `make test`
    python -m tests.scratch boots     the same for the tests that boot and install whole systems

Databases still call fsync; a file system in memory answers at once.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Final

_MEMORY: Final = Path("/dev/shm")
#: Disks of emulated machines and root trees, beside the memory of the machines.
_BOOTS_GIB: Final = 8
_QUICK_GIB: Final = 2


def directory(*, boots: bool = False) -> Path:
    """Return /dev/shm, or /tmp where that is small (containers), runs no programs, or is not ours to write to.

    With *boots* it has to have room for whole systems, with devices and programs like su.
    """
    gib, unfit = _QUICK_GIB, os.ST_NOEXEC
    if boots:
        gib, unfit = _BOOTS_GIB, os.ST_NOEXEC | os.ST_NODEV | os.ST_NOSUID
    try:
        options, free = os.statvfs(_MEMORY).f_flag, shutil.disk_usage(_MEMORY).free
    except OSError:
        return Path("/tmp")
    fits = min(free, _available()) >= gib << 30
    return _MEMORY if fits and not options & unfit and os.access(_MEMORY, os.W_OK) else Path("/tmp")


def _available() -> int:
    """Bytes that programs can still have without swapping (proc(5), MemAvailable)."""
    [kibibytes] = re.findall(r"(?m)^MemAvailable: *(\d+) kB$", Path("/proc/meminfo").read_text())
    return int(kibibytes) << 10


if __name__ == "__main__":
    print(directory(boots=sys.argv[1:] == ["boots"]))
