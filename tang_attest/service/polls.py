"""Requests of agents that are held until there is something to do: nothing but a future for each."""

from __future__ import annotations

import asyncio
from typing import Final

#: Held requests of one machine: its agent has one, and another for a moment when it reconnects.
PER_KEY: Final = 2


class Polls:
    """Held requests by ``kid``.

    Only who showed a ticket gets here, so a stranger holds nothing.  A thief of a ticket can push the machine's own
    request out, which is then *answered with a challenge*: he makes a machine busier, never silent.
    """

    def __init__(self) -> None:
        self._held: dict[str, list[asyncio.Future[None]]] = {}
        self._closed = False

    @property
    def count(self) -> int:
        """Requests that are held now."""
        return sum(len(futures) for futures in self._held.values())

    async def hold(self, kid: str, seconds: float) -> bool:
        """Wait; true when somebody woke *kid*, false when *seconds* have passed or the server stops."""
        if self._closed:
            return False
        futures = self._held.setdefault(kid, [])
        if len(futures) >= PER_KEY:
            _wake(futures[0])
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        futures.append(future)
        try:
            async with asyncio.timeout(seconds):
                await future
        except TimeoutError:
            return False
        finally:
            futures.remove(future)
            if not futures:
                self._held.pop(kid, None)
        return not self._closed

    def wake(self, kid: str) -> None:
        """Let every held request of *kid* go on."""
        for future in self._held.get(kid, ()):
            _wake(future)

    def close(self) -> None:
        """Let all go on, and hold none any more: the server stops."""
        self._closed = True
        for kid in list(self._held):
            self.wake(kid)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
