"""Working directory of benches, and of their figures."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

BUILD: Final = Path(__file__).parents[3] / "build"


@contextmanager
def workplace(name: str) -> Iterator[Path]:
    """A directory for *name*, gone afterwards.  Not in /tmp, which may be memory: a commit has to reach a disk."""
    BUILD.mkdir(exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=BUILD))
    try:
        yield work
    finally:
        shutil.rmtree(work)
