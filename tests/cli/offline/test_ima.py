"""``tang-attest ima``."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tang_attest.cli import group
from tang_attest.errors import TangAttestError
from tests.cli.transcript import environment, run
from tests.protocol.ima.writer import boot_aggregate, measured, raw, replayed

PCRS = {pcr: bytes([pcr]) * 32 for pcr in range(10)}
BASH = hashlib.sha256(b"bash").digest()
ENTRIES = [boot_aggregate(PCRS), measured("/usr/bin/bash", BASH), measured("/x", bytes(32))]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A list, sums and rules."""
    (tmp_path / "list").write_bytes(raw(ENTRIES))
    (tmp_path / "sums").write_text(f"{BASH.hex()}  /usr/bin/bash\n")
    (tmp_path / "more").write_text(f"{bytes(32).hex()}  /usr/bin/bash\n")
    (tmp_path / "ima.yaml").write_text("ignore: [/x]\n")
    return tmp_path


def check(files: Path, *arguments: str) -> Result:
    """``ima check``, with the names of files completed."""
    completed = [str(files / argument) if (files / argument).exists() else argument for argument in arguments]
    return CliRunner().invoke(group, ["ima", "check", str(files / "list"), *completed])


def test_what_is_allowed(files: Path) -> None:
    """Rules and sums count together."""
    pcr10 = replayed(ENTRIES).hex()
    result = check(files, "--file", "ima.yaml", "--sums", "sums", "--sums", "more", "--pcr10", pcr10)
    assert (result.exit_code, result.stdout) == (0, "3 entries, 0 not allowed\n")
    result = check(files, "--sums", "more", "--sums", "sums", "--pcr10", pcr10)
    assert (result.exit_code, result.stdout) == (
        1,
        "Entry 3, /x: nothing allows it.\n3 entries, 1 not allowed\n",
    )


def test_json(files: Path) -> None:
    """Output for programs; an earlier PCR 10 covers less."""
    result = check(files, "--sums", "sums", "--pcr10", replayed(ENTRIES[:2], padded=True).hex(), "--json")
    assert result.exit_code == 1
    body = json.loads(result.stdout)
    assert body["reasons"] == [
        {"code": "ima-not-allowed", "sentence": "This kernel extends PCR 10 with SHA-1 only."}
    ]
    assert (body["entries"], body["extends"]) == (2, ["padded-sha1"])
    assert f"{len(ENTRIES[2].raw)} bytes after that PCR 10 were not looked at" in result.stderr


def test_a_list_at_its_word(files: Path) -> None:
    """For trying rules on a machine; that proves nothing, and it says so."""
    result = check(files, "--file", "ima.yaml", "--sums", "sums")
    assert result.exit_code == 0
    assert "compared with no PCR" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--sums", "sums", "--pcr10", "00"), "values-invalid"),
        (("--sums", "sums", "--pcr10", "x" * 64), "values-invalid"),
        (("--sums", "sums", "--pcr10", "11" * 32), "ima-mismatch"),
        (("--sums", "list"), "rules-invalid"),
        (("--file", "sums"), "rules-invalid"),
    ],
)
def test_what_cannot_be_checked(files: Path, arguments: tuple[str, ...], code: str) -> None:
    """Each by its code."""
    result = check(files, *arguments)
    assert isinstance(result.exception, TangAttestError)
    assert result.exception.code == code


def test_usage(files: Path) -> None:
    """Something has to be allowed, and once."""
    (files / "ima.yaml").write_text("sums: {}\n")
    assert check(files).exit_code == 2
    assert check(files, "--file", "ima.yaml", "--sums", "sums").exit_code == 2


def test_a_policy_asks(files: Path) -> None:
    """It is set, shown, kept beside other conditions, and taken back."""
    with contextlib.chdir(files), environment():
        for words in ("init", "policy create web --selection sha256:4", "policy require-approval web on"):
            assert run(*words.split())[2] == 0
        done = run("policy", "require-ima", "web", "on", "--file", "ima.yaml", "--sums", "sums")
        assert done == ("", "tang-attest: policy web asks what IMA measured\n", 0)
        shown = run("policy", "show", "web")[0].splitlines()[0]
        assert "unlocks wait for a person, asks what IMA measured (requirement " in shown
        digest = json.loads(run("policy", "show", "web", "--json")[0])["conditions"]["ima"]
        assert len(digest) == 64
        event = json.loads(run("audit", "--json")[0])[0]
        assert (event["event"], event["details"]) == ("policy ima", {"policy": "web", "ima": digest})
        assert run("policy", "require-ima", "web", "off")[2] == 0
        assert run("policy", "show", "web")[0].splitlines()[0].endswith("unlocks wait for a person")
        assert run("policy", "require-ima", "other", "off")[2] == 1
        for options in ((), ("on",), ("off", "--sums", "sums")):
            assert run("policy", "require-ima", "web", *options)[2] == 2
