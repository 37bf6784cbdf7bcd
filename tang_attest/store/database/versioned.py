"""The registry's version: a number that differs after each change of rows that an appraisal rests on.

A server keeps rows of a key for a moment (recalled.py).  They are true for as long as the version is the same, and
a decision compares the two under its locks (locks.py).

Rules of this module:

* Triggers of the database change the number, in the transaction of the change.  It does not matter which program
  or person made the change.
* The number of one commit is never that of another, not even after a restore: it grows by a random step.
* Tables in :data:`WATCHED` have the triggers.  The device's row is not among them: each boot moves it, and a
  decision compares the row itself.
* On PostgreSQL the triggers are deferred to the commit: the row of the version is then the last lock of each
  transaction that takes it, so that none waits for another in a circle.  A decision only reads it.

Not checked here: changes by somebody who may alter the database's triggers (docs/threat-model.md).
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from tang_attest.store.database.composed import Composed

#: Beside the tables (tables.py): a backup and a copy have rows that count, and a new database has a number of its
#: own.
metadata: Final = sa.MetaData()
registry_version: Final = sa.Table(
    "registry_version",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("version", sa.BigInteger, nullable=False),
)

#: The tables whose every row counts.  A migration calls :func:`watch` for each further one.
WATCHED: Final = ("policy", "reference_state", "rollout", "sealed_key")

#: The number of the only row.
_ONLY: Final = 1
_READ: Final = sa.select(registry_version.c.version).where(registry_version.c.id == _ONLY)
#: The version, as a column of another query: both are then of one moment.
VERSION: Final = _READ.scalar_subquery()
_VERSION: Final = Composed(_READ)

_EVENTS: Final = ("insert", "update", "delete")
#: Steps below 2^30: 64 bits last for billions of changes.
_SQLITE_COUNT: Final = "UPDATE registry_version SET version = version + 1 + (random() & 1073741823)"
# The condition: once for each transaction, of however many rows.
_FUNCTION: Final = """
CREATE FUNCTION registry_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE registry_version SET version = version + 1 + floor(random() * 1073741824)::bigint
  WHERE xmin::text <> (txid_current() % 4294967296)::text;
  RETURN NULL;
END $$
"""


def create(connection: sa.Connection) -> None:
    """Make the table and the number, and on PostgreSQL the function of the triggers."""
    registry_version.create(connection)
    connection.execute(registry_version.insert().values(id=_ONLY, version=1))
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(_FUNCTION)


def watch(connection: sa.Connection, table: str) -> None:
    """Let each change of a row of *table* change the version; for migrations."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(
            f"CREATE CONSTRAINT TRIGGER {table}_changed AFTER INSERT OR UPDATE OR DELETE ON {table} "
            "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION registry_changed()"
        )
        return
    for event in _EVENTS:
        trigger = f"CREATE TRIGGER {table}_{event}_changed AFTER {event.upper()} ON {table}"
        connection.exec_driver_sql(f"{trigger} BEGIN {_SQLITE_COUNT}; END")


def read(connection: sa.Connection) -> int | None:
    """Return the version; ``None`` when the database has lost it, so that nothing equals it."""
    found = _VERSION.rows(connection)
    return found[0][0] if found else None
