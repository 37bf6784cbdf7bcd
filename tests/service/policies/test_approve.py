"""An approval without a number means one boot, or it is refused: the wrong one would count for a whole policy."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tang_attest.errors import TangAttestError
from tang_attest.protocol.values.pcr import Selection
from tang_attest.service.policies.reference_values import Approval
from tests.attester import Attester
from tests.server import Server

GOOD = "good"


class World:
    """A machine that boots one thing or another."""

    def __init__(self, server: Server, attester: Attester) -> None:
        self.server, self.attester = server, attester
        self.values = {bank: dict(values) for bank, values in attester.pcrs.items()}

    async def begin(self) -> None:
        """Enroll; the cap is among what is quoted."""
        self.kid = await self.server.enroll(
            self.attester, selection=Selection.parse("sha256:0,4,7,15"), learn_for=timedelta(0)
        )

    async def boot(self, software: str = GOOD, *, capped: bool = False) -> str:
        """Boot *software* and unlock, or ask from its running system; the code."""
        self.server.clock.advance(minutes=1)
        if not capped:
            self.attester.reset_count = (self.attester.reset_count + 1) % 2**32
            self.attester.pcrs = {bank: dict(values) for bank, values in self.values.items()}
            if software != GOOD:
                self.attester.extend(4, software.encode())
        else:
            self.attester.extend(15, b"cap")
        return (await self.server.unlock(self.attester, self.kid)).code

    async def approve(self, observation: int | None = None, *, force: bool = False) -> str:
        """The number that was approved, or the code."""
        try:
            seen, _ = await self.server.reference_values.approve(
                "pi-b", None, observation_id=observation, approval=Approval(force=force)
            )
        except TangAttestError as error:
            return error.code
        return str(seen.id)

    async def count(self) -> int:
        """Reference states."""
        return len((await self.server.store.policies.get_policy("pi-b")).states)


@pytest.fixture
async def world(server: Server, attester: Attester) -> World:
    """A machine that was enrolled and unlocked."""
    made = World(server, attester)
    await made.begin()
    assert await made.boot() == "ok"
    return made


async def test_a_second_boot_between_look_and_approval(world: World) -> None:
    """Neither is approved, both are named, and each can be chosen."""
    await world.boot("update")
    await world.boot("intruder")
    with pytest.raises(TangAttestError) as error:
        await world.server.reference_values.approve("pi-b", None)
    assert error.value.code == "observation-ambiguous"
    assert "2 different boots of 'pi-b'" in error.value.sentence
    assert "observations 2 (2026-01-01 12:03:00 UTC) and 1 (2026-01-01 12:02:00 UTC)" in error.value.sentence
    assert "--observation" in error.value.action
    assert await world.count() == 1
    assert await world.approve(1) == "1"
    assert await world.boot("intruder") == "pcr-mismatch"
    assert await world.boot("update") == "ok"


async def test_the_first_boot_again_after_the_second(world: World) -> None:
    """The newest is the one that was looked at; still somebody has to say so."""
    for software in ("update", "intruder", "update"):
        await world.boot(software)
    assert await world.approve() == "observation-ambiguous"


async def test_one_boot_that_was_refused_again_and_again(world: World) -> None:
    """A machine tries every few seconds, and may be started again: that is one boot to judge."""
    await world.boot("update")
    await world.server.unlock(world.attester, world.kid)
    await world.boot("update")
    assert await world.approve() == "3"
    assert await world.boot("update") == "ok"


async def test_what_was_refused_before_the_last_permit_is_not_meant(world: World) -> None:
    """An old trial boot does not make today's update ambiguous."""
    await world.boot("trial")
    assert await world.boot() == "ok"
    await world.boot("update")
    assert await world.approve() == "2"


async def test_nothing_was_refused_since_the_last_permit(world: World) -> None:
    """An intruder's boot of yesterday is not approved as the only observation."""
    await world.boot("intruder")
    assert await world.boot() == "ok"
    assert await world.approve() == "observation-ambiguous"
    assert await world.count() == 1
    assert await world.approve(1) == "1"


async def test_nothing_was_ever_refused(world: World) -> None:
    """There is nothing to name either."""
    assert await world.approve() == "observation-missing"


async def test_approved_and_not_booted_yet(world: World) -> None:
    """Two boots since the last permit stay two, also when one of them was approved meanwhile by somebody else."""
    await world.boot("update")
    assert await world.approve() == "1"
    assert await world.approve() == "values-known"
    await world.boot("intruder")
    assert await world.approve() == "observation-ambiguous"


async def test_a_running_system_is_no_second_boot(world: World) -> None:
    """After the passphrase the machine's own clevis asks again, with the cap extended; that is never meant."""
    await world.boot("update")
    await world.boot("update", capped=True)
    assert await world.approve() == "1"


async def test_only_a_running_system_asked(world: World) -> None:
    """Then it is the one that is refused, unless somebody insists."""
    await world.boot(capped=True)
    assert await world.approve() == "capped"
    assert await world.approve(force=True) == "1"


async def test_force_does_not_choose(world: World) -> None:
    """It accepts a capped state, and says nothing about which boot is meant."""
    await world.boot("update")
    await world.boot("intruder")
    assert await world.approve(force=True) == "observation-ambiguous"


async def test_a_server_whose_clock_was_set_back(server: Server, attester: Attester) -> None:
    """The TPM's counter tells observations after the last permit, also where it passes through zero."""
    attester.reset_count = 2**32 - 3
    world = World(server, attester)
    await world.begin()
    assert await world.boot() == "ok"
    world.server.clock.advance(hours=-5)
    await world.boot("update")
    await world.boot("intruder")
    assert world.attester.reset_count == 0
    assert await world.approve() == "observation-ambiguous"


async def test_many_boots_are_not_all_named(world: World) -> None:
    """One line for a person."""
    for number in range(9):
        await world.boot(f"boot {number}")
    with pytest.raises(TangAttestError) as error:
        await world.server.reference_values.approve("pi-b", None)
    assert error.value.sentence.startswith("9 different boots")
    assert error.value.sentence.endswith("and 4 more.")
