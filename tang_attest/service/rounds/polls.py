"""Held requests of agents; each costs no more than a future."""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from typing import Final

#: The most held requests of one machine: its agent has one, and another for a moment when it reconnects.
PER_KEY: Final = 2


class Woken(Enum):
    """Reason that a request is held no longer."""

    TIME = auto()  # its time is over, or the server stops
    LOOK = auto()  # something changed: a round may be due
    PUSHED_OUT = auto()  # by a newer request of the same machine


class Polls:
    """Held requests by ``kid``.

    Only requests with a ticket get here, so an unauthenticated client holds nothing.  An attacker with a
    stolen ticket can push out the machine's own request, which is then answered with a challenge: the machine
    is busier, never silent.
    """

    def __init__(self) -> None:
        self._held: dict[str, list[asyncio.Future[Woken]]] = {}
        self._closed = False

    @property
    def count(self) -> int:
        """Return the number of requests that are held now."""
        return sum(len(futures) for futures in self._held.values())

    async def hold(self, kid: str, seconds: float) -> Woken:
        """Hold a request of *kid* for *seconds* at most; return the reason that it ended."""
        if self._closed:
            return Woken.TIME
        futures = self._held.setdefault(kid, [])
        if len(futures) >= PER_KEY:
            _wake(futures[0], Woken.PUSHED_OUT)
        future: asyncio.Future[Woken] = asyncio.get_running_loop().create_future()
        futures.append(future)
        try:
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError:
            return Woken.TIME
        finally:
            futures.remove(future)
            if not futures and self._held.get(kid) is futures:
                del self._held[kid]

    def wake(self, kid: str) -> None:
        """Let every held request of *kid* check again."""
        for future in self._held.get(kid, ()):
            _wake(future, Woken.LOOK)

    def wake_all(self) -> None:
        """Let every held request check again."""
        for kid in list(self._held):
            self.wake(kid)

    def close(self) -> None:
        """Release all requests and hold no further one, because the server stops."""
        self._closed = True
        for futures in self._held.values():
            for future in futures:
                _wake(future, Woken.TIME)


def _wake(future: asyncio.Future[Woken], why: Woken) -> None:
    if not future.done():
        future.set_result(why)
