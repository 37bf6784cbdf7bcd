"""Strings of hostile machines reach a page as text: spelled, bounded, escaped."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tang_attest.web.console.rendering import lines, moment, spell, whole
from tang_attest.web.console.text import MOST, csv_cell, finalized, neutral

NOW = datetime(2026, 11, 27, 8, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("a\nb\tc\0", r"a\nb\tc\x00"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\u2066left\u2069", r"\u2066left\u2069"),
        ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"),
        ("\ud800", r"\ud800"),
        ("\u2028", r"\u2028"),
        ("\U000e0041", r"\U000e0041"),
        ("Žluťoučký kůň, 日本, Ω", "Žluťoučký kůň, 日本, Ω"),
    ],
)
def test_nothing_acts_upon_the_page(hostile: str, shown: str) -> None:
    """Control characters, overrides of direction and what cannot be seen are spelled; letters stay."""
    assert neutral(hostile) == shown


def test_a_string_is_bounded() -> None:
    """A long one ends with an ellipsis; marks do not pile up over the lines above."""
    assert neutral("x" * 10_000) == "x" * MOST + "…"
    assert neutral("x" * 10_000, None) == "x" * 10_000
    pile = neutral("e" + "\u0301" * 50)
    assert pile.startswith("e\u0301\u0301\\u0301")


def test_markup_is_the_templates_alone() -> None:
    """A string is not markup because it looks like it."""
    assert finalized("<b>") == "<b>"
    assert finalized(5) == 5
    assert whole("<script>\u202e") == r"&lt;script&gt;\u202e"
    assert lines("a\n<b>\x07") == "a\n&lt;b&gt;\\x07"
    assert lines("a\n" * 1000).endswith("a\n…")


@pytest.mark.parametrize(
    ("value", "cell"),
    [("=1+1", "'=1+1"), ("@x", "'@x"), ("-2", "'-2"), ("+2", "'+2"), ("a=b", "a=b"), (None, ""), (7, "7")],
)
def test_a_spreadsheet_runs_nothing(value: object, cell: str) -> None:
    """The beginning of a formula is quoted (CWE-1236)."""
    assert csv_cell(value) == cell


@pytest.mark.parametrize(
    ("span", "text"),
    [
        (timedelta(seconds=-3), "0 s"),
        (timedelta(seconds=9.9), "9 s"),
        (timedelta(minutes=3, seconds=59), "3 min"),
        (timedelta(hours=47), "1 d"),
        (timedelta(hours=23), "23 h"),
    ],
)
def test_a_span_has_one_unit(span: timedelta, text: str) -> None:
    """The whole units that have passed."""
    assert spell(span) == text


def test_a_time_is_relative_and_exact() -> None:
    """One for the eye, one for programs; a clock that was set back shows a time to come."""
    assert moment(NOW - timedelta(seconds=9), NOW) == (
        '<time datetime="2026-11-27T08:29:51+00:00" title="2026-11-27 08:29:51 UTC">9 s ago</time>'
    )
    assert "in 5 min" in moment(NOW + timedelta(minutes=5), NOW)
    assert moment(None, NOW) == "never"
