"""The server's side of continuous verification that no request causes: operators' wishes, and machines that fall silent.

Each server and each of its workers sweeps for itself.  What two of them see, one of them writes: the store decides.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from tang_attest.errors import TangAttestError
from tang_attest.ports import Clock, Store, Watched
from tang_attest.service.polls import Polls
from tang_attest.service.verify import Verify

#: Machines of one policy that one sweep finds silent; the next sweep goes on.
BATCH: Final = 200
#: A sweep that comes later than this after the one before was not watching meanwhile (suspended, overloaded).
MAX_GAP: Final = timedelta(seconds=30)


class Watching:
    """Sweeps; call :meth:`sweep` about once a second."""

    def __init__(self, store: Store, verify: Verify, polls: Polls, clock: Clock) -> None:
        self._store, self._verify, self._polls, self._clock = store, verify, polls, clock
        #: Since when this process has been able to hear machines.  Who was silent before that may have spoken in vain.
        self._listening_since: datetime | None = None
        self._swept_at: datetime | None = None

    async def sweep(self) -> None:
        """Wake the machines that operators ask for, and write down who has fallen silent.

        Raises what the store raises; machines are then not silent because we could not write.
        """
        now = self._clock.now()
        if self._swept_at is None or not timedelta(0) <= now - self._swept_at <= MAX_GAP:
            self._listening_since = now
        self._swept_at = now
        try:
            for kid in await self._store.wanted():
                self._polls.wake(kid)
            for watched in await self._store.list_watched():
                await self._find_silent(watched, now)
        except TangAttestError:
            self._swept_at = None
            raise

    async def _find_silent(self, watched: Watched, now: datetime) -> None:
        watch = watched.conditions.watch
        if watch is None or self._listening_since is None or now - self._listening_since < watch.silence:
            return
        before = now - watch.silence
        silent = await self._store.silent(watched.policy, before, BATCH)
        if not silent:
            return
        policy = await self._store.get_policy(watched.policy)
        for device in silent:
            await self._verify.unreachable(device, policy, before)
