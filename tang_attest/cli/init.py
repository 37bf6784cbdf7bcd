"""``tang-attest init``."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import click

from tang_attest.cli import output
from tang_attest.cli.state import compose
from tang_attest.config import DATABASE_NAME, Settings
from tang_attest.errors import Conflict, NotFound
from tang_attest.keys.secret import FILE_NAME, create_secret
from tang_attest.store import open_store


@click.command()
@click.pass_obj
def init(state: str) -> None:
    """Make the database, the key-encryption key and the first signing key.

    A directory that it makes gets mode 0700.  Print the signing key's thumbprint: machines that bind a disk
    compare it ("thp" in the pin's configuration).
    """
    directory = Path(state)
    _prepare(directory)
    thumbprint = asyncio.run(_init(directory))
    output.say(f"state made in {state}")
    output.say("the signing key's thumbprint, to compare when a disk is bound:")
    click.echo(thumbprint)
    output.hint(
        f"keep a copy of {state}/kek apart from the database's backups; one without the other opens nothing"
    )


def _prepare(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise NotFound(
            "file-unreadable", f"Directory {directory} cannot be made: {error.strerror}."
        ) from None
    database = directory / DATABASE_NAME
    if os.path.lexists(database):
        # Another secret would not open the keys that are in it.
        raise Conflict("state-exists", f"There is a database at {database} already.")


async def _init(directory: Path) -> str:
    secret = create_secret(directory)
    try:
        store = await open_store(Settings(state=directory).database_url, create=True)
        try:
            return await compose(store, secret).keys.create_signing_key()
        finally:
            await store.close()
    except BaseException:
        _discard(directory)
        raise


def _discard(directory: Path) -> None:
    """Half a state would neither work nor let the next init begin."""
    for name in (FILE_NAME, DATABASE_NAME, f"{DATABASE_NAME}-wal", f"{DATABASE_NAME}-shm"):
        (directory / name).unlink(missing_ok=True)
