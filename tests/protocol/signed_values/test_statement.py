"""Signed value files: one canonical form, signed by one key with its one algorithm."""

from __future__ import annotations

import base64
import json
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS

from tang_attest.errors import Malformed, TangAttestError
from tang_attest.protocol.signed_values import statement
from tang_attest.protocol.values.base64url import b64u
from tests.keys.rsa_keys import draw
from tests.protocol.signed_values import signing
from tests.protocol.signed_values.signing import NOW, PrivateKey

VALUES = {4: b"\x04" * 32, 9: b"\x09" * 32}
P256 = ec.generate_private_key(ec.SECP256R1())
ED25519 = ed25519.Ed25519PrivateKey.generate()
PAYLOAD: dict[str, Any] = json.loads(signing.about(VALUES).payload())


def compact(payload: bytes, header: bytes | None = None, key: PrivateKey = P256) -> str:
    """A JWS with any payload and header, signed by *key* with ES256."""
    kid = statement.thumbprint_of(signing.public_der(key))
    protected = (
        header
        or json.dumps(
            {"alg": "ES256", "kid": kid, "typ": statement.TYP}, separators=(",", ":"), sort_keys=True
        ).encode()
    )
    made = JWS(payload)
    jwk = JWK.from_pem(signing.private_pem(key))
    made.add_signature(jwk, None, protected.decode())
    return str(made.serialize(compact=True))


def code(text: str, key: PrivateKey = P256) -> str:
    """The code of *text* for *key*, or ``ok``."""
    try:
        statement.verify(text, signing.public_der(key))
    except TangAttestError as error:
        return error.code
    return "ok"


def canonical(**changes: Any) -> bytes:
    """The canonical payload with changed members; ``...`` leaves one out."""
    members = {name: value for name, value in (PAYLOAD | changes).items() if value is not ...}
    return json.dumps(members, separators=(",", ":"), sort_keys=True).encode()


@pytest.mark.parametrize("key", [P256, ED25519])
def test_a_signed_statement_is_read_as_it_was_made(key: PrivateKey) -> None:
    """Both algorithms."""
    made = signing.about(VALUES)
    text = statement.sign(made, signing.private_pem(key))
    assert statement.verify(text, signing.public_der(key)) == made
    kid = statement.thumbprint_of(signing.public_der(key))
    assert statement.read_kid(text) == kid
    assert statement.inspect(text) == (kid, made)


def test_openssl_accepts_the_signature(tmp_path: Path) -> None:
    """EdDSA over header and payload, as RFC 7515 and RFC 8037 have it."""
    header, payload, signature = statement.sign(signing.about(VALUES), signing.private_pem(ED25519)).split(
        "."
    )
    (tmp_path / "public.pem").write_bytes(signing.public_pem(ED25519))
    (tmp_path / "signed").write_text(f"{header}.{payload}")
    (tmp_path / "signature").write_bytes(base64.urlsafe_b64decode(signature + "=="))
    subprocess.run(
        (
            *("openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(tmp_path / "public.pem"), "-rawin"),
            *("-in", str(tmp_path / "signed"), "-sigfile", str(tmp_path / "signature")),
        ),
        check=True,
        capture_output=True,
    )


@given(
    st.dictionaries(st.integers(0, 23), st.binary(min_size=48, max_size=48), min_size=1),
    st.lists(st.from_regex(r"[a-z0-9][a-z0-9.-]{0,20}", fullmatch=True), min_size=1, unique=True),
    st.integers(0, 2**53 - 1),
)
def test_every_statement_survives(values: dict[int, bytes], policies: list[str], version: int) -> None:
    """Payload and back."""
    made = signing.about(values, bank="sha384", policies=tuple(sorted(policies)), version=version)
    assert statement.verify(compact(made.payload()), signing.public_der(P256)) == made


@pytest.mark.parametrize(
    "changes",
    [
        {"extra": 1},
        {"version": ...},
        {"label": ...},
        {"not_after": ...},
        {"bank": "sha1"},
        {"bank": None},
        {"policies": []},
        {"policies": "p"},
        {"policies": ["p", "p"]},
        {"policies": ["q", "p"]},
        {"policies": ["../p"]},
        {"policies": [f"p{number:03}" for number in range(65)]},
        {"values": {}},
        {"values": {"04": "04" * 32}},
        {"values": {"24": "04" * 32}},
        {"values": {"-1": "04" * 32}},
        {"values": {"4": "04" * 48}},
        {"values": {"4": "0A" * 32}},
        {"values": {"4": "0"}},
        {"values": {"4": None}},
        {"values": [["4", "04" * 32]]},
        {"version": True},
        {"version": -1},
        {"version": 2**53},
        {"version": "1"},
        {"label": ""},
        {"label": " x"},
        {"label": "x" * 65},
        {"label": "\u00fc"},
        {"not_before": "2026-11-27T12:00:00+00:00"},
        {"not_before": "2026-11-27"},
        {"not_before": 0},
        {"not_before": "2030-01-01T00:00:00Z"},
        {"not_before": "2026-1-27T12:00:00Z"},
    ],
)
def test_a_payload_that_is_none(changes: dict[str, Any]) -> None:
    """Strict: every member, no other, each of its one form."""
    assert code(compact(canonical(**changes))) == "statement-malformed"


@pytest.mark.parametrize(
    "payload",
    [
        canonical()[:-1] + b',"version":2}',
        canonical().replace(b'"version":1', b'"version":1.0'),
        canonical().replace(b'"version":1', b'"version":NaN'),
        canonical().replace(b",", b", "),
        b"\xef\xbb\xbf" + canonical(),
        canonical() + b"\n",
        json.dumps(dict(reversed(PAYLOAD.items())), separators=(",", ":")).encode(),
        b"[" * 4000 + b"]" * 4000,
        b"[]",
        b"null",
        b"",
        b"\xff",
    ],
)
def test_another_spelling(payload: bytes) -> None:
    """Members that are there twice, other numbers, white space, another order: one statement has one form."""
    assert code(compact(payload) if payload else compact(b" ")) == "statement-malformed"


def _header(**changes: Any) -> bytes:
    kid = statement.thumbprint_of(signing.public_der(P256))
    members = {"alg": "ES256", "kid": kid, "typ": statement.TYP} | changes
    return json.dumps(
        {name: value for name, value in members.items() if value is not ...},
        separators=(",", ":"),
        sort_keys=True,
    ).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"typ": "JWT"},
        {"typ": ...},
        {"kid": ...},
        {"jku": "https://example.org/"},
        {"x5u": "https://example.org/"},
        {"jwk": {}},
    ],
)
def test_a_header_that_is_none(changes: dict[str, Any]) -> None:
    """Exactly three members: a JWS for something else is no statement."""
    assert code(compact(canonical(), _header(**changes))) == "statement-malformed"


@pytest.mark.parametrize("alg", ["none", "HS256", "RS256", "ES384"])
def test_an_algorithm_that_is_none(alg: str) -> None:
    """The header cannot choose."""
    text = compact(canonical())
    header = b64u(_header(alg=alg))
    assert code(".".join([header, *text.split(".")[1:]])) == "statement-malformed"


def test_the_header_names_the_key_and_its_algorithm() -> None:
    """EdDSA for a P-256 key, and the thumbprint of another key."""
    text = compact(canonical())
    for changed in (_header(alg="EdDSA"), _header(kid="A" * 43)):
        assert code(".".join([b64u(changed), *text.split(".")[1:]])) == "statement-untrusted"
    assert code(text, ec.generate_private_key(ec.SECP256R1())) == "statement-untrusted"


def test_each_changed_byte_is_noticed() -> None:
    """Header, payload or signature."""
    text = compact(canonical())
    for at in range(0, len(text), 7):
        changed = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
        assert code(changed) != "ok", at


@pytest.mark.parametrize(
    "text", ["", ".", "..", "a.b", "a.b.c.d", "e30.e30.", "e30.e30.AA==", "e30 .e30.AA", "\n", "A" * 20000]
)
def test_text_that_is_no_jws(text: str) -> None:
    """Refused before anything is decoded."""
    assert code(text) == "statement-malformed"


def test_a_statement_that_is_too_large() -> None:
    """The limit is on the characters, before anything is decoded."""
    text = compact(canonical())
    assert code(text + "A" * (statement.MAX_STATEMENT - len(text) + 1)) == "statement-malformed"


@pytest.mark.parametrize("key", [draw(2048), ec.generate_private_key(ec.SECP384R1())])
def test_other_keys_do_not_sign(key: Any) -> None:
    """RSA is for .pcrsig, and curves are one."""
    with pytest.raises(Malformed) as error:
        statement.sign(signing.about(VALUES), signing.private_pem(key))
    assert error.value.code == "signer-unsuitable"


def test_a_public_key_does_not_sign() -> None:
    """And text that is no key does not, either."""
    for pem in (signing.public_pem(P256), b"nothing", b""):
        with pytest.raises(Malformed) as error:
            statement.sign(signing.about(VALUES), pem)
        assert error.value.code == "signer-unsuitable"


def test_its_time_is_a_time() -> None:
    """A statement that ends before it begins says nothing."""
    with pytest.raises(Malformed):
        signing.about(VALUES, not_after=NOW - timedelta(days=2))
