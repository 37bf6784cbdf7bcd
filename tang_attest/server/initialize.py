"""The making of a new installation: directory, secret, database and first signing key."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tang_attest.config import DATABASE_NAME, Settings
from tang_attest.errors import Conflict
from tang_attest.keys.secret import FILE_NAME, ServerSecret, create_secret, make_directory
from tang_attest.server.compose import World, composed
from tang_attest.store import KEY_LABEL, open_store


async def initialize(settings: Settings, world: World | None = None) -> str:
    """Make the installation that *settings* name; return the thumbprint of its signing key.

    Nothing is left behind when it fails.  Raises ``state-exists``.
    """
    make_directory(settings.state)
    _refuse_existing(settings)
    secret = create_secret(settings.state)
    try:
        return await _fill(settings, secret, world)
    except BaseException:
        _discard(settings)
        raise


def _refuse_existing(settings: Settings) -> None:
    database = settings.state / DATABASE_NAME
    if settings.database is None and os.path.lexists(database) and not _holds_nothing(database):
        # Another secret would not open the keys that are in it.
        raise Conflict("state-exists", f"There is a database at {database} already.")


def _holds_nothing(database: Path) -> bool:
    """Return True for the file that an ``init`` leaves which was killed at once, though commands looked at it since.

    It has no byte, or one page without a table (https://sqlite.org/fileformat.html, 1.3 and 1.6: the size in pages is
    at 28, the number of cells of the page at 103); nothing of it is in a log.
    """
    log = database.with_name(f"{DATABASE_NAME}-wal")
    if not stat.S_ISREG(database.lstat().st_mode) or (log.exists() and log.stat().st_size):
        return False
    with database.open("rb") as file:
        head = file.read(105)
    return head == b"" or (head[28:32], head[103:]) == (b"\0\0\0\1", b"\0\0")


async def _fill(settings: Settings, secret: ServerSecret, world: World | None) -> str:
    store = await open_store(settings.database_url, secret.derive(KEY_LABEL), create=True)
    try:
        if (await store.keys.count_signing_keys())[0]:
            raise Conflict("state-exists", "The database has keys already, made under another kek.")
        async with composed(store, secret, settings, world) as installation:
            return await installation.keys.create_signing_key()
    finally:
        await store.close()


def _discard(settings: Settings) -> None:
    """Remove half an installation, which would neither work nor let the next ``init`` begin."""
    names = [FILE_NAME]
    if settings.database is None:
        names += [DATABASE_NAME, f"{DATABASE_NAME}-wal", f"{DATABASE_NAME}-shm"]
    for name in names:
        (settings.state / name).unlink(missing_ok=True)
