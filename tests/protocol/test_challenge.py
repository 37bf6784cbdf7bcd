"""Nonces: stateless, bound, short-lived."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tang_attest.errors import Refused
from tang_attest.protocol.challenge import CLOCK_SKEW_MS, Purpose, check_nonce, make_nonce

KEY, NOW, TTL = b"k" * 32, 1_700_000_000_000, 120


def nonce(**changes: object) -> str:
    """A good nonce, except for *changes*."""
    values = {
        "key": KEY,
        "purpose": Purpose.UNLOCK,
        "subject": "kid",
        "now_ms": NOW,
        "random": b"r" * 16,
    } | changes
    return make_nonce(**values)  # type: ignore[arg-type]


def code(text: str, **changes: object) -> str:
    """The code with which *text* is refused, or ``ok``."""
    values = {"key": KEY, "purpose": Purpose.UNLOCK, "subject": "kid", "now_ms": NOW, "ttl_s": TTL} | changes
    try:
        check_nonce(nonce=text, **values)  # type: ignore[arg-type]
    except Refused as refusal:
        return refusal.code
    return "ok"


def test_a_fresh_nonce_is_ours() -> None:
    """And its expiry is its time and the limit."""
    assert check_nonce(KEY, Purpose.UNLOCK, "kid", NOW + 1, TTL, nonce()) == NOW + TTL * 1000


@pytest.mark.parametrize(
    ("text", "changes", "expected"),
    [
        (nonce(), {"now_ms": NOW + TTL * 1000 - 1}, "ok"),
        (nonce(), {"now_ms": NOW + TTL * 1000}, "nonce-expired"),
        (nonce(), {"now_ms": NOW - CLOCK_SKEW_MS}, "ok"),
        (nonce(), {"now_ms": NOW - CLOCK_SKEW_MS - 1}, "nonce-invalid"),
        (nonce(key=b"x" * 32), {}, "nonce-invalid"),
        (nonce(subject="other"), {}, "nonce-invalid"),
        (nonce(purpose=Purpose.ENROLL), {}, "nonce-invalid"),
        (nonce() + "A", {}, "nonce-invalid"),
        (nonce() + "=", {}, "nonce-invalid"),
        (nonce()[:-1], {}, "nonce-invalid"),
        ("", {}, "nonce-invalid"),
        ("*" * 76, {}, "nonce-invalid"),
        ("é" * 76, {}, "nonce-invalid"),
    ],
)
def test_what_is_not_a_fresh_nonce_of_ours(text: str, changes: dict[str, object], expected: str) -> None:
    """Foreign, old, early, of another purpose or key, or misspelled."""
    assert code(text, **changes) == expected


@given(position=st.integers(0, 56), bit=st.integers(0, 7))
def test_any_flipped_bit_is_noticed(position: int, bit: int) -> None:
    """The MAC covers every byte."""
    raw = bytearray(base64.urlsafe_b64decode(nonce() + "=" * (-len(nonce()) % 4)))
    raw[position] ^= 1 << bit
    assert code(base64.urlsafe_b64encode(raw).rstrip(b"=").decode()) == "nonce-invalid"
