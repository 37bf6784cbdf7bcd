"""TPMT_SIGNATURE: made by an AK, deterministic where vectors want it, and verified."""

from __future__ import annotations

import hashlib
import struct
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from .structures import NAMES, PublicKey, Reader, algorithm, sized

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

_HASHES: Final = {
    "sha1": hashes.SHA1(),  # noqa: S303 - the kit signs with it to see it refused
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}


def sign(key: PrivateKey, scheme: str, message: bytes, *, claim: str = "", fixed: bool = False) -> bytes:
    """Return a TPMT_SIGNATURE by *scheme* (``ecdsa-sha256``); *claim* is the scheme that it names instead.

    *fixed*: the same signature each time (RFC 6979; a salt of the message's digest).
    """
    name, _, hash_name = scheme.partition("-")
    said, _, said_hash = (claim or scheme).partition("-")
    digest = _HASHES[hash_name]
    if isinstance(key, ec.EllipticCurvePrivateKey):
        ecdsa = ec.ECDSA(digest, deterministic_signing=True) if fixed else ec.ECDSA(digest)
        r, s = decode_dss_signature(key.sign(message, ecdsa))
        numbers = [sized(number.to_bytes((number.bit_length() + 7) // 8, "big")) for number in (r, s)]
        raw, body = numbers[0][2:] + numbers[1][2:], b"".join(numbers)
    else:
        if name == "rsapss" and fixed:
            raw = _fixed_pss(key, hash_name, message)
        else:
            pss = padding.PSS(padding.MGF1(digest), digest.digest_size)
            raw = key.sign(message, pss if name == "rsapss" else padding.PKCS1v15(), digest)
        body = sized(raw)
    if said != "ecdsa" and name == "ecdsa":
        body = sized(raw)
    elif said == "null":
        return algorithm("null")
    return algorithm(said) + algorithm(said_hash) + body


def _fixed_pss(key: rsa.RSAPrivateKey, hash_name: str, message: bytes) -> bytes:
    """Return an RSASSA-PSS signature whose salt is a digest of the message (RFC 8017, 9.1.1): for vectors only."""
    digest, bits = hashlib.new(hash_name, message).digest(), key.key_size - 1
    length = (bits + 7) // 8
    salt = hashlib.new(hash_name, b"salt" + message).digest()
    inner = hashlib.new(hash_name, bytes(8) + digest + salt).digest()
    block = bytes(length - len(salt) - len(inner) - 2) + b"\1" + salt
    masked = bytearray(a ^ b for a, b in zip(block, mgf1(hash_name, inner, len(block)), strict=True))
    masked[0] &= 0xFF >> (8 * length - bits)
    encoded = int.from_bytes(bytes(masked) + inner + b"\xbc", "big")
    numbers = key.private_numbers()
    return pow(encoded, numbers.d, numbers.public_numbers.n).to_bytes(key.key_size // 8, "big")


def mgf1(hash_name: str, seed: bytes, length: int) -> bytes:
    """Return the mask of RFC 8017, B.2.1."""
    mask, counter = b"", 0
    while len(mask) < length:
        mask += hashlib.new(hash_name, seed + struct.pack(">I", counter)).digest()
        counter += 1
    return mask[:length]


def verify(key: PublicKey, scheme: str, message: bytes, signature: bytes) -> None:
    """Raise ValueError unless *signature* is that of *key* under its own *scheme* over *message*."""
    reader = Reader(signature)
    said = f"{NAMES.get(reader.number(2), '?')}-{NAMES.get(reader.number(2), '?')}"
    if said != scheme:
        raise ValueError(f"the signature says {said}, and the AK signs by {scheme}")
    digest = _HASHES[scheme.partition("-")[2]]
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            r, s = (int.from_bytes(reader.sized(), "big") for _ in "rs")
            key.verify(encode_dss_signature(r, s), message, ec.ECDSA(digest))
        else:
            pss = padding.PSS(padding.MGF1(digest), padding.PSS.AUTO)
            key.verify(
                reader.sized(), message, pss if scheme.startswith("rsapss") else padding.PKCS1v15(), digest
            )
    except InvalidSignature:
        raise ValueError("the signature is not the AK's") from None
    reader.end()
