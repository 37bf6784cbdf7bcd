"""Classes of failures: the database is away, or it refused the statement."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError, StatementError

from tang_attest.errors import Unavailable

_log: Final = logging.getLogger(__name__)

#: SQLSTATE classes (PostgreSQL, appendix A) that blame the values: data exception, integrity constraint
#: violation.
_VALUES_REFUSED: Final = ("22", "23")


class Spoiled(Unavailable):
    """The database works and refused a statement: the fault is in the values to be written."""


class Tampered(Unavailable):
    """The database works and has a row that this server did not write."""


def is_away(error: Exception) -> bool:
    """Return True if the database could not be used at all: every other waiting item would fail as well."""
    return isinstance(error, Unavailable) and not isinstance(error, Spoiled | Tampered)


@contextmanager
def translate_errors() -> Iterator[None]:
    """Turn the database's errors into ``unavailable``; the cause goes to the log, without statement or
    values.
    """
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        spoiled = isinstance(error, StatementError) and blames_values(error)
        _log.error("the database failed: %s", _cause(error, with_message=not spoiled))
        kind = Spoiled if spoiled else Unavailable
        raise kind("unavailable", "The database could not be used.") from error


def sqlstate(error: BaseException) -> str | None:
    """Return PostgreSQL's code of five characters, if *error* has one."""
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    return state if isinstance(state, str) else None


def blames_values(error: StatementError) -> bool:
    """Return True if the statement failed because of the values to be written."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return False
    if (state := sqlstate(error)) is not None:
        return state.startswith(_VALUES_REFUSED)
    if isinstance(
        _driver_error(error), ValueError
    ):  # asyncpg cannot encode a value; its class is InterfaceError
        return True
    return not isinstance(error, OperationalError | InterfaceError)


def _driver_error(error: BaseException) -> BaseException:
    """Return the driver's exception under that of SQLAlchemy."""
    original = getattr(error, "orig", None)
    return error if original is None else original.__cause__ or original


def _cause(error: BaseException, *, with_message: bool) -> str:
    cause = _driver_error(error)
    name = type(cause).__name__
    if not with_message:
        return name  # a driver repeats the value that it cannot encode
    # The first argument only: PostgreSQL's DETAIL has keys in it.
    return f"{name}: {cause.args[0] if cause.args else cause}"
