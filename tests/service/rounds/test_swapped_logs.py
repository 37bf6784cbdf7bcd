"""An event log is not signed: whoever swaps it on the way may have a machine asked again, not suspended."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tang_attest.protocol import eventlog
from tang_attest.protocol.conditions import Conditions, Watch
from tang_attest.protocol.eventlog import EventType
from tang_attest.protocol.values.base64url import b64u
from tang_attest.protocol.values.pcr import Selection
from tang_attest.protocol.verification import CAP_EVENT, RoundOutcome
from tests.attester import Attester
from tests.protocol.eventlog.writer import agile
from tests.server import Answer, Server
from tests.service.policies.test_rules import rule
from tests.service.rounds.test_verify import evidence, poll

SELECTION = "sha256:4,8,15"
TYPED = {
    "judge-by-events": [8],
    "rules": [{"events": {"pcr": 8, "allow": [{"type": "EV_IPL", "data-matches": "[^\\n]*"}]}}],
}


async def running(
    server: Server, attester: Attester, rules: dict[str, Any], vector: str = "secure-boot"
) -> str:
    """A machine that unlocked under *rules* and runs; it is suspended for what it should not run."""
    attester.boot(vector)
    kid = await server.enroll(attester, selection=Selection.parse(SELECTION), learn_for=timedelta(0))
    await rule(server, rules)
    assert (await server.unlock(attester, kid)).status == 200
    attester.extend(15, CAP_EVENT)
    await server.conditions.set("pi-b", Conditions(watch=Watch(on_refused=("suspend",))))
    return kid


async def prove(server: Server, attester: Attester, kid: str, log: bytes) -> Answer:
    """A round whose evidence arrives with *log*."""
    body = evidence(attester, kid, (await poll(server, kid)).body["challenge"])
    body.pop("event_log", None)
    return await server.post(
        f"/attest/agent/{kid}/evidence", body | ({"event_log": b64u(log)} if log else {})
    )


def retyped(log: bytes) -> bytes:
    """Every event of PCR 8 claims to be of another type: a type is not measured."""
    data = bytearray(log)
    for event in eventlog.parse(log).events:
        if event.pcr == 8:
            data[event.offset + 4 : event.offset + 8] = int(EventType.EV_EVENT_TAG).to_bytes(4, "little")
    return bytes(data)


def emptied(log: bytes) -> bytes:
    """The data of PCR 8's events is overwritten; their digests are not."""
    data = bytearray(log)
    for event in eventlog.parse(log).events:
        if event.pcr == 8 and event.data:
            at = bytes(data).index(event.data, event.offset)
            data[at : at + len(event.data)] = b"x" * len(event.data)
    return bytes(data)


VECTORS = Path(__file__).parents[2] / "vectors" / "eventlogs"
SHA1, SHA256, SHA384 = 0x0004, 0x000B, 0x000C

SWAPS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "nothing": (lambda _: b"", "log-missing"),
    "zeros": (lambda _: bytes(64), "eventlog-malformed"),
    "cut": (lambda log: log[:-3], "eventlog-malformed"),
    "another bank": (lambda _: agile([SHA384], []), "eventlog-bank-missing"),
    "two other banks": (lambda _: agile([SHA1, SHA384], []), "eventlog-bank-missing"),
    "SHA-1 alone": (lambda _: (VECTORS / "sha1.bin").read_bytes(), "eventlog-bank-missing"),
    "no events": (lambda _: agile([SHA256], []), "log-replay-mismatch"),
    "other types": (retyped, "rule-failed"),
    "other data": (emptied, "rule-failed"),
}


@pytest.mark.parametrize("swap", SWAPS)
async def test_a_log_that_was_swapped_is_no_verdict(server: Server, attester: Attester, swap: str) -> None:
    """The machine is not suspended and stands as before; with its own log it is verified."""
    change, code = SWAPS[swap]
    kid = await running(server, attester, TYPED)
    answer = await prove(server, attester, kid, change(attester.event_log))
    assert (answer.status, answer.code) == (403, code)
    device = await server.store.devices.get_device("pi-b")
    assert (device.suspension, device.standing.outcome) == (None, None)
    assert (await prove(server, attester, kid, attester.event_log)).body["outcome"] == "verified"


@pytest.mark.parametrize("seed", range(4))
async def test_no_byte_of_a_log_suspends_a_machine(server: Server, attester: Attester, seed: int) -> None:
    """Any change on the way: verified, or no verdict."""
    kid = await running(server, attester, TYPED)
    chance = random.Random(seed)
    answers = set()
    for _ in range(15):
        log = bytearray(attester.event_log)
        for _ in range(chance.choice((1, 1, 1, 4))):
            log[chance.randrange(len(log))] ^= 1 << chance.randrange(8)
        answer = await prove(server, attester, kid, bytes(log))
        answers.add(answer.body.get("outcome", answer.code))
    assert answers <= {
        "verified",
        "eventlog-malformed",
        "eventlog-bank-missing",
        "log-replay-mismatch",
        "rule-failed",
    }
    device = await server.store.devices.get_device("pi-b")
    assert device.suspension is None
    assert device.standing.outcome in (None, RoundOutcome.VERIFIED)


async def test_signed_values_are_a_verdict_with_any_log(server: Server, attester: Attester) -> None:
    """A swapped log does not save a machine whose values show other software."""
    kid = await running(server, attester, TYPED)
    attester.extend(4, b"another kernel")
    answer = await prove(server, attester, kid, bytes(64))
    assert (answer.status, answer.body["outcome"], answer.body["code"]) == (200, "refused", "pcr-mismatch")
    assert (await server.store.devices.get_device("pi-b")).suspension is not None


async def test_a_rule_that_the_boot_breaks_is_a_verdict(server: Server, attester: Attester) -> None:
    """The log that the server kept breaks it too: no log of this boot is good."""
    kid = await running(server, attester, TYPED)
    none = {"judge-by-events": [8], "rules": [{"command-line": {"matches": "root=/dev/none"}}]}
    await rule(server, none, force=True)
    answer = await prove(server, attester, kid, attester.event_log)
    assert (answer.status, answer.body["outcome"], answer.body["code"]) == (200, "refused", "rule-failed")
    assert (await server.store.devices.get_device("pi-b")).suspension is not None


async def test_a_swapped_log_takes_no_learning_use(server: Server, attester: Attester) -> None:
    """The values are those of a state; there is nothing to learn."""
    attester.boot("secure-boot")
    kid = await server.enroll(attester, selection=Selection.parse("sha256:4,8,11,15"))
    assert (await server.unlock(attester, kid)).code == "state-learned"
    await rule(server, TYPED)
    attester.reset_count += 1
    assert (await server.unlock(attester, kid)).status == 200
    await server.reference_values.learn("pi-b", timedelta(hours=1))
    honest, attester.event_log = attester.event_log, b""
    assert (await server.unlock(attester, kid)).code == "log-missing"
    assert (await server.store.devices.get_device("pi-b")).learning is not None
    attester.event_log = honest
    assert (await server.unlock(attester, kid)).status == 200
