"""Reading X.509 certificates the way TPM vendors write them (RFC 5280, section 4).

Rules of this module:

* One reader for every certificate. ``cryptography`` refuses encodings that vendors shipped by the million,
  such as SETs out of order (Nuvoton's roots) and a FALSE that is written out (Intel's EK certificates). A
  fallback to a second parser would leave it to the sender which of the two decides, so asn1crypto reads all
  of them, and ``cryptography`` only computes (``x509_keys``).
* Signatures are checked over the bytes as they came. Nothing is encoded again: a repaired certificate no
  longer carries its issuer's signature (keylime#1775).
* Reading is not judging: an expired, weak or alien certificate reads fine. The checks are in ``ek_chain`` and
  ``endorsement``.
* Text from a certificate is shown to people, so unprintable characters and excess length end here.
* A hint never refuses. Text for people, alternative names and key identifiers come from encodings that a type
  table calls wrong (Nuvoton writes its model as PrintableString, the profile asks for UTF8String). They are
  read as they are; one that cannot be read is left out, or refused by its number where it is critical.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass
from datetime import datetime
from typing import Any, Final

from asn1crypto import core, parser, x509

from tang_attest.errors import Malformed

_OCTET_STRING: Final = 4
_SUBJECT_KEY_ID: Final = "2.5.29.14"
_KEY_USAGE: Final = "2.5.29.15"
_SUBJECT_ALT_NAME: Final = "2.5.29.17"
_BASIC_CONSTRAINTS: Final = "2.5.29.19"
_AUTHORITY_KEY_ID: Final = "2.5.29.35"
_EXTENDED_KEY_USAGE: Final = "2.5.29.37"
_HANDLED: Final = {
    _SUBJECT_KEY_ID,
    _KEY_USAGE,
    _SUBJECT_ALT_NAME,
    _BASIC_CONSTRAINTS,
    _AUTHORITY_KEY_ID,
    _EXTENDED_KEY_USAGE,
    "2.5.29.32",  # certificatePolicies: Intel and ST mark it critical; any policy will do here
}

_NAME_TYPES: Final = {
    "2.5.4.3": "CN",
    "2.5.4.6": "C",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
}
# Universal string types by tag (X.680, table 1), and how Python reads each.
_STRINGS: Final = {
    12: "utf-8",
    18: "ascii",
    19: "ascii",
    20: "latin-1",
    22: "ascii",
    26: "ascii",
    27: "latin-1",
    28: "utf-32-be",
    30: "utf-16-be",
}

_TPM_MANUFACTURER: Final = "2.23.133.2.1"
_TPM_MODEL: Final = "2.23.133.2.2"
_TPM_VERSION: Final = "2.23.133.2.3"

# Exceptions that asn1crypto raises on hostile bytes, found by fuzzing it
# (tests/protocol/endorsement/test_endorsement.py).
READING_ERRORS: Final = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


@dataclass(frozen=True, slots=True)
class Certificate:
    """Contents of an X.509 certificate (RFC 5280, section 4.1), none of them verified.

    ``der``, ``tbs`` (the signed part) and ``spki`` (DER SubjectPublicKeyInfo) are slices of the bytes as
    received. ``issuer`` and ``subject`` are for people; ``issuer_key`` and ``subject_key`` are for comparing
    names (section 7.1). Dates are aware, in UTC. ``extended_key_usage`` and ``unhandled_critical`` hold
    dotted OIDs, ``key_usage`` asn1crypto's names of the bits. None always means: the certificate does not
    say.
    """

    der: bytes
    tbs: bytes
    spki: bytes
    signature_oid: str
    signature: bytes
    _: KW_ONLY
    issuer: str
    issuer_key: str
    subject: str
    subject_key: str
    not_before: datetime
    not_after: datetime
    is_ca: bool
    path_length: int | None
    key_usage: frozenset[str] | None
    extended_key_usage: frozenset[str] | None
    authority_key_id: bytes | None
    subject_key_id: bytes | None
    unhandled_critical: tuple[str, ...]
    tpm_model: str | None

    @property
    def who(self) -> str:
        """The start of a sentence about it; the subject of an EK certificate is usually empty."""
        return (
            f"The certificate of '{self.subject}'" if self.subject else f"The certificate by '{self.issuer}'"
        )

    @property
    def self_issued(self) -> bool:
        """True if issuer and subject are one name (RFC 5280, section 3.2); the signature is not checked."""
        return self.issuer_key == self.subject_key


def read_certificate(der: bytes, code: str = "ek-malformed") -> Certificate:
    """The certificate in *der*: one DER X.509 certificate, nothing before or after it.

    Raises Malformed(*code*) if the bytes cannot be read as one. Loose about: order within a SET, defaults
    that are written out, integers that are not minimal, BER lengths. Strict about: trailing bytes, repeated
    extensions, dates without a time zone, two different signature algorithms (section 4.1.1.2).

    NOT checked: anything else. No signature, date, key size or purpose.
    """
    try:
        return _read(der)
    except READING_ERRORS as error:
        # asn1crypto describes the failure over several indented lines
        detail = printable(" ".join(str(error).split()), 160) or type(error).__name__
        raise Malformed(code, f"A certificate cannot be read ({detail}).") from error


def printable(text: str, limit: int = 200) -> str:
    """*text* fit for a terminal: at most *limit* characters, "?" for each that does not print."""
    short = text if len(text) <= limit else text[: limit - 3] + "..."
    return "".join(character if character.isprintable() else "?" for character in short)


def _read(der: bytes) -> Certificate:
    outer = x509.Certificate.load(der, strict=True)
    tbs = outer["tbs_certificate"]
    signature_oid = tbs["signature"]["algorithm"].dotted
    if signature_oid != outer["signature_algorithm"]["algorithm"].dotted:
        raise ValueError("the signed and the unsigned signature algorithm differ")
    values, critical = _extensions(tbs)
    is_ca, path_length = _basic_constraints(values.get(_BASIC_CONSTRAINTS))
    names, only_directories = _alternative_names(values.get(_SUBJECT_ALT_NAME))
    return Certificate(
        der=der,
        tbs=_first_element(der),
        spki=tbs["subject_public_key_info"].dump(),
        signature_oid=signature_oid,
        signature=bytes(outer["signature_value"]),
        issuer=_name_text(tbs["issuer"]),
        issuer_key=_name_key(tbs["issuer"]),
        subject=_name_text(tbs["subject"]),
        subject_key=_name_key(tbs["subject"]),
        not_before=_moment(tbs["validity"]["not_before"]),
        not_after=_moment(tbs["validity"]["not_after"]),
        is_ca=is_ca,
        path_length=path_length,
        key_usage=_key_usage(values.get(_KEY_USAGE)),
        extended_key_usage=_extended_key_usage(values.get(_EXTENDED_KEY_USAGE)),
        authority_key_id=_authority_key_id(values.get(_AUTHORITY_KEY_ID)),
        subject_key_id=_subject_key_id(values.get(_SUBJECT_KEY_ID)),
        unhandled_critical=_unhandled(critical, only_directories=only_directories),
        tpm_model=_tpm_model(names),
    )


def _first_element(der: bytes) -> bytes:
    """The raw bytes of the first element inside the outer SEQUENCE: what the issuer signed."""
    contents = parser.parse(der, strict=True)[4]
    _, _, _, header, body, trailer = parser.parse(contents)
    return bytes(header + body + trailer)


def _extensions(tbs: Any) -> tuple[dict[str, bytes], list[str]]:
    """Each extension's value by dotted OID, and the OIDs of the critical ones."""
    values: dict[str, bytes] = {}
    critical = []
    for extension in tbs["extensions"]:
        oid = extension["extn_id"].dotted
        if oid in values:  # RFC 5280, section 4.2; readers disagree about which one counts
            raise ValueError(f"the extension {oid} occurs twice")
        values[oid] = _last_octets(extension.contents)
        if extension["critical"].native:
            critical.append(oid)
    return values, critical


def _last_octets(contents: bytes) -> bytes:
    """The OCTET STRING at the end of an Extension.

    Not by its name: asn1crypto would parse what is inside by the OID, also of extensions that nobody reads
    here.
    """
    while True:
        tag_class, _, tag, header, octets, trailer = parser.parse(contents)
        contents = contents[len(header) + len(octets) + len(trailer) :]
        if not contents:
            break
    if (tag_class, tag) != (0, _OCTET_STRING):
        raise ValueError("an extension has no value")
    return bytes(octets)


def _basic_constraints(value: bytes | None) -> tuple[bool, int | None]:
    if value is None:
        return False, None
    constraints = x509.BasicConstraints.load(value, strict=True)
    path_length = constraints["path_len_constraint"].native
    if path_length is not None and path_length < 0:
        raise ValueError("a path length is negative")
    return constraints["ca"].native, path_length


def _unhandled(critical: Iterable[str], *, only_directories: bool) -> tuple[str, ...]:
    unhandled = [oid for oid in critical if oid not in _HANDLED]
    # The EK Credential Profile asks for a critical subjectAltName; only its directoryName is understood here
    if _SUBJECT_ALT_NAME in critical and not only_directories:
        unhandled.append(_SUBJECT_ALT_NAME)
    return tuple(unhandled)


def _alternative_names(value: bytes | None) -> tuple[tuple[Any, ...], bool]:
    """The directory names in a subjectAltName, and True when it holds nothing else and can be read."""
    if value is None:
        return (), True
    directories = []
    only_directories = True
    try:
        for name in x509.GeneralNames.load(value, strict=True):
            if name.name == "directory_name":
                directories.append(name.chosen)
            else:
                only_directories = False
    except READING_ERRORS:
        return tuple(directories), False
    return tuple(directories), only_directories


def _key_usage(value: bytes | None) -> frozenset[str] | None:
    return None if value is None else frozenset(x509.KeyUsage.load(value, strict=True).native)


def _extended_key_usage(value: bytes | None) -> frozenset[str] | None:
    if value is None:
        return None
    return frozenset(purpose.dotted for purpose in x509.ExtKeyUsageSyntax.load(value, strict=True))


def _authority_key_id(value: bytes | None) -> bytes | None:
    if value is None:
        return None
    try:
        identifier: bytes | None = x509.AuthorityKeyIdentifier.load(value, strict=True)[
            "key_identifier"
        ].native
    except READING_ERRORS:
        return None
    return identifier


def _subject_key_id(value: bytes | None) -> bytes | None:
    if value is None:
        return None
    try:
        return bytes(core.OctetString.load(value, strict=True))
    except READING_ERRORS:
        return None


def _moment(time: Any) -> datetime:
    moment = time.native
    # asn1crypto has a type of its own for the year 0, and local time for a GeneralizedTime without a zone
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise ValueError("a date is not in UTC")
    return moment


def _name_key(name: Any) -> str:
    """A name for comparison (section 7.1); by its bytes where a value has another type than the table says."""
    try:
        return str(name.hashable)
    except READING_ERRORS:
        return f"der {name.dump().hex()}"


def _name_text(name: Any) -> str:
    """A distinguished name for people, in the order of the encoding: ``CN=..., O=..., C=...``."""
    parts = [f"{_NAME_TYPES.get(oid, oid)}={text}" for oid, text in _attributes(name)]
    return printable(", ".join(parts))


def _attributes(name: Any) -> Iterator[tuple[str, str]]:
    """The attributes of a distinguished name: dotted OID and text."""
    for relative in name.chosen:
        for attribute in relative:
            yield attribute["type"].dotted, _attribute_text(attribute)


def _attribute_text(attribute: Any) -> str:
    """The value of *attribute* by the string type it was written with, not by the one its OID asks for."""
    try:
        _, _, _, header, oid, trailer = parser.parse(attribute.contents)
        tag_class, _, tag, _, contents, _ = parser.parse(
            attribute.contents[len(header) + len(oid) + len(trailer) :]
        )
    except READING_ERRORS:
        return "?"
    encoding = _STRINGS.get(tag) if tag_class == 0 else None
    return str(contents.hex() if encoding is None else contents.decode(encoding, "replace"))


def _tpm_model(names: Iterable[Any]) -> str | None:
    """Manufacturer, model and version (EK Credential Profile, section 3.2): ``NTC NPCT75x id:00070002``."""
    try:
        found = dict(attribute for name in names for attribute in _attributes(name))
    except READING_ERRORS:
        return None
    words = [_manufacturer(found.get(_TPM_MANUFACTURER)), found.get(_TPM_MODEL), found.get(_TPM_VERSION)]
    return printable(" ".join(word for word in words if word)) or None


def _manufacturer(text: str | None) -> str | None:
    """``id:4E544300`` is "NTC" in hexadecimal (TCG Vendor ID Registry); anything else stays as it is."""
    if text is None or not text.startswith("id:"):
        return text
    try:
        letters = bytes.fromhex(text[3:]).rstrip(b"\0 ").decode("ascii")
    except ValueError:
        return text
    return letters if letters.isprintable() and letters else text
