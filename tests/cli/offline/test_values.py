"""``tang-attest values`` over what Debian's ukify signed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from tests.cli import transcript
from tests.keys.rsa_keys import draw
from tests.protocol.signed_values import signing
from tests.protocol.signed_values.test_statement import P256
from tests.protocol.signed_values.test_ukify import VECTOR

_SEVERAL: Final = "hint: if one boot reaches several of these values, sign its phase enter-initrd only\n"


def run(*words: str | Path) -> tuple[str, str, int]:
    """Stdout, stderr and exit code of a command, in this process."""
    return transcript.run(*map(str, words))


@pytest.fixture
def section(tmp_path: Path) -> Path:
    """The section ``.pcrsig`` of an image."""
    path = tmp_path / "image.pcrsig"
    path.write_text(json.dumps(VECTOR["pcrsig"]))
    return path


def _key(directory: Path, pem: str) -> Path:
    path = directory / "key.pem"
    path.write_text(pem)
    return path


@pytest.mark.parametrize("name", VECTOR["keys"])
def test_a_section_shows_what_a_key_signed(section: Path, name: str) -> None:
    """A key that signs several phases is named, because nothing in the section tells them apart."""
    key = _key(section.parent, VECTOR["keys"][name]["pem"])
    out, err, code = run("values", "verify", section, "--key", key, "--json")
    phases = VECTOR["keys"][name]["phases"].split(",")
    found: dict[str, Any] = json.loads(out)
    assert (code, found["verified"], len(found["entries"])) == (0, True, len(phases))
    _, err, code = run("values", "verify", section, "--key", key)
    assert (code, err.startswith("tang-attest: the signatures hold\n")) == (0, True)
    assert (_SEVERAL in err) == (len(phases) > 1)


def test_a_section_is_shown_unverified(section: Path) -> None:
    """All entries of the bank sha256, and that anybody can write them."""
    out, err, code = run("values", "inspect", section)
    assert (code, err) == (0, "tang-attest: NOT verified: anybody can write a .pcrsig\n")
    assert len(out.splitlines()) == 1 + len(VECTOR["pcrsig"]["sha256"])
    assert json.loads(run("values", "inspect", section, "--json")[0])["verified"] is False


@pytest.mark.parametrize(
    ("pem", "said"),
    [
        (signing.public_pem(draw(2048)), "the key has signed no entry of the .pcrsig (statement-untrusted)"),
        (
            signing.public_pem(P256),
            "a .pcrsig is signed with an RSA key; keys on a curve sign statements (signer-unsuitable)",
        ),
    ],
    ids=["another key", "a curve"],
)
def test_a_key_that_signed_nothing(section: Path, pem: bytes, said: str) -> None:
    """Exit code 1, and why."""
    _, err, code = run("values", "verify", section, "--key", _key(section.parent, pem.decode()))
    assert (code, err.splitlines()[0]) == (1, f"tang-attest: {said}")


@pytest.mark.parametrize(
    ("contents", "problem"),
    [
        ("{", "it is no JSON"),
        ("{}", "it has no entry for PCR 11 of the bank sha256"),
        ('{"sha256": [{"pcrs": [11]}], "sha1": 7}', "it has no entry for PCR 11 of the bank sha256"),
        ('{"a":' * 20000 + "1" + "}" * 20000, "it is no JSON"),
    ],
    ids=["cut", "empty", "odd", "deep"],
)
def test_a_file_that_is_no_section(tmp_path: Path, contents: str, problem: str) -> None:
    """One sentence and no traceback."""
    path = tmp_path / "odd"
    path.write_text(contents[: 64 * 1024])
    _, err, code = run("values", "inspect", path)
    said = f"tang-attest: the .pcrsig cannot be used: {problem} (statement-malformed)"
    assert (code, err.splitlines()[0]) == (1, said)


def test_signing_pcr_7_is_warned_about(tmp_path: Path) -> None:
    """By default all values of the file are signed, and no policy believes such a statement."""
    values, private = tmp_path / "values.json", tmp_path / "private.pem"
    values.write_text(json.dumps({"4": "ab" * 32, "7": "cd" * 32}))
    private.write_bytes(signing.private_pem(P256))
    command = (
        "values",
        "sign",
        values,
        "--key",
        private,
        "--policy",
        "web",
        "--label",
        "web/1",
        "--version",
        "1",
    )
    said = "hint: no policy lets a signer sign PCR 7, so this statement counts nowhere: give --pcrs\n"
    out, err, code = run(*command)
    assert (code, err, out.count(".")) == (0, said, 2)
    out, err, code = run(*command, "--pcrs", "4")
    assert (code, err, out.count(".")) == (0, "", 2)
