"""Classes of failures: the database is away, or it refused the statement."""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError, StatementError

from tang_attest.errors import TangAttestError, Unavailable

_log: Final = logging.getLogger(__name__)

#: SQLSTATE classes (PostgreSQL, appendix A) that blame the values: data exception, integrity constraint
#: violation.
_VALUES_REFUSED: Final = ("22", "23")


#: Primary result codes of SQLite that speak of the file: it cannot be opened or written, or it is no database.
_PLACE_CODES: Final = frozenset(
    {
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_READONLY_DBMOVED,
        sqlite3.SQLITE_READONLY_DIRECTORY,
    }
)


class Spoiled(Unavailable):
    """The database works and refused a statement: the fault is in the values to be written."""


class Tampered(Unavailable):
    """The database works and has a row that this server did not write."""


class UnreadableValue(ValueError):
    """A column of a table without seals holds what no column type of ours writes; *subject* names it."""

    def __init__(self, subject: str) -> None:
        super().__init__(f"{subject} was not written by this server")


def is_away(error: Exception) -> bool:
    """Return True if the database could not be used at all: every other waiting item would fail as well."""
    return isinstance(error, Unavailable) and not isinstance(error, Spoiled | Tampered)


@contextmanager
def translate_errors(place: str = "") -> Iterator[None]:
    """Turn the database's errors into ``unavailable``; the cause goes to the log, without statement or
    values.  :class:`UnreadableValue` becomes ``registry-tampered``.

    *place* is the path or the URL of the database, without a password: it is for the log, not for clients.
    """
    try:
        yield
    except UnreadableValue as error:
        _log.error("registry-tampered: %s", error)
        raise Tampered("registry-tampered", f"{error}.") from error
    except database_errors() as error:
        spoiled = blames_values(error)
        cause = _cause(error, with_message=not spoiled)
        _log.error(
            "the database failed: %s", f"{cause} ({place})" if place and _concerns_place(error) else cause
        )
        kind = Spoiled if spoiled else Unavailable
        raise kind("unavailable", "The database could not be used.") from error


def database_errors() -> tuple[type[Exception], ...]:
    """Return the classes of a database's errors.

    SQLAlchemy 2.0 hands on what asyncpg raises while it connects; only a process that uses PostgreSQL has loaded it.
    """
    asyncpg = sys.modules.get("asyncpg")
    own = () if asyncpg is None else (asyncpg.PostgresError, asyncpg.InterfaceError, *confused())
    return (SQLAlchemyError, sqlite3.Error, OSError, *own)


def confused() -> tuple[type[Exception], ...]:
    """Return the class of the error of a connection that PostgreSQL ended while nobody asked, if in use."""
    asyncpg = sys.modules.get("asyncpg")
    return () if asyncpg is None else (asyncpg.InternalClientError,)


def sqlstate(error: BaseException) -> str | None:
    """Return PostgreSQL's code of five characters, if *error* has one."""
    state = getattr(getattr(error, "orig", error), "sqlstate", None)
    return state if isinstance(state, str) else None


def blames_values(error: Exception) -> bool:
    """Return True if a statement failed because of the values to be written."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return False
    if (state := sqlstate(error)) is not None:
        return state.startswith(_VALUES_REFUSED)
    if isinstance(
        _driver_error(error), ValueError
    ):  # asyncpg cannot encode a value; its class is InterfaceError
        return True
    return isinstance(error, StatementError) and not isinstance(error, OperationalError | InterfaceError)


def _driver_error(error: BaseException) -> BaseException:
    """Return the driver's exception under that of SQLAlchemy."""
    original = getattr(error, "orig", None)
    return error if original is None else original.__cause__ or original


def describe(problem: TangAttestError) -> str:
    """Return the cause of an error of :func:`translate_errors` in words, or nothing if it has none."""
    cause = problem.__cause__
    return "" if cause is None else _cause(cause, with_message=not isinstance(problem, Spoiled))


def _concerns_place(error: BaseException) -> bool:
    """Return True if the file or the server could not be opened or used; a lock of another program is elsewhere."""
    cause = _driver_error(error)
    if isinstance(cause, sqlite3.Error):
        return getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_BUSY) in _PLACE_CODES
    return isinstance(cause, OSError)


def _cause(error: BaseException, *, with_message: bool) -> str:
    cause = _driver_error(error)
    name = type(cause).__name__
    if not with_message and not (isinstance(cause, sqlite3.Error) and _concerns_place(error)):
        return name  # a driver repeats the value that it cannot encode
    if isinstance(cause, OSError):  # asyncpg's own, for a socket that is not there, has no words
        words = cause.strerror or (os.strerror(cause.errno) if cause.errno else str(cause))
        return f"{words}: {cause.filename}" if cause.filename else words
    # The first argument only: PostgreSQL's DETAIL has keys in it.
    return f"{name}: {cause.args[0] if cause.args else cause}"
