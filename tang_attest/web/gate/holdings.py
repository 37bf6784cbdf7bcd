"""The holders of connections, their deadlines, and the choice of a connection to end when there is no room.

Rules of this module:

* A connection that waits for its client may be ended at any time, and is at the latest when its time is over;
  one that waits for this server may not.
* When there is no room, the network that holds most loses the connection that has waited longest.  An
  attacker who fills the server therefore pushes out connections of their own.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Final

_NEVER: Final = float("inf")


class Held:
    """One connection.  ``cut`` ends it at once; ``None`` where it cannot be ended."""

    __slots__ = ("_holdings", "address", "cut", "network", "until")

    def __init__(
        self, holdings: Holdings, network: str | None, address: str | None, cut: Callable[[], None] | None
    ) -> None:
        self._holdings, self.network, self.address, self.cut = holdings, network, address, cut
        self.until = _NEVER

    def wait(self, seconds: float) -> None:
        """Note that the connection waits for the client from now on, for *seconds* at most."""
        self._holdings.wait(self, seconds)

    def work(self) -> None:
        """Note that the client waits for this server from now on."""
        self._holdings.work(self)


class Holdings:
    """The connections of a worker.  An exempt network is ``None``, and gives way when no other can."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._all: set[Held] = set()
        self._waiting: dict[str | None, dict[Held, None]] = {}  # each with the oldest first
        self._count_of: Counter[str | None] = Counter()

    def __len__(self) -> int:
        return len(self._all)

    def of(self, network: str | None) -> int:
        """Return the number that *network* holds."""
        return self._count_of.get(network, 0)

    def add(self, network: str | None, address: str | None, cut: Callable[[], None] | None) -> Held:
        """Add a connection from *address*, which counts as *network*."""
        held = Held(self, network, address, cut)
        self._all.add(held)
        self._count_of[network] += 1
        return held

    def remove(self, held: Held) -> None:
        """Remove a connection that is gone, or about to be; calling it again does nothing."""
        if held not in self._all:
            return
        self.work(held)
        self._all.remove(held)
        self._count_of[held.network] -= 1
        if not self._count_of[held.network]:
            del self._count_of[held.network]

    def wait(self, held: Held, seconds: float) -> None:
        """See :meth:`Held.wait`."""
        if held.cut is None or held not in self._all:
            self.work(held)
            return
        held.until = self._clock() + seconds
        waiting = self._waiting.setdefault(held.network, {})
        waiting.pop(held, None)  # it is the newest now
        waiting[held] = None

    def work(self, held: Held) -> None:
        """See :meth:`Held.work`."""
        held.until = _NEVER
        waiting = self._waiting.get(held.network)
        if waiting is not None and held in waiting:
            del waiting[held]
            if not waiting:
                del self._waiting[held.network]

    def make_room(self) -> bool:
        """End the connection that has waited longest, of the network that holds most; return False when none
        waits.
        """
        known = [network for network in self._waiting if network is not None]
        if not known and None not in self._waiting:
            return False
        network = max(known, key=self._count_of.__getitem__) if known else None
        self._end(next(iter(self._waiting[network])))
        return True

    def end_overdue(self) -> int:
        """End the connections that have waited for too long; return their number."""
        now = self._clock()
        overdue = [held for waiting in self._waiting.values() for held in waiting if held.until < now]
        for held in overdue:
            self._end(held)
        return len(overdue)

    def _end(self, held: Held) -> None:
        cut = held.cut
        self.remove(held)
        if cut is not None:
            cut()
