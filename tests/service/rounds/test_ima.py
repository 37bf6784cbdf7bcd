"""Running machines prove what they measured with IMA, over HTTP (docs/protocol.md, 10)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from tang_attest.protocol.challenge import verify_digest
from tang_attest.protocol.conditions import Conditions, Watch
from tang_attest.protocol.ima import parse_requirement
from tang_attest.protocol.values.base64url import b64u
from tang_attest.protocol.values.pcr import Selection
from tang_attest.protocol.verification import CAP_EVENT, RoundOutcome
from tests.attester import Attester
from tests.protocol.ima.writer import Measured, boot_aggregate, measured, raw
from tests.server import Answer, Server

SELECTION = "sha256:0,4,7,15"
QUOTED = "sha256:0,1,2,3,4,5,6,7,8,9,10,15"
BASH = hashlib.sha256(b"bash").digest()
EVIL = hashlib.sha256(b"evil").digest()
ALLOWED = {"files": [{"path": "/usr/bin/.*", "digests": [f"sha256:{BASH.hex()}"]}]}
GOOD = measured("/usr/bin/bash", BASH)
BAD = measured("/usr/bin/bash", EVIL)


class Machine:
    """A machine with IMA: each measurement is listed and extends PCR 10."""

    def __init__(self, server: Server, attester: Attester, kid: str) -> None:
        self.server, self.attester, self.kid = server, attester, kid
        self.list = b""
        self.reboot()

    def reboot(self) -> None:
        """The TPM is reset, and the list begins again."""
        self.attester.reset_count += 1
        self.list = b""
        self.attester.pcrs["sha256"][10] = bytes(32)
        self.measure(boot_aggregate(self.attester.pcrs["sha256"]))

    def measure(self, *entries: Measured) -> None:
        """Do as a kernel since 5.8."""
        self.list += raw(entries)
        for entry in entries:
            value = self.attester.pcrs["sha256"][10] + entry.extended("sha256")
            self.attester.pcrs["sha256"][10] = hashlib.sha256(value).digest()

    async def challenge(self) -> dict[str, Any]:
        """An agent asks."""
        asked = await self.server.post(f"/attest/agent/{self.kid}", {})
        challenge: dict[str, Any] = asked.body["challenge"]
        return challenge

    def evidence(self, challenge: dict[str, Any], **changes: Any) -> dict[str, Any]:
        """The agent's answer to a challenge."""
        binding = verify_digest(challenge["nonce"], self.kid)
        quoted = self.attester.evidence(challenge["nonce"], binding, challenge["selection"])
        offset = challenge.get("ima_offset", 0)
        part = self.list[offset : offset + 48 * 1024]
        return {**quoted, "ima": b64u(part), "ima_offset": offset, **changes}

    async def send(self, body: dict[str, Any]) -> Answer:
        """The answer."""
        return await self.server.post(f"/attest/agent/{self.kid}/evidence", body)

    async def prove(self) -> Answer:
        """A whole round."""
        return await self.send(self.evidence(await self.challenge()))

    async def codes(self, rounds: int) -> list[str]:
        """The codes of some rounds."""
        answers = [await self.prove() for _ in range(rounds)]
        return [answer.body["code"] if answer.status == 200 else answer.code for answer in answers]


@pytest.fixture
async def machine(server: Server, attester: Attester) -> Machine:
    """A running machine whose policy requires something of its list."""
    kid = await server.enroll(attester, selection=Selection.parse(SELECTION), learn_for=timedelta(0))
    attester.extend(15, CAP_EVENT)
    await server.conditions.set("pi-b", Conditions(watch=Watch(on_refused=("suspend",))))
    await server.conditions.require_ima("pi-b", parse_requirement(ALLOWED))
    return Machine(server, attester, kid)


async def test_only_new_entries_travel(machine: Machine) -> None:
    """The challenge asks for PCR 10 and says where the part begins; nothing new is an empty part."""
    challenge = await machine.challenge()
    assert (challenge["selection"], challenge["evidence"]) == (QUOTED, ["quote", "ima"])
    assert challenge["ima_offset"] == 0
    machine.measure(GOOD)
    assert await machine.codes(1) == ["ok"]
    assert (await machine.challenge())["ima_offset"] == len(machine.list)
    assert await machine.codes(1) == ["ok"]
    before = len(machine.list)
    machine.measure(GOOD)
    body = machine.evidence(await machine.challenge())
    assert (body["ima"], body["ima_offset"]) == (b64u(GOOD.raw), before)
    assert (await machine.send(body)).body["outcome"] == "verified"


async def test_what_is_not_allowed_is_a_verdict(machine: Machine) -> None:
    """It names the entry, suspends where the policy says so, and stays until the next boot."""
    machine.measure(BAD)
    assert await machine.codes(1) == ["ima-not-allowed"]
    machine.measure(GOOD)
    assert await machine.codes(2) == ["ima-not-allowed"] * 2
    store = machine.server.store
    [past] = await store.rounds.list_rounds("pi-b")
    reason: dict[str, object] = past.details["reasons"][0]  # type: ignore[index]  # JSON
    assert (reason["entry"], reason["path"], reason["found"]) == (2, "/usr/bin/bash", f"sha256:{EVIL.hex()}")
    assert (await store.devices.get_device("pi-b")).suspension is not None
    machine.reboot()
    assert await machine.codes(2) == ["ima-incomplete", "ok"]
    machine.measure(GOOD)
    assert await machine.codes(1) == ["ok"]


async def test_other_requirements_judge_everything_anew(machine: Machine) -> None:
    """An entry that passed before may be refused now, and the other way round."""
    conditions = machine.server.conditions
    machine.measure(BAD)
    assert await machine.codes(1) == ["ima-not-allowed"]
    await conditions.require_ima("pi-b", parse_requirement({**ALLOWED, "ignore": ["/usr/bin/bash"]}))
    assert await machine.codes(2) == ["ima-incomplete", "ok"]
    await conditions.require_ima("pi-b", parse_requirement(ALLOWED))
    assert await machine.codes(2) == ["ima-incomplete", "ima-not-allowed"]
    await conditions.require_ima("pi-b", None)
    challenge = await machine.challenge()
    assert (challenge["selection"], challenge["evidence"]) == (SELECTION, ["quote"])
    assert await machine.codes(1) == ["ok"]


async def test_a_long_list_comes_in_parts(machine: Machine) -> None:
    """A bad entry of the first part is no verdict before the last part proved it."""
    machine.measure(BAD, *[GOOD] * 1000)
    assert len(machine.list) > 2 * 48 * 1024
    assert await machine.codes(2) == ["ima-incomplete"] * 2
    assert (await machine.server.store.devices.get_device("pi-b")).standing.outcome is None
    assert await machine.codes(2) == ["ima-not-allowed"] * 2
    assert (await machine.challenge())["ima_offset"] == len(machine.list)


async def no_verdict(machine: Machine, answer: Answer, code: str) -> None:
    """The code, and the machine stands as before; the next round is good."""
    assert answer.code == code
    device = await machine.server.store.devices.get_device("pi-b")
    assert device.standing.outcome in (None, RoundOutcome.VERIFIED)
    assert device.suspension is None
    codes = await machine.codes(2)
    assert codes[-1] == "ok"


@pytest.mark.parametrize(
    ("part", "code"),
    [
        ([BAD], "ima-mismatch"),
        ([], "ima-mismatch"),
        ([GOOD, GOOD], None),
        (b"\0", "ima-malformed"),
    ],
)
async def test_what_somebody_between_can_change_is_no_verdict(
    machine: Machine, part: Sequence[Measured] | bytes, code: str | None
) -> None:
    """The list is not signed; what comes after the quoted value is not looked at."""
    assert await machine.codes(1) == ["ok"]
    machine.measure(GOOD)
    changed = part if isinstance(part, bytes) else raw(part)
    answer = await machine.send(machine.evidence(await machine.challenge(), ima=b64u(changed)))
    if code is None:
        assert answer.body["outcome"] == "verified"
    else:
        await no_verdict(machine, answer, code)


async def test_a_poisoned_part_does_not_last(machine: Machine) -> None:
    """A part that somebody changed is noticed at the list's end, and the list is read again."""
    machine.measure(*[GOOD] * 500)
    changed = bytes((machine.list[: len(machine.list) - 500 * len(GOOD.raw)] + raw([BAD] * 500))[: 48 * 1024])
    answer = await machine.send(machine.evidence(await machine.challenge(), ima=b64u(changed)))
    assert answer.code == "ima-incomplete"
    assert await machine.codes(3) == ["ima-mismatch", "ima-incomplete", "ok"]


async def test_a_machine_without_a_list_is_not_verified(machine: Machine) -> None:
    """An agent that is too old; the policy's misses say when it is unreachable."""
    body = machine.evidence(await machine.challenge())
    del body["ima"], body["ima_offset"]
    await no_verdict(machine, await machine.send(body), "ima-missing")


async def test_values_are_compared_first(machine: Machine) -> None:
    """PCR 10 does not disturb the comparison, and is no part of what can be recorded."""
    machine.attester.extend(4, b"another kernel")
    assert await machine.codes(1) == ["pcr-mismatch"]
    [past] = await machine.server.store.rounds.list_rounds("pi-b")
    assert past.details["selection"] == SELECTION


async def test_a_removed_device_leaves_nothing(machine: Machine) -> None:
    """Its progress goes with it, and a round that is under way keeps none."""
    assert await machine.codes(1) == ["ok"]
    store = machine.server.store
    device = await store.devices.get_device("pi-b")
    assert await store.rounds.ima_progress(device.id) is not None
    await machine.server.devices.remove("pi-b")
    assert await store.rounds.ima_progress(device.id) is None
    await store.rounds.keep_ima_progress(device.id, {"offset": 1})
    assert await store.rounds.ima_progress(device.id) is None


async def test_requirements_that_nobody_has_go(machine: Machine) -> None:
    """Each may be megabytes."""
    store, conditions = machine.server.store, machine.server.conditions
    first = (await store.policies.get_policy("pi-b")).conditions.ima or ""
    assert await store.rounds.find_ima_requirement(first) is not None
    await conditions.require_ima("pi-b", parse_requirement({"ignore": ["/x"]}))
    assert await store.rounds.find_ima_requirement(first) is None
    [watched] = await store.rounds.list_watched()
    assert watched.conditions.watch is not None


@pytest.mark.parametrize("changes", [{"ima_offset": -1}, {"ima_offset": "0"}, {"ima": "A" * 66_000}])
async def test_limits(machine: Machine, changes: dict[str, Any]) -> None:
    """Before anything is verified."""
    answer = await machine.send(machine.evidence(await machine.challenge(), **changes))
    assert (answer.status, answer.code) == (400, "request-malformed")
