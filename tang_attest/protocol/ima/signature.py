"""Signatures in security.ima, version 2: who signed a file's digest.

Linux has it in security/integrity/integrity.h (``signature_v2_hdr``), big-endian:

type u8 (3), version u8 (2), hash u8 (include/uapi/linux/hash_info.h), key id [4], size u16, signature [size]

RSA is PKCS #1 v1.5, ECDSA is DER; signed is the file's digest itself.  The key id is the end of the
certificate's subject key identifier.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from tang_attest.errors import Malformed
from tang_attest.protocol.x509.keys import RSA_BITS, PublicKey

_HEADER: Final = 9
_KEY_ID: Final = 4
_HASHES: Final[dict[int, tuple[str, hashes.HashAlgorithm]]] = {
    4: ("sha256", hashes.SHA256()),
    5: ("sha384", hashes.SHA384()),
    6: ("sha512", hashes.SHA512()),
}
MAX_SIGNERS: Final = 64


@dataclass(frozen=True, slots=True)
class ImaSigner:
    """A certificate's key, and the key ids that signatures name it by."""

    key: PublicKey
    key_ids: frozenset[bytes]


def read_signers(pem: str) -> tuple[ImaSigner, ...]:
    """The keys of the certificates in *pem*.

    Raises :class:`Malformed` ``certificate-malformed`` unless there are 1 to 64, each with an RSA key of 2048
    to 8192 bits or an ECDSA key.  NOT checked: issuers, dates and uses, which Linux does not look at in a
    loaded key either.
    """
    try:
        certificates = x509.load_pem_x509_certificates(pem.encode())
        signers = tuple(_signer(certificate) for certificate in certificates)
    except (ValueError, UnsupportedAlgorithm):
        raise Malformed("certificate-malformed", "A certificate of signers cannot be read.") from None
    if len(signers) > MAX_SIGNERS:
        raise Malformed("certificate-malformed", f"There are more than {MAX_SIGNERS} signers.")
    return signers


def _signer(certificate: x509.Certificate) -> ImaSigner:
    key = certificate.public_key()
    good = isinstance(key, ec.EllipticCurvePublicKey) or (
        isinstance(key, rsa.RSAPublicKey) and key.key_size in RSA_BITS
    )
    if not good:
        raise Malformed(
            "certificate-malformed", "A signer's key is neither RSA of 2048 bits and more nor ECDSA."
        )
    # Older evmctl names every key by the SHA-1 of it, whatever its certificate says.
    ids = {x509.SubjectKeyIdentifier.from_public_key(key).digest}
    with suppress(x509.ExtensionNotFound):
        ids.add(certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest)
    return ImaSigner(key, frozenset(key_id[-_KEY_ID:] for key_id in ids))  # type: ignore[arg-type]


def is_signed(extra: bytes, hash_name: str, digest: bytes, signers: tuple[ImaSigner, ...]) -> bool:
    """Return True if *extra* is a signature of *digest*, made with *hash_name*, by one of *signers*."""
    if len(extra) <= _HEADER or extra[:2] != b"\x03\x02" or extra[2] not in _HASHES:
        return False
    name, algorithm = _HASHES[extra[2]]
    signature = extra[_HEADER:]
    if name != hash_name or int.from_bytes(extra[7:_HEADER], "big") != len(signature):
        return False
    key_id = extra[3:7]
    return any(
        _holds(signer.key, signature, digest, algorithm) for signer in signers if key_id in signer.key_ids
    )


def _holds(key: PublicKey, signature: bytes, digest: bytes, algorithm: hashes.HashAlgorithm) -> bool:
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, digest, padding.PKCS1v15(), Prehashed(algorithm))
        else:
            key.verify(signature, digest, ec.ECDSA(Prehashed(algorithm)))
    except InvalidSignature:
        return False
    return True
