"""The care of whole databases: upgrade, copy, backup and restoration."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, cast

from tang_attest import __version__, store
from tang_attest.config import Settings
from tang_attest.errors import Conflict, NotFound, Unavailable
from tang_attest.keys.encrypted import EncryptedKeys
from tang_attest.keys.secret import (
    FILE_NAME,
    ServerSecret,
    keep_secret,
    load_secret,
    make_directory,
    parse_secret,
)
from tang_attest.ports.world import Clock

#: The label of the key that authenticates backups.
_BACKUP_LABEL: Final = "backup"

#: Reports, while its block runs, that a step (such as ``reading``) goes on; gives a call for rows done and in
#: all.
Report = Callable[[str], AbstractAsyncContextManager[Callable[[int, int], None]]]


@dataclass(frozen=True, slots=True)
class Filled:
    """The rows that a database was filled with, by table, and the upgrade of an older schema's rows."""

    rows: Mapping[str, int]
    upgraded: store.Upgraded


async def upgrade(settings: Settings, report: Report) -> store.Upgraded:
    """Bring the database to the schema of this program.

    Raises ``state-missing`` for a database without tables, and errors of the store and of the secret.
    """
    status = await store.look(settings.database_url)
    if status.schema is None:
        raise Unavailable("state-missing", "The database has no tables yet.")
    if status.schema == status.needed:
        return store.Upgraded(status.schema, status.needed)
    secret = load_secret(settings.state)
    async with report("upgrading"):
        return await store.upgrade(
            settings.database_url, secret.derive(store.KEY_LABEL), EncryptedKeys(secret).rebind
        )


async def copy(settings: Settings, target: str, report: Report) -> Filled:
    """Copy the database to the empty one at the URL *target*."""
    # It authenticates the bytes that this process writes for itself.
    key = os.urandom(32)
    status = await store.look(settings.database_url)
    # Rows bring their seals along; only those of an older schema get new ones.
    secret = ServerSecret(key) if status.schema == status.needed else load_secret(settings.state)
    with tempfile.TemporaryFile() as opened:
        file = cast(BinaryIO, opened)
        async with report("reading") as progress:
            await store.back_up(settings.database_url, file, key, {}, progress)
        file.seek(0)
        return await _fill(target, store.Reader(file), key, secret, report)


async def back_up(
    settings: Settings, file: BinaryIO, clock: Clock, report: Report, *, with_secret: bool
) -> dict[str, int]:
    """Write the database to *file*, with the key-encryption key or without; return the number of rows by
    table.
    """
    secret = load_secret(settings.state)
    head: dict[str, object] = {"made_at": clock.now().isoformat(), "program": __version__}
    if with_secret:
        head["secret"] = secret.text()
    async with report("reading") as progress:
        return await store.back_up(settings.database_url, file, secret.derive(_BACKUP_LABEL), head, progress)


async def restore(settings: Settings, reader: store.Reader, report: Report) -> Filled:
    """Fill an empty database from the backup in *reader*, and keep the backup's secret if it has one.

    Raises ``secret-missing``, ``state-exists`` (another secret), and errors of the store.
    """
    with _secret_for(settings.state, reader) as secret:
        key = secret.derive(_BACKUP_LABEL)
        return await _fill(settings.database_url, reader, key, secret, report)


async def _fill(url: str, reader: store.Reader, key: bytes, secret: ServerSecret, report: Report) -> Filled:
    """Fill the empty database at *url*; *key* authenticates the contents of *reader*, *secret* seals rows."""
    row_key, rebind = secret.derive(store.KEY_LABEL), EncryptedKeys(secret).rebind
    async with report("writing") as progress:
        rows, upgraded = await store.restore(url, reader, key, progress, row_key, rebind)
    return Filled(rows, upgraded)


@contextmanager
def _secret_for(directory: Path, reader: store.Reader) -> Iterator[ServerSecret]:
    """Yield the secret of the state directory; keep the backup's there, unless the block raises."""
    text = reader.head.get("secret")
    missing = not os.path.lexists(directory / FILE_NAME)
    if not isinstance(text, str):
        if missing and "CREDENTIALS_DIRECTORY" not in os.environ:
            raise NotFound("secret-missing", f"There is no key-encryption key at {directory / FILE_NAME}.")
        make_directory(directory)
        yield load_secret(directory)
        return
    secret = parse_secret(text, "The backup's secret")
    make_directory(directory)
    if not missing:
        if load_secret(directory).text() != text:
            raise Conflict("state-exists", f"There is another key-encryption key in {directory}.")
        yield secret
        return
    keep_secret(directory, secret)
    try:
        yield secret
    except BaseException:
        (directory / FILE_NAME).unlink(missing_ok=True)
        raise
