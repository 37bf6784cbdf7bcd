"""docs/protocol.md, 12: version 1 grows, and clients of revision 1.0 work as before."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tpm2_pytss.constants import TPMA_OBJECT

from tang_attest.protocol.challenge import VERSIONS, verify_digest
from tang_attest.protocol.enrollment import activation_proof, enrollment_digest
from tang_attest.protocol.tpm import parse_ak
from tang_attest.protocol.values.base64url import b64u, unb64u
from tang_attest.protocol.values.pcr import Selection
from tests.attester import AK_ATTRIBUTES, Attester, members
from tests.server import Answer, Server, announcement, evidence, new_x

SELECTION = "sha256:0,4,7,14"
#: Requests of the pin at revision 1.0 (commit 8e6262e), and the answers of its server.
RECORDED = json.loads((Path(__file__).parent / "requests-1.0.json").read_text())


async def _enroll(server: Server, attester: Attester, cap_pcr: int = 14) -> str:
    return await server.enroll(attester, selection=Selection.parse(SELECTION), cap_pcr=cap_pcr)


def _payload(advertisement: dict[str, Any]) -> dict[str, Any]:
    found = json.loads(unb64u(advertisement["payload"]))
    assert isinstance(found, dict)
    return found


async def _round(server: Server, attester: Attester, kid: str, **changes: Any) -> Answer:
    challenge = (await server.post(f"/attest/agent/{kid}", {})).body["challenge"]
    body = attester.evidence(
        challenge["nonce"], verify_digest(challenge["nonce"], kid), challenge["selection"]
    )
    return await server.post(f"/attest/agent/{kid}/evidence", body | changes)


async def _announce(server: Server, attester: Attester, kid: str, **changes: Any) -> Answer:
    challenge = (await server.post(f"/attest/announce/{kid}", {})).body
    values = attester.values(SELECTION)[:-32] + bytes(32)
    return await server.post(
        f"/attest/announce/{kid}", announcement(attester, kid, challenge, values) | changes
    )


async def _unlock(server: Server, attester: Attester, kid: str, **changes: Any) -> Answer:
    x, challenge = dict(members(new_x())), await server.challenge(kid)
    return await server.post(f"/rec/{kid}", x | {"attest": evidence(attester, kid, x, challenge) | changes})


async def test_every_answer_names_the_cap_and_the_versions(server: Server) -> None:
    """The cap PCR of this policy is not the default."""
    attester = Attester()
    attester.pcrs["sha256"][14] = bytes(32)
    token = await server.token(selection=Selection.parse(SELECTION), cap_pcr=14)
    begun = await server.begin(attester, "pi-b", token)
    finished = await server.finish(attester, "pi-b", begun)
    kid = finished.body["kid"]
    asked = await server.post(f"/rec/{kid}", dict(members(new_x())))
    announcing = await server.post(f"/attest/announce/{kid}", {})
    polled = await server.post(f"/attest/agent/{kid}", {})
    advertised = await server.request("GET", f"/attest/adv/{kid}")
    for named in (
        begun.body,
        finished.body,
        asked.body["challenge"],
        announcing.body,
        polled.body["challenge"],
        _payload(finished.body["advertisement"]),
        _payload(advertised.body),
    ):
        assert named["cap_pcr"] == 14
        assert named["versions"] == list(VERSIONS) == ["1.1", "1.2"]


async def test_the_cap_of_a_shared_policy(server: Server, attester: Attester) -> None:
    """A token that names a policy tells that policy's cap, whatever the token says."""
    await server.reference_values.create_policy("fleet", Selection.parse("sha256:0,12"), 12)
    begun = await server.begin(attester, "pi-b", await server.token(policy="fleet"))
    assert (begun.body["selection"], begun.body["cap_pcr"]) == ("sha256:0,12", 12)
    assert (await server.finish(attester, "pi-b", begun)).body["cap_pcr"] == 12


async def test_a_round_asks_for_texts_only_of_a_quoted_cap(server: Server, attester: Attester) -> None:
    """Section 10.1: there `cap_pcr` asks for something, and a client of 1.0 would send it."""
    kid = await server.enroll(attester, selection=Selection.parse("sha256:0,7"))
    challenge = (await server.post(f"/attest/agent/{kid}", {})).body["challenge"]
    assert "cap_pcr" not in challenge
    assert (await server.challenge(kid))["cap_pcr"] == 15


async def test_enrollment_takes_the_cap_as_zero(server: Server) -> None:
    """A machine enrolls in its running system, whose initrd capped; the next boot quotes zeros."""
    attester = Attester()
    attester.extend(15, b"tang-attest/v1 cap\n")
    kid = await server.enroll(attester, selection=Selection.parse("sha256:0,7,15"))
    assert (await server.unlock(attester, kid)).code == "capped"
    attester.pcrs["sha256"][15] = bytes(32)
    attester.reset_count += 1
    assert (await server.unlock(attester, kid)).status == 200


LATER: dict[str, Any] = {"later": {"anything": [1]}, "critical": []}


async def test_unknown_members_are_ignored(server: Server) -> None:
    """Of a later revision, in every body and beside X."""
    attester = Attester()
    begun = await server.begin(attester, "pi-b", await server.token(), **LATER)
    assert begun.status == 200
    finished = await server.finish(attester, "pi-b", begun, **LATER)
    assert finished.status == 201
    kid = finished.body["kid"]
    assert (await _unlock(server, attester, kid, **LATER)).status == 200
    beside = dict(members(new_x())) | {"later": 1, "critical": ["later"]}
    assert (await server.unlock(attester, kid, x=beside)).status == 200
    assert (await server.post(f"/attest/agent/{kid}", LATER)).status == 200
    assert (await _round(server, attester, kid, **LATER)).status == 200


CRITICAL = {"later": 1, "critical": ["nonce", "later"]}


async def test_a_critical_member_that_is_unknown_is_refused(server: Server) -> None:
    """Everywhere, and before anything is spent."""
    attester = Attester()
    token = await server.token()
    assert (await server.begin(attester, "pi-b", token, **CRITICAL)).code == "extension-unsupported"
    begun = await server.begin(attester, "pi-b", token)
    body = {"session": begun.body["session"], "event_log": "", **CRITICAL}
    assert (await server.post("/attest/enroll/selection", body)).code == "extension-unsupported"
    assert (await server.finish(attester, "pi-b", begun, **CRITICAL)).code == "extension-unsupported"
    kid = (await server.finish(attester, "pi-b", begun)).body["kid"]
    x, challenge = dict(members(new_x())), await server.challenge(kid)
    attest = evidence(attester, kid, x, challenge)
    refused = await server.post(f"/rec/{kid}", x | {"attest": attest | CRITICAL})
    assert (refused.status, refused.code) == (400, "extension-unsupported")
    assert (await server.post(f"/rec/{kid}", x | {"attest": attest})).status == 200
    assert (await _announce(server, attester, kid, **CRITICAL)).code == "extension-unsupported"
    assert (await server.post(f"/attest/agent/{kid}", CRITICAL)).code == "extension-unsupported"
    assert (await _round(server, attester, kid, **CRITICAL)).code == "extension-unsupported"


async def test_a_critical_member_that_is_known_is_no_obstacle(server: Server, attester: Attester) -> None:
    """A name that the server knows there, sent or not."""
    kid = await server.enroll(attester)
    assert (await _unlock(server, attester, kid, critical=["quote", "event_log_size"])).status == 200
    # `ima` is a member of a round, and not of an unlock.
    assert (await _unlock(server, attester, kid, critical=["ima"])).code == "extension-unsupported"
    assert (await _round(server, attester, kid, critical=["ima"])).status == 200


@pytest.mark.parametrize("critical", [1, "later", {}, [1], [None], ["x" * 65], ["quote"] * 33])
async def test_odd_lists_of_critical_members(server: Server, attester: Attester, critical: object) -> None:
    """They cannot be read, so nothing is decided."""
    kid = await server.enroll(attester)
    refused = await _unlock(server, attester, kid, critical=critical)
    assert refused.status == 400
    assert refused.code in ("evidence-malformed", "extension-unsupported")


async def test_null_is_absent(server: Server, attester: Attester) -> None:
    """Section 1, of optional members; a required one that is null is missing."""
    begun = await server.begin(attester, "pi-b", await server.token(), ek_certificate=None, critical=None)
    assert begun.status == 200
    kid = (await server.finish(attester, "pi-b", begun, event_log=None)).body["kid"]
    nothing = {"event_log": None, "event_log_size": None, "critical": None}
    assert (await _unlock(server, attester, kid, **nothing)).status == 200
    assert (await server.post(f"/rec/{kid}", dict(members(new_x())) | {"attest": None})).status == 401
    assert (await _round(server, attester, kid, ima=None, ima_offset=None, cap_events=None)).status == 200
    assert (await server.post(f"/attest/agent/{kid}", {"ticket": None})).status == 200
    assert (await _unlock(server, attester, kid, quote=None)).code == "evidence-malformed"


async def test_empty_is_absent(server: Server, attester: Attester) -> None:
    """Of the optional members that are bytes."""
    begun = await server.begin(attester, "pi-b", await server.token(), ek_certificate="")
    assert begun.status == 200
    kid = (await server.finish(attester, "pi-b", begun, event_log="")).body["kid"]
    assert (await _unlock(server, attester, kid, event_log="")).status == 200


async def test_the_content_type_decides_nothing(server: Server, attester: Attester) -> None:
    """The pin sends application/json, and a stock client application/jwk+json."""
    kid = await server.enroll(attester)
    for kind in ("application/json", "application/jwk+json", "text/plain", "application/octet-stream"):
        x, challenge = dict(members(new_x())), await server.challenge(kid)
        body = json.dumps(x | {"attest": evidence(attester, kid, x, challenge)}).encode()
        answer = await server.request("POST", f"/rec/{kid}", data=body, headers={"Content-Type": kind})
        assert answer.status == 200


async def test_an_x_off_its_curve_gets_a_challenge_and_uses_none_up(
    server: Server, attester: Attester
) -> None:
    """Section 3.1: X is looked at when evidence comes, before its nonce."""
    kid = await server.enroll(attester)
    off = dict(members(new_x())) | {"y": b64u(b"\x01" * 66)}
    asked = await server.post(f"/rec/{kid}", off)
    assert (asked.status, asked.code) == (401, "evidence-required")
    nonce = asked.body["challenge"]
    assert (await server.unlock(attester, kid, x=off, challenge=nonce)).code == "point-invalid"
    assert (await server.unlock(attester, kid, challenge=nonce)).status == 200


async def test_a_nonce_of_a_round_takes_several_quotes_once_each(server: Server, attester: Attester) -> None:
    """Section 10.2."""
    kid = await server.enroll(attester)
    challenge = (await server.post(f"/attest/agent/{kid}", {})).body["challenge"]
    binding = verify_digest(challenge["nonce"], kid)
    for _ in range(3):
        body = attester.evidence(challenge["nonce"], binding, challenge["selection"])
        assert (await server.post(f"/attest/agent/{kid}/evidence", body)).body["outcome"] == "verified"
        assert (await server.post(f"/attest/agent/{kid}/evidence", body)).code == "nonce-used"


async def test_the_largest_application_can_be_finished(server: Server) -> None:
    """A session holds the largest certificate; a client has to take it."""
    attester = Attester("rsa4096:rsassa-sha256")
    certificate = b64u((b"\x30\x82\x1f\xfc" + bytes(range(1, 256)) * 33)[:8192])
    begun = await server.begin(attester, "n" * 63, await server.token(), ek_certificate=certificate)
    assert begun.status == 200
    assert len(begun.body["session"]) <= 32768
    assert (await server.finish(attester, "n" * 63, begun)).status == 201


@pytest.mark.parametrize("change", ["used", "revoked", "expired", "late", "unknown session"])
async def test_a_session_without_use_proposes_nothing(
    server: Server, attester: Attester, change: str
) -> None:
    """`selection` looks at the token before it reads a log of 128 KiB."""
    token = await server.token(proposes=True)
    begun = await server.begin(attester, "pi-b", token)
    code = {
        "used": "token-used",
        "revoked": "token-revoked",
        "expired": "token-expired",
        "late": "nonce-expired",
        "unknown session": "session-invalid",
    }[change]
    session = begun.body["session"]
    match change:
        case "used":
            assert (await server.finish(attester, "pi-b", begun)).status == 201
        case "revoked":
            await server.tokens.revoke(token)
        case "expired":
            server.clock.advance(hours=2)
        case "late":
            server.clock.advance(seconds=begun.body["expires_in"])
        case _:
            session += "A"
    said = await server.post("/attest/enroll/selection", {"session": session, "event_log": b64u(b"log")})
    assert said.code == code


async def test_a_session_proposes(server: Server, attester: Attester) -> None:
    """And the one that came instead can be finished."""
    begun = await server.begin(attester, "pi-b", await server.token(proposes=True))
    said = await server.post(
        "/attest/enroll/selection", {"session": begun.body["session"], "event_log": b64u(b"log")}
    )
    assert said.status == 200
    assert set(said.body) == {"session", "selection", "reason"}
    begun.body.update(said.body)
    assert (await server.finish(attester, "pi-b", begun)).status == 201


class RecordedClient:
    """A client that sends what the pin of revision 1.0 sent; what is random, signed or a key is of this run."""

    def __init__(self, server: Server) -> None:
        self.server, self.attester, self.kid, self.last = server, Attester(), "", Answer(0, {}, {})
        self.x = dict(members(new_x()))

    async def send(self, name: str, fresh: dict[str, Any]) -> None:
        """Send the recorded request *name* with *fresh* values; the answer is as it was then, or has more members."""
        recorded = RECORDED[name]
        body = _with(recorded["body"], fresh)
        assert body.keys() == recorded["body"].keys()
        self.last = await self.server.post(recorded["target"].format(kid=self.kid), body)
        assert (self.last.status, self.last.code) == (
            recorded["status"],
            recorded["answer"].get("code", "ok"),
        )
        assert _shape(recorded["answer"]) <= _shape(self.last.body)

    def evidence(self, challenge: dict[str, Any], binding: bytes) -> dict[str, Any]:
        """Evidence for a challenge."""
        return self.attester.evidence(challenge["nonce"], binding, challenge["selection"])

    async def prove(self, name: str) -> None:
        """Ask, and prove."""
        await self.send("ask", self.x)
        await self.send(
            name, self.x | {"attest": evidence(self.attester, self.kid, self.x, self.last.body["challenge"])}
        )


def _with(recorded: Any, fresh: Any) -> Any:
    """The members of *recorded*, with the values of *fresh* where that has some."""
    if isinstance(recorded, dict) and isinstance(fresh, dict):
        return {name: _with(value, fresh.get(name, value)) for name, value in recorded.items()}
    return fresh


def _shape(value: Any, path: str = "") -> set[str]:
    """Every member of *value*, and its type."""
    if not isinstance(value, dict):
        return {f"{path}: {type(value).__name__}"}
    return {each for name, member in value.items() for each in _shape(member, f"{path}.{name}")}


async def test_a_client_of_revision_1_0_works_as_before(server: Server) -> None:
    """The recorded requests, in their order; tests/docs/recorded.py recorded them with the pin and server of that revision."""
    client, machine = RecordedClient(server), Attester()
    client.attester = machine
    token = await server.token(selection=Selection.parse("sha256:0,7,15"))
    await client.send(
        "enroll", {"token": token, "ak": b64u(machine.ak_public), "ek": b64u(machine.ek_public)}
    )
    begun = client.last.body
    blob, encrypted = (unb64u(begun[member]) for member in ("credential_blob", "encrypted_secret"))
    proof = activation_proof(
        begun["nonce"], machine.activate(blob, encrypted, parse_ak(machine.ak_public).name)
    )
    quoted = client.evidence(begun, enrollment_digest(begun["nonce"], "pi-b", proof))
    await client.send("finish", {"session": begun["session"], "proof": proof, **quoted})
    client.kid = client.last.body["kid"]
    await client.prove("prove")
    machine.extend(15, b"tang-attest/v1 cap\n")
    await client.prove("prove-capped")
    await client.send("ask-announce", {})
    values = machine.values("sha256:0") + bytes(64)
    label = RECORDED["announce"]["body"]["label"]
    await client.send("announce", announcement(machine, client.kid, client.last.body, values, label))
    await client.send("poll", {})
    challenge = client.last.body["challenge"]
    await client.send("evidence", client.evidence(challenge, verify_digest(challenge["nonce"], client.kid)))


async def test_an_ak_without_noda_enrolls(server: Server) -> None:
    """Section 4.3: the client should have made it with noDA, and the Verifier may not refuse it."""
    attester = Attester(attributes=int(AK_ATTRIBUTES) & ~int(TPMA_OBJECT.NODA))
    assert (await server.unlock(attester, await server.enroll(attester))).status == 200


@pytest.mark.parametrize(("seconds", "code"), [(5, "ok"), (6, "nonce-invalid")])
async def test_a_replicas_clock_may_be_five_seconds_ahead(
    server: Server, attester: Attester, seconds: int, code: str
) -> None:
    """Section 3.3, step 3."""
    kid = await server.enroll(attester)
    challenge = await server.challenge(kid)
    server.clock.advance(seconds=-seconds)
    assert (await server.unlock(attester, kid, challenge=challenge)).code == code


async def test_a_nonce_is_good_until_its_last_second(server: Server, attester: Attester) -> None:
    """From `expires_in` seconds on it is too old, and the 401 has another one."""
    kid = await server.enroll(attester)
    challenge = await server.challenge(kid)
    server.clock.advance(seconds=challenge["expires_in"])
    late = await server.unlock(attester, kid, challenge=challenge)
    assert (late.status, late.code) == (401, "nonce-expired")
    assert late.headers["WWW-Authenticate"] == "TPM2-Quote"
    assert (await server.unlock(attester, kid, challenge=late.body["challenge"])).status == 200


@pytest.mark.parametrize(
    ("label", "kept"), [("next", "next 20260101120000"), ("x" * 64, "x" * 49 + " 20260101120000")]
)
async def test_an_announced_label_that_is_taken_is_told(
    server: Server, attester: Attester, label: str, kept: str
) -> None:
    """Section 9: the answer has the label under which the values are kept; the quote covers the one that was sent."""
    kid = await server.enroll(attester, selection=Selection.parse("sha256:0,7,15"))
    for number, expected in ((b"1", label), (b"2", kept)):
        challenge = (await server.post(f"/attest/announce/{kid}", {})).body
        values = hashlib.sha256(number).digest() * 2 + bytes(32)
        said = await server.post(
            f"/attest/announce/{kid}", announcement(attester, kid, challenge, values, label)
        )
        assert (said.status, said.body["label"]) == (201, expected)


@pytest.mark.parametrize("route", ["rec", "announce", "evidence"])
async def test_an_identical_replay_is_nonce_used(server: Server, attester: Attester, route: str) -> None:
    """Section 3.3, step 10: although its clock did not move forward either."""
    kid = await server.enroll(attester, selection=Selection.parse("sha256:0,7,15"))
    body: dict[str, Any]
    match route:
        case "rec":
            x, challenge = dict(members(new_x())), await server.challenge(kid)
            target, body = f"/rec/{kid}", x | {"attest": evidence(attester, kid, x, challenge)}
        case "announce":
            challenge = (await server.post(f"/attest/announce/{kid}", {})).body
            target = f"/attest/announce/{kid}"
            body = announcement(attester, kid, challenge, attester.values("sha256:0,7,15"))
        case _:
            attester.extend(15, b"tang-attest/v1 cap\n")
            challenge = (await server.post(f"/attest/agent/{kid}", {})).body["challenge"]
            binding = verify_digest(challenge["nonce"], kid)
            target = f"/attest/agent/{kid}/evidence"
            body = attester.evidence(challenge["nonce"], binding, challenge["selection"])
    assert (await server.post(target, body)).status < 300
    assert (await server.post(target, body)).code == "nonce-used"
    assert (await server.unlock(attester, kid)).code in ("ok", "capped")
    assert (await server.post(target, body)).code == "nonce-used"
