"""Many rows of several tables, written by one statement on PostgreSQL.

A round trip costs more than the rows, and their values travel as one array for each column.  SQLite has no round trips
and no arrays: there each row is a call of the driver.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from tang_attest.store.database.composed import Composed
from tang_attest.store.database.sql import steady

#: Before the name of a parameter that is a column's new value: SQLAlchemy reserves the plain names.
_NEW: Final = "new_"

Rows = Sequence[Mapping[str, Any]]


class Insertion:
    """Insert rows with the columns *names* of *table*."""

    def __init__(self, table: sa.Table, *names: str) -> None:
        self.table, self.names = table, names
        self.alone: Final = Composed(
            table.insert().values({name: sa.bindparam(f"{_NEW}{name}") for name in names}),
            *(f"{_NEW}{name}" for name in names),
        )

    def together(self, given: sa.FromClause) -> Any:
        """Return the statement for all rows of *given*."""
        return self.table.insert().from_select(list(self.names), sa.select(*given.c))


class Update:
    """Change the columns *names* of the rows of *table* that their ids name."""

    def __init__(self, table: sa.Table, *names: str) -> None:
        self.table, self.names = table, ("id", *names)
        self.alone: Final = Composed(
            table.update()
            .where(table.c.id == sa.bindparam(f"{_NEW}id"))
            .values({name: sa.bindparam(f"{_NEW}{name}") for name in names}),
            *(f"{_NEW}{name}" for name in self.names),
        )

    def together(self, given: sa.FromClause) -> Any:
        """Return the statement for all rows of *given*."""
        new = {name: given.c[name] for name in self.names[1:]}
        return self.table.update().where(self.table.c.id == given.c.id).values(new)


class Batched:
    """*writes*, of different tables.  PostgreSQL runs them at one moment, so none may depend on another."""

    def __init__(self, *writes: Insertion | Update) -> None:
        self._writes = writes

    def write(self, connection: sa.Connection, *rows: Rows) -> None:
        """Write *rows*, some for each of the writes, in their order; each row has all of its columns."""
        if connection.dialect.name == "postgresql":
            values = {
                f"{place}_{name}": [row[name] for row in mine]
                for place, (write, mine) in enumerate(zip(self._writes, rows, strict=True))
                for name in write.names
            }
            self._together.rows(connection, **values)
            return
        for write, mine in zip(self._writes, rows, strict=True):
            if mine:
                write.alone.write(
                    connection, [{f"{_NEW}{name}": row[name] for name in write.names} for row in mine]
                )

    @cached_property
    def _together(self) -> Composed:
        *first, last = (write.together(_given(place, write)) for place, write in enumerate(self._writes))
        return Composed(last.add_cte(*(each.cte(f"write_{place}") for place, each in enumerate(first))))


def _given(place: int, write: Insertion | Update) -> sa.FromClause:
    """Return the rows that the parameters of *write* give, one array for each column."""
    first, *others = (
        sa.bindparam(f"{place}_{name}", type_=postgresql.ARRAY(write.table.c[name].type))
        for name in write.names
    )
    # The longest of the arrays is the number of rows that PostgreSQL expects.
    rows = sa.func.unnest(steady(first), *others).table_valued(*write.names, name=f"given_{place}")
    return rows.render_derived()
