"""``tang-attest doctor``."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path

import click

from tang_attest.cli import output
from tang_attest.cli.invocation import at_terminal
from tang_attest.config import load_settings
from tang_attest.doctor.finding import Finding, Severity, failure, well
from tang_attest.errors import TangAttestError
from tang_attest.server.checkup import examine


@click.command()
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar="TANG_ATTEST_CONFIG",
    help="The TOML file that 'serve' is given.",
)
@output.json_option
@click.pass_context
def doctor(ctx: click.Context, config: Path | None, as_json: bool) -> None:
    """Examine this installation, and say what to do.

    It looks at keys, permissions, disk, certificate, port, database, clock, trust anchors, the server's TPM,
    and each device's last evidence. Nothing is changed.  The exit code is 1 when something is a problem;
    warnings leave it 0.

    \b
    tang-attest doctor --config /etc/tang-attest.toml
    """
    findings = _look(ctx, config)
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


def _look(ctx: click.Context, config: Path | None) -> list[Finding]:
    root = ctx.find_root()
    given_state = root.get_parameter_source("state") is not click.core.ParameterSource.DEFAULT
    flags = {
        "state": root.params["state"] if given_state or config is None else None,
        "database": root.params["database"],
        "server_tpm": root.params["server_tpm"],
        "owner_auth_file": root.params["owner_auth_file"],
    }
    try:
        settings = load_settings(config, flags)
    except TangAttestError as error:
        return [failure("settings", error)]
    where = str(config) if config is not None else "the defaults; --config names the file of 'serve'"
    return [well("settings", where), *asyncio.run(examine(settings, at_terminal()))]
