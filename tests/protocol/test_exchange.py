"""The exchange: s·X from two x-coordinates."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from tang_attest.errors import Malformed
from tang_attest.protocol.challenge import unlock_digest
from tang_attest.protocol.exchange import ExchangeKey, respond
from tang_attest.protocol.policy import Permit
from tang_attest.protocol.reference_state import ReferenceState
from tang_attest.protocol.values.advertisement import thumbprint
from tang_attest.protocol.values.points import CURVES, Curve, Point, parse_point

#: SP 800-186, section 3.2.1.
ORDERS = {
    "P-256": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "P-384": 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973,
    "P-521": 0x01FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFA51868783BF2F966B7FCC0148F709A5D03BB5C9B8899C47AEBB6FB71E91386409,
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
    """For scalars we know, Y = (s·x)·G, computed another way."""
    curve = CURVES[name]
    key = ExchangeKey(ec.derive_private_key(s, curve.implementation))
    assert key.multiply(multiple(x, curve)) == multiple(s * x % ORDERS[name], curve)


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


def test_a_key_does_not_print_itself() -> None:
    """Neither repr nor str may show more than the thumbprint."""
    assert repr(KEYS["P-521"]) == f"ExchangeKey({KEYS['P-521'].kid})"
