"""Private EC keys as JWKs (RFC 7517, RFC 7518), as ``jose jwk gen`` writes them, and ECDSA for JWS.

A private scalar never becomes a Python integer, whose arithmetic takes a time that depends on the value.  It goes
between JWK and OpenSSL as octets inside an ECPrivateKey (RFC 5915)::

    ECPrivateKey ::= SEQUENCE { version INTEGER { 1 }, privateKey OCTET STRING, parameters [0] OBJECT IDENTIFIER }
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from tang_attest.errors import Malformed
from tang_attest.protocol.values.base64url import b64u, unb64u
from tang_attest.protocol.values.points import CURVES, Curve, Point, curve_of, parse_point

#: Object identifiers of RFC 5480, section 2.1.1.1, as complete DER elements.
_OIDS: Final = {
    "P-256": bytes.fromhex("06082a8648ce3d030107"),
    "P-384": bytes.fromhex("06052b81040022"),
    "P-521": bytes.fromhex("06052b81040023"),
}

#: Key that ``jose jwk gen`` makes for an algorithm: the curve and the operations.
_GENERATED: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "ES256": ("P-256", ("sign", "verify")),
    "ES384": ("P-384", ("sign", "verify")),
    "ES512": ("P-521", ("sign", "verify")),
    "ECMR": ("P-521", ("deriveKey",)),
}

#: The JWS algorithm of a curve (RFC 7518, section 3.4).
_SIGNATURES: Final[Mapping[str, tuple[str, hashes.HashAlgorithm]]] = {
    "P-256": ("ES256", hashes.SHA256()),
    "P-384": ("ES384", hashes.SHA384()),
    "P-521": ("ES512", hashes.SHA512()),
}


class EcSigner:
    """A private key that signs advertisements
    (:class:`tang_attest.protocol.values.advertisement.AdvertisementSigner`).
    """

    __slots__ = ("_hash", "_private", "_size", "algorithm")

    def __init__(self, private: ec.EllipticCurvePrivateKey) -> None:
        curve = curve_of(private.curve)
        self._private, self._size = private, curve.size
        self.algorithm, self._hash = _SIGNATURES[curve.name]

    def __repr__(self) -> str:
        return f"EcSigner({self.algorithm})"

    def sign(self, message: bytes) -> bytes:
        """Return the JWS signature over *message*: r and s, each padded to the field (RFC 7518, section 3.4)."""
        r, s = decode_dss_signature(self._private.sign(message, ec.ECDSA(self._hash)))
        return r.to_bytes(self._size, "big") + s.to_bytes(self._size, "big")


def generate(alg: str) -> dict[str, Any]:
    """Create a private key for *alg* (``ES256``, ``ES384``, ``ES512`` or ``ECMR``, which means P-521)."""
    curve = CURVES[_GENERATED[alg][0]]
    return dump_private(ec.generate_private_key(curve.implementation), alg)


def dump_private(private: ec.EllipticCurvePrivateKey, alg: str) -> dict[str, Any]:
    """Return *private* as the JWK that ``jose jwk gen`` would write for *alg*."""
    curve = curve_of(private.curve)
    numbers = private.public_key().public_numbers()
    return {
        "alg": alg,
        "d": b64u(_scalar(private).rjust(curve.size, b"\0")),
        "key_ops": list(_GENERATED[alg][1]),
        **Point(curve, numbers.x, numbers.y).members(),
    }


def load_private(jwk: Mapping[str, Any]) -> ec.EllipticCurvePrivateKey:
    """Return the private key in *jwk*, whose public half is the one that *jwk* names.

    Raises ``key-malformed`` for an unknown key type or curve, a member that is missing or cannot be read,
    and for a ``d`` that belongs to another point.  Not checked: ``alg``, ``use`` and ``key_ops``.
    """
    if jwk.get("kty") != "EC":
        raise Malformed("key-malformed", "The key is not an EC key.")
    try:
        point = parse_point(jwk)
    except Malformed as error:
        raise Malformed("key-malformed", error.sentence) from None
    private = _from_scalar(point.curve, _octets(jwk.get("d"), point.curve.size))
    if private.public_key() != point.public_key():
        raise Malformed("key-malformed", "The private part d belongs to another public key than x and y.")
    return private


def _octets(text: object, size: int) -> bytes:
    """Return the scalar's octets, padded to the field; like a coordinate it may come shorter, but not longer."""
    if not isinstance(text, str) or not text:
        raise Malformed("key-malformed", "The key has no private part d.")
    try:
        octets = unb64u(text)
    except ValueError:
        octets = bytes(size + 1)
    if len(octets) > size:
        raise Malformed("key-malformed", f"The private part d is not base64url of at most {size} bytes.")
    return octets.rjust(size, b"\0")


def _from_scalar(curve: Curve, scalar: bytes) -> ec.EllipticCurvePrivateKey:
    # Without the public key inside, OpenSSL computes it from the scalar, so that it can be compared.
    body = b"\x02\x01\x01" + _der(0x04, scalar) + _der(0xA0, _OIDS[curve.name])
    try:
        private = serialization.load_der_private_key(_der(0x30, body), None)
    except (ValueError, UnsupportedAlgorithm):
        raise Malformed("key-malformed", f"The private part d is not in the range of {curve.name}.") from None
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise TypeError("OpenSSL read something other than an ECPrivateKey")
    return private


def _scalar(private: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the private key octets of the ECPrivateKey that OpenSSL writes."""
    der = private.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    # The sequence is shorter than 256 bytes for every curve here.
    content = der[3:] if der[1] == 0x81 else der[2:]
    if content[:4] != b"\x02\x01\x01\x04":
        raise RuntimeError("OpenSSL wrote something other than an ECPrivateKey")
    return content[5 : 5 + content[4]]


def _der(tag: int, content: bytes) -> bytes:
    """Return a DER element; none here reaches 128 bytes, where the length would take another form."""
    return bytes([tag, len(content)]) + content
