"""The schema's revision: made by ``migrations``, checked when the store is opened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from tang_attest.errors import Malformed, Unavailable

if TYPE_CHECKING:
    from alembic.config import Config

#: The newest revision in ``migrations/versions``.  Revisions are numbers of four digits and are compared as
#: text.
REVISION: Final = "0020"

_VERSION_TABLE: Final = sa.table("alembic_version", sa.column("version_num"))
#: Of ``pg_advisory_xact_lock``: replicas that upgrade at once take turns, and the second has nothing left to
#: do.
_UPGRADE_LOCK: Final = 0x74616E67  # "tang"


def check(connection: sa.Connection) -> None:
    """Raise ``state-missing`` when the schema is absent, ``schema-old``, ``schema-new``, or
    ``setting-invalid``.

    The last is for a PostgreSQL server that does not flush: it would lose decisions that were acknowledged.
    """
    found = revision(connection)
    if found is None:
        raise Unavailable("state-missing", "The database has no tables yet.")
    if found < REVISION:
        raise Unavailable("schema-old", f"The database has schema {found}; this program needs {REVISION}.")
    refuse_newer(found)
    if connection.dialect.name == "postgresql" and not flushes(connection):
        raise Malformed(
            "setting-invalid", "Setting database: the server runs with fsync=off, so it may lose decisions."
        )


def refuse_newer(found: str) -> None:
    """Raise ``schema-new`` when *found* is newer than this program knows."""
    if found > REVISION:
        raise Unavailable("schema-new", f"The schema is {found}; this program knows only {REVISION}.")


def flushes(connection: sa.Connection) -> bool:
    """True when a PostgreSQL server has ``fsync`` on."""
    return bool(connection.scalar(sa.select(sa.func.current_setting("fsync"))) == "on")


def upgrade(connection: sa.Connection, to: str = REVISION) -> tuple[str | None, str]:
    """Bring the schema to the revision *to*; return the old revision and the new one.

    Raises ``schema-new``.
    """
    from alembic import command  # here, because opening does not need it and it is slow to load

    take_turns(connection)
    found = revision(connection)
    if found is not None:
        refuse_newer(found)
    command.upgrade(config(connection), to)
    return found, to


def take_turns(connection: sa.Connection) -> None:
    """Wait until no other replica upgrades; until the transaction ends, none begins."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_UPGRADE_LOCK)))


def revision(connection: sa.Connection) -> str | None:
    """The schema's revision, or ``None``: there are no tables."""
    if not sa.inspect(connection).has_table(_VERSION_TABLE.name):
        return None
    found = connection.scalar(sa.select(_VERSION_TABLE.c.version_num))
    return None if found is None else str(found)


def config(connection: sa.Connection) -> Config:
    """Alembic's configuration, without a file: *connection* is the one that ``env.py`` uses."""
    from alembic.config import Config

    settings = Config()
    settings.set_main_option(
        "script_location", str(Path(__file__).parents[1] / "migrations").replace("%", "%%")
    )
    settings.set_main_option("path_separator", "os")
    settings.set_main_option("recursive_version_locations", "true")  # a folder has few files
    settings.attributes["connection"] = connection
    return settings
