"""Limits on the parts of JSON, told before a parser builds any of them.

A parser makes an object of 50 bytes and more of each two bytes of ``{},``, and what reads its result looks at
every one.  Counting costs a millisecond for a megabyte, whatever the bytes are, and makes nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_BRACKETS: Final = re.compile(rb"[\[\]{}]")
_BACKSLASH: Final = 0x5C


class TooMuch(ValueError):
    """JSON that is larger than its bounds; the text says in what."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most of each: nesting, members and elements in all, and backslashes in all."""

    depth: int
    parts: int
    escapes: int = 4096


def check_bounds(text: bytes, bounds: Bounds) -> None:
    """Raise :class:`TooMuch` when *text* is more than *bounds* allow.

    Members and elements are counted as RFC 8259 separates them: brackets and commas in strings are none.  Not
    checked: whether *text* is JSON.  Other text may pass or be too much; it never costs more than JSON does.
    """
    if text.count(b"\\") > bounds.escapes:
        raise TooMuch(f"it has more than {bounds.escapes} escapes")
    opened = text.count(b"{") + text.count(b"[")
    if opened <= bounds.depth and opened + text.count(b",") <= bounds.parts:
        return  # not even with those in strings
    _walk(text, bounds)


def _walk(text: bytes, bounds: Bounds) -> None:
    """From string to string: what is between two is the structure."""
    depth = parts = strings = at = 0
    while True:
        quote = text.find(b'"', at)
        between = text[at:quote] if quote >= 0 else text[at:]
        parts += between.count(b",")
        for bracket in _BRACKETS.finditer(between):
            if bracket[0] in b"[{":
                depth, parts = depth + 1, parts + 1
            else:
                depth -= 1
            if depth > bounds.depth:
                raise TooMuch(f"it is nested deeper than {bounds.depth}")
            if depth < 0 or parts > bounds.parts:
                break
        strings += 1
        # Each part has a name and a value at most.
        if parts > bounds.parts or strings > 2 * bounds.parts + 2:
            raise TooMuch(f"it has more than {bounds.parts} members and elements")
        if quote < 0 or depth < 0:
            return
        at = _after_string(text, quote + 1)
        if not at:
            return


def _after_string(text: bytes, begin: int) -> int:
    """Return the end of the string that begins at *begin*, after its quote; 0 if it never ends."""
    at = begin
    while (quote := text.find(b'"', at)) >= 0:
        first = quote
        while first > begin and text[first - 1] == _BACKSLASH:
            first -= 1
        if (quote - first) % 2 == 0:
            return quote + 1
        at = quote + 1
    return 0
