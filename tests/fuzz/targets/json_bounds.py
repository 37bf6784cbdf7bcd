"""JSON of clients: text within the bounds is parsed, other text is not parsed at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tang_attest.errors import Malformed
from tang_attest.protocol.values.json_bounds import Bounds, TooMuch, check_bounds
from tang_attest.web.wire import BOUNDS, AnnounceBody, PollBody, parse_json, validate
from tests.fuzz.target import Parser, Target, check_error

_TIGHT = Bounds(depth=2, parts=4, escapes=8)


def _bounds(data: bytes) -> None:
    """The walk over strings agrees with Python's parser about what is JSON, whichever bounds apply."""
    for bounds in (_TIGHT, BOUNDS):
        try:
            check_bounds(data, bounds)
        except TooMuch as error:
            str(error).encode()
            continue
        try:
            value = json.loads(data.decode())
        except (ValueError, RecursionError):
            continue
        depth, parts = _measure(value)
        assert depth <= bounds.depth, depth
        assert parts <= bounds.parts, parts


def _measure(value: Any) -> tuple[int, int]:
    """Depth of containers; containers, and members and elements after the first of each, as commas part them.

    Python keeps one of several members of a name, so there may have been more.
    """
    inner = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(inner, list):
        return 0, 0
    measured = [_measure(each) for each in inner]
    depth = 1 + max((depth for depth, _ in measured), default=0)
    return depth, 1 + max(len(inner) - 1, 0) + sum(parts for _, parts in measured)


def _bodies(data: bytes) -> None:
    """A body that is no good for its model is told in a sentence that every console can take."""
    value = parse_json(data)
    for model in (PollBody, AnnounceBody):
        try:
            validate(model, value)
        except Malformed as error:
            check_error(error)


def _seeds() -> Iterator[tuple[Parser, bytes]]:
    for parser in (_bounds, _bodies):
        yield parser, b'{"ticket":"AAAA"}'
        yield parser, json.dumps({"changes": ["menuentry Debian {", 'a "b" \\ c']}).encode()
        yield parser, b'{"a":[[1,2],{"b":"]}"}],"c":"\\\\\\"{"}'


TARGET = Target([_bounds, _bodies], _seeds)
