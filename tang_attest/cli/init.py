"""``tang-attest init``."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from tang_attest.cli import output
from tang_attest.cli.state import compose
from tang_attest.config import Settings
from tang_attest.errors import NotFound
from tang_attest.keys.secret import create_secret
from tang_attest.store import open_store


@click.command()
@click.pass_obj
def init(state: str) -> None:
    """Make the database, the key-encryption key and the first signing key.

    The state directory gets mode 0700.  Print the signing key's thumbprint: machines that bind a disk compare it
    ("thp" in the pin's configuration).
    """
    thumbprint = asyncio.run(_init(Path(state)))
    output.say(f"state made in {state}")
    output.say("the signing key's thumbprint, to compare when a disk is bound:")
    click.echo(thumbprint)
    output.hint(
        f"keep a copy of {state}/kek apart from the database's backups; one without the other opens nothing"
    )


async def _init(directory: Path) -> str:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # noqa: ASYNC240 - before anything else runs
    except OSError as error:
        raise NotFound("file-unreadable", f"{directory} cannot be made: {error.strerror}.") from None
    secret = create_secret(directory)
    store = await open_store(Settings(state=directory).database_url, create=True)
    try:
        return await compose(store, secret).keys.create_signing_key()
    finally:
        await store.close()
