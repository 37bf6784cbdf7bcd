"""The migrations make the tables that the code uses."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from tang_attest.store import SqlStore, upgrade
from tang_attest.store.database import schema, tables, versioned
from tests import registry
from tests.fakes import ROW_KEY


async def test_migrations_make_the_tables(store: SqlStore) -> None:
    """A column that is in one place only is a difference."""

    def differences(connection: sa.Connection) -> object:
        ours = [tables.metadata, versioned.metadata]
        # Its annotation has one, its documentation several.
        return compare_metadata(MigrationContext.configure(connection), ours)  # type: ignore[arg-type]

    assert await store._database.read(differences) == []


async def test_migrations_count_ids_like_the_tables(store: SqlStore) -> None:
    """Schema facts that compare_metadata does not see: AUTOINCREMENT, so that an id is never used again."""

    def statements(connection: sa.Connection) -> dict[str, str]:
        if connection.dialect.name != "sqlite":
            return {}
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'table'"
        return {row.name: row.sql for row in connection.exec_driver_sql(query)}

    for name, sql in (await store._database.read(statements)).items():
        if name in tables.metadata.tables:
            counted = tables.metadata.tables[name].dialect_options["sqlite"]["autoincrement"]
            assert ("AUTOINCREMENT" in sql) == counted, name


async def test_the_newest_revision_is_the_expected_one(store: SqlStore) -> None:
    """And every revision is a number of four digits, so that older and newer mean something."""
    scripts = await store._database.read(
        lambda connection: ScriptDirectory.from_config(schema.config(connection))
    )
    assert scripts.get_heads() == [schema.REVISION]
    for script in scripts.walk_revisions():
        assert len(script.revision) == 4
        assert script.revision.isdecimal()


async def test_tables_made_anew_in_tests_are_those_of_the_migrations(tmp_path: Path) -> None:
    """Other tests repeat what the migrations sent once (``tests/registry.py``): statement by statement the
    same file.
    """
    dumps = []
    with registry.migrated_once():
        for name in ("migrated", "repeated"):
            await upgrade(f"sqlite:///{tmp_path / name}", ROW_KEY)
            with closing(sqlite3.connect(tmp_path / name)) as connection:
                dumps.append(list(connection.iterdump()))
    assert dumps[0] == dumps[1]
