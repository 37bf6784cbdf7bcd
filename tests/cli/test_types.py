"""Kinds of option values: times as people and programs write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click
import pytest

from tang_attest.cli.types import MOMENT, OfKey
from tests.cli.transcript import environment


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2026-11-27T10:20:30Z", "2026-11-27 10:20:30"),
        ("2026-11-27T10:20:30+01:00", "2026-11-27 09:20:30"),
        ("2026-11-27 10:20:30.5-0330", "2026-11-27 13:50:30.500000"),
        ("20261127T102030Z", "2026-11-27 10:20:30"),
        ("2026-11-27", "2026-11-26 23:00:00"),  # the zone of this machine
        ("2026-11-27T10:20", "2026-11-27 09:20:00"),
        ("2026-07-01 10:20:30", "2026-07-01 08:20:30"),
        # As listings print it.
        ("2026-11-27 10:20:30 CET", "2026-11-27 09:20:30"),
        ("2026-07-01 10:20:30 CEST", "2026-07-01 08:20:30"),
        ("2026-11-27 10:20:30 UTC", "2026-11-27 10:20:30"),
        ("2026-10-25 02:30:00 CEST", "2026-10-25 00:30:00"),
        ("2026-10-25 02:30:00 CET", "2026-10-25 01:30:00"),
    ],
)
def test_times(text: str, utc: str) -> None:
    """With a zone, with the name of a zone, or in the zone of this machine."""
    with environment(TZ="Europe/Berlin"):
        assert MOMENT.convert(text, None, None) == datetime.fromisoformat(utc).replace(tzinfo=UTC)


def test_a_duration_is_before_now() -> None:
    """2d is two days ago."""
    found = MOMENT.convert("2d", None, None)
    assert timedelta(days=2) <= datetime.now(UTC) - found < timedelta(days=2, minutes=1)


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "2026-13-01", "2026-11-27T25:00", "2d3h", "0s", "9999d", "2026-11-27 10:20 XYZ", "1"],
)
def test_no_times(text: str) -> None:
    """The message shows what a time looks like."""
    with pytest.raises(click.BadParameter, match=r"such as|is not between"):
        MOMENT.convert(text, None, None)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-" + "h" * 42], ("-" + "h" * 42, False)),
        (["--force", "-" + "-" * 42], ("-" * 43, True)),
        (["-" + "x" * 42, "--force"], ("-" + "x" * 42, True)),
        (["--", "-" + "x" * 42], ("-" + "x" * 42, False)),
        (["abc", "--force"], ("abc", True)),
    ],
)
def test_a_thumbprint_is_no_option(words: list[str], expected: tuple[str, bool]) -> None:
    """One in 64 begins with a hyphen."""

    @click.command(cls=OfKey)
    @click.argument("kid")
    @click.option("--force", is_flag=True)
    def command(kid: str, force: bool) -> tuple[str, bool]:
        return kid, force

    assert command.main(words, standalone_mode=False) == expected
