"""The directory for scratch files of the quick tests: in memory where there is room, because databases flush to it.

    python -m tests.scratch     prints it, for `make check`

Databases still call fsync; a file system in memory answers at once.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

_MEMORY: Final = Path("/dev/shm")
_ENOUGH: Final = 2 << 30


def directory() -> Path:
    """Return /dev/shm, or /tmp where that is small (containers), runs no programs, or is not ours to write to."""
    try:
        options, free = os.statvfs(_MEMORY).f_flag, shutil.disk_usage(_MEMORY).free
    except OSError:
        return Path("/tmp")
    fits = free >= _ENOUGH and not options & os.ST_NOEXEC and os.access(_MEMORY, os.W_OK)
    return _MEMORY if fits else Path("/tmp")


if __name__ == "__main__":
    print(directory())
