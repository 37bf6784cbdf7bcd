"""Rules over the event log, asked of a machine that unlocks: real logs of real boots (tests/vectors/eventlogs)."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tang_attest.errors import Conflict, Malformed
from tang_attest.protocol import eventlog
from tang_attest.protocol.grade import SECURE_BOOT_OFF
from tang_attest.protocol.values.pcr import Selection
from tang_attest.service.audit.actors import Author
from tang_attest.service.policies.changes import PolicyChanges
from tang_attest.service.policies.explanation import Explanations
from tests.attester import Attester, members
from tests.server import Server, evidence, new_x

SELECTION = "sha256:0,4,7,9,15"


def digests_of(attester: Attester, pcr: int) -> list[dict[str, str]]:
    """Digests that the attester's log extends into *pcr*, as entries of an ``events`` rule."""
    log = eventlog.parse(attester.event_log)
    extended = (event for event in log.events if event.extends and event.pcr == pcr)
    return [{"digest": f"sha256:{event.digests['sha256'].hex()}"} for event in extended]


async def machine(server: Server, attester: Attester) -> str:
    """A machine that booted as in ``ovmf``, enrolled."""
    attester.boot("ovmf")
    return await server.enroll(attester, selection=Selection.parse(SELECTION))


def changes(server: Server) -> PolicyChanges:
    """The operator's tools."""
    return PolicyChanges(server.store, server.clock, Author.operator("tester"))


async def rule(server: Server, document: dict[str, Any] | str, *, force: bool = False) -> None:
    """Let the policy have these rules."""
    change = await changes(server).parse("pi-b", {"rules": document})
    await changes(server).apply("pi-b", change, force=force)


def ruled(attester: Attester) -> dict[str, Any]:
    """PCR 9, initrd and command line, judged by events instead of its value."""
    return {"judge-by-events": [9], "rules": [{"events": {"pcr": 9, "allow": digests_of(attester, 9)}}]}


async def test_a_judged_pcr_may_differ_in_value(server: Server, attester: Attester) -> None:
    """Each event is allowed, only their order is another: the value is new, the boot is not."""
    kid = await machine(server, attester)
    await rule(server, ruled(attester))
    assert (await server.unlock(attester, kid)).status == 200
    reorder(attester)
    assert (await server.unlock(attester, kid)).status == 200
    await rule(server, "none", force=True)
    assert (await server.unlock(attester, kid)).code == "pcr-mismatch"


def reorder(attester: Attester) -> None:
    """Swap PCR 9's two events, which are neighbors, in the log and in the TPM."""
    events = eventlog.parse(attester.event_log).events
    one, two, after = next(
        three for three in zip(events, events[1:], events[2:], strict=False) if three[0].pcr == 9
    )
    data = attester.event_log
    swapped = data[two.offset : after.offset] + data[one.offset : two.offset]
    attester.event_log = data[: one.offset] + swapped + data[after.offset :]
    attester.pcrs["sha256"][9] = eventlog.replay(eventlog.parse(attester.event_log), "sha256")[9]


async def test_an_event_that_no_rule_accepts(server: Server, attester: Attester) -> None:
    """Another initrd: refused, with the rule's name and the event; the other PCRs are compared as ever."""
    kid = await machine(server, attester)
    await rule(server, ruled(attester))
    attester.boot("kernel-changed")
    refused = await server.unlock(attester, kid)
    assert (refused.status, refused.code) == (403, "pcr-mismatch")  # PCR 4 has the initrd's size
    reasons: Any = (await server.store.audit.list_audit())[0][1].details["reasons"]
    assert [reason["code"] for reason in reasons][-1] == "rule-failed"
    explanations = Explanations(server.store, server.clock)
    found = await explanations.explain(await explanations.find(1))
    assert [reason.code for reason in found.reasons if reason.code == "rule-failed"]
    assert any("the initrd" in change.sentence for change in found.changes)


@pytest.mark.parametrize(
    ("log", "code"), [(b"", "log-missing"), (b"\0" * 40, "eventlog-malformed"), (None, "log-replay-mismatch")]
)
async def test_without_an_honest_log_there_is_no_permit(
    server: Server, attester: Attester, log: bytes | None, code: str
) -> None:
    """Not sent, not readable, or of another boot: rules cannot be asked, so they fail."""
    kid = await machine(server, attester)
    await rule(server, ruled(attester))
    if log is None:
        twin = Attester()
        twin.boot("kernel-changed")
        log = twin.event_log
    attester.event_log = log
    refused = await server.unlock(attester, kid)
    assert (refused.status, refused.code) == (403, code)


@pytest.mark.parametrize(("size", "told"), [(131073, True), (2**40, True), (131072, False), (0, False)])
async def test_a_log_over_the_limit_is_told_apart_from_none(
    server: Server, attester: Attester, size: int, told: bool
) -> None:
    """The machine says how many bytes it has; the record and the answer then say that, and the limit."""
    kid = await machine(server, attester)
    await rule(server, ruled(attester))
    attester.event_log = b""
    challenge = await server.challenge(kid)
    assert challenge["event_log_limit"] == 131072
    x = dict(members(new_x()))
    sent = evidence(attester, kid, x, challenge)
    refused = await server.post(f"/rec/{kid}", x | {"attest": sent | {"event_log_size": size}})
    assert (refused.status, refused.code) == (403, "log-missing")
    recorded: Any = (await server.store.audit.list_audit())[0][1].details["reasons"]
    said = f"the event log has {size} bytes, and 131072 is the limit"
    for sentence in (refused.body["detail"], recorded[0]["sentence"]):
        assert (said in sentence) is told
        assert ("none was sent" in sentence) is not told


@pytest.mark.parametrize("size", [-1, 2**40 + 1, "131073", 1.5, True])
async def test_a_size_that_is_none(server: Server, attester: Attester, size: object) -> None:
    """Is refused with the rest of the evidence."""
    kid = await machine(server, attester)
    x, challenge = dict(members(new_x())), await server.challenge(kid)
    sent = evidence(attester, kid, x, challenge)
    refused = await server.post(f"/rec/{kid}", x | {"attest": sent | {"event_log_size": size}})
    assert (refused.status, refused.code) == (400, "evidence-malformed")


async def test_rules_are_tried_on_the_last_boot(server: Server, attester: Attester) -> None:
    """Rules that this very machine fails are not taken without force; that is found before its next boot."""
    await machine(server, attester)
    other = Attester()
    other.boot("kernel-changed")
    with pytest.raises(Conflict) as error:
        await rule(server, ruled(other))
    assert error.value.code == "would-refuse"
    assert "pi-b" in error.value.sentence
    await rule(server, ruled(attester))
    assert (await server.store.policies.get_policy("pi-b")).judged_pcrs == {9}


@pytest.mark.parametrize(
    "rules",
    [
        {"judge-by-events": [8], "rules": [{"events": {"pcr": 8, "allow": [{"digest": "sha256:" + "0" * 64}]}}]},
        {"judge-by-events": [15], "rules": [{"events": {"pcr": 15, "allow": [{"digest": "sha256:" + "0" * 64}]}}]},
    ],
)  # fmt: skip
async def test_rules_that_the_policy_cannot_ask(
    server: Server, attester: Attester, rules: dict[str, Any]
) -> None:
    """About a PCR that is not quoted, or about the cap."""
    await machine(server, attester)
    with pytest.raises(Malformed) as error:
        await rule(server, rules)
    assert error.value.code == "rules-invalid"
    assert (await server.store.policies.get_policy("pi-b")).rules is None


async def test_the_grade_is_kept_with_the_evidence(server: Server, attester: Attester) -> None:
    """From enrollment on; what is not known is said."""
    await machine(server, attester)
    grade = (await server.store.devices.get_device("pi-b")).grade
    assert grade is not None
    assert grade["grade"] == "self-measured"
    assert grade["reasons"] == ["the EK's certificate is not verified"]
    assert grade["unmeasured"] == [SECURE_BOOT_OFF]


async def test_under_secure_boot_nothing_is_said_to_be_unmeasured(server: Server, attester: Attester) -> None:
    """Then systemd ignores the variable."""
    attester.boot("secure-boot")
    await server.enroll(attester, selection=Selection.parse("sha256:0,4,7,9,15"))
    device = await server.store.devices.get_device("pi-b")
    assert device.grade is not None
    assert "unmeasured" not in device.grade
    assert device.unmeasured == ()


async def test_a_log_is_compared_beside_the_event_loop(
    server: Server, attester: Attester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sender chooses the time it takes; no unlock waits for it meanwhile."""
    kid = await machine(server, attester)
    assert (await server.unlock(attester, kid)).status == 200
    await rule(server, ruled(attester))
    attester.boot("kernel-changed")
    assert (await server.unlock(attester, kid)).status == 403
    threads = set()
    original = eventlog.difference

    def witness(*args: Any) -> Any:
        threads.add(threading.current_thread())
        return original(*args)

    monkeypatch.setattr(eventlog, "difference", witness)
    explanations = Explanations(server.store, server.clock)
    found = await explanations.explain(await explanations.find(1))
    assert found.changes
    assert threads
    assert threading.current_thread() not in threads
