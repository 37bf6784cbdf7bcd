"""A key directory with every kind of key that the answers depend on."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from tang_attest.keys.jwk import dump_private
from tang_attest.protocol.values.points import CURVES
from tests.tang.servers import generate, keygen, public, thumbprint


@dataclass(frozen=True)
class World:
    """The directory, the private JWKs by file name without ``.jwk``, and a client's key of each curve."""

    directory: Path
    keys: dict[str, dict[str, Any]]
    clients: dict[str, dict[str, Any]]

    def kid(self, name: str, algorithm: str = "S256") -> str:
        """The thumbprint of a key of the directory."""
        return thumbprint(self.keys[name], algorithm)

    def point(self, curve: str = "P-521", **members: Any) -> dict[str, Any]:
        """A client's public key with *members* changed or added."""
        return {**public(self.clients[curve]), **members}


def number(value: int, size: int) -> str:
    """*value* as base64url of *size* bytes."""
    return base64.urlsafe_b64encode(value.to_bytes(size, "big")).rstrip(b"=").decode()


def as_int(text: str) -> int:
    """The number in a JWK member."""
    return int.from_bytes(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), "big")


def generator(curve: str, *, negated: bool = False) -> dict[str, Any]:
    """G or -G as a JWK."""
    it = CURVES[curve]
    y = it.p - it.gy if negated else it.gy
    return {"kty": "EC", "crv": curve, "x": number(it.gx, it.size), "y": number(y, it.size)}


def without(jwk: dict[str, Any], *names: str) -> dict[str, Any]:
    """*jwk* less some members."""
    return {name: value for name, value in jwk.items() if name not in names}


def make_world(directory: Path) -> World:
    """Fill *directory*."""
    keygen(directory, "sig", "exc")
    keys = {**_good_keys(), **_odd_keys()}
    for name, jwk in keys.items():
        (directory / f"{name}.jwk").write_text(json.dumps(jwk))
    _add_rubbish(directory)
    for name in ("sig", "exc"):
        keys[name] = json.loads((directory / f"{name}.jwk").read_text())
    return World(directory, keys, {curve: generate(alg="ECMR", crv=curve) for curve in CURVES})


def _good_keys() -> dict[str, dict[str, Any]]:
    return {
        "sig384": generate(alg="ES384"),
        ".sig": generate(alg="ES512"),
        ".sig256": generate(alg="ES256"),
        "exc384": generate(alg="ECMR", crv="P-384"),
        "exc256": generate(alg="ECMR", crv="P-256"),
        ".exc": generate(alg="ECMR"),
        ".exc384": generate(alg="ECMR", crv="P-384"),
        ".exc256": generate(alg="ECMR", crv="P-256"),
    }


def _odd_keys() -> dict[str, dict[str, Any]]:
    """Keys that are not what ``tangd-keygen`` makes; none of them can stop the directory from being advertised."""
    ecmr = generate(alg="ECMR")
    return {
        "exc-bits": {**generate(alg="ECMR"), "key_ops": ["deriveBits"]},
        "exc-ecdh": {**generate(alg="ECMR"), "alg": "ECDH"},
        "exc-alg-null": {**generate(alg="ECMR"), "alg": None},
        "exc-alg-missing": without(generate(alg="ECMR"), "alg"),
        "exc-public": without(generate(alg="ECMR"), "d"),
        "exc-d-null": {**generate(alg="ECMR"), "d": None},
        "exc-d-wrong": {**generate(alg="ECMR"), "d": ecmr["d"]},
        "exc-d-rubbish": {**generate(alg="ECMR"), "d": "no+base64url"},
        "exc-use": {**generate(alg="ECMR"), "use": "enc"},
        "exc-use-only": {**without(generate(alg="ECMR"), "key_ops"), "use": "enc"},
        "exc-use-number": {**generate(alg="ECMR"), "use": 1},
        "exc-more": {
            **generate(alg="ECMR"),
            "kid": "küche",
            "n": [1, {"a": None}],
            "key_ops": ["deriveKey", "x", 7],
        },
        "exc-short": _short_key(),
        ".exc-silent": without(generate(alg="ECMR"), "key_ops"),
        "sig-only": {**generate(alg="ES512"), "key_ops": ["sign"]},
        "sig-use": {**without(generate(alg="ES256"), "key_ops"), "use": "sig"},
        "sig-silent": without(generate(alg="ES256"), "key_ops", "alg"),
        ".sig-d-wrong": {**generate(alg="ES512"), "d": ecmr["d"]},
        "verify-only": {**generate(alg="ES512"), "key_ops": ["verify"]},
    }


def _short_key() -> dict[str, Any]:
    """A key whose x lacks its leading zero: the thumbprint is that of the text in the file."""
    while True:
        jwk = dump_private(ec.generate_private_key(ec.SECP256R1()), "ECMR")
        if as_int(jwk["x"]) < 1 << 248:
            return {**jwk, "x": number(as_int(jwk["x"]), 31)}


def _add_rubbish(directory: Path) -> None:
    (directory / "empty.jwk").write_text("")
    (directory / "cut.jwk").write_text('{"kty":"EC","crv":')
    (directory / "text.jwk").write_text('"text"')
    (directory / "latin1.jwk").write_bytes(b'{"kty":"\xe9"}')
    (directory / ".cut.jwk").write_text("{")
    (directory / "notes.txt").write_text("not a key")
    (directory / "jwk").write_text("{}")
    (directory / "folder.jwk").mkdir()
    (directory / "nowhere.jwk").symlink_to("missing")
