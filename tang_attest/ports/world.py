"""The world: time, randomness, and the way out to other programs and servers."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol


class Clock(Protocol):
    """The time."""

    def now(self) -> datetime:
        """Now, aware, UTC."""


class Randomness(Protocol):
    """Random bytes fit for keys."""

    def bytes(self, count: int) -> bytes:
        """*count* fresh bytes."""


class Courier(Protocol):
    """Delivers notifications to programs and web servers."""

    async def deliver(self, action: str, body: bytes) -> None:
        """Give *body* (JSON) to *action* (``hook:NAME``, ``webhook:URL``).  Raises :class:`Unavailable`."""
