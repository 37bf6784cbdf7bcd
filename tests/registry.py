"""Things that a registry costs at its start, made once in each process of the tests.

An empty SQLite registry is copied, because migrating one takes half of a test's time. :func:`create` replaces ``upgrade`` where
``open_store`` calls it. Tests of ``upgrade`` itself, ``tang-attest init`` and every program of its own migrate as users do.

A whole installation is copied where servers need not differ in their secrets (:class:`Installations`): making one takes a
third of a server's start.

The migrations run once for each kind of database (:func:`migrated_once`): a restore makes tables too, and a
run of all migrations takes a third of a second.

The driver of PostgreSQL asks for a type that it does not know once (:func:`introspected_once`), and not once in each
connection: a fifth of the time of a test's database.

Statements are compiled to SQL once for each kind of database (:func:`compiled_once`), as a server does in its life; each test has a
database of its own, and would compile all of them again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa
from asyncpg.connection import Connection
from sqlalchemy import event
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.engine import Engine
from sqlalchemy.util import LRUCache

from tang_attest.config import Settings
from tang_attest.keys.secret import make_directory
from tang_attest.server.compose import World
from tang_attest.server.initialize import initialize
from tang_attest.store import upgrade
from tang_attest.store.database import schema
from tang_attest.store.maintenance import archive
from tests.fakes import ROW_KEY

_SQLITE: Final = "sqlite:///"
#: The file; it has tables and no row of ours, so nothing in it depends on a key.
_empty: list[bytes] = []
_migrate: Final = schema.upgrade
#: FirstNormalObjectId of PostgreSQL's transam.h; its own objects have lower numbers.
_FIRST_NORMAL_TYPE: Final = 16384


async def create(url: str, key: bytes) -> None:
    """Make the registry at *url*: a copy where there is no file yet, else with ``upgrade``."""
    path = Path(url.removeprefix(_SQLITE))
    if not url.startswith(_SQLITE) or path.exists() or not path.parent.is_dir():  # noqa: ASYNC240 - a local file
        await upgrade(url, key)
    else:
        await copy_empty(path)


async def copy_empty(path: Path) -> None:
    """Put an empty registry of the newest schema at *path*, readable by its owner only."""
    if not _empty:
        with tempfile.TemporaryDirectory() as directory:
            made = Path(directory) / "registry.db"
            await upgrade(f"{_SQLITE}{made}", ROW_KEY)
            _empty.append(made.read_bytes())
    _write(path, _empty[0])


def _write(path: Path, data: bytes) -> None:
    path.touch(0o600, exist_ok=False)
    path.write_bytes(data)


class Installations:
    """Copies of one installation, all with its secret, its signing key and its first audit entry."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}
        self._thumbprint = ""

    async def make(self, settings: Settings, world: World) -> str:
        """Make an installation as ``initialize`` does; return the thumbprint of its signing key."""
        if not self._files:
            self._thumbprint = await initialize(settings, world)
            self._files = {path.name: path.read_bytes() for path in settings.state.iterdir()}
            return self._thumbprint
        make_directory(settings.state)
        for name, data in self._files.items():
            _write(settings.state / name, data)
        return self._thumbprint


@contextmanager
def compiled_once() -> Iterator[None]:
    """Let all engines of one dialect share their cache of compiled statements, whose keys have the dialect in them."""
    cache: LRUCache[Any, Any] = LRUCache(4000)
    original = Engine.__init__

    def init(engine: Engine, *arguments: Any, **options: Any) -> None:
        original(engine, *arguments, **options)
        engine._compiled_cache = cache

    with pytest.MonkeyPatch.context() as patch:
        for dialect in (SQLiteDialect_pysqlite, PGDialect_asyncpg):
            patch.setattr(dialect, "__hash__", lambda self: hash(type(self)))
            patch.setattr(dialect, "__eq__", lambda self, other: type(self) is type(other))
        patch.setattr(Engine, "__init__", init)
        yield


@contextmanager
def introspected_once() -> Iterator[None]:
    """Let asyncpg ask for PostgreSQL's own types once; their numbers are the same in each database."""
    original = Connection._introspect_types
    found_by_types: dict[frozenset[int], Any] = {}

    async def introspect(connection: Connection, types: set[int], *limits: float | None) -> Any:
        key = frozenset(types)
        if key in found_by_types:
            return found_by_types[key], _NothingSent()
        found, statement = await original(connection, types, *limits)
        if max(key) < _FIRST_NORMAL_TYPE:
            found_by_types[key] = found
        return found, statement

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "_introspect_types", introspect)
        yield


class _NothingSent:
    """In place of the statement that asks for types; none was sent, so none took the place of the caller's."""

    name: Final = "none"


@contextmanager
def migrated_once() -> Iterator[None]:
    """Let ``schema.upgrade`` send to a database without tables the statements that it sent to the first of
    the kind.

    Databases that have tables are migrated.
    """
    sent_by_kind: dict[tuple[str, str], list[tuple[str, Any]]] = {}

    def migrate(connection: sa.Connection, to: str = schema.REVISION) -> tuple[str | None, str]:
        kind = connection.dialect.name, to
        schema.take_turns(connection)
        if schema.revision(connection) is not None:
            return _migrate(connection, to)
        if kind not in sent_by_kind:
            with _noted(connection) as sent:
                result = _migrate(connection, to)
            sent_by_kind[kind] = sent
            return result
        for statement, parameters in sent_by_kind[kind]:
            connection.exec_driver_sql(statement, parameters or None)
        return None, to

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "upgrade", migrate)
        yield


@contextmanager
def _noted(connection: sa.Connection) -> Iterator[list[tuple[str, Any]]]:
    """Note the statements that *connection* sends, but those that only look."""
    sent: list[tuple[str, Any]] = []

    def note(
        _connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool
    ) -> None:
        if not statement.lstrip().startswith(("SELECT", "PRAGMA")):
            sent.append((statement, list(parameters) if many else parameters))

    event.listen(connection, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(connection, "before_cursor_execute", note)


@contextmanager
def described_once() -> Iterator[None]:
    """Let a backup ask a SQLite database for its tables only when no database with the very same tables was
    asked.
    """
    original = archive.ours
    found_by_text: dict[tuple[str, ...], list[sa.Table]] = {}

    def ours(connection: sa.Connection) -> list[sa.Table]:
        if connection.dialect.name != "sqlite":
            return original(connection)
        rows: Sequence[Any] = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master").all()
        text = tuple(f"{name} {sql}" for name, sql in rows)
        if text not in found_by_text:
            found_by_text[text] = original(connection)
        return found_by_text[text]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive, "ours", ours)
        yield
