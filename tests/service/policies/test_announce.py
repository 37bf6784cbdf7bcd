"""A machine announces its next boot (docs/protocol.md, section 9)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tang_attest.protocol.conditions import Conditions
from tang_attest.protocol.reference_state import Life
from tang_attest.protocol.values.pcr import Selection
from tang_attest.service.policies import announce
from tests.attester import Attester
from tests.server import Answer, Server, announcement

SELECTION = "sha256:0,4,7,15"


async def enroll(server: Server, attester: Attester, name: str = "pi-b", **terms: Any) -> str:
    """A machine with a cap in its selection, which runs: the cap is extended."""
    kid = await server.enroll(attester, name, **({"selection": Selection.parse(SELECTION)} | terms))
    assert (await server.unlock(attester, kid)).status == 200
    attester.extend(15, b"cap")
    return kid


def next_boot(attester: Attester, change: bytes = b"kernel 6.2") -> bytes:
    """The values of a boot in which PCR 4 is another one."""
    twin = Attester()
    twin.pcrs = {bank: dict(values) for bank, values in attester.pcrs.items()}
    twin.extend(4, change)
    twin.pcrs["sha256"][15] = bytes(32)
    return twin.values(SELECTION)


def reboot(attester: Attester, values: bytes) -> None:
    """Boot into *values*."""
    attester.reset_count += 1
    attester.pcrs["sha256"].update(Selection.parse(SELECTION).split(values))


async def say(server: Server, attester: Attester, kid: str, values: bytes, label: str = "next") -> Answer:
    """A whole announcement."""
    challenge = await server.post(f"/attest/announce/{kid}", {})
    assert challenge.status == 200
    body = announcement(attester, kid, challenge.body, values, label, changes=["the kernel changed"])
    return await server.post(f"/attest/announce/{kid}", body)


async def states(server: Server, policy: str = "pi-b") -> dict[str, Life]:
    """Announced states, label to life."""
    return {
        state.label: state.life
        for state in (await server.store.policies.get_policy(policy)).states
        if state.origin == "predicted"
    }


async def test_an_announced_boot_waits_for_the_operator(server: Server, attester: Attester) -> None:
    """Root on the machine may be an intruder; approved beforehand, the boot opens by itself."""
    kid = await enroll(server, attester)
    values = next_boot(attester)
    said = await say(server, attester, kid, values)
    assert (said.status, said.body) == (201, {"label": "next", "state": "proposed", "known": False})
    [state] = [s for s in (await server.store.policies.get_policy("pi-b")).states if s.origin == "predicted"]
    assert (state.created_by, state.notes) == ("device:pi-b", ("the kernel changed",))
    reboot(attester, values)
    assert (await server.unlock(attester, kid)).code == "state-proposed"
    await server.reference_values.approve_state("pi-b", "next")
    assert (await server.unlock(attester, kid)).status == 200
    assert await states(server) == {"next": Life.ACTIVE}


async def test_approving_the_machine_approves_what_it_announced(server: Server, attester: Attester) -> None:
    """The one command of the charter does not leave a second state with the same values behind."""
    kid = await enroll(server, attester)
    values = next_boot(attester)
    await say(server, attester, kid, values)
    reboot(attester, values)
    assert (await server.unlock(attester, kid)).code == "state-proposed"
    _, state = await server.reference_values.approve("pi-b", None)
    assert state.label == "next"
    assert (await server.unlock(attester, kid)).status == 200


async def test_a_trusted_prediction_waits_where_operators_have_to_sign(
    server: Server, attester: Attester
) -> None:
    """Trust of before the requirement adds no state that nobody signed."""
    kid = await enroll(server, attester)
    await server.reference_values.trust_predictions("pi-b", True)
    await server.conditions.set("pi-b", Conditions(operators=2))
    values = next_boot(attester)
    assert (await say(server, attester, kid, values)).body["state"] == "proposed"
    reboot(attester, values)
    assert (await server.unlock(attester, kid)).code == "state-proposed"


async def test_a_trusted_prediction_counts_at_once(server: Server, attester: Attester) -> None:
    """For the machine that made it, and for no other of its policy."""
    first = await enroll(server, attester)
    neighbor = Attester()
    neighbor.pcrs = {bank: dict(values) for bank, values in attester.pcrs.items()}
    neighbor.pcrs["sha256"][15] = bytes(32)
    second = await server.enroll(neighbor, "pi-c", policy="pi-b")
    await server.reference_values.trust_predictions("pi-b", True)
    values = next_boot(attester)
    assert (await say(server, attester, first, values)).body["state"] == "staged"
    for machine in (attester, neighbor):
        reboot(machine, values)
    assert (await server.unlock(attester, first)).status == 200
    assert (await server.unlock(neighbor, second)).code == "pcr-mismatch"


async def test_saying_it_twice_changes_nothing(server: Server, attester: Attester) -> None:
    """A hook that runs for every package is idempotent; so is announcing what is approved already."""
    kid = await enroll(server, attester)
    values = next_boot(attester)
    assert (await say(server, attester, kid, values)).status == 201
    again = await say(server, attester, kid, values, "another label")
    assert (again.status, again.body) == (200, {"label": "next", "state": "proposed", "known": True})
    now = attester.values(SELECTION)[:-32] + bytes(32)
    assert (await say(server, attester, kid, now)).body["known"]
    assert await states(server) == {"next": Life.PROPOSED}


async def test_a_label_that_is_taken_gets_the_time(server: Server, attester: Attester) -> None:
    """Nobody is there to choose another one."""
    kid = await enroll(server, attester)
    await say(server, attester, kid, next_boot(attester, b"one"), "x" * 64)
    second = await say(server, attester, kid, next_boot(attester, b"two"), "x" * 64)
    assert second.status == 201
    assert second.body["label"] == "x" * 49 + " 20260101120000"


async def test_a_label_that_several_machines_announce_at_once(server: Server, attester: Attester) -> None:
    """Each announcement is kept under a label of its own: the nonce of one that lost a race would be spent for nothing."""
    kid = await enroll(server, attester)
    boots = [next_boot(attester, b"%d" % number) for number in range(4)]
    said = await asyncio.gather(*(say(server, attester, kid, values, "kernel") for values in boots))
    assert [each.status for each in said] == [201] * 4
    assert len({each.body["label"] for each in said}) == 4
    assert set(await states(server)) == {each.body["label"] for each in said}


async def test_a_machine_in_an_unapproved_state_announces_nothing(server: Server, attester: Attester) -> None:
    """A machine that runs unapproved software announces nothing."""
    kid = await enroll(server, attester)
    attester.extend(4, b"intruder")
    said = await say(server, attester, kid, next_boot(attester))
    assert (said.status, said.code) == (403, "pcr-mismatch")
    assert await states(server) == {}
    assert (await server.store.audit.list_audit())[0][1].code == "pcr-mismatch"


async def test_a_running_machine_in_a_retired_state_announces_nothing(
    server: Server, attester: Attester
) -> None:
    """It counts what counts now."""
    kid = await enroll(server, attester)
    [state] = (await server.store.policies.get_policy("pi-b")).states
    await server.reference_values.retire("pi-b", state.label, force=True)
    assert (await say(server, attester, kid, next_boot(attester))).code == "pcr-mismatch"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"values": "AAAA"}, "qualifying-data-mismatch"),
        ({"label": "other"}, "qualifying-data-mismatch"),
        ({"label": " x"}, "request-malformed"),
        ({"label": "a\u202eb"}, "request-malformed"),
        ({"label": ""}, "request-malformed"),
        ({"changes": ["x" * 257]}, "request-malformed"),
        ({"changes": ["x"] * 65}, "request-malformed"),
        ({"extra": 1, "critical": ["extra"]}, "extension-unsupported"),
        ({"nonce": "A" * 76}, "nonce-invalid"),
    ],
)
async def test_announcements_that_are_refused(
    server: Server, attester: Attester, changes: dict[str, Any], code: str
) -> None:
    """Values and label are in the quote; the rest is shape."""
    kid = await enroll(server, attester)
    challenge = (await server.post(f"/attest/announce/{kid}", {})).body
    body = announcement(attester, kid, challenge, next_boot(attester)) | changes
    said = await server.post(f"/attest/announce/{kid}", body)
    assert said.code == code
    assert await states(server) == {}


async def test_a_nonce_announces_once(server: Server, attester: Attester) -> None:
    """And a nonce for an unlock not at all."""
    kid = await enroll(server, attester)
    challenge = (await server.post(f"/attest/announce/{kid}", {})).body
    values = next_boot(attester)
    body = announcement(attester, kid, challenge, values)
    assert (await server.post(f"/attest/announce/{kid}", body)).status == 201
    again = await server.post(f"/attest/announce/{kid}", body)
    assert (again.status, again.code) == (403, "nonce-used")
    unlock = await server.challenge(kid)
    crossed = await server.post(f"/attest/announce/{kid}", announcement(attester, kid, unlock, values))
    assert crossed.code == "nonce-invalid"


async def test_an_announcement_that_was_slow_goes_on_with_the_new_challenge(
    server: Server, attester: Attester
) -> None:
    """The 401 for an expired nonce brings a challenge, as for an unlock."""
    kid = await enroll(server, attester)
    challenge = (await server.post(f"/attest/announce/{kid}", {})).body
    values = next_boot(attester)
    server.clock.advance(seconds=121)
    late = await server.post(f"/attest/announce/{kid}", announcement(attester, kid, challenge, values))
    assert (late.status, late.code) == (401, "nonce-expired")
    body = announcement(attester, kid, late.body["challenge"], values)
    assert (await server.post(f"/attest/announce/{kid}", body)).status == 201


async def test_an_announcement_is_no_unlock(server: Server, attester: Attester) -> None:
    """Evidence for one purpose is never good for another, even in the initrd."""
    kid = await server.enroll(attester, selection=Selection.parse(SELECTION))
    challenge = (await server.post(f"/attest/announce/{kid}", {})).body
    refused = await server.unlock(attester, kid, challenge=challenge)
    assert refused.code == "nonce-invalid"


@pytest.mark.parametrize(
    ("values", "code"),
    [
        (b"", "evidence-malformed"),
        (b"\x01" * 127, "evidence-malformed"),
        (b"\x01" * 128, "values-invalid"),  # the cap is not zero
        (bytes(128), "values-all-zero"),
    ],
)
async def test_values_that_no_boot_has(server: Server, attester: Attester, values: bytes, code: str) -> None:
    """Of the wrong size, capped, or measured by nothing."""
    kid = await enroll(server, attester)
    assert (await say(server, attester, kid, values)).code == code


async def test_the_operators_list_cannot_be_filled(
    server: Server, attester: Attester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of waiting announcements is bounded; room is made by approving or retiring."""
    monkeypatch.setattr(announce, "MAX_ANNOUNCED", 2)
    kid = await enroll(server, attester)
    for number in range(2):
        values = next_boot(attester, str(number).encode())
        assert (await say(server, attester, kid, values, str(number))).status == 201
    full = await say(server, attester, kid, next_boot(attester, b"2"))
    assert (full.status, full.code) == (403, "announcements-full")
    await server.reference_values.retire("pi-b", "0")
    assert (await say(server, attester, kid, next_boot(attester, b"2"))).status == 201


async def test_strangers(server: Server, attester: Attester) -> None:
    """An unknown kid, another method, another machine's TPM."""
    kid = await enroll(server, attester)
    assert (await server.post("/attest/announce/unknown", {})).code == "key-unknown"
    assert (await server.request("GET", f"/attest/announce/{kid}")).status == 405
    assert (await say(server, Attester(), kid, next_boot(attester))).code == "signature-invalid"
