"""The seals over the audit record, and its rows as they are sealed.

Rules of this module:

* A row is read as its columns hold it: a change that means the same is a change.
* On PostgreSQL ids become visible out of order.  A writer holds its lock on the table before it draws an id,
  and until its row is visible.  A reader that waits for the present holders knows that no lower id can
  follow.  No writer waits for the reader, as writers would for ``LOCK TABLE``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from tang_attest.errors import Refused
from tang_attest.ports.audit import Archive
from tang_attest.protocol.audit_chain import COLUMNS, Row, Seal
from tang_attest.store.database import authentic, tables
from tang_attest.store.database.sql import insert_new
from tang_attest.store.database.types import EPOCH, MICROSECOND

_audit = tables.audit
_seal = tables.audit_seal
_archives = tables.audit_archive
_RAW: Final = [
    sa.type_coerce(column, sa.BigInteger() if column.name in ("id", "at") else sa.Text()).label(column.name)
    for column in (_audit.c[name] for name in COLUMNS)
]
#: Without the types' own reading, which would fail on foreign contents that SQLite lets into a column.
_RAW_SEAL: Final = [sa.type_coerce(column, sa.types.NullType()).label(column.name) for column in _seal.c]
_WRITERS: Final = sa.text(
    "SELECT virtualtransaction FROM pg_locks WHERE granted AND locktype = 'relation'"
    " AND mode = 'RowExclusiveLock' AND relation = 'audit'::regclass"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


def newest_id(connection: sa.Connection) -> int | None:
    """The highest id of the record."""
    newest: int | None = connection.scalar(sa.select(sa.func.max(_audit.c.id)))
    return newest


def writers(connection: sa.Connection) -> frozenset[str]:
    """Return the transactions that may have drawn an id that is not visible yet; none on SQLite, where ids
    come in order.
    """
    if connection.dialect.name == "sqlite":
        return frozenset()
    return frozenset(connection.scalars(_WRITERS))


def rows(connection: sa.Connection, after: int | None, up_to: int, limit: int) -> Sequence[Row]:
    """Rows with an id above *after* and not above *up_to*, by id."""
    query = sa.select(*_RAW).where(_audit.c.id <= up_to).order_by(_audit.c.id).limit(limit)
    if after is not None:
        query = query.where(_audit.c.id > after)
    return connection.execute(query).all()


def unsealed(connection: sa.Connection, after: int | None) -> tuple[int, datetime | None]:
    """Return the number of rows with an id above *after*, and the time of the oldest."""
    query = sa.select(sa.func.count(), sa.type_coerce(sa.func.min(_audit.c.at), sa.BigInteger()))
    if after is not None:
        query = query.where(_audit.c.id > after)
    count, oldest = connection.execute(query).one()
    return count, _time(oldest)


def archives(connection: sa.Connection) -> list[Archive]:
    """The stretches that are in files, oldest first.  Raises ``registry-tampered``."""
    return [_archive(row) for row in authentic.load(connection, _archives, order_by=[_archives.c.seq])]


def archived_head(connection: sa.Connection, authenticity: authentic.Authenticity) -> Seal | None:
    """The seal after which the chain goes on, read in a transaction that checks no seals.

    Raises ``audit-changed`` when this server did not write the row.
    """
    form = authentic.form(_archives)
    found = connection.execute(sa.select(*form.raw).order_by(_archives.c.seq.desc()).limit(1)).one_or_none()
    if found is None:
        return None
    raw = dict(zip(form.names, found, strict=True))
    if authentic.genuine(authenticity, form, raw) is None:
        raise Refused("audit-changed", "The row of the newest archive is not what this server wrote.")
    return _archive(form.read(raw)).head


def _archive(row: Mapping[str, Any]) -> Archive:
    return Archive(
        first_seq=row["first_seq"],
        first_id=row["first_id"],
        head=Seal(
            row["seq"], row["first_id"], row["last_id"], row["rows"], row["hash"], sealed_at=row["sealed_at"]
        ),
        rows=row["rows"],
        file=row["file"],
        sha256=row["sha256"],
        archived_at=row["archived_at"],
        archived_by=row["archived_by"],
    )


def newest_seal(connection: sa.Connection) -> Seal | None:
    """Return the head of the chain.  Raises ``audit-changed`` for a row that cannot be a seal."""
    row = (
        connection.execute(sa.select(*_RAW_SEAL).order_by(_seal.c.seq.desc()).limit(1))
        .mappings()
        .one_or_none()
    )
    return None if row is None else _load(row)


def seals(connection: sa.Connection, after: int, limit: int) -> list[Seal]:
    """Return seals with a number above *after*, in order.  Raises ``audit-changed`` for a row that cannot be
    a seal.
    """
    query = sa.select(*_RAW_SEAL).where(_seal.c.seq > after).order_by(_seal.c.seq).limit(limit)
    return [_load(row) for row in connection.execute(query).mappings()]


def add_seal(connection: sa.Connection, seal: Seal) -> bool:
    """Add *seal*; false when there is one of its number."""
    return insert_new(
        connection,
        _seal,
        {
            "seq": seal.seq,
            "first_id": seal.first_id,
            "last_id": seal.last_id,
            "rows": seal.rows,
            "hash": seal.hash,
            "sealed_at": seal.sealed_at,
        },
    )


def rehash(connection: sa.Connection, seal: Seal, digest: bytes) -> Seal:
    """Give *seal* another hash: the chain is made anew under another key."""
    connection.execute(_seal.update().where(_seal.c.seq == seal.seq).values(hash=digest))
    return replace(seal, hash=digest)


def _load(row: sa.RowMapping) -> Seal:
    seq, first_id, last_id, rows, digest = (
        row[name] for name in ("seq", "first_id", "last_id", "rows", "hash")
    )
    at = _time(row["sealed_at"])
    numbers = all(isinstance(number, int) for number in (seq, first_id, last_id, rows))
    if at is None or not numbers or not isinstance(digest, bytes):
        raise Refused("audit-changed", f"Seal {seq} of the audit record is not what a seal can be.")
    return Seal(seq, first_id, last_id, rows, digest, sealed_at=at)


def _time(value: object) -> datetime | None:
    """Return microseconds as a time; ``None`` for a value that is none."""
    try:
        return EPOCH + value * MICROSECOND if isinstance(value, int) else None
    except OverflowError:
        return None
