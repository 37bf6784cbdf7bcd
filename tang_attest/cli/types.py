"""Kinds of option values: durations as people write them (30m, 24h, 7d), and PCR selections."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any, Final

import click

from tang_attest.cli import output
from tang_attest.protocol.changes.rollout import WHOLE

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class Duration(click.ParamType[timedelta]):
    """A number and a unit out of s, m, h, d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """*value* as a timedelta of more than nothing and at most 3650 days."""
        if isinstance(value, timedelta):
            return value
        match = re.fullmatch(r"([0-9]{1,6})([smhd])", str(value))
        if match is None:
            self.fail(f"{value!r} is not a number with s, m, h or d, such as 30m", param, ctx)
        span = timedelta(**{_UNITS[match[2]]: int(match[1])})
        if not timedelta(0) < span <= timedelta(days=3650):
            self.fail(f"{value!r} is not between 1s and 3650d", param, ctx)
        return span


DURATION: Final = Duration()


class Seconds(click.ParamType[float]):
    """A number of seconds between *least* and *most*, or a duration as :class:`Duration` takes it."""

    name = "seconds"

    def __init__(self, least: float, most: float) -> None:
        self._least, self._most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """*value* in seconds."""
        try:
            seconds = float(value)
        except ValueError:
            seconds = DURATION.convert(value, param, ctx).total_seconds()
        if not self._least <= seconds <= self._most:
            self.fail(f"{value!r} is not between {self._least:g} and {self._most:g} seconds", param, ctx)
        return seconds


class Share(click.ParamType[int]):
    """A share of the machines: 10%, 0.5%; becomes a number of 10,000."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """*value* as hundredths of a percent, from 1 to 10,000."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([0-9]{1,3})(?:\.([0-9]{1,2}))?%", str(value))
        if match is None:
            self.fail(f"{value!r} is not a percentage, such as 10%", param, ctx)
        share = int(match[1]) * 100 + int((match[2] or "").ljust(2, "0"))
        if not 0 < share <= WHOLE:
            self.fail(f"{value!r} is not between 0.01% and 100%", param, ctx)
        return share


class SelectionType(click.ParamType[Any]):
    """A PCR selection, such as sha256:0,2,4,7."""

    name = "selection"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """*value* as a :class:`~tang_attest.protocol.values.pcr.Selection`."""
        from tang_attest.errors import Malformed
        from tang_attest.protocol.values.pcr import Selection

        if isinstance(value, Selection):
            return value
        try:
            return Selection.parse(str(value))
        except Malformed as error:
            self.fail(output.decapitalize(error.sentence), param, ctx)


class Head(click.ParamType[tuple[int, bytes]]):
    """The head of the chain over the audit record: SEQ:HASH."""

    name = "head"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, bytes]:
        """*value* as a number and 32 bytes."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"([1-9][0-9]{0,17}):([0-9a-fA-F]{64})", str(value))
        if match is None:
            self.fail(f"{value!r} is not a head, such as 812: and 64 hexadecimal digits", param, ctx)
        return int(match[1]), bytes.fromhex(match[2])
