"""Operations on a whole database: look, upgrade, back up, restore."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import sqlalchemy as sa

from tang_attest.ports.audit import AuditEntry
from tang_attest.store.database import schema
from tang_attest.store.database.authentic import Authenticity
from tang_attest.store.database.engine import Database, connect, parse_url
from tang_attest.store.maintenance import archive, rekeying, resealing, row_check
from tang_attest.store.maintenance.archive import Progress
from tang_attest.store.maintenance.archive_file import Reader
from tang_attest.store.maintenance.rekeying import Rekeyed, Rewrap, Side
from tang_attest.store.maintenance.resealing import Rebind, Upgraded
from tang_attest.store.maintenance.row_check import RowCheck


@dataclass(frozen=True, slots=True)
class DatabaseStatus:
    """Status of a database: ``schema`` and ``needed`` are revisions, ``rows`` by table.

    ``schema`` is ``None`` without tables; ``flushes`` is false where acknowledged decisions may be lost.
    """

    server: str
    schema: str | None
    needed: str
    flushes: bool
    rows: Mapping[str, int]


async def upgrade(url: str, key: bytes, rebind: Rebind | None = None) -> Upgraded:
    """Make the tables at *url*, or bring them to this program's schema, in one transaction.

    *key* seals rows.  Raises as :func:`tang_attest.store.maintenance.resealing.upgrade`.
    """
    async with _opened(url, create=True) as database:
        return await database.write(
            lambda connection: resealing.upgrade(connection, Authenticity(key), rebind)
        )


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
        )

    async with _opened(url) as database:
        return await database.read(work)


async def rekey(url: str, old: Side, new: Side, rewrap: Rewrap, entry: AuditEntry) -> Rekeyed:
    """Move the database at *url* from one secret to another; see
    :mod:`tang_attest.store.maintenance.rekeying`.
    """
    async with _opened(url) as database:
        return await database.write(lambda connection: rekeying.rekey(connection, old, new, rewrap, entry))


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


async def back_up(
    url: str, file: BinaryIO, key: bytes, head: Mapping[str, object], progress: Progress
) -> dict[str, int]:
    """Write a snapshot of the database at *url* to *file*; see
    :func:`tang_attest.store.maintenance.archive.dump`.
    """
    async with _opened(url) as database:
        return await database.read(lambda connection: archive.dump(connection, file, key, head, progress))


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
