"""Agents: running machines that poll for their next round (docs/protocol.md, 10).

Rules of this module:

* A request without a ticket is answered at once, with a challenge: that costs no more than a challenge for an
  unlock, and nothing is held or stored for unauthenticated clients.
* A ticket is given for evidence that counts.  With one, a request is held until a round is due or an operator
  asks.
* The time of the next round is read from the device's row: a restarted server, or another one, continues
  there, and two requests at once do no harm.
"""

from __future__ import annotations

import asyncio
from typing import Final

from tang_attest.errors import Refused
from tang_attest.ports.decisions import DecisionStore
from tang_attest.protocol.challenge import Challenge, Purpose
from tang_attest.protocol.quote import Evidence
from tang_attest.service.rounds.polls import Polls, Woken
from tang_attest.service.rounds.verify import Round, RoundVerifier
from tang_attest.service.unlock.challenges import Challenges
from tang_attest.service.unlock.device_keys import DeviceKey, find_device_key

#: Seconds that a request is held at most: many middleboxes forget a connection that is silent for a minute.
HOLD_S: Final = 50.0
#: Seconds that a ticket is good; each round gives a new one.
TICKET_S: Final = 86_400


class Agents:
    """Answers ``POST /attest/agent/{kid}`` and ``POST /attest/agent/{kid}/evidence``."""

    def __init__(
        self,
        store: DecisionStore,
        verify: RoundVerifier,
        polls: Polls,
        challenges: Challenges,
        *,
        hold_s: float = HOLD_S,
    ) -> None:
        self._store, self._verify, self._polls = store, verify, polls
        self._challenges, self._hold_s = challenges, hold_s

    async def poll(self, kid: str, ticket: str | None) -> Challenge | None:
        """Return a challenge once a round is due; ``None`` when none was: poll again.  Raises
        ``key-unknown``.
        """
        held = ticket is not None and self._is_good(kid, ticket)
        bound = await (self._due(kid) if held else find_device_key(self._store, kid))
        return None if bound is None else await self._verify.challenge_for(bound)

    async def _due(self, kid: str) -> DeviceKey | None:
        """Wait until a round of *kid* is due; ``None`` when it is not for as long as a request is held."""
        until = asyncio.get_running_loop().time() + self._hold_s
        while True:
            bound = await find_device_key(self._store, kid)
            due_in, left = self._due_in(bound), until - asyncio.get_running_loop().time()
            if due_in <= 0:
                return bound
            match await self._polls.hold(kid, min(due_in, left)):
                case Woken.PUSHED_OUT:
                    return bound
                case Woken.TIME:
                    return bound if due_in <= left else None

    async def challenge(self, kid: str) -> Challenge:
        """Return a challenge for *kid* at once.  Raises ``key-unknown``.  Nothing is stored."""
        return await self._verify.challenge(kid)

    async def answer(self, kid: str, evidence: Evidence) -> tuple[Round, str]:
        """Return the round's outcome, and a ticket.  Raises as :meth:`RoundVerifier.respond`."""
        ended = await self._verify.respond(kid, evidence)
        return ended, self._challenges.make(Purpose.POLL, kid)

    def _is_good(self, kid: str, ticket: str) -> bool:
        try:
            self._challenges.check(Purpose.POLL, kid, ticket, self._challenges.now(), TICKET_S)
        except Refused:
            return False
        return True

    def _due_in(self, bound: DeviceKey) -> float:
        """Return the seconds until the next round; infinite when none is wanted."""
        standing, watch = bound.device.standing, bound.policy.conditions.watch
        if standing.wanted_at is not None:
            return 0.0
        if watch is None:
            return float("inf")
        if standing.answered_at is None:
            return 0.0
        past = (self._challenges.now() - standing.answered_at).total_seconds()
        return watch.pause_s(self._challenges.random.bytes(1)[0] / 255) - past
