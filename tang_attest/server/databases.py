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
from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.world import Clock
from tang_attest.server.compose import World, wrong_secret
from tang_attest.server.rekeying import is_under

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
    if status.schema == status.needed and status.mark is None:  # a mark is refused below
        return store.Upgraded(status.schema, status.needed)
    secret = load_secret(settings.state)
    async with report("upgrading"):
        return await store.upgrade(
            settings.database_url, secret.derive(store.KEY_LABEL), EncryptedKeys(secret).rebind
        )


async def copy(settings: Settings, target: str, clock: Clock, report: Report) -> Filled:
    """Copy the database to the empty one at the URL *target*; this one refuses every use from then on.

    Raises ``database-not-empty``, ``database-moved``, and ``setting-invalid`` (the URL, or another kek than
    the database's).
    """
    place, secret = store.place_of(target), load_secret(settings.state)
    if place == store.place_of(settings.database_url):
        # It would wait for its own lock.
        raise Conflict("database-not-empty", "The target is the database itself.")
    await _refuse_other_secret(settings, secret)
    key = os.urandom(32)  # authenticates the bytes that this process writes for itself
    with tempfile.TemporaryFile() as opened:
        file = cast(BinaryIO, opened)
        async with report("copying") as progress:

            async def fill() -> Filled:
                file.seek(0)
                return await _fill(target, store.Reader(file), key, secret, progress)

            snapshot = store.SnapshotFile(file, key, progress)
            destination = store.Destination(place, clock.now(), fill)
            row_key = secret.derive(store.KEY_LABEL)
            return cast(Filled, await store.move_out(settings.database_url, snapshot, row_key, destination))


async def _refuse_other_secret(settings: Settings, secret: ServerSecret) -> None:
    """Raise ``setting-invalid`` unless *secret* is the database's; one of an older schema is not asked."""
    status = await store.look(settings.database_url)
    if status.schema == status.needed and not await is_under(settings.database_url, secret):
        raise wrong_secret()


async def reclaim(settings: Settings, world: World) -> store.MovedMark | None:
    """Take a database that was copied away back into use; ``None`` when it was in use already."""
    secret = load_secret(settings.state)
    entry = AuditEntry(world.clock.now(), "db reclaim", f"operator:{world.operator}", "done")
    return await store.reclaim(settings.database_url, secret.derive(store.KEY_LABEL), entry)


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
        key, row_key = secret.derive(_BACKUP_LABEL), secret.derive(store.KEY_LABEL)
        return await store.back_up(settings.database_url, file, key, head, progress, row_key=row_key)


async def restore(settings: Settings, reader: store.Reader, report: Report) -> Filled:
    """Fill an empty database from the backup in *reader*, and keep the backup's secret if it has one.

    Raises ``secret-missing``, ``state-exists`` (another secret), and errors of the store.
    """
    with _secret_for(settings.state, reader) as secret:
        key = secret.derive(_BACKUP_LABEL)
        async with report("writing") as progress:
            return await _fill(settings.database_url, reader, key, secret, progress)


async def _fill(
    url: str, reader: store.Reader, key: bytes, secret: ServerSecret, progress: Callable[[int, int], None]
) -> Filled:
    """Fill the empty database at *url*; *key* authenticates the contents of *reader*, *secret* seals rows."""
    row_key, rebind = secret.derive(store.KEY_LABEL), EncryptedKeys(secret).rebind
    return Filled(*await store.restore(url, reader, key, progress, row_key, rebind))


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
