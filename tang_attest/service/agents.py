"""Agents: machines that ask, again and again, whether they shall prove what they run (docs/protocol.md, 6).

Rules of this module:

* Who shows no ticket is answered at once, with a challenge: that costs no more than a challenge for an unlock, and
  nothing is held or remembered for strangers.
* A ticket is given for evidence that counts.  With one, a request is held until a round is due or an operator asks.
* When a round is due is read from the device's row: a server that starts again, or another one, goes on where this
  one was, and two that ask at once do no harm.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from tang_attest.errors import Refused
from tang_attest.ports import Clock, Randomness, Store
from tang_attest.protocol.challenge import Challenge, Purpose, check_nonce, make_nonce
from tang_attest.protocol.quote import Evidence
from tang_attest.service.device_keys import DeviceKey, find_device_key
from tang_attest.service.polls import Polls
from tang_attest.service.verify import Round, Verify

#: Seconds that a request is held at most: many middleboxes forget a connection that is silent for a minute.
HOLD_S: Final = 50.0
#: Seconds that a ticket is good; each round gives a new one.
TICKET_S: Final = 86_400


class Agents:
    """Answers ``POST /attest/agent/{kid}`` and ``POST /attest/agent/{kid}/evidence``."""

    def __init__(
        self,
        store: Store,
        verify: Verify,
        polls: Polls,
        clock: Clock,
        random: Randomness,
        nonce_key: bytes,
        hold_s: float = HOLD_S,
    ) -> None:
        self._store, self._verify, self._polls = store, verify, polls
        self._clock, self._random, self._nonce_key, self._hold_s = clock, random, nonce_key, hold_s

    async def poll(self, kid: str, ticket: str | None) -> Challenge | None:
        """A challenge, perhaps after a while; ``None``: nothing was due, ask again.  Raises ``key-unknown``."""
        bound = await find_device_key(self._store, kid)
        if ticket is not None and self._is_good(kid, ticket):
            seconds = self._due_in(bound)
            if seconds > 0:
                woken = await self._polls.hold(kid, min(seconds, self._hold_s))
                if not woken and seconds > self._hold_s:
                    return None
        return await self._verify.challenge_for(bound)

    async def answer(self, kid: str, evidence: Evidence) -> tuple[Round, str]:
        """How the round ended, and a ticket.  Raises as :meth:`Verify.respond`."""
        ended = await self._verify.respond(kid, evidence)
        ticket = make_nonce(
            self._nonce_key, Purpose.POLL, kid, _milliseconds(self._clock.now()), self._random.bytes(16)
        )
        return ended, ticket

    def _is_good(self, kid: str, ticket: str) -> bool:
        now = _milliseconds(self._clock.now())
        try:
            check_nonce(self._nonce_key, Purpose.POLL, kid, now, TICKET_S, ticket)
        except Refused:
            return False
        return True

    def _due_in(self, bound: DeviceKey) -> float:
        """Seconds until the next round; infinite when nobody wants one."""
        standing, watch = bound.device.standing, bound.policy.conditions.watch
        if standing.wanted_at is not None:
            return 0.0
        if watch is None:
            return float("inf")
        if standing.answered_at is None:
            return 0.0
        past = (self._clock.now() - standing.answered_at).total_seconds()
        return watch.pause_s(self._random.bytes(1)[0] / 255) - past


def _milliseconds(at: datetime) -> int:
    return int(at.timestamp() * 1000)
