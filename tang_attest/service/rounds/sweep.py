"""The part of continuous verification that no request triggers: rounds on demand, and machines that fall
silent.

Each server and each of its workers sweeps for itself.  If two of them see the same, one of them writes it:
the store decides.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, Protocol

from tang_attest.errors import TangAttestError
from tang_attest.ports.store import HasPolicies, HasRounds, if_ours
from tang_attest.ports.world import Clock
from tang_attest.protocol.conditions import Watch
from tang_attest.service.rounds.polls import Polls
from tang_attest.service.rounds.verify import RoundVerifier

#: The most machines of one policy that one sweep finds silent; the next sweep continues.
BATCH: Final = 200
#: After a longer pause than this between two sweeps, the process did not watch meanwhile (suspended,
#: overloaded).
MAX_GAP: Final = timedelta(seconds=30)


class SweepStore(HasPolicies, HasRounds, Protocol):
    """The roles of the store that the sweep needs."""


class Watching:
    """Sweeps for silent machines; call :meth:`sweep` about once a second."""

    def __init__(self, store: SweepStore, verify: RoundVerifier, polls: Polls, clock: Clock) -> None:
        self._store, self._verify, self._polls, self._clock = store, verify, polls, clock
        #: Policy to its terms, and since when this process has watched under them.  A machine silent before
        #: that may have spoken in vain, or was not asked so often.
        self._watched: dict[str, tuple[Watch, datetime]] = {}
        self._swept_at: datetime | None = None

    async def sweep(self) -> None:
        """Wake the machines that operators ask for, and record the machines that fell silent.

        Raises errors of the store; no machine is then called silent because of our failure to write.
        """
        now = self._clock.now()
        if self._swept_at is None or not timedelta(0) <= now - self._swept_at <= MAX_GAP:
            self._watched = {}
        self._swept_at = now
        try:
            for kid in await self._store.rounds.list_requested():
                self._polls.wake(kid)
            await self._read_terms(now)
            for policy, (watch, since) in self._watched.items():
                if now - since >= watch.silence:
                    await self._find_silent(policy, now - watch.silence, now)
        except TangAttestError:
            self._swept_at = None
            raise

    async def _read_terms(self, now: datetime) -> None:
        terms = {w.policy: w.conditions.watch for w in await self._store.rounds.list_watched()}
        before = {policy: watch for policy, (watch, _) in self._watched.items()}
        self._watched = {
            policy: self._watched[policy] if before.get(policy) == watch else (watch, now)
            for policy, watch in terms.items()
            if watch is not None
        }
        if before != {policy: watch for policy, (watch, _) in self._watched.items()}:
            self._polls.wake_all()  # they are held for as long as the old terms allowed

    async def _find_silent(self, name: str, before: datetime, now: datetime) -> None:
        silent = await self._store.rounds.list_silent(name, before, now, BATCH)
        if not silent:
            return
        policy = await if_ours(self._store.policies.get_policy(name))
        if policy is None:
            return
        for device in silent:
            await if_ours(self._verify.unreachable(device, policy, before))
