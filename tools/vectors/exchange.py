"""Vectors of the exchange, and of a whole JWE."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tools.conformance.primitives.curve import CURVES, Affine, NistCurve
from tools.conformance.primitives.encoding import b64u, thumbprint
from tools.conformance.primitives.jose import SigningKey, derive_cek, encrypt_jwe
from tools.vectors.keys import octets, scalar


def _short(curve: NistCurve, number: int) -> bool:
    return number >> 8 * (curve.size - 1) == 0


def _search(curve: NistCurve, start: int, base: Affine, wanted: Callable[[Affine], bool]) -> int:
    """Return the first scalar from *start* on whose multiple of *base* is *wanted*."""
    found, point = start, curve.multiply(start, base)
    while not wanted(point):
        found, point = found + 1, curve.sum(point, base)
    return found


def _vector(name: str, reason: str, curve: NistCurve, s: int, c: int, e: int) -> dict[str, Any]:
    big_s, big_c = curve.multiply(s), curve.multiply(c)
    e_g = curve.multiply(e)
    x = curve.sum(big_c, e_g)
    y, k = curve.multiply(s, x), curve.multiply(c, big_s)
    assert curve.sum(y, curve.negate(curve.multiply(e, big_s))) == k  # noqa: S101 - the algebra of section 2
    reply = {"alg": "ECMR", "key_ops": ["deriveKey"]}
    return {
        "name": name,
        "reason": reason,
        "curve": curve.name,
        "s": b64u(curve.octets(s)),
        "c": b64u(curve.octets(c)),
        "e": b64u(curve.octets(e)),
        "S": curve.jwk(big_s),
        "C": curve.jwk(big_c),
        "eG": curve.jwk(e_g),
        "X": curve.jwk(x),
        "Y": curve.jwk(y, **reply),
        "eS": curve.jwk(curve.multiply(e, big_s)),
        "K": curve.jwk(k),
        "kid": thumbprint(curve.jwk(big_s)),
        "thumbprint_X": thumbprint(curve.jwk(x)),
        "cek": b64u(derive_cek(curve, k)),
    }


def exchanges() -> Iterator[dict[str, Any]]:
    """Yield s, c, e and all that follows, for each curve; and coordinates that begin with zeros."""
    for curve in CURVES.values():
        s, c, e = (scalar(label, curve) for label in "sce")
        yield _vector(f"{curve.name} plain", "three scalars", curve, s, c, e)
    curve = CURVES["P-256"]
    s, c, e = (scalar(f"short {label}", curve) for label in "sce")
    generator = curve.generator
    short_s = _search(curve, s, generator, lambda point: _short(curve, point[0]))
    yield _vector(
        "P-256 short S", "the x of S begins with a zero byte, which is part of kid", curve, short_s, c, e
    )
    big_s = curve.multiply(s)
    short_c = _search(curve, c, big_s, lambda point: _short(curve, point[0]))
    yield _vector(
        "P-256 short K", "the x of K begins with a zero byte, which goes into the CEK", curve, s, short_c, e
    )
    big_c = curve.multiply(c)
    short_e = _search(curve, e, generator, lambda point: _short(curve, curve.sum(big_c, point)[1]))
    yield _vector("P-256 short X", "the y of X begins with a zero byte", curve, s, c, short_e)
    yield _vector(
        "P-256 X is G", "e = 1 - c, so X is the generator and Y is S", curve, s, c, (1 - c) % curve.order
    )
    yield _vector(
        "P-256 X is -G", "X is the negated generator, and Y is -S", curve, s, c, (-1 - c) % curve.order
    )


def jwes() -> Iterator[dict[str, Any]]:
    """Yield whole headers, and the plaintext that K opens."""
    for name, more in (
        ("P-521", {}),
        ("P-256", {"spki": "sha256//" + "A" * 43 + "="}),
    ):
        curve = CURVES[name]
        s, c = scalar("jwe s", curve), scalar("jwe c", curve)
        big_s, big_c = curve.jwk(curve.multiply(s)), curve.jwk(curve.multiply(c))
        signer = SigningKey(CURVES["P-521"], scalar("jwe signer", CURVES["P-521"]))
        exchange_key = big_s | {"alg": "ECMR", "key_ops": ["deriveKey"]}
        attest = {
            "url": ["http://192.0.2.1:7500", "http://192.0.2.2:7500"],
            "adv": {"keys": [signer.public, exchange_key]},
            "ak": "0x81010002",
            "name": "pi-b",
            **more,
        }
        header = {
            "alg": "ECDH-ES",
            "enc": "A256GCM",
            "epk": big_c,
            "kid": thumbprint(big_s),
            "clevis": {"pin": "attest", "attest": attest},
        }
        k = curve.multiply(c, curve.multiply(s))
        cek, plaintext = derive_cek(curve, k), b"the passphrase\0of a disk\xff\n"
        yield {
            "name": f"JWE {name}",
            "reason": "a header as section 8 has it, opened by K",
            "curve": name,
            "s": b64u(curve.octets(s)),
            "header": header,
            "K": curve.jwk(k),
            "cek": b64u(cek),
            "iv": b64u(octets(f"iv {name}", 12)),
            "plaintext": b64u(plaintext),
            "jwe": encrypt_jwe(header, cek, plaintext, octets(f"iv {name}", 12)),
        }
