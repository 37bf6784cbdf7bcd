"""A TPM vendor's PKI for tests: a root, intermediates and EK certificates, good and bad.

Nothing here is secret and nothing is checked in: each run makes new keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache

from asn1crypto import x509 as asn1
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID, ObjectIdentifier

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
FOREVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
EK_CERTIFICATE = ObjectIdentifier("2.23.133.8.1")
PLATFORM_CERTIFICATE = ObjectIdentifier("2.23.133.8.2")
TPM = {"2.23.133.2.1": "id:4E544300", "2.23.133.2.2": "NPCT75x", "2.23.133.2.3": "id:00070002"}


@dataclass(frozen=True)
class Issued:
    """A certificate and the key it is for."""

    certificate: x509.Certificate
    key: Key

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def spki(self) -> bytes:
        return spki(self.key)


def ec_key(curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve or ec.SECP256R1())


@cache
def rsa_key(label: str = "", bits: int = 2048) -> rsa.RSAPrivateKey:
    """One key for each *label*: making them is slow."""
    del label
    return rsa.generate_private_key(65537, bits)


def spki(key: Key) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def name(common: str) -> x509.Name:
    """One RDN with three values, as Nuvoton writes it."""
    attributes = [(NameOID.COMMON_NAME, common), (NameOID.ORGANIZATION_NAME, "TPM Works")]
    return x509.Name([x509.RelativeDistinguishedName([x509.NameAttribute(*a) for a in attributes])])


def tpm_name() -> x509.DirectoryName:
    attributes = [x509.NameAttribute(ObjectIdentifier(oid), text) for oid, text in TPM.items()]
    return x509.DirectoryName(x509.Name([x509.RelativeDistinguishedName(attributes)]))


def issue(
    subject: x509.Name,
    issuer: Issued | None,
    *extensions: tuple[x509.ExtensionType, bool],
    key: Key | None = None,
    not_before: datetime = NOW - timedelta(days=365),
    not_after: datetime = FOREVER,
    key_ids: bool = True,
) -> Issued:
    """A certificate for *key* (a new P-256 one), signed by *issuer* or, without one, by itself."""
    key = key or ec_key()
    signer = issuer.key if issuer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(0x11223344)
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )
    if key_ids:
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        builder = builder.add_extension(authority, critical=False)
        own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = builder.add_extension(own, critical=False)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return Issued(builder.sign(signer, hashes.SHA256()), key)


def ca(
    common: str,
    issuer: Issued | None = None,
    *more: tuple[x509.ExtensionType, bool],
    path_length: int | None = None,
    cert_sign: bool = True,
    is_ca: bool = True,
    key: Key | None = None,
    not_before: datetime = NOW - timedelta(days=365),
    not_after: datetime = FOREVER,
    key_ids: bool = True,
) -> Issued:
    """A CA certificate; without *issuer*, a root."""
    usage = x509.KeyUsage(not cert_sign, False, False, False, False, cert_sign, False, False, False)
    return issue(
        name(common),
        issuer,
        (x509.BasicConstraints(is_ca, path_length), True),
        (usage, True),
        *more,
        key=key,
        not_before=not_before,
        not_after=not_after,
        key_ids=key_ids,
    )


def ek(
    issuer: Issued,
    *more: tuple[x509.ExtensionType, bool],
    purposes: tuple[ObjectIdentifier, ...] | None = (EK_CERTIFICATE,),
    names: tuple[x509.GeneralName, ...] | None = None,
    key: Key | None = None,
    not_before: datetime = NOW - timedelta(days=30),
    not_after: datetime = FOREVER,
) -> Issued:
    """An EK certificate as the TCG's profile describes it: no subject, a critical SAN, EKU 2.23.133.8.1."""
    extensions = list(more)
    if purposes is not None:
        extensions.append((x509.ExtendedKeyUsage(purposes), False))
    extensions.append((x509.SubjectAlternativeName(names or (tpm_name(),)), True))
    extensions.append((x509.BasicConstraints(False, None), True))
    return issue(
        x509.Name([]), issuer, *extensions, key=key or ec_key(), not_before=not_before, not_after=not_after
    )


def resign(
    der: bytes, key: Key, edit: Callable[[bytes], bytes], algorithm: hashes.HashAlgorithm | None = None
) -> bytes:
    """The certificate *der* with its signed part put through *edit*, signed again with *key*.

    *edit* keeps the length, and is applied to the outer signature algorithm too. It also has to name
    *algorithm* (the hash of the new signature, SHA-256 unless given) in the certificate.
    """
    outer = asn1.Certificate.load(der)
    tbs = edit(outer["tbs_certificate"].dump())
    named = edit(outer["signature_algorithm"].dump())
    chosen = algorithm or hashes.SHA256()
    if isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(tbs, padding.PKCS1v15(), chosen)
    else:
        signature = key.sign(tbs, ec.ECDSA(chosen))
    bits = b"\x00" + signature
    return tlv(0x30, tbs + named + tlv(0x03, bits))


def tlv(tag: int, body: bytes) -> bytes:
    """A DER element with a length of up to 65,535."""
    size = len(body)
    if size < 0x80:
        return bytes((tag, size)) + body
    octets = size.to_bytes(1 if size < 0x100 else 2)
    return bytes((tag, 0x80 + len(octets))) + octets + body


def swap(first: bytes, second: bytes) -> Callable[[bytes], bytes]:
    """An edit that makes every *first* a *second* of the same length."""
    assert len(first) == len(second)
    return lambda data: data.replace(first, second)


def swap_names(data: bytes) -> bytes:
    """An edit that turns round each SET of two values that :func:`name` made, against DER's order."""
    for common in (b"Loose Root", b"Loose EK CA"):
        cn = tlv(0x30, b"\x06\x03\x55\x04\x03" + tlv(0x0C, common))
        o = tlv(0x30, b"\x06\x03\x55\x04\x0a" + tlv(0x0C, b"TPM Works"))
        data = data.replace(cn + o, o + cn) if cn + o in data else data.replace(o + cn, cn + o)
    return data
