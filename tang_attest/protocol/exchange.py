"""Step 5: Y = s·X, for the holder of a :class:`Permit`.  The only user of a private exchange key.

The scalar s never becomes a Python integer: it stays inside OpenSSL.  One multiplication there gives the whole point
(:mod:`tang_attest.protocol.multiplication`).  Without a libcrypto for that, OpenSSL's ECDH gives the
x-coordinate of s·P for any P we choose, and two of them give the whole point, without a square root.  With S = s·G,
Y = s·X and Z = s·(X + G) = Y + S, the chord rule for the sum Y + S says

    x_Z + x_Y + x_S = ((y_Y - y_S) / (x_Y - x_S))^2

and because Y is on the curve, y_Y^2 = x_Y^3 - 3 x_Y + b.  Multiply out and y_Y is the only unknown, linear:

    y_Y = (x_Y^3 - 3 x_Y + b + y_S^2 - (x_Z + x_Y + x_S)(x_Y - x_S)^2) / (2 y_S)

1/(2 y_S) is computed once for each key.  It exists, because a curve of odd order has no point with y = 0.
x_Y = x_S happens only for X = G and X = -G, which are answered S and -S directly.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from tang_attest.errors import Malformed
from tang_attest.protocol import multiplication, tpm
from tang_attest.protocol.challenge import unlock_digest
from tang_attest.protocol.policy import Permit
from tang_attest.protocol.values.points import CURVES, Curve, Point, curve_of

if TYPE_CHECKING:
    from concurrent.futures import Executor


@dataclass(frozen=True, slots=True)
class Reply:
    """Y, and the bytes that say it on the wire."""

    point: Point

    def encode(self) -> bytes:
        """Compact JSON with sorted members, byte for byte what tangd answers."""
        shown = self.point.members()
        text = (
            f'{{"alg":"ECMR","crv":"{shown["crv"]}","key_ops":["deriveKey"],'
            f'"kty":"EC","x":"{shown["x"]}","y":"{shown["y"]}"}}'
        )
        return text.encode()


class Multiplier(Protocol):
    """A private exchange key, ready for use, wherever it is."""

    @property
    def kid(self) -> str:
        """The thumbprint of its public half."""

    @property
    def public(self) -> Point:
        """S = s·G."""

    @property
    def curve(self) -> Curve:
        """The curve of the key."""

    @property
    def place(self) -> Executor | None:
        """Executor for all calls below if it cannot be any thread; a call may take unbounded time."""

    def check(self) -> None:
        """Raise :class:`~tang_attest.errors.Unavailable` when :meth:`multiply` would."""

    def multiply(self, x: Point) -> Point:
        """s·X.  Raises ``curve-mismatch``, and :class:`~tang_attest.errors.Unavailable`."""


class ExchangeKey:
    """A private exchange key in this process, ready for use.

    Holds the OpenSSL key and what can be computed about its public half once.  Never prints itself.
    """

    __slots__ = ("_half_inverse", "_private", "_scalar", "kid", "public")

    def __init__(self, private: ec.EllipticCurvePrivateKey) -> None:
        curve = curve_of(private.curve)
        numbers = private.public_key().public_numbers()
        self._private = private
        self.public = Point(curve, numbers.x, numbers.y)
        self.kid = self.public.thumbprint()
        # Made at the first use: many keys are read for their public half alone.
        self._scalar: multiplication.Scalar | None = None
        self._half_inverse = 0

    @property
    def curve(self) -> Curve:
        """The curve of the key."""
        return self.public.curve

    @property
    def place(self) -> None:
        """Any thread will do."""
        return

    def check(self) -> None:
        """Nothing can be in its way."""

    def __repr__(self) -> str:
        return f"ExchangeKey({self.kid})"

    def _x_of_multiple(self, point: Point) -> int:
        """The x-coordinate of s·point."""
        return int.from_bytes(self._private.exchange(ec.ECDH(), point.public_key()), "big")

    def multiply(self, x: Point) -> Point:
        """s·X.  For :func:`respond` and for plain Tang, which has no permits (web/tang.py); nobody else."""
        if x.curve is not self.curve:
            raise Malformed("curve-mismatch", f"X is on {x.curve.name}, the key on {self.curve.name}.")
        if multiplies_once(self.curve.name):
            with contextlib.suppress(ArithmeticError):
                return self.multiply_once(x)
        return self.multiply_twice(x)

    def multiply_once(self, x: Point) -> Point:
        """s·X by one multiplication.  Raises :class:`ArithmeticError` without a libcrypto that can do it."""
        if self._scalar is None:
            if (lib := multiplication.library()) is None:
                raise ArithmeticError("no libcrypto")
            self._scalar = multiplication.Scalar(lib, self._private, self.curve)
        return self._scalar.times(x)

    def multiply_twice(self, x: Point) -> Point:
        """s·X by two ECDHs."""
        if x.is_generator():
            return self.public
        if x.is_negated_generator():
            return self.public.negated()
        p, s = self.curve.p, self.public
        self._half_inverse = self._half_inverse or pow(2 * s.y, -1, p)
        x_y = self._x_of_multiple(x)
        x_z = self._x_of_multiple(x.plus_generator())
        on_curve = x_y**3 - 3 * x_y + self.curve.b + s.y**2
        return Point(
            self.curve, x_y, (on_curve - (x_z + x_y + s.x) * (x_y - s.x) ** 2) * self._half_inverse % p
        )


@functools.cache
def multiplies_once(curve: str) -> bool:
    """Return True when this process gets s·X on *curve* by one multiplication, after a test with a key of its own.

    The test multiplies a random point, the key's own, and the generator, and compares with two ECDHs each time.
    """
    implementation = CURVES[curve].implementation
    key = ExchangeKey(ec.generate_private_key(implementation))
    other = ExchangeKey(ec.generate_private_key(implementation)).public
    generator = Point(key.curve, key.curve.gx, key.curve.gy)
    try:
        return all(key.multiply_once(x) == key.multiply_twice(x) for x in (other, key.public, generator))
    except (ArithmeticError, Malformed):
        return False


def respond(permit: Permit, nonce: str, key: Multiplier, x: Point) -> Reply:
    """Y = s·X for exactly the request that *permit* was given for.

    Raises :class:`ValueError` when permit, key and X do not belong together: a programming error, never a
    client's doing.
    """
    if not tpm.equal(permit.binding, unlock_digest(nonce, key.kid, x.thumbprint())):
        raise ValueError("the permit was given for another request")
    return Reply(key.multiply(x))
