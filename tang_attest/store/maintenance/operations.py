"""Operations on a whole database: look, upgrade, back up, restore."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import KW_ONLY, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import sqlalchemy as sa
from sqlalchemy.util import await_only

from tang_attest.ports.audit import Archive, AuditEntry
from tang_attest.store.database import moved, schema
from tang_attest.store.database.authentic import Authenticity
from tang_attest.store.database.engine import AuthenticDatabase, Database, connect, parse_url
from tang_attest.store.maintenance import archive, audit_archive, rekeying, resealing, row_check
from tang_attest.store.maintenance.archive import Progress
from tang_attest.store.maintenance.archive_file import Reader
from tang_attest.store.maintenance.rekeying import Rekeyed, Rewrap, Side
from tang_attest.store.maintenance.resealing import Rebind, Upgraded
from tang_attest.store.maintenance.row_check import RowCheck
from tang_attest.store.records import audit_log


@dataclass(frozen=True, slots=True)
class DatabaseStatus:
    """Status of a database: ``schema`` and ``needed`` are revisions, ``rows`` by table.

    ``schema`` is ``None`` without tables; ``flushes`` is false where acknowledged decisions may be lost.
    ``mark`` is that of a database that was copied away; its seal was not checked.
    """

    server: str
    schema: str | None
    needed: str
    flushes: bool
    rows: Mapping[str, int]
    _: KW_ONLY
    mark: moved.MovedMark | None = None


async def upgrade(url: str, key: bytes, rebind: Rebind | None = None) -> Upgraded:
    """Make the tables at *url*, or bring them to this program's schema, in one transaction.

    *key* seals rows.  Raises ``database-moved``, and as
    :func:`tang_attest.store.maintenance.resealing.upgrade`.
    """
    authenticity = Authenticity(key)

    def work(connection: sa.Connection) -> Upgraded:
        moved.refuse(connection, authenticity)
        return resealing.upgrade(connection, authenticity, rebind)

    async with _opened(url, create=True) as database:
        return await database.write(work)


async def look(url: str) -> DatabaseStatus:
    """Return the status of the database at *url*, of any schema.  Raises ``state-missing`` when there is no
    file.
    """

    def work(connection: sa.Connection) -> DatabaseStatus:
        server = connection.dialect.name == "postgresql"
        version = ".".join(map(str, connection.dialect.server_version_info or ()))
        return DatabaseStatus(
            f"{'PostgreSQL' if server else 'SQLite'} {version}",
            schema.revision(connection),
            schema.REVISION,
            not server or schema.flushes(connection),
            {table.name: archive.count(connection, table) for table in archive.ours(connection)},
            mark=moved.find(connection),
        )

    async with _opened(url) as database:
        return await database.read(work)


async def rekey(url: str, old: Side, new: Side, rewrap: Rewrap, entry: AuditEntry) -> Rekeyed:
    """Move the database at *url* from one secret to another; see
    :mod:`tang_attest.store.maintenance.rekeying`.
    """
    async with _opened(url) as database:
        return await database.write(lambda connection: rekeying.rekey(connection, old, new, rewrap, entry))


async def write_archive(
    url: str, key: bytes, path: Path, keys: audit_archive.Keys, before: datetime, by: str, progress: Progress
) -> bool:
    """Write old seals and rows to the file *path*; see :func:`tang_attest.store.maintenance.audit_archive.write`.

    *key* checks rows.
    """
    async with _opened(url) as database:
        return await AuthenticDatabase(database, Authenticity(key)).read(
            lambda connection: audit_archive.write(connection, path, keys, before, by, progress)
        )


async def take_out(
    url: str, key: bytes, stretch: audit_archive.Stretch, file: str, entry: AuditEntry
) -> Archive:
    """Delete what is in a file; see :func:`tang_attest.store.maintenance.audit_archive.take_out`.

    *key* seals rows.
    """
    async with _opened(url) as database:
        return await AuthenticDatabase(database, Authenticity(key)).write(
            lambda connection: audit_archive.take_out(connection, stretch, file, entry)
        )


async def check_rows(url: str, key: bytes) -> RowCheck:
    """Check that rows that decide something are as they were written; see
    :mod:`tang_attest.store.maintenance.row_check`.
    """
    async with _opened(url) as database:
        return await database.read(lambda connection: row_check.compare(connection, Authenticity(key)))


async def find_damage(url: str) -> tuple[str, ...]:
    """Return the damage that a quick check of a SQLite file finds; nothing for PostgreSQL, which checks its
    own pages.
    """

    def work(connection: sa.Connection) -> tuple[str, ...]:
        if connection.dialect.name != "sqlite":
            return ()
        lines = [str(row[0]) for row in connection.execute(sa.text("PRAGMA quick_check(5)"))]
        return () if lines == ["ok"] else tuple(lines)

    async with _opened(url) as database:
        return await database.read(work)


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """The file that gets a snapshot, the key (32 bytes) that authenticates it, and the call for rows done."""

    file: BinaryIO
    key: bytes
    progress: Progress


async def back_up(
    url: str,
    file: BinaryIO,
    key: bytes,
    head: Mapping[str, object],
    progress: Progress,
    *,
    row_key: bytes | None = None,
) -> dict[str, int]:
    """Write a snapshot of the database at *url* to *file*; see
    :func:`tang_attest.store.maintenance.archive.dump`.

    *row_key*, that of the rows' seals, checks the mark of a database that was copied away.  Raises
    ``database-moved``.
    """
    authenticity = None if row_key is None else Authenticity(row_key)

    def work(connection: sa.Connection) -> dict[str, int]:
        moved.refuse(connection, authenticity)
        return archive.dump(connection, file, key, head, progress)

    async with _opened(url) as database:
        return await database.read(work)


@dataclass(frozen=True, slots=True)
class Destination:
    """The place of a copy, without a password, the time, and the call that fills it from the snapshot."""

    place: str
    at: datetime
    fill: Callable[[], Coroutine[Any, Any, Any]]


async def move_out(url: str, snapshot: SnapshotFile, row_key: bytes, to: Destination) -> Any:
    """Write the database at *url* to *snapshot*, let *to* be filled from it, and mark this database as moved.

    It is one transaction, in which no other program writes here: each row is in the copy, or the mark is not
    set.  Return the result of the call.  Raises ``database-moved``, and what the call raises.
    """
    loop, authenticity = asyncio.get_running_loop(), Authenticity(row_key)

    def work(connection: sa.Connection) -> Any:
        moved.refuse(connection, authenticity)
        archive.keep_writers_out(connection)
        archive.dump(connection, snapshot.file, snapshot.key, {}, snapshot.progress)
        if connection.dialect.name == "sqlite":  # this is a thread beside the loop's
            result = asyncio.run_coroutine_threadsafe(to.fill(), loop).result()
        else:
            result = await_only(to.fill())
        moved.mark(connection, authenticity, to.place, to.at)
        return result

    async with _opened(url) as database:
        return await database.write(work)


async def reclaim(url: str, key: bytes, entry: AuditEntry) -> moved.MovedMark | None:
    """Take the database at *url* back into use; return its mark, or ``None`` if it was in use already.

    *entry* is appended to the record, unless the schema is another version's.
    """

    def work(connection: sa.Connection) -> moved.MovedMark | None:
        found = moved.remove(connection)
        if found is not None and schema.revision(connection) == schema.REVISION:
            audit_log.append(connection, entry)
        return found

    bound, transaction = Authenticity(key).bind(work)
    async with _opened(url) as database:
        found = await database.write(bound)
    transaction.commit()
    return found


async def restore(
    url: str, reader: Reader, key: bytes, progress: Progress, row_key: bytes, rebind: Rebind
) -> tuple[dict[str, int], Upgraded]:
    """Fill the empty database at *url*, in one transaction; see
    :func:`tang_attest.store.maintenance.archive.load`.

    *key* authenticates the backup, *row_key* its rows.  A SQLite file that it made is gone again when it
    fails.
    """

    def work(connection: sa.Connection) -> tuple[dict[str, int], Upgraded]:
        rows = archive.load(connection, reader, key, progress)
        return rows, resealing.upgrade(connection, Authenticity(row_key), rebind)

    with _undone_on_failure(url):
        async with _opened(url, create=True) as database:
            return await database.write(work)


@contextmanager
def _undone_on_failure(url: str) -> Iterator[None]:
    """A SQLite file that is not here yet is gone again when the block raises."""
    parsed = parse_url(url)
    path = Path(parsed.database or "")
    made = parsed.get_backend_name() == "sqlite" and not os.path.lexists(path)
    try:
        yield
    except BaseException:
        if made:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)
        raise


@asynccontextmanager
async def _opened(url: str, *, create: bool = False) -> AsyncIterator[Database]:
    database = connect(parse_url(url), create=create, patient=True)
    try:
        yield database
    finally:
        await database.close()
