"""Kinds of option values: durations as people write them (30m, 24h, 7d), and PCR selections."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final

import click

from tang_attest.cli import output
from tang_attest.protocol.changes.rollout import WHOLE

_LAST_PCR: Final = 23
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
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


class Number(click.IntRange):
    """The number of a row, as a listing prints it: from 1 to what a column of a database holds."""

    name = "integer"

    def __init__(self) -> None:
        super().__init__(1, (1 << 63) - 1)

    def _describe_range(self) -> str:
        return "x>=1"


class Moment(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """A time: ISO 8601, as a listing prints it, or a duration before now.

    Without a zone it is in the zone of this machine, as listings are.
    """

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """*value* as an aware time, UTC."""
        if isinstance(value, datetime):
            return value
        text = str(value).strip()
        if re.fullmatch(r"[0-9]+[a-z]", text):
            return datetime.now(UTC) - DURATION.convert(text, param, ctx)
        try:
            found = datetime.fromisoformat(self._without_zone_name(text))
            return found.astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is not a time, such as 2026-11-27T10:20:00+01:00, 2026-11-27 or 2d", param, ctx
            )

    @staticmethod
    def _without_zone_name(text: str) -> str:
        """*text* without the name of a zone that :func:`~tang_attest.cli.output.local` prints."""
        at, space, zone = text.rpartition(" ")
        if not space or not zone.isalpha():
            return text
        if zone.upper() in ("UTC", "GMT", "Z"):
            return f"{at}+00:00"
        if zone in time.tzname:
            # The name decides in the hour that comes twice when summer time ends.
            summer = time.daylight and zone == time.tzname[1] != time.tzname[0]
            offset = timedelta(seconds=-(time.altzone if summer else time.timezone))
            return datetime.fromisoformat(at).replace(tzinfo=timezone(offset)).isoformat()
        return text


MOMENT: Final = Moment()


class Seconds(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
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


class Share(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
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


class SelectionType(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
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


class Pcrs(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """PCR numbers, such as 4,9."""

    name = "pcrs"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """*value* as ascending numbers."""
        if isinstance(value, tuple):
            return value
        if re.fullmatch(r"[0-9]{1,2}(?:,[0-9]{1,2})*", str(value)) is None:
            self.fail(f"{value!r} is no list of PCR numbers, such as 4,9", param, ctx)
        numbers = sorted(int(number) for number in str(value).split(","))
        if numbers[-1] > _LAST_PCR or len(set(numbers)) != len(numbers):
            self.fail(f"{value!r} names a PCR twice, or one above {_LAST_PCR}", param, ctx)
        return tuple(numbers)


class Head(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
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


class OfKey(click.Command):
    """A command of a thumbprint or a token: 43 characters, of which the first may be ``-`` without being an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse *args*, thumbprints and tokens last."""
        named = [word for word in args if re.fullmatch(r"-[A-Za-z0-9_-]{42}", word)]
        others = [word for word in args if word not in named]
        return super().parse_args(ctx, [*others, "--", *named] if named and "--" not in args else args)
