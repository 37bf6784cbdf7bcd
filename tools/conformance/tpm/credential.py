"""Credential protection (TPM 2.0 part 1, section 24): MakeCredential with a given seed, and ActivateCredential."""

from __future__ import annotations

import hashlib
import hmac
import struct

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from .signing import PrivateKey, mgf1
from .structures import SIZES, PublicArea, PublicKey, Reader, sized

try:  # cryptography 47 and later
    from cryptography.hazmat.decrepit.ciphers.modes import CFB
except ImportError:
    from cryptography.hazmat.primitives.ciphers.modes import CFB  # before

_IDENTITY = b"IDENTITY\0"


def kdfa(hash_name: str, key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """Return *bits* of KDFa (part 1, 11.4.10.2); *label* is without its zero byte."""
    out, counter = b"", 1
    while len(out) * 8 < bits:
        message = struct.pack(">I", counter) + label + b"\0" + context + struct.pack(">I", bits)
        out += hmac.new(key, message, hash_name).digest()
        counter += 1
    return out[: bits // 8]


def kdfe(hash_name: str, z: bytes, label: bytes, party_u: bytes, party_v: bytes, *, bits: int) -> bytes:
    """Return *bits* of KDFe (part 1, 11.4.10.3), of at most one digest; *label* has its zero byte."""
    message = struct.pack(">I", 1) + z + label + party_u + party_v
    return hashlib.new(hash_name, message).digest()[: bits // 8]


def make_credential(
    area: PublicArea,
    ek: PublicKey,
    ak_name: bytes,
    secret: bytes,
    *,
    seed: bytes,
    ephemeral: ec.EllipticCurvePrivateKey | None = None,
) -> tuple[bytes, bytes, bytes]:
    """Return TPM2B_ID_OBJECT, TPM2B_ENCRYPTED_SECRET and the seed inside, for the EK of *area*.

    *seed* has the size of the EK's name algorithm.  For an RSA key it is the seed that is wrapped, and OAEP's own
    is derived from it.  An ECC key takes the seed from *ephemeral*, and *seed* is not used.
    """
    if isinstance(ek, rsa.RSAPublicKey):
        encrypted = _oaep(ek, area.name_hash, seed)
    else:
        assert ephemeral is not None  # noqa: S101 - a caller's mistake
        seed, encrypted = _shared(ephemeral, ek, area.name_hash), _point(ephemeral.public_key())
    return _wrap(area, seed, ak_name, secret), sized(encrypted), seed


def _wrap(area: PublicArea, seed: bytes, ak_name: bytes, secret: bytes) -> bytes:
    cipher = Cipher(algorithms.AES(kdfa(area.name_hash, seed, b"STORAGE", ak_name, area.aes)), CFB(bytes(16)))
    encryptor = cipher.encryptor()
    identity = encryptor.update(sized(secret)) + encryptor.finalize()
    return sized(sized(_integrity(area, seed, identity, ak_name)) + identity)


def _integrity(area: PublicArea, seed: bytes, identity: bytes, ak_name: bytes) -> bytes:
    bits = hashlib.new(area.name_hash).digest_size * 8
    key = kdfa(area.name_hash, seed, b"INTEGRITY", b"", bits)
    return hmac.new(key, identity + ak_name, area.name_hash).digest()


def _oaep(ek: rsa.RSAPublicKey, hash_name: str, message: bytes) -> bytes:
    """Return RSAES-OAEP of *message* (RFC 8017, 7.1.1) with label IDENTITY and a seed derived from the message."""
    numbers, size = ek.public_numbers(), hashlib.new(hash_name).digest_size
    length = (numbers.n.bit_length() + 7) // 8
    label = hashlib.new(hash_name, _IDENTITY).digest()
    block = label + bytes(length - len(message) - 2 * size - 2) + b"\1" + message
    seed = hashlib.new(hash_name, b"oaep" + message).digest()
    masked = bytes(a ^ b for a, b in zip(block, mgf1(hash_name, seed, len(block)), strict=True))
    hidden = bytes(a ^ b for a, b in zip(seed, mgf1(hash_name, masked, size), strict=True))
    return pow(int.from_bytes(b"\0" + hidden + masked, "big"), numbers.e, numbers.n).to_bytes(length, "big")


def _point(key: ec.EllipticCurvePublicKey) -> bytes:
    numbers = key.public_numbers()
    size = SIZES[numbers.curve.name]
    return sized(numbers.x.to_bytes(size, "big")) + sized(numbers.y.to_bytes(size, "big"))


def _x(key: ec.EllipticCurvePublicKey) -> bytes:
    numbers = key.public_numbers()
    return numbers.x.to_bytes(SIZES[numbers.curve.name], "big")


def _shared(ephemeral: ec.EllipticCurvePrivateKey, ek: ec.EllipticCurvePublicKey, hash_name: str) -> bytes:
    z, bits = ephemeral.exchange(ec.ECDH(), ek), hashlib.new(hash_name).digest_size * 8
    return kdfe(hash_name, z, _IDENTITY, _x(ephemeral.public_key()), _x(ek), bits=bits)


def activate(area: PublicArea, ek: PrivateKey, ak_name: bytes, blob: bytes, encrypted_secret: bytes) -> bytes:
    """Return the secret that TPM2_ActivateCredential would recover.  Raises ValueError where a TPM refuses."""
    outer = Reader(encrypted_secret)
    encrypted = outer.sized()
    outer.end()
    if isinstance(ek, rsa.RSAPrivateKey):
        algorithm = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384(), "sha512": hashes.SHA512()}[
            area.name_hash
        ]
        seed = ek.decrypt(encrypted, padding.OAEP(padding.MGF1(algorithm), algorithm, _IDENTITY))
    else:
        seed = _agreed(ek, encrypted, area.name_hash)
    reader = Reader(blob)
    inner = Reader(reader.sized())
    reader.end()
    integrity, identity = inner.sized(), inner.rest
    if not hmac.compare_digest(integrity, _integrity(area, seed, identity, ak_name)):
        raise ValueError("the credential is for another key")
    cipher = Cipher(algorithms.AES(kdfa(area.name_hash, seed, b"STORAGE", ak_name, area.aes)), CFB(bytes(16)))
    decryptor = cipher.decryptor()
    opened = Reader(decryptor.update(identity) + decryptor.finalize())
    secret = opened.sized()
    opened.end()
    return secret


def _agreed(ek: ec.EllipticCurvePrivateKey, encrypted: bytes, hash_name: str) -> bytes:
    reader = Reader(encrypted)
    x, y = (int.from_bytes(reader.sized(), "big") for _ in "xy")
    reader.end()
    other = ec.EllipticCurvePublicNumbers(x, y, ek.curve).public_key()
    z, bits = ek.exchange(ec.ECDH(), other), hashlib.new(hash_name).digest_size * 8
    return kdfe(hash_name, z, _IDENTITY, _x(other), _x(ek.public_key()), bits=bits)
