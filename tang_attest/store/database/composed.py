"""Statements of the request path, composed once.

For each execution, SQLAlchemy looks up the text that it composed before, and makes a context, a cursor and rows with
names: some ten times the time that SQLite itself takes, and four times that of PostgreSQL's driver.  A
:class:`Composed` statement keeps its text and the conversions of its parameters, and asks the driver.

Rows are sequences in the order of the columns, and unconverted: a query has columns of
:attr:`~tang_attest.store.database.authentic.Form.raw`, or of types that the driver reads by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Dialect


class _Text(NamedTuple):
    """A statement for one kind of database: ``order`` has its parameters, each with its conversion; ``fixed``
    the values that the statement has itself, which are converted with the others.
    """

    sql: str
    order: list[tuple[str, Callable[[Any], Any] | None]]
    fixed: Mapping[str, Any]

    def bind(self, values: Mapping[str, Any]) -> list[Any]:
        known = {**self.fixed, **values} if self.fixed else values
        return [known[name] if convert is None else convert(known[name]) for name, convert in self.order]


class Composed:
    """*statement*, a query or a change of rows, whose parameters are always *names*."""

    def __init__(self, statement: Any, *names: str) -> None:
        self._statement, self._names = statement, names
        self._texts: dict[str, _Text] = {}

    def rows(self, connection: sa.Connection, **values: Any) -> Sequence[Any]:
        """Return the rows of the query."""
        text = self._text(connection.dialect)
        bound = text.bind(values)
        if connection.dialect.name == "sqlite":
            found: Sequence[Any] = _driver(connection).execute(text.sql, bound).fetchall()
            return found
        return ask(connection, text.sql, bound)

    def write(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run the statement for each of *rows*, on SQLite: elsewhere rows share a statement (batched.py)."""
        text = self._text(connection.dialect)
        _driver(connection).executemany(text.sql, [text.bind(row) for row in rows])

    def _text(self, dialect: Dialect) -> _Text:
        if (text := self._texts.get(dialect.name)) is None:
            text = self._texts[dialect.name] = self._compose(dialect)
        return text

    def _compose(self, dialect: Dialect) -> _Text:
        alone = isinstance(self._statement, sa.Insert) and self._statement.select is None
        compiled = self._statement.compile(dialect=dialect, column_keys=list(self._names) if alone else None)
        binds = compiled.binds
        order = [(name, _conversion(binds[name].type, dialect)) for name in compiled.positiontup]
        return _Text(
            str(compiled), order, {name: bind.value for name, bind in binds.items() if not bind.required}
        )


def _conversion(kind: Any, dialect: Dialect) -> Callable[[Any], Any] | None:
    """Return the function that makes the driver's value of a value, if it has to be made."""
    if isinstance(kind, postgresql.ARRAY):  # of one dimension
        item = _conversion(kind.item_type, dialect)
        return None if item is None else lambda values: [item(value) for value in values]
    conversion: Callable[[Any], Any] | None = kind.dialect_impl(dialect).bind_processor(dialect)
    return conversion


def ask(connection: sa.Connection, sql: str, bound: Sequence[Any]) -> Sequence[Any]:
    """Return the answer of PostgreSQL's driver, which is asynchronous.  Raises the driver's own errors."""
    adapted: Any = connection.connection.dbapi_connection
    found: Sequence[Any] = adapted.run_async(lambda driver: driver.fetch(sql, *bound))
    return found


def _driver(connection: sa.Connection) -> Any:
    return connection.connection.driver_connection
