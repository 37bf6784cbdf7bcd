"""A passkey in Python: makes credentials and assertions as an authenticator and a browser do (WebAuthn Level 2)."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import cbor2
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256

from tang_attest.protocol.values.base64url import b64u, unb64u

ORIGIN = "https://console.test"
RP_ID = "console.test"
_UP, _UV, _AT = 0x01, 0x04, 0x40


@dataclass
class Passkey:
    """One authenticator with one credential; every field may be changed to misbehave."""

    algorithm: str = "ES256"
    _: KW_ONLY
    origin: str = ORIGIN
    rp_id: str = RP_ID
    verified: bool = True
    present: bool = True
    sign_count: int = 0
    counts: bool = False
    credential_id: bytes = field(default_factory=lambda: os.urandom(16))
    handle: bytes | None = None

    def __post_init__(self) -> None:
        self.key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey = (
            ec.generate_private_key(ec.SECP256R1())
            if self.algorithm == "ES256"
            else Ed25519PrivateKey.generate()
        )

    @property
    def cose(self) -> bytes:
        """The public key as a COSE_Key."""
        if isinstance(self.key, Ed25519PrivateKey):
            return cbor2.dumps({1: 1, 3: -8, -1: 6, -2: self.key.public_key().public_bytes_raw()})
        numbers = self.key.public_key().public_numbers()
        return cbor2.dumps({1: 2, 3: -7, -1: 1, -2: numbers.x.to_bytes(32), -3: numbers.y.to_bytes(32)})

    def create(self, options: Any, **changes: Any) -> dict[str, Any]:
        """Answer ``navigator.credentials.create``; *changes* replace members of the client data."""
        self.handle = unb64u(options["user"]["id"])
        client = self._client("webauthn.create", options["challenge"], changes)
        attested = bytes(16) + len(self.credential_id).to_bytes(2) + self.credential_id + self.cose
        data = self._data(_AT) + attested
        attestation = cbor2.dumps({"fmt": "none", "attStmt": {}, "authData": data})
        return self._credential(
            {"clientDataJSON": b64u(client), "attestationObject": b64u(attestation), "transports": []}
        )

    def get(self, options: Any, **changes: Any) -> dict[str, Any]:
        """Answer ``navigator.credentials.get``; *changes* replace members of the client data."""
        if self.counts:
            self.sign_count += 1
        client = self._client("webauthn.get", options["challenge"], changes)
        data = self._data(0)
        message = data + hashlib.sha256(client).digest()
        signature = (
            self.key.sign(message)
            if isinstance(self.key, Ed25519PrivateKey)
            else self.key.sign(message, ec.ECDSA(SHA256()))
        )
        response = {
            "clientDataJSON": b64u(client),
            "authenticatorData": b64u(data),
            "signature": b64u(signature),
        }
        return self._credential(response | ({} if self.handle is None else {"userHandle": b64u(self.handle)}))

    def _client(self, kind: str, challenge: str, changes: dict[str, Any]) -> bytes:
        members = {"type": kind, "challenge": challenge, "origin": self.origin, "crossOrigin": False}
        return json.dumps(members | changes).encode()

    def _data(self, flags: int) -> bytes:
        flags |= (_UP if self.present else 0) | (_UV if self.verified else 0)
        return hashlib.sha256(self.rp_id.encode()).digest() + bytes([flags]) + self.sign_count.to_bytes(4)

    def _credential(self, response: dict[str, Any]) -> dict[str, Any]:
        text = b64u(self.credential_id)
        return {
            "id": text,
            "rawId": text,
            "type": "public-key",
            "clientExtensionResults": {},
            "response": response,
        }
