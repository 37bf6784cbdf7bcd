"""Everything that a database holds, out and in: for backups, and for the way from SQLite to PostgreSQL.

Tables are those that the database itself describes, so an archive of an older schema can be made and loaded:
it is loaded into that schema, and the caller upgrades it.  :mod:`tang_attest.store.maintenance.archive_file`
has the form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, BinaryIO, Final

import sqlalchemy as sa
from sqlalchemy.exc import StatementError

from tang_attest.errors import Conflict, Unavailable
from tang_attest.store.database import ids, schema, tables
from tang_attest.store.database.failures import blames_values
from tang_attest.store.maintenance.archive_file import BACKUP, Reader, Writer, damaged, decode

#: Rows of one SELECT and of one INSERT.  The longest rows have an event log of 128 KiB.
_PAGE: Final = 200

#: Gets the number of rows done, and of all rows (0: unknown).
Progress = Callable[[int, int], None]


def dump(
    connection: sa.Connection, file: BinaryIO, key: bytes, head: Mapping[str, object], progress: Progress
) -> dict[str, int]:
    """Write everything that *connection* sees to *file*; the rows of each table.

    *key* (32 bytes) authenticates, *head* are members for the first line.  Raises ``state-missing``,
    ``schema-new``.
    """
    revision = schema.revision(connection)
    if revision is None:
        raise Unavailable("state-missing", "The database has no tables yet.")
    schema.refuse_newer(revision)
    found = ours(connection)
    writer = Writer(file)
    writer.head(BACKUP, {"schema": revision, **head})
    rows = _dump_rows(connection, found, writer, progress)
    writer.line({"rows": rows, "last_ids": ids.last_ids(connection, found)})
    writer.end(key)
    file.flush()
    return rows


def load(connection: sa.Connection, reader: Reader, key: bytes, progress: Progress) -> dict[str, int]:
    """Fill an empty database from *reader*, in its schema, and compare; return the number of rows of each
    table.

    The caller rolls back when it raises ``database-not-empty``, ``backup-damaged``, ``backup-foreign``,
    ``schema-new``.
    """
    schema.refuse_newer(reader.revision)
    _refuse_filled(connection, reader.revision)
    schema.upgrade(connection, reader.revision)
    found = ours(connection)
    content, foot = _load_rows(connection, reader, found, progress)
    reader.check_end(key)
    # Read the copy again: the same rows, byte for byte.
    check = Writer(None)
    rows = _dump_rows(connection, found, check, lambda _done, _total: None)
    if rows != foot["rows"] or check.digest.digest() != content:
        raise damaged("the database holds something else than was read")
    ids.continue_after(connection, found, foot.get("last_ids") or {})
    return rows


def keep_writers_out(connection: sa.Connection) -> None:
    """Let no other transaction write until this one ends; on SQLite its beginning did that."""
    if connection.dialect.name == "postgresql":
        quote = connection.dialect.identifier_preparer.quote
        if names := ", ".join(quote(table.name) for table in ours(connection)):
            connection.exec_driver_sql(f"LOCK TABLE {names} IN SHARE ROW EXCLUSIVE MODE")


def ours(connection: sa.Connection) -> list[sa.Table]:
    """Our tables as the database describes them, each after those it refers to."""
    metadata = sa.MetaData()
    metadata.reflect(connection, only=lambda name, _: name in tables.metadata.tables)
    return metadata.sorted_tables


def count(connection: sa.Connection, table: sa.Table) -> int:
    """The rows of *table*."""
    return int(connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0)


def _dump_rows(
    connection: sa.Connection, found: Sequence[sa.Table], writer: Writer, progress: Progress
) -> dict[str, int]:
    total = sum(count(connection, table) for table in found)
    rows: dict[str, int] = {}
    done = 0
    for table in found:
        writer.line({"table": table.name, "columns": [column.name for column in table.columns]})
        before = done
        for row in chain.from_iterable(_pages(connection, table)):
            writer.line(list(row))
            done += 1
            progress(done, total)
        rows[table.name] = done - before
    return rows


def _pages(connection: sa.Connection, table: sa.Table) -> Iterator[Sequence[sa.Row[Any]]]:
    """The rows of *table*, some at a time, in the order of their keys' bytes: databases agree on no other.

    No cursor: PostgreSQL alters no table in a transaction that has one open, and a restore may have to
    upgrade.
    """
    server = connection.dialect.name == "postgresql"
    columns = list(table.primary_key.columns)
    key = [
        column.collate("C") if server and isinstance(column.type, sa.Text) else column for column in columns
    ]
    query = sa.select(table).order_by(*key).limit(_PAGE)
    page = connection.execute(query).all()
    while page:
        yield page
        last = (sa.literal(getattr(page[-1], column.name), column.type) for column in columns)
        page = connection.execute(query.where(sa.tuple_(*key) > sa.tuple_(*last))).all()


def _load_rows(
    connection: sa.Connection, reader: Reader, found: Sequence[sa.Table], progress: Progress
) -> tuple[bytes, dict[str, Any]]:
    """Insert every row; the digest of the tables and rows as they were written, and the foot."""
    content = Writer(None)
    insert = _Inserter(connection, found)
    done = 0
    for value in reader.content():
        if isinstance(value, list):
            insert.add(value)
            done += 1
            progress(done, 0)
        elif "rows" in value:
            insert.finish()
            return content.digest.digest(), value
        else:
            insert.begin(value)
        content.line(value)
    raise AssertionError("content() ends with the foot")


class _Inserter:
    """Rows of one table after the other, many at a time."""

    def __init__(self, connection: sa.Connection, found: Sequence[sa.Table]) -> None:
        self._connection = connection
        self._by_name = {table.name: table for table in found}
        self._table: sa.Table | None = None
        self._columns: list[str] = []
        self._rows: list[dict[str, Any]] = []

    def begin(self, value: Mapping[str, Any]) -> None:
        self.finish()
        self._table = self._by_name.get(str(value.get("table")))
        self._columns = [] if self._table is None else [column.name for column in self._table.columns]
        if self._table is None or value.get("columns") != self._columns:
            raise damaged("it has a table that its schema does not have")

    def add(self, row: list[Any]) -> None:
        if self._table is None or len(row) != len(self._columns):
            raise damaged("a row has not the columns of its table")
        self._rows.append(dict(zip(self._columns, map(decode, row), strict=True)))
        if len(self._rows) >= _PAGE:
            self.finish()

    def finish(self) -> None:
        if self._rows and self._table is not None:
            try:
                self._connection.execute(self._table.insert(), self._rows)
            except StatementError as error:
                if blames_values(error):
                    raise damaged(f"the rows of table {self._table.name} do not fit") from error
                raise
        self._rows = []


def _refuse_filled(connection: sa.Connection, revision: str) -> None:
    found = schema.revision(connection)
    if found is None:
        return
    for table in ours(connection):
        if count(connection, table):
            raise Conflict("database-not-empty", f"The database has rows already, in table {table.name}.")
    if found != revision:
        raise Conflict(
            "database-not-empty", f"The database has the tables of schema {found}, not {revision}."
        )
