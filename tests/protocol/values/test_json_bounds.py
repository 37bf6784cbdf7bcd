"""Bounds of JSON, told before anything is parsed; compared with what Python's parser makes of the same text."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tang_attest.protocol.values.json_bounds import Bounds, TooMuch, check_bounds

MANY = 250_000

_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='a\\"[]{},:\n\u00e9', max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=30,
)


def depth_of(value: Any) -> int:
    """Depth of the containers of *value*."""
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


def parts_of(value: Any) -> int:
    """Containers, and members and elements after the first of each."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return 0
    return 1 + max(len(value) - 1, 0) + sum(map(parts_of, value))


@given(_values, st.booleans())
def test_what_is_counted_is_what_is_parsed(value: Any, ascii_only: bool) -> None:
    """Exactly as deep, and exactly as many, whatever the strings hold: at the bound it passes, below it does not."""
    text = json.dumps(value, ensure_ascii=ascii_only).encode()
    depth, parts = depth_of(value), parts_of(value)
    check_bounds(text, Bounds(depth, parts))
    for less in ((depth - 1, parts), (depth, parts - 1)):
        if min(less) >= 0 and depth:
            with pytest.raises(TooMuch):
                check_bounds(text, Bounds(*less))


@given(st.binary(max_size=200) | st.text(alphabet='\\"[]{},', max_size=60).map(str.encode))
def test_whatever_comes_it_is_too_much_or_passes(text: bytes) -> None:
    """Bytes that are no JSON raise nothing else, and what passes and is JSON is within the bounds."""
    bounds = Bounds(depth=3, parts=6)
    try:
        check_bounds(text, bounds)
    except TooMuch:
        return
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return
    if text[:1] in b"[{" and b"\0" not in text:  # json.loads takes UTF-16 too, which nothing here does
        assert depth_of(value) <= bounds.depth
        assert parts_of(value) <= bounds.parts


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":"]]]]]]"}' + b"[" * 40,
        b'"' + b'\\"' * 5000,
        b'{"a":' * 40,
        b"[" + b"{}," * 300,
        b"[" + b"1," * 300,
        b"[" + b'"",' * 300,
        b"[" * 33 + b'""' * 2000,
    ],
)
def test_too_much(text: bytes) -> None:
    """Brackets in strings neither raise nor lower the depth; elements count whatever they are."""
    with pytest.raises(TooMuch):
        check_bounds(text, Bounds(depth=32, parts=256))


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"changes": ["menuentry Debian {"] * 64}).encode(),
        b'{"a":"' + b"[" * 1000 + b'"}',
        b'{"a":"' + b"," * 1000 + b'"}',
        b'{"a":"' + b"\\\\" * 100 + b'"}',
        b'{"a":"\\\\","b":"\\\\\\"[[["}',
    ],
)
def test_strings_may_hold_anything(text: bytes) -> None:
    """Forty lines of a GRUB menu are no depth."""
    check_bounds(text, Bounds(depth=4, parts=70))


@pytest.mark.parametrize(
    "text",
    [
        b"{},".join([b""] * (MANY // 3)),
        b'"' * MANY,
        b"]" * MANY,
        b"\\" * MANY,
        b'\\"' * (MANY // 2),
        b'"' + b"a" * MANY,
        b'{"a":"' + b'\\"' * 2000 + b"a" * MANY,
        b" " * MANY,
        b"[" * MANY,
    ],
    ids=[
        "objects",
        "quotes",
        "closing",
        "backslashes",
        "escapes",
        "string",
        "escapes-string",
        "space",
        "opening",
    ],
)
def test_hostile_text_costs_no_more_than_its_bytes(text: bytes) -> None:
    """A quarter of a megabyte of the worst takes no longer than looking at each byte some hundred times."""

    def took(work: Any) -> float:
        begin = time.process_time()
        work()
        return time.process_time() - begin

    def check() -> None:
        try:
            check_bounds(text, Bounds(depth=32, parts=256))
        except TooMuch:
            return

    measure = min(took(lambda: [text.count(b"x") for _ in range(20)]) for _ in range(3))
    assert min(took(check) for _ in range(5)) < max(10 * measure, 0.02)
