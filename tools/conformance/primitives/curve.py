"""Affine arithmetic on the NIST curves (SP 800-186, 3.2.1), in the open: for tests, never for a secret that matters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final

from .encoding import b64u, unb64u

#: An affine point; the point at infinity is None.
Affine = tuple[int, int]


@dataclass(frozen=True)
class NistCurve:
    """y^2 = x^3 - 3x + b over GF(p), with the generator's *order*; *size* is the length of a coordinate in bytes."""

    name: str
    size: int
    p: int
    b: int
    order: int
    _: KW_ONLY
    generator: Affine

    def contains(self, point: Affine) -> bool:
        """Return True if *point* is on the curve."""
        x, y = point
        on = (y * y - x * x * x + 3 * x - self.b) % self.p == 0
        return 0 <= x < self.p and 0 <= y < self.p and on

    def negate(self, point: Affine) -> Affine:
        """Return -P."""
        return point[0], -point[1] % self.p

    def add(self, one: Affine | None, other: Affine | None) -> Affine | None:
        """Return P + Q."""
        if one is None or other is None:
            return other if one is None else one
        if one[0] == other[0]:
            if (one[1] + other[1]) % self.p == 0:
                return None
            slope = (3 * one[0] ** 2 - 3) * pow(2 * one[1], -1, self.p)
        else:
            slope = (other[1] - one[1]) * pow(other[0] - one[0], -1, self.p)
        x = (slope * slope - one[0] - other[0]) % self.p
        return x, (slope * (one[0] - x) - one[1]) % self.p

    def multiply(self, scalar: int, point: Affine | None = None) -> Affine:
        """Return scalar·P, of the generator if no point is given.  Raises ValueError for infinity."""
        total, addend = None, point or self.generator
        scalar %= self.order
        while scalar:
            if scalar & 1:
                total = self.add(total, addend)
            doubled = self.add(addend, addend)
            assert doubled is not None  # noqa: S101 - the order is odd
            addend, scalar = doubled, scalar >> 1
        if total is None:
            raise ValueError("the point at infinity")
        return total

    def sum(self, one: Affine, other: Affine) -> Affine:
        """Return P + Q.  Raises ValueError for infinity."""
        total = self.add(one, other)
        if total is None:
            raise ValueError("the point at infinity")
        return total

    def octets(self, number: int) -> bytes:
        """Return a coordinate or scalar, padded on the left to the size of the field."""
        return number.to_bytes(self.size, "big")

    def jwk(self, point: Affine, **more: Any) -> dict[str, Any]:
        """Return the public JWK of *point*, with *more* members."""
        coordinates = {"x": b64u(self.octets(point[0])), "y": b64u(self.octets(point[1]))}
        return {"crv": self.name, "kty": "EC", **coordinates, **more}


_P256: Final = 2**256 - 2**224 + 2**192 + 2**96 - 1
_P384: Final = 2**384 - 2**128 - 2**96 + 2**32 - 1

CURVES: Final[Mapping[str, NistCurve]] = {
    "P-256": NistCurve(
        "P-256",
        32,
        _P256,
        0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B,
        0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
        generator=(
            0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
            0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
        ),
    ),
    "P-384": NistCurve(
        "P-384",
        48,
        _P384,
        0xB3312FA7E23EE7E4988E056BE3F82D19181D9C6EFE8141120314088F5013875AC656398D8A2ED19D2A85C8EDD3EC2AEF,
        0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973,
        generator=(
            0xAA87CA22BE8B05378EB1C71EF320AD746E1D3B628BA79B9859F741E082542A385502F25DBF55296C3A545E3872760AB7,
            0x3617DE4A96262C6F5D9E98BF9292DC29F8F41DBD289A147CE9DA3113B5F0B8C00A60B1CE1D7E819D7A431D7C90EA0E5F,
        ),
    ),
    "P-521": NistCurve(
        "P-521",
        66,
        2**521 - 1,
        0x0051953EB9618E1C9A1F929A21A0B68540EEA2DA725B99B315F3B8B489918EF109E156193951EC7E937B1652C0BD3BB1BF073573DF883D2C34F1EF451FD46B503F00,
        0x01FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFA51868783BF2F966B7FCC0148F709A5D03BB5C9B8899C47AEBB6FB71E91386409,
        generator=(
            0x00C6858E06B70404E9CD9E3ECB662395B4429C648139053FB521F828AF606B4D3DBAA14B5E77EFE75928FE1DC127A2FFA8DE3348B3C1856A429BF97E7E31C2E5BD66,
            0x011839296A789A3BC0045C8A5FB42C7D1BD998F54449579B446817AFBD17273E662C97EE72995EF42640C550B9013FAD0761353C7086A272C24088BE94769FD16650,
        ),
    ),
}


def read_point(jwk: Mapping[str, Any]) -> tuple[NistCurve, Affine]:
    """Return the curve and point of an EC JWK.  Raises ValueError for anything that is no point of a curve here.

    A coordinate may be shorter than the field, not longer.
    """
    curve = CURVES.get(str(jwk.get("crv")))
    if curve is None or jwk.get("kty") != "EC":
        raise ValueError("no key of a curve of the protocol")
    coordinates = []
    for name in ("x", "y"):
        data = unb64u(str(jwk.get(name, "")))
        if not 0 < len(data) <= curve.size:
            raise ValueError(f"coordinate {name} has {len(data)} bytes")
        coordinates.append(int.from_bytes(data, "big"))
    point = (coordinates[0], coordinates[1])
    if not curve.contains(point):
        raise ValueError(f"not on {curve.name}")
    return curve, point
