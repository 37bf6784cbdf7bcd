"""The making of a new installation: directory, secret, database and first signing key."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from tang_attest.config import DATABASE_NAME, Settings
from tang_attest.errors import Conflict
from tang_attest.keys.secret import FILE_NAME, ServerSecret, create_secret, load_secret, make_directory
from tang_attest.server.compose import World, composed
from tang_attest.store import KEY_LABEL, look, open_store


async def initialize(settings: Settings, world: World | None = None) -> str:
    """Make the installation that *settings* name; return the thumbprint of its signing key.

    It goes on from an ``init`` that was killed before its database had a table, with the secret of that one.
    Nothing of its own is left behind when it fails.  Raises ``state-exists``.
    """
    make_directory(settings.state)
    begun = await _was_begun(settings)
    if begun:
        _discard(settings, ())  # the new file belongs to us, and nobody else reads it
    if begun and (settings.state / FILE_NAME).exists():
        secret, made = load_secret(settings.state), []
    else:
        secret, made = create_secret(settings.state), [FILE_NAME]
    try:
        return await _fill(settings, secret, world)
    except BaseException:
        _discard(settings, made)
        raise


async def _was_begun(settings: Settings) -> bool:
    """Return True where the database in the state directory is a file that holds nothing, as a killed
    ``init`` leaves it.

    Raises ``state-exists`` for any other that is there: another secret would not open its keys.
    """
    database = settings.state / DATABASE_NAME
    if settings.database is not None or not _is_there(database):
        return False
    if _holds_nothing(database):
        await look(settings.database_url)  # its log becomes part of it, as far as that was committed
        if _holds_nothing(database):
            return True
    raise Conflict("state-exists", f"There is a database at {database} already.")


def _is_there(path: Path) -> bool:
    return os.path.lexists(path)


def _holds_nothing(database: Path) -> bool:
    """Return True for a file without a byte, or with one page without a table, whatever is in its log.

    https://sqlite.org/fileformat.html, 1.3 and 1.6: the size in pages is at 28, a page's number of cells at 103.
    """
    if not stat.S_ISREG(database.lstat().st_mode):
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


def _discard(settings: Settings, made: Sequence[str]) -> None:
    """Remove half an installation, *made* and the database: it would not work, nor let ``init`` begin."""
    names = [*made]
    if settings.database is None:
        names += [DATABASE_NAME, f"{DATABASE_NAME}-wal", f"{DATABASE_NAME}-shm"]
    for name in names:
        (settings.state / name).unlink(missing_ok=True)
