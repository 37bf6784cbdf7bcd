"""Lists of EKs: every fault with its line, and one digest for a key whatever its certificate looks like."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tang_attest.errors import Malformed, TangAttestError
from tang_attest.protocol.endorsement.registered import (
    MAX_REASONS,
    certificate_digest,
    ek_digest,
    parse_digest,
    parse_list,
)
from tests.protocol.endorsement import ek_pki as pki

HASH = "ab" * 32
ROOT = pki.ca("Root")


def test_a_list() -> None:
    """Columns in any order, spaces around fields, empty lines, a byte order mark, CRLF."""
    text = (
        "\ufeffpolicy, name ,ek_sha256,labels,without_token\r\n"
        f",web-1,{HASH},canary site=berlin,yes\r\n"
        "\r\n"
        f'db,"db-1", {HASH.replace("a", "C")} ,,\r\n'
    )
    one, two = parse_list(text.encode(), "web")
    assert (one.line, one.name, one.policy, one.labels, one.without_token) == (
        2, "web-1", "web", ("canary", "site=berlin"), True,
    )  # fmt: skip
    assert (two.line, two.name, two.policy, two.labels, two.without_token) == (4, "db-1", "db", (), False)
    assert one.ek_sha256.hex() == HASH


def test_a_certificate_stands_for_its_key() -> None:
    """DER or PEM, padded as in an NV index: the digest is that of the key, as the TPM's public area gives it."""
    certificate = pki.ek(ROOT)
    key = certificate.key.public_key()
    digest = ek_digest(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    for form in (certificate.der, certificate.der + b"\xff" * 90, certificate.pem):
        assert certificate_digest(form) == digest
    text = f"name,ek_certificate\nweb-1,{base64.b64encode(certificate.der).decode()}\n"
    assert parse_list(text.encode(), "web")[0].ek_sha256 == digest


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "The list is empty"),
        ("name,ek_sha256\n", "The list names no machine."),
        ("name\nweb-1\n", "Line 1: a list needs name, and ek_sha256 or ek_certificate."),
        ("name,ek_sha256,name\n", "Line 1: a column is named twice."),
        ("name,ek_sha256,colour\n", "Line 1: there is no column 'colour'"),
        (f"name,ek_sha256\nweb-1,{HASH},\n", "Line 2: it has 3 fields, and the first line 2."),
        ("name,ek_sha256\nweb-1\n", "Line 2: it has 1 fields"),
        ("name,ek_sha256\nweb-1,abc\n", "Line 2: the SHA-256 of an EK has 64 hex digits."),
        ("name,ek_sha256\nweb-1,\n", "Line 2: it needs either ek_sha256 or ek_certificate."),
        (f"name,ek_sha256\nweb 1,{HASH}\n", "Line 2: a name has 1 to 63"),
        (f"name,ek_sha256,labels\nweb-1,{HASH},!\n", "Line 2: '!' is no label"),
        (f"name,ek_sha256,without_token\nweb-1,{HASH},1\n", "Line 2: the word of without_token is yes or no."),
        ("name,ek_certificate\nweb-1,!\n", "Line 2: the ek_certificate is not Base64."),
        ("name,ek_certificate\nweb-1,AAAA\n", "Line 2: the EK certificate starts with 0x00"),
        (f"name,ek_sha256\n\n\nweb-1,{HASH}\nweb-1,{'cd' * 32}\n", "Line 5: line 4 has the name 'web-1', too."),
        (f"name,ek_sha256\nweb-1,{HASH}\nweb-2,{HASH}\n", "Line 3: line 2 has the same EK."),
        (f'name,ek_sha256\n"web-1,{HASH}\n', "Line 2: this is no CSV"),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_its_line(text: str, sentence: str) -> None:
    """Nothing else comes out of a list with a fault."""
    with pytest.raises(Malformed) as refused:
        parse_list(text.encode(), "web")
    assert refused.value.code == "ek-list-invalid"
    assert refused.value.sentence.startswith(sentence)


def test_a_line_without_a_policy() -> None:
    """It has one of its own, or the command's."""
    with pytest.raises(Malformed, match="Line 2: it names no policy, and --policy neither"):
        parse_list(f"name,ek_sha256\nweb-1,{HASH}\n".encode(), None)


def test_every_fault_is_reported_up_to_a_limit() -> None:
    """The operator corrects them in one go."""
    lines = "".join(f"web-{number},x\n" for number in range(50))
    with pytest.raises(Malformed) as refused:
        parse_list(f"name,ek_sha256\n{lines}".encode(), "web")
    assert [dict(reason.data)["line"] for reason in refused.value.reasons] == list(range(2, 2 + MAX_REASONS))


def test_a_line_that_comes_twice_is_no_fault() -> None:
    """The same machine with the same terms."""
    assert len(parse_list(f"name,ek_sha256\nweb-1,{HASH}\nweb-1,{HASH}\n".encode(), "web")) == 2


@pytest.mark.parametrize(
    "data", [b"\xff\xfe", b"name,ek_sha256\n\xff,\n", b"\x00", b'"' * 99, b"a" * 200_000]
)
def test_what_is_no_list(data: bytes) -> None:
    """An error with a sentence, never another exception."""
    with pytest.raises(TangAttestError) as refused:
        parse_list(data, "web")
    assert refused.value.code == "ek-list-invalid"


def test_too_many_lines() -> None:
    """One transaction has its limit."""
    lines = "".join(f"w{number},{number:064x}\n" for number in range(10_001))
    with pytest.raises(Malformed, match="Line 10002: a list has at most 10000 machines"):
        parse_list(f"name,ek_sha256\n{lines}".encode(), "web")


@pytest.mark.parametrize("text", ["", "ab", "zz" * 32, HASH + "0", " " + HASH])
def test_what_is_no_digest(text: str) -> None:
    """64 hex digits, and nothing else."""
    with pytest.raises(Malformed) as refused:
        parse_digest(text)
    assert refused.value.code == "request-malformed"
