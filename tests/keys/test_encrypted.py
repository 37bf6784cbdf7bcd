"""Private keys at rest."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import example, given
from hypothesis import strategies as st
from jwcrypto.common import base64url_decode, base64url_encode
from jwcrypto.jwe import JWE
from jwcrypto.jwk import JWK

from tang_attest.errors import Malformed, Unavailable
from tang_attest.keys import encrypted as module
from tang_attest.keys.encrypted import EncryptedKeys, SessionEncryption
from tang_attest.keys.secret import ServerSecret
from tang_attest.ports.keys import OPEN, EncryptedKey, holder
from tang_attest.protocol.values.advertisement import thumbprint
from tang_attest.protocol.values.base64url import b64u, unb64u
from tang_attest.protocol.values.points import CURVES, parse_point

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECRET = ServerSecret(b"s" * 32)
OTHER = ServerSecret(b"o" * 32)
KEYS = EncryptedKeys(SECRET)


def refusal(key: EncryptedKey, use: str = "exchange") -> str:
    """The sentence with which *key* is not opened, by a store that has never seen it."""
    keys = EncryptedKeys(SECRET)
    with pytest.raises(Unavailable) as refused:
        keys.open_exchange(key) if use == "exchange" else keys.open_signer(key)
    assert refused.value.code == "internal"
    return refused.value.sentence


@pytest.mark.parametrize("curve", CURVES)
def test_round_trip(curve: str) -> None:
    """An exchange key comes back as it was made, by any process that has the secret."""
    key = KEYS.create("exchange", curve, NOW)
    opened = EncryptedKeys(SECRET).open_exchange(key)
    assert (key.kid, key.use, key.curve, key.created_at, key.rotated_at) == (opened.kid, "exchange", curve, NOW, None)  # fmt: skip
    assert key.kid == thumbprint(key.public) == thumbprint(opened.public.members())
    x = ec.generate_private_key(CURVES[curve].implementation)
    product = opened.multiply(parse_point(dict(_members(x, curve))))
    assert product.x == int.from_bytes(x.exchange(ec.ECDH(), opened.public.public_key()), "big")


def _members(private: ec.EllipticCurvePrivateKey, curve: str) -> dict[str, str]:
    numbers, size = private.public_key().public_numbers(), CURVES[curve].size
    return {
        "kty": "EC",
        "crv": curve,
        "x": b64u(numbers.x.to_bytes(size, "big")),
        "y": b64u(numbers.y.to_bytes(size, "big")),
    }


def test_signing_key() -> None:
    """A signing key signs."""
    signer = EncryptedKeys(SECRET).open_signer(KEYS.create("sign", "P-521", NOW))
    assert signer.algorithm == "ES512"
    assert len(signer.sign(b"message")) == 132


def test_nothing_private_is_in_the_record() -> None:
    """Everything in it but the JWE is public, and the JWE's header says only whose key it is."""
    private = ec.generate_private_key(ec.SECP256R1())
    key = KEYS.encrypt("exchange", private, NOW)
    scalar = private.private_numbers().private_value.to_bytes(32, "big")
    text = repr(key)
    assert set(key.public) == {"kty", "crv", "x", "y"}
    for form in (b64u(scalar), scalar.hex(), str(int.from_bytes(scalar, "big"))):
        assert form not in text
    header, encrypted_key, *_ = key.jwe.split(".")
    assert json.loads(unb64u(header)) == {
        "alg": "dir",
        "enc": "A256GCM",
        "kid": key.kid,
        "use": "exchange",
        "holder": "open",
    }
    assert encrypted_key == ""
    assert KEYS.encrypt("exchange", private, NOW).jwe != key.jwe


def test_another_secret_does_not_open_it() -> None:
    """The database without the secret is worth nothing."""
    key = EncryptedKeys(OTHER).create("exchange", "P-256", NOW)
    assert refusal(key) == f"Key {key.kid} was encrypted under another secret."


def test_keys_cannot_be_exchanged() -> None:
    """A writer of the database cannot give one device the key of another."""
    mine, yours = KEYS.create("exchange", "P-256", NOW), KEYS.create("exchange", "P-256", NOW)
    swapped = replace(mine, jwe=yours.jwe)
    assert refusal(swapped) == f"Key {mine.kid} is not the key that its record names."
    assert "is not the key" in refusal(replace(mine, kid=yours.kid))


def test_a_use_cannot_be_changed() -> None:
    """Nor turn a signing key into an exchange key, or the other way."""
    sign, exchange = KEYS.create("sign", "P-521", NOW), KEYS.create("exchange", "P-521", NOW)
    assert "is not the key" in refusal(replace(sign, use="exchange"))
    assert "is not the key" in refusal(replace(exchange, use="sign"), "sign")


def test_the_cache_does_not_forgive() -> None:
    """A key that this process has opened under its name is not handed out under another name or use."""
    keys = EncryptedKeys(SECRET)
    mine, yours = keys.create("exchange", "P-521", NOW), keys.create("exchange", "P-521", NOW)
    keys.open_exchange(mine)
    keys.open_exchange(yours)
    for wrong in (replace(mine, jwe=yours.jwe), replace(mine, kid=yours.kid)):
        with pytest.raises(Unavailable):
            keys.open_exchange(wrong)
    with pytest.raises(Unavailable):
        keys.open_signer(mine)


def test_an_inner_key_of_another_name() -> None:
    """Even with the secret, a header cannot name another key than the one inside."""
    one, two = ec.generate_private_key(ec.SECP256R1()), KEYS.create("exchange", "P-256", NOW)
    assert "is not the key" in refusal(replace(two, jwe=_jwe(one, two.kid)))
    rsa_key = rsa.generate_private_key(65537, 2048)
    assert "is not the key" in refusal(replace(two, jwe=_jwe(rsa_key, two.kid)))


def _jwe(private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, kid: str, **header: str) -> str:
    plain = private.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    protected = {"alg": "dir", "enc": "A256GCM", "kid": kid, "use": "exchange", "holder": "open", **header}
    jwe = JWE(plain, protected=json.dumps(protected))
    jwe.add_recipient(JWK(kty="oct", k=base64url_encode(SECRET.derive("seal"))))
    return str(jwe.serialize(True))


@given(st.data())
def test_any_change_is_noticed(data: st.DataObject) -> None:
    """One character anywhere in the JWE, unless it spells the same bytes (stray bits at the end of a part)."""
    key = KEY
    at = data.draw(st.integers(0, len(key.jwe) - 1))
    character = data.draw(
        st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.{\x00")
    )
    changed = key.jwe[:at] + character + key.jwe[at + 1 :]
    try:
        same = [base64url_decode(part) for part in changed.split(".")] == [
            base64url_decode(part) for part in key.jwe.split(".")
        ]
    except ValueError:
        same = False
    if not same:
        assert key.kid in refusal(replace(key, jwe=changed))


KEY = KEYS.create("exchange", "P-256", NOW)


@given(st.text(max_size=300))
@example("")
@example("....")
@example("{}")
@example("1")
@example("[" * 5000)
@example('{"protected": 1, "iv": "", "ciphertext": "", "tag": ""}')
@example("bnVsbA....")
@example("MQ....")
def test_any_text(text: str) -> None:
    """With any bytes in the database, the error is ours and names the key."""
    assert KEY.kid in refusal(replace(KEY, jwe=text))


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key used longest ago goes first, and is opened again when it is needed."""
    monkeypatch.setattr(module, "_CACHE_SIZE", 2)
    keys = EncryptedKeys(SECRET)
    one, two, three = (keys.create("exchange", "P-256", NOW) for _ in range(3))
    first, second = keys.open_exchange(one), keys.open_exchange(two)
    assert keys.open_exchange(one) is first
    keys.open_exchange(three)
    assert keys.open_exchange(one) is first
    assert keys.open_exchange(two) is not second


def test_a_curve_of_nobody() -> None:
    """Only curves that the protocol knows are encrypted."""
    with pytest.raises(Malformed) as refused:
        KEYS.encrypt("exchange", ec.generate_private_key(ec.SECP256K1()), NOW)
    assert refused.value.code in ("key-malformed", "curve-mismatch")


# --- sessions ----------------------------------------------------------------------------------------------------

BOX = SessionEncryption(SECRET)
SESSION = BOX.encrypt(b"payload")


@given(st.binary(min_size=1, max_size=2000))
def test_sessions(payload: bytes) -> None:
    """An encrypted payload comes back, and is not visible meanwhile."""
    text = BOX.encrypt(payload)
    assert SessionEncryption(SECRET).decrypt(text) == payload
    assert BOX.encrypt(payload) != text
    assert SessionEncryption(OTHER).decrypt(text) is None


@given(st.text(max_size=300))
@example("")
@example("....")
@example("{}")
@example("1")
@example("[]")
@example("[" * 100_000)
@example('{"a":' * 5000)
@example("9" * 5000)
@example('{"ciphertext": "", "recipients": [1]}')
@example('{"protected": "e30", "iv": "AA", "ciphertext": "AA", "tag": "AA"}')
@example("bnVsbA....")
@example("eyJhbGciOiJkaXIifQ....")
def test_sessions_of_nobody(text: str) -> None:
    """A stranger's text is no session, and no failure of ours either."""
    assert BOX.decrypt(text) is None


@given(st.integers(0, len(SESSION) - 1), st.sampled_from("AZaz09-_"))
def test_changed_sessions(at: int, character: str) -> None:
    """One character anywhere; the last one of a part may hold bits that mean nothing."""
    changed = SESSION[:at] + character + SESSION[at + 1 :]
    assert BOX.decrypt(changed) in (None, b"payload")
    if changed[at + 1 : at + 2] not in ("", ".") and changed != SESSION:
        assert BOX.decrypt(changed) is None


def test_a_sealed_key_is_no_session() -> None:
    """Each purpose has its own key, so nothing of one opens as the other."""
    assert BOX.decrypt(KEY.jwe) is None
    assert KEY.kid in refusal(replace(KEY, jwe=SESSION))


def test_sessions_are_sealed_with_one_algorithm() -> None:
    """A header that asks for another algorithm is not followed."""
    key = JWK(kty="oct", k=base64url_encode(SECRET.derive("session")))
    for header in ({"alg": "A256KW", "enc": "A256GCM"}, {"alg": "A256GCMKW", "enc": "A256GCM"}, {"alg": "dir", "enc": "A128CBC-HS256"}):  # fmt: skip
        jwe = JWE(b"payload", protected=json.dumps(header))
        jwe.add_recipient(key)
        assert BOX.decrypt(jwe.serialize(True)) is None


def test_a_key_for_another_holder() -> None:
    """A key that was made for one machine answers no other, not everybody, and not the same AK by another Name."""
    mine, other = holder(b"name", b"key"), holder(b"other", b"key")
    key = KEYS.create("exchange", "P-256", NOW, mine)
    assert KEYS.open_exchange(key).kid == key.kid
    for wrong in (other, holder(b"name", b"other"), OPEN, ""):
        with pytest.raises(Unavailable) as refused:
            KEYS.open_exchange(replace(key, holder=wrong))
        assert refused.value.code == "registry-tampered"
    with pytest.raises(Unavailable) as refused:
        KEYS.open_exchange(replace(KEYS.create("exchange", "P-256", NOW), holder=mine))
    assert refused.value.code == "registry-tampered"
