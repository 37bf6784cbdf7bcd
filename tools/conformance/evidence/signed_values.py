"""Signed reference values (section 3.8): entries of a ``.pcrsig``, and statements, made from the document alone."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ..primitives.encoding import b64u, compact

StatementKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

TYP: Final = "tang-attest-values.v1"
#: TPM2_PolicyPCR over PCR 11 of the bank sha256, before the digest of its value.
_POLICY_PCR_11: Final = bytes.fromhex("0000017f00000001000b03000800")
_COORDINATE: Final = 32


def policy_digest(value: bytes) -> bytes:
    """Return ``pol`` for PCR 11 with *value*."""
    return hashlib.sha256(bytes(32) + _POLICY_PCR_11 + hashlib.sha256(value).digest()).digest()


def entry(key: rsa.RSAPrivateKey, value: bytes, ref: str | None = None) -> dict[str, Any]:
    """Return the entry of a ``.pcrsig`` by which *key* vouches for *value* of PCR 11."""
    pol = policy_digest(value)
    signed = pol if ref is None else pol + hashlib.sha256(ref.encode()).digest()
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.PKCS1)
    made = {
        "pcrs": [11],
        "pkfp": hashlib.sha256(public).hexdigest(),
        "pol": pol.hex(),
        "sig": base64.b64encode(key.sign(signed, padding.PKCS1v15(), hashes.SHA256())).decode(),
    }
    return made if ref is None else made | {"ref": ref}


def header(key: StatementKey) -> dict[str, Any]:
    """Return the protected header of a statement by *key*."""
    alg = "ES256" if isinstance(key, ec.EllipticCurvePrivateKey) else "EdDSA"
    kid = b64u(hashlib.sha256(compact(_public_jwk(key))).digest())
    return {"alg": alg, "kid": kid, "typ": TYP}


def _public_jwk(key: StatementKey) -> dict[str, str]:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        numbers = key.public_key().public_numbers()
        x, y = (b64u(number.to_bytes(_COORDINATE, "big")) for number in (numbers.x, numbers.y))
        return {"crv": "P-256", "kty": "EC", "x": x, "y": y}
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return {"crv": "Ed25519", "kty": "OKP", "x": b64u(raw)}


def statement(
    key: StatementKey, payload: Mapping[str, Any] | bytes, head: Mapping[str, Any] | bytes | None = None
) -> str:
    """Return *payload* signed by *key*, the same text each time; bytes are signed as they are."""
    head = header(key) if head is None else head
    parts = [b64u(part if isinstance(part, bytes) else compact(part)) for part in (head, payload)]
    return ".".join([*parts, b64u(_sign(key, ".".join(parts).encode()))])


def _sign(key: StatementKey, message: bytes) -> bytes:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(message)
    scheme = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    r, s = decode_dss_signature(key.sign(message, scheme))
    return r.to_bytes(_COORDINATE, "big") + s.to_bytes(_COORDINATE, "big")
