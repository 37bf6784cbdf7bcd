"""Fixed keys of the vectors.  Scalars are digests of a label; RSA keys are in vectors/keys.json, made once.

They are published: a key of this module protects nothing.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tools.conformance.primitives.curve import NistCurve

VECTORS: Final = Path(__file__).parents[2] / "vectors"
_KEYS: Final = VECTORS / "keys.json"
_RSA_BITS: Final = {"ak-rsa2048": 2048, "ek-rsa2048": 2048, "ek-rsa3072": 3072, "ek-rsa4096": 4096}


def octets(label: str, size: int) -> bytes:
    """Return *size* bytes that *label* determines."""
    return hashlib.shake_256(f"tang-attest vectors\n{label}\n".encode()).digest(size)


def scalar(label: str, curve: NistCurve) -> int:
    """Return a private scalar that *label* determines, below the order of *curve*."""
    return int.from_bytes(octets(f"{curve.name} {label}", curve.size + 16), "big") % (curve.order - 1) + 1


def ecc(label: str, curve: ec.EllipticCurve, size: int = 32) -> ec.EllipticCurvePrivateKey:
    """Return a private key that *label* determines; *size* is that of a scalar, which keeps a byte to spare."""
    return ec.derive_private_key(int.from_bytes(octets(label, size - 1), "big"), curve)


@cache
def stored_rsa(name: str) -> rsa.RSAPrivateKey:
    """Return an RSA key of vectors/keys.json."""
    pem = json.loads(_KEYS.read_text())["keys"][name]
    key = serialization.load_pem_private_key(pem.encode(), None)
    assert isinstance(key, rsa.RSAPrivateKey)  # noqa: S101 - our own file
    return key


def write_new_rsa_keys() -> None:
    """Write vectors/keys.json with other keys, which changes every vector made with them."""
    keys = {}
    for name, bits in _RSA_BITS.items():
        pem = rsa.generate_private_key(65537, bits).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        keys[name] = pem.decode()
    about = "RSA keys of the vectors, made once. They are published and protect nothing."
    _KEYS.write_text(json.dumps({"kind": "keys", "about": about, "keys": keys}, indent=1) + "\n")
