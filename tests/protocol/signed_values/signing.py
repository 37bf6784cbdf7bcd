"""Signers of tests: their keys, the ``.pcrsig`` of an image as systemd makes it, and statements of a pipeline."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tang_attest.protocol.signed_values import statement
from tang_attest.protocol.signed_values.signer import Signer
from tang_attest.protocol.signed_values.statement import ValueStatement
from tests.keys.rsa_keys import draw

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def public_pem(key: PrivateKey) -> bytes:
    """The public key of *key*."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def public_der(key: PrivateKey) -> bytes:
    """The public key of *key*."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def private_pem(key: PrivateKey) -> bytes:
    """*key* without a password."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def b64(data: bytes) -> str:
    """*data* in base64, as systemd writes a signature."""
    return base64.b64encode(data).decode()


def entry(key: rsa.RSAPrivateKey, value: bytes, ref: str | None = None, **changes: Any) -> dict[str, Any]:
    """An entry of a ``.pcrsig`` for *value* of PCR 11, made from the specification alone."""
    pol = hashlib.sha256(
        bytes(32)
        + bytes.fromhex("0000017f")
        + bytes.fromhex("00000001000b03000800")
        + hashlib.sha256(value).digest()
    ).digest()
    pkcs1 = key.public_key().public_bytes(Encoding.DER, PublicFormat.PKCS1)
    signed = pol + (b"" if ref is None else hashlib.sha256(ref.encode()).digest())
    made = {
        "pcrs": [11],
        "pkfp": hashlib.sha256(pkcs1).hexdigest(),
        "pol": pol.hex(),
        "sig": b64(key.sign(signed, padding.PKCS1v15(), hashes.SHA256())),
    }
    return made | ({} if ref is None else {"ref": ref}) | changes


def pcrsig(key: rsa.RSAPrivateKey, *values: bytes) -> dict[str, Any]:
    """A ``.pcrsig`` with an entry for each of *values*."""
    return {"sha256": [entry(key, value) for value in values]}


def vendor(name: str = "vendor", **fields: Any) -> tuple[Signer, rsa.RSAPrivateKey]:
    """A signer of images, and its key."""
    key = draw(2048)
    return signer(name, key, **({"pcrs": (11,)} | fields)), key


def pipeline(name: str = "pipeline", **fields: Any) -> tuple[Signer, ec.EllipticCurvePrivateKey]:
    """A signer of statements, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    return signer(name, key, **({"pcrs": (4, 9)} | fields)), key


def signer(name: str, key: PrivateKey, **fields: Any) -> Signer:
    """A signer with *key*."""
    return Signer(name=name, key=public_der(key), added_at=NOW, added_by="operator:tester", **fields)


def about(values: Mapping[int, bytes], **changes: Any) -> ValueStatement:
    """A statement about *values* that counts now, for the policy ``p``."""
    fields: dict[str, Any] = {
        "policies": ("p",),
        "bank": "sha256",
        "values": dict(values),
        "label": "web/1",
        "version": 1,
        "not_before": NOW - timedelta(days=1),
        "not_after": NOW + timedelta(days=1),
    }
    return ValueStatement(**(fields | changes))


def signed(key: PrivateKey, values: Mapping[int, bytes], **changes: Any) -> str:
    """A signed statement about *values*; *changes* are fields of :class:`ValueStatement`."""
    return statement.sign(about(values, **changes), private_pem(key))
