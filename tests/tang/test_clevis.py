"""Stock clevis cannot tell our plain Tang from tangd."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import pytest

from tests.conformance.vectors import document
from tests.ports import free_port
from tests.tang.servers import generate, keygen, ours, public, rotate, send, tangd, thumbprint

SECRET = b"the passphrase\0of a disk\xff"

Server = Callable[[Path, int], AbstractContextManager[int]]


def encrypt(port: int, **settings: str) -> bytes:
    """``clevis encrypt tang``, which trusts the keys that it is offered unless *settings* name one."""
    config = json.dumps({"url": f"http://127.0.0.1:{port}", **settings})
    command = ["clevis", "encrypt", "tang", config, "-y"]
    return subprocess.run(command, input=SECRET, capture_output=True, check=True, timeout=120).stdout


def decrypt(jwe: bytes) -> subprocess.CompletedProcess[bytes]:
    """``clevis decrypt``."""
    return subprocess.run(["clevis", "decrypt"], input=jwe, capture_output=True, check=False, timeout=120)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    keygen(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("binds", "opens"),
    [
        pytest.param(ours, ours, id="ours"),
        pytest.param(tangd, ours, id="bound to tangd, opened by ours"),
        pytest.param(ours, tangd, id="bound to ours, opened by tangd"),
    ],
)
def test_secret(directory: Path, binds: Server, opens: Server) -> None:
    """A disk bound to one server opens with the other, over the same directory and at the same address."""
    port = free_port()
    with binds(directory, port):
        jwe = encrypt(port)
    assert SECRET not in jwe
    with opens(directory, port):
        assert decrypt(jwe).stdout == SECRET
    assert decrypt(jwe).returncode != 0


def test_rotation(directory: Path) -> None:
    """After ``tangd-rotate-keys`` old secrets open, new ones use new keys; without the old keys old ones do not."""
    with ours(directory) as port:
        old = encrypt(port)
        rotate(directory)
        assert decrypt(old).stdout == SECRET
        new = encrypt(port)
        assert _kid(new) != _kid(old)
        for path in directory.glob(".*.jwk"):
            path.unlink()
        assert decrypt(old).returncode != 0
        assert decrypt(new).stdout == SECRET


def _kid(jwe: bytes) -> str:
    command = ["jose", "fmt", "-j-", "-Og", "protected", "-yOg", "kid", "-Su-"]
    compact = ["jose", "jwe", "fmt", "-i-", "-o-"]
    flattened = subprocess.run(compact, input=jwe, capture_output=True, check=True, timeout=120).stdout
    kid = subprocess.run(command, input=flattened, capture_output=True, check=True, timeout=120).stdout
    return kid.decode()


@pytest.mark.parametrize("algorithm", ["S256", "S1"])
def test_pinned_signing_key(directory: Path, algorithm: str) -> None:
    """A client that knows a signing key's thumbprint gets the advertisement signed by it, after its rotation too."""
    signer = next(
        jwk for path in directory.glob("*.jwk") if (jwk := json.loads(path.read_text()))["alg"] == "ES512"
    )
    with ours(directory) as port:
        assert decrypt(encrypt(port, thp=thumbprint(signer, algorithm))).stdout == SECRET
        rotate(directory)
        assert decrypt(encrypt(port, thp=thumbprint(signer, algorithm))).stdout == SECRET


@pytest.mark.parametrize("curve", ["P-256", "P-384", "P-521"])
def test_curves(tmp_path: Path, curve: str) -> None:
    """An exchange key may be on any of the three curves."""
    (tmp_path / "sig.jwk").write_text(json.dumps(generate(alg="ES256")))
    (tmp_path / "exc.jwk").write_text(json.dumps(generate(alg="ECMR", crv=curve)))
    with ours(tmp_path) as port:
        assert decrypt(encrypt(port)).stdout == SECRET


def test_first_start(tmp_path: Path) -> None:
    """An empty directory gets keys at the first request, which tangd can use as well."""
    port = free_port()
    with ours(tmp_path, port):
        jwe = encrypt(port)
    assert len(list(tmp_path.glob("*.jwk"))) == 2
    with tangd(tmp_path, port):
        assert decrypt(jwe).stdout == SECRET


def test_keys_in_use(directory: Path) -> None:
    """A key added, hidden or removed while the server runs counts from the next request."""
    late = generate(alg="ECMR")
    target, body = f"/rec/{thumbprint(late)}", json.dumps(public(late)).encode()
    with ours(directory) as port:
        assert send(port, "POST", target, body).status == 404
        (directory / "late.jwk").write_text(json.dumps(late))
        assert send(port, "POST", target, body).status == 200
        advertised = send(port, "GET", "/adv").body
        (directory / "late.jwk").rename(directory / ".late.jwk")
        assert send(port, "POST", target, body).status == 200
        assert send(port, "GET", "/adv").body != advertised
        (directory / ".late.jwk").unlink()
        assert send(port, "POST", target, body).status == 404


#: Not asked of an advertisement by stock clevis: a content type, and the AK of a device.
_TAKEN: Final = {"another content type", "another AK", "no AK"}


def test_an_advertisement_that_its_keys_did_not_sign_is_refused(tmp_path: Path) -> None:
    """A signature of another algorithm, of an unknown one or of none is no signature.

    ``jose jws ver -a`` passes over such keys only where it also has ``-O``, which stock clevis does not give it.
    """
    wrong = {}
    for vector in document("advertisements")["vectors"]:
        path = tmp_path / "adv.json"
        path.write_text(json.dumps(vector["advertisement"]))
        config = json.dumps({"url": "http://127.0.0.1:1", "thp": vector["trusted"], "adv": str(path)})
        command = ["clevis", "encrypt", "tang", config]
        made = subprocess.run(command, input=SECRET, capture_output=True, check=False, timeout=60)
        accepted = vector["accepted"] or vector["name"] in _TAKEN
        if (made.returncode == 0) != accepted:
            wrong[vector["name"]] = made.stderr.decode()
    assert wrong == {}
