"""A state whose kernel, initrd or command line nobody covers is refused, unless a person accepts it by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tang_attest.doctor.registry import look_at_records
from tang_attest.errors import Refused
from tang_attest.ports.machines import Device
from tang_attest.protocol.coverage import BootPart
from tang_attest.protocol.eventlog import parse, replay
from tang_attest.protocol.values.base64url import b64u
from tang_attest.protocol.values.pcr import Selection
from tang_attest.service.machines.grading import graded
from tang_attest.service.policies.reference_values import Approval, Backing
from tests.attester import Attester
from tests.server import Answer, Server

LOGS = Path(__file__).parents[2] / "vectors" / "eventlogs-arm64"
DEFAULT = Selection.parse("sha256:0,2,4,7,8,9,15")


def log(name: str) -> bytes:
    return (LOGS / f"{name}.bin").read_bytes()


GRUB, COVERED, BOOTI, FIT, UKI = (
    log(name) for name in ("edk2-grub-2.06", "edk2-kernel", "uboot-booti", "uboot-fit-bootm", "uboot-efi-uki")
)


def values(data: bytes, selection: Selection = DEFAULT) -> dict[int, bytes]:
    replayed = replay(parse(data), "sha256")
    return {pcr: replayed.get(pcr, bytes(32)) for pcr in selection.pcrs}


async def finish(
    server: Server, attester: Attester, accepted: tuple[BootPart, ...] = (), **terms: object
) -> Answer:
    token = await server.token(**{"selection": DEFAULT, "accepted_uncovered": accepted, **terms})
    return await server.finish(attester, "pi-b", await server.begin(attester, "pi-b", token))


async def test_an_uncovered_boot_is_not_enrolled(server: Server, attester: Attester) -> None:
    """The refusal names the part, the reason and the selection; the token is not used up."""
    attester.boot_log(FIT)
    answer = await finish(server, attester)
    assert (answer.status, answer.code) == (403, "uncovered")
    assert answer.body["detail"] == (
        "Nothing covers the command line: it is measured in PCR 1, which sha256:0,2,4,7,8,9,15 does not have; "
        "sha256:0,1,2,4,7,8,9,15 would cover it."
    )
    assert "--accept-uncovered" in answer.body["action"]
    assert not await server.store.devices.list_devices()
    ((_, entry),) = (await server.store.audit.list_audit("pi-b"))[:1]
    assert (entry.verdict, entry.code) == ("refused", "uncovered")


async def test_what_no_selection_covers_is_said(server: Server, attester: Attester) -> None:
    attester.boot_log(GRUB)
    answer = await finish(server, attester)
    assert answer.body["detail"] == (
        "Nothing covers the initrd: nobody measured it; no selection would cover it."
    )


async def test_a_covered_boot_is_enrolled_and_graded(server: Server, attester: Attester) -> None:
    attester.boot_log(COVERED)
    assert (await finish(server, attester)).status == 201
    line = "kernel PCR 4, initrd PCR 9, command line PCR 9: covered; device tree: not measured"
    assert (await server.store.devices.get_device("pi-b")).coverage == line
    ((_, entry),) = (await server.store.audit.list_audit("pi-b"))[:1]
    assert entry.details["coverage"] == line


async def test_an_accepted_gap_is_listed_audited_and_graded(server: Server, attester: Attester) -> None:
    attester.boot_log(GRUB)
    accepted = (BootPart.KERNEL, BootPart.INITRD)
    assert (await finish(server, attester, accepted)).status == 201
    (state,) = (await server.store.policies.get_policy("pi-b")).states
    # The kernel is covered, so there is nothing to accept.
    assert state.accepted == (BootPart.INITRD,)
    ((_, entry),) = (await server.store.audit.list_audit("pi-b"))[:1]
    assert entry.details == {"coverage": entry.details["coverage"], "accepted_uncovered": ["initrd"]}
    kid = (await server.store.devices.get_device("pi-b")).kids[0]
    attester.pcrs["sha256"][15] = bytes(32)
    assert (await server.unlock(attester, kid)).status == 200
    grade = (await server.store.devices.get_device("pi-b")).grade
    assert grade is not None
    assert grade["grade"] == "incomplete chain"
    reasons: Any = grade["reasons"]
    assert reasons[:2] == [
        "nothing covers the initrd: nobody measured it",
        "the operator accepted that nothing covers the initrd",
    ]


async def test_no_log_is_unknown_and_accepted(server: Server, attester: Attester) -> None:
    attester.boot_log(GRUB)
    attester.event_log = b""
    assert (await finish(server, attester)).status == 201
    assert (
        await server.store.devices.get_device("pi-b")
    ).coverage == "unknown: no event log came with the values"


async def test_a_log_of_another_boot_proves_nothing(server: Server, attester: Attester) -> None:
    attester.boot_log(GRUB)
    attester.event_log = COVERED
    assert (await finish(server, attester)).status == 201
    found = (await server.store.devices.get_device("pi-b")).coverage
    assert found.startswith("unknown: the event log does not lead to the quoted value")


async def test_an_uncovered_boot_is_not_approved(server: Server, attester: Attester) -> None:
    """A machine that was covered boots by another chain; afterwards its next boots are approved as before."""
    attester.boot_log(COVERED)
    await finish(server, attester)
    kid = (await server.store.devices.get_device("pi-b")).kids[0]
    attester.boot_log(GRUB)
    assert (await server.unlock(attester, kid)).code == "pcr-mismatch"
    with pytest.raises(Refused) as caught:
        await server.reference_values.approve("pi-b", None)
    assert caught.value.code == "uncovered"
    assert dict(caught.value.reasons[0].data) == {"part": "initrd", "measured_in": [], "selection": None}
    approval = Approval(accepted=(BootPart.INITRD,))
    _, state = await server.reference_values.approve("pi-b", None, approval=approval)
    assert state.accepted == (BootPart.INITRD,)
    server.clock.advance(minutes=1)
    assert (await server.unlock(attester, kid)).status == 200
    server.clock.advance(minutes=1)
    attester.boot_log(GRUB)
    attester.extend(7, b"another key")
    attester.event_log = b""
    await server.unlock(attester, kid)
    _, state = await server.reference_values.approve("pi-b", None)
    assert state.accepted == (BootPart.INITRD,)


async def test_values_with_their_log_are_judged_when_recorded_and_staged(server: Server) -> None:
    await server.reference_values.create_policy("web", DEFAULT, 15)
    for accepted, code in (((), "uncovered"), ((BootPart.KERNEL,), "uncovered"), ((BootPart.INITRD,), None)):
        backing = Backing(event_log=GRUB, accepted=accepted)
        for add in (server.reference_values.record, server.reference_values.stage):
            if code is None:
                continue
            with pytest.raises(Refused) as caught:
                await add("web", None, values(GRUB), force=False, backing=backing)
            assert caught.value.code == code
    backing = Backing(event_log=GRUB, accepted=(BootPart.INITRD,))
    state = await server.reference_values.stage("web", "grub", values(GRUB), backing=backing)
    assert state.accepted == (BootPart.INITRD,)
    assert (await server.store.policies.get_policy("web")).states[0].accepted == (BootPart.INITRD,)


async def test_every_gap_is_named_at_once(server: Server) -> None:
    await server.reference_values.create_policy("web", DEFAULT, 15)
    with pytest.raises(Refused) as caught:
        await server.reference_values.record(
            "web", None, values(BOOTI), force=False, backing=Backing(event_log=BOOTI)
        )
    assert [dict(reason.data)["part"] for reason in caught.value.reasons] == ["kernel", "command_line"]


# --- the selection that fits ------------------------------------------------------------------------------------------


async def begun(server: Server, attester: Attester, data: bytes, **terms: object) -> tuple[Answer, Answer]:
    attester.boot_log(data)
    token = await server.token(**{"selection": DEFAULT, "accepted_uncovered": (), "proposes": True, **terms})
    first = await server.begin(attester, "pi-b", token)
    body = {"session": first.body["session"], "event_log": b64u(data)}
    return first, await server.post("/attest/enroll/selection", body)


async def test_the_log_chooses_the_selection_where_the_operator_did_not(
    server: Server, attester: Attester
) -> None:
    first, chosen = await begun(server, attester, FIT)
    assert first.body["event_log_limit"] == 128 * 1024
    assert chosen.status == 200
    assert chosen.body["selection"] == "sha256:0,1,8,9,15"
    assert "; PCR 1: U-Boot measures the command line there; " in chosen.body["reason"]
    first.body.update(session=chosen.body["session"], selection=chosen.body["selection"])
    assert (await server.finish(attester, "pi-b", first)).status == 201
    assert str((await server.store.policies.get_policy("pi-b")).selection) == "sha256:0,1,8,9,15"


async def test_a_unified_kernel_image_is_learned_over_pcr_11(server: Server, attester: Attester) -> None:
    first, chosen = await begun(server, attester, UKI, learn_for=timedelta(hours=1))
    assert chosen.body["selection"] == "sha256:0,2,4,7,11,15"
    first.body.update(session=chosen.body["session"], selection=chosen.body["selection"])
    attester.extend(11, b"enter-initrd")
    attester.extend(11, b"leave-initrd")
    done = await server.finish(attester, "pi-b", first)
    assert (done.status, done.body["learning"]) == (201, True)
    attester.boot_log(UKI)
    attester.extend(11, b"enter-initrd")
    assert (await server.unlock(attester, done.body["kid"])).code == "state-learned"
    (state,) = (await server.store.policies.get_policy("pi-b")).states
    assert state.accepted == ()


async def test_a_learned_boot_that_nobody_covers_is_refused(server: Server, attester: Attester) -> None:
    """It can be approved, and the learning use is still armed."""
    attester.boot_log(GRUB)
    attester.event_log = b""
    selection = Selection.parse("sha256:0,4,7,9,10,15")
    done = await finish(server, attester, selection=selection)
    assert done.body["learning"]
    attester.boot_log(GRUB)
    assert (await server.unlock(attester, done.body["kid"])).code == "uncovered"
    assert (await server.store.devices.get_device("pi-b")).learning is not None
    assert (await server.store.policies.list_observations("pi-b"))[0].code == "uncovered"


async def test_a_selection_of_the_operators_stands(server: Server, attester: Attester) -> None:
    first, chosen = await begun(server, attester, COVERED, proposes=False)
    assert "event_log_limit" not in first.body
    assert (chosen.status, chosen.code) == (403, "selection-invalid")


@pytest.mark.parametrize("data", [b"x", b"\0" * 64, log("uboot-booti")[:-3]])
async def test_a_log_that_cannot_be_read_leaves_the_default(
    server: Server, attester: Attester, data: bytes
) -> None:
    attester.boot_log(COVERED)
    token = await server.token(selection=DEFAULT, accepted_uncovered=(), proposes=True)
    first = await server.begin(attester, "pi-b", token)
    chosen = await server.post(
        "/attest/enroll/selection", {"session": first.body["session"], "event_log": b64u(data)}
    )
    assert (chosen.status, chosen.body["selection"]) == (200, str(DEFAULT))
    assert "the event log is of no use" in chosen.body["reason"]


async def test_a_stranger_gets_no_proposal(server: Server) -> None:
    for body in ({"session": "x", "event_log": b64u(FIT)}, {"event_log": b64u(FIT)}, {"session": 7}):
        assert (await server.post("/attest/enroll/selection", body)).code == "session-invalid"


# --- machines that were enrolled before -------------------------------------------------------------------------------


async def test_a_grade_of_an_older_version_is_completed_when_it_is_shown(
    server: Server, attester: Attester
) -> None:
    """Evidence is kept, and the grade that says nothing of coverage is made again from it; nothing is written."""
    attester.boot_log(GRUB)
    await finish(server, attester, (BootPart.INITRD,))
    device = await server.store.devices.get_device("pi-b")
    old = replace(device, grade={"grade": "verified chain", "reasons": []})
    (shown,) = await graded(server.store, [old])
    assert shown.uncovered == (BootPart.INITRD,)
    assert shown.grade is not None
    assert shown.grade["grade"] == "incomplete chain"
    assert await server.store.devices.get_device("pi-b") == device


async def test_doctor_warns_of_gaps_that_nobody_accepted(server: Server, attester: Attester) -> None:
    attester.boot_log(GRUB)
    await finish(server, attester, (BootPart.INITRD,))
    for accepted, count in (([], 1), (["initrd"], 0)):

        async def grade(
            store: object, devices: Sequence[Device], accepted: list[str] = accepted
        ) -> list[Device]:
            coverage = {"line": "initrd: not measured", "uncovered": ["initrd"], "accepted": accepted}
            return [
                replace(each, grade={"grade": "x", "reasons": [], "coverage": coverage}) for each in devices
            ]

        found = await look_at_records(server.store, server.private_keys, server.clock.now(), grade)
        warned = [each for each in found if "nothing covers the initrd" in each.sentence]
        assert len(warned) == count
