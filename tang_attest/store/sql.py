"""Two statements that every group of tables needs."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite


def insert_new(connection: sa.Connection, table: sa.Table, values: Mapping[str, object]) -> bool:
    """Insert *values* unless a unique constraint forbids it; true when they were inserted.

    Looking first and inserting then would leave a moment for somebody else.  ``ON CONFLICT DO NOTHING`` has none:
    it waits for a transaction that is inserting the same, and then counts one row or zero.
    """
    return connection.execute(_insert_unless_there(table, connection.dialect.name), values).rowcount == 1


@functools.cache
def _insert_unless_there(table: sa.Table, dialect: str) -> sa.Insert:
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    return insert(table).on_conflict_do_nothing()


def changed(connection: sa.Connection, statement: sa.Update | sa.Delete) -> int:
    """Run *statement*; how many rows it met.  Comparing that number is how a compare-and-set learns who won."""
    return connection.execute(statement).rowcount
