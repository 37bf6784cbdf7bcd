"""The removal of used nonces: late enough that they are still stored when a clock goes back.

A used nonce is refused because it is stored, or because it expired.  If it were removed as soon as it expires
by the clock, a clock that was ahead and is corrected, or that is set back, would make it valid again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from tang_attest.ports.decisions import DecisionStore
from tang_attest.ports.world import Clock

#: The time after expiry.  A day is more than any wrong time zone.
KEEP: Final = timedelta(days=1)
#: The longest that a challenge may live (``challenge_ttl``).  A process that began under a clock that was
#: ahead forgets nothing before that has passed.
LONGEST_LIFE: Final = timedelta(hours=1)


class Forgetting:
    """Removes nonces by the time since this object was made, on the clock *monotonic* (seconds), which has no
    steps.
    """

    def __init__(
        self, store: DecisionStore, clock: Clock, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._clock, self._monotonic = store, clock, monotonic
        self._began_at, self._began = clock.now(), monotonic()

    async def sweep(self) -> int:
        """Remove the nonces that expired long enough ago; return their number.  Raises errors of the
        store.
        """
        passed = timedelta(seconds=self._monotonic() - self._began)
        if passed < LONGEST_LIFE:
            return 0
        return await self._store.prune(min(self._clock.now(), self._began_at + passed) - KEEP)
