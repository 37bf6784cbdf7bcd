"""Advertisements (RFC 7515) and the disk's header (RFC 7516), as sections 5, 7 and 8 have them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .curve import Affine, NistCurve, read_point
from .encoding import b64u, compact, thumbprint, unb64u

_IMPLEMENTATIONS: Final = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
_ALGORITHMS: Final = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}
_HASHES: Final = {"ES256": hashes.SHA256(), "ES384": hashes.SHA384(), "ES512": hashes.SHA512()}
_IV_SIZE: Final = 12
_TAG_SIZE: Final = 16


class SigningKey:
    """A key that signs advertisements; *scalar* is for tests only."""

    def __init__(self, curve: NistCurve, scalar: int) -> None:
        self.private = ec.derive_private_key(scalar, _IMPLEMENTATIONS[curve.name])
        self.algorithm = _ALGORITHMS[curve.name]
        more = {"alg": self.algorithm, "key_ops": ["verify"]}
        self.curve, self.public = curve, curve.jwk(curve.multiply(scalar), **more)

    @property
    def thumbprint(self) -> str:
        """The thumbprint that people compare."""
        return thumbprint(self.public)

    def sign(self, message: bytes, *, deterministic: bool = False) -> bytes:
        """Return the JWS signature: r and s, each padded to the field (RFC 7518, 3.4)."""
        algorithm = _HASHES[self.algorithm]
        scheme = ec.ECDSA(algorithm, deterministic_signing=True) if deterministic else ec.ECDSA(algorithm)
        r, s = decode_dss_signature(self.private.sign(message, scheme))
        return self.curve.octets(r) + self.curve.octets(s)


def advertise(
    keys: Sequence[Mapping[str, Any]],
    signers: Sequence[SigningKey],
    *,
    header: Mapping[str, Any] | None = None,
    deterministic: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """Return an advertisement of *keys* by *signers*; *header* changes members of the protected headers."""
    payload = b64u(compact({"keys": [*keys], **more}))
    signatures = []
    for signer in signers:
        protected = {"alg": signer.algorithm, "cty": "jwk-set+json"} | dict(header or {})
        encoded = b64u(compact(protected))
        raw = signer.sign(f"{encoded}.{payload}".encode(), deterministic=deterministic)
        signatures.append({"protected": encoded, "signature": b64u(raw)})
    if len(signatures) == 1:
        return {"payload": payload, **signatures[0]}
    return {"payload": payload, "signatures": signatures}


class BadAdvertisement(ValueError):
    """An advertisement that a client refuses; the text says why."""


def verify_advertisement(jws: object, trusted: Sequence[str] = ()) -> dict[str, Any]:
    """Return the payload of *jws*, signed by each signing key in it, one of them *trusted* (if any is given).

    Raises :class:`BadAdvertisement`.
    """
    try:
        payload, signatures = _parts(jws)
        verifiers = [key for key in payload["keys"] if "verify" in key.get("key_ops", ())]
        signed = {thumbprint(key) for key in verifiers if _signed_by(key, jws, signatures)}
        wanted = {thumbprint(key) for key in verifiers}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadAdvertisement(f"it cannot be read ({error})") from error
    if not wanted:
        raise BadAdvertisement("it has no signing key")
    if signed != wanted:
        raise BadAdvertisement("a signing key in it has not signed it")
    if trusted and not signed & set(trusted):
        raise BadAdvertisement("no trusted key has signed it")
    return payload


def _parts(jws: Any) -> tuple[dict[str, Any], list[Mapping[str, str]]]:
    payload = json.loads(unb64u(jws["payload"]))
    signatures = jws.get("signatures", [jws])
    return payload, list(signatures)


def _signed_by(key: Mapping[str, Any], jws: Any, signatures: Sequence[Mapping[str, str]]) -> bool:
    curve, (x, y) = read_point(key)
    public = ec.EllipticCurvePublicNumbers(x, y, _IMPLEMENTATIONS[curve.name]).public_key()
    for each in signatures:
        header, raw = json.loads(unb64u(each["protected"])), unb64u(each["signature"])
        if header.get("alg") != _ALGORITHMS[curve.name] or header.get("cty") != "jwk-set+json":
            continue
        if len(raw) != 2 * curve.size:
            continue
        r, s = (int.from_bytes(half, "big") for half in (raw[: curve.size], raw[curve.size :]))
        message = f"{each['protected']}.{jws['payload']}".encode()
        try:
            public.verify(encode_dss_signature(r, s), message, ec.ECDSA(_HASHES[header["alg"]]))
        except InvalidSignature:
            continue
        return True
    return False


# --- the disk's header ------------------------------------------------------------------------------------------


def derive_cek(curve: NistCurve, k: Affine) -> bytes:
    """Return the content encryption key that the point K gives: 32 bytes (RFC 7518, 4.6.2; ECDH-ES, A256GCM)."""

    def sized(data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + data

    other = sized(b"A256GCM") + sized(b"") + sized(b"") + (256).to_bytes(4, "big")
    return hashlib.sha256((1).to_bytes(4, "big") + curve.octets(k[0]) + other).digest()


def encrypt_jwe(header: Mapping[str, Any], cek: bytes, plaintext: bytes, iv: bytes) -> str:
    """Return a compact JWE whose protected header is *header*."""
    protected = b64u(compact(header))
    sealed = AESGCM(cek).encrypt(iv, plaintext, protected.encode())
    parts = (iv, sealed[:-_TAG_SIZE], sealed[-_TAG_SIZE:])
    return ".".join([protected, "", *(b64u(part) for part in parts)])


def read_header(jwe: str) -> dict[str, Any]:
    """Return the protected header of a compact JWE.  Raises ValueError."""
    header = json.loads(unb64u(jwe.split(".", 1)[0]))
    if not isinstance(header, dict):
        raise ValueError("the header is no object")  # noqa: TRY004 - the caller catches one kind
    return header


def decrypt_jwe(jwe: str, cek: bytes) -> bytes:
    """Return the plaintext of a compact JWE.  Raises ValueError, or InvalidTag of `cryptography`."""
    protected, encrypted_key, iv, ciphertext, tag = jwe.split(".")
    if encrypted_key:
        raise ValueError("ECDH-ES has no encrypted key")
    return AESGCM(cek).decrypt(unb64u(iv), unb64u(ciphertext) + unb64u(tag), protected.encode())
