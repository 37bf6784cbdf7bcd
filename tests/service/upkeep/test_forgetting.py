"""A used nonce opens nothing again, whatever the server's clock does."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from tang_attest.service.upkeep.forgetting import KEEP, LONGEST_LIFE, Forgetting
from tests.attester import Attester
from tests.server import Server


class Passed:
    """A monotonic clock."""

    hours = 0.0

    def __call__(self) -> float:
        return self.hours * 3600


async def used(server: Server, attester: Attester) -> tuple[str, dict[str, Any]]:
    """A machine's kid, and a challenge that it has opened its disk with."""
    kid = await server.enroll(attester)
    challenge = await server.challenge(kid)
    assert (await server.unlock(attester, kid, challenge=challenge)).status == 200
    return kid, challenge


async def test_a_used_nonce_is_not_forgotten_by_a_clock_that_was_ahead(
    server: Server, attester: Attester
) -> None:
    """The clock is a year ahead while nonces are swept, and set right: another quote over the used nonce opens nothing."""
    passed = Passed()
    forgetting = Forgetting(server.store.decisions, server.clock, passed)
    kid, challenge = await used(server, attester)
    right = server.clock.time
    server.clock.advance(days=365)
    for hours in (0.1, 2, 24):
        passed.hours = hours
        assert await forgetting.sweep() == 0
    server.clock.time = right
    answer = await server.unlock(attester, kid, challenge=challenge)
    assert (answer.status, answer.code) == (403, "nonce-used")


async def test_a_server_that_started_ahead_waits_before_it_forgets(
    server: Server, attester: Attester
) -> None:
    """A board without a battery starts with a wrong time: until any challenge is dead, nothing is forgotten."""
    kid, challenge = await used(server, attester)
    right = server.clock.time
    server.clock.advance(days=365)
    passed = Passed()
    forgetting = Forgetting(server.store.decisions, server.clock, passed)
    passed.hours = LONGEST_LIFE / timedelta(hours=1) - 0.01
    assert await forgetting.sweep() == 0
    server.clock.time = right
    assert (await server.unlock(attester, kid, challenge=challenge)).code == "nonce-used"


async def test_a_clock_set_back_by_hours_finds_what_was_used(server: Server, attester: Attester) -> None:
    """Wrong time zones and daylight saving: what was used within a day stays used; what is older is forgotten."""
    passed = Passed()
    forgetting = Forgetting(server.store.decisions, server.clock, passed)
    kid, challenge = await used(server, attester)
    used_at = server.clock.time
    server.clock.advance(hours=14)
    passed.hours = 14
    assert await forgetting.sweep() == 0
    server.clock.time = used_at
    assert (await server.unlock(attester, kid, challenge=challenge)).code == "nonce-used"
    server.clock.time = used_at + KEEP + timedelta(hours=1)
    passed.hours = 25
    assert await forgetting.sweep() == 1
    assert (await server.unlock(attester, kid, challenge=challenge)).code == "nonce-expired"
