"""``tang-attest init``."""

from __future__ import annotations

import asyncio
import os

import click

from tang_attest.cli import output
from tang_attest.cli.state import compose, settings
from tang_attest.config import DATABASE_NAME, Settings
from tang_attest.errors import Conflict
from tang_attest.keys.secret import FILE_NAME, create_secret, make_directory
from tang_attest.store import KEY_LABEL, open_store


@click.command()
def init() -> None:
    """Make the database, the key-encryption key and the first signing key.

    A directory that it makes gets mode 0700.  With --database, tables are made in that database; each further
    server of it then gets a copy of the key-encryption key instead of an 'init' of its own.  Print the signing
    key's thumbprint: machines that bind a disk compare it ("thp" in the pin's configuration).
    """
    current = settings()
    thumbprint = make_state(current)
    output.say(f"state made in {current.state}")
    output.say("the signing key's thumbprint, to compare when a disk is bound:")
    click.echo(thumbprint)
    output.hint(
        f"keep a copy of {current.state}/kek apart from the database's backups; one without the other opens nothing"
    )


def make_state(current: Settings) -> str:
    """Make what *current* names; the signing key's thumbprint.  Raises ``state-exists``."""
    make_directory(current.state)
    _refuse_existing(current)
    return asyncio.run(_init(current))


def _refuse_existing(current: Settings) -> None:
    database = current.state / DATABASE_NAME
    if current.database is None and os.path.lexists(database):
        # Another secret would not open the keys that are in it.
        raise Conflict("state-exists", f"There is a database at {database} already.")


async def _init(current: Settings) -> str:
    secret = create_secret(current.state)
    try:
        store = await open_store(current.database_url, secret.derive(KEY_LABEL), create=True)
        try:
            if (await store.count_signing_keys())[0]:
                raise Conflict("state-exists", "The database has keys already, made under another kek.")
            return await compose(store, secret).keys.create_signing_key()
        finally:
            await store.close()
    except BaseException:
        _discard(current)
        raise


def _discard(current: Settings) -> None:
    """Half a state would neither work nor let the next init begin."""
    names = [FILE_NAME]
    if current.database is None:
        names += [DATABASE_NAME, f"{DATABASE_NAME}-wal", f"{DATABASE_NAME}-shm"]
    for name in names:
        (current.state / name).unlink(missing_ok=True)
