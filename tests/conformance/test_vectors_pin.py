"""The vectors against this project's pin: its own functions in bash, jose, and the initrd's cap."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tang_attest.protocol.values.base64url import unb64u
from tests.conformance.vectors import document, each
from tests.initrd.scene import OTHER, UUID, Scene
from tests.pin.machine import PIN
from tests.swtpm import Swtpm
from tools.conformance.primitives.curve import CURVES
from tools.conformance.primitives.jose import derive_cek, encrypt_jwe

Vector = dict[str, Any]

_FUNCTIONS = PIN / "lib" / "clevis-attest-functions"
_SETUP = PIN / "lib" / "clevis-attest-setup-functions"


def bash(script: str, *arguments: str, stdin: str = "") -> list[str]:
    """Lines that *script* prints."""
    done = subprocess.run(
        ["bash", "-euc", script, "bash", *arguments],
        input=stdin, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def function(name: str) -> str:
    """A function of clevis-decrypt-attest, which is a program and cannot be sourced."""
    source = (PIN / "clevis-decrypt-attest").read_text()
    start = source.index(f"\n{name}() {{\n")
    return source[start : source.index("\n}\n", start) + 3]


#: The pin's way from C, S and e to X, and from Y to the plaintext.
_EXCHANGE = f"""
set +eu
. "{_FUNCTIONS}"
readonly IS='"[[:space:]]*:[[:space:]]*"'
{function("blind")}{function("open_with_reply")}{function("open_jwe")}
mask=''
IFS= read -r ephemeral_text
IFS= read -r epk
IFS= read -r server_key
IFS= read -r http_body
IFS= read -r jwe
[[ $epk =~ \\"crv\\":\\"(P-(256|384|521))\\" ]]
crv=${{BASH_REMATCH[1]}}
exec {{ephemeral_fd}}< <(printf '%s' "$ephemeral_text")
blind || {{ echo "$why"; exit 1; }}
printf '%s\\n' "$blinded"
IFS= read -r -u "$thumbprint_fd" thumbprint
printf '%s\\n' "$thumbprint"
open_with_reply || {{ echo "$why"; exit 1; }}
printf '%s\\n' "${{plaintext[0]}}"
"""


@pytest.mark.parametrize("vector", each("exchange"))
def test_exchange(vector: Vector) -> None:
    """The pin's X is that of the vector, and from Y it opens what the vector's key encrypted."""
    ephemeral = {**vector["eG"], "alg": "ECMR", "d": vector["e"]}
    header = {"alg": "ECDH-ES", "enc": "A256GCM", "epk": vector["C"], "kid": vector["kid"]}
    jwe = encrypt_jwe(header, unb64u(vector["cek"]), b"opened", b"initvector12")
    keys = (ephemeral, {**vector["C"]}, {**vector["S"], "alg": "ECMR"}, vector["Y"])
    stdin = "".join(f"{json.dumps(key, separators=(',', ':'))}\n" for key in keys) + f"{jwe}\n"
    blinded, thumbprint, plaintext = bash(_EXCHANGE, stdin=stdin)
    assert {name: json.loads(blinded)[name] for name in ("crv", "kty", "x", "y")} == vector["X"]
    assert (thumbprint, plaintext) == (vector["thumbprint_X"], "opened")


@pytest.mark.parametrize("vector", each("jwe"))
def test_jwe(vector: Vector) -> None:
    """jose opens the header with K as its key, as the pin has it do; the pin reads the header."""
    k = json.dumps(vector["K"])
    opened = subprocess.run(
        ["jose", "jwe", "dec", "-k-", "-i-"], input=(k + vector["jwe"]).encode(), capture_output=True, check=True
    )  # fmt: skip
    assert opened.stdout == unb64u(vector["plaintext"])
    x, y = (int.from_bytes(unb64u(vector["K"][name]), "big") for name in "xy")
    assert derive_cek(CURVES[vector["curve"]], (x, y)) == unb64u(vector["cek"])
    [kid] = bash(
        "jose jwk thp -i- ", stdin=json.dumps(vector["header"]["clevis"]["attest"]["adv"]["keys"][1])
    )
    assert kid == vector["header"]["kid"]


def test_qualifying_data() -> None:
    """The pin's function hashes the lines of each purpose to the digest."""
    script = f'. "{_FUNCTIONS}"; attest_hash "$@"; printf "%s\\n" "$digest"'
    for vector in document("qualifying-data")["vectors"]:
        lines = vector["text"].split("\n")[:-1]
        assert bash(script, *lines) == [vector["digest"]], vector["name"]


_JUDGE = f"""
set +eu
. "{_SETUP}"
while IFS= read -r jws && IFS= read -r trusted && IFS= read -r name; do
    if attest_verify "$jws" && attest_signed_by "$trusted" && [[ $signed_ak == "$name" ]]; then
        if attest_exchange_key "$4"; then printf 'accepted %s\\n' "$exchange_kid"; else printf 'refused\\n'; fi
    else
        printf 'refused\\n'
    fi
done
"""


def test_advertisements() -> None:
    """The pin binds to the good ones and refuses the others."""
    vectors = document("advertisements")["vectors"]
    kid = next(vector["kid"] for vector in vectors if vector["accepted"])
    lines = ((json.dumps(each["advertisement"]), each["trusted"], each["ak_name"]) for each in vectors)
    stdin = "".join(f"{line}\n" for vector in lines for line in vector)
    answers = bash(_JUDGE, "", "", "", kid, stdin=stdin)
    expected = [f"accepted {each['kid']}" if each["accepted"] else "refused" for each in vectors]
    named = [each["name"] for each in vectors]
    assert dict(zip(named, answers, strict=True)) == dict(zip(named, expected, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "volumes"),
    [
        ("nothing open", ()),
        ("the root, by a passphrase", ((UUID, False),)),
        ("two volumes", ((UUID, True), (OTHER, False))),
    ],
)
def test_cap(name: str, volumes: tuple[tuple[str, bool], ...], tmp_path: Path) -> None:
    """The initrd's cap leads a real TPM to the vector's value in each bank, and keeps the vector's text."""
    [vector] = [it for it in document("cap")["vectors"] if it["name"] == name]
    with Swtpm(tmp_path / "tpm", banks=("sha256", "sha384")) as tpm:
        scene = Scene(tmp_path / "machine", tpm.environment)
        (tmp_path / "machine/dev/tpmrm0").touch()
        for index, (uuid, attested) in enumerate(volumes):
            scene.volume(f"dm-{index}", f"254:{index}", f"v{index}", uuid=uuid, attested=attested)
        assert scene.run("dash", "clevis-attest-cap") == 0, scene.output
        assert (scene.run_directory / "cap-events").read_text() == "".join(vector["texts"])
        for bank in ("sha256", "sha384"):
            read = tpm.run("tpm2", "pcrread", f"{bank}:15", "-Q", "-o", tmp_path / "pcr")
            assert read.returncode == 0
            assert (tmp_path / "pcr").read_bytes().hex() == vector["values"][bank]
