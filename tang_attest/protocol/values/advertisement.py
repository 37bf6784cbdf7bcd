"""Advertisements: a set of public keys, signed by the server's signing keys, as Tang does it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from tang_attest.protocol.values.base64url import b64u

_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), sort_keys=True)

#: The members that make a thumbprint, in the order of RFC 7638, section 3.2 (lexicographic).
_THUMBPRINT_MEMBERS: Final = ("crv", "kty", "x", "y")

#: Tang and clevis name thumbprints by these; S256 is the default everywhere, the rest is looked up only.
THUMBPRINT_HASHES: Final[Mapping[str, str]] = {
    "S1": "sha1",
    "S224": "sha224",
    "S256": "sha256",
    "S384": "sha384",
    "S512": "sha512",
}


class AdvertisementSigner(Protocol):
    """A key that signs advertisements."""

    @property
    def algorithm(self) -> str:
        """The JWS algorithm: ES256, ES384 or ES512."""

    def sign(self, message: bytes) -> bytes:
        """The JWS signature over *message*: r and s, each padded to the field (RFC 7518, section 3.4)."""


def thumbprint(jwk: Mapping[str, Any], algorithm: str = "S256") -> str:
    """The RFC 7638 thumbprint of an EC key, b64u.  *algorithm* is a key of :data:`THUMBPRINT_HASHES`."""
    members = {name: jwk[name] for name in _THUMBPRINT_MEMBERS}
    digest = hashlib.new(THUMBPRINT_HASHES[algorithm], compact(members), usedforsecurity=False).digest()
    return b64u(digest)


def compact(value: object) -> bytes:
    """Compact JSON with sorted members."""
    return _ENCODER.encode(value).encode()


def advertise(
    keys: Sequence[Mapping[str, Any]],
    signers: Sequence[AdvertisementSigner],
    more: Mapping[str, object] | None = None,
) -> bytes:
    """A JWS over ``{"keys": [...]}`` in JSON serialization (RFC 7515, section 7.2).

    *keys* are public JWKs as they are to be seen, *more* further members beside them.  One signer gives the
    flattened form, several the general one, each with the protected header ``{"alg": ..., "cty":
    "jwk-set+json"}``.
    """
    if not signers:
        raise ValueError("an advertisement needs a signer")
    payload = b64u(compact({"keys": list(keys), **(more or {})}))
    signatures = [_sign(payload, signer) for signer in signers]
    if len(signatures) == 1:
        return compact({"payload": payload, **signatures[0]})
    return compact({"payload": payload, "signatures": signatures})


def _sign(payload: str, signer: AdvertisementSigner) -> dict[str, str]:
    protected = b64u(compact({"alg": signer.algorithm, "cty": "jwk-set+json"}))
    return {"protected": protected, "signature": b64u(signer.sign(f"{protected}.{payload}".encode()))}
