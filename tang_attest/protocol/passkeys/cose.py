"""Public keys of passkeys: COSE_Key (RFC 9052, section 7) with ES256 or EdDSA (RFC 9053, sections 2.1 and 2.2)."""

from __future__ import annotations

from typing import Any, Final

import cbor2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256

#: The most bytes of a COSE_Key with one of the two algorithms, and some members more.
MAX_KEY: Final = 512

_KTY, _ALG, _CRV, _X, _Y = 1, 3, -1, -2, -3
_ES256: Final = {_KTY: 2, _ALG: -7, _CRV: 1}
_EDDSA: Final = {_KTY: 1, _ALG: -8, _CRV: 6}
_COORDINATE: Final = 32


def read_key(cose: bytes) -> ec.EllipticCurvePublicKey | Ed25519PublicKey:
    """Return the public key in *cose*.

    Raises :class:`ValueError` for another algorithm, for a point that is not on the curve, and for bytes that
    are no COSE_Key.
    """
    if len(cose) > MAX_KEY:
        raise ValueError("a public key this long is not expected")
    try:
        members: Any = cbor2.loads(cose)
    except Exception as error:  # the decoder raises a dozen classes
        raise ValueError("not CBOR") from error
    if not isinstance(members, dict):
        raise ValueError("not a COSE_Key")  # noqa: TRY004 - the bytes are wrong, not a type of ours
    kind = {name: members.get(name) for name in (_KTY, _ALG, _CRV)}
    x, y = members.get(_X), members.get(_Y)
    if not isinstance(x, bytes) or len(x) != _COORDINATE:
        raise ValueError("the x-coordinate has not 32 bytes")
    if kind == _EDDSA:
        return Ed25519PublicKey.from_public_bytes(x)
    if kind != _ES256 or not isinstance(y, bytes) or len(y) != _COORDINATE:
        raise ValueError("neither ES256 on P-256 nor EdDSA with Ed25519")
    numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x), int.from_bytes(y), ec.SECP256R1())
    return numbers.public_key()


def signed_by(cose: bytes, signature: bytes, message: bytes) -> bool:
    """Return True if *signature* over *message* is of the key *cose*.  Raises :class:`ValueError` as
    :func:`read_key`.
    """
    key = read_key(cose)
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, message)
        else:
            key.verify(signature, message, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True
