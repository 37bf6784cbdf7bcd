"""When used nonces are forgotten: late enough that a clock which goes back finds them remembered.

A nonce that was used is refused because it is remembered, or because it expired.  Were it forgotten as soon as the
clock says that it expired, a clock that was ahead and is set right, or is set back, would make it good again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from tang_attest.ports.decisions import DecisionStore
from tang_attest.ports.world import Clock

#: After they expired.  A day is more than any wrong time zone.
KEEP: Final = timedelta(days=1)
#: The longest that a challenge may live (``challenge_ttl``).  A process that began under a clock that was ahead
#: forgets nothing before that has passed.
LONGEST_LIFE: Final = timedelta(hours=1)


class Forgetting:
    """Forgets nonces by the time that passed since it was made, as *monotonic* (seconds) has it: steps do not count."""

    def __init__(
        self, store: DecisionStore, clock: Clock, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._clock, self._monotonic = store, clock, monotonic
        self._began_at, self._began = clock.now(), monotonic()

    async def sweep(self) -> int:
        """Forget what expired long enough ago; how many nonces.  Raises what the store raises."""
        passed = timedelta(seconds=self._monotonic() - self._began)
        if passed < LONGEST_LIFE:
            return 0
        return await self._store.prune(min(self._clock.now(), self._began_at + passed) - KEEP)
