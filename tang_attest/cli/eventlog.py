"""``tang-attest eventlog``: what a machine says it booted."""

from __future__ import annotations

from pathlib import Path

import click

from tang_attest.cli import output
from tang_attest.cli.files import read_file


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--events", is_flag=True, help="List the events, too.")
@output.json_option
def eventlog(file: Path, events: bool, as_json: bool) -> None:
    """Replay a TCG event log: which PCR values it leads to, and from which events.

    FILE is a copy of /sys/kernel/security/tpm0/binary_bios_measurements; - is stdin. The JSON always has the events.

    A log proves nothing by itself, anyone can write one. 'tang-attest checkquote --eventlog FILE' compares one with
    PCR values that a TPM signed.

    \b
    tang-attest eventlog /sys/kernel/security/tpm0/binary_bios_measurements --events
    """
    from tang_attest.protocol import eventlog as logs
    from tang_attest.protocol.eventlog.replay import REPLAYABLE

    log = logs.parse(read_file(file, logs.MAX_LOG_SIZE))
    if as_json:
        output.print_json(logs.as_json(log))
        return
    if events:
        rows = [(e.index, e.pcr if e.names_pcr else None, e.type_name, logs.describe(e)) for e in log.events]
        output.table(("event", "pcr", "type", "description"), rows, empty="the log has no events")
        click.echo()
    banks = [algorithm.name for algorithm in log.algorithms if algorithm.name in REPLAYABLE]
    values = [(bank, pcr, value.hex()) for bank in banks for pcr, value in logs.replay(log, bank).items()]
    output.table(("bank", "pcr", "replayed value"), values, empty="the log leads to no PCR value")
