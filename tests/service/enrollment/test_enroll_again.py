"""Enrollment that is interrupted: lost answers, tokens that expire or are revoked on the way, certificates that are odd."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import timedelta

import pytest

from tang_attest.errors import Conflict, NotFound
from tang_attest.ports.enrollment import Enrollment
from tang_attest.protocol.enrollment import activation_proof
from tang_attest.protocol.values.base64url import b64u
from tang_attest.service.enrollment.enroll import ANSWERED_AGAIN_FOR, token_digest
from tests.attester import Attester
from tests.protocol.endorsement import ek_pki as pki
from tests.server import Answer, Server


def _same(first: Answer, second: Answer) -> bool:
    """The same device and key; the advertisement's ECDSA signature may be a new one."""
    members = [dict(answer.body) for answer in (first, second)]
    payloads = [body.pop("advertisement")["payload"] for body in members]
    return members[0] == members[1] and payloads[0] == payloads[1] and first.status == second.status == 201


async def test_the_same_finish_twice_gets_the_same_answer(server: Server, attester: Attester) -> None:
    """The 201 was lost: the same session and proof get it again, and there is still one device with one key."""
    begun = await server.begin(attester, "pi-b", await server.token())
    first = await server.finish(attester, "pi-b", begun)
    second = await server.finish(attester, "pi-b", begun)
    assert _same(first, second)
    assert len(await server.store.devices.list_devices()) == 1
    assert (await server.unlock(attester, first.body["kid"])).status == 200
    assert [e.code for _, e in await server.store.audit.list_audit("pi-b")] == ["ok", "ok"]


async def test_a_finish_is_repeated_after_its_nonce_expired(server: Server, attester: Attester) -> None:
    """Somebody starts the command again an hour later."""
    begun = await server.begin(attester, "pi-b", await server.token())
    first = await server.finish(attester, "pi-b", begun)
    server.clock.advance(seconds=3600)
    assert _same(first, await server.finish(attester, "pi-b", begun))


async def test_a_used_token_begins_nothing(server: Server, attester: Attester) -> None:
    """A token is good once: only the finish that used it is answered again."""
    token = await server.token()
    await server.finish(attester, "pi-b", await server.begin(attester, "pi-b", token))
    answer = await server.begin(attester, "pi-b", token)
    assert (answer.status, answer.code) == (403, "token-used")


async def test_two_workers_finish_at_once(
    server: Server, attester: Attester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's first request is still under way when it sends the second: both get the answer."""
    begun = await server.begin(attester, "pi-b", await server.token())
    original, both = server.store.enrollment.enroll, asyncio.Barrier(2)

    async def together(enrollment: Enrollment) -> object:
        await both.wait()
        return await original(enrollment)

    monkeypatch.setattr(server.store.enrollment, "enroll", together)
    first, second = await asyncio.gather(*(server.finish(attester, "pi-b", begun) for _ in range(2)))
    assert _same(first, second)
    assert len(await server.store.devices.list_devices()) == 1


async def test_a_repeated_finish_needs_the_proof(server: Server, attester: Attester) -> None:
    """The session alone is not enough."""
    begun = await server.begin(attester, "pi-b", await server.token())
    await server.finish(attester, "pi-b", begun)
    answer = await server.finish(attester, "pi-b", begun, proof=activation_proof("x", bytes(32)))
    assert (answer.status, answer.code) == (403, "activation-failed")


async def test_another_machine_gets_nothing_for_a_used_token(server: Server, attester: Attester) -> None:
    """Neither under the same name nor under another."""
    token = await server.token()
    await server.finish(attester, "pi-b", await server.begin(attester, "pi-b", token))
    for name in ("pi-b", "pi-c"):
        answer = await server.begin(Attester(), name, token)
        assert (answer.status, answer.code) == (403, "token-used")
    assert (await server.begin(attester, "pi-c", token)).code == "token-used"


async def test_a_session_of_another_machine_gets_nothing(server: Server, attester: Attester) -> None:
    """Two machines began with one token: the second finish is refused, although its proof is good."""
    token, other = await server.token(), Attester()
    begun, late = [await server.begin(machine, "pi-b", token) for machine in (attester, other)]
    assert (await server.finish(attester, "pi-b", begun)).status == 201
    answer = await server.finish(other, "pi-b", late)
    assert (answer.status, answer.code) == (403, "token-used")


async def test_the_answer_is_repeated_for_a_day(server: Server, attester: Attester) -> None:
    """The repeated answer is bounded in time."""
    token = await server.token()
    begun = await server.begin(attester, "pi-b", token)
    await server.finish(attester, "pi-b", begun)
    server.clock.advance(seconds=int(ANSWERED_AGAIN_FOR.total_seconds()))
    assert (await server.finish(attester, "pi-b", begun)).code == "token-used"
    assert (await server.begin(attester, "pi-b", token)).code == "token-used"


async def test_a_removed_device_is_not_answered_again(server: Server, attester: Attester) -> None:
    """The operator's word is the last one."""
    token = await server.token()
    begun = await server.begin(attester, "pi-b", token)
    await server.finish(attester, "pi-b", begun)
    await server.devices.remove("pi-b")
    assert (await server.finish(attester, "pi-b", begun)).code == "token-used"
    assert (await server.begin(attester, "pi-b", token)).code == "token-used"


# --- tokens that end on the way ---------------------------------------------------------------------------------


async def test_a_token_expires_between_the_requests(server: Server, attester: Attester) -> None:
    """The session is younger than its limit, the token is not."""
    begun = await server.begin(attester, "pi-b", await server.token(valid_for=timedelta(seconds=60)))
    server.clock.advance(seconds=60)
    answer = await server.finish(attester, "pi-b", begun)
    assert (answer.status, answer.code) == (403, "token-expired")
    assert await server.store.devices.list_devices() == []


async def test_a_revoked_token_cannot_begin(server: Server, attester: Attester) -> None:
    """And the record says who revoked which token."""
    token = await server.token(name="pi-b")
    revoked = await server.tokens.revoke(token)
    answer = await server.begin(attester, "pi-b", token)
    assert (answer.status, answer.code) == (403, "token-revoked")
    entry = next(e for _, e in await server.store.audit.list_audit() if e.event == "token revoke")
    assert (entry.device, entry.details["token"]) == ("pi-b", token_digest(token).hex())
    assert revoked.digest == token_digest(token)


async def test_a_token_that_is_revoked_between_the_requests_cannot_finish(
    server: Server, attester: Attester
) -> None:
    """An enrollment under way is stopped."""
    token = await server.token()
    begun = await server.begin(attester, "pi-b", token)
    await server.tokens.revoke(token)
    answer = await server.finish(attester, "pi-b", begun)
    assert (answer.status, answer.code) == (403, "token-revoked")
    assert await server.store.devices.list_devices() == []


async def test_a_token_that_is_revoked_at_the_last_moment(
    server: Server, attester: Attester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After everything was checked and before the device is written."""
    token = await server.token()
    begun, original = await server.begin(attester, "pi-b", token), server.store.enrollment.enroll

    async def late(enrollment: Enrollment) -> object:
        await server.tokens.revoke(token)
        return await original(enrollment)

    monkeypatch.setattr(server.store.enrollment, "enroll", late)
    answer = await server.finish(attester, "pi-b", begun)
    assert (answer.status, answer.code) == (403, "token-revoked")
    assert await server.store.devices.list_devices() == []


async def test_what_cannot_be_revoked(server: Server, attester: Attester) -> None:
    """A used token, an unknown one, a revoked one, a name that is too short or fits two."""
    used = await server.token()
    await server.finish(attester, "pi-b", await server.begin(attester, "pi-b", used))
    with pytest.raises(Conflict) as conflict:
        await server.tokens.revoke(used)
    assert conflict.value.code == "token-used"
    unused = await server.token(name="pi-x")
    for name in ("", token_digest(unused).hex()[:7], "0" * 16, unused[:-1]):
        with pytest.raises(NotFound):
            await server.tokens.revoke(name)
    await server.tokens.revoke(token_digest(unused).hex()[:8].upper())
    with pytest.raises(NotFound):
        await server.tokens.revoke(unused)
    twins = [await server.token(name="pi-x") for _ in range(2)]
    with pytest.raises(NotFound):
        await server.tokens.revoke("pi-x")
    await server.tokens.revoke(twins[0])
    assert (await server.tokens.revoke("pi-x")).digest == token_digest(twins[1])


# --- certificates ---------------------------------------------------------------------------------------------------

ROOT = pki.ca("Root")
INTERMEDIATE = pki.ca("EK CA 1", ROOT)
_NOT_FOR_THIS_EK = pki.ek(INTERMEDIATE)
ODD = {
    "0xff only": b"\xff" * 600,
    "0x00 only": bytes(600),
    "TPM 1.2 header": b"\x10\x01\x00\x00\x03" + b"\x30\x03\x02\x01\x00",
    "gzip": b"\x1f\x8b" + b"x" * 90,
    "PEM of garbage": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    "half a PEM": b"-----BEGIN CERT",
    "length prefix": b"\x00\x05" + bytes(5),
    "one byte": b"\x30",
    "truncated": _NOT_FOR_THIS_EK.der[:-1],
    "trailing bytes": _NOT_FOR_THIS_EK.der + b"x",
    "DER that is no certificate": b"\x30\x03\x02\x01\x00",
    "another TPM's": _NOT_FOR_THIS_EK.der,
    "PEM, another TPM's": _NOT_FOR_THIS_EK.pem,
    "weak key": pki.ek(ROOT, key=pki.rsa_key("small", 1024)).der,
}


@pytest.mark.parametrize("certificate", ODD.values(), ids=ODD)
async def test_the_opt_out_covers_every_certificate(
    server: Server, attester: Attester, certificate: bytes
) -> None:
    """--allow-unverified-ek is the operator's word that the certificate does not matter, whatever is wrong with it."""
    await server.ek_roots.add(ROOT.pem, None)
    begun = await server.begin(attester, "pi-b", await server.token(), ek_certificate=b64u(certificate))
    assert begun.status == 200, begun.body
    done = await server.finish(attester, "pi-b", begun)
    assert (done.status, done.body["ek_verified"]) == (201, False)


@pytest.mark.parametrize("certificate", ODD.values(), ids=ODD)
async def test_without_the_opt_out_each_is_refused(
    server: Server, attester: Attester, certificate: bytes
) -> None:
    """With a code of its own that begins with ek-, and nothing is made."""
    await server.ek_roots.add(ROOT.pem, None)
    token = await server.token(allow_unverified_ek=False)
    answer = await server.begin(attester, "pi-b", token, ek_certificate=b64u(certificate))
    assert answer.status in (400, 403)
    assert answer.code.startswith("ek-")


def _own_certificate(attester: Attester, issuer: pki.Issued = INTERMEDIATE) -> pki.Issued:
    """An EK certificate for the machine's own EK."""
    return pki.ek(issuer, key=attester.ek, not_before=pki.NOW - timedelta(days=365))


async def test_a_missing_intermediate_is_named(server: Server, attester: Attester) -> None:
    """The root is imported; what is missing is the CA in between, by name."""
    await server.ek_roots.add(ROOT.pem, None)
    token = await server.token(allow_unverified_ek=False)
    der = _own_certificate(attester).der
    answer = await server.begin(attester, "pi-b", token, ek_certificate=b64u(der))
    assert answer.code == "ek-untrusted"
    assert answer.body["detail"].startswith("No intermediate for issuer 'CN=EK CA 1, O=TPM Works'")
    await server.ek_roots.add(INTERMEDIATE.pem, None)
    begun = await server.begin(attester, "pi-b", token, ek_certificate=b64u(der + b"\xff" * 100))
    assert (await server.finish(attester, "pi-b", begun)).body["ek_verified"] is True


async def test_roots_are_looked_up_by_name(
    server: Server, attester: Attester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of imported roots are neither loaded nor read; only the namesakes of the issuer are."""
    key = pki.ec_key()
    for number in range(300):
        await server.ek_roots.add(pki.ca(f"Vendor {number}", key=key).pem, None)
    await server.ek_roots.add(INTERMEDIATE.pem, None)
    original, asked = server.store.enrollment.find_ek_roots, []

    async def counted(subject: bytes, fingerprint: str) -> object:
        found = await original(subject, fingerprint)
        asked.append(len(found))
        return found

    monkeypatch.setattr(server.store.enrollment, "find_ek_roots", counted)
    monkeypatch.setattr(server.store.enrollment, "list_ek_roots", None)
    token = await server.token(allow_unverified_ek=False)
    begun = await server.begin(attester, "pi-b", token, ek_certificate=b64u(_own_certificate(attester).der))
    assert begun.status == 200, begun.body
    assert asked == [1]


async def test_one_tpm_is_pinned_by_its_own_certificate(server: Server, attester: Attester) -> None:
    """As `tpm2 nvread` wrote it."""
    own = _own_certificate(attester)
    await server.ek_roots.add(own.der + b"\xff" * 200, "this one")
    token = await server.token(allow_unverified_ek=False)
    begun = await server.begin(attester, "pi-b", token, ek_certificate=b64u(own.der))
    assert begun.status == 200, begun.body
    [root] = await server.store.enrollment.list_ek_roots()
    assert (root.fingerprint, root.der) == (hashlib.sha256(own.der).hexdigest(), own.der)
