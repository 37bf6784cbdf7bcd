"""All duties of a server, in the order of their trial."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..report import Duty
from . import cases, enrollment, running, unlocking
from .client import Tested


def duties(vectors: Path = cases.VECTORS) -> Iterator[Duty[Tested]]:
    """Yield the duties; those of later sections need the enrollment of section 4."""
    yield from enrollment.DUTIES
    yield from unlocking.DUTIES
    yield from cases.requests(vectors)
    yield from running.DUTIES
    yield from cases.counters(vectors)
