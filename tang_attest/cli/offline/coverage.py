"""``tang-attest eventlog coverage``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tang_attest.cli import output
from tang_attest.cli.types import SelectionType
from tang_attest.files import read_file
from tang_attest.protocol.policy import DEFAULT_CAP_PCR, DEFAULT_SELECTION

if TYPE_CHECKING:
    from tang_attest.protocol.coverage import Coverage, PartCoverage
    from tang_attest.protocol.values.pcr import Selection


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--selection",
    type=SelectionType(),
    default=DEFAULT_SELECTION,
    show_default=True,
    help="The bank and PCRs to judge by.",
)
@output.json_option
def coverage(file: Path, selection: Selection, as_json: bool) -> None:
    """Show which parts of a boot a selection covers.

    The boot is that of the log FILE.  A part is covered if a selected PCR changes with it. Only digests, and
    data that hashes to them, count. The digest of a separator or of an empty range covers nothing. Also
    prints the selection that fits the boot chain.

    \b
    tang-attest eventlog coverage /sys/kernel/security/tpm0/binary_bios_measurements
    """
    from tang_attest.protocol import coverage as covering
    from tang_attest.protocol import eventlog as logs

    log = logs.parse(read_file(file, logs.MAX_LOG_SIZE))
    found = covering.coverage(log, selection)
    if as_json:
        output.print_json(found.as_json())
        return
    output.table(
        ("part", "measured in pcr", "by", "selected", "covered", "why not"),
        [_row(part) for part in found.parts],
        empty="",
        prose=("why not",),
    )
    click.echo(found.line())
    _say_proposal(found)


def _row(part: PartCoverage) -> tuple[object, ...]:
    measured = ", ".join(map(str, part.measured_in)) or None
    by = ", ".join(dict.fromkeys(part.measured_by.values())) or None
    return (part.part.words, measured, by, part.selected, part.covered, part.reason)


def _say_proposal(found: Coverage) -> None:
    from tang_attest.protocol.coverage import propose

    proposal = propose(found.boot, found.selection.bank, DEFAULT_CAP_PCR)
    if proposal is None:
        output.say("the boot chain of this log is unknown, so no selection is proposed")
        return
    output.hint(f"the selection for this boot chain is {proposal.selection}")
    for reason in proposal.reasons:
        output.say(reason)
