"""Options and sentences about the coverage of a boot, for every command that makes a reference state."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import click

from tang_attest.cli import output
from tang_attest.errors import Malformed
from tang_attest.protocol.coverage import ENFORCED, Assessment, BootPart, assess, parse_part
from tang_attest.protocol.values.pcr import PcrValues, Selection


class PartType(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """A part of a boot that has to be covered: kernel, initrd, command-line."""

    name = "part"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> BootPart:
        """Return *value* as a part."""
        names = ", ".join(part.value.replace("_", "-") for part in ENFORCED)
        try:
            part = parse_part(str(value))
        except Malformed:
            self.fail(f"{value!r} is none of {names}", param, ctx)
        if part not in ENFORCED:
            self.fail(f"{value!r} need not be covered; parts are {names}", param, ctx)
        return part


#: Collects into a tuple called ``accepted``.
accept_option: Final[Callable[[Any], Any]] = click.option(
    "--accept-uncovered",
    "accepted",
    type=PartType(),
    multiple=True,
    metavar="PART",
    help="Accept that nothing covers this part: kernel, initrd or command-line; repeat it for more.",
)


def say_coverage(
    event_log: bytes, selection: Selection, values: PcrValues, cap_pcr: int, accepted: Iterable[BootPart]
) -> None:
    """Print the coverage of approved values on stderr: loudly where it is unknown or has an accepted gap."""
    say_assessment(assess(event_log, selection, values, loose={cap_pcr}), accepted)


def say_assessment(found: Assessment, accepted: Iterable[BootPart]) -> None:
    """Print the line, and a warning for what is unknown or was accepted."""
    output.say(f"coverage: {found.line()}")
    if found.coverage is None:
        output.say(
            "WARNING: nobody knows whether these values change with the kernel, the initrd and the command line"
        )
    for part in accepted:
        output.say(
            f"WARNING: nothing covers the {part.words}, and that is accepted: another one opens the disk"
        )
