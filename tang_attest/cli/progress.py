"""Progress of a command that works for longer than two seconds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tang_attest.cli import output

#: Seconds between two lines.
EVERY_S = 2.0


class ProgressLine:
    """Rows that are done; any thread may report them."""

    def __init__(self) -> None:
        self._done, self._total = 0, 0

    def __call__(self, done: int, total: int) -> None:
        """Report *done* of *total* rows; a *total* of 0 is unknown."""
        self._done, self._total = done, total

    def __str__(self) -> str:
        if not self._done:
            return ""
        return f", {self._done} of {self._total} rows" if self._total else f", {self._done} rows"


@asynccontextmanager
async def shown(what: str) -> AsyncIterator[ProgressLine]:
    """Say every two seconds on stderr that *what* is still going on, and how far it is."""
    progress = ProgressLine()

    async def tell() -> None:
        seconds = 0.0
        while True:
            await asyncio.sleep(EVERY_S)
            seconds += EVERY_S
            output.say(f"{what}: {seconds:.0f} s{progress}")

    teller = asyncio.create_task(tell())
    try:
        yield progress
    finally:
        teller.cancel()
