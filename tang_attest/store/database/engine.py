"""A database: something that runs a function over a :class:`sqlalchemy.Connection` in one transaction.

The functions (``devices``, ``policies``, ...) are written once, without ``async``.  PostgreSQL runs them
through asyncpg and ``run_sync``.  SQLite runs them in a thread of its own, because there every statement is a
function call of some microseconds: aiosqlite sends each to its thread and back and takes six times as long
(measured: 470 us against 80 us a statement).  Short work of the request path runs in the event loop
(docs/decisions/store/0049-the-event-loop-writes.md).
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import unquote

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import SQLAlchemyError

from tang_attest.errors import Malformed, Unavailable
from tang_attest.store.database.authentic import Authenticity
from tang_attest.store.database.failures import translate_errors
from tang_attest.store.database.postgresql import ServerDatabase

T = TypeVar("T")
Work = Callable[[sa.Connection], T]

#: A reader never waits for the writer (WAL), so two are enough: the request path and the operator.
READERS: Final = 2
#: Connections beside those of the readers: the writing thread's, and two that the event loop uses.
_OTHERS: Final = 3
#: Time that a writer waits for another process that writes.
BUSY_MS: Final = 5000
#: Time between two looks whether it still does.
_LOOK_MS: Final = 1
_BEGIN_TO_WRITE: Final = "BEGIN IMMEDIATE"
_LAST_PORT: Final = 65_535
_CHECKPOINT_TRIES: Final = 3
#: The bits of SQLite's result codes that have the primary one.
_PRIMARY: Final = 0xFF
#: SQLAlchemy before 2.1 leaves the escapes in the path of a URL.  asyncpg gets that path as it is, and reads
#: them itself.
_ESCAPES_STAY: Final = sa.make_url("sqlite:///%25").database == "%25"

_PRAGMAS: Final = (
    f"busy_timeout={BUSY_MS}",
    "journal_mode=WAL",
    "synchronous=FULL",  # a commit returns when it is on the disk; NORMAL would lose decisions in a power cut
    "foreign_keys=ON",
    "secure_delete=ON",  # a destroyed key is overwritten with zeros
)


class Database(Protocol):
    """Runs work in transactions.  Raises ``unavailable`` when the database is away, and the errors of the
    work.
    """

    async def read(self, work: Work[T]) -> T:
        """Run *work*, which only reads, in a transaction begun now."""

    async def look(self, work: Work[T]) -> T:
        """Run *work*, one query of a few rows, without a transaction."""

    async def write(self, work: Work[T]) -> T:
        """Run *work*; its changes are durable on return, or undone when it raises."""

    async def write_briefly(self, work: Work[T]) -> T:
        """Run *work*, a few short statements, as :meth:`write` does."""

    async def erase_log(self) -> None:
        """Leave nothing of deleted rows in a log that this process can reach."""

    async def close(self) -> None:
        """Finish pending work and release every connection."""


def parse_url(text: str) -> URL:
    """A database URL: ``sqlite:///PATH`` or ``postgresql://...``, with or without a driver's name.

    Raises ``setting-invalid``, also for a password or passphrase: a URL is seen in process lists, unit files, logs
    and shell histories.
    """
    try:
        url = sa.make_url(text)
        backend = url.get_backend_name()
        has_port = 0 <= (url.port or 0) <= _LAST_PORT
    except (SQLAlchemyError, ValueError):  # ValueError: a port that is no number
        # The text may hold a password: it is not repeated.
        raise Malformed("setting-invalid", "The database setting is not a URL.") from None
    if not has_port:
        raise Malformed("setting-invalid", "The database setting is not a URL: a port is 1 to 65535.")
    if backend == "sqlite":
        if not url.database or url.database == ":memory:":
            raise Malformed(
                "setting-invalid",
                "A SQLite database needs a path, such as sqlite:////var/lib/tang-attest/tang-attest.db.",
            )
        path = unquote(url.database) if _ESCAPES_STAY else url.database
        return url.set(drivername="sqlite", database=path)
    if backend == "postgresql":
        if url.password is not None or "password" in url.query:
            raise Malformed(
                "setting-invalid",
                "The database URL has a password in it: put it into a password file (passfile=...).",
            )
        if "sslpassword" in url.query:
            raise Malformed(
                "setting-invalid",
                "The database URL has the passphrase of sslkey in it: take it off the key, which only the service reads.",
            )
        return url.set(drivername="postgresql+asyncpg")
    raise Malformed("setting-invalid", f"The database is '{backend}'; SQLite and PostgreSQL are supported.")


def connect(url: URL, *, create: bool = False, patient: bool = False) -> Database:
    """The database at *url*; nothing is opened yet.  *patient* lifts the limits on time, for an operator's
    long work.

    Raises ``state-missing`` when it is a file that does not exist and *create* is false.
    """
    if url.get_backend_name() == "sqlite":
        return SqliteDatabase(url, create=create)
    return ServerDatabase(url, patient=patient)


class SqliteDatabase:
    """One file.  One thread writes, so that this process never waits for its own lock; others read.

    The event loop writes what is short, while that thread has nothing to do.
    """

    def __init__(self, url: URL, *, create: bool) -> None:
        path = Path(url.database or "")
        if create:
            _create_private(path)
        elif not _is_file(path):
            raise Unavailable("state-missing", f"There is no database at {path}.")
        self._place = str(path)
        self._engine = sa.create_engine(url, pool_size=READERS + _OTHERS, max_overflow=0)
        #: For :meth:`look`; statements of :mod:`~tang_attest.store.database.composed` only, so no transaction begins.
        self._looking: sa.Connection | None = None
        #: For :meth:`write_briefly`; it never waits for a lock.
        self._jotting: sa.Connection | None = None
        sa.event.listen(self._engine, "connect", _prepare_connection)
        sa.event.listen(self._engine, "begin", _begin)
        self._writer = ThreadPoolExecutor(1, "tang-attest-write")
        #: The last job of the thread that writes.  Once it is done, all are.
        self._last_job: Future[Any] = Future()
        self._last_job.set_result(None)
        self._readers = ThreadPoolExecutor(READERS, "tang-attest-read")
        self._closed = False

    async def read(self, work: Work[T]) -> T:
        """See :class:`Database`."""
        return await self._run(self._readers, lambda: self._transact(work, write=False))

    async def look(self, work: Work[T]) -> T:
        """See :class:`Database`.  It runs in the event loop: a reader waits for nobody, and a thread costs more than
        the query.
        """
        with translate_errors(self._place):
            if self._looking is None or self._closed:
                self._looking = await self._run(self._readers, self._engine.connect)  # may have to wait
            return work(self._looking)

    async def write(self, work: Work[T]) -> T:
        """See :class:`Database`.  When the caller is cancelled, the work is still done."""
        return await self._run_in_writer(lambda: self._transact(work, write=True))

    async def write_briefly(self, work: Work[T]) -> T:
        """See :class:`Database`.  It runs in the event loop, and the writing thread only commits; both would wait for the
        interpreter at each statement otherwise.

        While another process writes, or this one in its thread, the work waits in the thread as any other.
        """
        with translate_errors(self._place):
            if (connection := await self._begin_at_once()) is not None:
                transaction = connection.begin()  # for SQLAlchemy's own statements; it sends nothing
                try:
                    result = work(connection)
                except BaseException:
                    self._end_jotting(connection)
                    raise
                # Nothing is awaited before the thread has this job, so that no other comes before it: one would wait
                # for the lock that this transaction holds.
                await self._run_in_writer(lambda: self._commit(connection, transaction))
                return result
        return await self.write(work)

    async def erase_log(self) -> None:
        """Move the write-ahead log into the file and cut it to nothing."""
        await self._run_in_writer(self._checkpoint)

    async def close(self) -> None:
        """See :class:`Database`."""
        self._closed = True
        for executor in (self._writer, self._readers):
            await asyncio.to_thread(executor.shutdown)
        for connection in (self._looking, self._jotting):
            if connection is not None:
                connection.close()
        await asyncio.to_thread(self._engine.dispose)

    async def _run(self, executor: ThreadPoolExecutor, job: Callable[[], T]) -> T:
        if self._closed:
            raise Unavailable("unavailable", "The server is stopping.")
        return await asyncio.get_running_loop().run_in_executor(executor, job)

    async def _run_in_writer(self, job: Callable[[], T]) -> T:
        """Run *job* in the thread that writes, also when the caller is cancelled meanwhile."""
        if self._closed:
            raise Unavailable("unavailable", "The server is stopping.")
        self._last_job = submitted = self._writer.submit(job)
        return await asyncio.shield(asyncio.wrap_future(submitted))

    async def _begin_at_once(self) -> sa.Connection | None:
        """Return a connection that has begun to write; ``None`` when somebody else writes, or is about to."""
        if self._jotting is None and not self._closed:
            self._jotting = await self._run(self._readers, self._connect_without_patience)  # may have to wait
        if self._jotting is None or self._closed or not self._last_job.done():
            return None
        try:
            _driver(self._jotting).execute(_BEGIN_TO_WRITE)
        except sqlite3.OperationalError as error:
            if _is_busy(error):
                return None
            raise
        return self._jotting

    def _connect_without_patience(self) -> sa.Connection:
        connection = self._engine.connect().execution_options(tang_attest_begin=None)  # for _begin
        _driver(connection).execute("PRAGMA busy_timeout=0")
        return connection

    def _commit(self, connection: sa.Connection, transaction: sa.Transaction) -> None:
        try:
            with transaction:
                pass
        except BaseException:
            self._end_jotting(connection)
            raise

    def _end_jotting(self, connection: sa.Connection) -> None:
        """Undo the changes of :meth:`write_briefly`, and use another connection from now on."""
        self._jotting = None
        connection.invalidate()
        connection.close()

    def _transact(self, work: Work[T], *, write: bool) -> T:
        with translate_errors(self._place), self._engine.connect() as connection:
            connection.execution_options(
                tang_attest_begin=_BEGIN_TO_WRITE if write else "BEGIN"
            )  # for _begin
            with connection.begin():
                return work(connection)

    def _checkpoint(self) -> None:
        with translate_errors(self._place), self._engine.connect() as connection:
            raw = _driver(connection)
            for _ in range(_CHECKPOINT_TRIES):
                blocked, _, _ = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                if not blocked:
                    return
        raise Unavailable(
            "unavailable",
            "The change is made, but another process reads the database, so old content stays in its log.",
        )


class AuthenticDatabase:
    """A :class:`Database` over *database* that binds the check of seals (authentic.py) to each piece of work."""

    def __init__(self, database: Database, authenticity: Authenticity) -> None:
        self._database, self._authenticity = database, authenticity

    async def read(self, work: Work[T]) -> T:
        """See :class:`Database`."""
        return await self._database.read(self._authenticity.bind(work)[0])

    async def look(self, work: Work[T]) -> T:
        """See :class:`Database`."""
        return await self._database.look(self._authenticity.bind(work)[0])

    async def write(self, work: Work[T]) -> T:
        """See :class:`Database`."""
        bound, transaction = self._authenticity.bind(work)
        result = await self._database.write(bound)
        transaction.commit()
        return result

    async def write_briefly(self, work: Work[T]) -> T:
        """See :class:`Database`."""
        bound, transaction = self._authenticity.bind(work)
        result = await self._database.write_briefly(bound)
        transaction.commit()
        return result

    async def erase_log(self) -> None:
        """See :class:`Database`."""
        await self._database.erase_log()

    async def close(self) -> None:
        """See :class:`Database`."""
        await self._database.close()


def _is_file(path: Path) -> bool:
    """Return True if *path* is a file.  Raises ``permission-denied`` if that is not for this user to know, or to read."""
    try:
        found = stat.S_ISREG(path.stat().st_mode)
    except PermissionError:
        readable = False
    except (OSError, ValueError):
        return False
    else:
        readable = not found or os.access(path, os.R_OK, effective_ids=True)
    if not readable:
        raise Unavailable("permission-denied", f"You may not read the database at {path}.")
    return found


def _create_private(path: Path) -> None:
    """Make an empty file that only its owner reads; SQLite gives its log the same mode."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise Unavailable("file-unreadable", f"Cannot create {path}: {error.strerror}.") from error


def _prepare_connection(connection: DBAPIConnection, _record: object) -> None:
    """Set the options that SQLite forgets with each connection."""
    raw: Any = connection
    raw.isolation_level = None  # transactions begin where _begin says, not where Python guesses
    raw.text_factory = _text
    for pragma in _PRAGMAS:
        raw.execute(f"PRAGMA {pragma}")


def _text(stored: bytes) -> str:
    """Return a text of the database.  One that is not UTF-8 is a value like another, and fails no query of others."""
    return stored.decode("utf-8", "surrogateescape")


def _begin(connection: sa.Connection) -> None:
    """Begin.  A writer takes the lock now: a lock taken later cannot wait, it fails (SQLITE_BUSY_SNAPSHOT)."""
    statement = connection.get_execution_options().get("tang_attest_begin", "BEGIN")
    if statement == _BEGIN_TO_WRITE:
        _take_lock(connection)
    elif statement is not None:
        connection.exec_driver_sql(statement)


def _take_lock(connection: sa.Connection) -> None:
    """Begin to write, and look each millisecond while another process writes, for the time of ``busy_timeout``.

    SQLite itself looks less and less often the longer it may wait, at last each 100 ms: a process that writes one batch
    after the other leaves gaps far shorter than that, and the others would starve.
    """
    raw = _driver(connection)
    (patience_ms,) = raw.execute("PRAGMA busy_timeout").fetchone()
    deadline = time.monotonic() + patience_ms / 1000
    raw.execute(f"PRAGMA busy_timeout={_LOOK_MS}")
    try:
        while True:
            try:
                connection.exec_driver_sql(_BEGIN_TO_WRITE)
            except sa.exc.OperationalError as error:
                if not _is_busy(error.orig) or time.monotonic() >= deadline:
                    raise
            else:
                return
    finally:
        raw.execute(f"PRAGMA busy_timeout={patience_ms}")


def _is_busy(error: BaseException | None) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & _PRIMARY == sqlite3.SQLITE_BUSY


def _driver(connection: sa.Connection) -> sqlite3.Connection:
    raw = connection.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)  # noqa: S101 - for the type checker
    return raw
