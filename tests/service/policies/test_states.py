"""Effect of a reference state's life on an unlock."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tang_attest.errors import Conflict
from tang_attest.protocol.reference_state import Life
from tang_attest.protocol.values.pcr import Selection
from tang_attest.service.policies.reference_values import Approval
from tests.attester import Attester
from tests.server import SELECTION, Server


def values_of(attester: Attester) -> dict[int, bytes]:
    """The attester's values of the usual selection."""
    pcrs = [int(pcr) for pcr in SELECTION.partition(":")[2].split(",")]
    return {pcr: attester.pcrs["sha256"][pcr] for pcr in pcrs}


async def lives(server: Server) -> dict[str, Life]:
    """Label to life, without the time in a label."""
    states = (await server.store.policies.get_policy("pi-b")).states
    return {state.label.split()[0]: state.life for state in states}


async def test_a_staged_update_boots_without_a_fallback(server: Server, attester: Attester) -> None:
    """Old and new overlap; the new becomes active by itself, and the old is then offered for retirement."""
    kid = await server.enroll(attester)
    old = dict(attester.pcrs["sha256"])
    attester.extend(4, b"kernel 6.2")
    await server.reference_values.stage("pi-b", "6.2", values_of(attester))
    attester.pcrs["sha256"], new = old, attester.pcrs["sha256"]
    assert (await server.unlock(attester, kid)).status == 200
    assert await lives(server) == {"recorded": Life.ACTIVE, "6.2": Life.STAGED}
    assert await server.reference_values.retirable("pi-b") == []
    attester.pcrs["sha256"] = new
    assert (await server.unlock(attester, kid)).status == 200
    assert await lives(server) == {"recorded": Life.ACTIVE, "6.2": Life.ACTIVE}
    [offered] = await server.reference_values.retirable("pi-b")
    assert offered.startswith("recorded")
    await server.reference_values.retire("pi-b", offered)
    assert (await server.unlock(attester, kid)).status == 200
    attester.pcrs["sha256"] = dict(old)
    assert (await server.unlock(attester, kid)).code == "state-retired"
    await server.reference_values.restore("pi-b", offered)
    assert (await server.unlock(attester, kid)).status == 200


async def test_what_a_machine_booted_last_is_not_retired_by_mistake(
    server: Server, attester: Attester
) -> None:
    """Its next boot would fall back to the passphrase."""
    kid = await server.enroll(attester)
    assert (await server.unlock(attester, kid)).status == 200
    [state] = (await server.store.policies.get_policy("pi-b")).states
    with pytest.raises(Conflict) as error:
        await server.reference_values.retire("pi-b", state.label)
    assert error.value.code == "state-in-use"
    assert "pi-b" in error.value.sentence
    await server.reference_values.retire("pi-b", state.label, force=True)
    assert (await server.unlock(attester, kid)).code == "state-retired"


async def test_approved_once_is_good_for_one_boot(server: Server, attester: Attester) -> None:
    """The second boot of it is refused, and may be approved again."""
    kid = await server.enroll(attester)
    attester.extend(4, b"rescue system")
    assert (await server.unlock(attester, kid)).code == "pcr-mismatch"
    await server.reference_values.approve("pi-b", "rescue", approval=Approval(once=True))
    assert (await server.unlock(attester, kid)).status == 200
    assert (await server.unlock(attester, kid)).code == "state-used-up"
    await server.reference_values.approve("pi-b", "rescue again", approval=Approval(once=True))
    assert (await server.unlock(attester, kid)).status == 200


async def test_approved_for_a_while_expires(server: Server, attester: Attester) -> None:
    """To the second."""
    kid = await server.enroll(attester)
    attester.extend(4, b"rescue system")
    await server.unlock(attester, kid)
    await server.reference_values.approve(
        "pi-b", "rescue", approval=Approval(valid_for=timedelta(minutes=30))
    )
    server.clock.advance(minutes=29, seconds=59)
    assert (await server.unlock(attester, kid)).status == 200
    server.clock.advance(seconds=1)
    refused = await server.unlock(attester, kid)
    assert refused.code == "state-expired"
    assert "approve" in refused.body["action"]


async def test_approved_for_one_device_is_not_for_its_neighbors(server: Server) -> None:
    """Two machines under one policy."""
    one, two = Attester(), Attester()
    await server.reference_values.create_policy("web", Selection.parse(SELECTION), 15)
    await server.reference_values.record("web", "first", values_of(one), force=False)
    kids = [
        await server.enroll(machine, name, policy="web") for machine, name in ((one, "web-1"), (two, "web-2"))
    ]
    two.pcrs["sha256"] = dict(one.pcrs["sha256"])
    for machine, kid in zip((one, two), kids, strict=True):
        assert (await server.unlock(machine, kid)).status == 200
        machine.extend(4, b"odd")
        assert (await server.unlock(machine, kid)).code == "pcr-mismatch"
    await server.reference_values.approve("web-1", "odd", approval=Approval(only_this_device=True))
    assert (await server.unlock(one, kids[0])).status == 200
    assert (await server.unlock(two, kids[1])).code == "pcr-mismatch"


async def test_every_change_says_who_did_it(server: Server, attester: Attester) -> None:
    """The audit record is the history of the policy."""
    await server.enroll(attester)
    attester.extend(4, b"new")
    await server.reference_values.stage("pi-b", "new", values_of(attester), valid_for=timedelta(days=1))
    await server.reference_values.retire("pi-b", "new")
    await server.reference_values.restore("pi-b", "new")
    await server.reference_values.trust_predictions("pi-b", True)
    changes = [
        (row.event, row.actor)
        for _, row in reversed(await server.store.audit.list_audit())
        if row.event.startswith("policy")
    ]
    assert changes == [
        ("policy state add", "operator:tester"),
        ("policy state retire", "operator:tester"),
        ("policy state restore", "operator:tester"),
        ("policy trust-predictions", "operator:tester"),
    ]


async def test_the_last_evidence_is_what_the_initrd_quoted(server: Server, attester: Attester) -> None:
    """From enrollment on; a refused boot is evidence too, a running system's quote is not."""
    kid = await server.enroll(attester, selection=Selection.parse("sha256:0,4,7,15"))
    enrolled = await server.store.policies.get_evidence("pi-b", permitted=True)
    assert enrolled is not None
    assert not any(enrolled.snapshot.values[15])
    assert (await server.unlock(attester, kid)).status == 200
    unchanged = await server.store.policies.get_evidence("pi-b", permitted=True)
    assert unchanged == enrolled  # the same values again are no news
    attester.extend(4, b"new kernel")
    assert (await server.unlock(attester, kid)).code == "pcr-mismatch"
    refused = await server.store.policies.get_evidence("pi-b", permitted=False)
    assert refused is not None
    assert refused.snapshot.values[4] == attester.pcrs["sha256"][4]
    await server.reference_values.approve("pi-b", "new")
    attester.extend(15, b"cap")
    assert (await server.unlock(attester, kid)).code == "capped"
    assert await server.store.policies.get_evidence("pi-b", permitted=False) == refused
