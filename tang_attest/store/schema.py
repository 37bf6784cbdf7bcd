"""The schema's revision: made by ``migrations``, checked when the registry is opened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from tang_attest.errors import Malformed, Unavailable

if TYPE_CHECKING:
    from alembic.config import Config

#: The newest revision in ``migrations/versions``.  Revisions are numbers of four digits and are compared as text.
REVISION: Final = "0003"

_VERSION_TABLE: Final = sa.table("alembic_version", sa.column("version_num"))


def check(connection: sa.Connection) -> None:
    """Raise ``state-missing`` when the schema is absent or older, ``setting-invalid`` when it is newer."""
    found = _revision(connection)
    if found == REVISION:
        return
    if found is None:
        raise Unavailable("state-missing", "The database has no tables yet.")
    if found < REVISION:
        raise Unavailable(
            "state-missing",
            f"The database has schema {found}; this program needs {REVISION}, which is newer.",
        )
    raise Malformed(
        "setting-invalid",
        f"The database has schema {found}; this program knows only {REVISION}, which is older.",
    )


def upgrade(connection: sa.Connection) -> None:
    """Bring the schema to :data:`REVISION`.  Raises ``setting-invalid`` when it is newer."""
    from alembic import command  # here, because opening does not need it and it is slow to load

    found = _revision(connection)
    if found is not None and found > REVISION:
        check(connection)
    command.upgrade(config(connection), REVISION)


def config(connection: sa.Connection) -> Config:
    """Alembic's configuration, without a file: *connection* is the one that ``env.py`` uses."""
    from alembic.config import Config

    settings = Config()
    settings.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    settings.set_main_option("path_separator", "os")
    settings.attributes["connection"] = connection
    return settings


def _revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table(_VERSION_TABLE.name):
        return None
    revision = connection.scalar(sa.select(_VERSION_TABLE.c.version_num))
    return None if revision is None else str(revision)
