"""Statements, and a condition, that every group of tables needs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.types import TypeDecorator, TypeEngine

T = TypeVar("T")

#: Rows of a query that fills up a page: any number of them may be left out.
_FEWEST: Final = 100


def insert_new(connection: sa.Connection, table: sa.Table, values: Mapping[str, object]) -> bool:
    """Insert *values* unless a unique constraint forbids it; return True if they were inserted.

    A look before the insertion would leave a moment for another transaction.  ``ON CONFLICT DO NOTHING`` has
    none: it waits for a transaction that is inserting the same, and then counts one row or zero.
    """
    return connection.execute(_insert_unless_there(table, connection.dialect.name), values).rowcount == 1


@functools.cache
def _insert_unless_there(table: sa.Table, dialect: str) -> sa.Insert:
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    return insert(table).on_conflict_do_nothing()


def full_page(
    read: Callable[[Any | None, int], Sequence[Any]], keep: Callable[[Sequence[Any]], Sequence[T]], limit: int
) -> list[T]:
    """Return *limit* values, or fewer at the end: what *keep* leaves out makes no page shorter.

    *read* returns at most so many rows after a row, or the first ones; *keep* makes at most one value of each.
    """
    found: list[T] = []
    last, count = None, limit
    while len(found) < limit:
        rows = read(last, count)
        found += keep(rows)
        if len(rows) < count:
            break
        last, count = rows[-1], max(limit - len(found), _FEWEST)
    return found[:limit]


def changed(connection: sa.Connection, statement: sa.Update | sa.Delete) -> int:
    """Run *statement*; return the number of rows it met.  A compare-and-set compares the number to learn if
    it won.
    """
    return connection.execute(statement).rowcount


class _Values(TypeDecorator[Any]):
    """Many values in one parameter: an array, or in SQLite, which has none, a JSON text."""

    impl = sa.JSON
    cache_ok = True

    def __init__(self, item: TypeEngine[Any]) -> None:
        super().__init__()
        self.item = item

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.ARRAY(self.item))
        return dialect.type_descriptor(sa.JSON())


def steady(values: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """Return *values*, a parameter that is an array, so that PostgreSQL plans a statement once for any length of it.

    PostgreSQL sees the length of a plain parameter, finds that its one plan for all of them has to expect ten values, and
    makes a plan for each execution: that costs more than a look into an index.  It does not look into a sub-select.
    """
    return sa.cast(sa.select(values).scalar_subquery(), values.type)


class among(sa.ColumnElement[bool]):  # noqa: N801 - it reads like a function of SQLAlchemy's
    """True where *column* has one of the values of the parameter *name*, a list of plain numbers or texts.

    Like ``IN`` with an expanding parameter, which makes a new statement for each length of the list: that one
    has to be composed each time (a third of the time of a query here) and prepared by PostgreSQL for each
    length.
    """

    inherit_cache = True
    _traverse_internals = [  # noqa: RUF012 - SQLAlchemy's own protocol
        ("column", sa.sql.visitors.InternalTraversal.dp_clauseelement),
        ("values", sa.sql.visitors.InternalTraversal.dp_clauseelement),
    ]

    def __init__(self, column: sa.Column[Any], name: str) -> None:
        self.type = sa.Boolean()
        self.column: sa.ColumnElement[Any] = column
        self.values: sa.ColumnElement[Any] = sa.bindparam(name, type_=_Values(column.type))

    def self_group(self, against: Any = None) -> among:
        """As it is: the ``= 1`` that SQLAlchemy writes after a truth value would keep SQLite from using an
        index.
        """
        return self


@compiles(among, "sqlite")
def _among_json(element: among, compiler: Any, **options: Any) -> str:
    column, values = (compiler.process(part, **options) for part in (element.column, element.values))
    return f"{column} IN (SELECT value FROM json_each({values}))"  # noqa: S608 - a column and a placeholder


@compiles(among, "postgresql")
def _among_array(element: among, compiler: Any, **options: Any) -> str:
    column, values = (compiler.process(part, **options) for part in (element.column, steady(element.values)))
    return f"{column} = ANY({values})"
