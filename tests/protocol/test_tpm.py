"""Reading TPM structures strictly, and signatures under the key's own scheme."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import example, given
from hypothesis import strategies as st
from tpm2_pytss.constants import TPM2_ALG, TPMA_OBJECT
from tpm2_pytss.types import (
    TPM2B_ECC_PARAMETER,
    TPM2B_PUBLIC,
    TPM2B_PUBLIC_KEY_RSA,
    TPMS_ATTEST,
    TPMT_SIGNATURE,
)

from tang_attest.errors import Malformed, Refused, TangAttestError
from tang_attest.protocol import tpm
from tests.attester import AK_ATTRIBUTES, Attester, tpmt_signature
from tests.cli.offline.quote_vectors import stored

VECTORS = {vector.name: vector.files for vector in stored()}
KINDS = ["rsa2048:rsassa-sha256", "rsa2048:rsapss-sha384", "ecc256:ecdsa-sha256", "ecc384:ecdsa-sha384"]
AK_NAMES = {
    "rsassa": ("rsassa", "sha256"),
    "rsapss": ("rsapss", "sha256"),
    "p256": ("ecdsa", "sha256"),
    "p384": ("ecdsa", "sha384"),
}


def changed(public: bytes, change: Callable[[Any], None]) -> bytes:
    """*public* after *change* of its TPMT_PUBLIC."""
    area = TPM2B_PUBLIC.unmarshal(public)[0].publicArea
    change(area)
    return bytes(TPM2B_PUBLIC(publicArea=area).marshal())


def pem(key: Any) -> bytes:
    return bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )


# --- exactly one structure -----------------------------------------------------------------------------------------

READERS = {
    "TPM2B_PUBLIC": (tpm.parse_ak, VECTORS["rsassa"]["public"]),
    "TPM2B_PUBLIC, attributes": (tpm.ak_shortcomings, VECTORS["rsassa"]["public"]),
    "TPMT_PUBLIC": (tpm.public_from_tpmt, VECTORS["tpmt"]["public"]),
    "TPMS_ATTEST": (tpm.parse_attest, VECTORS["rsassa"]["message"]),
    "TPMT_SIGNATURE, RSA": (tpm.parse_signature, VECTORS["rsassa"]["signature"]),
    "TPMT_SIGNATURE, ECC": (tpm.parse_signature, VECTORS["p384"]["signature"]),
}
reader = pytest.mark.parametrize(("read", "data"), READERS.values(), ids=READERS.keys())


@reader
def test_trailing_byte(read: Callable[[bytes], object], data: bytes) -> None:
    """One byte after the end is one too many (tpm2_pytss alone would ignore it)."""
    read(data)
    with pytest.raises(Malformed, match=r"1 bytes after its end|is not a TPM2B_PUBLIC") as caught:
        read(data + b"\0")
    assert caught.value.code == "evidence-malformed"


@reader
def test_every_truncation(read: Callable[[bytes], object], data: bytes) -> None:
    """No beginning of a structure is a structure."""
    for length in range(len(data)):
        with pytest.raises(Malformed):
            read(data[:length])


@reader
def test_size_limit(read: Callable[[bytes], object], data: bytes) -> None:
    """An oversize input is not handed to a parser."""
    with pytest.raises(Malformed, match="at most 2048"):
        read(data + bytes(2049 - len(data)))


@reader
def test_changed_bytes(read: Callable[[bytes], object], data: bytes) -> None:
    """Any bytes are read or refused; nothing else escapes."""

    @given(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), min_size=1, max_size=4))
    @example([(24, 0)])
    def check(changes: list[tuple[int, int]]) -> None:
        mutated = bytearray(data)
        for at, value in changes:
            mutated[at] = value
        with suppress(TangAttestError):
            read(bytes(mutated))

    check()


def test_library_is_silent() -> None:
    """libtss2-mu does not write to stderr about bytes that a stranger sent."""
    program = (
        "from tang_attest.protocol import tpm\ntry: tpm.parse_attest(b'\\xff' * 200)\nexcept Exception: pass"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert result.stderr == b""


# --- attestation keys ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "expected"), AK_NAMES.items())
def test_ak_of_a_tpm(name: str, expected: tuple[str, str]) -> None:
    """Scheme and hash are the key's own, and it lacks nothing."""
    public = VECTORS[name]["public"]
    key = tpm.parse_ak(public)
    assert (key.scheme, key.hash_name) == expected
    assert key.no_da
    assert key.public == public
    assert tpm.ak_shortcomings(public) == ()


def test_tpmt_and_pem_are_the_same_key() -> None:
    """All three files of one key lead to the same public key."""
    key = tpm.parse_ak(VECTORS["rsassa"]["public"])
    assert tpm.public_from_tpmt(VECTORS["tpmt"]["public"]) == key.public
    assert tpm.ak_from_pem(VECTORS["pem"]["public"]).spki == key.spki


def test_name_is_computed() -> None:
    """The Name is the name algorithm and the digest of the public area, whatever the device claims."""
    public = VECTORS["p256"]["public"]
    assert tpm.parse_ak(public).name == b"\x00\x0b" + hashlib.sha256(public[2:]).digest()


@pytest.mark.parametrize(
    ("attribute", "sentence"),
    [
        (TPMA_OBJECT.RESTRICTED, "The AK lacks the attribute restricted."),
        (TPMA_OBJECT.SIGN_ENCRYPT, "The AK lacks the attribute sign."),
        (TPMA_OBJECT.FIXEDTPM, "The AK lacks the attribute fixedTPM."),
        (TPMA_OBJECT.FIXEDPARENT, "The AK lacks the attribute fixedParent."),
        (TPMA_OBJECT.SENSITIVEDATAORIGIN, "The AK lacks the attribute sensitiveDataOrigin."),
        (TPMA_OBJECT.DECRYPT, "The AK has the attribute decrypt."),
    ],
)
def test_each_attribute(attribute: int, sentence: str) -> None:
    """Each attribute of the checklist is needed, or forbidden."""
    public = Attester(attributes=int(AK_ATTRIBUTES) ^ int(attribute)).ak_public
    assert [reason.sentence for reason in tpm.ak_shortcomings(public)] == [sentence]


def test_all_shortcomings_at_once() -> None:
    """A person hears everything that is missing."""
    assert len(tpm.ak_shortcomings(Attester(attributes=int(TPMA_OBJECT.DECRYPT)).ak_public)) == 6


def set_scheme(scheme: int, hash_id: int) -> Callable[[Any], None]:
    def change(area: Any) -> None:
        area.parameters.rsaDetail.scheme.scheme = scheme
        area.parameters.rsaDetail.scheme.details.anySig.hashAlg = hash_id

    return change


def set_name_algorithm(area: Any) -> None:
    area.nameAlg = TPM2_ALG.SHA1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_scheme(TPM2_ALG.NULL, TPM2_ALG.NULL), "no fixed scheme out of rsapss, rsassa"),
        (set_scheme(TPM2_ALG.RSASSA, TPM2_ALG.SHA1), "signs with hash 0x0004"),
        (set_name_algorithm, "name algorithm"),
    ],
)
def test_unsuitable_rsa(change: Callable[[Any], None], message: str) -> None:
    """No fixed scheme, SHA-1 anywhere: not an AK we verify under."""
    with pytest.raises(Refused, match=message) as caught:
        tpm.parse_ak(changed(VECTORS["rsassa"]["public"], change))
    assert caught.value.code == "ak-unsuitable"


def test_rsa_1024() -> None:
    """A short RSA key is refused."""
    with pytest.raises(Refused, match="less than 2048 bits"):
        tpm.parse_ak(Attester("rsa1024:rsassa-sha256").ak_public)


def test_other_curve() -> None:
    """A curve other than P-256 and P-384 is refused."""

    def p521(area: Any) -> None:
        area.parameters.eccDetail.curveID = 5

    with pytest.raises(Refused, match="not on P-256 or P-384"):
        tpm.parse_ak(changed(VECTORS["p256"]["public"], p521))


def test_point_off_the_curve() -> None:
    """A point that is on no curve is refused, as AK and as EK."""

    def move(area: Any) -> None:
        area.unique.ecc.x = TPM2B_ECC_PARAMETER(b"\1" * 32)

    with pytest.raises(Malformed, match="no valid public key") as caught:
        tpm.parse_ak(changed(VECTORS["p256"]["public"], move))
    assert caught.value.code == "evidence-malformed"


@pytest.mark.parametrize("exponent", [1, 2, 65536])
def test_impossible_exponent(exponent: int) -> None:
    """An RSA exponent that cannot be one is refused."""

    def change(area: Any) -> None:
        area.parameters.rsaDetail.exponent = exponent

    with pytest.raises(Malformed, match="no valid public key"):
        tpm.parse_ak(changed(VECTORS["rsassa"]["public"], change))
    with pytest.raises(Malformed, match="no valid public key") as caught:
        tpm.parse_ek(changed(Attester().ek_public, change))
    assert caught.value.code == "ek-malformed"


@pytest.mark.parametrize("size", [64, 255])
def test_modulus_shorter_than_it_says(size: int) -> None:
    """keyBits says 2048, and the modulus could be factored: refused."""

    def shorten(area: Any) -> None:
        area.unique.rsa = TPM2B_PUBLIC_KEY_RSA(b"\xff" * size)

    with pytest.raises(Malformed, match=f"a modulus of {8 * size} bits"):
        tpm.parse_ak(changed(VECTORS["rsassa"]["public"], shorten))
    with pytest.raises(Malformed, match=f"a modulus of {8 * size} bits"):
        tpm.parse_ek(changed(Attester().ek_public, shorten))


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("algorithm", TPM2_ALG.SM4),
        ("algorithm", TPM2_ALG.NULL),
        ("bits", 192),
        ("bits", 0x8000),
        ("mode", TPM2_ALG.CBC),
    ],
)
def test_an_ek_that_no_credential_can_be_made_for(member: str, value: int) -> None:
    """Refused before the cipher is asked for: AES of 128 or 256 bits in CFB mode is what templates have."""

    def change(area: Any) -> None:
        symmetric = area.parameters.rsaDetail.symmetric
        if member == "algorithm":
            symmetric.algorithm = value
        elif member == "bits":
            symmetric.keyBits.aes = value
        else:
            symmetric.mode.aes = value

    with pytest.raises(Refused, match="does not wrap with AES") as caught:
        tpm.parse_ek(changed(Attester().ek_public, change))
    assert caught.value.code == "ek-unsupported"


def test_an_ek_that_the_library_cannot_wrap_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """tpm2-pytss before 3.0 raises ValueError for an EK with AES-256; that is no defect of the server."""
    attester = Attester()

    def wrap(*_arguments: object) -> None:
        raise ValueError("Invalid IV size (32) for CFB.")

    monkeypatch.setattr(tpm, "pytss_make_credential", wrap)
    with pytest.raises(Refused, match="tpm2-pytss cannot wrap for this EK") as caught:
        tpm.make_credential(tpm.parse_ek(attester.ek_public), b"name", bytes(32))
    assert caught.value.code == "ek-unsupported"


def test_ek_is_no_ak() -> None:
    """An EK cannot sign, and an AK is no EK."""
    attester = Attester()
    with pytest.raises(Refused) as caught:
        tpm.parse_ak(attester.ek_public)
    assert caught.value.code == "ak-unsuitable"
    with pytest.raises(Refused) as caught:
        tpm.parse_ek(attester.ak_public)
    assert caught.value.code == "ek-unsupported"


# --- keys without attributes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: rsa.generate_private_key(65537, 1024),  # noqa: S505 - has to be weak
        lambda: ec.generate_private_key(ec.SECP521R1()),
        lambda: dsa.generate_private_key(2048),
    ],
    ids=["weak RSA", "another curve", "DSA"],
)
def test_unusable_pem(make: Callable[[], Any]) -> None:
    """Weak and foreign keys are refused."""
    with pytest.raises(Malformed, match="neither RSA of 2048 bits"):
        tpm.ak_from_pem(pem(make()))


def test_pem_scheme() -> None:
    """A scheme that the key cannot sign with is refused; by default it is RSASSA or ECDSA with SHA-256."""
    ecc = pem(ec.generate_private_key(ec.SECP256R1()))
    assert (tpm.ak_from_pem(ecc).scheme, tpm.ak_from_pem(ecc).hash_name) == ("ecdsa", "sha256")
    with pytest.raises(Malformed, match="cannot sign with rsapss"):
        tpm.ak_from_pem(ecc, scheme="rsapss")
    with pytest.raises(Malformed, match="cannot sign with ecdsa"):
        tpm.ak_from_pem(VECTORS["pem"]["public"], scheme="ecdsa")
    with pytest.raises(Malformed, match="not a PEM"):
        tpm.ak_from_pem(b"hello")


# --- signatures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_signature(kind: str) -> None:
    """A signature holds over its message, and not over another."""
    attester = Attester(kind)
    key = tpm.parse_ak(attester.ak_public)
    signature = tpm.parse_signature(attester.sign(b"message"))
    tpm.verify_signature(key, signature, b"message")
    with pytest.raises(Refused) as caught:
        tpm.verify_signature(key, signature, b"another")
    assert caught.value.code == "signature-invalid"


@pytest.mark.parametrize("kind", KINDS)
def test_signature_of_another_key(kind: str) -> None:
    """A signature of the same kind by another key is refused."""
    key = tpm.parse_ak(Attester(kind).ak_public)
    with pytest.raises(Refused):
        tpm.verify_signature(key, tpm.parse_signature(Attester(kind).sign(b"message")), b"message")


@pytest.mark.parametrize(
    ("scheme", "hash_name"), [("rsapss", "sha256"), ("rsassa", "sha384"), ("rsassa", "sha512")]
)
def test_the_signature_does_not_choose(scheme: str, hash_name: str) -> None:
    """A signature that would hold under the scheme it names is refused if that is not the key's."""
    attester = Attester("rsa2048:rsassa-sha256")
    signature = tpm.parse_signature(attester.sign(b"message", scheme=scheme, hash_name=hash_name))
    with pytest.raises(Refused, match=f"says {scheme} with {hash_name}; the AK signs rsassa with sha256"):
        tpm.verify_signature(tpm.parse_ak(attester.ak_public), signature, b"message")


def test_the_signature_cannot_lie() -> None:
    """An RSAPSS signature that says it is RSASSA does not hold."""
    attester = Attester("rsa2048:rsassa-sha256")
    signature = tpm.parse_signature(attester.sign(b"m", scheme="rsapss", claim=("rsassa", "sha256")))
    with pytest.raises(Refused, match="not signed by"):
        tpm.verify_signature(tpm.parse_ak(attester.ak_public), signature, b"m")


@pytest.mark.parametrize("raw", [b"", b"\0" * 256, b"\xff" * 256, b"\1" * 255, b"\1" * 257])
def test_degenerate_rsa(raw: bytes) -> None:
    """Blocks that no key makes are refused, not failed on."""
    key = tpm.parse_ak(VECTORS["rsassa"]["public"])
    with pytest.raises(Refused):
        tpm.verify_signature(key, tpm.Signature("rsassa", "sha256", raw), b"m")


@pytest.mark.parametrize(
    ("r", "s"), [(b"", b""), (b"\0", b"\0"), (b"\1", b"\0"), (b"\xff" * 32, b"\xff" * 32)]
)
def test_degenerate_ecdsa(r: bytes, s: bytes) -> None:
    """Zero and out-of-range numbers are refused, not failed on."""
    parts = b"".join(len(part).to_bytes(2, "big") + part for part in (r, s))
    signature = tpm.parse_signature(b"\x00\x18\x00\x0b" + parts)
    with pytest.raises(Refused):
        tpm.verify_signature(tpm.parse_ak(VECTORS["p256"]["public"]), signature, b"m")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x00\x05\x00\x0b" + bytes(32), "scheme 0x0005"),
        (b"\x00\x10", "scheme 0x0010"),
        (tpmt_signature(b"\1" * 256, "rsassa", "sha1", ecdsa=False), "hash 0x0004"),
    ],
)
def test_unsupported_signature(data: bytes, message: str) -> None:
    """HMAC, no signature at all, SHA-1."""
    with pytest.raises(Malformed, match=message) as caught:
        tpm.parse_signature(data)
    assert caught.value.code == "evidence-unsupported"


# --- what a quote says -----------------------------------------------------------------------------------------------


def test_attest_of_a_tpm() -> None:
    """The fields of a quote that a TPM made."""
    attest = tpm.parse_attest(VECTORS["two-banks"]["message"])
    assert attest.magic_ok
    assert attest.is_quote
    assert attest.banks == (("sha256", (0, 2)), ("sha384", (0, 2)))
    assert attest.extra_data == bytes.fromhex("c0ffee00" * 4)
    assert len(attest.pcr_digest) == 32
    assert attest.clock_info.clock > 0
    assert attest.firmware_version > 0


def by_library(data: bytes) -> tuple[object, ...] | None:
    """The quote as tpm2_pytss reads it, or None."""
    try:
        attest, consumed = TPMS_ATTEST.unmarshal(data)
        quote, clock = attest.attested.quote, attest.clockInfo
        banks = [quote.pcrSelect.pcrSelections[at] for at in range(int(quote.pcrSelect.count))]
    except Exception:  # noqa: BLE001 - whatever it raises, it did not read it
        return None
    if consumed != len(data):
        return None
    return (
        (bytes(attest.extraData.buffer), bytes(quote.pcrDigest.buffer), int(attest.firmwareVersion)),
        (int(clock.clock), int(clock.resetCount), int(clock.restartCount), int(clock.safe) == 1),
        [(int(bank.hash), bytes(bank.pcrSelect)[: int(bank.sizeofSelect)]) for bank in banks],
    )


def by_us(data: bytes) -> tuple[object, ...] | None:
    """The same of :func:`tpm.parse_attest`."""
    try:
        attest = tpm.parse_attest(data)
    except Malformed:
        return None
    clock = attest.clock_info
    return (
        (attest.extra_data, attest.pcr_digest, attest.firmware_version),
        (clock.clock, clock.reset_count, clock.restart_count, clock.safe),
        attest.banks,
    )


#: Name sizes and other ends of parts lie in the first bytes; the type is left alone, so that it stays a quote.
CHANGES = st.lists(st.tuples(st.integers(6, 200), st.integers(0, 255)), max_size=4)


@given(
    st.sampled_from(["rsassa", "two-banks", "sha1-bank"]), CHANGES, st.integers(0, 3), st.binary(max_size=2)
)
def test_quotes_are_read_as_the_library_reads_them(
    name: str, changes: list[tuple[int, int]], cut: int, tail: bytes
) -> None:
    """Our reader takes and refuses the quotes that tpm2_pytss takes and refuses, and sees the same in them."""
    data = bytearray(VECTORS[name]["message"])
    for at, value in changes:
        data[at % len(data)] = value if at % len(data) >= 6 else data[at % len(data)]
    mutated = bytes(data[: len(data) - cut]) + tail
    theirs, ours = by_library(mutated), by_us(mutated)
    assert (theirs is None) == (ours is None)
    if theirs is None or ours is None:
        return
    assert theirs[:2] == ours[:2]
    assert [bits(bitmap) for _, bitmap in theirs[2]] == [pcrs for _, pcrs in ours[2]]  # type: ignore[attr-defined]


def bits(bitmap: bytes) -> tuple[int, ...]:
    return tuple(bit for bit in range(8 * len(bitmap)) if bitmap[bit // 8] & 1 << bit % 8)


@pytest.mark.parametrize("kind", KINDS)
def test_signatures_are_read_as_the_library_reads_them(kind: str) -> None:
    """Scheme, hash and numbers, of each kind of key."""
    data = Attester(kind).sign(b"message")
    theirs, ours = TPMT_SIGNATURE.unmarshal(data)[0], tpm.parse_signature(data)
    body = getattr(theirs.signature, ours.scheme)
    assert int(theirs.sigAlg) == int(TPM2_ALG.parse(ours.scheme))
    assert int(body.hash) == int(TPM2_ALG.parse(ours.hash_name))
    if ours.scheme == "ecdsa":
        numbers = tuple(
            int.from_bytes(bytes(part.buffer), "big") for part in (body.signatureR, body.signatureS)
        )
        assert decode_dss_signature(ours.raw) == numbers
    else:
        assert ours.raw == bytes(body.sig.buffer)


def test_attest_without_magic() -> None:
    """A foreign magic is read and told: the caller refuses it after the signature."""
    attest = tpm.parse_attest(VECTORS["magic"]["message"])
    assert not attest.magic_ok


def test_attest_of_another_type() -> None:
    """TPM2_GetTime's answer is no quote and has no PCRs."""
    clock = bytes(8 + 4 + 4 + 1)
    head = b"\xff\x54\x43\x47\x80\x19" + bytes(2) + bytes(2)
    attest = tpm.parse_attest(head + clock + bytes(8) + bytes(8) + clock + bytes(8))
    assert attest.magic_ok
    assert not attest.is_quote
    assert (attest.banks, attest.pcr_digest) == ((), b"")


def test_unknown_bank_is_told() -> None:
    """A bank that is not accepted keeps its number, so that a refusal can name it."""
    assert tpm.parse_attest(VECTORS["sha1-bank"]["message"]).banks == (("alg 0x0004", (0, 2)),)


# --- credential activation -------------------------------------------------------------------------------------------


def test_make_credential() -> None:
    """A secret of make_credential is recovered only by the EK's holder, and only for that AK."""
    attester = Attester()
    ek, ak = tpm.parse_ek(attester.ek_public), tpm.parse_ak(attester.ak_public)
    blob, secret = tpm.make_credential(ek, ak.name, b"s" * 32)
    assert attester.activate(blob, secret, ak.name) == b"s" * 32
    with pytest.raises(ValueError, match="another key"):
        attester.activate(blob, secret, tpm.parse_ak(Attester().ak_public).name)
