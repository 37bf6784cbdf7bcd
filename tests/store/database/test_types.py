"""Columns give back what they took, and compare as it compares."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.types import TypeDecorator

from tang_attest.protocol.values.pcr import Selection
from tang_attest.store.database.types import Instant, JsonText, PcrText, SelectionText, Unsigned64

DIALECT = sa.create_engine("sqlite://").dialect
ZONES = st.integers(-23, 23).map(lambda hours: timezone(timedelta(hours=hours)))
TIMES = st.datetimes(min_value=datetime(1900, 1, 2), max_value=datetime(9000, 1, 1), timezones=ZONES)  # noqa: DTZ001

busy_machine = settings(deadline=None)  # a pause of the machine is no failure


def stored(kind: TypeDecorator[Any], value):
    return kind.process_bind_param(value, DIALECT)


def back(kind: TypeDecorator[Any], value):
    return kind.process_result_value(stored(kind, value), DIALECT)


@busy_machine
@given(TIMES, TIMES)
def test_instant(one: datetime, two: datetime) -> None:
    """To the microsecond, from any zone, to UTC."""
    assert back(Instant(), one) == one
    assert back(Instant(), one).tzinfo is UTC
    assert (stored(Instant(), one) < stored(Instant(), two)) == (one < two)


@busy_machine
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_unsigned(one: int, two: int) -> None:
    """Every 64-bit number fits a signed column."""
    assert -(2**63) <= stored(Unsigned64(), one) < 2**63
    assert back(Unsigned64(), one) == one
    assert (stored(Unsigned64(), one) < stored(Unsigned64(), two)) == (one < two)


WORDS = st.text(max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=5,
)


@busy_machine
@given(st.dictionaries(WORDS, JSON, max_size=4))
def test_json(value) -> None:
    """As it was, in ASCII: not even a NUL upsets a database."""
    assert back(JsonText(), value) == value
    assert stored(JsonText(), value).isascii()
    assert "\0" not in stored(JsonText(), value)


@busy_machine
@given(st.dictionaries(st.integers(0, 23), st.binary(min_size=32, max_size=32)))
def test_pcr_values(value: dict[int, bytes]) -> None:
    """Hex by PCR."""
    assert back(PcrText(), value) == value


@busy_machine
@given(st.sets(st.integers(0, 23), min_size=1))
def test_selection(pcrs: set[int]) -> None:
    """As it is written everywhere."""
    selection = Selection("sha256", tuple(sorted(pcrs)))
    assert back(SelectionText(), selection) == selection


def test_null() -> None:
    """NULL is None, both ways."""
    for kind in (Instant(), Unsigned64(), JsonText(), PcrText(), SelectionText()):
        assert back(kind, None) is None
