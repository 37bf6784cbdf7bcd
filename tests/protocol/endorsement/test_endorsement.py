"""Step 1a: EK certificates, from what an NV index holds to a verified endorsement key."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from asn1crypto import x509 as asn1
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ObjectIdentifier
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tpm2_pytss import ESAPI, ESYS_TR

from tang_attest.errors import Malformed, Refused, TangAttestError
from tang_attest.protocol.endorsement import chain as ek_chain
from tang_attest.protocol.endorsement import endorsement
from tang_attest.protocol.endorsement.endorsement import EndorsementKey, Root, parse_roots, trim_certificate
from tang_attest.protocol.tpm import parse_ek
from tang_attest.protocol.x509.keys import public_key, verify_signature
from tang_attest.protocol.x509.loose import read_certificate
from tests.protocol.endorsement import ek_pki as pki
from tests.protocol.endorsement.ek_pki import NOW, Issued
from tests.swtpm import end

SHA1 = hashes.SHA1()  # noqa: S303 - that it is refused is what is tested
VECTORS = Path(__file__).parents[2] / "vectors" / "ek"

ROOT = pki.ca("Root")
INTERMEDIATE = pki.ca("EK CA 1", ROOT)
EK = pki.ek(INTERMEDIATE)


def verify(
    leaf: Issued | bytes,
    roots: Sequence[Issued | bytes],
    sent: Sequence[Issued | bytes] = (),
    *,
    key: bytes | None = None,
    now: datetime = NOW,
) -> EndorsementKey:
    """Verify *leaf* for its own key, or *key*, with the intermediates that the device *sent*."""
    der = leaf if isinstance(leaf, bytes) else leaf.der
    own = key or (leaf.spki if isinstance(leaf, Issued) else read_certificate(der).spki)
    anchors = [Root(c if isinstance(c, bytes) else c.der, "an anchor") for c in roots]
    steps = [c if isinstance(c, bytes) else c.der for c in sent]
    return endorsement.verify_ek_certificate(der, own, anchors, steps, now)


def refusal(*args: object, **options: object) -> list[tuple[str, str]]:
    """The code and the sentence of each reason why :func:`verify` refuses."""
    with pytest.raises(Refused) as caught:
        verify(*args, **options)  # type: ignore[arg-type]
    return [(reason.code, reason.sentence) for reason in caught.value.reasons]


# --- trimming ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [b"", b"\xff", b"\xff" * 500, b"\x00" * 500])
def test_padding_of_the_nv_index_is_taken_off(padding: bytes) -> None:
    """An NV index is larger than its certificate; what fills it is no part of the certificate."""
    assert trim_certificate(EK.der + padding) == EK.der


@pytest.mark.parametrize("padding", [b"", b"\xff" * 20])
def test_octet_string_around_the_certificate_is_taken_off(padding: bytes) -> None:
    """Some vendors store the certificate inside an OCTET STRING (keylime#1891)."""
    assert trim_certificate(pki.tlv(0x04, EK.der) + padding) == EK.der


@pytest.mark.parametrize("size", [1, 0x7F, 0x80, 0xFF, 0x100, 0x3FF])
def test_every_der_length_is_understood(size: int) -> None:
    """The length has one, two or three octets, the first value after each step included."""
    element = pki.tlv(0x30, bytes(size))
    assert trim_certificate(element + b"\xff\xff") == element


@pytest.mark.parametrize(
    ("nv", "sentence"),
    [
        (b"", "The EK certificate is too short: need 2 bytes, had 0."),
        (b"\x30", "The EK certificate is too short: need 2 bytes, had 1."),
        (b"\xff" * 64, "The EK certificate starts with 0xff, not as a SEQUENCE (0x30)."),
        (b"\x30\x82\x02", "The EK certificate's outer length is not DER."),
        (b"\x30\x82\x04\x00" + bytes(16), "The EK certificate is too short: need 1028 bytes, had 20."),
        (b"\x30\x80\x00\x00", "The EK certificate's outer length is not DER."),
        (b"\x30\x83\x00\x00\x01\x00", "The EK certificate's outer length is not DER."),
        (b"\x30\x82\x00\x80" + bytes(128), "The EK certificate's outer length is not DER."),
        (b"\x30\x81\x05" + bytes(5), "The EK certificate's outer length is not DER."),
        (
            b"\x10\x01\x00\x04\x00" + bytes(1024),
            "The EK certificate has the TCG_PCCLIENT_STORED_CERT header of a TPM 1.2.",
        ),
        (
            b"\x10\x01\x01\x00\x03\x30\x01\x00",
            "The EK certificate has the TCG_PCCLIENT_STORED_CERT header of a TPM 1.2.",
        ),
        (b"\x10\x01", "The EK certificate has the TCG_PCCLIENT_STORED_CERT header of a TPM 1.2."),
        (b"\x1f\x8b" + bytes(90), "The EK certificate is compressed (gzip), which is not read."),
        (b"\x00\x03\x30\x02", "The EK certificate starts with 0x00, not as a SEQUENCE (0x30)."),
        (EK.pem.partition(b"-----END")[0], "A certificate in the file has no end line."),
        (EK.pem + EK.pem, "The EK certificate's index holds 2 certificates as PEM, not one."),
        (
            EK.pem + b"-----BEGIN PRIVATE KEY-----\n",
            "The file has a 'PRIVATE KEY' block, not only certificates.",
        ),
        (EK.der + b"garbage", "7 bytes follow the EK certificate that are not padding."),
        (EK.der + b"\xff\x00", "2 bytes follow the EK certificate that are not padding."),
        (pki.tlv(0x04, EK.der + b"x"), "1 bytes follow the EK certificate that are not padding."),
        (b"\x30" + bytes(8192), "The EK certificate has 8193 bytes, and 8192 is the limit."),
    ],
)
def test_what_is_not_one_certificate_and_padding_is_malformed(nv: bytes, sentence: str) -> None:
    """Each refusal says what is there instead of a certificate."""
    with pytest.raises(Malformed) as caught:
        trim_certificate(nv)
    assert (caught.value.code, caught.value.sentence) == ("ek-malformed", sentence)


_WRAPPINGS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("stored certificate", lambda der: b"\x10\x01\x00" + len(der).to_bytes(2) + der),
    ("full certificate", lambda der: b"\x10\x01\x00" + (len(der) + 2).to_bytes(2) + b"\x10\x02" + der),
    ("two octets", lambda der: len(der).to_bytes(2) + der),
    ("two octets, little-endian", lambda der: len(der).to_bytes(2, "little") + der),
    ("four octets", lambda der: len(der).to_bytes(4) + der),
    ("four octets, little-endian", lambda der: len(der).to_bytes(4, "little") + der),
    ("PEM", lambda der: x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM)),
    ("PEM, CRLF", lambda der: EK.pem.replace(b"\n", b"\r\n")),
]


@pytest.mark.parametrize("padding", [b"", b"\xff" * 40, bytes(40)], ids=["exact", "ff", "00"])
@pytest.mark.parametrize("wrap", [wrap for _, wrap in _WRAPPINGS], ids=[name for name, _ in _WRAPPINGS])
def test_what_tools_and_vendors_put_around_a_certificate(
    wrap: Callable[[bytes], bytes], padding: bytes
) -> None:
    """The header of a TPM 1.2, a length and PEM are taken off; what is inside is the certificate."""
    assert trim_certificate(wrap(EK.der) + padding) == EK.der


# --- good chains -------------------------------------------------------------------------------------------


def test_chain_over_an_intermediate_that_the_device_sent() -> None:
    """Root by the operator, intermediate by the device; the result says who vouches for what."""
    assert verify(EK, [ROOT], [INTERMEDIATE]) == EndorsementKey(
        public_der=EK.spki,
        verified=True,
        certificate=EK.der,
        issuer=read_certificate(INTERMEDIATE.der).subject,
        subject_hint="NTC NPCT75x id:00070002",
        root="an anchor",
        root_fingerprint=ROOT.certificate.fingerprint(hashes.SHA256()).hex(),
    )


def test_anchors_may_hold_the_intermediate_too() -> None:
    """A vendor's bundle with roots and intermediates works as it is; the nearest anchor ends the chain."""
    found = verify(EK, [ROOT, INTERMEDIATE])
    assert found.root_fingerprint == INTERMEDIATE.certificate.fingerprint(hashes.SHA256()).hex()


def test_an_intermediate_alone_is_an_anchor() -> None:
    """Every certificate that the operator adds is a trust anchor, self-signed or not."""
    assert verify(EK, [INTERMEDIATE]).verified


def test_one_tpm_can_be_pinned_by_its_own_certificate() -> None:
    """An EK certificate that the operator added is its own chain; even a self-signed one."""
    alone = pki.ek(pki.ca("Nobody"))
    assert verify(alone, [alone]).verified


@pytest.mark.parametrize(
    "key",
    [pki.rsa_key("ek"), pki.ec_key(), pki.ec_key(ec.SECP384R1())],
    ids=["rsa2048", "p256", "p384"],
)
def test_every_kind_of_ek_and_of_issuer(key: pki.Key) -> None:
    """RSA and EC endorsement keys, each under RSA and EC issuers."""
    for issuer in (
        ROOT,
        pki.ca("RSA Root", key=pki.rsa_key("ca")),
        pki.ca("P-384", key=pki.ec_key(ec.SECP384R1())),
    ):
        assert verify(pki.ek(issuer, key=key), [issuer]).public_der == pki.spki(key)


def test_oaep_public_key_is_the_same_key() -> None:
    """A certificate may name the RSA key's algorithm id-RSAES-OAEP; only the numbers count."""
    key = pki.rsa_key("ek")
    rsa_oid, oaep_oid = (bytes.fromhex(f"06092a864886f70d0101{last}0500") for last in ("01", "07"))
    leaf = pki.resign(pki.ek(ROOT, key=key).der, ROOT.key, pki.swap(rsa_oid, oaep_oid))
    with pytest.raises(UnsupportedAlgorithm):  # the premise: cryptography does not read this one
        serialization.load_der_public_key(read_certificate(leaf).spki)
    assert verify(leaf, [ROOT], key=pki.spki(key)).public_der == pki.spki(key)


def test_no_key_ids_and_no_eku() -> None:
    """Key identifiers and the EKU are checked where they are present, and are not required."""
    root = pki.ca("Bare Root", key_ids=False)
    assert verify(pki.ek(root, purposes=None), [root]).verified


def test_two_cas_of_one_name() -> None:
    """Vendors reuse names: a wrong namesake, expired or not, does not hide the right one."""
    namesakes = [
        pki.ca("Root"),
        pki.ca("Root", key_ids=False),
        pki.ca("Root", not_after=NOW - timedelta(days=1)),
    ]
    assert verify(EK, [*namesakes, ROOT], [INTERMEDIATE]).verified


def test_five_issuers_are_the_limit() -> None:
    """A chain of five issuers passes; with six the root is not reached."""
    chain = [pki.ca("Level 0")]
    for level in range(1, 6):
        chain.append(pki.ca(f"Level {level}", chain[-1]))
    assert verify(pki.ek(chain[4]), chain[:1], chain[1:5]).verified
    assert refusal(pki.ek(chain[5]), chain[:1], chain[1:])[0][1].startswith(
        "The chain is longer than 5 issuers"
    )


def test_path_length_that_is_kept() -> None:
    """pathLenConstraint counts intermediates, not the leaf."""
    root = pki.ca("Root 0", path_length=0)
    assert verify(pki.ek(root), [root]).verified
    longer = pki.ca("Root 1", path_length=1)
    middle = pki.ca("Middle", longer, path_length=0)
    assert verify(pki.ek(middle), [longer], [middle]).verified


# --- refusals ----------------------------------------------------------------------------------------------


def test_missing_root_is_named() -> None:
    """(3) The refusal names the issuer and key id to look for, not just that something is untrusted."""
    identifier = read_certificate(INTERMEDIATE.der).authority_key_id
    assert identifier is not None
    with pytest.raises(Refused) as caught:
        verify(EK, [pki.ca("Another Root")], [INTERMEDIATE])
    (reason,) = caught.value.reasons
    issuer = "CN=Root, O=TPM Works"
    assert reason.sentence == f"No root for issuer '{issuer}' (authority key id {identifier.hex(':')})."
    assert reason.as_json() == {
        "code": "ek-untrusted",
        "sentence": reason.sentence,
        "issuer": issuer,
        "authority_key_id": identifier.hex(),
    }


def test_missing_intermediate_is_named() -> None:
    """(3) With the root but without the intermediate, the intermediate is what is missing."""
    identifier = read_certificate(EK.der).authority_key_id
    assert identifier is not None
    with pytest.raises(Refused) as caught:
        verify(EK, [ROOT])
    (reason,) = caught.value.reasons
    issuer, key_id = "CN=EK CA 1, O=TPM Works", identifier.hex(":")
    assert (
        reason.sentence
        == f"No intermediate for issuer '{issuer}' (authority key id {key_id}), nor a root of that name."
    )
    assert dict(reason.data) == {"issuer": issuer, "authority_key_id": identifier.hex()}


def test_no_roots_at_all() -> None:
    """An empty list of roots refuses; it does not mean that everything goes."""
    assert [code for code, _ in refusal(EK, [])] == ["ek-untrusted"]


def test_self_signed_leaf_is_refused() -> None:
    """(3) A device cannot vouch for itself, not even by sending its certificate along as an intermediate."""
    leaf = pki.issue(pki.name("Me"), None, (x509.ExtendedKeyUsage([pki.EK_CERTIFICATE]), False))
    assert refusal(leaf, [ROOT])[0][1].startswith("No root for issuer 'CN=Me")
    assert refusal(leaf, [ROOT], [leaf])[0][1].startswith("No root for issuer 'CN=Me")


def test_root_of_the_same_name_and_key_id_but_another_key() -> None:
    """(3) Names and identifiers only choose; a forged root of the same name does not verify."""
    forged = pki.ca("Root", key_ids=False)
    ((_, sentence),) = refusal(pki.ek(ROOT), [forged])
    assert sentence.endswith("is not signed by the key of 'CN=Root, O=TPM Works'.")


def test_tampered_certificate() -> None:
    """(3) One changed bit in the signed part is one refusal."""
    serial = EK.der.index(bytes.fromhex("11223344"))
    tampered = EK.der[:serial] + b"\x12" + EK.der[serial + 1 :]
    ((code, sentence),) = refusal(tampered, [INTERMEDIATE])
    assert code == "ek-untrusted"
    ca = "'CN=EK CA 1, O=TPM Works'"
    assert sentence == f"The certificate by {ca} is not signed by the key of {ca}."


@pytest.mark.parametrize("key", [pki.rsa_key("other"), pki.ec_key(), pki.ec_key(ec.SECP384R1())])
def test_certificate_for_another_key(key: pki.Key) -> None:
    """(2) Somebody else's genuine certificate is no use, whatever the two keys are."""
    expected = [("ek-mismatch", "The EK certificate is for another key than this TPM's EK.")]
    assert refusal(EK, [INTERMEDIATE], key=pki.spki(key)) == expected


def test_expired_leaf() -> None:
    """(4) The certificate that expired is named, with its date."""
    leaf = pki.ek(ROOT, not_after=NOW - timedelta(days=1))
    expected = [("ek-expired", "The certificate by 'CN=Root, O=TPM Works' expired on 2026-05-31.")]
    assert refusal(leaf, [ROOT]) == expected


def test_leaf_that_is_not_valid_yet() -> None:
    """(4) A date in the future is refused as well: one of the clocks is wrong."""
    leaf = pki.ek(ROOT, not_before=NOW + timedelta(days=1))
    ((_, sentence),) = refusal(leaf, [ROOT])
    assert sentence == "The certificate by 'CN=Root, O=TPM Works' is not valid before 2026-06-02."


def test_both_ends_of_the_validity_belong_to_it() -> None:
    """(4) Valid from the first second to the last (RFC 5280, section 4.1.2.5)."""
    first, last = NOW - timedelta(days=2), NOW + timedelta(days=2)
    leaf = pki.ek(ROOT, not_before=first, not_after=last)
    assert verify(leaf, [ROOT], now=first).verified
    assert verify(leaf, [ROOT], now=last).verified
    assert refusal(leaf, [ROOT], now=first - timedelta(seconds=1))
    assert refusal(leaf, [ROOT], now=last + timedelta(seconds=1))


def test_expired_intermediate_and_expired_root() -> None:
    """(4) The chain has to be valid as well, the operator's anchor included."""
    old = pki.ca("Old CA", ROOT, not_after=NOW - timedelta(days=1))
    expected = [("ek-expired", "The certificate of 'CN=Old CA, O=TPM Works' expired on 2026-05-31.")]
    assert refusal(pki.ek(old), [ROOT], [old]) == expected
    assert refusal(pki.ek(old), [old]) == expected


def test_dates_need_a_time_zone() -> None:
    """A naive clock is a mistake in the program, not a refusal."""
    with pytest.raises(ValueError, match="aware"):
        verify(EK, [ROOT], now=NOW.replace(tzinfo=None))


@pytest.mark.parametrize(
    "purposes",
    [
        (pki.PLATFORM_CERTIFICATE,),
        (ObjectIdentifier("2.5.29.37.0"),),
        (ObjectIdentifier("1.3.6.1.5.5.7.3.2"),),
    ],
    ids=["platform", "any", "client-auth"],
)
def test_certificate_for_another_purpose(purposes: tuple[ObjectIdentifier, ...]) -> None:
    """(5) When there is an EKU, it holds 2.23.133.8.1."""
    found = purposes[0].dotted_string
    expected = [("ek-mismatch", f"The certificate is for {found}, not for an EK (2.23.133.8.1).")]
    assert refusal(pki.ek(ROOT, purposes=purposes), [ROOT]) == expected


def test_issuer_that_is_not_a_ca() -> None:
    """(3) An EK certificate cannot issue another one."""
    middle = pki.ca("Not a CA", ROOT, is_ca=False, cert_sign=False)
    sentences = [sentence for _, sentence in refusal(pki.ek(middle), [ROOT], [middle])]
    assert sentences == [
        "The certificate of 'CN=Not a CA, O=TPM Works' is not a CA's, so its key cannot issue others.",
        "The certificate of 'CN=Not a CA, O=TPM Works' has a key usage without signing certificates.",
    ]


def test_issuer_without_basic_constraints() -> None:
    """(3) Saying nothing is not being a CA."""
    middle = pki.issue(pki.name("Silent"), ROOT)
    assert "is not a CA's" in refusal(pki.ek(middle), [ROOT], [middle])[0][1]


def test_issuer_without_cert_sign() -> None:
    """(3) A key usage without keyCertSign forbids issuing, for an anchor too."""
    middle = pki.ca("Signer", ROOT, cert_sign=False)
    for roots, sent in (([ROOT], [middle]), ([middle], [])):
        ((_, sentence),) = refusal(pki.ek(middle), roots, sent)
        assert sentence.endswith("has a key usage without signing certificates.")


def test_issuer_for_another_purpose() -> None:
    """(3) A CA that is restricted to other purposes does not issue EK certificates."""
    web = pki.ca("Web CA", ROOT, (x509.ExtendedKeyUsage([ObjectIdentifier("1.3.6.1.5.5.7.3.1")]), True))
    ((_, sentence),) = refusal(pki.ek(web), [ROOT], [web])
    assert sentence.endswith("is a CA's for other purposes than EK certificates.")
    intel = pki.ca("EK CA", ROOT, (x509.ExtendedKeyUsage([pki.EK_CERTIFICATE]), True))
    assert verify(pki.ek(intel), [ROOT], [intel]).verified


def test_path_length_that_is_exceeded() -> None:
    """(3) An issuer's path length binds everything below it, an anchor's too."""
    root = pki.ca("Root 0", path_length=0)
    middle = pki.ca("Middle", root)
    expected = "The certificate of 'CN=Root 0, O=TPM Works' allows 0 intermediates, and there are 1."
    assert refusal(pki.ek(middle), [root], [middle]) == [("ek-untrusted", expected)]


def test_namesake_with_another_key_id_is_not_asked() -> None:
    """(3) A namesake whose key id is another is not the issuer: the missing root is reported."""
    ((_, sentence),) = refusal(pki.ek(ROOT), [pki.ca("Root")])
    assert sentence.startswith("No root for issuer 'CN=Root, O=TPM Works'")


def test_self_issued_certificates_do_not_count_for_the_path_length() -> None:
    """(3) A CA that signs its own new key keeps its place in the chain (RFC 5280, section 6.1.4 (l))."""
    root = pki.ca("Root 0", path_length=0)
    new_key = pki.ca("Root 0", root)
    assert verify(pki.ek(new_key), [root], [new_key]).verified


def test_cycle_of_intermediates_ends() -> None:
    """(3) Two CAs that issued each other lead nowhere, and the search says so."""
    one, two = pki.ca("One"), pki.ca("Two")
    one_by_two = pki.ca("One", two, key=one.key)
    two_by_one = pki.ca("Two", one, key=two.key)
    reasons = refusal(pki.ek(one_by_two), [ROOT], [one_by_two, two_by_one])
    assert [code for code, _ in reasons] == ["ek-untrusted"]
    assert reasons[0][1].startswith("No root for issuer")


def test_work_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """(3) Eight cross-signed intermediates cost no more than each being looked at from each other."""
    calls = []

    def counted(*args: object) -> None:
        calls.append(args)
        verify_signature(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(ek_chain, "verify_signature", counted)
    key = pki.ec_key()
    twins = [pki.ca("Twin", key=key) for _ in range(8)]
    refusal(pki.ek(twins[0]), [ROOT], twins)
    assert len(calls) <= 8 * 9


def test_too_many_or_too_large_certificates() -> None:
    """(1) What a device may send along is bounded before any of it is read."""
    with pytest.raises(Malformed, match="9 intermediates"):
        verify(EK, [ROOT], [INTERMEDIATE] * 9)
    with pytest.raises(Malformed, match="8193 bytes"):
        verify(EK, [ROOT], [bytes(8193)])


def test_unknown_critical_extension() -> None:
    """(6) A critical extension that we do not understand is refused by its number, in any certificate."""
    unknown = (x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True)
    ((code, sentence),) = refusal(pki.ek(ROOT, unknown), [ROOT])
    assert code == "ek-unsupported"
    assert sentence.endswith("has critical extensions not known here: 1.2.3.4.")
    middle = pki.ca("Odd", ROOT, unknown)
    assert refusal(pki.ek(middle), [ROOT], [middle])[0][0] == "ek-unsupported"


def test_name_constraints_are_not_ignored() -> None:
    """(6) Constraints that we do not evaluate are refused, as they are critical."""
    constraints = x509.NameConstraints([x509.DNSName("example.com")], None)
    middle = pki.ca("Constrained", ROOT, (constraints, True))
    assert refusal(pki.ek(middle), [ROOT], [middle])[0][1].endswith("2.5.29.30.")


def test_unknown_extension_that_is_not_critical() -> None:
    """(6) Vendors add their own; the ones that are not critical do not matter."""
    unknown = (x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b"\x05\x00"), False)
    assert verify(pki.ek(ROOT, unknown), [ROOT]).verified


def test_critical_subject_alt_name_with_another_kind_of_name() -> None:
    """(6) Only directory names are understood in the critical subjectAltName."""
    leaf = pki.ek(ROOT, names=(pki.tpm_name(), x509.DNSName("tpm.example")))
    ((code, sentence),) = refusal(leaf, [ROOT])
    assert code == "ek-unsupported"
    assert sentence.endswith("2.5.29.17.")


def test_sha1_signature() -> None:
    """(7) A SHA-1 signature is refused even though it holds."""
    root = pki.ca("RSA Root", key=pki.rsa_key("ca"))
    sha256, sha1 = (bytes.fromhex(f"06092a864886f70d0101{last}0500") for last in ("0b", "05"))
    leaf = pki.resign(pki.ek(root).der, root.key, pki.swap(sha256, sha1), SHA1)
    ((code, sentence),) = refusal(leaf, [root])
    assert (code, "is signed with SHA-1" in sentence) == ("ek-unsupported", True)


def test_other_signature_algorithms() -> None:
    """(7) What is not in the table is refused by number; the issuer's key has to be of its kind."""
    root = pki.ca("RSA Root", key=pki.rsa_key("ca"))
    sha256, pss = (bytes.fromhex(f"06092a864886f70d0101{last}0500") for last in ("0b", "0a"))
    leaf = pki.resign(pki.ek(root).der, root.key, pki.swap(sha256, pss))
    assert "is signed with 1.2.840.113549.1.1.10" in refusal(leaf, [root])[0][1]
    elliptic = pki.ca("RSA Root", key_ids=False)
    assert "is not signed by the key" in refusal(pki.ek(root), [elliptic])[0][1]


def test_small_rsa_keys() -> None:
    """(7) RSA of less than 2048 bits is refused, in the leaf and in an issuer."""
    small = pki.rsa_key("small", 1024)
    sentence = "RSA keys need 2048 to 8192 bits, this one has 1024."
    root = pki.ca("Small Root", key=small)
    code, found = refusal(pki.ek(root), [root])[0]
    assert (code, found.endswith(sentence)) == ("ek-unsupported", True)
    assert refusal(pki.ek(ROOT, key=small), [ROOT], key=EK.spki)[0][1].endswith(sentence)
    assert refusal(EK, [INTERMEDIATE], key=pki.spki(small)) == [("ek-unsupported", sentence)]


def test_all_reasons_at_once() -> None:
    """Everything that is wrong is in one refusal, the leaf's own faults first."""
    leaf = pki.ek(pki.ca("Unknown"), purposes=(pki.PLATFORM_CERTIFICATE,), not_after=NOW - timedelta(days=1))
    sentences = [sentence for _, sentence in refusal(leaf, [ROOT], key=EK.spki)]
    starts = [
        "The EK certificate is for another key",
        "The certificate by",
        "The certificate is for",
        "No intermediate for issuer 'CN=Unknown",
    ]
    assert [s.startswith(start) for s, start in zip(sentences, starts, strict=True)] == [True] * 4


# --- keys --------------------------------------------------------------------------------------------------


def test_keys_of_other_kinds() -> None:
    """Ed25519 and curves other than P-256, P-384 and P-521 are unsupported, not malformed."""
    edwards = ed25519.Ed25519PrivateKey.generate().public_key()
    der = edwards.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    for spki in (der, pki.spki(pki.ec_key(ec.SECP256K1()))):
        with pytest.raises(Refused) as caught:
            public_key(spki)
        assert caught.value.code == "ek-unsupported"


def test_spelled_out_curve_is_refused() -> None:
    """A curve is named; parameters that are spelled out could have any generator (CVE-2020-0601)."""
    spki = subprocess.run(
        ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-param_enc", "explicit"],
        capture_output=True,
        check=True,
    ).stdout
    spki = subprocess.run(
        ["openssl", "ec", "-pubout", "-outform", "DER", "-param_enc", "explicit"],
        input=spki,
        capture_output=True,
        check=True,
    ).stdout
    with pytest.raises(Refused, match="spelled-out parameters"):
        public_key(spki)


def test_point_off_the_curve() -> None:
    """A point that is not on its curve is malformed."""
    spki = bytearray(EK.spki)
    spki[-1] ^= 1
    with pytest.raises(Malformed) as caught:
        public_key(bytes(spki))
    assert caught.value.code == "ek-malformed"


# --- encodings that strict readers refuse ------------------------------------------------------------------


def _set_out_of_order() -> tuple[bytes, bytes]:
    root = pki.ca("Loose Root")
    loose_root = pki.resign(root.der, root.key, pki.swap_names)
    return loose_root, pki.resign(pki.ek(root).der, root.key, pki.swap_names)


def _false_written_out() -> tuple[bytes, bytes]:
    # basicConstraints { cA FALSE }, which DER leaves out: Intel's EK certificates have it
    marked = (x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True)
    leaf = pki.ek(ROOT, marked)
    edit = pki.swap(bytes.fromhex("06032a03040101ff"), bytes.fromhex("06032a0304010100"))
    return ROOT.der, pki.resign(leaf.der, ROOT.key, edit)


def _negative_serial() -> tuple[bytes, bytes]:
    edit = pki.swap(bytes.fromhex("020411223344"), bytes.fromhex("020491223344"))
    return ROOT.der, pki.resign(pki.ek(ROOT).der, ROOT.key, edit)


@pytest.mark.parametrize(
    ("make", "strict_reader_fails"),
    [(_set_out_of_order, True), (_false_written_out, True), (_negative_serial, False)],
)
def test_loose_encodings(make: Callable[[], tuple[bytes, bytes]], strict_reader_fails: bool) -> None:
    """Certificates that vendors wrongly encoded verify, over the bytes as they wrote them."""
    root, leaf = make()
    if strict_reader_fails:  # the premise: otherwise this reader would not be needed
        with pytest.raises(ValueError, match=r"InvalidSetOrdering|EncodedDefault"):
            x509.load_der_x509_certificate(leaf).extensions  # noqa: B018
    assert verify(leaf, [root]).verified


_MODEL = bytes.fromhex("0605678105020206") + b"\x0c\x08NPCT75x"
_TEXT_TAGS = {"PrintableString": 0x13, "IA5String": 0x16, "T61String": 0x14, "VisibleString": 0x1A}


def _model_as(tag: int, leaf: Issued, signer: Issued) -> bytes:
    """*leaf* with the TPM's manufacturer, model and version written with another string type."""
    edited = leaf.der
    for text in pki.TPM.values():
        edited = edited.replace(pki.tlv(0x0C, text.encode()), pki.tlv(tag, text.encode()))
    tbs = asn1.Certificate.load(edited)["tbs_certificate"].dump()
    return pki.resign(leaf.der, signer.key, lambda data: tbs if len(data) == len(tbs) else data)


@pytest.mark.parametrize("tag", _TEXT_TAGS.values(), ids=_TEXT_TAGS)
def test_the_model_in_another_string_type(tag: int) -> None:
    """Nuvoton NPCT75x: PrintableString where the profile has UTF8String. A hint never refuses, and is still shown."""
    found = verify(_model_as(tag, EK, INTERMEDIATE), [INTERMEDIATE])
    assert (found.verified, found.subject_hint) == (True, "NTC NPCT75x id:00070002")


@pytest.mark.parametrize("tag", [0x02, 0x05, 0x30, 0x31, 0x1E, 0x1C], ids=hex)
def test_the_model_in_no_string_type(tag: int) -> None:
    """A hint that is a number, a structure or bad UTF-16 says nothing sensible and hinders nothing."""
    assert verify(_model_as(tag, EK, INTERMEDIATE), [INTERMEDIATE]).verified


def test_a_subject_that_names_the_tpm() -> None:
    """Some certificates have the TPM's attributes in the subject, in whatever type."""
    subject = x509.Name([x509.NameAttribute(ObjectIdentifier(oid), text) for oid, text in pki.TPM.items()])
    leaf = pki.issue(subject, ROOT, (x509.ExtendedKeyUsage([pki.EK_CERTIFICATE]), False))
    assert verify(_model_as(0x13, leaf, ROOT), [ROOT]).verified


def test_issuer_names_in_an_odd_type_are_compared_by_their_bytes() -> None:
    """A CA whose name the type table calls wrong still is the issuer of what it issued."""
    names = [x509.NameAttribute(ObjectIdentifier("2.23.133.2.1"), "id:4E544300")]
    usage = x509.KeyUsage(False, False, False, False, False, True, False, False, False)
    key = pki.ec_key()
    root = pki.issue(
        x509.Name(names), None, (x509.BasicConstraints(True, None), True), (usage, True), key=key
    )
    edit = pki.swap(pki.tlv(0x0C, b"id:4E544300"), pki.tlv(0x13, b"id:4E544300"))
    odd_root = pki.resign(root.der, key, edit)
    odd_leaf = pki.resign(pki.ek(root, names=(x509.DirectoryName(pki.name("x")),)).der, key, edit)
    assert verify(odd_leaf, [odd_root]).verified


@pytest.mark.parametrize("value", [b"\x05\x00", b"\x30\x03\x80", b"\xff\xff\xff", b"\x04\x05\x00"])
def test_key_identifiers_that_cannot_be_read(value: bytes) -> None:
    """Identifiers only choose whom to ask: an unreadable one is none."""
    authority, own = ObjectIdentifier("2.5.29.35"), ObjectIdentifier("2.5.29.14")
    odd = [(x509.UnrecognizedExtension(oid, value), False) for oid in (authority, own)]
    leaf = pki.issue(x509.Name([]), ROOT, *odd, key_ids=False)
    read = read_certificate(leaf.der)
    assert (read.authority_key_id, read.subject_key_id) == (None, None)
    assert verify(leaf, [ROOT]).verified


@pytest.mark.parametrize("oid", ["2.5.29.31", "2.5.29.9", "1.3.6.1.5.5.7.1.1", "2.5.29.32"])
def test_extensions_that_nobody_reads(oid: str) -> None:
    """CRL points, directory attributes, issuer URLs, policies: what is in them decides nothing."""
    odd = (x509.UnrecognizedExtension(ObjectIdentifier(oid), b"\x05\x01"), False)
    assert verify(pki.ek(ROOT, odd), [ROOT]).verified


def test_an_unreadable_alternative_name() -> None:
    """It is ignored where it is a hint, and refused by its number where it is critical."""
    for critical, expected in ((False, ()), (True, ("2.5.29.17",))):
        odd = (x509.UnrecognizedExtension(ObjectIdentifier("2.5.29.17"), b"\x30\x03\x80"), critical)
        leaf = pki.issue(x509.Name([]), ROOT, odd)
        assert read_certificate(leaf.der).unhandled_critical == expected
        if critical:
            assert refusal(leaf, [ROOT])[0][0] == "ek-unsupported"
        else:
            assert verify(leaf, [ROOT]).verified


def test_loose_encoding_is_no_loose_signature() -> None:
    """Reordering a SET without signing again is tampering: nothing is brought into order before the check."""
    root = pki.ca("Loose Root")
    leaf = pki.swap_names(pki.ek(root).der)
    assert leaf != pki.ek(root).der
    assert "is not signed by the key" in refusal(leaf, [root])[0][1]


def test_repeated_extension() -> None:
    """Two extensions of one kind are malformed: readers disagree which one counts."""
    first = (x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b"\x05\x00"), False)
    second = (x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.5"), b"\x05\x00"), False)
    leaf = pki.resign(
        pki.ek(ROOT, first, second).der,
        ROOT.key,
        pki.swap(bytes.fromhex("06032a0305"), bytes.fromhex("06032a0304")),
    )
    with pytest.raises(Malformed, match=r"1\.2\.3\.4 occurs twice"):
        verify(leaf, [ROOT])


def _with_extension(oid: bytes, value: bytes) -> bytes:
    """A certificate, not validly signed, whose only extension is the given one."""
    marker = x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), bytes(len(value)))
    der = pki.issue(pki.name("Odd"), None, (marker, False), key_ids=False).der
    assert len(oid) == 3
    return der.replace(b"\x06\x03\x2a\x03\x04", b"\x06\x03" + oid).replace(bytes(len(value)), value)


def test_negative_path_length() -> None:
    """A path length is not negative, and one of thousands of digits does not end up in a message."""
    for length in (b"\x02\x01\xff", b"\x02\x82\x10\x00\x80" + bytes(4095)):
        value = pki.tlv(0x30, b"\x01\x01\xff" + length)
        with pytest.raises(Malformed, match="negative"):
            read_certificate(_with_extension(b"\x55\x1d\x13", value))


def test_deep_nesting() -> None:
    """A name with a thousand boxes inside each other is no text; it does not exhaust Python's stack."""
    value = b"\x05\x00"
    while len(value) < 6000:
        value = pki.tlv(0x30, value)
    attribute = pki.tlv(0x30, b"\x06\x02\x2a\x03" + value)
    directory = pki.tlv(0xA4, pki.tlv(0x30, pki.tlv(0x31, attribute)))
    read = read_certificate(_with_extension(b"\x55\x1d\x11", pki.tlv(0x30, directory)))
    assert (read.tpm_model, read.unhandled_critical) == (None, ())


@pytest.mark.parametrize("modulus", [2**2048 - 2, 2**2047 + 1], ids=["even", "composite"])
def test_issuer_with_a_nonsense_rsa_key(modulus: int) -> None:
    """A device may send an intermediate with any numbers in it; that ends in a refusal."""
    key = pki.rsa_key("ca")
    real = key.public_key().public_numbers().n
    middle = pki.ca("RSA CA", ROOT, key=key, key_ids=False)
    edit = pki.swap(real.to_bytes(256), modulus.to_bytes(256))
    nonsense = pki.resign(middle.der, ROOT.key, edit)
    assert "ek-untrusted" in [code for code, _ in refusal(pki.ek(middle), [ROOT], [nonsense])]


def test_two_signature_algorithms() -> None:
    """The unsigned algorithm has to be the signed one (RFC 5280, section 4.1.1.2)."""
    sha256, sha384 = bytes.fromhex("06082a8648ce3d040302"), bytes.fromhex("06082a8648ce3d040303")
    leaf = EK.der[::-1].replace(sha256[::-1], sha384[::-1], 1)[::-1]
    with pytest.raises(Malformed, match="algorithm differ"):
        verify(leaf, [INTERMEDIATE])


def test_trailing_bytes_are_malformed() -> None:
    """verify_ek_certificate takes exactly one certificate; trimming is another function's."""
    with pytest.raises(Malformed) as caught:
        verify(EK.der + b"\x00", [INTERMEDIATE], key=EK.spki)
    assert caught.value.code == "ek-malformed"


def test_text_of_a_certificate_cannot_reach_the_terminal() -> None:
    """Escape sequences and right-to-left marks in a name come out as question marks."""
    root = pki.ca("\x1b[2J\u202eRoot")
    assert read_certificate(root.der).subject == "O=TPM Works, CN=?[2J?Root"


# --- roots -------------------------------------------------------------------------------------------------


def test_pem_bundle() -> None:
    """Roots and intermediates in one file, with text between them; repetitions count once."""
    roots = parse_roots(b"# a vendor's bundle\n" + ROOT.pem + b"\n\n" + INTERMEDIATE.pem + ROOT.pem)
    assert [root.der for root in roots] == [ROOT.der, INTERMEDIATE.der]
    assert [root.label for root in roots] == ["CN=Root, O=TPM Works", "CN=EK CA 1, O=TPM Works"]
    assert roots[0].fingerprint == ROOT.certificate.fingerprint(hashes.SHA256()).hex()


def test_pem_with_dos_line_ends_and_der() -> None:
    """Vendors publish both."""
    assert parse_roots(ROOT.pem.replace(b"\n", b"\r\n")) == parse_roots(ROOT.der)


@pytest.mark.parametrize("padding", [b"\xff" * 300, bytes(300), b"\xff"])
def test_what_nvread_wrote_is_a_root(padding: bytes) -> None:
    """An operator who pins one TPM gives its certificate as `tpm2 nvread` wrote it: padded to the size of the index."""
    assert parse_roots(EK.der + padding) == parse_roots(EK.der)
    assert parse_roots(len(EK.der).to_bytes(2) + EK.der + padding) == parse_roots(EK.der)
    assert verify(EK, [parse_roots(EK.der + padding)[0].der]).verified


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "The file is empty, and should hold a certificate as PEM or DER."),
        (b"hello", "A certificate cannot be read"),
        (ROOT.der + b"\n", "A certificate cannot be read"),
        (b"\xff" * 700, "A certificate cannot be read"),
        (ROOT.der + b"\xff\x00", "A certificate cannot be read"),
        (
            b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----",
            "A certificate in the file is not Base64.",
        ),
        (ROOT.pem.partition(b"-----END")[0], "A certificate in the file has no end line."),
        (
            ROOT.pem + b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            "The file has a 'PRIVATE KEY' block, not only certificates.",
        ),
        (bytes(1024 * 1024 + 1), "The file has 1048577 bytes, and 1048576 is the limit."),
    ],
)
def test_files_that_hold_something_else(data: bytes, sentence: str) -> None:
    """The operator hears what is wrong with the file, and nothing of it is added."""
    with pytest.raises(Malformed) as caught:
        parse_roots(data)
    assert caught.value.code == "certificate-malformed"
    assert caught.value.sentence.startswith(sentence)


def test_broken_root_is_not_the_devices_fault() -> None:
    """A root that cannot be read has the operator's code."""
    with pytest.raises(Malformed) as caught:
        verify(EK, [b"not a certificate"])
    assert caught.value.code == "certificate-malformed"


# --- certificates of real vendors --------------------------------------------------------------------------


def _vector(file: str) -> bytes:
    (root,) = parse_roots((VECTORS / file).read_bytes())
    return root.der


def test_nuvoton_root() -> None:
    """cryptography refuses every Nuvoton root for the order of a SET; here its signature holds."""
    der = _vector("nuvoton-root-2111.pem")
    with pytest.raises(ValueError, match="InvalidSetOrdering"):
        x509.load_der_x509_certificate(der)
    certificate = read_certificate(der)
    assert certificate.subject == "CN=Nuvoton TPM Root CA 2111, O=Nuvoton Technology Corporation, C=TW"
    assert (certificate.is_ca, certificate.path_length) == (True, 0)
    verify_signature(certificate, certificate)


def test_infineon_intermediate() -> None:
    """A real intermediate leads to its real root, and the wrong vendor's root does not do."""
    leaf = read_certificate(_vector("infineon-ecc-011.pem"))
    root = read_certificate(_vector("infineon-ecc-root.pem"))
    other = read_certificate(_vector("nuvoton-root-2111.pem"))
    assert ek_chain.find_chain(leaf, [other, root], [], NOW) == ((leaf, root), ())
    chain, (reason,) = ek_chain.find_chain(leaf, [other], [], NOW)
    assert not chain
    assert "Infineon OPTIGA(TM) ECC Root CA" in reason.sentence


def test_infineon_sha1_intermediate_as_an_anchor() -> None:
    """An anchor's own signature is not looked at: older Infineon chains work with the intermediate added."""
    der = _vector("infineon-intermediate-08-sha1.pem")
    certificate = read_certificate(der)
    with pytest.raises(Refused, match="SHA-1"):
        verify_signature(certificate, certificate)
    assert ek_chain.find_chain(certificate, [certificate], [], NOW) == ((certificate,), ())


# --- a real (software) TPM ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class SoftwareTpm:
    """Certificates of swtpm_setup, and the TPM's contents: NV contents by index, EK public areas by handle."""

    nv: dict[int, bytes]
    ek_publics: dict[int, bytes]
    bundle: bytes


@pytest.fixture(scope="module")
def manufactured(tmp_path_factory: pytest.TempPathFactory) -> SoftwareTpm:
    """A TPM with EK and platform certificates by a CA of its own, read back through TPM2_NV_Read."""
    directory = tmp_path_factory.mktemp("swtpm")
    _manufacture(directory)
    with _running(directory) as tcti, ESAPI(tcti) as esys:
        nv = {index: _nv_read(esys, index) for index in (0x01C00002, 0x01C00016, 0x01C08000)}
        publics = {handle: _read_public(esys, handle) for handle in (0x81010001, 0x81010016)}
    authority = directory / "ca"
    files = ("swtpm-localca-rootca-cert.pem", "issuercert.pem")
    return SoftwareTpm(nv, publics, b"".join((authority / file).read_bytes() for file in files))


def _manufacture(directory: Path) -> None:
    authority, state = directory / "ca", directory / "state"
    authority.mkdir()
    state.mkdir()
    (directory / "localca.conf").write_text(
        f"statedir = {authority}\n"
        f"signingkey = {authority}/signkey.pem\n"
        f"issuercert = {authority}/issuercert.pem\n"
        f"certserial = {authority}/certserial\n"
    )
    (directory / "options").write_text(
        "--platform-manufacturer Works\n--platform-version 1.0\n--platform-model Board\n"
    )
    (directory / "setup.conf").write_text(
        "create_certs_tool = /usr/bin/swtpm_localca\n"
        f"create_certs_tool_config = {directory}/localca.conf\n"
        f"create_certs_tool_options = {directory}/options\n"
        "active_pcr_banks = sha256\n"
    )
    command = ["swtpm_setup", "--tpm2", "--config", f"{directory}/setup.conf", "--tpmstate", str(state)]
    command += ["--create-ek-cert", "--create-platform-cert", "--logfile", f"{directory}/log"]
    subprocess.run(command, check=True, timeout=120)


@contextmanager
def _running(directory: Path) -> Iterator[str]:
    """The TCTI of a swtpm over *directory*'s state."""
    socket = directory / "tpm.sock"
    command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={directory}/state"]
    command += ["--server", f"type=unixio,path={socket}", "--ctrl", f"type=unixio,path={socket}.ctrl"]
    command += ["--flags", "not-need-init,startup-clear"]
    with subprocess.Popen(command) as process:
        try:
            deadline = time.monotonic() + 120
            while not (_listens(socket) and _listens(Path(f"{socket}.ctrl"))):
                assert time.monotonic() < deadline, "swtpm does not listen"
                time.sleep(0.01)
            yield f"swtpm:path={socket}"
        finally:
            end(process)


def _listens(socket: Path) -> bool:
    """True once somebody can connect: the file is there a moment before (the kernel's __SO_ACCEPTCON)."""
    rows = (line.split() for line in Path("/proc/net/unix").read_text().splitlines())
    return any(row[-1] == str(socket) and row[3] == "00010000" for row in rows)


def _nv_read(esys: ESAPI, index: int) -> bytes:
    handle = esys.tr_from_tpmpublic(index)
    size = int(esys.nv_read_public(handle)[0].nvPublic.dataSize)
    offsets = range(0, size, 512)
    return b"".join(
        bytes(esys.nv_read(handle, min(512, size - offset), offset, auth_handle=ESYS_TR.OWNER))
        for offset in offsets
    )


def _read_public(esys: ESAPI, handle: int) -> bytes:
    return bytes(esys.read_public(esys.tr_from_tpmpublic(handle))[0].marshal())


@pytest.mark.parametrize(("index", "handle"), [(0x01C00002, 0x81010001), (0x01C00016, 0x81010016)])
def test_real_ek_certificate(manufactured: SoftwareTpm, index: int, handle: int) -> None:
    """RSA 2048 and P-384: NV contents, the TPM's own public area and the CA's files lead to a verified EK."""
    ek = parse_ek(manufactured.ek_publics[handle])
    certificate = trim_certificate(manufactured.nv[index])
    roots = parse_roots(manufactured.bundle)
    assert [root.label for root in roots] == ["CN=swtpm-localca-rootca", "CN=swtpm-localca"]
    found = endorsement.verify_ek_certificate(certificate, ek.spki, roots[:1], [roots[1].der], _today())
    assert (found.verified, found.root, found.issuer) == (True, "CN=swtpm-localca-rootca", "CN=swtpm-localca")
    assert re.fullmatch(r"id:00001014 swtpm id:\d{8}", str(found.subject_hint))  # the date is swtpm's version


def test_real_ek_certificate_of_the_other_key(manufactured: SoftwareTpm) -> None:
    """The certificate of a TPM's RSA EK does not vouch for the same TPM's EC EK."""
    ek = parse_ek(manufactured.ek_publics[0x81010016])
    with pytest.raises(Refused, match="for another key"):
        endorsement.verify_ek_certificate(
            manufactured.nv[0x01C00002], ek.spki, parse_roots(manufactured.bundle), [], _today()
        )


def test_real_platform_certificate(manufactured: SoftwareTpm) -> None:
    """A platform certificate for the same key by the same CA is not an EK certificate."""
    ek = parse_ek(manufactured.ek_publics[0x81010001])
    with pytest.raises(Refused) as caught:
        endorsement.verify_ek_certificate(
            manufactured.nv[0x01C08000], ek.spki, parse_roots(manufactured.bundle), [], _today()
        )
    assert "is for 2.23.133.8.2, not for an EK" in caught.value.sentence


def _today() -> datetime:
    """Real time: swtpm's CA makes its certificates valid from now on."""
    return datetime.now(UTC) + timedelta(seconds=1)


# --- hostile bytes -----------------------------------------------------------------------------------------

SEEDS = [EK.der, INTERMEDIATE.der, pki.ek(ROOT, key=pki.rsa_key("ek")).der, _vector("nuvoton-root-2111.pem")]


@given(st.binary(max_size=600))
@example(b"\x30\x00")
def test_random_bytes_raise_only_our_errors(data: bytes) -> None:
    """No byte string gets past the readers with an exception that is not ours."""
    for read in (trim_certificate, read_certificate, parse_roots, public_key):
        with suppress(TangAttestError):
            read(data)


@settings(max_examples=500)
@given(st.data())
def test_damaged_certificates_raise_only_our_errors(data: st.DataObject) -> None:
    """Cut and changed certificates never crash the verifier, and a changed signed part never verifies."""
    seed = data.draw(st.sampled_from(SEEDS))
    damaged = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.just(len(damaged)) | st.integers(0, len(damaged)))
    sample = bytes(damaged[:cut])
    with suppress(TangAttestError):
        parse_roots(sample)
    with suppress(TangAttestError):
        public_key(sample)
    with suppress(TangAttestError):
        verify(EK, [ROOT], [sample])
    with suppress(TangAttestError):
        verify(trim_certificate(sample), [ROOT, INTERMEDIATE])
        assert read_certificate(sample).tbs == read_certificate(seed).tbs
