"""The exchange: s·X by one multiplication, or from two x-coordinates."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from tang_attest.errors import Malformed
from tang_attest.protocol import exchange, multiplication
from tang_attest.protocol.challenge import unlock_digest
from tang_attest.protocol.exchange import ExchangeKey, Reply, multiplies_once, respond
from tang_attest.protocol.multiplication import Scalar
from tang_attest.protocol.policy import Permit
from tang_attest.protocol.reference_state import ReferenceState
from tang_attest.protocol.values.advertisement import compact, thumbprint
from tang_attest.protocol.values.points import CURVES, Curve, Point, parse_point

#: SP 800-186, section 3.2.1.
ORDERS = {
    "P-256": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "P-384": 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973,
    "P-521": 0x01FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFA51868783BF2F966B7FCC0148F709A5D03BB5C9B8899C47AEBB6FB71E91386409,
}
STATE = ReferenceState("state", {}, "recorded")
KEYS = {name: ExchangeKey(ec.generate_private_key(curve.implementation)) for name, curve in CURVES.items()}


def multiple(scalar: int, curve: Curve) -> Point:
    """scalar·G, by another implementation."""
    numbers = ec.derive_private_key(scalar, curve.implementation).public_key().public_numbers()
    return Point(curve, numbers.x, numbers.y)


@pytest.mark.parametrize("name", CURVES)
@settings(max_examples=40, deadline=None)
@given(s=st.integers(1, 2**255), x=st.integers(1, 2**255))
def test_s_times_x_is_x_times_s(name: str, s: int, x: int) -> None:
    """For scalars we know, Y = (s·x)·G, computed another way; by one multiplication and by two ECDHs."""
    curve = CURVES[name]
    key = ExchangeKey(ec.derive_private_key(s, curve.implementation))
    y = multiple(s * x % ORDERS[name], curve)
    assert key.multiply(multiple(x, curve)) == y
    assert key.multiply_once(multiple(x, curve)) == y
    assert key.multiply_twice(multiple(x, curve)) == y


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("s", [1, 2, 255, 256])
@pytest.mark.parametrize("last", [False, True])
def test_scalars_at_the_ends(name: str, s: int, last: bool) -> None:
    """The smallest and the largest scalars, with and against the generator's neighbors and their negatives."""
    curve = CURVES[name]
    key = ExchangeKey(ec.derive_private_key(ORDERS[name] - s if last else s, curve.implementation))
    points = [multiple(x, curve) for x in (1, 2, 3, ORDERS[name] - 1, ORDERS[name] - 2)]
    for point in (*points, key.public, key.public.negated()):
        assert key.multiply_once(point) == key.multiply_twice(point)


@pytest.mark.parametrize("name", CURVES)
def test_one_multiplication_is_enough_on_this_machine(name: str) -> None:
    """Debian's Python has a libcrypto whose product is that of two ECDHs; without it all exchanges cost double."""
    assert multiplies_once(name)


@pytest.mark.parametrize("python", ["/usr/bin/python3", sys.executable])
def test_the_libcrypto_has_all_functions(python: str) -> None:
    """Found through hashlib's extension module without a path or a version: the package's Python, and a venv's."""
    script = (
        "import _hashlib, ctypes, sys; lib = ctypes.CDLL(_hashlib.__file__); "
        "[getattr(lib, name) for name in sys.argv[1:]]"
    )
    names = multiplication._FUNCTIONS
    found = subprocess.run([python, "-c", script, *names], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_without_a_libcrypto_two_ecdhs_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python with an OpenSSL of its own inside: the self-test says no, and the product is the same."""
    curve = CURVES["P-521"]
    monkeypatch.setattr(multiplication, "library", lambda: None)
    assert multiplies_once.__wrapped__("P-521") is False
    monkeypatch.setattr(exchange, "multiplies_once", lambda _: False)
    key = ExchangeKey(ec.derive_private_key(7, curve.implementation))
    assert key.multiply(multiple(5, curve)) == multiple(35, curve)


@pytest.mark.parametrize("missing", ["EC_POINT_mul", "EVP_PKEY_get_bn_param"])
def test_an_older_libcrypto_is_not_used(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL 1.1 has no EVP_PKEY_get_bn_param: no function is called before all are there."""
    functions = multiplication._FUNCTIONS | {f"{missing}_of_another_version": (None, [])}
    monkeypatch.setattr(multiplication, "_FUNCTIONS", functions)
    assert multiplication.load() is None


@pytest.mark.parametrize("wrong", ["another point", "its negative", "no point"])
def test_a_libcrypto_that_multiplies_wrongly_is_not_used(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong Y tells about the scalar, so the test comes before the first exchange."""
    times = Scalar.times

    def lie(self: Scalar, x: Point) -> Point:
        y = times(self, x)
        if wrong == "no point":
            return Point(y.curve, y.x, y.y ^ 1)
        return y.negated() if wrong == "its negative" else times(self, y)

    monkeypatch.setattr(Scalar, "times", lie)
    assert multiplies_once.__wrapped__("P-256") is False


def test_a_multiplication_that_fails_is_done_again_by_two_ecdhs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without memory, for example; the machine gets its Y."""
    curve = CURVES["P-384"]
    key = ExchangeKey(ec.derive_private_key(7, curve.implementation))
    assert multiplies_once("P-384")
    library = multiplication.library()
    assert library is not None
    monkeypatch.setattr(library, "EC_POINT_mul", lambda *_: 0)
    with pytest.raises(ArithmeticError):
        key.multiply_once(multiple(5, curve))
    assert key.multiply(multiple(5, curve)) == multiple(35, curve)


@pytest.mark.parametrize("name", CURVES)
def test_a_scalar_of_another_form_is_not_taken(name: str) -> None:
    """The octets are read at their place in the DER, and only where the DER has the form of the curve's keys."""
    library = multiplication.library()
    assert library is not None
    for other in CURVES.keys() - {name}:
        private = ec.generate_private_key(CURVES[other].implementation)
        with pytest.raises(ArithmeticError):
            Scalar(library, private, CURVES[name])


def test_the_copy_of_the_key_is_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scalar is in two places: cryptography's OpenSSL, and this one's BIGNUM."""
    private = ec.generate_private_key(ec.SECP256R1())
    copies = []

    class Spy:
        """A key that remembers what it gave."""

        def private_bytes(self, *arguments: Any) -> bytes:
            copies.append(private.private_bytes(*arguments))
            return copies[-1]

    library = multiplication.library()
    assert library is not None
    freed: list[object] = []
    monkeypatch.setattr(library, "BN_clear_free", freed.append)
    scalar = Scalar(library, Spy(), CURVES["P-256"])  # type: ignore[arg-type]
    assert [set(copy) for copy in copies] == [{0}]
    assert scalar.times(multiple(3, CURVES["P-256"])) == ExchangeKey(private).multiply_twice(
        multiple(3, CURVES["P-256"])
    )
    number = scalar._number
    assert freed == []
    del scalar
    assert freed == [number]


def test_many_threads_use_one_key() -> None:
    """Without a lock: the scalar and the curve are only read."""
    curve = CURVES["P-521"]
    key = ExchangeKey(ec.derive_private_key(7, curve.implementation))
    points = [multiple(x, curve) for x in range(2, 66)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(key.multiply_once, points)) == [multiple(7 * x, curve) for x in range(2, 66)]


@pytest.mark.parametrize("name", CURVES)
def test_the_generator_is_answered_with_the_public_key(name: str) -> None:
    """X = G and X = -G meet the two exceptions of the chord rule."""
    key, g = KEYS[name], multiple(1, CURVES[name])
    assert key.multiply(g) == key.public
    assert key.multiply(g.negated()) == key.public.negated()


@pytest.mark.parametrize("name", CURVES)
def test_neighbors_of_the_generator(name: str) -> None:
    """X = 2G and X = -2G, where X + G is -G or 3G."""
    key, two = KEYS[name], multiple(2, CURVES[name])
    assert key.multiply(two.negated()) == key.multiply(two).negated()
    assert key.multiply(multiple(3, CURVES[name])) != key.multiply(two)


@pytest.mark.parametrize("name", CURVES)
def test_the_key_itself_and_its_negative(name: str) -> None:
    """X = S and X = -S are ordinary points."""
    key = KEYS[name]
    assert key.multiply(key.public.negated()) == key.multiply(key.public).negated()


def test_a_point_of_another_curve_is_refused() -> None:
    """A smaller curve would leak the scalar if it were taken."""
    with pytest.raises(Malformed) as error:
        KEYS["P-521"].multiply(multiple(5, CURVES["P-256"]))
    assert error.value.code == "curve-mismatch"


@pytest.mark.parametrize("name", CURVES)
@given(x=st.integers(0, 2**521), y=st.integers(0, 2**521))
def test_points_off_the_curve_are_refused(name: str, x: int, y: int) -> None:
    """Invalid-curve attacks need a point off the curve."""
    with pytest.raises(Malformed):
        Point(CURVES[name], x, y)


@pytest.mark.parametrize(
    "jwk",
    [
        {},
        {"crv": "P-256"},
        {"crv": ["P-256"], "x": "AA", "y": "AA"},
        {"crv": "P-256K", "x": "AA", "y": "AA"},
        {"crv": "P-256", "x": "", "y": "AA"},
        {"crv": "P-256", "x": "AA", "y": "AA"},
        {"crv": "P-256", "x": 7, "y": "AA"},
        {"crv": "P-256", "x": "A" * 44, "y": "AA"},
        {"crv": "P-256", "x": "A*", "y": "AA"},
        {"crv": "P-256", "x": "é", "y": "AA"},
    ],
)
def test_what_is_no_point_is_malformed(jwk: dict[str, object]) -> None:
    """Infinity has no affine coordinates; (0, 0) is not on any of the curves."""
    with pytest.raises(Malformed) as error:
        parse_point(jwk)
    assert error.value.code == "point-invalid"


def test_a_permit_is_good_for_its_request_only() -> None:
    """The permit names nonce, kid and X; anything else is a programming error, not an answer."""
    key, curve = KEYS["P-521"], CURVES["P-521"]
    x, other = multiple(7, curve), multiple(8, curve)
    permit = Permit(unlock_digest("nonce", key.kid, thumbprint(x.members())), STATE)
    assert respond(permit, "nonce", key, x).point == key.multiply(x)
    for nonce, point, used in (
        ("nonce", other, key),
        ("other", x, key),
        ("nonce", x, ExchangeKey(ec.generate_private_key(ec.SECP521R1()))),
    ):
        with pytest.raises(ValueError, match="another request"):
            respond(permit, nonce, used, point)


def test_the_reply_is_tangs() -> None:
    """Upstream compares strings: sorted members, no spaces, coordinates padded to the field."""
    text = KEYS["P-521"].multiply(multiple(9, CURVES["P-521"]))
    encoded = respond(
        Permit(
            unlock_digest("n", KEYS["P-521"].kid, thumbprint(multiple(9, CURVES["P-521"]).members())), STATE
        ),
        "n",
        KEYS["P-521"],
        multiple(9, CURVES["P-521"]),
    ).encode()
    start = b'{"alg":"ECMR","crv":"P-521","key_ops":["deriveKey"],"kty":"EC","x":"'
    assert encoded.startswith(start)
    assert len(encoded) == len(start) + 88 + len('","y":"') + 88 + len('"}')
    assert parse_point(__import__("json").loads(encoded)) == text


@pytest.mark.parametrize("curve", CURVES.values(), ids=lambda curve: curve.name)
def test_a_points_thumbprint_is_that_of_its_jwk(curve: Curve) -> None:
    """RFC 7638 over the members, also where a coordinate begins with zeros; and the reply is compact, sorted
    JSON.
    """
    for number in range(1, 400):
        point = multiple(number, curve)
        assert point.thumbprint() == thumbprint(point.members())
        assert Reply(point).encode() == compact({"alg": "ECMR", "key_ops": ["deriveKey"], **point.members()})


def test_a_key_does_not_print_itself() -> None:
    """Neither repr nor str may show more than the thumbprint."""
    assert repr(KEYS["P-521"]) == f"ExchangeKey({KEYS['P-521'].kid})"
