"""The chain over the audit record: any difference in what was sealed is found."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tang_attest.protocol.audit_chain import COLUMNS, Row, Seal, SealCheck, make_seal

KEY = bytes(range(32))
AT = datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)

texts = st.text(alphabet=st.characters(codec="utf-8"), max_size=12)
row_values = st.tuples(
    st.integers(-(2**63), 2**63 - 1),
    *[texts] * 4,
    *[st.none() | texts] * 4,
    st.sampled_from(["{}", '{"a":1}']),
)


@st.composite
def records(draw: st.DrawFn, at_least: int = 1) -> list[Row]:
    """Rows by id, with gaps."""
    ids = sorted(draw(st.sets(st.integers(1, 2**63 - 1), min_size=at_least, max_size=8)))
    return [(number, *draw(row_values)) for number in ids]


def holds(rows: Sequence[Row], seal: Seal, previous: Seal | None = None, key: bytes = KEY) -> bool:
    check = SealCheck(key, previous, seal)
    for row in rows:
        check.add(row)
    return check.holds()


def test_the_bytes_are_those_that_are_documented() -> None:
    """Somebody else can check a chain with the module's docstring and the key."""
    row = (
        7,
        1767268800123456,
        "unlock",
        "device:ä",
        "permitted",
        "ok",
        "pi-b",
        None,
        '"',
        "r",
        '{"pcrs":[4]}',
    )
    first = make_seal(KEY, None, [row], AT)
    line = (
        b'[7,1767268800123456,"unlock","device:\\u00e4","permitted","ok","pi-b",null,"\\"","r",'
        b'"{\\"pcrs\\":[4]}"]\n'
    )
    head = b'["tang-attest audit seal",1,1,"",7,7,1,1767268800123456]\n'
    assert first.hash == hmac.digest(KEY, head + line, hashlib.sha256)
    second = make_seal(KEY, first, [(9, *row[1:])], AT)
    head = b'["tang-attest audit seal",1,2,"' + first.hash.hex().encode() + b'",9,9,1,1767268800123456]\n'
    assert second.hash == hmac.digest(KEY, head + line.replace(b"[7,", b"[9,", 1), hashlib.sha256)
    assert (second.seq, second.head) == (2, f"2:{second.hash.hex()}")


@given(records())
def test_what_was_sealed_holds(rows: list[Row]) -> None:
    """And only under the key."""
    seal = make_seal(KEY, None, rows, AT)
    assert (seal.seq, seal.first_id, seal.last_id, seal.rows) == (1, rows[0][0], rows[-1][0], len(rows))
    assert holds(rows, seal)
    assert not holds(rows, seal, key=bytes(32))


@given(records(), st.data())
def test_a_changed_value_is_found(rows: list[Row], data: st.DataObject) -> None:
    """In any column of any row."""
    seal = make_seal(KEY, None, rows, AT)
    number = data.draw(st.integers(0, len(rows) - 1))
    column = data.draw(st.integers(0, len(COLUMNS) - 1))
    value: Any = data.draw(
        st.none() | texts | st.integers() | st.binary(max_size=4) | st.floats(allow_nan=False)
    )
    assume(value != rows[number][column] or type(value) is not type(rows[number][column]))
    changed = [list(row) for row in rows]
    changed[number][column] = value
    assert not holds(changed, seal)


@given(records(at_least=2), st.data())
def test_a_missing_an_added_and_a_moved_row_are_found(rows: list[Row], data: st.DataObject) -> None:
    """Also when two neighbors exchange everything but their ids."""
    seal = make_seal(KEY, None, rows, AT)
    one, other = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=2, max_size=2, unique=True))
    assert not holds(rows[:one] + rows[one + 1 :], seal)
    assert not holds([*rows[:one], data.draw(records())[0], *rows[one:]], seal)
    moved = list(rows)
    moved[one], moved[other] = moved[other], moved[one]
    assert not holds(moved, seal)
    assume(rows[one][1:] != rows[other][1:])
    moved[one], moved[other] = (rows[one][0], *rows[other][1:]), (rows[other][0], *rows[one][1:])
    assert not holds(moved, seal)


@given(texts, texts, texts, texts)
def test_values_do_not_run_into_each_other(a: str, b: str, c: str, d: str) -> None:
    """A byte between them belongs to neither."""
    assume((a, b) != (c, d))
    rest = [None] * 8
    seal = make_seal(KEY, None, [(1, a, b, *rest)], AT)
    assert not holds([(1, c, d, *rest)], seal)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seq", 3),
        ("first_id", 4),
        ("last_id", 6),
        ("rows", 2),
        ("hash", bytes(32)),
        ("sealed_at", AT + timedelta(microseconds=1)),
    ],
)
def test_a_changed_seal_is_found(field: str, value: Any) -> None:
    """Each of its members is in its own hash."""
    row = (5, *[None] * 10)
    previous = make_seal(KEY, None, [(1, *[None] * 10)], AT)
    seal = make_seal(KEY, previous, [row], AT)
    assert field in {f.name for f in fields(Seal)}
    assert holds([row], seal, previous)
    assert not holds([row], replace(seal, **{field: value}), previous)


def test_a_seal_holds_only_after_the_one_before_it() -> None:
    """Seals cannot be left out or change places."""
    first, second, third = ((number, *[None] * 10) for number in (1, 2, 3))
    one = make_seal(KEY, None, [first], AT)
    two = make_seal(KEY, one, [second], AT)
    three = make_seal(KEY, two, [third], AT)
    assert holds([third], three, two)
    assert not holds([third], three, one)
    assert not holds([third], three)
    assert not holds([third], replace(three, seq=2), one)
