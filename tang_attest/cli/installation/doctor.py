"""``tang-attest doctor``."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path

import click

from tang_attest.cli import output
from tang_attest.cli.state import SystemClock, compose
from tang_attest.config import Settings, load_settings
from tang_attest.doctor.finding import Finding, Severity, failure, well
from tang_attest.doctor.host import look_at_host
from tang_attest.doctor.registry import look_at_database, look_at_records, look_at_rows
from tang_attest.doctor.server_tpm import look_at_server_tpm
from tang_attest.errors import TangAttestError
from tang_attest.keys.secret import load_secret
from tang_attest.store import KEY_LABEL, open_store


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
    """Look whether all is well, and say what to do.

    Keys, permissions, disk, certificate, port, database, clock, trust anchors, the server's TPM, and each device's last
    evidence.
    Nothing is changed.  The exit code is 1 when something is a problem; warnings leave it 0.

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
    return [
        well("settings", where),
        *look_at_host(settings, SystemClock().now()),
        *asyncio.run(_look_inside(settings)),
    ]


async def _look_inside(settings: Settings) -> list[Finding]:
    findings = list(await look_at_database(settings.database_url))
    try:
        secret = load_secret(settings.state)
    except TangAttestError:
        return findings  # it was said already, and without it nothing opens
    if findings[-1].level is Severity.OK:
        store = await open_store(settings.database_url, secret.derive(KEY_LABEL))
        try:
            sealed = compose(store, secret, settings).sealed
            findings += await look_at_rows(settings.database_url, secret.derive(KEY_LABEL))
            try:
                findings += await look_at_records(store, sealed, SystemClock().now())
            except TangAttestError as error:
                findings.append(failure("records", error))
            findings.append(await look_at_server_tpm(store, sealed))
            sealed.tpm.shutdown()
        finally:
            await store.close()
    return findings
