"""Nonces: stateless, bound, short-lived."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tang_attest.errors import Refused
from tang_attest.protocol.challenge import CLOCK_SKEW_MS, Mark, Purpose, check_nonce, make_nonce, read_mark
from tang_attest.protocol.tpm import ClockInfo

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


MARKED = Mark(ClockInfo(2**64 - 1, 2**32 - 1, 0, safe=True))


@pytest.mark.parametrize(("mark", "length"), [(None, 76), (Mark(None), 99), (MARKED, 99)])
def test_a_nonce_brings_its_mark_back(mark: Mark | None, length: int) -> None:
    """The newest evidence at its making, or none; docs/protocol.md 3.1 has its length."""
    text = nonce(mark=mark)
    assert (read_mark(KEY, text), len(text)) == (mark, length)
    assert code(text) == "ok"


@given(position=st.integers(0, 73), bit=st.integers(0, 7))
def test_any_flipped_bit_of_a_marked_nonce_is_noticed(position: int, bit: int) -> None:
    """Nobody gives a nonce the mark of another one, or none."""
    raw = bytearray(base64.urlsafe_b64decode(nonce(mark=MARKED) + "="))
    raw[position] ^= 1 << bit
    assert code(base64.urlsafe_b64encode(raw).rstrip(b"=").decode()) == "nonce-invalid"


@given(
    clock=st.integers(0, 2**64 - 1),
    reset=st.integers(0, 2**32 - 1),
    random=st.binary(min_size=16, max_size=16),
)
def test_marks_of_equal_nonces_differ_only_under_the_mask(clock: int, reset: int, random: bytes) -> None:
    """Any mark comes back, and none is seen without the key."""
    mark = Mark(ClockInfo(clock, reset, 0, safe=True))
    text = nonce(mark=mark, random=random)
    assert read_mark(KEY, text) == mark
    assert read_mark(b"x" * 32, text) != mark
