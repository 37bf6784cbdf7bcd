"""Tokens for several machines: each use counts once, and no machine adds a reference state."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from tang_attest.errors import Malformed
from tang_attest.protocol.enrollment import activation_proof
from tests.attester import Attester
from tests.server import Server

POLICY = "web"


@pytest.fixture
async def fleet(server: Server, attester: Attester) -> Server:
    """A server whose policy `web` has the values of *attester*."""
    await server.enroll(attester, POLICY)
    return server


async def _uses(server: Server) -> int:
    """The uses of the one token for several machines."""
    (token,) = [token for token in await server.store.enrollment.list_tokens() if token.machines > 1]
    return token.uses


async def test_machines_enroll_under_names_of_their_own(fleet: Server) -> None:
    """Each is under the policy of the token, and unlocks; the policy keeps its states."""
    before = await fleet.store.policies.get_policy(POLICY)
    text = await fleet.token(policy=POLICY, machines=2, labels=("rack-1",))
    for name in ("web-1", "web-2"):
        machine = Attester()
        done = await fleet.finish(machine, name, await fleet.begin(machine, name, text))
        assert (done.status, done.body["policy"], done.body["learning"]) == (201, POLICY, False)
        assert (await fleet.unlock(machine, done.body["kid"])).status == 200
        assert (await fleet.store.devices.get_device(name)).labels == ("rack-1",)
    assert await fleet.store.policies.get_policy(POLICY) == before
    answer = await fleet.begin(Attester(), "web-3", text)
    assert (answer.status, answer.code) == (403, "token-used-up")
    assert answer.body["detail"] == "The token has enrolled the 2 machines that it is for."


async def test_a_machine_that_booted_something_else_adds_no_state(fleet: Server) -> None:
    """It is enrolled, and refused until it boots as the policy says."""
    odd = Attester()
    odd.extend(4, b"another kernel")
    kid = await fleet.enroll(odd, "web-1", policy=POLICY, machines=5)
    assert (await fleet.unlock(odd, kid)).code == "pcr-mismatch"
    assert len((await fleet.store.policies.get_policy(POLICY)).states) == 1


@pytest.mark.parametrize("machines", [0, -1, 100_001])
async def test_a_number_of_machines_that_makes_no_sense(fleet: Server, machines: int) -> None:
    """No token is made."""
    with pytest.raises(Malformed) as refused:
        await fleet.token(policy=POLICY, machines=machines)
    assert refused.value.code == "setting-invalid"


async def test_several_machines_never_record(server: Server) -> None:
    """A stolen token for N machines must not decide what N policies permit."""
    with pytest.raises(Malformed) as refused:
        await server.token(machines=2)
    assert refused.value.code == "setting-invalid"


async def test_more_machines_than_uses_finish_at_once(fleet: Server) -> None:
    """All began while uses were left; exactly as many are enrolled as the token says, and each counts once."""
    text = await fleet.token(policy=POLICY, machines=3)
    machines = {f"web-{number}": Attester() for number in range(6)}
    begun = {name: await fleet.begin(machine, name, text) for name, machine in machines.items()}
    answers = await asyncio.gather(
        *(fleet.finish(machine, name, begun[name]) for name, machine in machines.items())
    )
    codes = sorted((answer.status, answer.code) for answer in answers)
    assert codes == [(201, "ok")] * 3 + [(403, "token-used-up")] * 3
    enrolled = [device.name for device in await fleet.store.devices.list_devices()]
    assert len(enrolled) == 1 + 3  # the one whose values the policy has, and these
    assert await _uses(fleet) == 3


@pytest.mark.parametrize(
    ("pattern", "name", "good"),
    [
        ("web-*", "web-1", True),
        ("web-*", "web-", True),
        ("web-*", "db-1", False),
        ("web-*", "Web-1", False),
        ("web-??", "web-12", True),
        ("web-??", "web-1", False),
        ("*", "anything", True),
        ("web-1", "web-1", True),
        ("web.1", "web-1", False),
    ],
)
async def test_names_match_the_pattern(fleet: Server, pattern: str, name: str, good: bool) -> None:
    """Case counts, and a dot is a dot."""
    text = await fleet.token(policy=POLICY, machines=2, name=pattern)
    answer = await fleet.begin(Attester(), name, text)
    assert answer.code == ("ok" if good else "token-invalid")


@pytest.mark.parametrize("pattern", ["", "-*", "[a-z]*", "web *", "web/*", "*" * 64, "web-1,web-2"])
async def test_a_pattern_that_is_none(fleet: Server, pattern: str) -> None:
    """Only * and ? stand for other characters."""
    with pytest.raises(Malformed) as refused:
        await fleet.token(policy=POLICY, machines=2, name=pattern)
    assert refused.value.code == "request-malformed"


async def test_a_name_that_another_machine_has(fleet: Server) -> None:
    """The name is refused, the use is not counted, and the device stays as it is."""
    text = await fleet.token(policy=POLICY, machines=3)
    first, other = Attester(), Attester()
    made = await fleet.finish(first, "web-1", await fleet.begin(first, "web-1", text))
    answer = await fleet.finish(other, "web-1", await fleet.begin(other, "web-1", text))
    assert (answer.status, answer.code) == (409, "name-taken")
    assert await _uses(fleet) == 1
    assert (await fleet.store.devices.get_device("web-1")).kids == (made.body["kid"],)


async def test_the_same_machine_enrolls_again(fleet: Server) -> None:
    """A machine that was installed anew gets the device that it has, days later too, and no use is counted."""
    text, machine = await fleet.token(policy=POLICY, machines=3, valid_for=timedelta(days=9)), Attester()
    first = await fleet.finish(machine, "web-1", await fleet.begin(machine, "web-1", text))
    fleet.clock.advance(hours=50)
    again = await fleet.finish(machine, "web-1", await fleet.begin(machine, "web-1", text))
    assert (again.status, again.body["kid"]) == (201, first.body["kid"])
    assert await _uses(fleet) == 1
    other_name = await fleet.finish(machine, "web-2", await fleet.begin(machine, "web-2", text))
    assert (other_name.status, other_name.code) == (409, "device-exists")
    assert await _uses(fleet) == 1


async def test_the_same_machine_needs_a_fresh_proof(fleet: Server) -> None:
    """Neither a wrong proof nor, later than a day, an old session gets the device."""
    text, machine = await fleet.token(policy=POLICY, machines=3, valid_for=timedelta(days=9)), Attester()
    begun = await fleet.begin(machine, "web-1", text)
    assert (await fleet.finish(machine, "web-1", begun)).status == 201
    wrong = await fleet.finish(machine, "web-1", begun, proof=activation_proof("x", bytes(32)))
    assert wrong.code == "activation-failed"
    assert (await fleet.finish(machine, "web-1", begun)).status == 201
    fleet.clock.advance(hours=50)
    assert (await fleet.finish(machine, "web-1", begun)).code == "nonce-expired"


async def test_the_last_machine_lost_its_answer(fleet: Server) -> None:
    """The token is used up by it; the same request is answered again for a day."""
    text, machine = await fleet.token(policy=POLICY, machines=2), Attester()
    await fleet.finish(machine, "web-1", await fleet.begin(machine, "web-1", text))
    last = Attester()
    begun = await fleet.begin(last, "web-2", text)
    first = await fleet.finish(last, "web-2", begun)
    fleet.clock.advance(hours=3)
    again = await fleet.finish(last, "web-2", begun)
    assert (again.status, again.body["kid"]) == (201, first.body["kid"])
    fleet.clock.advance(hours=24)
    assert (await fleet.finish(last, "web-2", begun)).code == "token-used-up"


async def test_a_removed_machine_enrolls_as_another_use(fleet: Server) -> None:
    """Removing it is no ban: a token that it may use is one that it may use; the use counts."""
    text, machine = await fleet.token(policy=POLICY, machines=2), Attester()
    begun = await fleet.begin(machine, "web-1", text)
    await fleet.finish(machine, "web-1", begun)
    await fleet.devices.remove("web-1")
    assert (await fleet.finish(machine, "web-1", await fleet.begin(machine, "web-1", text))).status == 201
    assert await _uses(fleet) == 2


async def test_a_token_for_machines_expires_and_is_revoked(fleet: Server) -> None:
    """Also between the two requests, and although uses are left."""
    text = await fleet.token(policy=POLICY, machines=9, valid_for=timedelta(minutes=1))
    machine = Attester()
    begun = await fleet.begin(machine, "web-1", text)
    fleet.clock.advance(seconds=61)
    assert (await fleet.finish(machine, "web-1", begun)).code == "token-expired"
    text = await fleet.token(policy=POLICY, machines=9)
    begun = await fleet.begin(machine, "web-1", text)
    await fleet.tokens.revoke(text)
    assert (await fleet.finish(machine, "web-1", begun)).code == "token-revoked"
    assert (await fleet.begin(machine, "web-1", text)).code == "token-revoked"
