"""Running machines tell how their disks were opened, over HTTP (docs/protocol.md, 10.6)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

import pytest

from tang_attest.protocol.challenge import verify_digest
from tang_attest.protocol.conditions import Conditions, Watch
from tang_attest.protocol.quote import Evidence
from tang_attest.protocol.values.base64url import b64u
from tang_attest.protocol.values.pcr import Selection
from tang_attest.protocol.verification import CAP_EVENT, RoundOutcome, cap_value
from tang_attest.service.unlock.device_keys import find_device_key
from tests.attester import Attester
from tests.server import Answer, Server
from tests.service.rounds.test_verify import evidence, poll

SELECTION: Final = "sha256:0,4,7,15"
ROOT: Final = "0f6e1c2d-1111-4222-8333-444455556666"
OTHER: Final = "1a2b3c4d-1111-4222-8333-444455556666"


def text(*lines: str) -> bytes:
    """One text of a cap."""
    return CAP_EVENT + "".join(f"{line}\n" for line in lines).encode()


ATTESTED: Final = text(f"attested {ROOT}")
TYPED: Final = text(f"passphrase {ROOT}")
SWAPPED: Final = text(f"attested {ROOT}", f"passphrase {OTHER}")


async def enroll(server: Server, attester: Attester, *texts: bytes, selection: str = SELECTION) -> str:
    """An enrolled machine that boots and runs, capped with *texts*."""
    kid = await server.enroll(attester, selection=Selection.parse(selection), learn_for=timedelta(0))
    boot(attester, *texts)
    return kid


def boot(attester: Attester, *texts: bytes) -> None:
    """The TPM is reset, and an initrd caps with *texts*."""
    attester.reset_count += 1
    for values in attester.pcrs.values():
        values[15] = bytes(len(values[15]))
    for event in texts:
        attester.extend(15, event)


async def require(server: Server, *, suspend: bool = False) -> None:
    """The condition, and perhaps what follows."""
    watch = Watch(on_refused=("log", "suspend") if suspend else ("log",))
    await server.conditions.set("pi-b", Conditions(watch=watch, attested_root=True))


async def prove(server: Server, attester: Attester, kid: str, events: bytes | None, **changes: Any) -> Answer:
    """A whole round, with the texts *events*."""
    challenge = (await poll(server, kid)).body["challenge"]
    body = evidence(attester, kid, challenge, **changes)
    sent = {} if events is None else {"cap_events": b64u(events)}
    return await server.post(f"/attest/agent/{kid}/evidence", body | sent)


async def disks(server: Server) -> dict[str, Any]:
    """The server's knowledge."""
    return (await server.store.devices.get_device("pi-b")).disks.as_json()


async def test_a_machine_tells_how_its_disks_were_opened(server: Server, attester: Attester) -> None:
    """The volumes, how each was opened, and when; in the history and in the audit record too."""
    kid = await enroll(server, attester, ATTESTED)
    challenge = (await poll(server, kid)).body["challenge"]
    assert (challenge["cap_pcr"], challenge["evidence"]) == (15, ["quote"])
    assert (await disks(server))["because"] == "its running system told nothing yet"
    answer = await prove(server, attester, kid, ATTESTED)
    assert (answer.status, answer.body["outcome"]) == (200, "verified")
    device = await server.store.devices.get_device("pi-b")
    assert (device.disks.word, dict(device.disks.volumes)) == ("attested", {ROOT: "attested"})
    assert device.told is not None
    assert device.told.at == server.clock.now()
    past = (await server.store.rounds.list_rounds("pi-b"))[0]
    assert dict(past.details)["disks"] == await disks(server)
    audited = (await server.store.audit.list_audit("pi-b"))[0][1]
    assert (audited.event, audited.actor, audited.verdict) == ("device disks", "device:pi-b", "done")
    assert audited.details["volumes"] == {ROOT: "attested"}


@pytest.mark.parametrize(
    ("texts", "opened", "volumes"),
    [
        ([TYPED], "passphrase", {ROOT: "passphrase"}),
        ([SWAPPED], "passphrase", {ROOT: "attested", OTHER: "passphrase"}),
        ([CAP_EVENT, ATTESTED], "attested", {ROOT: "attested"}),
        ([ATTESTED, TYPED], "passphrase", {ROOT: "passphrase"}),
        ([ATTESTED, ATTESTED], "attested", {ROOT: "attested"}),
    ],
)
@pytest.mark.parametrize("bank", ["sha256", "sha384"])
async def test_any_cap_is_verified_while_nothing_is_required(
    server: Server, attester: Attester, texts: list[bytes], opened: str, volumes: dict[str, str], bank: str
) -> None:
    """In every bank: what the cap says is told, and refuses nobody."""
    kid = await enroll(server, attester, *texts, selection=f"{bank}:0,4,7,15")
    answer = await prove(server, attester, kid, b"".join(texts))
    assert answer.body["outcome"] == "verified"
    told = await disks(server)
    assert (told["opened"], told["volumes"]) == (opened, volumes)


@pytest.mark.parametrize("events", [None, CAP_EVENT, ATTESTED, b"\xff\n"])
async def test_an_older_initrd_goes_on_and_does_not_tell(
    server: Server, attester: Attester, events: bytes | None
) -> None:
    """Its cap names no volume, whatever is sent beside it."""
    kid = await enroll(server, attester, CAP_EVENT)
    assert (await prove(server, attester, kid, events)).body["outcome"] == "verified"
    told = await disks(server)
    assert (told["opened"], told["because"]) == ("not told", "its cap names no volume")


@pytest.mark.parametrize(
    ("events", "why"),
    [
        (None, "it sent no text of its cap"),
        (TYPED, "its text does not lead to the cap PCR, which something else may extend too"),
        (b"nonsense", "its text cannot be read (the cap's text does not begin with its header line)"),
    ],
)
async def test_a_cap_that_nothing_explains_is_refused_as_ever(
    server: Server, attester: Attester, events: bytes | None, why: str
) -> None:
    """Something else extended the cap PCR: the reasons say what is missing, and the operator may record it."""
    kid = await enroll(server, attester, ATTESTED)
    answer = await prove(server, attester, kid, events)
    assert (answer.body["outcome"], answer.body["code"]) == ("refused", "pcr-mismatch")
    past = (await server.store.rounds.list_rounds("pi-b"))[0]
    reasons: Any = past.details["reasons"]
    assert [reason["code"] for reason in reasons] == ["pcr-mismatch", "pcr-mismatch", "root-not-told"]
    assert why in reasons[-1]["sentence"]
    assert (await disks(server))["because"] == why


async def test_a_text_that_was_told_before_need_not_come_again(server: Server, attester: Attester) -> None:
    """The next boot has the same value: whoever strips the text on the way then changes nothing."""
    kid = await enroll(server, attester, ATTESTED)
    await require(server, suspend=True)
    assert (await prove(server, attester, kid, ATTESTED)).body["outcome"] == "verified"
    for events in (None, b"", TYPED):
        boot(attester, ATTESTED)
        assert (await prove(server, attester, kid, events)).body["outcome"] == "verified"
        assert (await disks(server))["opened"] == "attested"
    boot(attester, TYPED)
    assert (await prove(server, attester, kid, None)).body["code"] == "root-not-told"


async def test_what_unapproved_software_says_of_the_disks_is_not_believed(
    server: Server, attester: Attester
) -> None:
    """An initrd of an attacker can extend any text."""
    kid = await enroll(server, attester, ATTESTED)
    attester.extend(4, b"another kernel")
    assert (await prove(server, attester, kid, ATTESTED)).body["code"] == "pcr-mismatch"
    told = await disks(server)
    assert (told["opened"], told["because"]) == ("not told", "what it runs is not approved")


async def test_what_anybody_sends_tells_nothing(server: Server, attester: Attester) -> None:
    """Texts without the machine's quote change nothing."""
    kid = await enroll(server, attester, ATTESTED)
    await prove(server, attester, kid, ATTESTED)
    thief = Attester()
    boot(thief, TYPED)
    assert (await prove(server, thief, kid, TYPED)).code == "signature-invalid"
    assert (await prove(server, attester, kid, TYPED, binding=bytes(32))).code == "qualifying-data-mismatch"
    assert (await disks(server))["opened"] == "attested"


async def test_a_boot_that_has_not_told_yet_is_not_told(server: Server, attester: Attester) -> None:
    """The report of an earlier boot is not taken for this one; a machine without an agent never tells."""
    kid = await enroll(server, attester, ATTESTED)
    await prove(server, attester, kid, ATTESTED)
    boot(attester)
    assert (await server.unlock(attester, kid)).status == 200
    told = await disks(server)
    assert (told["opened"], told["because"]) == (
        "not told",
        "it booted since it told, and told nothing of that boot yet",
    )
    attester.extend(15, TYPED)
    await prove(server, attester, kid, TYPED)
    assert (await disks(server))["opened"] == "passphrase"


async def test_each_change_is_in_the_history(server: Server, attester: Attester) -> None:
    """A passphrase boot between two attested ones, all verified: three rows, and no row for what stays."""
    kid = await enroll(server, attester, ATTESTED)
    for texts in (ATTESTED, ATTESTED, TYPED, TYPED, ATTESTED):
        boot(attester, texts)
        for _ in range(2):
            assert (await prove(server, attester, kid, texts)).body["outcome"] == "verified"
            server.clock.advance(seconds=60)
    past = await server.store.rounds.list_rounds("pi-b")
    told: list[Any] = [row.details["disks"] for row in past]
    assert [one["opened"] for one in told] == ["attested", "passphrase", "attested"]
    audited = [row for _, row in await server.store.audit.list_audit("pi-b") if row.event == "device disks"]
    assert [row.details["opened"] for row in audited] == ["attested", "passphrase", "attested"]


# --- the condition ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "events", "code", "sentence"),
    [
        (
            [TYPED],
            TYPED,
            "root-not-attested",
            f"Volume {ROOT} was opened by a passphrase, not by attestation.",
        ),
        (
            [SWAPPED],
            SWAPPED,
            "root-not-attested",
            f"Volume {OTHER} was opened by a passphrase, not by attestation.",
        ),
        (
            [ATTESTED, TYPED],
            ATTESTED + TYPED,
            "root-not-attested",
            f"Volume {ROOT} was opened by a passphrase",
        ),
        ([CAP_EVENT], None, "root-not-told", "its cap names no volume"),
        ([CAP_EVENT, CAP_EVENT], CAP_EVENT * 2, "root-not-told", "its cap names no volume"),
        ([TYPED], ATTESTED, "root-not-told", "its text does not lead to the cap PCR"),
        ([ATTESTED], None, "root-not-told", "it sent no text of its cap"),
        ([ATTESTED, b"machine-id"], ATTESTED, "root-not-told", "which something else may extend too"),
    ],
)
async def test_a_root_that_is_not_attested_is_refused(
    server: Server, attester: Attester, texts: list[bytes], events: bytes | None, code: str, sentence: str
) -> None:
    """A passphrase boot, a swapped root, silence: refused with its own code, and the policy's consequence follows."""
    kid = await enroll(server, attester, *texts)
    await require(server, suspend=True)
    answer = await prove(server, attester, kid, events)
    assert (answer.status, answer.body["outcome"], answer.body["code"]) == (200, "refused", code)
    device = await server.store.devices.get_device("pi-b")
    assert (device.standing.outcome, device.standing.code) == (RoundOutcome.REFUSED, code)
    assert device.suspension is not None
    assert sentence in device.suspension.reason
    boot(attester)
    assert (await server.unlock(attester, kid)).code == "device-suspended"


async def test_an_attested_root_is_verified(server: Server, attester: Attester) -> None:
    """And a machine that is not capped at all is refused for that."""
    kid = await enroll(server, attester, ATTESTED)
    await require(server, suspend=True)
    assert (await prove(server, attester, kid, ATTESTED)).body["outcome"] == "verified"
    boot(attester)
    assert (await prove(server, attester, kid, ATTESTED)).body["code"] == "pcr-mismatch"


async def test_the_cap_is_quoted_where_it_is_required(server: Server, attester: Attester) -> None:
    """A policy that does not compare the cap PCR learns of it all the same; nothing else changes."""
    kid = await enroll(server, attester, ATTESTED, selection="sha256:0,4,7")
    challenge = (await poll(server, kid)).body["challenge"]
    assert challenge["selection"] == "sha256:0,4,7"
    assert "cap_pcr" not in challenge
    assert (await prove(server, attester, kid, ATTESTED)).body["outcome"] == "verified"
    assert (await disks(server))["because"] == "PCR 15 is not quoted"
    await require(server)
    challenge = (await poll(server, kid)).body["challenge"]
    assert (challenge["selection"], challenge["cap_pcr"]) == (SELECTION, 15)
    assert (await prove(server, attester, kid, ATTESTED)).body["outcome"] == "verified"
    boot(attester, TYPED)
    assert (await prove(server, attester, kid, TYPED)).body["code"] == "root-not-attested"
    boot(attester, ATTESTED, b"systemd")
    assert (await prove(server, attester, kid, ATTESTED)).body["code"] == "root-not-told"
    boot(attester)
    assert (await prove(server, attester, kid, ATTESTED)).body["code"] == "root-not-told"


async def test_the_condition_keeps_no_disk_closed_by_itself(server: Server, attester: Attester) -> None:
    """It is about running machines; only a policy that suspends has an unlock refused."""
    kid = await enroll(server, attester, TYPED)
    await require(server)
    assert (await prove(server, attester, kid, TYPED)).body["outcome"] == "refused"
    boot(attester)
    assert (await server.unlock(attester, kid)).status == 200


# --- recorded policies ------------------------------------------------------------------------------------------------


async def test_a_recorded_cap_is_any_cap(server: Server, attester: Attester) -> None:
    """Recording a machine with a report records that it was capped, not the volumes of that day."""
    kid = await enroll(server, attester, ATTESTED)
    challenge = await server.verify.challenge(kid)
    bound, selection = await find_device_key(server.store.decisions, kid), challenge.selection
    quote = attester.attest(verify_digest(challenge.nonce, kid), str(selection))
    sent = Evidence(
        challenge.nonce, quote, attester.sign(quote), attester.values(str(selection)), cap_events=ATTESTED
    )
    policy = await server.verify.record(bound, selection, sent, "operator:tester")
    assert policy.states[0].values[15] == cap_value("sha256")
    for texts in (ATTESTED, TYPED, CAP_EVENT):
        boot(attester, texts)
        assert (await prove(server, attester, kid, texts)).body["outcome"] == "verified"
    boot(attester, ATTESTED, b"systemd")
    assert (await prove(server, attester, kid, ATTESTED)).body["code"] == "pcr-mismatch"


@pytest.mark.parametrize("value", ["?", "A" * 10924, 7])
async def test_what_is_no_text_at_all(server: Server, attester: Attester, value: object) -> None:
    """Not b64u, too long, not text: the request is malformed, which is no verdict."""
    kid = await enroll(server, attester, ATTESTED)
    challenge = (await poll(server, kid)).body["challenge"]
    body = {**evidence(attester, kid, challenge), "cap_events": value}
    answer = await server.post(f"/attest/agent/{kid}/evidence", body)
    assert (answer.status, answer.code) == (400, "request-malformed")
    assert (await server.store.devices.get_device("pi-b")).standing.outcome is None
