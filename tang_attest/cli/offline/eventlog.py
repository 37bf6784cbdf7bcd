"""``tang-attest eventlog``: what a machine says it booted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tang_attest.cli import output
from tang_attest.cli.offline.coverage import coverage
from tang_attest.cli.renamed import Command
from tang_attest.files import read_file

if TYPE_CHECKING:
    from tang_attest.protocol.eventlog import EventLog
    from tang_attest.protocol.rules import RuleSet

_BANKS = ("sha256", "sha384", "sha512")
_bank_option = click.option(
    "--bank", type=click.Choice(_BANKS), default="sha256", show_default=True, help="The PCR bank to look at."
)


class _ShowByDefault(click.Group):
    """``eventlog FILE`` is ``eventlog show FILE``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``show`` in front of anything that is neither a command nor a call for help."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["show", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_ShowByDefault)
def eventlog() -> None:
    """TCG event logs: replay one, compare two, try rules.

    A log is a copy of /sys/kernel/security/tpm0/binary_bios_measurements; - is stdin. It proves nothing by
    itself, anyone can write one. 'tang-attest checkquote --eventlog FILE' compares one with PCR values that a
    TPM signed.

    \b
    tang-attest eventlog show /sys/kernel/security/tpm0/binary_bios_measurements --events
    """


@eventlog.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--events", is_flag=True, help="List the events, too.")
@output.json_option
def show(file: Path, events: bool, as_json: bool) -> None:
    """Replay the log FILE to PCR values, and list its events.

    'show' may be left out.  The JSON always has the events.
    """
    from tang_attest.protocol import eventlog as logs
    from tang_attest.protocol.eventlog.replay import REPLAYABLE

    log = _read_log(file)
    if as_json:
        output.print_json(logs.as_json(log))
        return
    if events:
        rows = [(e.index, e.pcr if e.names_pcr else None, e.type_name, logs.describe(e)) for e in log.events]
        output.table(
            ("event", "pcr", "type", "description"),
            rows,
            empty="the log has no events",
            prose=("description",),
        )
        click.echo()
    banks = [algorithm.name for algorithm in log.algorithms if algorithm.name in REPLAYABLE]
    values = [(bank, pcr, value.hex()) for bank in banks for pcr, value in logs.replay(log, bank).items()]
    output.table(("bank", "pcr", "replayed value"), values, empty="the log leads to no PCR value")


@eventlog.command()
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@_bank_option
@output.json_option
def diff(old: Path, new: Path, bank: str, as_json: bool) -> None:
    """Compare the logs OLD and NEW, event by event.

    Text of a log beyond its digests, such as the name of a file, is marked with 'claims'. Exits with 1 when
    the logs differ.
    """
    from tang_attest.protocol import eventlog as logs

    changes = logs.difference(_read_log(old), _read_log(new), bank)
    if as_json:
        output.print_json([change.as_json() for change in changes])
    else:
        rows = [(change.pcr, change.sentence) for change in changes]
        output.table(
            ("pcr", "what is different"),
            rows,
            empty="both logs measured the same",
            prose=("what is different",),
        )
    click.get_current_context().exit(1 if changes else 0)


@eventlog.command(cls=Command, renamed={"--values": "--file"})
@click.argument("rules", type=click.Path(path_type=Path))
@click.argument("log", type=click.Path(path_type=Path))
@click.option(
    "--file",
    "values",
    type=click.Path(path_type=Path),
    help="PCR values that it has to lead to, as 'tpm2 pcrread' has them.",
)
@_bank_option
@output.json_option
def check(rules: Path, log: Path, values: Path | None, bank: str, as_json: bool) -> None:
    """Try the rules of the file RULES on LOG, as a policy would.

    The rules are YAML, see docs/rules.md.  Exits with 1 when a rule fails.  Without --file the log is taken
    at its word.

    \b
    tpm2 pcrread sha256 | tang-attest eventlog check rules.yaml LOG --file -
    """
    from tang_attest.documents import MAX_DOCUMENT, load_yaml
    from tang_attest.protocol.eventlog import MAX_LOG_SIZE
    from tang_attest.protocol.rules import parse_rules

    ruleset = parse_rules(load_yaml(read_file(rules, MAX_DOCUMENT), f"File {rules}"))
    data = read_file(log, MAX_LOG_SIZE)
    outcomes = ruleset.dry_run(data, bank, _values(ruleset, data, bank, values))
    if as_json:
        output.print_json([outcome.as_json() for outcome in outcomes])
    else:
        rows = [
            (
                outcome.rule or None,
                outcome.name,
                _verdict(outcome.passed),
                None if outcome.passed else outcome.sentence,
            )
            for outcome in outcomes
        ]
        output.table(("rule", "name", "verdict", "why"), rows, empty="there are no rules", prose=("why",))
    if values is None:
        output.say("the log was compared with no PCR values, so anyone may have written it")
    click.get_current_context().exit(0 if all(outcome.passed for outcome in outcomes) else 1)


def _verdict(passed: bool) -> str:
    return "passed" if passed else "failed"


def _read_log(path: Path) -> EventLog:
    from tang_attest.protocol import eventlog as logs

    return logs.parse(read_file(path, logs.MAX_LOG_SIZE))


def _values(ruleset: RuleSet, log: bytes, bank: str, path: Path | None) -> Mapping[int, bytes]:
    """The values of *path*, or those to which *log* leads by itself."""
    from tang_attest.protocol import eventlog as logs
    from tang_attest.protocol.eventlog.replay import initial_value
    from tang_attest.protocol.values.pcr import Selection
    from tang_attest.protocol.values.pcr_file import parse_values

    if path is not None:
        return parse_values(read_file(path, 1 << 16), Selection(bank, tuple(sorted(ruleset.pcrs))))
    parsed = logs.parse(log)
    replayed = logs.replay(parsed, bank)
    return {pcr: replayed.get(pcr) or initial_value(parsed, bank, pcr) for pcr in ruleset.pcrs}


eventlog.add_command(coverage)
