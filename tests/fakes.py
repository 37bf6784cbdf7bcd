"""The few things tests fake: the clock and randomness."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Final

#: Seals the rows of registries that have no server's secret.
ROW_KEY: Final = b"rows" * 8


class FakeClock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)

    def now(self) -> datetime:
        """The time it was set to."""
        return self.time

    def advance(self, **span: float) -> None:
        """Move forward by timedelta(**span); negative moves back."""
        self.time += timedelta(**span)


class RealRandomness:
    """Random bytes of the operating system."""

    def bytes(self, count: int) -> bytes:
        """*count* bytes."""
        return os.urandom(count)
