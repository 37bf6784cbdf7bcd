"""``tang-attest doctor``."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path

import click

from tang_attest.cli import output
from tang_attest.cli.invocation import at_terminal, config_option, configuration, settings
from tang_attest.config import DEFAULT_FILE
from tang_attest.doctor.finding import Finding, Severity, failure, well
from tang_attest.errors import TangAttestError


@click.command()
@config_option
@output.json_option
@click.pass_context
def doctor(ctx: click.Context, named: Path | None, as_json: bool) -> None:
    """Examine this installation, and say what to do.

    It looks at keys, permissions, owners, disk, certificate, port, database, clock, trust anchors, the server's TPM,
    and each device's last evidence. Nothing is changed.  The exit code is 1 when something is a problem;
    warnings leave it 0.

    \b
    tang-attest doctor
    """
    findings = _look(named)
    if as_json:
        output.print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            click.echo(output.printable(f"{finding.level:<8} {finding.subject}: {_line(finding.sentence)}"))
            if finding.action:
                click.echo(f"         hint: {output.printable(_line(finding.action))}")
    ctx.exit(any(finding.level is Severity.PROBLEM for finding in findings))


def _line(sentence: str) -> str:
    return output.decapitalize(sentence.rstrip("."))


def _look(named: Path | None) -> list[Finding]:
    from tang_attest.server.checkup import examine

    file = configuration(named)
    try:
        current = settings(named)
    except TangAttestError as error:
        return [failure("settings", error)]
    where = str(file) if file is not None else f"the defaults; there is no {DEFAULT_FILE}"
    return [well("settings", where), *asyncio.run(examine(current, at_terminal(), file))]
