"""TPM 2.0 structures that machines send, read strictly.

Rules of this module:

* A structure is its bytes and nothing after them: tpm2_pytss ignores trailing bytes, so every reader here
  checks the length it consumed.
* Quotes and signatures, which come with every unlock, are read here, in a tenth of the time that tpm2_pytss
  takes; tests/protocol/test_tpm.py compares the two.  Keys are read by tpm2_pytss.
* No tpm2_pytss type leaves this module; what leaves it is a frozen dataclass with plain values.
* A key verifies under *its own* scheme and hash.  The scheme in a signature is compared with those and never
  used to choose.  (``tpm2_pytss.types.TPMT_SIGNATURE.verify_signature`` trusts the signature; it is not
  used.)

Section numbers are those of the Trusted Platform Module Library, Part 2: Structures, revision 1.59.
"""

from __future__ import annotations

import hmac
import os
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from struct import Struct
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from tpm2_pytss.constants import TPM2_ALG, TPM2_ECC, TPM2_GENERATED, TPM2_ST, TPMA_OBJECT
from tpm2_pytss.types import TPM2B_NAME, TPM2B_PUBLIC, TPMT_PUBLIC
from tpm2_pytss.utils import make_credential as pytss_make_credential

from tang_attest.errors import Malformed, Reason, Refused
from tang_attest.protocol.values.octets import Octets

# libtss2-mu writes to stderr what it dislikes about bytes that anyone can send; our errors say it better.
os.environ.setdefault("TSS2_LOG", "all+NONE")

_HASHES: Final[dict[int, hashes.HashAlgorithm]] = {
    int(TPM2_ALG.SHA256): hashes.SHA256(),
    int(TPM2_ALG.SHA384): hashes.SHA384(),
    int(TPM2_ALG.SHA512): hashes.SHA512(),
}
_SCHEMES: Final[dict[int, str]] = {
    int(TPM2_ALG.RSASSA): "rsassa",
    int(TPM2_ALG.RSAPSS): "rsapss",
    int(TPM2_ALG.ECDSA): "ecdsa",
}
_AK_CURVES: Final[dict[int, str]] = {int(TPM2_ECC.NIST_P256): "P-256", int(TPM2_ECC.NIST_P384): "P-384"}

#: Same limits as docs/protocol.md, section 3.3, step 1.  The largest real structures are far smaller: a
#: TPM2B_PUBLIC of an RSA 4096 key has about 540 bytes, a TPMS_ATTEST about 150.
MAX_STRUCTURE: Final = 2048

#: The largest parts of a quote and a signature, in bytes: TPM2B_NAME, TPM2B_DATA, TPM2B_DIGEST (10.4, 10.5),
#: the banks of a TPML_PCR_SELECTION and the bitmap of one (10.6), an RSA signature and an ECC number (11.2).
_MAX_NAME: Final = 68
_MAX_DATA: Final = 66
_MAX_DIGEST: Final = 64
_MAX_BANKS: Final = 16
_MAX_BITMAP: Final = 4
_MAX_RSA: Final = 512
_MAX_ECC: Final = 128
_YES: Final = 1
_GENERATED: Final = int(TPM2_GENERATED.VALUE)
_QUOTE: Final = int(TPM2_ST.ATTEST_QUOTE)
#: magic and type; TPMS_CLOCK_INFO and firmwareVersion (10.12.12); hash and sizeofSelect (10.6.2).
_HEAD: Final = Struct(">IH")
_CLOCK: Final = Struct(">QIIBQ")
_BANK: Final = Struct(">HB")


@dataclass(frozen=True, slots=True)
class AttestationKey:
    """An AK's public half, and the one way in which its signatures verify.

    ``public`` is the TPM2B_PUBLIC as the device sent it (empty when only a PEM key is known), ``name`` the
    TPM Name (algorithm id and digest, section 16), ``scheme`` one of ``rsassa``, ``rsapss``, ``ecdsa`` and
    ``hash_name`` one of ``sha256``, ``sha384``, ``sha512``.

    Not checked here: attributes (see :func:`ak_shortcomings`), and whether any TPM holds the private half.
    """

    public: bytes
    name: bytes
    spki: bytes
    scheme: str
    hash_name: str
    _: KW_ONLY
    no_da: bool


@dataclass(frozen=True, slots=True)
class Signature:
    """A TPMT_SIGNATURE (section 11.3.4): the scheme and hash it claims, and the raw signature.

    ``raw`` is in the form ``cryptography`` takes: the RSA block, or a DER ECDSA-Sig-Value.
    """

    scheme: str
    hash_name: str
    raw: bytes


@dataclass(frozen=True, slots=True)
class ClockInfo:
    """TPMS_CLOCK_INFO (section 10.11.1): milliseconds, and two counters."""

    clock: int
    reset_count: int
    restart_count: int
    safe: bool


@dataclass(frozen=True, slots=True)
class Attest:
    """A TPMS_ATTEST (section 10.12.12) of any type; the quote fields are ``None`` unless it is a quote.

    ``banks`` are the signed PCR selections, in the order of the structure: bank name (or ``alg 0x....``) and
    PCR numbers.
    """

    magic_ok: bool
    is_quote: bool
    extra_data: bytes
    clock_info: ClockInfo
    firmware_version: int
    _: KW_ONLY
    banks: tuple[tuple[str, tuple[int, ...]], ...]
    pcr_digest: bytes


# --- reading ------------------------------------------------------------------------------------------------


def _check_size(data: bytes, what: str, code: str) -> None:
    if len(data) > MAX_STRUCTURE:
        raise Malformed(code, f"The {what} has {len(data)} bytes; at most {MAX_STRUCTURE} make sense.")


def _octets(data: bytes, what: str) -> Octets:
    _check_size(data, what, "evidence-malformed")
    return Octets(data)


def _check_end(octets: Octets, what: str) -> None:
    if octets.left():
        raise Malformed("evidence-malformed", f"The {what} has {octets.left()} bytes after its end.")


def _unmarshal(kind: type[Any], data: bytes, what: str, code: str = "evidence-malformed") -> Any:
    """Read exactly one structure of *kind*: nothing missing, nothing after it."""
    _check_size(data, what, code)
    try:
        value, consumed = kind.unmarshal(data)
    except (
        Exception
    ) as error:  # tpm2_pytss raises TSS2_Exception, ValueError, TypeError and others on bad bytes
        raise Malformed(code, f"The {what} is not a {kind.__name__}.") from error
    if consumed != len(data):
        raise Malformed(code, f"The {what} has {len(data) - consumed} bytes after its end.")
    return value


def parse_attest(data: bytes) -> Attest:
    """Read a TPMS_ATTEST.

    Raises :class:`Malformed` ``evidence-malformed``, for a quote also for trailing bytes.  Not checked:
    anything about its meaning, not even ``magic`` and ``type``, which the caller wants to refuse only after
    the signature; and what is attested by something that is no quote.
    """
    octets = _octets(data, "quote")
    try:
        magic, kind = octets.numbers(_HEAD)
        octets.sized(_MAX_NAME)  # qualifiedSigner: nobody enrolled it, and the signature says who signed
        extra_data = octets.sized(_MAX_DATA)
        clock, reset_count, restart_count, safe, firmware_version = octets.numbers(_CLOCK)
        is_quote = kind == _QUOTE
        banks = _selections(octets) if is_quote else ()
        pcr_digest = octets.sized(_MAX_DIGEST) if is_quote else b""
    except ValueError as error:
        raise Malformed("evidence-malformed", "The quote is not a TPMS_ATTEST.") from error
    if is_quote:
        _check_end(octets, "quote")
    return Attest(
        magic_ok=magic == _GENERATED,
        is_quote=is_quote,
        extra_data=extra_data,
        clock_info=ClockInfo(clock, reset_count, restart_count, safe == _YES),
        firmware_version=firmware_version,
        banks=banks,
        pcr_digest=pcr_digest,
    )


def _selections(octets: Octets) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """A TPML_PCR_SELECTION; the bitmap has its PCR 0 in the lowest bit of its first byte (10.6.1)."""
    count = octets.number(4)
    if count > _MAX_BANKS:
        raise ValueError(f"{count} banks")
    banks = []
    for _ in range(count):
        algorithm, size = octets.numbers(_BANK)
        if size > _MAX_BITMAP:
            raise ValueError(f"a bitmap of {size} bytes")
        chosen = int.from_bytes(octets.take(size), "little")
        banks.append((_hash_name(algorithm), tuple(bit for bit in range(8 * size) if chosen >> bit & 1)))
    return tuple(banks)


def _hash_name(algorithm: int) -> str:
    known = _HASHES.get(algorithm)
    return known.name if known else f"alg {algorithm:#06x}"


def parse_signature(data: bytes) -> Signature:
    """Read a TPMT_SIGNATURE.

    Raises :class:`Malformed`: ``evidence-malformed``, or ``evidence-unsupported`` for a scheme or hash that
    no acceptable AK has (SHA-1 among them).
    """
    octets = _octets(data, "signature")
    try:
        algorithm = octets.number(2)
        scheme = _SCHEMES.get(algorithm)
        if scheme is None:
            raise Malformed("evidence-unsupported", f"Signature scheme {algorithm:#06x} is not accepted.")
        hash_id = octets.number(2)
        if hash_id not in _HASHES:
            raise Malformed("evidence-unsupported", f"Signature hash {hash_id:#06x} is not accepted.")
        if scheme == "ecdsa":
            r = int.from_bytes(octets.sized(_MAX_ECC), "big")
            raw = encode_dss_signature(r, int.from_bytes(octets.sized(_MAX_ECC), "big"))
        else:
            raw = octets.sized(_MAX_RSA)
    except ValueError as error:
        raise Malformed("evidence-malformed", "The signature is not a TPMT_SIGNATURE.") from error
    _check_end(octets, "signature")
    return Signature(scheme, _hash_name(hash_id), raw)


@lru_cache(maxsize=4096)
def parse_ak(public: bytes) -> AttestationKey:
    """Read an AK from a TPM2B_PUBLIC.

    Raises :class:`Malformed` ``evidence-malformed``, and :class:`Refused` ``ak-unsuitable`` when the key's
    type, size, scheme or hash is not one we verify under; :func:`ak_shortcomings` has the attributes.
    """
    area = _unmarshal(TPM2B_PUBLIC, public, "AK public area").publicArea
    scheme, hash_id = _own_scheme(area)
    _require_strength(area)
    return AttestationKey(
        public=public,
        name=bytes(area.get_name()),
        spki=_spki(area, "AK public area", "evidence-malformed"),
        scheme=scheme,
        hash_name=_hash_name(hash_id),
        no_da=bool(int(area.objectAttributes) & int(TPMA_OBJECT.NODA)),
    )


def public_from_tpmt(data: bytes) -> bytes:
    """The TPM2B_PUBLIC of a TPMT_PUBLIC (``tpm2 readpublic -f tpmt`` writes the latter)."""
    area = _unmarshal(TPMT_PUBLIC, data, "public area")
    return bytes(TPM2B_PUBLIC(publicArea=area).marshal())


def ak_from_pem(pem: bytes, *, scheme: str | None = None, hash_name: str = "sha256") -> AttestationKey:
    """An AK of which only the PEM is known: scheme and hash are then the operator's claim.

    Raises :class:`Malformed` ``key-malformed``.  Not checked: attributes and Name, because a PEM has neither;
    a key that signs anything its owner likes would pass.
    """
    try:
        key = serialization.load_pem_public_key(pem)
    except Exception as error:
        raise Malformed("key-malformed", "The key is not a PEM public key.") from error
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048:
        scheme = scheme or "rsassa"
    elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        scheme = scheme or "ecdsa"
    else:
        raise Malformed("key-malformed", "The key is neither RSA of 2048 bits or more nor P-256 or P-384.")
    if (scheme == "ecdsa") != isinstance(key, ec.EllipticCurvePublicKey):
        raise Malformed("key-malformed", f"The key cannot sign with {scheme}.")
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return AttestationKey(b"", b"", spki, scheme, hash_name, no_da=False)


def _own_scheme(area: Any) -> tuple[str, int]:
    kind = int(area.type)
    if kind == int(TPM2_ALG.RSA):
        details, allowed = area.parameters.rsaDetail, frozenset({"rsassa", "rsapss"})
    elif kind == int(TPM2_ALG.ECC):
        details, allowed = area.parameters.eccDetail, frozenset({"ecdsa"})
    else:
        raise Refused("ak-unsuitable", f"The AK is of type {kind:#06x}, not RSA or ECC.")
    scheme = _SCHEMES.get(int(details.scheme.scheme))
    if scheme is None or scheme not in allowed:
        raise Refused("ak-unsuitable", f"The AK has no fixed scheme out of {', '.join(sorted(allowed))}.")
    hash_id = int(getattr(details.scheme.details, scheme).hashAlg)
    if hash_id not in _HASHES:
        raise Refused("ak-unsuitable", f"The AK signs with hash {hash_id:#06x}, not SHA-256 or better.")
    return scheme, hash_id


def _require_strength(area: Any) -> None:
    if int(area.nameAlg) not in _HASHES:
        raise Refused("ak-unsuitable", "The AK's name algorithm is not SHA-256 or better.")
    if int(area.type) == int(TPM2_ALG.RSA):
        if int(area.parameters.rsaDetail.keyBits) < 2048:
            raise Refused("ak-unsuitable", "The AK is an RSA key of less than 2048 bits.")
    elif int(area.parameters.eccDetail.curveID) not in _AK_CURVES:
        raise Refused("ak-unsuitable", "The AK is not on P-256 or P-384.")


def _spki(area: Any, what: str, code: str) -> bytes:
    """The SubjectPublicKeyInfo of a key that exists: on its curve, or with a modulus as long as ``keyBits``
    says.
    """
    try:
        der = bytes(area.to_der())
    except ValueError as error:  # from cryptography: off the curve, or an impossible exponent
        raise Malformed(code, f"The {what} holds no valid public key.") from error
    if int(area.type) == int(TPM2_ALG.RSA):
        bits = int.from_bytes(bytes(area.unique.rsa.buffer), "big").bit_length()
        # The size that is judged is keyBits; a shorter modulus could be factored by its maker.
        if bits != int(area.parameters.rsaDetail.keyBits):
            raise Malformed(code, f"The {what} holds a modulus of {bits} bits, which is not what it says.")
    return der


def ak_shortcomings(public: bytes) -> tuple[Reason, ...]:
    """Return the faults that make a key unsuitable as an AK; empty if none.

    The checklist (TPM 2.0 part 1, "Attestation"): without *restricted*, its owner could sign a forged
    quote; without *fixedTPM* and *fixedParent*, the key could be moved to another TPM; without
    *sensitiveDataOrigin*, its private half was known outside a TPM; with *decrypt*, it is not only a signing
    key.
    """
    attributes = int(_unmarshal(TPM2B_PUBLIC, public, "AK public area").publicArea.objectAttributes)
    wanted = {
        "restricted": TPMA_OBJECT.RESTRICTED,
        "sign": TPMA_OBJECT.SIGN_ENCRYPT,
        "fixedTPM": TPMA_OBJECT.FIXEDTPM,
        "fixedParent": TPMA_OBJECT.FIXEDPARENT,
        "sensitiveDataOrigin": TPMA_OBJECT.SENSITIVEDATAORIGIN,
    }
    reasons = [
        Reason("ak-unsuitable", f"The AK lacks the attribute {name}.")
        for name, bit in wanted.items()
        if not attributes & int(bit)
    ]
    if attributes & int(TPMA_OBJECT.DECRYPT):
        reasons.append(Reason("ak-unsuitable", "The AK has the attribute decrypt."))
    return tuple(reasons)


# --- signatures ---------------------------------------------------------------------------------------------


def verify_signature(key: AttestationKey, signature: Signature, message: bytes) -> None:
    """Check *signature* over *message* under the key's own scheme and hash.

    Raises :class:`Refused` ``signature-invalid``.
    """
    if (signature.scheme, signature.hash_name) != (key.scheme, key.hash_name):
        raise Refused(
            "signature-invalid",
            f"The signature says {signature.scheme} with {signature.hash_name}; "
            f"the AK signs {key.scheme} with {key.hash_name}.",
        )
    public = _verifying_key(key.spki)
    try:
        if isinstance(public, ec.EllipticCurvePublicKey):
            public.verify(signature.raw, message, _ecdsa(key.hash_name))
        else:
            # AUTO: TPMs differ in their PSS salt length, and the length is no security parameter of a
            # verifier.
            algorithm = getattr(hashes, key.hash_name.upper())()
            pss = padding.PSS(padding.MGF1(algorithm), padding.PSS.AUTO)
            scheme = pss if key.scheme == "rsapss" else padding.PKCS1v15()
            public.verify(signature.raw, message, scheme, algorithm)
    except InvalidSignature:
        raise Refused("signature-invalid", "The quote is not signed by the enrolled AK.") from None


@lru_cache
def _ecdsa(hash_name: str) -> ec.ECDSA:
    """Return ECDSA with a hash; made anew, it costs as much as the rest of Python's part of a verification."""
    return ec.ECDSA(getattr(hashes, hash_name.upper())())


@lru_cache(maxsize=4096)
def _verifying_key(spki: bytes) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    key = serialization.load_der_public_key(spki)
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise TypeError("parse_ak and ak_from_pem let only RSA and EC keys through")
    return key


# --- credential activation ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EkPublic:
    """An EK's public area: the TPM2B_PUBLIC and its SubjectPublicKeyInfo (DER)."""

    public: bytes
    spki: bytes


def parse_ek(public: bytes) -> EkPublic:
    """Read an EK from a TPM2B_PUBLIC.

    Raises :class:`Malformed` ``ek-malformed``, :class:`Refused` ``ek-unsupported`` unless it is a restricted
    decryption key, fixed to its TPM, RSA of 2048 bits or more, P-256 or P-384, with a SHA-2 name algorithm
    and AES (EK Credential Profile 2.5, section "Default EK Public Area Template").

    Not checked: that it is the EK of a real TPM; only a certificate can say that.
    """
    area = _unmarshal(TPM2B_PUBLIC, public, "EK public area", "ek-malformed").publicArea
    attributes = int(area.objectAttributes)
    needed = TPMA_OBJECT.RESTRICTED | TPMA_OBJECT.DECRYPT | TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT
    if attributes & int(needed) != int(needed) or attributes & int(TPMA_OBJECT.SIGN_ENCRYPT):
        raise Refused("ek-unsupported", "The EK is not a restricted decryption key that is fixed to its TPM.")
    kind = int(area.type)
    strong_rsa = kind == int(TPM2_ALG.RSA) and int(area.parameters.rsaDetail.keyBits) >= 2048
    strong_ecc = kind == int(TPM2_ALG.ECC) and int(area.parameters.eccDetail.curveID) in _AK_CURVES
    if not (strong_rsa or strong_ecc) or int(area.nameAlg) not in _HASHES:
        raise Refused("ek-unsupported", "The EK is not RSA of 2048 bits or more, P-256 or P-384 with SHA-2.")
    details = area.parameters.rsaDetail if kind == int(TPM2_ALG.RSA) else area.parameters.eccDetail
    if not _wraps_with_aes(details.symmetric):
        raise Refused("ek-unsupported", "The EK does not wrap with AES of 128 or 256 bits in CFB mode.")
    return EkPublic(public, _spki(area, "EK public area", "ek-malformed"))


def _wraps_with_aes(symmetric: Any) -> bool:
    """Return True for AES-CFB, which every template has and :func:`make_credential` supports alone."""
    return (
        int(symmetric.algorithm) == int(TPM2_ALG.AES)
        and int(symmetric.mode.aes) == int(TPM2_ALG.CFB)
        and int(symmetric.keyBits.aes) in {128, 256}
    )


def make_credential(ek: EkPublic, ak_name: bytes, secret: bytes) -> tuple[bytes, bytes]:
    """Wrap *secret* (at most 32 bytes) so that only the TPM with *ek* and the key named *ak_name* recovers
    it.

    Returns ``(TPM2B_ID_OBJECT, TPM2B_ENCRYPTED_SECRET)``, both with their size fields (part 1, section 24).
    The seed inside comes from the operating system: tpm2_pytss has no parameter for it.

    Raises ``ek-unsupported`` for an EK with AES-256 if tpm2_pytss is older than 3.0, which cannot wrap it.
    """
    public, _ = TPM2B_PUBLIC.unmarshal(ek.public)
    try:
        blob, encrypted_secret = pytss_make_credential(public, secret, TPM2B_NAME(ak_name))
    except ValueError:
        raise Refused(
            "ek-unsupported",
            "The server's tpm2-pytss cannot wrap for this EK; version 3.0 can for all with AES.",
        ) from None
    return bytes(blob.marshal()), bytes(encrypted_secret.marshal())


def equal(left: bytes, right: bytes) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(left, right)
