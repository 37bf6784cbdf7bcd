"""Private keys between JWK files and OpenSSL."""

from __future__ import annotations

import ast
import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tang_attest.errors import Malformed
from tang_attest.keys import jwk as module
from tang_attest.keys.jwk import EcSigner, dump_private, generate, load_private
from tang_attest.protocol.values.advertisement import advertise
from tang_attest.protocol.values.base64url import b64u
from tang_attest.protocol.values.points import CURVES

ALGORITHMS = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}

# RFC 7515, appendix A.3.1
RFC_KEY = {
    "kty": "EC",
    "crv": "P-256",
    "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
    "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
    "d": "jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI",
}


def octets(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def test_vector() -> None:
    """The key of RFC 7515, appendix A.3 is read, and written as it was."""
    assert RFC_KEY.items() <= dump_private(load_private(RFC_KEY), "ES256").items()


@pytest.mark.parametrize("curve", CURVES)
def test_round_trip(curve: str) -> None:
    """Numbers are written in the field's size, whatever their own; they are read back as they were."""
    for _ in range(50):
        private = ec.generate_private_key(CURVES[curve].implementation)
        jwk = dump_private(private, "ECMR")
        assert {len(octets(jwk[name])) for name in "dxy"} == {CURVES[curve].size}
        assert octets(jwk["d"]) == private.private_numbers().private_value.to_bytes(CURVES[curve].size, "big")
        assert load_private(jwk).private_numbers() == private.private_numbers()


@pytest.mark.parametrize("curve", CURVES)
def test_small_scalar(curve: str) -> None:
    """A scalar with leading zeros keeps them, and may be read without them."""
    private = ec.derive_private_key(5, CURVES[curve].implementation)
    jwk = dump_private(private, "ECMR")
    assert octets(jwk["d"]) == bytes(CURVES[curve].size - 1) + b"\x05"
    assert load_private({**jwk, "d": "BQ"}).private_numbers() == private.private_numbers()


@pytest.mark.parametrize(
    ("alg", "curve"), [("ES256", "P-256"), ("ES384", "P-384"), ("ES512", "P-521"), ("ECMR", "P-521")]
)
def test_generate(alg: str, curve: str) -> None:
    """A generated key has the members that ``jose jwk gen`` gives it."""
    template = json.dumps({"alg": alg})
    made = subprocess.run(
        ["jose", "jwk", "gen", "-i", template], capture_output=True, check=True, timeout=120
    )
    jwk, theirs = generate(alg), json.loads(made.stdout)
    assert jwk.keys() == theirs.keys()
    for name in ("alg", "crv", "kty", "key_ops"):
        assert jwk[name] == theirs[name]
    assert jwk["crv"] == curve
    load_private(theirs)


def change(**members: Any) -> dict[str, Any]:
    return {name: value for name, value in {**RFC_KEY, **members}.items() if value is not ...}


@pytest.mark.parametrize(
    "jwk",
    [
        pytest.param({}, id="empty"),
        pytest.param(change(kty="RSA"), id="kty"),
        pytest.param(change(kty=...), id="no kty"),
        pytest.param(change(crv="secp256k1"), id="curve"),
        pytest.param(change(crv="P-384"), id="another curve"),
        pytest.param(change(crv=["P-256"]), id="curve in a list"),
        pytest.param(change(x=RFC_KEY["y"]), id="off the curve"),
        pytest.param(change(y=...), id="no y"),
        pytest.param(change(d=...), id="no d"),
        pytest.param(change(d=""), id="empty d"),
        pytest.param(change(d=5), id="d is a number"),
        pytest.param(change(d=generate("ES256")["d"]), id="d of another key"),
        pytest.param(change(d=b64u(bytes(32))), id="d is zero"),
        pytest.param(change(d=b64u(b"\xff" * 32)), id="d is too large"),
        pytest.param(change(d=b64u(b"\0" + octets(RFC_KEY["d"]))), id="d is too long"),
        pytest.param(change(d="jpsQnnGQmL+YBIffH1136cspYG6+0iY7X1fCE9+E9LI"), id="plain base64"),
        pytest.param(change(d=RFC_KEY["d"] + "="), id="padding"),
        pytest.param(change(d=RFC_KEY["d"][:-1] + "J"), id="stray bits"),
        pytest.param(change(d=RFC_KEY["d"] + "\n"), id="line feed"),
        pytest.param(change(d="ü" + RFC_KEY["d"][1:]), id="not ASCII"),
        pytest.param(change(d="\ud800"), id="half a surrogate pair"),
    ],
)
def test_malformed(jwk: dict[str, Any]) -> None:
    """Anything but a private key of our curves is refused by one code, without quoting it."""
    with pytest.raises(Malformed) as refusal:
        load_private(jwk)
    assert refusal.value.code == "key-malformed"
    assert RFC_KEY["d"] not in refusal.value.sentence


def test_curve_of_another_kind() -> None:
    """OpenSSL keys on other curves are refused too."""
    private = ec.generate_private_key(ec.SECP256K1())
    with pytest.raises(Malformed, match="secp256k1"):
        EcSigner(private)
    with pytest.raises(Malformed, match="secp256k1"):
        dump_private(private, "ES256")


@pytest.mark.parametrize("curve", CURVES)
def test_signer(curve: str) -> None:
    """``jose`` verifies what is signed, for any size of r and s."""
    jwk = dump_private(ec.generate_private_key(CURVES[curve].implementation), ALGORITHMS[curve])
    signer = EcSigner(load_private(jwk))
    assert signer.algorithm == ALGORITHMS[curve]
    assert {len(signer.sign(bytes([n]))) for n in range(200)} == {2 * CURVES[curve].size}
    for _ in range(5):
        jws = advertise([], [signer]).decode()
        command = ["jose", "jws", "ver", "-i", jws, "-k-"]
        subprocess.run(command, input=json.dumps(jwk).encode(), capture_output=True, check=True, timeout=120)


def test_signer_is_silent() -> None:
    """A signer does not print its key."""
    assert repr(EcSigner(load_private(RFC_KEY))) == "EcSigner(ES256)"


def test_scalar_is_never_an_integer() -> None:
    """The module has no way to make a number of a scalar: Python's arithmetic would tell it by its timing."""
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not names & {"private_numbers", "private_value", "from_bytes", "derive_private_key"}
