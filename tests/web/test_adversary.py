"""The adversarial suite: one named test for each attack.

Each asserts the status, the code, and that no exchange happened.  ``attester`` is a machine that a policy approves;
what the attacker changes is the rest of the test.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tpm2_pytss.constants import TPM2_ST, TPMA_OBJECT

from tang_attest.protocol.challenge import unlock_digest
from tang_attest.protocol.enrollment import enrollment_digest
from tang_attest.protocol.values.advertisement import thumbprint
from tang_attest.protocol.values.base64url import b64u, unb64u
from tang_attest.protocol.values.points import CURVES, Point
from tests.attester import AK_ATTRIBUTES, Attester, members, tpmt_signature
from tests.server import Answer, Server, evidence, new_x

pytestmark = pytest.mark.usefixtures("exchanges")


@pytest.fixture
async def kid(server: Server, attester: Attester) -> str:
    """The attester's exchange key."""
    return await server.enroll(attester)


def refused(answer: Answer, status: int, code: str, exchanges: list[Point]) -> None:
    """Assertions about every attack."""
    assert (answer.status, answer.code) == (status, code), answer.body
    assert exchanges == []
    assert "x" not in answer.body
    assert answer.headers["Cache-Control"] == "no-store"


# --- first, that the good one passes: otherwise every test below would ---


@pytest.mark.parametrize(
    "kind",
    [
        "ecc256:ecdsa-sha256",
        "ecc384:ecdsa-sha384",
        "rsa2048:rsassa-sha256",
        "rsa2048:rsapss-sha256",
        "rsa3072:rsapss-sha384",
    ],
)
async def test_the_approved_machine_gets_y(server: Server, exchanges: list[Point], kind: str) -> None:
    """200, and Y = s·X."""
    attester = Attester(kind)
    kid = await server.enroll(attester)
    x = new_x()
    answer = await server.unlock(attester, kid, x=dict(members(x)))
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/jwk+json")
    bound = await server.store.decisions.find_key(kid)
    assert bound is not None
    s = server.private_keys.open_exchange(bound.key)
    assert unb64u(answer.body["x"]) == x.exchange(ec.ECDH(), s.public.public_key())
    assert len(exchanges) == 1


# --- nonce ---


async def test_another_x_with_a_captured_quote(
    server: Server, attester: Attester, kid: str, exchanges: list[Point]
) -> None:
    """The thief has the evidence but wants Y for an X whose e they know."""
    x, thief = dict(members(new_x())), dict(members(new_x()))
    captured = evidence(attester, kid, x, await server.challenge(kid))
    answer = await server.post(f"/rec/{kid}", thief | {"attest": captured})
    refused(answer, 403, "qualifying-data-mismatch", exchanges)


async def test_replay(server: Server, attester: Attester, kid: str, exchanges: list[Point]) -> None:
    """The same request again."""
    x, challenge = dict(members(new_x())), await server.challenge(kid)
    body = x | {"attest": evidence(attester, kid, x, challenge)}
    assert (await server.post(f"/rec/{kid}", body)).status == 200
    exchanges.clear()
    refused(await server.post(f"/rec/{kid}", body), 403, "nonce-used", exchanges)


async def test_a_nonce_used_twice_with_two_quotes(
    server: Server, attester: Attester, kid: str, exchanges: list[Point]
) -> None:
    """The machine itself signs twice for one challenge."""
    challenge = await server.challenge(kid)
    assert (await server.unlock(attester, kid, challenge=challenge)).status == 200
    exchanges.clear()
    refused(await server.unlock(attester, kid, challenge=challenge), 403, "nonce-used", exchanges)
    entries = await server.store.audit.list_audit("pi-b")
    assert entries[0][1].code == "nonce-used"


async def test_a_race_with_one_nonce(
    server: Server, attester: Attester, kid: str, exchanges: list[Point]
) -> None:
    """Many at once: exactly one gets Y."""
    challenge = await server.challenge(kid)
    answers = await asyncio.gather(*(server.unlock(attester, kid, challenge=challenge) for _ in range(10)))
    assert sorted(answer.status for answer in answers) == [200] + [403] * 9
    assert {answer.code for answer in answers} == {"ok", "nonce-used"}
    assert len(exchanges) == 1


async def test_an_expired_nonce(server: Server, attester: Attester, kid: str, exchanges: list[Point]) -> None:
    """And a new challenge comes with the refusal, for a machine that was only slow."""
    challenge = await server.challenge(kid)
    server.clock.advance(seconds=120)
    answer = await server.unlock(attester, kid, challenge=challenge)
    refused(answer, 401, "nonce-expired", exchanges)
    assert answer.headers["WWW-Authenticate"] == "TPM2-Quote"
    assert (await server.unlock(attester, kid, challenge=answer.body["challenge"])).status == 200


async def test_a_nonce_for_another_key(
    server: Server, attester: Attester, kid: str, exchanges: list[Point]
) -> None:
    """A challenge that was given to another machine."""
    other = await server.enroll(Attester(), "other")
    refused(
        await server.unlock(attester, kid, challenge=await server.challenge(other)),
        403,
        "nonce-invalid",
        exchanges,
    )


async def test_a_nonce_of_another_server(
    server: Server, attester: Attester, kid: str, exchanges: list[Point], tmp_path: Path
) -> None:
    """Another server has another secret."""
    async with Server(tmp_path / "other") as other:
        foreign = await other.challenge(await other.enroll(Attester()))
    refused(await server.unlock(attester, kid, challenge=foreign), 403, "nonce-invalid", exchanges)


async def test_a_nonce_of_the_clients_own(
    server: Server, attester: Attester, kid: str, exchanges: list[Point]
) -> None:
    """The attacker does not wait for a challenge."""
    challenge = {"nonce": "A" * 76, "selection": "sha256:0,2,4,7"}
    refused(await server.unlock(attester, kid, challenge=challenge), 403, "nonce-invalid", exchanges)


async def test_an_enrollment_nonce_for_unlocking(
    server: Server, attester: Attester, kid: str, exchanges: list[Point]
) -> None:
    """Nonces are for one purpose."""
    begun = await server.begin(Attester(), "third", await server.token())
    challenge = {"nonce": begun.body["nonce"], "selection": "sha256:0,2,4,7"}
    refused(await server.unlock(attester, kid, challenge=challenge), 403, "nonce-invalid", exchanges)


@pytest.mark.parametrize(
    "label", ["tang-attest/v1 enroll", "tang-attest/v1 verify", "tang-attest/v2 unlock", ""]
)
async def test_evidence_labeled_for_another_purpose(
    server: Server, attester: Attester, kid: str, exchanges: list[Point], label: str
) -> None:
    """The right nonce, kid and X under another label."""
    x, challenge = dict(members(new_x())), await server.challenge(kid)
    binding = hashlib.sha256(f"{label}\n{challenge['nonce']}\n{kid}\n{thumbprint(x)}\n".encode()).digest()
    answer = await server.unlock(attester, kid, x=x, challenge=challenge, binding=binding)
    refused(answer, 403, "qualifying-data-mismatch", exchanges)


# --- what is quoted ---


async def test_relabeled_pcrs(server: Server, attester: Attester, kid: str, exchanges: list[Point]) -> None:
    """Good values of PCR 1, 3, 5, 6 shown as those of 0, 2, 4, 7 (CVE-2024-29039)."""
    good = attester.pcrs["sha256"].copy()
    for real, shown in ((1, 0), (3, 2), (5, 4), (6, 7)):
        attester.pcrs["sha256"][real] = good[shown]
    answer = await server.unlock(attester, kid, selection="sha256:1,3,5,6")
    refused(answer, 403, "selection-mismatch", exchanges)


@pytest.mark.parametrize(
    "banks",
    [
        [],
        ["sha256:"],
        ["sha256:0,2,4"],
        ["sha256:0,2,4,7,8"],
        ["sha384:0,2,4,7"],
        ["sha1:0,2,4,7"],
        ["sha256:0,2,4,7", "sha256:0,2,4,7"],
        ["sha256:0,2", "sha256:4,7"],
        ["sha256:0,2,4,7", "sha384:0"],
        ["sha256:0,2,4,7", "sha1:"],
        ["sha1:0", "sha256:0,2,4,7"],
    ],
    ids=lambda banks: "+".join(banks) or "none",
)
async def test_another_selection_is_signed(
    server: Server, attester: Attester, kid: str, exchanges: list[Point], banks: list[str]
) -> None:
    """Empty, fewer, more, another bank, a bank twice, an extra bank: with the good values' digest."""
    answer = await server.unlock(attester, kid, banks=banks)
    refused(answer, 403, "selection-mismatch", exchanges)


async def test_values_that_were_not_signed(
    server: Server, attester: Attester, kid: str, exchanges: list[Point]
) -> None:
    """Good values sent, bad ones signed."""
    answer = await server.unlock(attester, kid, pcr_digest=hashlib.sha256(b"bad").digest())
    refused(answer, 403, "pcr-digest-mismatch", exchanges)


@pytest.mark.parametrize("size", [0, 31, 127, 129, 160])
async def test_values_of_the_wrong_length(
    server: Server, attester: Attester, kid: str, exchanges: list[Point], size: int
) -> None:
    """Shorter and longer than four SHA-256 values."""
    x, challenge = dict(members(new_x())), await server.challenge(kid)
    body = evidence(attester, kid, x, challenge) | {"pcrs": b64u(bytes(size))}
    refused(await server.post(f"/rec/{kid}", x | {"attest": body}), 400, "evidence-malformed", exchanges)


async def test_another_software(server: Server, attester: Attester, kid: str, exchanges: list[Point]) -> None:
    """An honest quote over a state that nobody approved: the device hears which PCRs, and no values."""
    attester.extend(4, b"evil kernel")
    attester.extend(7, b"no secure boot")
    answer = await server.unlock(attester, kid)
    refused(answer, 403, "pcr-mismatch", exchanges)
    assert answer.body["pcrs"] == [4, 7]
    assert attester.pcrs["sha256"][4].hex() not in json.dumps(answer.body)


async def test_a_stranger_hears_nothing_of_the_policy(
    server: Server, attester: Attester, kid: str, exchanges: list[Point]
) -> None:
    """Before the signature holds, no PCR is named."""
    stranger = Attester()
    stranger.extend(4, b"evil kernel")
    answer = await server.unlock(stranger, kid)
    refused(answer, 403, "signature-invalid", exchanges)
    assert "pcrs" not in answer.body


# --- signature and structure ---


async def test_a_quote_by_another_ak(
    server: Server, attester: Attester, kid: str, exchanges: list[Point]
) -> None:
    """A healthy machine's TPM signs for the thief."""
    healthy = Attester(pcrs=attester.pcrs)
    await server.enroll(healthy, "healthy")
    refused(await server.unlock(healthy, kid), 403, "signature-invalid", exchanges)


async def _with_signature(server: Server, kid: str, attester: Attester, sign: Any) -> Answer:
    x, challenge = dict(members(new_x())), await server.challenge(kid)
    body = evidence(attester, kid, x, challenge)
    body["signature"] = b64u(sign(unb64u(body["quote"])))
    return await server.post(f"/rec/{kid}", x | {"attest": body})


@pytest.mark.parametrize(
    ("kind", "claim"),
    [
        ("rsa2048:rsassa-sha256", ("rsapss", "sha256")),
        ("rsa2048:rsapss-sha256", ("rsassa", "sha256")),
        ("rsa2048:rsassa-sha256", ("rsassa", "sha384")),
        ("ecc256:ecdsa-sha256", ("ecdsa", "sha384")),
        ("ecc256:ecdsa-sha256", ("rsassa", "sha256")),
    ],
)
async def test_a_wrong_scheme_or_hash_in_the_signature(
    server: Server, exchanges: list[Point], kind: str, claim: tuple[str, str]
) -> None:
    """The AK decides how its signatures verify, whatever the signature says."""
    attester = Attester(kind)
    kid = await server.enroll(attester)
    answer = await _with_signature(server, kid, attester, lambda quote: attester.sign(quote, claim=claim))
    refused(answer, 403, "signature-invalid", exchanges)


@pytest.mark.parametrize("kind", ["rsa2048:rsassa-sha256", "ecc256:ecdsa-sha256"])
async def test_a_valid_signature_under_another_hash(
    server: Server, exchanges: list[Point], kind: str
) -> None:
    """Really made with SHA-512 and saying so: still not the AK's own scheme."""
    attester = Attester(kind)
    kid = await server.enroll(attester)
    answer = await _with_signature(
        server, kid, attester, lambda quote: attester.sign(quote, hash_name="sha512")
    )
    refused(answer, 403, "signature-invalid", exchanges)


@pytest.mark.parametrize("kind", ["rsa2048:rsassa-sha256", "ecc256:ecdsa-sha256"])
async def test_sha1_in_the_signature(server: Server, exchanges: list[Point], kind: str) -> None:
    """SHA-1 nowhere."""
    attester = Attester(kind)
    kid = await server.enroll(attester)
    claim = (attester.scheme, "sha1")
    answer = await _with_signature(server, kid, attester, lambda quote: attester.sign(quote, claim=claim))
    refused(answer, 400, "evidence-unsupported", exchanges)


async def test_a_signature_of_zeros(
    server: Server, attester: Attester, kid: str, exchanges: list[Point]
) -> None:
    """r = s = 0 (CVE-2022-21449 elsewhere)."""
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    answer = await _with_signature(
        server,
        kid,
        attester,
        lambda _: tpmt_signature(encode_dss_signature(0, 0), "ecdsa", "sha256", ecdsa=True),
    )
    refused(answer, 403, "signature-invalid", exchanges)


async def test_magic_wrong(server: Server, attester: Attester, kid: str, exchanges: list[Point]) -> None:
    """Signed, but not made inside a TPM (CVE-2024-29038)."""
    refused(await server.unlock(attester, kid, magic=0xFF544347 ^ 1), 403, "quote-invalid", exchanges)


@pytest.mark.parametrize("kind", [TPM2_ST.ATTEST_TIME, TPM2_ST.ATTEST_CREATION, TPM2_ST.ATTEST_NV])
async def test_type_wrong(
    server: Server, attester: Attester, kid: str, exchanges: list[Point], kind: int
) -> None:
    """Another attestation than a quote; its tail cannot be read as one, or is not looked at."""
    answer = await server.unlock(attester, kid, type=kind)
    assert answer.status in (400, 403)
    assert answer.code in ("quote-invalid", "evidence-malformed")
    assert exchanges == []


async def test_trailing_bytes_after_the_quote(
    server: Server, attester: Attester, kid: str, exchanges: list[Point]
) -> None:
    """Even signed ones."""
    refused(await server.unlock(attester, kid, trailing=b"\0"), 400, "evidence-malformed", exchanges)


async def test_trailing_bytes_after_the_signature(
    server: Server, attester: Attester, kid: str, exchanges: list[Point]
) -> None:
    """A structure is its bytes and nothing after them."""
    answer = await _with_signature(server, kid, attester, lambda quote: attester.sign(quote) + b"\0")
    refused(answer, 400, "evidence-malformed", exchanges)


# --- the TPM's memory ---


async def test_reset_count_going_back(
    server: Server, attester: Attester, kid: str, exchanges: list[Point]
) -> None:
    """The TPM was cleared, or it is another one with the same key."""
    attester.reset_count = 9
    assert (await server.unlock(attester, kid)).status == 200
    exchanges.clear()
    attester.reset_count = 8
    refused(await server.unlock(attester, kid), 403, "reset-count-backwards", exchanges)


async def test_restart_count_going_back_without_a_reset(
    server: Server, attester: Attester, kid: str, exchanges: list[Point]
) -> None:
    """It may fall only when resetCount rose."""
    attester.restart_count = 5
    assert (await server.unlock(attester, kid)).status == 200
    exchanges.clear()
    attester.restart_count = 4
    refused(await server.unlock(attester, kid), 403, "reset-count-backwards", exchanges)
    attester.reset_count += 1
    assert (await server.unlock(attester, kid)).status == 200


async def test_clock_going_back(server: Server, attester: Attester, kid: str, exchanges: list[Point]) -> None:
    """With both counters equal the clock only moves forward."""
    assert (await server.unlock(attester, kid)).status == 200
    exchanges.clear()
    attester.clock -= 1000
    refused(await server.unlock(attester, kid), 403, "clock-backwards", exchanges)


# --- X ---


def _x(**changes: str) -> dict[str, str]:
    return dict(members(new_x())) | changes


@pytest.mark.parametrize(
    ("x", "code"),
    [
        (_x(y=members(new_x())["y"]), "point-invalid"),
        (_x(x=b64u(bytes(66)), y=b64u(bytes(66))), "point-invalid"),
        (_x(x="", y=""), "point-invalid"),
        (_x(x="*"), "point-invalid"),
        (_x(x=b64u(bytes(67))), "point-invalid"),
        (_x(x=b64u((2**521 - 1).to_bytes(66, "big"))), "point-invalid"),
        (_x(kty="RSA"), "point-invalid"),
        (_x(alg="ECDH"), "point-invalid"),
        (_x(crv="P-999"), "point-invalid"),
        (dict(members(new_x(ec.SECP256R1()))), "curve-mismatch"),
        (dict(members(new_x(ec.SECP384R1()))), "curve-mismatch"),
        (dict(members(new_x(ec.SECP256R1()))) | {"crv": "P-521"}, "point-invalid"),
    ],
    ids=[
        "off-the-curve",
        "infinity-as-zeros",
        "infinity-as-nothing",
        "bad-base64",
        "too-long",
        "not-reduced",
        "not-ec",
        "other-alg",
        "unknown-curve",
        "p-256",
        "p-384",
        "p-256-as-p-521",
    ],
)
async def test_x_is_no_point_of_the_keys_curve(
    server: Server, attester: Attester, kid: str, exchanges: list[Point], x: dict[str, str], code: str
) -> None:
    """Invalid-curve attacks end before anything is multiplied."""
    challenge = await server.challenge(kid)
    binding = unlock_digest(challenge["nonce"], kid, thumbprint(x))
    body = attester.evidence(challenge["nonce"], binding)
    refused(await server.post(f"/rec/{kid}", x | {"attest": body}), 400, code, exchanges)


@pytest.mark.parametrize("negated", [False, True], ids=["G", "-G"])
async def test_x_is_the_generator(server: Server, attester: Attester, kid: str, negated: bool) -> None:
    """X = G gives S and X = -G gives -S: public anyway, and the formula must not break there."""
    curve = CURVES["P-521"]
    g = Point(curve, curve.gx, curve.gy)
    x = (g.negated() if negated else g).members() | {"alg": "ECMR"}
    answer = await server.unlock(attester, kid, x=x)
    bound = await server.store.decisions.find_key(kid)
    assert bound is not None
    s = server.private_keys.open_exchange(bound.key).public
    expected = (s.negated() if negated else s).members()
    assert (answer.status, answer.body["x"], answer.body["y"]) == (200, expected["x"], expected["y"])


# --- enrollment ---


async def _refused_begin(server: Server, attester: Attester, status: int, code: str, **changes: Any) -> None:
    answer = await server.begin(
        attester, changes.pop("name", "new"), changes.pop("token", None) or await server.token(), **changes
    )
    assert (answer.status, answer.code) == (status, code), answer.body
    assert "credential_blob" not in answer.body


@pytest.mark.parametrize(
    "missing", ["RESTRICTED", "SIGN_ENCRYPT", "FIXEDTPM", "FIXEDPARENT", "SENSITIVEDATAORIGIN"]
)
async def test_an_ak_without_an_attribute(server: Server, missing: str) -> None:
    """Without restricted its owner signs forged quotes."""
    attributes = int(AK_ATTRIBUTES) & ~int(getattr(TPMA_OBJECT, missing))
    await _refused_begin(server, Attester(attributes=attributes), 403, "ak-unsuitable")


async def test_an_ak_that_decrypts(server: Server) -> None:
    """A signing key and nothing else."""
    await _refused_begin(
        server, Attester(attributes=int(AK_ATTRIBUTES | TPMA_OBJECT.DECRYPT)), 403, "ak-unsuitable"
    )


async def test_an_ak_that_signs_with_sha1(server: Server) -> None:
    """SHA-1 nowhere."""
    await _refused_begin(server, Attester("rsa2048:rsassa-sha1"), 403, "ak-unsuitable")


async def test_a_weak_ak(server: Server) -> None:
    """RSA 1024."""
    await _refused_begin(server, Attester("rsa1024:rsassa-sha256"), 403, "ak-unsuitable")


async def test_an_ak_with_trailing_bytes(server: Server, attester: Attester) -> None:
    """A structure is its bytes and nothing after them."""
    await _refused_begin(server, attester, 400, "evidence-malformed", ak=b64u(attester.ak_public + b"\0"))


async def test_a_signing_key_as_ek(server: Server, attester: Attester) -> None:
    """An EK decrypts, and its attributes say so."""
    await _refused_begin(server, attester, 403, "ek-unsupported", ek=b64u(attester.ak_public))


async def test_no_ek_certificate_where_one_is_wanted(server: Server, attester: Attester) -> None:
    """Only a token that says so takes an unverified EK."""
    await _refused_begin(
        server, attester, 403, "ek-untrusted", token=await server.token(allow_unverified_ek=False)
    )


async def test_the_ak_of_another_tpm(server: Server, attester: Attester) -> None:
    """The attacker's TPM has the EK, the AK lives elsewhere: the credential does not open for it."""
    other = Attester()
    begun = await server.begin(attester, "new", await server.token(), ek=b64u(other.ek_public))
    assert begun.status == 200
    # The attacker knows neither secret; they try one of their own.
    answer = await server.finish(attester, "new", begun, secret=b"guess" * 6)
    assert (answer.status, answer.code) == (403, "activation-failed")
    with pytest.raises(ValueError, match="another key"):
        other.activate(
            unb64u(begun.body["credential_blob"]), unb64u(begun.body["encrypted_secret"]), b"another name"
        )


async def test_a_wrong_credential_secret(server: Server, attester: Attester) -> None:
    """And the token is still good afterwards."""
    token = await server.token()
    begun = await server.begin(attester, "new", token)
    answer = await server.finish(attester, "new", begun, secret=bytes(32))
    assert (answer.status, answer.code) == (403, "activation-failed")
    begun = await server.begin(attester, "new", token)
    assert (await server.finish(attester, "new", begun)).status == 201


async def test_a_proof_that_is_not_hex(server: Server, attester: Attester) -> None:
    """Shape before meaning."""
    begun = await server.begin(attester, "new", await server.token())
    answer = await server.finish(attester, "new", begun, proof="Ä" * 64)
    assert (answer.status, answer.code) == (400, "request-malformed")


async def test_a_first_quote_for_another_name(server: Server, attester: Attester) -> None:
    """The quote names the device it enrolls."""
    begun = await server.begin(attester, "new", await server.token())
    binding = enrollment_digest(begun.body["nonce"], "other", "0" * 64)
    answer = await server.finish(attester, "new", begun, binding=binding)
    assert (answer.status, answer.code) == (403, "qualifying-data-mismatch")


async def test_an_unlock_quote_for_enrollment(server: Server, attester: Attester) -> None:
    """Evidence for one purpose is never good for another."""
    begun = await server.begin(attester, "new", await server.token())
    binding = unlock_digest(begun.body["nonce"], "new", "A" * 43)
    answer = await server.finish(attester, "new", begun, binding=binding)
    assert (answer.status, answer.code) == (403, "qualifying-data-mismatch")


async def test_an_enrollment_that_took_too_long(server: Server, attester: Attester) -> None:
    """The session ends with its nonce."""
    begun = await server.begin(attester, "new", await server.token())
    server.clock.advance(seconds=300)
    answer = await server.finish(attester, "new", begun)
    assert (answer.status, answer.code) == (401, "nonce-expired")


@pytest.mark.parametrize("session", ["", "x", "a.b.c.d.e", "eyJhbGciOiJub25lIn0.e30."])
async def test_a_session_of_the_clients_own(server: Server, attester: Attester, session: str) -> None:
    """Sessions are sealed."""
    begun = await server.begin(attester, "new", await server.token())
    answer = await server.finish(attester, "new", begun, session=session)
    assert (answer.status, answer.code) == (403, "session-invalid")


async def test_a_session_of_another_server(server: Server, attester: Attester, tmp_path: Path) -> None:
    """Another server has another secret."""
    async with Server(tmp_path / "other") as other:
        begun = await other.begin(attester, "new", await other.token())
    answer = await server.finish(attester, "new", begun)
    assert (answer.status, answer.code) == (403, "session-invalid")


async def test_a_token_used_twice(server: Server, attester: Attester) -> None:
    """One token, one device."""
    token = await server.token()
    begun = await server.begin(attester, "one", token)
    assert (await server.finish(attester, "one", begun)).status == 201
    await _refused_begin(server, Attester(), 403, "token-used", token=token, name="two")


async def test_a_token_used_twice_at_once(server: Server) -> None:
    """Two begin before either finishes: one device."""
    token, machines = await server.token(), [Attester(), Attester()]
    begun = [await server.begin(machine, f"m{i}", token) for i, machine in enumerate(machines)]
    answers = await asyncio.gather(*(server.finish(m, f"m{i}", begun[i]) for i, m in enumerate(machines)))
    assert sorted((answer.status, answer.code) for answer in answers) == [(201, "ok"), (403, "token-used")]
    assert len(await server.store.devices.list_devices()) == 1


async def test_a_token_expired(server: Server, attester: Attester) -> None:
    """Tokens end by themselves."""
    token = await server.token()
    server.clock.advance(hours=1)
    await _refused_begin(server, attester, 403, "token-expired", token=token)


async def test_a_token_that_nobody_made(server: Server, attester: Attester) -> None:
    """And nothing about the rest is said."""
    await _refused_begin(server, attester, 403, "token-invalid", token="A" * 43)


async def test_a_token_for_another_name(server: Server, attester: Attester) -> None:
    """A token may be for one name only."""
    await _refused_begin(server, attester, 403, "token-invalid", token=await server.token(name="pi-c"))


async def test_a_name_taken(server: Server, attester: Attester) -> None:
    """The first keeps it."""
    await server.enroll(attester, "pi-b")
    begun = await server.begin(Attester(), "pi-b", await server.token())
    answer = await server.finish(Attester(), "pi-b", begun, secret=b"x" * 32)
    assert answer.code == "activation-failed"
    second = Attester()
    begun = await server.begin(second, "pi-b", await server.token())
    answer = await server.finish(second, "pi-b", begun)
    assert (answer.status, answer.code) == (409, "name-taken")


async def test_the_same_tpm_under_another_name(server: Server, attester: Attester) -> None:
    """One AK, one device: two would share a clock and confuse the audit."""
    await server.enroll(attester, "one")
    begun = await server.begin(attester, "two", await server.token())
    answer = await server.finish(attester, "two", begun)
    assert (answer.status, answer.code) == (409, "device-exists")


@pytest.mark.parametrize("name", ["", "-x", "a/b", "a b", "x" * 64, "ä", "a\n", "../x"])
async def test_a_name_that_is_none(server: Server, attester: Attester, name: str) -> None:
    """Names go into listings, logs and file names."""
    answer = await server.begin(attester, name, await server.token())
    assert (answer.status, answer.code) == (400, "request-malformed")


async def test_recording_a_boot_that_nothing_measured(server: Server, attester: Attester) -> None:
    """All zeros look the same for every software."""
    attester.pcrs["sha256"] = dict.fromkeys(range(24), bytes(32))
    begun = await server.begin(attester, "new", await server.token())
    answer = await server.finish(attester, "new", begun)
    assert (answer.status, answer.code) == (400, "values-all-zero")


async def test_an_empty_policy(server: Server, attester: Attester, exchanges: list[Point]) -> None:
    """Empty refuses."""
    from tang_attest.protocol.values.pcr import Selection

    await server.reference_values.create_policy("empty", Selection.parse("sha256:0,7"), 15)
    kid = await server.enroll(attester, policy="empty")
    refused(await server.unlock(attester, kid), 403, "policy-empty", exchanges)


# --- devices come and go ---


async def test_a_removed_device(server: Server, attester: Attester, kid: str, exchanges: list[Point]) -> None:
    """Refused for good: the key is gone, even for a challenge that was given before."""
    challenge = await server.challenge(kid)
    await server.devices.remove("pi-b")
    refused(await server.unlock(attester, kid, challenge=challenge), 404, "key-unknown", exchanges)
    refused(await server.post(f"/rec/{kid}", dict(members(new_x()))), 404, "key-unknown", exchanges)
    again = await server.enroll(attester)
    assert again != kid


async def test_the_running_system_asks_for_its_key(server: Server, exchanges: list[Point]) -> None:
    """Honest, approved, but capped: a policy over the cap PCR expects it zero."""
    attester = Attester()
    kid = await server.enroll(
        attester,
        selection=__import__("tang_attest.protocol.values.pcr", fromlist=["Selection"]).Selection.parse(
            "sha256:0,7,15"
        ),
    )
    assert (await server.unlock(attester, kid)).status == 200
    exchanges.clear()
    attester.extend(15, b"cap")
    refused(await server.unlock(attester, kid), 403, "capped", exchanges)


# --- size and shape ---


async def test_an_oversize_body(server: Server, kid: str, exchanges: list[Point]) -> None:
    """Cut before it is parsed."""
    answer = await server.post(f"/rec/{kid}", b'{"a":"' + b"A" * 300_000 + b'"}')
    refused(answer, 413, "request-too-large", exchanges)


@pytest.mark.parametrize("member", ["quote", "signature", "pcrs", "event_log"])
async def test_an_oversize_member(
    server: Server, attester: Attester, kid: str, exchanges: list[Point], member: str
) -> None:
    """Each member has its own limit."""
    x = dict(members(new_x()))
    size = 131_073 if member == "event_log" else 2049
    body = evidence(attester, kid, x, await server.challenge(kid)) | {member: b64u(bytes(size))}
    refused(await server.post(f"/rec/{kid}", x | {"attest": body}), 400, "evidence-malformed", exchanges)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{",
        b"\xff\xfe",
        b"[" * 10_000 + b"]" * 10_000,
        b'{"a":' * 40 + b"1" + b"}" * 40,
        b'{"kty":"EC","kty":"EC"}',
        b'{"attest":null,"attest":{}}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"attest":{"nonce":"\\ud800"}}',
    ],
    ids=lambda body: repr(body[:24]),
)
async def test_deep_and_odd_json(server: Server, kid: str, exchanges: list[Point], body: bytes) -> None:
    """400 and a code, whatever it is."""
    answer = await server.post(f"/rec/{kid}", body)
    assert answer.status == 400, answer
    assert answer.code in ("request-malformed", "evidence-malformed", "point-invalid")
    assert exchanges == []


@pytest.mark.parametrize(
    "member",
    [
        1,
        [],
        {},
        {"nonce": 1},
        {"nonce": "n", "quote": "", "signature": "", "pcrs": "", "critical": 1},
        {"nonce": "n", "quote": "=", "signature": "", "pcrs": ""},
        {"nonce": "n", "quote": "A", "signature": "", "pcrs": ""},
        {"nonce": None, "quote": "", "signature": "", "pcrs": ""},
    ],
)
async def test_an_odd_attest_member(server: Server, kid: str, exchanges: list[Point], member: object) -> None:
    """Unknown members, wrong kinds, bad base64."""
    answer = await server.post(f"/rec/{kid}", dict(members(new_x())) | {"attest": member})
    refused(answer, 400, "evidence-malformed", exchanges)


async def test_an_open_key_does_not_answer_without_plain_tang(server: Server, exchanges: list[Point]) -> None:
    """Imported Tang keys answer nobody until the operator turns plain Tang on."""
    kid = await server.keys.import_key(new_x(), "exchange", rotated=False)
    refused(await server.post(f"/rec/{kid}", dict(members(new_x()))), 404, "key-unknown", exchanges)
