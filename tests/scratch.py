"""The directory for scratch files of tests: in memory where there is room, because databases flush to it.

    python -m tests.scratch           prints it, for `make check` and the first part of `make test`

Databases still call fsync; a file system in memory answers at once.  The tests that boot and install whole systems have
gigabytes of files, and leave the memory to their emulators.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Final

_MEMORY: Final = Path("/dev/shm")
_LEAST_GIB: Final = 2


def directory() -> Path:
    """Return /dev/shm, or /tmp where that is small (containers), runs no programs, or is not ours to write to."""
    try:
        options, free = os.statvfs(_MEMORY).f_flag, shutil.disk_usage(_MEMORY).free
    except OSError:
        return Path("/tmp")
    fits = min(free, _available()) >= _LEAST_GIB << 30
    return _MEMORY if fits and not options & os.ST_NOEXEC and os.access(_MEMORY, os.W_OK) else Path("/tmp")


def _available() -> int:
    """Bytes that programs can still have without swapping (proc(5), MemAvailable)."""
    [kibibytes] = re.findall(r"(?m)^MemAvailable: *(\d+) kB$", Path("/proc/meminfo").read_text())
    return int(kibibytes) << 10


if __name__ == "__main__":
    print(directory())
