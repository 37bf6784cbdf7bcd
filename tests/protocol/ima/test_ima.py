"""IMA's runtime measurement list: read strictly, replayed to PCR 10, judged once."""

from __future__ import annotations

import hashlib
import json
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from tang_attest.errors import Malformed, Refused
from tang_attest.protocol.ima import (
    ImaFinding,
    ImaProgress,
    Mode,
    Requirement,
    advance,
    parse_requirement,
    parse_sums,
    read_entries,
    reasons,
)
from tang_attest.protocol.quote import Evidence
from tests.protocol.eventlog.tpm import started_tpm
from tests.protocol.ima.writer import (
    Measured,
    boot_aggregate,
    field,
    measured,
    measured_old,
    raw,
    replayed,
    sign,
)

LOGS = Path(__file__).parents[2] / "vectors" / "eventlogs"
PCRS = {pcr: hashlib.sha256(bytes([pcr])).digest() for pcr in range(10)}
BASH = hashlib.sha256(b"bash").digest()
EVIL = hashlib.sha256(b"evil").digest()
ALLOWED = parse_requirement(
    {"files": [{"path": "/usr/bin/.*", "digests": [f"sha256:{BASH.hex()}"]}], "ignore": ["/var/cache/"]}
)
GOOD = [boot_aggregate(PCRS), measured("/usr/bin/bash", BASH)]


def read(
    entries: list[Measured],
    requirement: Requirement = ALLOWED,
    *,
    before: ImaProgress | None = None,
    pcr10: bytes | None = None,
    limit: int = 48 * 1024,
) -> tuple[ImaProgress, bool]:
    """Read the part *entries*, with a quote right after it."""
    before = before or ImaProgress.begin(1, requirement, "sha256")
    pcr10 = replayed(entries) if pcr10 is None else pcr10
    return advance(before, raw(entries), PCRS | {10: pcr10}, requirement, limit)


def why(entries: list[Measured], requirement: Requirement = ALLOWED) -> list[str]:
    """The sentences of the refusal."""
    progress, _ = read(entries, requirement)
    return [reason.sentence for reason in reasons(progress, requirement)]


# --- real machines ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boot", ["kernel-changed", "uki", "secure-boot"])
def test_real_boots(boot: str) -> None:
    """Debian's kernel measured the aggregate and nothing else: the list leads to the PCR 10 that its TPM had."""
    recorded = json.loads((LOGS / "pcrs" / f"{boot}-pcrs.json").read_text())["sha256"]
    pcrs = {int(pcr): bytes.fromhex(value) for pcr, value in recorded.items()}
    progress, complete = advance(
        ImaProgress.begin(1, ALLOWED, "sha256"), raw([boot_aggregate(pcrs)]), pcrs, ALLOWED
    )
    assert complete
    assert (progress.count, list(progress.values)) == (1, [Mode.BANK])
    assert reasons(progress, ALLOWED) == ()
    [reason] = reasons(*_with_another_aggregate(pcrs))
    assert reason.sentence == "Entry 1, boot_aggregate: it is not made of PCRs 0 to 9."


def _with_another_aggregate(pcrs: dict[int, bytes]) -> tuple[ImaProgress, Requirement]:
    """A list that is true of PCR 10, on a machine that booted something else."""
    entries, other = [boot_aggregate(pcrs)], pcrs | {4: bytes(32)}
    return advance(ImaProgress.begin(1, ALLOWED, "sha256"), raw(entries), other, ALLOWED)[0], ALLOWED


@pytest.mark.parametrize("padded", [False, True])
def test_a_tpm_agrees(padded: bool, tmp_path: Path) -> None:
    """A TPM that is extended as kernels after and before 5.8 do has the value that the list leads to."""
    entries = [
        *GOOD,
        measured("/usr/bin/open", BASH, violation=True),
        measured_old("/sbin/init", bytes(20)),
        measured("kexec-cmdline", EVIL, b"quiet", template="ima-buf"),
        measured("/usr/bin/ng", BASH, template="ima-ng"),
    ]
    with started_tpm(tmp_path, locality=None, hcrtm=None) as tpm:
        for entry in entries:
            tpm.extend(10, {0x000B: entry.padded("sha256") if padded else entry.extended("sha256")})
        value = tpm.read(10, 0x000B)
    progress, complete = read(entries, pcr10=value)
    assert complete
    assert list(progress.values) == [Mode.PADDED_SHA1 if padded else Mode.BANK]
    assert progress.count == 6
    sentences = [reason.sentence for reason in reasons(progress, ALLOWED)]
    assert sentences[:3] == [
        "Entry 3, /usr/bin/open: it was measured while it was open for writing.",
        "Entry 4, /sbin/init: nothing allows it.",
        "Entry 5, kexec-cmdline: nothing allows it.",
    ]
    assert sentences[3:] == (["This kernel extends PCR 10 with SHA-1 only."] if padded else [])


def test_sha1_is_accepted_where_the_operator_says_so() -> None:
    """An old kernel is the operator's decision."""
    accepting = parse_requirement({**ALLOWED.as_json(), "accept-padded-sha1": True})
    for requirement, refused in ((ALLOWED, True), (accepting, False)):
        progress, _ = read(GOOD, requirement, pcr10=replayed(GOOD, padded=True))
        assert bool(reasons(progress, requirement)) is refused


# --- what is allowed ----------------------------------------------------------------------------------------------


def test_allowed_files_pass() -> None:
    """Digest by path, and what is not looked at."""
    assert why([*GOOD, measured("/var/cache/x", EVIL)]) == []


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (measured("/usr/bin/bash", EVIL), "it has another digest than the allowed ones"),
        (measured("/home/bash", BASH), "nothing allows it"),
        (measured("/var/cachet", EVIL), "nothing allows it"),
        (measured("/var/cache/x", EVIL, violation=True), "it was measured while it was open for writing"),
        (measured("boot_aggregate", EVIL), "nothing allows it"),
        (
            measured("/usr/bin/bash", BASH[:20], hash_name="sha1"),
            "it has another digest than the allowed ones",
        ),
    ],
)
def test_what_is_not_allowed_is_named(entry: Measured, sentence: str) -> None:
    """With its number; a violation's path is not proven, so it is in no ignored directory."""
    path = read_entries(entry.raw)[0].name.decode()
    assert why([*GOOD, entry, GOOD[1]]) == [f"Entry 3, {path}: {sentence}."]


def test_violations_are_accepted_where_the_operator_says_so() -> None:
    """Log files that are open for writing are common under a coarse IMA policy."""
    accepting = parse_requirement({"accept-violations": True, "ignore": ["/usr/"]})
    assert why([*GOOD, measured("/x", EVIL, violation=True)], accepting) == []


def test_sums() -> None:
    """The output of sha256sum is an allow-list of exact paths; a path may have several digests."""
    sums = parse_sums(f"{BASH.hex()}  /usr/bin/bash\n{EVIL.hex()} */usr/bin/bash\n".encode())
    requirement = parse_requirement({"sums": {path: list(digests) for path, digests in sums.items()}})
    assert why([*GOOD, measured("/usr/bin/bash", EVIL)], requirement) == []
    assert why([*GOOD, measured("/usr/bin/dash", EVIL)], requirement) == [
        "Entry 3, /usr/bin/dash: nothing allows it."
    ]


@pytest.mark.parametrize(
    "line", ["", "x  /a", f"{BASH.hex()}  a", f"\\{BASH.hex()}  /a", f"{BASH.hex()[2:]}  /a"]
)
def test_sums_are_strict(line: str) -> None:
    """A line that says less than it seems would allow less, or more."""
    with pytest.raises(Malformed) as caught:
        parse_sums(f"{BASH.hex()}  /a\n{line}\n".encode())
    assert (caught.value.code, dict(caught.value.reasons[0].data)) == ("rules-invalid", {"line": 2})


@pytest.mark.parametrize(
    ("document", "where"),
    [
        ({}, "The rules"),
        ({"file": []}, "Key 'file'"),
        ({"files": [{"path": "("}]}, "Key 'files', key 'path'"),
        ({"files": [{"path": "/a", "digests": ["sha1:00"]}]}, "Key 'files', key 'digests'"),
        ({"ignore": ["/"]}, "Key 'ignore'"),
        ({"ignore": ["var"]}, "Key 'ignore'"),
        ({"signed-by": ""}, "Key 'signed-by'"),
        ({"accept-violations": "yes"}, "Key 'accept-violations'"),
        ({"sums": ["/a"]}, "Key 'sums'"),
        ({"files": [{"path": "/a", "digests": [f"sha256:{BASH.hex()}"]}] * 65}, "Key 'files'"),
    ],
)
def test_documents_are_strict(document: object, where: str) -> None:
    """A misspelled key must not be no rule."""
    with pytest.raises(Malformed) as caught:
        parse_requirement(document)
    assert caught.value.code == "rules-invalid"
    assert caught.value.sentence.startswith(where)


def test_a_document_that_cannot_be_backed_up_is_refused() -> None:
    """Sixty thousand paths are too many for a row; so are many lines."""
    digest = [f"sha256:{BASH.hex()}"]
    with pytest.raises(Malformed) as caught:
        parse_requirement({"sums": {f"/usr/share/some/longer/path/{n}": digest for n in range(30_000)}})
    assert (
        caught.value.sentence
        == "The rules: they are longer than 2097152 characters; allow signers instead of files."
    )
    with pytest.raises(Malformed) as caught:
        parse_sums(b"\n" * 32_769)
    assert caught.value.sentence == "The list of digests has more than 32768 lines."


def test_a_requirement_survives_storage() -> None:
    """Equal documents have equal digests, so nothing is read again without a reason."""
    again = parse_requirement(json.loads(json.dumps(ALLOWED.as_json())))
    assert (again, again.digest) == (ALLOWED, ALLOWED.digest)


def test_findings_are_bounded() -> None:
    """A machine that ran a thousand strange files fills no database."""
    sentences = why([*GOOD, *(measured(f"/tmp/{number}", EVIL) for number in range(100))])
    assert len(sentences) == 9
    assert sentences[-1] == "92 more entries are not allowed."


def test_paths_are_shown_safely() -> None:
    """A path is the intruder's text."""
    [sentence] = why([*GOOD, measured("/\x1b[2J" + "a" * 1000, EVIL)])
    assert sentence.startswith("Entry 3, /?[2Jaaa")
    assert len(sentence) < 320


# --- signatures ---------------------------------------------------------------------------------------------------


def certificate(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """A self-signed certificate with a subject key identifier."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "files")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
    builder = builder.not_valid_after(datetime(2020, 1, 1, tzinfo=UTC) + timedelta(days=1))
    identifier = x509.SubjectKeyIdentifier(b"files and their keys")
    return builder.add_extension(identifier, critical=False).sign(key, hashes.SHA256())


KEYS: dict[str, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey] = {
    "rsa": rsa.generate_private_key(65537, 2048),
    "ecdsa": ec.generate_private_key(ec.SECP256R1()),
}


def signed_by(kind: str) -> Requirement:
    """Any file that the key *kind* signed."""
    pem = certificate(KEYS[kind]).public_bytes(serialization.Encoding.PEM).decode()
    return parse_requirement({"signed-by": pem})


@pytest.mark.parametrize("kind", list(KEYS))
@pytest.mark.parametrize("named", ["by certificate", "by key"])
def test_signed_files_pass(kind: str, named: str) -> None:
    """RSA and ECDSA; the key is named as new and as old evmctl do."""
    spki = x509.SubjectKeyIdentifier.from_public_key(KEYS[kind].public_key()).digest
    key_id = b"keys" if named == "by certificate" else spki[-4:]
    entry = measured("/opt/tool", EVIL, sign(KEYS[kind], EVIL, key_id))
    assert why([GOOD[0], entry], signed_by(kind)) == []
    large = hashlib.sha512(b"large").digest()
    entry = measured("/opt/tool", large, sign(KEYS[kind], large, key_id, 6), hash_name="sha512")
    assert why([GOOD[0], entry], signed_by(kind)) == []


def _broken() -> dict[str, tuple[bytes, str]]:
    good = sign(KEYS["rsa"], EVIL, b"keys")
    return {
        "no signature": (b"", "it has no signature"),
        "of another file": (sign(KEYS["rsa"], BASH, b"keys"), "none of an allowed signer"),
        "by another key": (sign(KEYS["ecdsa"], EVIL, b"keys"), "none of an allowed signer"),
        "another key id": (sign(KEYS["rsa"], EVIL, b"KEYS"), "none of an allowed signer"),
        "another hash": (good[:2] + b"\5" + good[3:], "none of an allowed signer"),
        "SHA-1": (good[:2] + b"\2" + good[3:], "none of an allowed signer"),
        "version 1": (good[:1] + b"\1" + good[2:], "none of an allowed signer"),
        "fs-verity": (b"\6" + good[1:], "none of an allowed signer"),
        "a bare digest": (b"\4\4" + EVIL, "none of an allowed signer"),
        "a longer one": (good + b"\0", "none of an allowed signer"),
        "cut short": (good[:9], "none of an allowed signer"),
    }


@pytest.mark.parametrize("what", list(_broken()))
def test_other_signatures_do_not_pass(what: str) -> None:
    """Any bytes may be in the extended attribute, which root writes."""
    extra, sentence = _broken()[what]
    [found] = why([GOOD[0], measured("/opt/tool", EVIL, extra)], signed_by("rsa"))
    assert found.startswith("Entry 2, /opt/tool: ")
    assert found.endswith(f"{sentence}.")


def test_signers_are_certificates_with_good_keys() -> None:
    """A short key signs for everybody; text is no certificate."""
    weak = certificate(rsa.generate_private_key(65537, 1024))  # noqa: S505 - that is the test
    pem = weak.public_bytes(serialization.Encoding.PEM).decode()
    for text in (pem, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "x"):
        with pytest.raises(Malformed) as caught:
            parse_requirement({"signed-by": text})
        assert caught.value.code == "certificate-malformed"


# --- parts --------------------------------------------------------------------------------------------------------


def test_only_new_entries_travel() -> None:
    """The second part begins where the first ended, and leads on from its value."""
    first, complete = read(GOOD)
    assert complete
    assert first.offset == len(raw(GOOD))
    more = [measured("/usr/bin/bash", BASH), measured("/usr/bin/bash", EVIL)]
    pcr10 = replayed([*GOOD, *more])
    second, complete = read(more, before=first, pcr10=pcr10)
    assert complete
    assert (second.count, second.offset, second.values) == (4, len(raw([*GOOD, *more])), {Mode.BANK: pcr10})
    assert [finding.number for finding in second.bad] == [4]


def test_nothing_new() -> None:
    """A machine that ran nothing new sends nothing, and what was found before stays found."""
    first, _ = read([*GOOD, measured("/usr/bin/bash", EVIL)])
    second, complete = read([], before=first, pcr10=first.values[Mode.BANK])
    assert complete
    assert second == first
    assert reasons(second, ALLOWED) != ()


def test_the_list_may_run_ahead_of_the_quote() -> None:
    """Files are measured between quote and reading: they wait for the next round, also if they are bad."""
    bad = measured("/usr/bin/bash", EVIL)
    progress, complete = read([*GOOD, bad], pcr10=replayed(GOOD))
    assert complete
    assert (progress.count, progress.bad) == (2, ())
    later, _ = read([bad], before=progress, pcr10=replayed([*GOOD, bad]))
    assert later.bad_count == 1


def test_a_long_list_comes_in_parts() -> None:
    """Each part is cut anywhere; what was found in the first is known when the last proves it."""
    entries = [GOOD[0], measured("/x", EVIL), *(measured(f"/usr/bin/{n}", BASH) for n in range(50))]
    whole, value = raw(entries), replayed(entries)
    progress, complete, parts = ImaProgress.begin(1, ALLOWED, "sha256"), False, 0
    while not complete:
        part = whole[progress.offset : progress.offset + 1000]
        progress, complete = advance(progress, part, PCRS | {10: value}, ALLOWED, 1000)
        parts += 1
        assert ImaProgress.from_json(json.loads(json.dumps(progress.as_json()))) == progress
    assert parts > 5
    assert (progress.count, progress.offset, progress.values) == (52, len(whole), {Mode.BANK: value})
    assert progress.bad == (ImaFinding(2, "/x", f"sha256:{EVIL.hex()}", "nothing allows it"),)


def test_other_lists_do_not_match() -> None:
    """A changed, a missing, an exchanged entry; a list that ends too early; another boot's value."""
    third = measured("/usr/bin/c", BASH)
    lists = [
        [GOOD[0], measured("/usr/bin/bash", EVIL), third],
        [GOOD[0], third],
        [GOOD[0], third, GOOD[1]],
        GOOD,
        [],
    ]
    for entries in lists:
        with pytest.raises(Refused) as caught:
            read(entries, pcr10=replayed([*GOOD, third]))
        assert caught.value.code == "ima-mismatch"


def test_a_hidden_violation_does_not_match() -> None:
    """Zeros for a digest, or a digest for zeros: PCR 10 knows which it was."""
    as_violation = measured("/usr/bin/bash", BASH, violation=True)
    for shown, real in ((GOOD[1], as_violation), (as_violation, GOOD[1])):
        with pytest.raises(Refused):
            read([GOOD[0], shown], pcr10=replayed([GOOD[0], real]))


def test_nothing_measured_is_not_good() -> None:
    """A kernel without IMA shows an empty list, and a PCR 10 of zeros."""
    for entries in ([], GOOD):
        progress, complete = read(entries, pcr10=bytes(32))
        assert complete
        [reason] = reasons(progress, ALLOWED)
        assert (reason.code, reason.sentence) == ("ima-not-allowed", "Nothing was measured into PCR 10.")


def test_the_list_begins_with_the_aggregate() -> None:
    """IMA was there from the beginning of the boot; before 5.8 without PCRs 8 and 9."""
    assert why([boot_aggregate(PCRS, last=7)]) == []
    assert why([GOOD[1]]) == ["Entry 1, /usr/bin/bash: the list does not begin with boot_aggregate."]
    other = boot_aggregate(PCRS | {0: bytes(32)})
    assert why([other]) == ["Entry 1, boot_aggregate: it is not made of PCRs 0 to 9."]


def test_progress_is_for_a_boot_a_requirement_and_a_bank() -> None:
    """A reboot begins a list anew, and other rules judge it anew."""
    here = ImaProgress.begin(1, ALLOWED, "sha256")
    assert here.goes_on(read(GOOD)[0])
    others = (
        ImaProgress.begin(2, ALLOWED, "sha256"),
        ImaProgress.begin(1, signed_by("rsa"), "sha256"),
        ImaProgress.begin(1, ALLOWED, "sha384"),
    )
    assert not any(here.goes_on(other) for other in others)


# --- lists that cannot be read --------------------------------------------------------------------------------------

ENTRY = measured("/a", BASH)


def _with_data(data: bytes, template: bytes = b"ima-sig") -> bytes:
    sha1 = hashlib.sha1(data).digest()  # noqa: S324 - what Linux writes
    return struct.pack("<I", 10) + sha1 + field(template) + field(data)


_DIGEST = field(b"sha256:\0" + BASH)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (ENTRY.raw[:-1], "need 55 bytes for the template data, had 54"),
        (ENTRY.raw + b"\0", "need 4 bytes for the PCR, had 1"),
        (measured("/a", BASH, pcr=11).raw, "it is for PCR 11; only PCR 10 is verified"),
        (ENTRY.raw[:4] + b"x" * 20 + ENTRY.raw[24:], "the template digest is not that of its data"),
        (_with_data(ENTRY.data, b"ima-new"), "its template is none of ima, ima-ng, ima-sig, ima-buf"),
        (_with_data(ENTRY.data, b"i" * 33), "the template name has 33 bytes, more than 32"),
        (_with_data(bytes(32769)), "the template data has 32769 bytes, more than 32768"),
        (_with_data(ENTRY.data + b"\0"), "1 bytes follow the last field"),
        (_with_data(ENTRY.data[:-1]), "need 4 bytes for the size of a field, had 3"),
        (
            _with_data(field(b"sha256" + BASH) + field(b"/a\0"), b"ima-ng"),
            "its digest is none of a known hash",
        ),
        (
            _with_data(field(b"sha1:\0" + BASH) + field(b"/a\0"), b"ima-ng"),
            "its digest is none of a known hash",
        ),
        (_with_data(_DIGEST + field(b"/a"), b"ima-ng"), "its name does not end with its only zero byte"),
        (_with_data(_DIGEST + field(b"/a\0b\0"), b"ima-ng"), "its name does not end with its only zero byte"),
        (measured_old("/a\0b", bytes(20)).raw, "the name has a zero byte"),
        (measured_old("a" * 256, bytes(20)).raw, "the name has 256 bytes, more than 255"),
    ],
)
def test_lists_are_strict(data: bytes, sentence: str) -> None:
    """One reading only, with the place where it ends."""
    with pytest.raises(Malformed) as caught:
        read_entries(ENTRY.raw + data)
    assert caught.value.code == "ima-malformed"
    assert caught.value.sentence == f"The entry at offset {_offset(data)}: {sentence}."


def _offset(data: bytes) -> int:
    return len(ENTRY.raw) * (2 if data.startswith(ENTRY.raw) else 1)


def test_a_part_has_a_limit() -> None:
    """Before anything is read."""
    with pytest.raises(Malformed) as caught:
        read_entries(bytes(48 * 1024 + 1))
    assert caught.value.code == "ima-malformed"
    with pytest.raises(Malformed) as caught:
        Evidence("", b"", b"", b"", ima=bytes(48 * 1024 + 1))
    assert caught.value.code == "evidence-malformed"


_PIECES = st.sampled_from(
    [ENTRY.raw, ENTRY.raw[:24], ENTRY.data, field(b"ima-sig"), field(b"ima"), bytes(20)]
)


@given(
    st.lists(st.one_of(st.binary(max_size=64), _PIECES), max_size=8).map(b"".join),
    st.booleans(),
)
def test_reading_raises_nothing_else(data: bytes, cut: bool) -> None:
    """Any bytes are read or malformed."""
    try:
        entries = read_entries(data, cut=cut)
    except Malformed:
        return
    assert cut or (entries[-1].end if entries else 0) == len(data)


@given(st.integers(0, len(raw(GOOD)) * 8 - 1))
def test_no_bit_can_change(bit: int) -> None:
    """A list with another bit is malformed, does not match, or is judged the same."""
    changed = bytearray(raw(GOOD))
    changed[bit // 8] ^= 1 << bit % 8
    try:
        progress, _ = advance(
            ImaProgress.begin(1, ALLOWED, "sha256"), bytes(changed), PCRS | {10: replayed(GOOD)}, ALLOWED
        )
    except (Malformed, Refused):
        return
    assert reasons(progress, ALLOWED) == ()
