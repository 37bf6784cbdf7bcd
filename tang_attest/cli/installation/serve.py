"""``tang-attest serve``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from tang_attest.cli import output
from tang_attest.cli.invocation import at_terminal, config_option, settings
from tang_attest.config import Settings

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _option(name: str, **attributes: Any) -> Callable[[_Command], _Command]:
    """A flag for the setting of the same name; its help is the setting's description."""
    setting = name.removeprefix("--").replace("-", "_")
    field = Settings.model_fields[setting]
    text = field.description or ""
    if field.default not in (None, False, "", {}):
        text += f"  [default: {field.default}]"
    return click.option(
        name, setting, default=None, help=text, envvar=f"TANG_ATTEST_{setting.upper()}", **attributes
    )


_path = click.Path(path_type=Path)


@click.command()
@config_option
@_option("--database")
@_option("--host")
@_option("--port", type=int)
@_option("--workers", type=int)
@_option("--port-file", type=_path)
@_option("--server-tpm")
@_option("--owner-auth-file", type=_path)
@_option("--endpoint")
@_option("--tls-certificate", type=_path)
@_option("--tls-key", type=_path)
@_option("--tls-client-ca", type=_path)
@_option("--plain-tang", is_flag=True)
@_option("--tang-dir", type=_path)
@_option("--admin-api", is_flag=True)
@_option("--console-url")
@_option("--hook-dir", type=_path)
@_option("--webhook-secret", type=_path)
@_option("--console-listen")
@_option("--console-certificate", type=_path)
@_option("--console-key", type=_path)
@_option("--console-forwarded", is_flag=True)
@_option("--notify", metavar="JSON")
@_option("--challenge-ttl", type=int)
@_option("--enroll-ttl", type=int)
@_option("--metrics-listen")
@_option("--address-rate", type=int)
@_option("--device-rate", type=int)
@_option("--address-connections", type=int)
@_option("--max-connections", type=int)
@_option("--max-requests", type=int)
@_option("--limit-exempt")
@_option("--log-format")
@_option("--log-level")
@click.option(
    "--check", is_flag=True, help="Open all that a start needs, say each problem, and serve nothing."
)
@click.pass_context
def serve(ctx: click.Context, /, named: Path | None, check: bool, **flags: Any) -> None:
    """Answer machines.

    Without --plain-tang no exchange key answers anybody without evidence.  With --plain-tang --tang-dir DIR
    this is a drop-in tangd over DIR; a state made by 'tang-attest init' is then optional, and served beside
    it.

    \b
    tang-attest serve --port 7500
    tang-attest serve --plain-tang --tang-dir /var/db/tang --port 80
    tang-attest serve --check && systemctl restart tang-attest
    """
    if check:
        ctx.exit(_check(settings(named, flags)))
    from tang_attest.server import serve as server
    from tang_attest.server.compose import World

    ctx.exit(server.serve(lambda: settings(named, flags), World(), output.error))


def _check(current: Settings) -> int:
    """Say each problem of a start with *current*, or the values that machines compare; return the exit code."""
    from tang_attest.server.checkup import check_start  # slow to load, and not needed to answer
    from tang_attest.web.gate.tls import spki_pin

    found = asyncio.run(check_start(current, at_terminal()))
    for problem in found.problems:
        output.error(problem)
    for note in found.notes:
        output.say(note)
    if found.problems:
        return 1
    for thumbprint in found.thumbprints:
        output.say(f"signing key: {thumbprint}")
    if current.tls_certificate is not None:
        output.say(f"key of the TLS certificate: {spki_pin(current.tls_certificate)}")
    output.say("the server can start")
    return 0
