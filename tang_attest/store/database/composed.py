"""Statements of the request path, composed once.

For each execution, SQLAlchemy looks up the text that it composed before, and makes a context, a cursor and rows with
names: some ten times the time that SQLite itself takes.  A :class:`Composed` statement keeps its text and the
conversions of its parameters, and asks SQLite's driver.  PostgreSQL's driver begins its transactions with
SQLAlchemy's first statement, and there a round trip is most of the cost: SQLAlchemy executes there.

Rows are plain tuples on SQLite, in the order of the columns, and unconverted: a query has columns of
:attr:`~tang_attest.store.database.authentic.Form.raw`, or of types that the driver reads by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa


class Composed:
    """*statement*, a query or a change of rows, whose parameters are always *names*."""

    def __init__(self, statement: Any, *names: str) -> None:
        self._statement, self._names = statement, names
        self._text = ""
        self._order: list[tuple[str, Any]] = []
        self._fixed: dict[str, Any] = {}

    def rows(self, connection: sa.Connection, **values: Any) -> Sequence[Any]:
        """Return the rows of the query."""
        if connection.dialect.name != "sqlite":
            return connection.execute(self._statement, values).all()
        self._compose(connection)
        found: Sequence[Any] = _driver(connection).execute(self._text, self._bind(values)).fetchall()
        return found

    def write(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run the statement for each of *rows*."""
        if connection.dialect.name != "sqlite":
            connection.execute(self._statement, rows)
            return
        self._compose(connection)
        _driver(connection).executemany(self._text, [self._bind(row) for row in rows])

    def _bind(self, values: Mapping[str, Any]) -> list[Any]:
        known = {**self._fixed, **values} if self._fixed else values
        return [known[name] if convert is None else convert(known[name]) for name, convert in self._order]

    def _compose(self, connection: sa.Connection) -> None:
        if self._text:
            return
        dialect = connection.dialect
        keys = list(self._names) if isinstance(self._statement, sa.Insert) else None
        compiled = self._statement.compile(dialect=dialect, column_keys=keys)
        binds = compiled.binds
        # Values that the statement has itself; they are converted with the others.
        self._fixed = {name: bind.value for name, bind in binds.items() if not bind.required}
        self._order = [
            (name, binds[name].type.dialect_impl(dialect).bind_processor(dialect))
            for name in compiled.positiontup
        ]
        self._text = str(compiled)


def _driver(connection: sa.Connection) -> Any:
    return connection.connection.driver_connection
