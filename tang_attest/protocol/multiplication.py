"""s·X with both coordinates by one multiplication, in the libcrypto that Python's ``hashlib`` is linked with.

OpenSSL's ECDH tells the x-coordinate of s·X alone.  It calls ``EC_POINT_mul`` with one point and no multiple of the
generator, which OpenSSL computes in constant time; the same call here tells the whole point.  ``cryptography`` hides
its own copy of OpenSSL, so this is the other one in the process: the distribution's, on Debian and on NixOS.

A process uses it for a curve only after a test with a key of its own: the product has to be what
:mod:`tang_attest.protocol.exchange` computes with two ECDHs.  A Python without such a libcrypto (built in, hidden, or
older than 3.0) keeps the two.

The scalar goes from DER into a BIGNUM, and never into a Python integer; the bytes between are overwritten,
and the BIGNUM is when its key goes.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from ctypes import c_char_p, c_int, c_size_t, c_void_p, create_string_buffer
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tang_attest.protocol.values.points import Curve, Point

#: Numbers of the curves in OpenSSL's obj_mac.h.
_NIDS: Final = {"P-256": 415, "P-384": 715, "P-521": 716}
#: POINT_CONVERSION_UNCOMPRESSED: 04 ‖ x ‖ y (SEC 1, section 2.3.3).
_UNCOMPRESSED: Final = 4
_BN_FLG_CONSTTIME: Final = 4
#: In DER: INTEGER 1, and the tag of an OCTET STRING.
_VERSION_1: Final = b"\x02\x01\x01"
_OCTET_STRING: Final = 4

#: Result and arguments of each function; every pointer to a structure is void.
_FUNCTIONS: Final = {
    "BN_CTX_free": (None, [c_void_p]),
    "BN_CTX_new": (c_void_p, []),
    "BN_bin2bn": (c_void_p, [c_void_p, c_int, c_void_p]),
    "BN_clear_free": (None, [c_void_p]),
    "BN_set_flags": (None, [c_void_p, c_int]),
    "EC_GROUP_new_by_curve_name": (c_void_p, [c_int]),
    "EC_POINT_clear_free": (None, [c_void_p]),
    "EC_POINT_mul": (c_int, [c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p]),
    "EC_POINT_new": (c_void_p, [c_void_p]),
    "EC_POINT_oct2point": (c_int, [c_void_p, c_void_p, c_char_p, c_size_t, c_void_p]),
    "EC_POINT_point2oct": (c_size_t, [c_void_p, c_void_p, c_int, c_char_p, c_size_t, c_void_p]),
    "ERR_clear_error": (None, []),
    # Not called: OpenSSL has it since 3.0.
    "EVP_PKEY_get_bn_param": (c_int, [c_void_p, c_char_p, c_void_p]),
    "OPENSSL_cleanse": (None, [c_char_p, c_size_t]),
}


class Scalar:
    """The private scalar of a key in libcrypto's memory.

    Raises :class:`ArithmeticError` when libcrypto does not take the key.
    """

    __slots__ = ("__weakref__", "_curve", "_group", "_lib", "_number")

    def __init__(self, lib: ctypes.CDLL, private: ec.EllipticCurvePrivateKey, curve: Curve) -> None:
        self._lib, self._curve = lib, curve
        self._group = _group(lib, curve)
        self._number = _number(lib, private, curve)
        lib.BN_set_flags(self._number, _BN_FLG_CONSTTIME)
        weakref.finalize(self, lib.BN_clear_free, self._number)

    def times(self, x: Point) -> Point:
        """Return s·*x*; *x* is on the key's curve, which its type and the caller checked.

        Raises :class:`ArithmeticError` when libcrypto cannot, for example without memory.
        """
        lib, group, size = self._lib, self._group, self._curve.size
        given = b"\x04" + x.x.to_bytes(size, "big") + x.y.to_bytes(size, "big")
        octets = create_string_buffer(len(given))
        context, point, product = lib.BN_CTX_new(), lib.EC_POINT_new(group), lib.EC_POINT_new(group)
        try:
            if (
                not (context and point and product)
                or lib.EC_POINT_oct2point(group, point, given, len(given), context) != 1
                or lib.EC_POINT_mul(group, product, None, point, self._number, context) != 1
                or lib.EC_POINT_point2oct(group, product, _UNCOMPRESSED, octets, len(given), context)
                != len(given)
            ):
                lib.ERR_clear_error()
                raise ArithmeticError("libcrypto cannot multiply")
        finally:  # each takes NULL
            lib.EC_POINT_clear_free(product)
            lib.EC_POINT_clear_free(point)
            lib.BN_CTX_free(context)
        answer = octets.raw
        return Point(
            self._curve,
            int.from_bytes(answer[1 : size + 1], "big"),
            int.from_bytes(answer[size + 1 :], "big"),
        )


def load() -> ctypes.CDLL | None:
    """Return the libcrypto of Python's ``hashlib`` with its functions declared; ``None`` without a fitting one."""
    try:
        import _hashlib

        # A lookup in an extension module finds what the libraries export that it is linked with.
        lib = ctypes.CDLL(_hashlib.__file__)
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
    except (ImportError, AttributeError, OSError):
        return None
    return lib


@functools.cache
def library() -> ctypes.CDLL | None:
    """:func:`load`, once in a process."""
    return load()


def _number(lib: ctypes.CDLL, private: ec.EllipticCurvePrivateKey, curve: Curve) -> c_void_p:
    """Return a new BIGNUM with the scalar of *private*.

    OpenSSL's own reader takes longer than a multiplication, so the octets are pointed at instead: they follow
    a head of known form (RFC 5915, section 3).
    """
    der = private.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    # SEQUENCE with a length of one octet, or of more, whose number is in the first; then version 1 and an
    # OCTET STRING.
    at = 2 + (der[1] & 0x7F if der[1] & 0x80 else 0)
    start = at + len(_VERSION_1) + 2
    fits = der[at:start] == _VERSION_1 + bytes((_OCTET_STRING, curve.size)) and start + curve.size <= len(der)
    octets = ctypes.cast(c_char_p(der), c_void_p).value
    number = lib.BN_bin2bn(octets + start, curve.size, None) if fits and octets else None
    # Nobody else has these bytes, so nobody sees them change.
    lib.OPENSSL_cleanse(der, len(der))
    if not number:
        lib.ERR_clear_error()
        raise ArithmeticError("libcrypto does not take the key")
    return c_void_p(number)


_groups: Final[dict[str, int]] = {}


def _group(lib: ctypes.CDLL, curve: Curve) -> int:
    """Return the EC_GROUP of *curve*; one for the life of the process."""
    if (group := _groups.get(curve.name)) is None:
        group = lib.EC_GROUP_new_by_curve_name(_NIDS[curve.name])
        if not group:
            lib.ERR_clear_error()
            raise ArithmeticError(f"libcrypto does not know {curve.name}")
        _groups[curve.name] = group
    return group
