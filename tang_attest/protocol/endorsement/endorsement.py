"""Step 1a: is this endorsement key the key of a TPM that its vendor vouches for?

TCG EK Credential Profile for TPM Family 2.0. A device sends what it read from NV index 0x01c00002 (RSA 2048),
0x01c0000a (P-256) or 0x01c00016 (P-384), and the EK's public key; the operator has added the vendors' roots.

Rules of this module:

* Every certificate that the operator adds is a trust anchor: a root, an intermediate or one TPM's own EK certificate
  (OpenSSL calls it partial chain). A certificate that a device sends along is only a step on the way to one.
* A refusal says which certificate is at fault, and which root is missing. Users who are only told "invalid"
  switch the check off (keylime#944, #1027, #1681, #1775).
* A certificate proves nothing about the machine that presents it: certificates are public. That its TPM holds
  the private key is proved by activation (``enrollment``), and only together do they mean "a genuine TPM".
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final

from tang_attest.errors import Malformed, Reason, Refused
from tang_attest.protocol.endorsement.chain import EK_CERTIFICATE, find_chain, standing, weak_key
from tang_attest.protocol.x509.keys import public_key
from tang_attest.protocol.x509.loose import Certificate, read_certificate

MAX_CERTIFICATE: Final = 8 * 1024
"""Bytes. The largest among 45 vendor certificates (keylime's store) has 1,463."""

MAX_INTERMEDIATES: Final = 8
"""Certificates that a device may send along; Intel's on-die CA keeps a few in the chip."""

MAX_ROOTS_FILE: Final = 1024 * 1024
"""Bytes. All of keylime's store in one file has 79 KB."""

_SEQUENCE: Final = 0x30
_OCTET_STRING: Final = 0x04
# TCG_TAG_PCCLIENT_STORED_CERT (PC Client Specific Implementation Specification 1.2, section 7.3.2)
_STORED_CERT: Final = b"\x10\x01"
_FULL_CERT: Final = b"\x00"
_FULL_CERT_TAG: Final = b"\x10\x02"
_PEM: Final = b"-----BEGIN "
_GZIP: Final = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class EndorsementKey:
    """A TPM's endorsement key and who vouches for it.

    ``public_der`` is the DER SubjectPublicKeyInfo as derived from the TPM's public area. ``verified`` is True
    only when :func:`verify_ek_certificate` made this value; then ``certificate`` (DER), ``issuer``
    (distinguished name), ``root`` (label of the trust anchor) and ``root_fingerprint`` (see
    :attr:`Root.fingerprint`) are set, and
    ``subject_hint`` names manufacturer, model and firmware version if the certificate does.
    """

    public_der: bytes
    verified: bool = False
    certificate: bytes | None = None
    issuer: str | None = None
    subject_hint: str | None = None
    _: KW_ONLY
    root: str | None = None
    root_fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class Root:
    """A trust anchor: *der* is one DER X.509 certificate, *label* a name for people."""

    der: bytes
    label: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the DER, 64 lowercase hex digits."""
        return hashlib.sha256(self.der).hexdigest()


def trim_certificate(nv: bytes) -> bytes:
    """The DER certificate in *nv*, the contents of an EK certificate's NV index.

    The index may be larger than the certificate and is then filled with 0xFF or 0x00. Around the certificate
    there may be an OCTET STRING (keylime#1891), the header of a TPM 1.2's stored certificate, PEM, or its
    length in two or four octets of either order. Each is taken off. Raises Malformed("ek-malformed") for
    anything else, among it compressed certificates, other trailing bytes and more than 8 KiB.

    NOT checked: that what is inside the outer SEQUENCE is a certificate.
    """
    if len(nv) > MAX_CERTIFICATE:
        raise _malformed(f"The EK certificate has {len(nv)} bytes, and {MAX_CERTIFICATE} is the limit.")
    try:
        return _element(_unwrapped(nv), _SEQUENCE)[0]
    except _NotDer as error:
        raise _malformed(str(error)) from None


def _unwrapped(nv: bytes) -> bytes:
    """*nv* from its outer SEQUENCE on, without what vendors and tools put around it."""
    if nv[:1] == bytes((_OCTET_STRING,)):
        return _element(nv, _OCTET_STRING)[1]
    if nv.startswith(_STORED_CERT):
        return _stored_certificate(nv)
    if nv.lstrip().startswith(_PEM):
        return _only_pem(nv)
    if nv[:2] == _GZIP:
        raise _NotDer("The EK certificate is compressed (gzip), which is not read.")
    for width in (2, 4):
        rest = nv[width:]
        if rest[:1] == bytes((_SEQUENCE,)) and _is_length(nv[:width], rest):
            return rest
    return nv


def _is_length(octets: bytes, rest: bytes) -> bool:
    """True when *octets* is, in either order, the length of the DER element that begins *rest*."""
    try:
        end = _extent(rest)[1]
    except _NotDer:
        return False
    return end in {int.from_bytes(octets, "big"), int.from_bytes(octets, "little")}


def _stored_certificate(nv: bytes) -> bytes:
    """The certificate after TCG_PCCLIENT_STORED_CERT: tag, type, size, perhaps the tag of TCG_FULL_CERT."""
    kind, size, rest = nv[2:3], int.from_bytes(nv[3:5]), nv[5:]
    certificate = rest[:size].removeprefix(_FULL_CERT_TAG)
    if kind != _FULL_CERT or len(rest) < size or certificate[:1] != bytes((_SEQUENCE,)):
        raise _NotDer("The EK certificate has the TCG_PCCLIENT_STORED_CERT header of a TPM 1.2.")
    return certificate


def _only_pem(nv: bytes) -> bytes:
    """The one certificate of a PEM text that fills *nv* up to its padding."""
    text = nv.rstrip(b"\xff\x00")
    try:
        ders = _pem_certificates(text)
    except Malformed as error:
        raise _NotDer(error.sentence) from None
    if len(ders) != 1:
        raise _NotDer(f"The EK certificate's index holds {len(ders)} certificates as PEM, not one.")
    return ders[0]


class _NotDer(Exception):
    """There is no bare DER element; the text is the sentence."""


def parse_roots(data: bytes) -> tuple[Root, ...]:
    """The trust anchors in a file that the operator adds: PEM with any number of certificates, or one in DER.

    One in DER may be as ``tpm2 nvread`` gives it: :func:`trim_certificate` says what may be around it.

    Each certificate becomes an anchor of its own, an intermediate too, labeled with its subject; text between
    PEM blocks is ignored, repeated certificates count once. Raises Malformed("certificate-malformed") if
    there is no certificate, one of them cannot be read, or the file holds anything else, such as a private
    key.

    NOT checked: dates, signatures, key sizes. An anchor's strength is checked when a chain
    reaches it, as a vendor's bundle may hold old ones among the new.
    """
    if len(data) > MAX_ROOTS_FILE:
        raise Malformed(
            "certificate-malformed", f"The file has {len(data)} bytes, and {MAX_ROOTS_FILE} is the limit."
        )
    if not data:
        raise Malformed(
            "certificate-malformed", "The file is empty, and should hold a certificate as PEM or DER."
        )
    ders = _pem_certificates(data) if _PEM in data else [_unpadded(data)]
    certificates = [read_certificate(der, "certificate-malformed") for der in dict.fromkeys(ders)]
    return tuple(Root(certificate.der, certificate.subject or "(no name)") for certificate in certificates)


def _unpadded(data: bytes) -> bytes:
    """A certificate out of an NV index without its padding; anything else as it is, for the reader to
    describe.
    """
    try:
        return trim_certificate(data)
    except Malformed:
        return data


def subject_digest(der: bytes) -> bytes:
    """The SHA-256 of the subject of the certificate *der*, by which an anchor is looked up.

    Raises Malformed("certificate-malformed") if it cannot be read.
    """
    return _name_digest(read_certificate(der, "certificate-malformed").subject_key)


def issuer_digest(der: bytes) -> bytes:
    """The SHA-256 of the issuer of the EK certificate *der*: :func:`subject_digest` of every possible issuer.

    Names are compared as RFC 5280, section 7.1, says. Raises Malformed("ek-malformed") if it cannot be read.
    """
    return _name_digest(_read_sent(der).issuer_key)


def certified_key(der: bytes) -> bytes:
    """The DER SubjectPublicKeyInfo in the EK certificate *der*.  Raises Malformed("ek-malformed")."""
    return _read_sent(der).spki


def _name_digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def verify_ek_certificate(
    cert_der: bytes, ek_spki_der: bytes, roots: Sequence[Root], intermediates: Sequence[bytes], now: datetime
) -> EndorsementKey:
    """The endorsement key *ek_spki_der*, if *cert_der* vouches for it up to one of *roots*.

    The checks:

    1. the certificate can be read: DER as :func:`trim_certificate` returns it
    2. it is for this key: the numbers are equal, whatever the encoding of either
    3. its issuers lead to a root: names and key ids, signatures, CA and certificate-signing bits, purpose,
       path length, at most five issuers
    4. it and its issuers are valid at *now* (aware), the root too
    5. it is for an endorsement key: EKU 2.23.133.8.1, when there is an EKU
    6. it and its issuers have no critical extension that we do not understand; the critical subjectAltName of
       the profile may hold only directory names
    7. keys and signatures hold: RSA of 2048 bits or more or a NIST curve, SHA-256 or better

    *ek_spki_der* is a DER SubjectPublicKeyInfo; *intermediates* are DER certificates that the device sent
    along. Raises Malformed("ek-malformed") if something of the device's cannot be read,
    Malformed("certificate-malformed") if a root cannot, and otherwise one Refused with every reason:
    "ek-untrusted", "ek-mismatch", "ek-expired" or "ek-unsupported". When a root is missing, its reason
    carries ``issuer`` and ``authority_key_id`` (hex or None).

    NOT checked: revocation (no network here), the leaf's key usage (vendors disagree with the profile),
    certificate policies, whether the EK's template is a standard one, and that the TPM holds the private key
    (activation does).
    """
    if now.tzinfo is None:
        raise ValueError("now must be aware of its time zone")
    # (1) readable, and the number of what has to be read is bounded
    if len(intermediates) > MAX_INTERMEDIATES:
        raise _malformed(f"{len(intermediates)} intermediates came, and {MAX_INTERMEDIATES} is the limit.")
    leaf, *steps = [_read_sent(der) for der in (cert_der, *intermediates)]
    anchors = [_read_anchor(root.der) for root in roots]
    chain, broken = find_chain(leaf, anchors, steps, now)  # (3), and (4), (6) and (7) of the issuers
    reasons = [
        *_other_key(leaf, ek_spki_der),  # (2)
        *standing(leaf, now),  # (4) and (6) of the leaf
        *weak_key(leaf),  # (7) of the leaf; its signature is the chain's matter
        *_other_purpose(leaf),  # (5)
        *broken,
    ]
    if reasons:
        raise Refused.because(*reasons)
    root = next(root for root in roots if root.der == chain[-1].der)
    return EndorsementKey(
        public_der=ek_spki_der,
        verified=True,
        certificate=leaf.der,
        issuer=leaf.issuer,
        subject_hint=leaf.tpm_model,
        root=root.label,
        root_fingerprint=root.fingerprint,
    )


def _read_sent(der: bytes) -> Certificate:
    if len(der) > MAX_CERTIFICATE:
        raise _malformed(f"A certificate has {len(der)} bytes, and {MAX_CERTIFICATE} is the limit.")
    return read_certificate(der)


@lru_cache(maxsize=512)
def _read_anchor(der: bytes) -> Certificate:
    # The same few dozen at every enrollment, about a millisecond each; nothing that a device sends comes here
    return read_certificate(der, "certificate-malformed")


def _other_key(leaf: Certificate, ek_spki_der: bytes) -> Iterator[Reason]:
    # (2) The numbers are compared, not the bytes: a vendor may write NULL parameters, none, or those of OAEP.
    # Both keys are public, so the time that comparing takes tells nobody anything.
    ek = public_key(ek_spki_der)
    try:
        certified = public_key(leaf.spki)
    except Refused:
        return  # weak_key() says why
    if certified.public_numbers() != ek.public_numbers():
        yield Reason("ek-mismatch", "The EK certificate is for another key than this TPM's EK.")


def _other_purpose(leaf: Certificate) -> Iterator[Reason]:
    # (5) anyExtendedKeyUsage does not do: a platform certificate may be for the same key, by the same issuer
    if leaf.extended_key_usage is not None and EK_CERTIFICATE not in leaf.extended_key_usage:
        found = ", ".join(sorted(leaf.extended_key_usage))
        yield Reason("ek-mismatch", f"The certificate is for {found}, not for an EK ({EK_CERTIFICATE}).")


def _element(data: bytes, tag: int) -> tuple[bytes, bytes]:
    """The DER element of *tag* that fills *data* up to its padding: the whole element, and its contents."""
    name = "SEQUENCE" if tag == _SEQUENCE else "OCTET STRING"
    if data and data[0] != tag:
        raise _NotDer(f"The EK certificate starts with 0x{data[0]:02x}, not as a {name} (0x{tag:02x}).")
    start, end = _extent(data)
    if end > len(data):
        raise _NotDer(f"The EK certificate is too short: need {end} bytes, had {len(data)}.")
    padding = data[end:]
    if padding.strip(b"\xff") and padding.strip(b"\x00"):
        raise _NotDer(f"{len(padding)} bytes follow the EK certificate that are not padding.")
    return data[:end], data[start:end]


def _extent(data: bytes) -> tuple[int, int]:
    """Return begin and end of the contents of the DER element at the start of *data* (X.690, section 8.1.3)."""
    if len(data) < 2:
        raise _NotDer(f"The EK certificate is too short: need 2 bytes, had {len(data)}.")
    first = data[1]
    if first < 0x80:
        return 2, 2 + first
    octets = first - 0x80
    length = int.from_bytes(data[2 : 2 + octets])
    # Two octets reach 65,535; none at all is BER's open length. DER has no length that would fit into fewer.
    least = {1: 0x80, 2: 0x100}.get(octets)
    if least is None or length < least:
        raise _NotDer("The EK certificate's outer length is not DER.")
    return 2 + octets, 2 + octets + length


def _pem_certificates(data: bytes) -> list[bytes]:
    """The contents of each PEM block (RFC 7468), all of which have to be certificates."""
    ders = []
    for block in data.split(b"-----BEGIN ")[1:]:
        label, _, rest = block.partition(b"-----")
        if label != b"CERTIFICATE":
            shown = label[:40].decode("ascii", "replace")
            raise Malformed(
                "certificate-malformed", f"The file has a {shown!r} block, not only certificates."
            )
        body, end, _ = rest.partition(b"-----END CERTIFICATE-----")
        try:
            ders.append(base64.b64decode(b"".join(body.split()), validate=True))
        except ValueError as error:
            raise Malformed("certificate-malformed", "A certificate in the file is not Base64.") from error
        if not end:
            raise Malformed("certificate-malformed", "A certificate in the file has no end line.")
    return ders


def _malformed(sentence: str) -> Malformed:
    return Malformed("ek-malformed", sentence)
