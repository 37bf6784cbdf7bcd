"""Strategies for texts that a regular expression takes, with few draws: a run of characters of one class is
one draw.

Hypothesis' own ``from_regex`` draws each character by itself, a hundred draws for a key's hash; its texts
cost ten times as much.
"""

from __future__ import annotations

import re
import string
from functools import cache
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any, Final

from hypothesis import strategies as st

#: Repetitions beyond the least, where an expression has no upper bound.
_MORE: Final = 20
_CATEGORIES: Final = {op.CATEGORY_DIGIT: string.digits}


@cache
def texts(expression: str | re.Pattern[str]) -> st.SearchStrategy[str]:
    """Return the texts that the whole *expression* takes.

    It has literals, classes without negation, groups, alternatives and repetitions.  Raises
    :class:`AssertionError` for others.
    """
    pattern = re.compile(expression)
    return _sequence(list(parser.parse(pattern.pattern))).filter(lambda text: bool(pattern.fullmatch(text)))


def _sequence(nodes: list[Any]) -> st.SearchStrategy[str]:
    parts = [_node(kind, value) for kind, value in nodes]
    return parts[0] if len(parts) == 1 else st.tuples(*parts).map("".join)


def _node(kind: Any, value: Any) -> st.SearchStrategy[str]:
    if kind is op.LITERAL:
        return st.just(chr(value))
    if kind is op.IN:
        return st.sampled_from(_alphabet(value))
    if kind is op.SUBPATTERN:
        return _sequence(list(value[-1]))
    if kind is op.BRANCH:
        return st.one_of([_sequence(list(branch)) for branch in value[1]])
    assert kind is op.MAX_REPEAT, f"not known: {kind}"
    least, most, inner = value
    return _repeated(list(inner), least, least + _MORE if most is op.MAXREPEAT else most)


def _repeated(inner: list[Any], least: int, most: int) -> st.SearchStrategy[str]:
    while len(inner) == 1 and inner[0][0] is op.SUBPATTERN:
        inner = list(inner[0][1][-1])
    if len(inner) == 1 and inner[0][0] is op.IN:
        alphabet = _alphabet(inner[0][1])
        # A byte for each character: ``text`` looks in each constant of the program for characters outside the
        # alphabet.
        return st.binary(min_size=least, max_size=most).map(
            lambda data: "".join(alphabet[byte % len(alphabet)] for byte in data)
        )
    return st.lists(_sequence(inner), min_size=least, max_size=most).map("".join)


def _alphabet(members: list[Any]) -> str:
    found = ""
    for kind, value in members:
        if kind is op.RANGE:
            found += "".join(map(chr, range(value[0], value[1] + 1)))
        elif kind is op.CATEGORY:
            found += _CATEGORIES[value]
        else:
            assert kind is op.LITERAL, f"not known: {kind}"
            found += chr(value)
    return found
