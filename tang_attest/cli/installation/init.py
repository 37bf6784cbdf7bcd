"""``tang-attest init``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from tang_attest.cli import output
from tang_attest.cli.invocation import at_terminal, settings

if TYPE_CHECKING:
    from pathlib import Path

    from tang_attest.config import Settings


@click.command()
@output.json_option
def init(as_json: bool) -> None:
    """Make the database, the kek and a signing key.

    The kek is the key-encryption key.  A directory that it makes gets mode 0700.  With --database, tables are
    made in that database; each further server of it then gets a copy of the key-encryption key instead of an
    'init' of its own.  Print the signing key's thumbprint: machines that bind a disk compare it ("thp" in the
    pin's configuration).  After an interruption, run the same command again.
    """
    current = settings()
    thumbprint = make_state(current)
    if as_json:
        output.print_json({"state": str(current.state), "thumbprint": thumbprint})
    else:
        output.say(f"state made in {current.state}")
        output.say("the signing key's thumbprint, to compare when a disk is bound:")
        click.echo(thumbprint)
    hint_at_owners(current.state)
    output.hint(
        f"keep a copy of {current.state}/kek apart from the database's backups; one without the other opens nothing"
    )


def hint_at_owners(state: Path) -> None:
    """Name the command that gives the service the files of *state* that belong to others, if there are some."""
    from tang_attest.doctor.ownership import chown_command

    if (command := chown_command(state)) is not None:
        output.hint(
            f"the state directory belongs to the service's user, and files in it do not: run '{command}'"
        )


def make_state(current: Settings) -> str:
    """Make the installation that *current* names; return the signing key's thumbprint.  Raises ``state-exists``."""
    from tang_attest.server.initialize import initialize

    return asyncio.run(initialize(current, at_terminal()))
