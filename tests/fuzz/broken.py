"""A target that is wrong on purpose: the tests show with it that a finding fails the run.  Nothing else uses it."""

from __future__ import annotations

import time
from collections.abc import Iterator

from tests.fuzz.target import Parser, Target

_HELD: list[bytes] = []


def _parse(data: bytes) -> None:
    if data[:1] == b"C":
        raise IndexError("as a parser without a check would")
    if data[:1] == b"S":
        time.sleep(600)
    if data[:1] == b"M":
        _HELD.append(b"x" * (1200 << 20))
        time.sleep(60)  # libFuzzer looks once a second, and ends it


def _seeds() -> Iterator[tuple[Parser, bytes]]:
    yield _parse, b"harmless"


TARGET = Target([_parse], _seeds, max_length=16)
