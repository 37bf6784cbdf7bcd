"""Public keys of signers: which are good enough, and which form of statement each signs.

One kind of key signs one form: RSA signs ``.pcrsig``, P-256 and Ed25519 sign statements.  A signature of one form
can therefore never be taken for one of the other, although both may be made with keys of one pipeline.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from functools import lru_cache
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)

from tang_attest.errors import Malformed

#: Bytes of a file with a public key.
MAX_KEY: Final = 16 * 1024
RSA_BITS: Final = range(2048, 4096 + 1)
_EXPONENT: Final = 65537

SignerKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


class StatementForm(StrEnum):
    """Form of a signer's statements: systemd's signatures of PCR policies, or signed value files."""

    PCRSIG = "pcrsig"
    STATEMENT = "statement"


def read_key(pem: bytes) -> bytes:
    """Return the public key in *pem* (SubjectPublicKeyInfo) as DER.

    Raises ``signer-unsuitable`` for anything but RSA of 2048 to 4096 bits with exponent 65537, P-256 and
    Ed25519, for several keys, and for a private key: a server has no use for one.
    """
    if len(pem) > MAX_KEY:
        raise _unsuitable(f"The file has more than {MAX_KEY} bytes")
    if b"PRIVATE KEY" in pem:
        raise _unsuitable("This is a private key; the server takes the public one alone")
    if b"-----BEGIN CERTIFICATE-----" in pem:
        raise _unsuitable(
            "This is a certificate; 'openssl x509 -noout -pubkey' takes the public key out of it"
        )
    if pem.count(b"-----BEGIN ") > 1:
        raise _unsuitable("The file has several keys; a signer has one")
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise _unsuitable("The file has no public key in PEM") from None
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    load_key(der)
    return der


@lru_cache(maxsize=128)
def load_key(der: bytes) -> SignerKey:
    """Return the key in *der* (SubjectPublicKeyInfo).  Raises ``signer-unsuitable`` as :func:`read_key`."""
    try:
        key = load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm):
        raise _unsuitable("This is no public key") from None
    match key:
        case rsa.RSAPublicKey():
            if key.key_size not in RSA_BITS or key.public_numbers().e != _EXPONENT:
                raise _unsuitable("An RSA key has 2048 to 4096 bits and the exponent 65537")
            return key
        case ec.EllipticCurvePublicKey():
            if key.curve.name != "secp256r1":
                raise _unsuitable(f"An EC key is on P-256, not on {key.curve.name}")
            return key
        case ed25519.Ed25519PublicKey():
            return key
    raise _unsuitable("A signer's key is RSA, P-256 or Ed25519")


#: The sentence about a key that signs the other form.
STATEMENTS_ONLY: Final = "Statements are signed with a key on P-256 or Ed25519; RSA keys sign .pcrsig, with ukify or systemd-measure."


def form_of(key: SignerKey) -> StatementForm:
    """Return the form of the statements that *key* signs."""
    return StatementForm.PCRSIG if isinstance(key, rsa.RSAPublicKey) else StatementForm.STATEMENT


def key_id(der: bytes) -> str:
    """Return the SHA-256 of *der* in hex: the name of a key, whatever form it signs."""
    return hashlib.sha256(der).hexdigest()


def _unsuitable(sentence: str) -> Malformed:
    return Malformed("signer-unsuitable", f"{sentence}.")
