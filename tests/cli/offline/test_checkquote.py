"""``tang-attest checkquote``, from the command line inward."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tang_attest.cli import group
from tang_attest.errors import Refused
from tests.attester import AK_ATTRIBUTES, Attester
from tests.cli import forked
from tests.cli.offline.quote_vectors import ASK_NONCE, NONCE, Vector, make, stored
from tests.swtpm import Swtpm

STORED = {vector.name: vector for vector in stored()}
GOOD = STORED["p256"]
GOOD_RSA = STORED["rsassa"]
ECDSA, RSASSA = "ecc256:ecdsa-sha256", "rsa2048:rsassa-sha256"


def run(directory: Path, vector: Vector) -> Result:
    return CliRunner().invoke(group, ["checkquote", *vector.command(directory), "--json"])


def expect(directory: Path, vector: Vector) -> dict[str, Any]:
    """Run *vector*; it must end as it says, on every channel."""
    result = run(directory, vector)
    report = json.loads(result.stdout)
    assert [reason["code"] for reason in report["reasons"]] == list(vector.codes), result.output
    assert report["verified"] is (not vector.codes)
    assert result.exit_code == (1 if vector.codes else 0)
    assert isinstance(result.exception, Refused) == bool(vector.codes)
    if vector.codes:
        # Nothing a refused quote says may be mistaken for something known.
        assert (report["pcrs"], report["clock"], report["selection"], report["key"]) == ({}, None, None, None)
    return dict(report)


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return forked.run(forked.command("checkquote", *arguments), text=True, timeout=120)


# --- what a TPM makes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", STORED.values(), ids=STORED.keys())
def test_stored_quote(vector: Vector, tmp_path: Path) -> None:
    """Each stored quote gets the verdict that is stored with it."""
    expect(tmp_path, vector)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Vector]:
    """The vectors made anew."""
    with Swtpm(tmp_path_factory.mktemp("fresh") / "tpm") as tpm:
        return {vector.name: vector for vector in make(tpm)}


def test_fresh_quotes(fresh: dict[str, Vector], tmp_path: Path) -> None:
    """Quotes made now, by the TPM at hand, get the same verdicts; none is missing from the repository."""
    assert fresh.keys() == STORED.keys()
    for name, vector in fresh.items():
        assert (vector.options, vector.codes) == (STORED[name].options, STORED[name].codes)
        expect(tmp_path, vector)


def test_tpm2_checkquote_agrees_on_good_quotes(fresh: dict[str, Vector], tmp_path: Path) -> None:
    """Quotes that we verify, tpm2_checkquote verifies: the formats are understood the same way."""
    # tpm2-tools 5.4 knows no RSAPSS here, and before 5.6 replays event logs otherwise.
    not_comparable = {"rsapss", "eventlog"}
    for name, vector in fresh.items():
        if vector.codes or name in not_comparable:
            continue
        # There, -l would mean that the file has bare values.
        options = [*(vector.options if name == "no-nonce" else ASK_NONCE)]
        if name.startswith("plain"):
            options += ["-l", "sha256:0,7", "-g", "sha256"]
        arguments = replace(vector, options=tuple(options)).command(tmp_path)
        result = subprocess.run(["tpm2", "checkquote", *arguments], capture_output=True, check=False)
        assert result.returncode == 0, (name, result.stderr)


@pytest.mark.parametrize("name", ["relabeled", "magic-pem"])
def test_what_this_command_is_for(name: str, tmp_path: Path) -> None:
    """The two attacks are real: tpm2_checkquote before 5.7 accepts them.  If it does not, our vectors are wrong."""
    version = subprocess.run(["tpm2", "--version"], capture_output=True, text=True, check=True).stdout
    number = re.search(r'version="(\d+)\.(\d+)', version)
    assert number is not None, version
    fixed = (int(number[1]), int(number[2])) >= (5, 7)
    result = subprocess.run(
        ["tpm2", "checkquote", *STORED[name].command(tmp_path)], capture_output=True, check=False
    )
    assert (result.returncode != 0) == fixed, result.stderr


# --- what a person types and reads -------------------------------------------------------------------------------


def test_transcript_of_a_verified_quote(tmp_path: Path) -> None:
    """Values on stdout, the verdict in the last line on stderr, exit code 0."""
    result = program(*GOOD_RSA.command(tmp_path))
    assert result.returncode == 0
    assert result.stderr == "tang-attest: quote verified: sha256:0,2,4,7, signed rsassa with sha256\n"
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["BANK", "PCR", "VALUE"]
    assert [line[:2] for line in lines[1:]] == [["sha256", pcr] for pcr in "0247"]
    assert lines[4][2] == "65caf8dd1e0ea7a6347b635d2b379c93b9a1351edc2afc3ecda700e534eb3068"


def test_transcript_of_a_refused_quote(tmp_path: Path) -> None:
    """Every reason, one hint, nothing on stdout, exit code 1."""
    result = program(*STORED["magic"].command(tmp_path))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        "tang-attest: the AK lacks the attribute restricted (ak-unsuitable)\n"
        "tang-attest:   the signed structure does not begin with TPM_GENERATED_VALUE\n"
        "hint: create the AK as a restricted signing key, as clevis-attest-enroll does\n"
    )


def test_transcript_of_a_missing_file(tmp_path: Path) -> None:
    """A file that is not there is named, and the exit code is not that of a refusal."""
    arguments = GOOD.command(tmp_path)
    (tmp_path / "message").unlink()
    result = program(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        f"tang-attest: file {tmp_path}/message cannot be read: No such file or directory (file-unreadable)\n"
        "hint: check the path and the permissions\n"
    )


@pytest.mark.parametrize("command", ["checkquote", "eventlog"])
def test_help_keeps_its_examples(command: str) -> None:
    """The example is a line of its own, not filled into a paragraph."""
    help_text = CliRunner().invoke(group, [command, "--help"]).stdout
    assert "\\b" not in help_text
    assert re.search(rf"^ .*tang-attest {command} [^\n]*(-u ak.pub|--events)", help_text, re.MULTILINE)


def test_pem_warns(tmp_path: Path) -> None:
    """A PEM key verifies, and a line says what that does not prove."""
    result = program(*STORED["pem"].command(tmp_path))
    assert result.returncode == 0
    assert result.stderr.splitlines()[0].startswith("tang-attest: warning: a PEM key does not show")


def test_no_values_warns(tmp_path: Path) -> None:
    """Without -f it is said that no PCR value was checked, and none is shown."""
    result = program(*STORED["no-pcrs"].command(tmp_path))
    assert (result.returncode, result.stdout) == (0, "")
    assert "only the signed digest" in result.stderr


def test_json_of_a_verified_quote(tmp_path: Path) -> None:
    """The report has every check, the values by bank and number, and the clock."""
    report = expect(tmp_path, STORED["eventlog"])
    assert [check["passed"] for check in report["checks"]] == [True] * 7
    assert report["selection"] == "sha256:0,2,4,7"
    assert list(report["pcrs"]["sha256"]) == ["0", "2", "4", "7"]
    assert report["qualification"] == NONCE
    assert set(report["clock"]) == {"clock", "reset_count", "restart_count", "safe"}
    assert re.fullmatch("[0-9a-f]{16}", str(report["firmware_version"]))


def test_checks_not_asked_for_are_null(tmp_path: Path) -> None:
    """A check that was not done is not reported as passed."""
    report = expect(tmp_path, STORED["no-pcrs"])
    assert [check["passed"] for check in report["checks"]] == [*[True] * 5, None, None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-q", "xyz"), "neither a file nor"),
        (("-q", "abc"), "neither a file nor"),
        (("-q", "00" * 67), "neither a file nor"),
        (("-q", "00 11"), "neither a file nor"),
        (("-l", "sha1:0"), "PCR bank 'sha1' is not one of"),
        (("-l", "sha256:0+sha384:0"), "a selection looks like"),
        (("-l", "sha256:24"), "a PCR number is 0 to 23"),
        (("-g", "sha1"), "'sha1' is not one of"),
        (("-F", "marshaled"), "'marshaled' is not one of"),
        (("--scheme", "ecdaa"), "'ecdaa' is not one of"),
    ],
)
def test_usage(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    """An option that cannot be meant is exit code 2."""
    result = run(tmp_path, GOOD.changed("", "", options=options))
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_eventlog_needs_values(tmp_path: Path) -> None:
    """An event log without PCR values to compare it with is exit code 2."""
    files = {name: data for name, data in STORED["eventlog"].files.items() if name != "pcrs"}
    result = run(tmp_path, Vector("", "", files))
    assert result.exit_code == 2
    assert "give them with --pcr" in result.stderr


@pytest.mark.parametrize(
    "public",
    [
        b"",
        b"\0",
        b"hello",
        b"-----BEGIN PUBLIC KEY-----\n",
        GOOD.files["public"] + b"\0",
        GOOD.files["public"][2:] + b"\0",
        b"\0\x40" + bytes(64),
    ],
)
def test_key_that_is_no_key(public: bytes, tmp_path: Path) -> None:
    """An unreadable key, trailing bytes among that, is exit code 2: nothing was checked."""
    result = run(tmp_path, GOOD.changed("", "", public=public))
    assert result.exit_code == 2
    assert result.stdout == ""


@pytest.mark.parametrize("name", ["public", "message", "signature", "pcrs", "eventlog"])
def test_large_file(name: str, tmp_path: Path) -> None:
    """No file is read beyond its limit."""
    vector = STORED["eventlog"]
    result = run(tmp_path, replace(vector, files={**vector.files, name: bytes((1 << 20) + 1)}))
    assert result.exit_code == 2


def test_qualification_from_file(tmp_path: Path) -> None:
    """-q takes a file, as tpm2-tools do, and hex with 0x."""
    (tmp_path / "nonce").write_bytes(bytes.fromhex(NONCE))
    expect(tmp_path, GOOD.changed("", "", options=("-q", str(tmp_path / "nonce"))))
    expect(tmp_path, GOOD.changed("", "", options=("-q", "0x" + NONCE.upper())))


def test_qualification_that_is_hex_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file named like the nonce does not silently replace it (in tpm2-tools it does)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / NONCE).write_bytes(b"another")
    result = run(tmp_path, GOOD)
    assert result.exit_code == 2
    assert "is hex and also a file" in result.stderr


# --- every refusal -------------------------------------------------------------------------------------------------


def flip(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


OTHER = b"the nonce of another request".hex()
SEPARATE = [
    GOOD.changed("wrong nonce", "", "qualifying-data-mismatch", options=("-q", OTHER)),
    GOOD.changed("nonce not named", "", "qualifying-data-mismatch", options=()),
    STORED["no-nonce"].changed("nonce not signed", "", "qualifying-data-mismatch", options=("-q", NONCE)),
    GOOD.changed("shorter nonce", "", "qualifying-data-mismatch", options=("-q", NONCE[:-2])),
    GOOD.changed("tampered message", "", "signature-invalid", message=flip(GOOD.files["message"], -40)),
    GOOD.changed("tampered magic", "", "signature-invalid", message=flip(GOOD.files["message"], 0)),
    GOOD.changed("tampered signature", "", "signature-invalid", signature=flip(GOOD.files["signature"], -1)),
    GOOD_RSA.changed("tampered RSA", "", "signature-invalid", signature=flip(GOOD_RSA.files["signature"], 40)),
    GOOD.changed("other AK", "", "signature-invalid", public=Attester().ak_public),
    GOOD.changed("AK of another type", "", "signature-invalid", public=GOOD_RSA.files["public"]),
    GOOD.changed("AK of another curve", "", "signature-invalid", public=STORED["p384"].files["public"]),
    GOOD_RSA.changed("same key, other scheme", "", "signature-invalid", options=("-q", NONCE, "--scheme", "rsapss")),
    STORED["pem"].changed("PEM, other scheme", "", "signature-invalid", options=("-q", NONCE, "--scheme", "rsapss")),
    STORED["pem"].changed("PEM, other hash", "", "signature-invalid", options=("-q", NONCE, "-g", "sha384")),
    GOOD.changed("wrong -g", "", "signature-invalid", options=("-q", NONCE, "-g", "sha384")),
    GOOD.changed("wrong -l, fewer", "", "selection-mismatch", options=("-q", NONCE, "-l", "sha256:0,2,4")),
    GOOD.changed("wrong -l, bank", "", "selection-mismatch", options=("-q", NONCE, "-l", "sha384:0,2,4,7")),
    GOOD.changed("everything wrong", "", "qualifying-data-mismatch", "selection-mismatch", options=("-l", "sha256:0")),
    GOOD.changed("byte after signature", "", "evidence-malformed", signature=GOOD.files["signature"] + b"\0"),
    GOOD.changed("byte after message", "", "signature-invalid", message=GOOD.files["message"] + b"\0"),
    GOOD.changed("byte after PCR file", "", "evidence-malformed", pcrs=GOOD.files["pcrs"] + b"\0"),
    GOOD.changed("PCR file cut short", "", "evidence-malformed", pcrs=GOOD.files["pcrs"][:-1]),
    GOOD.changed("PCR file empty", "", "evidence-malformed", pcrs=b""),
    GOOD.changed("signature empty", "", "evidence-malformed", signature=b""),
    GOOD.changed("message empty", "", "signature-invalid", message=b""),
    GOOD.changed("wrong -F", "", "evidence-malformed", options=("-q", NONCE, "-F", "values")),
    STORED["plain-rsa"].changed("wrong -F, values", "", "evidence-malformed", options=("-q", NONCE, "-F", "serialized")),
    GOOD.changed("PCR file of another quote", "", "selection-mismatch", pcrs=STORED["all-pcrs"].files["pcrs"]),
    GOOD.changed("PCR file of two banks", "", "selection-mismatch", pcrs=STORED["two-banks"].files["pcrs"]),
    GOOD.changed("changed value", "", "pcr-digest-mismatch", pcrs=flip(GOOD.files["pcrs"], 0x90)),
    STORED["plain-rsa"].changed("swapped values", "", "pcr-digest-mismatch", pcrs=STORED["plain-rsa"].files["pcrs"][32:] + STORED["plain-rsa"].files["pcrs"][:32]),
    STORED["eventlog"].changed("log with a byte more", "", "eventlog-malformed", eventlog=STORED["eventlog"].files["eventlog"] + b"\0"),
    STORED["eventlog"].changed("log empty", "", "eventlog-malformed", eventlog=b""),
]  # fmt: skip


@pytest.mark.parametrize("vector", SEPARATE, ids=[vector.name for vector in SEPARATE])
def test_refusal(vector: Vector, tmp_path: Path) -> None:
    """One thing that is wrong, one reason."""
    expect(tmp_path, vector)


def test_log_of_another_boot(tmp_path: Path) -> None:
    """Each PCR that the log does not explain is a reason of its own (PCR 2 is the same in both boots)."""
    log = (Path(__file__).parents[2] / "vectors" / "eventlogs" / "agile.bin").read_bytes()
    vector = STORED["eventlog"].changed("", "", *["pcr-mismatch"] * 3, eventlog=log)
    report = expect(tmp_path, vector)
    assert [reason["pcr"] for reason in report["reasons"]] == [0, 4, 7]


def forged(attester: Attester, selection: str = "sha256:0,2,4,7", **changes: Any) -> Vector:
    """A quote that no TPM would make, validly signed by *attester*."""
    message = attester.attest(bytes.fromhex(NONCE), selection, **changes)
    files = {"public": attester.ak_public, "message": message, "signature": attester.sign(message)}
    return Vector("", "", {**files, "pcrs": attester.values(selection)})


@pytest.mark.parametrize("kind", [ECDSA, RSASSA])
def test_forger_can_be_honest(kind: str, tmp_path: Path) -> None:
    """The premise of the tests below: without a change, the forged quote verifies."""
    expect(tmp_path, forged(Attester(kind)))


@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({"magic": 0xFF54_4348}, ["quote-invalid"]),
        ({"type": 0x8017}, ["quote-invalid"]),
        ({"trailing": b"\0"}, ["evidence-malformed"]),
        ({"banks": []}, ["selection-mismatch"]),
        ({"banks": ["sha256:"]}, ["selection-mismatch"]),
        ({"banks": ["sha256:0,2,4,7", "sha384:"]}, ["selection-mismatch"]),
        ({"banks": ["sha256:0,2,4,7", "sha256:0,2,4,7"]}, ["selection-mismatch"]),
        ({"banks": ["sha1:0,2,4,7"]}, ["selection-mismatch"]),
        ({"pcr_digest": b""}, ["pcr-digest-mismatch"]),
        ({"pcr_digest": bytes(32)}, ["pcr-digest-mismatch"]),
    ],
)
def test_signed_nonsense(changes: dict[str, Any], codes: list[str], tmp_path: Path) -> None:
    """A valid signature does not make a quote."""
    vector = forged(Attester(), **changes)
    expect(tmp_path, vector.changed("", "", *codes))


def test_unexpected_nonce_is_explained(tmp_path: Path) -> None:
    """A missing -q is reported."""
    report = expect(tmp_path, GOOD.changed("", "", "qualifying-data-mismatch", options=()))
    sentence = "The quote has qualifying data, and none was given to expect."
    assert report["reasons"][0]["sentence"] == sentence


def test_bare_values_are_numbered_by_the_signature(tmp_path: Path) -> None:
    """Bare values have no numbers of their own: those that were signed are printed."""
    report = expect(tmp_path, forged(Attester(), "sha256:1,3"))
    assert list(report["pcrs"]["sha256"]) == ["1", "3"]


def test_hash_named_inside_the_signature(tmp_path: Path) -> None:
    """A signature that holds under the hash it names is refused where the key's own hash is another."""
    attester = Attester(RSASSA)
    vector = forged(attester)
    signature = attester.sign(vector.files["message"], hash_name="sha512")
    expect(tmp_path, vector.changed("", "", "signature-invalid", signature=signature))


def test_scheme_named_inside_the_signature(tmp_path: Path) -> None:
    """A signature that holds under the scheme it names is refused where the key's own scheme is another."""
    attester = Attester(RSASSA)
    vector = forged(attester)
    signature = attester.sign(vector.files["message"], scheme="rsapss")
    expect(tmp_path, vector.changed("", "", "signature-invalid", signature=signature))
    signature = attester.sign(vector.files["message"], claim=("rsapss", "sha256"))
    expect(tmp_path, vector.changed("", "", "signature-invalid", signature=signature))


def test_sha1_signature(tmp_path: Path) -> None:
    """A SHA-1 signature is refused before it is checked."""
    attester = Attester(RSASSA)
    vector = forged(attester)
    signature = attester.sign(vector.files["message"], claim=("rsassa", "sha1"))
    expect(tmp_path, vector.changed("", "", "evidence-unsupported", signature=signature))


def test_unsuitable_key_and_bad_signature(tmp_path: Path) -> None:
    """Both are said."""
    vector = forged(Attester(attributes=0x40040))
    bad = vector.changed("", "", *["ak-unsuitable"] * 4, "signature-invalid", message=b"x")
    report = expect(tmp_path, bad)
    assert [check["passed"] for check in report["checks"]][:3] == [False, False, None]


@pytest.mark.parametrize("bit", [1 << 16, 1 << 18, 1 << 1, 1 << 4, 1 << 5])
def test_each_attribute_of_an_ak_is_needed(bit: int, tmp_path: Path) -> None:
    """restricted, sign, fixedTPM, fixedParent, sensitiveDataOrigin: without any one of them it is no AK."""
    vector = forged(Attester(attributes=int(AK_ATTRIBUTES) & ~bit))
    expect(tmp_path, vector.changed("", "", "ak-unsuitable"))
