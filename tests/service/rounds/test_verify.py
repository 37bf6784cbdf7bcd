"""Running machines prove what they run, over HTTP (docs/protocol.md, 10)."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tang_attest.errors import Refused
from tang_attest.protocol.challenge import unlock_digest, verify_digest
from tang_attest.protocol.conditions import Conditions, Watch
from tang_attest.protocol.values.base64url import b64u, unb64u
from tang_attest.protocol.values.pcr import Selection
from tang_attest.protocol.verification import CAP_EVENT, RoundOutcome
from tests.attester import Attester
from tests.server import Answer, Server

SELECTION = "sha256:0,4,7,15"


async def enroll(server: Server, attester: Attester, name: str = "pi-b") -> str:
    """An enrolled machine that booted, unlocked, and runs: the cap is extended."""
    kid = await server.enroll(attester, name, selection=Selection.parse(SELECTION), learn_for=timedelta(0))
    attester.extend(15, CAP_EVENT)
    return kid


async def watch(server: Server, policy: str = "pi-b", **terms: Any) -> None:
    """Have a policy's machines watched."""
    conditions = Conditions(watch=Watch(**({"interval_s": 60, "jitter": 0} | terms)))
    await server.conditions.set(policy, conditions)


async def poll(server: Server, kid: str, ticket: str | None = None) -> Answer:
    """An agent asks."""
    return await server.post(f"/attest/agent/{kid}", {} if ticket is None else {"ticket": ticket})


def evidence(attester: Attester, kid: str, challenge: dict[str, Any], **changes: Any) -> dict[str, str]:
    """Answer of an agent."""
    binding = changes.pop("binding", None) or verify_digest(challenge["nonce"], kid)
    return attester.evidence(
        challenge["nonce"], binding, changes.pop("selection", challenge["selection"]), **changes
    )


async def prove(server: Server, attester: Attester, kid: str, **changes: Any) -> Answer:
    """A whole round: ask and answer."""
    challenge = (await poll(server, kid)).body["challenge"]
    return await server.post(f"/attest/agent/{kid}/evidence", evidence(attester, kid, challenge, **changes))


async def outcomes(server: Server, name: str = "pi-b") -> list[str]:
    """The history, oldest first."""
    return [past.outcome.value for past in reversed(await server.store.rounds.list_rounds(name))]


async def test_a_running_machine_is_verified(server: Server, attester: Attester) -> None:
    """Its own policy, capped and without what moves, is enough."""
    kid = await enroll(server, attester)
    challenge = (await poll(server, kid)).body["challenge"]
    assert challenge["selection"] == SELECTION
    assert challenge["evidence"] == ["quote"]
    answer = await server.post(f"/attest/agent/{kid}/evidence", evidence(attester, kid, challenge))
    assert (answer.status, answer.body["outcome"], answer.body["code"]) == (200, "verified", "ok")
    device = await server.store.devices.get_device("pi-b")
    assert device.standing.outcome is RoundOutcome.VERIFIED
    assert device.standing.answered_at == device.standing.verified_at == server.clock.now()
    assert await outcomes(server) == ["verified"]


async def test_a_machine_that_is_not_capped_is_refused(server: Server, attester: Attester) -> None:
    """A running system that could still unlock is not what the initrd leaves."""
    kid = await server.enroll(attester, selection=Selection.parse(SELECTION))
    answer = await prove(server, attester, kid)
    assert (answer.body["outcome"], answer.body["code"]) == ("refused", "pcr-mismatch")
    reasons: Any = (await server.store.rounds.list_rounds("pi-b"))[0].details["reasons"]
    assert [reason["code"] for reason in reasons][-1] == "cap-missing"
    assert "its initrd has no hook, or it has not rebooted since binding" in reasons[-1]["sentence"]


async def test_a_zero_cap_is_not_recorded(server: Server, attester: Attester) -> None:
    """The next good boot, whose initrd extends the cap, would be refused and suspended."""
    await server.enroll(attester, selection=Selection.parse(SELECTION))
    device = await server.store.devices.get_device("pi-b")
    selection = Selection.parse(SELECTION)
    values = {pcr: attester.pcrs["sha256"][pcr] for pcr in selection.pcrs}
    verifier = server.installation.verifier()
    with pytest.raises(Refused) as refused:
        await verifier.record_values(device, selection, values, "operator:alice")
    assert refused.value.code == "cap-missing"
    assert (await server.store.devices.get_device("pi-b")).running_policy is None
    capped = values | {15: b"\x15" * 32}
    await verifier.record_values(device, selection, capped, "operator:alice")
    server.clock.advance(seconds=1)
    # A machine that is registered without a disk of its own has no hook, and needs none.
    await verifier.record_values(replace(device, origin="registered"), selection, values, "operator:alice")


async def test_rounds_that_end_alike_leave_one_row(server: Server, attester: Attester) -> None:
    """Thousands of machines, and months: only changes are kept, and every change is."""
    kid = await enroll(server, attester)
    for _ in range(3):
        assert (await prove(server, attester, kid)).body["outcome"] == "verified"
        server.clock.advance(seconds=60)
    good = dict(attester.pcrs["sha256"])
    attester.extend(4, b"another kernel")
    for _ in range(3):
        assert (await prove(server, attester, kid)).body["outcome"] == "refused"
        server.clock.advance(seconds=60)
    attester.pcrs["sha256"] = good
    await prove(server, attester, kid)
    assert await outcomes(server) == ["verified", "refused", "verified"]
    refused = (await server.store.rounds.list_rounds("pi-b"))[1]
    assert refused.code == "pcr-mismatch"
    assert dict(refused.details)["reasons"][1]["pcr"] == 4  # type: ignore[index]


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"binding": bytes(32)}, 403, "qualifying-data-mismatch"),
        ({"magic": 0x12345678}, 403, "quote-invalid"),
    ],
)
async def test_what_anybody_can_send_is_no_verdict(
    server: Server, attester: Attester, changes: dict[str, Any], status: int, code: str
) -> None:
    """It is answered with its code, and the machine stands as before."""
    kid = await enroll(server, attester)
    await watch(server, on_refused=("suspend",))
    await prove(server, attester, kid)
    server.clock.advance(seconds=60)
    answer = await prove(server, attester, kid, **changes)
    assert (answer.status, answer.code) == (status, code)
    device = await server.store.devices.get_device("pi-b")
    assert device.standing.outcome is RoundOutcome.VERIFIED
    assert device.suspension is None


async def test_another_machines_evidence_is_no_verdict(server: Server, attester: Attester) -> None:
    """Knowledge of a kid is not enough to have the machine refused."""
    kid = await enroll(server, attester)
    await watch(server, on_refused=("suspend",))
    answer = await prove(server, Attester(), kid)
    assert answer.code == "signature-invalid"
    assert (await server.store.devices.get_device("pi-b")).standing.outcome is None
    assert await outcomes(server) == []


async def test_values_changed_on_the_way_are_no_verdict(server: Server, attester: Attester) -> None:
    """The values are not signed: somebody between could otherwise have any machine suspended."""
    kid = await enroll(server, attester)
    await watch(server, on_refused=("suspend",))
    challenge = (await poll(server, kid)).body["challenge"]
    body = evidence(attester, kid, challenge)
    changed = bytearray(unb64u(body["pcrs"]))
    changed[0] ^= 1
    answer = await server.post(f"/attest/agent/{kid}/evidence", body | {"pcrs": b64u(bytes(changed))})
    assert answer.code == "pcr-digest-mismatch"
    assert (await server.store.devices.get_device("pi-b")).suspension is None


async def test_a_quote_of_other_pcrs_is_a_verdict(server: Server, attester: Attester) -> None:
    """The TPM signed it for our nonce: the machine itself hides something."""
    kid = await enroll(server, attester)
    answer = await prove(server, attester, kid, selection="sha256:0,7,15")
    assert (answer.status, answer.body["code"]) == (200, "selection-mismatch")


async def test_evidence_counts_once(server: Server, attester: Attester) -> None:
    """The same bytes again change nothing."""
    kid = await enroll(server, attester)
    challenge = (await poll(server, kid)).body["challenge"]
    body = evidence(attester, kid, challenge)
    assert (await server.post(f"/attest/agent/{kid}/evidence", body)).body["outcome"] == "verified"
    assert (await server.post(f"/attest/agent/{kid}/evidence", body)).code == "nonce-used"
    assert (await server.store.devices.get_device("pi-b")).standing.outcome is RoundOutcome.VERIFIED


async def test_a_challenge_may_be_answered_twice(server: Server, attester: Attester) -> None:
    """The agent did not hear how its answer was judged, and quotes again."""
    kid = await enroll(server, attester)
    challenge = (await poll(server, kid)).body["challenge"]
    for _ in range(2):
        answer = await server.post(f"/attest/agent/{kid}/evidence", evidence(attester, kid, challenge))
        assert answer.body["outcome"] == "verified"


async def test_two_rounds_at_once_do_no_harm(server: Server, attester: Attester) -> None:
    """The older evidence comes second: both are verified, and nobody is suspected."""
    kid = await enroll(server, attester)
    await watch(server, on_refused=("suspend",))
    first, second = [(await poll(server, kid)).body["challenge"] for _ in range(2)]
    older, newer = evidence(attester, kid, first), evidence(attester, kid, second)
    assert (await server.post(f"/attest/agent/{kid}/evidence", newer)).status == 200
    assert (await server.post(f"/attest/agent/{kid}/evidence", older)).body["outcome"] == "verified"
    assert (await server.store.devices.get_device("pi-b")).suspension is None


async def test_a_tpm_that_was_set_back_is_a_verdict(server: Server, attester: Attester) -> None:
    """A virtual machine's snapshot: a fresh nonce, and a clock that is older than the evidence before it."""
    kid = await enroll(server, attester)
    attester.clock += 1000
    await prove(server, attester, kid)
    server.clock.advance(seconds=60)
    attester.clock -= 500
    answer = await prove(server, attester, kid)
    assert (answer.status, answer.body["code"]) == (200, "clock-backwards")
    assert await outcomes(server) == ["verified", "refused"]


@pytest.mark.parametrize("label", ["unlock", "verify"])
async def test_a_nonce_is_for_one_purpose(server: Server, attester: Attester, label: str) -> None:
    """A challenge to verify does not unlock, and one to unlock does not verify."""
    kid = await enroll(server, attester)
    if label == "unlock":
        challenge = await server.challenge(kid)
        body = evidence(attester, kid, challenge, binding=unlock_digest(challenge["nonce"], kid, "x"))
        answer = await server.post(f"/attest/agent/{kid}/evidence", body)
    else:
        challenge = (await poll(server, kid)).body["challenge"]
        answer = await server.unlock(attester, kid, challenge={**challenge, "selection": SELECTION})
    assert (answer.status, answer.code) == (403, "nonce-invalid")


async def test_an_old_nonce_is_refused(server: Server, attester: Attester) -> None:
    """A late answer proves too little."""
    kid = await enroll(server, attester)
    challenge = (await poll(server, kid)).body["challenge"]
    server.clock.advance(seconds=121)
    answer = await server.post(f"/attest/agent/{kid}/evidence", evidence(attester, kid, challenge))
    assert (answer.status, answer.code) == (401, "nonce-expired")
    # A machine that was only slow goes on with the challenge of the refusal.
    again = evidence(attester, kid, answer.body["challenge"])
    assert (await server.post(f"/attest/agent/{kid}/evidence", again)).body["outcome"] == "verified"


async def test_unknown_keys(server: Server, attester: Attester) -> None:
    """404, as everywhere."""
    assert (await poll(server, "x" * 43)).code == "key-unknown"
    assert (await server.request("GET", f"/attest/agent/{'x' * 43}")).status == 405
    assert (await server.post(f"/attest/adv/{'x' * 43}/evidence", {})).status == 404


# --- held requests ----------------------------------------------------------------------------------------------------


async def test_only_a_ticket_has_a_request_held(server: Server, attester: Attester) -> None:
    """Strangers cost what a challenge costs, and no more."""
    kid = await enroll(server, attester)
    await watch(server)
    ticket = (await prove(server, attester, kid)).body["ticket"]
    assert (await poll(server, kid)).status == 200
    assert (await poll(server, kid, "A" * 76)).status == 200
    held = asyncio.create_task(poll(server, kid, ticket))
    await until(lambda: server.polls.count == 1)
    server.polls.close()
    assert (await held).status == 204
    assert (await poll(server, kid, ticket)).status == 204


async def test_nothing_due_is_204(server: Server, attester: Attester) -> None:
    """Nobody watches and nobody asks: ask again."""
    kid = await enroll(server, attester)
    ticket = (await prove(server, attester, kid)).body["ticket"]
    assert (await poll(server, kid, ticket)).status == 204
    assert server.polls.count == 0


async def test_a_thief_of_a_ticket_makes_a_machine_busy_not_silent(
    server: Server, attester: Attester
) -> None:
    """A client that pushes the agent's request out gives it a challenge."""
    kid = await enroll(server, attester)
    ticket = (await prove(server, attester, kid)).body["ticket"]
    held = asyncio.create_task(poll(server, kid, ticket))
    await until(lambda: server.polls.count == 1)
    thieves = [asyncio.create_task(poll(server, kid, ticket)) for _ in range(3)]
    answer = await held
    assert "challenge" in answer.body
    server.polls.close()
    await asyncio.gather(*thieves)


async def test_a_round_is_due_after_the_interval(server: Server, attester: Attester) -> None:
    """Also when the server was started anew meanwhile: the row says when the last one was."""
    kid = await enroll(server, attester)
    await watch(server)
    ticket = (await prove(server, attester, kid)).body["ticket"]
    server.clock.advance(seconds=59)
    held = asyncio.create_task(poll(server, kid, ticket))
    await asyncio.sleep(0.3)
    assert not held.done()
    assert "challenge" in (await held).body
    server.clock.advance(seconds=2)
    assert "challenge" in (await poll(server, kid, ticket)).body


async def test_new_terms_reach_held_requests(server: Server, attester: Attester) -> None:
    """An agent held without a watching policy is asked as soon as there is one, and is not called silent for it."""
    kid = await enroll(server, attester)
    ticket = (await prove(server, attester, kid)).body["ticket"]
    await server.watching.sweep()
    server.clock.advance(hours=1)
    held = asyncio.create_task(poll(server, kid, ticket))
    await until(lambda: server.polls.count == 1)
    await watch(server, misses=3)
    await sweep(server, 20)
    assert "challenge" in (await held).body
    await sweep(server, 100)
    assert (await server.store.devices.get_device("pi-b")).standing.outcome is RoundOutcome.VERIFIED


# --- enforcement ------------------------------------------------------------------------------------------------------


async def test_failure_suspends_and_suspension_closes_the_key(server: Server, attester: Attester) -> None:
    """From then on nobody gets Y, whatever it boots, until a person resumes it."""
    kid = await enroll(server, attester)
    await watch(server, on_refused=("log", "suspend"))
    good = dict(attester.pcrs["sha256"])
    await prove(server, attester, kid)
    attester.extend(7, b"tampered")
    assert (await prove(server, attester, kid)).body["outcome"] == "refused"
    device = await server.store.devices.get_device("pi-b")
    assert device.suspension is not None
    assert device.suspension.by == "server"
    audited = [(row.event, row.actor, row.code) for _, row in await server.store.audit.list_audit("pi-b")]
    assert ("device suspend", "server", "pcr-mismatch") in audited

    attester.reset_count += 1
    attester.pcrs["sha256"] = good | {15: bytes(32)}
    refused = await server.unlock(attester, kid)
    assert (refused.status, refused.code) == (403, "device-suspended")
    assert "pcrs" not in refused.body
    assert await server.store.policies.list_observations("pi-b") == []
    stranger = await server.unlock(Attester(), kid)
    assert stranger.code == "signature-invalid"

    await server.devices.resume("pi-b")
    assert (await server.unlock(attester, kid)).status == 200
    assert (await server.store.audit.list_audit("pi-b"))[1][1].actor == "operator:tester"


async def test_a_suspended_machine_announces_nothing(server: Server, attester: Attester) -> None:
    """Otherwise it could prepare its way back."""
    from tests.server import announcement

    kid = await enroll(server, attester)
    await server.devices.suspend("pi-b", "stolen")
    challenge = (await server.post(f"/attest/announce/{kid}", {})).body
    values = attester.values(SELECTION)
    body = announcement(attester, kid, challenge, values, "next")
    assert (await server.post(f"/attest/announce/{kid}", body)).code == "device-suspended"


async def test_who_fails_on_is_suspended_again(server: Server, attester: Attester) -> None:
    """Resuming a machine that still fails does not leave it unguarded."""
    kid = await enroll(server, attester)
    await watch(server, on_refused=("suspend",))
    attester.extend(7, b"tampered")
    await prove(server, attester, kid)
    await server.devices.resume("pi-b")
    await prove(server, attester, kid)
    assert (await server.store.devices.get_device("pi-b")).suspension is not None
    assert await outcomes(server) == ["refused"]


async def test_silence_is_unreachable_and_not_refused(server: Server, attester: Attester) -> None:
    """FAIL, then TIMEOUT, then PASS: all three are in the history."""
    kid = await enroll(server, attester)
    await watch(server, misses=3)
    good = dict(attester.pcrs["sha256"])
    attester.extend(7, b"tampered")
    await prove(server, attester, kid)
    await sweep(server, 170)
    assert (await server.store.devices.get_device("pi-b")).standing.outcome is RoundOutcome.REFUSED
    await sweep(server, 30)
    assert (await server.store.devices.get_device("pi-b")).standing.outcome is RoundOutcome.UNREACHABLE
    assert (await server.store.devices.get_device("pi-b")).suspension is None
    attester.pcrs["sha256"] = good
    await prove(server, attester, kid)
    assert await outcomes(server) == ["refused", "unreachable", "verified"]


async def test_who_never_came_is_unreachable(server: Server, attester: Attester) -> None:
    """A machine whose agent was never started is not "verified" for want of news."""
    await enroll(server, attester)
    await watch(server, misses=2, on_unreachable=("suspend",))
    await sweep(server, 130)
    device = await server.store.devices.get_device("pi-b")
    assert device.standing.outcome is RoundOutcome.UNREACHABLE
    assert device.suspension is not None


async def test_a_server_that_starts_does_not_call_everybody_silent(
    server: Server, attester: Attester
) -> None:
    """It was the server that was away; the same after it could not sweep for a while."""
    kid = await enroll(server, attester)
    await watch(server, misses=2)
    await prove(server, attester, kid)
    server.clock.advance(hours=5)
    await sweep(server, 100)
    assert (await server.store.devices.get_device("pi-b")).standing.outcome is RoundOutcome.VERIFIED
    server.clock.advance(seconds=60)  # no sweep meanwhile
    await sweep(server, 100)
    assert (await server.store.devices.get_device("pi-b")).standing.outcome is RoundOutcome.VERIFIED
    await sweep(server, 40)
    assert (await server.store.devices.get_device("pi-b")).standing.outcome is RoundOutcome.UNREACHABLE


@pytest.mark.parametrize("back", [{"hours": -1}, {"days": -3650}])
async def test_a_clock_that_is_set_back_hides_no_silence(
    server: Server, attester: Attester, back: dict[str, float]
) -> None:
    """A machine that answered "tomorrow" and then fell silent is found within the policy's time; one that goes on answering is not."""
    kid = await enroll(server, attester)
    await watch(server, misses=2)
    await prove(server, attester, kid)
    server.clock.advance(**back)
    await sweep(server, 100)
    assert (await server.store.devices.get_device("pi-b")).standing.outcome is RoundOutcome.VERIFIED
    await prove(server, attester, kid)
    await sweep(server, 100)
    assert (await server.store.devices.get_device("pi-b")).standing.outcome is RoundOutcome.VERIFIED
    server.clock.advance(**back)
    await sweep(server, 130)
    assert (await server.store.devices.get_device("pi-b")).standing.outcome is RoundOutcome.UNREACHABLE


async def test_a_ticket_from_before_the_clock_was_set_back_is_answered_at_once(
    server: Server, attester: Attester
) -> None:
    """Nobody waits until the clock says again what it said: the next round is due now."""
    kid = await enroll(server, attester)
    await watch(server)
    ticket = (await prove(server, attester, kid)).body["ticket"]
    server.clock.advance(days=-365)
    assert (await poll(server, kid, ticket)).status == 200


async def test_a_wish_wakes_the_agent(server: Server, attester: Attester) -> None:
    """An operator's round is held within a second, whichever server holds the agent."""
    kid = await enroll(server, attester)
    ticket = (await prove(server, attester, kid)).body["ticket"]
    held = asyncio.create_task(poll(server, kid, ticket))
    await until(lambda: server.polls.count == 1)
    await server.store.rounds.request_round("pi-b", server.clock.now())
    await server.watching.sweep()
    challenge = (await held).body["challenge"]
    await server.post(f"/attest/agent/{kid}/evidence", evidence(attester, kid, challenge))
    assert (await server.store.devices.get_device("pi-b")).standing.wanted_at is None
    assert await outcomes(server) == ["verified", "verified"]


# --- a person's word --------------------------------------------------------------------------------------------------


async def test_an_unlock_waits_for_a_person(server: Server, attester: Attester) -> None:
    """The machine tries again; once it is allowed, and as long as it is."""
    kid = await server.enroll(attester)
    await server.conditions.set("pi-b", Conditions(approval=True))
    assert (await server.unlock(attester, kid)).code == "approval-required"
    await server.devices.allow("pi-b", timedelta(minutes=30))
    assert (await server.unlock(attester, kid)).status == 200
    server.clock.advance(minutes=31)
    assert (await server.unlock(attester, kid)).code == "approval-required"
    assert await server.store.policies.list_observations("pi-b") == []


async def test_approval_does_not_replace_the_policy(server: Server, attester: Attester) -> None:
    """A person's word is one condition more, never one less."""
    kid = await server.enroll(attester)
    await server.conditions.set("pi-b", Conditions(approval=True))
    await server.devices.allow("pi-b", timedelta(minutes=30))
    attester.extend(4, b"x")
    assert (await server.unlock(attester, kid)).code == "pcr-mismatch"


async def test_a_machine_that_was_away_for_long_is_stale(server: Server, attester: Attester) -> None:
    """A disk and its machine from somebody's drawer; trying again does not help."""
    kid = await server.enroll(attester)
    await server.conditions.set("pi-b", Conditions(stale_after_s=30 * 86400))
    assert (await server.unlock(attester, kid)).status == 200
    server.clock.advance(days=31)
    for _ in range(2):
        assert (await server.unlock(attester, kid)).code == "device-stale"
    await server.devices.allow("pi-b", timedelta(minutes=30))
    assert (await server.unlock(attester, kid)).status == 200
    server.clock.advance(days=29)
    assert (await server.unlock(attester, kid)).status == 200


async def until(condition: Any) -> None:
    """Wait for something that another task does."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        await asyncio.sleep(0.02)


async def sweep(server: Server, seconds: int) -> None:
    """Let *seconds* pass, with the server's sweeps."""
    for _ in range(0, seconds, 10):
        await server.watching.sweep()
        server.clock.advance(seconds=10)
    await server.watching.sweep()


# --- rules ------------------------------------------------------------------------------------------------------------


async def test_rules_ask_running_machines_for_their_log(server: Server, attester: Attester) -> None:
    """The firmware's log is there while a system runs; a log that is lost on the way is no verdict."""
    from tests.service.policies.test_rules import machine, rule, ruled

    kid = await machine(server, attester)
    await rule(server, ruled(attester))
    attester.extend(15, CAP_EVENT)
    challenge = (await poll(server, kid)).body["challenge"]
    assert challenge["evidence"] == ["quote", "event-log"]
    body = evidence(attester, kid, challenge)
    without = {name: value for name, value in body.items() if name != "event_log"}
    assert (await server.post(f"/attest/agent/{kid}/evidence", without)).code == "log-missing"
    assert (await server.store.devices.get_device("pi-b")).standing.outcome is None
    answer = await server.post(
        f"/attest/agent/{kid}/evidence", body | {"event_log": b64u(attester.event_log)}
    )
    assert answer.body["outcome"] == "verified"
