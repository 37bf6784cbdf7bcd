"""PostgreSQL, through asyncpg: for any number of replicas.

Rules of this module:

* Every wait ends.  A transaction that takes too long loses its connection: that ends every wait of the driver
  at once, also for a server that is frozen, which no cancel request would reach.
* A write is READ COMMITTED: each compare-and-set checks its condition again under the row's lock.  A read is
  one snapshot (REPEATABLE READ, read only), so that the queries of one answer agree.
* A transaction that PostgreSQL rolled back because of others is repeated, a few times.  A connection that was
  found dead is replaced once, and so is one that begins no transaction, such as one to a server that became a
  replica.  A COMMIT without an answer is never repeated.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL

from tang_attest.errors import Malformed, Unavailable
from tang_attest.store.database.failures import confused, database_errors, sqlstate, translate_errors

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

T = TypeVar("T")
Work = Callable[[sa.Connection], T]

#: Connections of each process, at most.  The request path has one batch of each kind at a time: finds, server
#: keys, writes; the rest is for enrollments and operators.
CONNECTIONS: Final = 5
#: Seconds to get a connection, and seconds that a transaction may take.  A waiting machine gets an error
#: after that.
CONNECT_S: Final = 5.0
TRANSACTION_S: Final = 5.0
_TRIES: Final = 5
_PAUSE_S: Final = 0.02

#: Seconds that the server has to let connections go when this process stops.
GOODBYE_S: Final = 2.0

#: Beginnings of transactions.  A decision counts once it is on the disk; the default of the cluster, or of a
#: connection that a pooler lends, may be another.
_WRITE: Final = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL synchronous_commit TO on"
_READ: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

#: Rolled back because of other transactions: serialization failure, deadlock, and a foreign key whose row
#: went after it was looked up, which the next try will not find.
_ROLLED_BACK: Final = frozenset({"40001", "40P01", "23503"})
#: "cached plan must not change result type": the schema was upgraded; the driver has forgotten its plans now.
_PLAN_OUTDATED: Final = "0A000"


class ServerDatabase:
    """:class:`tang_attest.store.database.engine.Database` on a PostgreSQL server.

    *url* has no password in it.  *patient* is for an operator's long work (an upgrade, a copy): no limit on
    time, and no second try.
    """

    def __init__(self, url: URL, *, patient: bool = False) -> None:
        # Not at the top: these are a fifth of the time that `serve` takes to start.
        from sqlalchemy.ext.asyncio import create_async_engine

        if "PGPASSWORD" in os.environ:
            raise Malformed(
                "setting-invalid", "PGPASSWORD is set: put the password into a password file (passfile=...)."
            )
        self._transaction_s = None if patient else TRANSACTION_S
        self._tries = 1 if patient else _TRIES  # an operator's work reads a file, which is read once
        self._url, self._place = url, url.render_as_string(hide_password=True)
        # The driver parses the URL itself, so that it means the same as to psql (sslmode, passfile, two hosts
        # ...).
        self._engine: AsyncEngine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=self._connect,
            isolation_level="AUTOCOMMIT",  # transactions begin where _Attempt says
            poolclass=sa.NullPool,
        )
        self._places = asyncio.Semaphore(CONNECTIONS)
        self._idle: list[_Held] = []
        self._closed = False

    async def look(self, work: Work[T]) -> T:
        """See :class:`~tang_attest.store.database.engine.Database`."""
        return await self._run(None, work)

    async def read(self, work: Work[T]) -> T:
        """See :class:`~tang_attest.store.database.engine.Database`."""
        return await self._run(_READ, work)

    async def write(self, work: Work[T]) -> T:
        """See :class:`~tang_attest.store.database.engine.Database`.  *work* may be called again after a
        rollback.
        """
        return await self._run(_WRITE, work)

    async def write_briefly(self, work: Work[T]) -> T:
        """See :class:`~tang_attest.store.database.engine.Database`."""
        return await self.write(work)

    async def erase_log(self) -> None:
        """Do nothing: the server's log, and rows that VACUUM has not reached yet, belong to the server."""

    async def close(self) -> None:
        """See :class:`~tang_attest.store.database.engine.Database`."""
        self._closed = True
        try:
            async with asyncio.timeout(GOODBYE_S):
                while self._idle:
                    await self._idle[-1].driver.close()
                    await self._idle.pop().connection.close()
        except database_errors():  # also the time that is over
            await self._drop_all()
        await self._engine.dispose()

    async def _drop_all(self) -> None:
        while self._idle:
            held = self._idle.pop()
            held.driver.terminate()
            await held.connection.close()

    async def _run(self, begin: str | None, work: Work[T]) -> T:
        if self._closed:  # the engine itself would connect again
            raise Unavailable("unavailable", "The server is stopping.")
        with translate_errors(self._place):
            for number in range(1, self._tries + 1):
                held = await self._take()
                attempt = _Attempt(held, self._transaction_s)
                try:
                    return await attempt.run(begin, work)
                except database_errors() as error:
                    if number == self._tries or not attempt.may_repeat(error, number):
                        raise
                finally:
                    await self._give_back(held)
                await asyncio.sleep(_PAUSE_S * number)
        raise AssertionError("the last try returned or raised")

    async def _take(self) -> _Held:
        """Return the connection that was used last, or a new one, for this caller alone.

        SQLAlchemy's pool does more for each transaction than the driver does for a query.
        """
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._places.acquire()
        except TimeoutError:
            raise TimeoutError(f"no connection was free for {CONNECT_S:g} seconds") from None
        if self._idle:
            return self._idle.pop()
        try:
            async with asyncio.timeout(2 * CONNECT_S):
                connection = await self._engine.connect()
            return _Held(connection, (await connection.get_raw_connection()).driver_connection)
        except BaseException:
            self._places.release()
            raise

    async def _give_back(self, held: _Held) -> None:
        self._idle.append(held)
        try:
            if self._closed or not held.is_usable():
                # If one is dead, so are most others: their server was stopped.
                await self._drop_all()
        finally:
            self._places.release()

    async def _connect(self) -> Any:
        import asyncpg  # as above

        try:
            driver = await asyncpg.connect(
                self._url.set(drivername="postgresql").render_as_string(hide_password=False),
                timeout=CONNECT_S,
                server_settings={"application_name": "tang-attest"},
            )
        except (ValueError, asyncpg.InterfaceError) as error:
            # The driver names the part of the URL or the environment that it cannot read.
            raise Malformed("setting-invalid", f"Setting database: {_first_line(error)}.") from None
        try:
            await driver.execute(self._limits(), timeout=CONNECT_S)
        except BaseException:
            driver.terminate()
            raise
        return driver

    def _limits(self) -> str:
        """Return the statements by which the server, too, gives up a lock or a wait without a waiting client.

        They are no parameters of the connection's start: PgBouncer refuses those, or takes and ignores them.
        """
        limit_ms = 0 if self._transaction_s is None else int(self._transaction_s * 1000)
        return (
            f"SET statement_timeout TO {limit_ms}; SET idle_in_transaction_session_timeout TO {2 * limit_ms}"
        )


@dataclass(frozen=True, slots=True)
class _Held:
    """A connection of this process, and the driver's connection in it."""

    connection: AsyncConnection
    driver: Any

    def is_usable(self) -> bool:
        """Return True if the next transaction may have it."""
        driver = self.driver
        return not (driver.is_closed() or driver.is_in_transaction() or self.connection.in_transaction())


class _Attempt:
    """One try at one transaction."""

    def __init__(self, held: _Held, limit_s: float | None) -> None:
        self._held, self._driver, self._limit_s = held, held.driver, limit_s
        self._committing = False
        self._expired = False

    async def run(self, begin: str | None, work: Work[T]) -> T:
        """Return the result of *work*, once it is committed; without *begin* each statement is one."""
        watchdog = None
        if self._limit_s is not None:
            watchdog = asyncio.get_running_loop().call_later(self._limit_s, self._expire)
        try:
            if begin is None:
                return await self._held.connection.run_sync(work)
            return await self._transact(begin, work)
        except confused():
            self._driver.terminate()
            raise
        finally:
            if watchdog is not None:
                watchdog.cancel()

    def may_repeat(self, error: Exception, number: int) -> bool:
        """True when nothing of the transaction can have been committed, and another try may do better."""
        if self._driver.is_closed():
            return number == 1 and not self._committing and not self._expired
        return sqlstate(error) in _ROLLED_BACK or (number == 1 and sqlstate(error) == _PLAN_OUTDATED)

    async def _transact(self, begin: str, work: Work[T]) -> T:
        def within(connection: sa.Connection) -> T:
            with connection.begin():  # for SQLAlchemy's own statements; it sends nothing
                return work(connection)

        try:
            await self._driver.execute(begin)
        except BaseException:
            # Nor will the next transaction begin here, and a new connection may lead to another server.
            self._driver.terminate()
            raise
        try:
            result = await self._held.connection.run_sync(within)
        except BaseException:
            if not self._driver.is_closed():
                await self._driver.execute("ROLLBACK")
            raise
        self._committing = True
        if (ended := await self._driver.execute("COMMIT")) != "COMMIT":
            # PostgreSQL's answer to the end of a transaction in which a statement failed.
            raise Unavailable("unavailable", f"The database answered COMMIT with {ended}.")
        return result

    def _expire(self) -> None:
        self._expired = True
        self._driver.terminate()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")
