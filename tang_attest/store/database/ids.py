"""The counters behind ``id`` columns: an id is never given twice, also not after the rows moved elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

_SQLITE_LAST: Final = sa.text("SELECT seq FROM sqlite_sequence WHERE name = :counter")
_SQLITE_FORGET: Final = sa.text("DELETE FROM sqlite_sequence WHERE name = :counter")
_SQLITE_SET: Final = sa.text("INSERT INTO sqlite_sequence (name, seq) VALUES (:counter, :last)")
_SQLITE_TABLE: Final = sa.text("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = :name")
_SERVER_LAST: Final = sa.text("SELECT pg_sequence_last_value(to_regclass(:counter))")
_SERVER_SET: Final = sa.text("SELECT setval(to_regclass(:counter), :last)").bindparams(
    sa.bindparam("last", type_=sa.BigInteger())
)


def last_ids(connection: sa.Connection, found: Sequence[sa.Table]) -> dict[str, int]:
    """For each table that counts, the last id that was ever given."""
    query = _SQLITE_LAST if _is_sqlite(connection) else _SERVER_LAST
    return {
        table: int(connection.scalar(query, {"counter": counter}) or 0)
        for table, counter in _counters(connection, found).items()
    }


def continue_after(connection: sa.Connection, found: Sequence[sa.Table], last: Mapping[str, Any]) -> None:
    """Let the ids of each table go on after its highest row, and after *last*."""
    for table in found:
        for counter in _counters(connection, [table]).values():
            highest = connection.scalar(sa.select(sa.func.max(table.c.id)))
            if value := max(int(highest or 0), int(last.get(table.name) or 0)):
                _set(connection, counter, value)


def _set(connection: sa.Connection, counter: str, last: int) -> None:
    if _is_sqlite(connection):
        connection.execute(_SQLITE_FORGET, {"counter": counter})
        connection.execute(_SQLITE_SET, {"counter": counter, "last": last})
    else:
        connection.execute(_SERVER_SET, {"counter": counter, "last": last})


def _counters(connection: sa.Connection, found: Sequence[sa.Table]) -> dict[str, str]:
    """The tables that count, each with the name of its counter."""
    names = [table.name for table in found if "id" in table.columns]
    if _is_sqlite(connection):
        # Without AUTOINCREMENT an id is the highest of its table and one more.
        texts = {name: str(connection.scalar(_SQLITE_TABLE, {"name": name})) for name in names}
        return {name: name for name, text in texts.items() if "AUTOINCREMENT" in text}
    sequence = sa.func.pg_get_serial_sequence
    return {name: str(connection.scalar(sa.select(sequence(name, "id")))) for name in names}


def _is_sqlite(connection: sa.Connection) -> bool:
    return connection.dialect.name == "sqlite"
