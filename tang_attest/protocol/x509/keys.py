"""Public keys and signatures of X.509 certificates, and which are good enough (RFC 3279, RFC 5480).

Rules of this module:

* Algorithms outside the tables here are refused; nothing is looked up by a name that a certificate supplies.
* A key is the same key whatever its encoding, so what leaves this module are numbers.
"""

from __future__ import annotations

from typing import Any, Final

from asn1crypto import keys
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from tang_attest.errors import Malformed, Refused
from tang_attest.protocol.x509.loose import READING_ERRORS, Certificate

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

RSA_BITS: Final = range(2048, 8192 + 1)
"""Below is breakable; above, a client's certificate costs too much to check. Vendors use up to 4096."""

# id-RSAES-OAEP names the same key as rsaEncryption: EK Credential Profile 2.0 allows both, and cryptography
# reads only the second.
_RSA_KEYS: Final = {"1.2.840.113549.1.1.1", "1.2.840.113549.1.1.7"}
_EC_KEY: Final = "1.2.840.10045.2.1"
_CURVES: Final[dict[str, ec.EllipticCurve]] = {
    "1.2.840.10045.3.1.7": ec.SECP256R1(),
    "1.3.132.0.34": ec.SECP384R1(),
    "1.3.132.0.35": ec.SECP521R1(),
}
_RSA_SIGNATURES: Final[dict[str, hashes.HashAlgorithm]] = {
    "1.2.840.113549.1.1.11": hashes.SHA256(),
    "1.2.840.113549.1.1.12": hashes.SHA384(),
    "1.2.840.113549.1.1.13": hashes.SHA512(),
}
_ECDSA_SIGNATURES: Final[dict[str, hashes.HashAlgorithm]] = {
    "1.2.840.10045.4.3.2": hashes.SHA256(),
    "1.2.840.10045.4.3.3": hashes.SHA384(),
    "1.2.840.10045.4.3.4": hashes.SHA512(),
}
_WEAK_SIGNATURES: Final = {
    "1.2.840.113549.1.1.2": "MD2",
    "1.2.840.113549.1.1.4": "MD5",
    "1.2.840.113549.1.1.5": "SHA-1",
    "1.3.14.3.2.29": "SHA-1",
    "1.2.840.10045.4.1": "SHA-1",
}


def public_key(spki: bytes) -> PublicKey:
    """The key in *spki*, a DER SubjectPublicKeyInfo (RFC 5280, section 4.1.2.7).

    Raises Malformed("ek-malformed") if it cannot be read or is not on its curve, and
    Refused("ek-unsupported") unless it is RSA of 2048 to 8192 bits or on P-256, P-384 or P-521 by name.
    """
    try:
        info = keys.PublicKeyInfo.load(spki, strict=True)
        algorithm = info["algorithm"]["algorithm"].dotted
        bits = bytes(info["public_key"])
        if algorithm in _RSA_KEYS:
            key: PublicKey = _rsa_key(bits)
        elif algorithm == _EC_KEY:
            key = _ec_key(info, bits)
        else:
            raise Refused("ek-unsupported", f"Keys of the algorithm {algorithm} are not supported.")
    except READING_ERRORS as error:
        raise Malformed("ek-malformed", "A public key cannot be read.") from error
    if isinstance(key, rsa.RSAPublicKey) and key.key_size not in RSA_BITS:
        raise Refused("ek-unsupported", f"RSA keys need 2048 to 8192 bits, this one has {key.key_size}.")
    return key


def verify_signature(certificate: Certificate, issuer: Certificate) -> None:
    """Check that *issuer*'s key signed *certificate*, over the bytes as they came.

    Raises Refused("ek-unsupported") for SHA-1, MD5 and every algorithm but RSA PKCS#1 v1.5 and ECDSA with
    SHA-256, 384 or 512, Refused("ek-untrusted") if the signature does not hold, Malformed if the issuer's key
    cannot be read.

    NOT checked: that the issuer may sign certificates, names, dates.
    """
    oid = certificate.signature_oid
    if oid in _WEAK_SIGNATURES:
        weak = f"{certificate.who} is signed with {_WEAK_SIGNATURES[oid]}, which can be forged."
        raise Refused("ek-unsupported", weak)
    if oid not in _RSA_SIGNATURES and oid not in _ECDSA_SIGNATURES:
        raise Refused("ek-unsupported", f"{certificate.who} is signed with {oid}, which is not supported.")
    if not _holds(certificate, public_key(issuer.spki)):
        sentence = f"{certificate.who} is not signed by the key of '{issuer.subject}'."
        raise Refused("ek-untrusted", sentence)


def _holds(certificate: Certificate, key: PublicKey) -> bool:
    oid = certificate.signature_oid
    try:
        if isinstance(key, rsa.RSAPublicKey) and oid in _RSA_SIGNATURES:
            key.verify(certificate.signature, certificate.tbs, padding.PKCS1v15(), _RSA_SIGNATURES[oid])
        elif isinstance(key, ec.EllipticCurvePublicKey) and oid in _ECDSA_SIGNATURES:
            key.verify(certificate.signature, certificate.tbs, ec.ECDSA(_ECDSA_SIGNATURES[oid]))
        else:  # an RSA signature and an EC issuer, or the other way round
            return False
    except InvalidSignature:
        return False
    return True


def _rsa_key(bits: bytes) -> rsa.RSAPublicKey:
    numbers = keys.RSAPublicKey.load(bits, strict=True)
    modulus, exponent = numbers["modulus"].native, numbers["public_exponent"].native
    return rsa.RSAPublicNumbers(exponent, modulus).public_key()


def _ec_key(info: Any, bits: bytes) -> ec.EllipticCurvePublicKey:
    # Curve parameters that are spelled out could name a curve with a generator of the sender's choice
    # (CVE-2020-0601)
    parameters = info["algorithm"]["parameters"]
    curve = parameters.chosen.dotted if parameters.name == "named" else "spelled-out parameters"
    if curve not in _CURVES:
        raise Refused("ek-unsupported", f"EC keys need P-256, P-384 or P-521 by name, this one has {curve}.")
    return ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[curve], bits)
