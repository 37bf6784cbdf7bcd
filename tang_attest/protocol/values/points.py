"""Points of the NIST curves, in the open: parsing a JWK's point, adding the generator, telling G and -G.

Everything here is public data, so Python integers are fine.  Private scalars never come here; see
exchange.py. Curve parameters: SP 800-186, section 3.2.1; y^2 = x^3 - 3x + b over GF(p).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec

from tang_attest.errors import Malformed
from tang_attest.protocol.values.base64url import b64u, unb64u


@dataclass(frozen=True, slots=True)
class Curve:
    """A curve as RFC 7518, section 6.2.1.1 names it; ``size`` is the length of a coordinate in bytes."""

    name: str
    size: int
    p: int
    b: int
    gx: int
    _: KW_ONLY
    gy: int
    implementation: ec.EllipticCurve


@dataclass(frozen=True, slots=True)
class Point:
    """An affine point that is on ``curve``; never the point at infinity."""

    curve: Curve
    x: int
    y: int

    def __post_init__(self) -> None:
        p = self.curve.p
        if (
            not (0 <= self.x < p and 0 <= self.y < p)
            or (self.y**2 - self.x**3 + 3 * self.x - self.curve.b) % p
        ):
            raise Malformed("point-invalid", f"The point is not on {self.curve.name}.")

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The same point as a key of ``cryptography``."""
        return ec.EllipticCurvePublicNumbers(self.x, self.y, self.curve.implementation).public_key()

    def negated(self) -> Point:
        """-P."""
        return Point(self.curve, self.x, self.curve.p - self.y)

    def is_generator(self) -> bool:
        """P = G."""
        return (self.x, self.y) == (self.curve.gx, self.curve.gy)

    def is_negated_generator(self) -> bool:
        """P = -G."""
        return (self.x, self.y) == (self.curve.gx, self.curve.p - self.curve.gy)

    def plus_generator(self) -> Point:
        """P + G, for P other than G and -G (chord rule)."""
        curve = self.curve
        slope = (curve.gy - self.y) * pow(curve.gx - self.x, -1, curve.p) % curve.p
        x = (slope * slope - self.x - curve.gx) % curve.p
        return Point(curve, x, (slope * (self.x - x) - self.y) % curve.p)

    def members(self) -> dict[str, str]:
        """The required JWK members of the point (RFC 7638, section 3.2): crv, kty, x, y."""
        return {
            "crv": self.curve.name,
            "kty": "EC",
            "x": encode_coordinate(self.x, self.curve.size),
            "y": encode_coordinate(self.y, self.curve.size),
        }

    def thumbprint(self) -> str:
        """The RFC 7638 thumbprint with SHA-256, b64u: that of
        :func:`~tang_attest.protocol.values.advertisement.thumbprint` for :meth:`members`.
        """
        shown = self.members()
        # Compact JSON as it is: no name and no base64url has a character that JSON escapes.
        canonical = f'{{"crv":"{shown["crv"]}","kty":"EC","x":"{shown["x"]}","y":"{shown["y"]}"}}'
        return b64u(hashlib.sha256(canonical.encode(), usedforsecurity=False).digest())


_P256: Final = 2**256 - 2**224 + 2**192 + 2**96 - 1
_P384: Final = 2**384 - 2**128 - 2**96 + 2**32 - 1
_P521: Final = 2**521 - 1

CURVES: Final[Mapping[str, Curve]] = {
    "P-256": Curve(
        "P-256",
        32,
        _P256,
        0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B,
        0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
        gy=0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
        implementation=ec.SECP256R1(),
    ),
    "P-384": Curve(
        "P-384",
        48,
        _P384,
        0xB3312FA7E23EE7E4988E056BE3F82D19181D9C6EFE8141120314088F5013875AC656398D8A2ED19D2A85C8EDD3EC2AEF,
        0xAA87CA22BE8B05378EB1C71EF320AD746E1D3B628BA79B9859F741E082542A385502F25DBF55296C3A545E3872760AB7,
        gy=0x3617DE4A96262C6F5D9E98BF9292DC29F8F41DBD289A147CE9DA3113B5F0B8C00A60B1CE1D7E819D7A431D7C90EA0E5F,
        implementation=ec.SECP384R1(),
    ),
    "P-521": Curve(
        "P-521",
        66,
        _P521,
        0x0051953EB9618E1C9A1F929A21A0B68540EEA2DA725B99B315F3B8B489918EF109E156193951EC7E937B1652C0BD3BB1BF073573DF883D2C34F1EF451FD46B503F00,
        0x00C6858E06B70404E9CD9E3ECB662395B4429C648139053FB521F828AF606B4D3DBAA14B5E77EFE75928FE1DC127A2FFA8DE3348B3C1856A429BF97E7E31C2E5BD66,
        gy=0x011839296A789A3BC0045C8A5FB42C7D1BD998F54449579B446817AFBD17273E662C97EE72995EF42640C550B9013FAD0761353C7086A272C24088BE94769FD16650,
        implementation=ec.SECP521R1(),
    ),
}


#: The curve of signing keys and exchange keys that are made here, as of tangd's.
DEFAULT_CURVE: Final = "P-521"

_CURVES_BY_IMPLEMENTATION: Final = {curve.implementation.name: curve for curve in CURVES.values()}


def curve_of(implementation: ec.EllipticCurve) -> Curve:
    """The curve as we know it.  Raises :class:`Malformed` ``key-malformed`` for any other."""
    curve = _CURVES_BY_IMPLEMENTATION.get(implementation.name)
    if curve is None:
        raise Malformed("key-malformed", f"Curve {implementation.name} is not one of {', '.join(CURVES)}.")
    return curve


def encode_coordinate(value: int, size: int) -> str:
    """A coordinate as b64u of exactly *size* bytes, padded on the left (RFC 7518, section 6.2.1.2)."""
    return b64u(value.to_bytes(size, "big"))


def parse_point(jwk: Mapping[str, Any]) -> Point:
    """The point of an EC JWK.

    Raises :class:`Malformed` ``point-invalid`` for an unknown curve, bad base64 and a point off its curve.  A
    coordinate may be shorter than the field (missing zeros), not longer.  Not checked: every other member.
    """
    curve = CURVES.get(jwk.get("crv", "") if isinstance(jwk.get("crv"), str) else "")
    if curve is None:
        raise Malformed("point-invalid", f"The curve is not one of {', '.join(CURVES)}.")
    return Point(curve, *(_coordinate(jwk.get(name), curve) for name in ("x", "y")))


def _coordinate(text: object, curve: Curve) -> int:
    if not isinstance(text, str) or not text or len(text) > (curve.size * 4 + 2) // 3:
        raise Malformed("point-invalid", f"A coordinate is not text of at most {curve.size} bytes.")
    try:
        return int.from_bytes(unb64u(text), "big")
    except ValueError as error:
        raise Malformed("point-invalid", "A coordinate is not base64url.") from error
