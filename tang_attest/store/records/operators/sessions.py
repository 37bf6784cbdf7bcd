"""Sessions of operators."""

from __future__ import annotations

from dataclasses import asdict, fields
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa

from tang_attest.errors import Conflict, NotFound
from tang_attest.ports.operators import StoredSession
from tang_attest.store.database import authentic, tables

_session = tables.operator_session
_COLUMNS = tuple(field.name for field in fields(StoredSession))
#: The age at which a session is forgotten; none lasts for so long.
_FORGOTTEN: Final = timedelta(days=2)


def add(connection: sa.Connection, session: StoredSession) -> None:
    """Add *session*, and forget old ones.  Raises ``passkey-invalid`` for a challenge that was used."""
    authentic.delete(connection, _session, _session.c.created_at < session.created_at - _FORGOTTEN)
    if authentic.insert(connection, _session, asdict(session)) is None:
        raise Conflict("passkey-invalid", "This assertion opened a session before.")


def find(connection: sa.Connection, digest: bytes) -> StoredSession | None:
    """The session whose secret has this SHA-256, ended or not."""
    row = authentic.one(connection, _session, _session.c.digest == digest)
    return None if row is None else _from_row(row)


def load(connection: sa.Connection) -> list[StoredSession]:
    """The sessions that were not ended, oldest first."""
    running = _session.c.ended_at.is_(None)
    rows = authentic.load_ours(
        connection, _session, running, order_by=[_session.c.created_at, _session.c.digest]
    )
    return [_from_row(row) for row in rows]


def use(connection: sa.Connection, digest: bytes, at: datetime) -> None:
    """Note that a session is used; one that was ended meanwhile stays so."""
    running = sa.and_(_session.c.digest == digest, _session.c.ended_at.is_(None))
    authentic.update(connection, _session, running, {"used_at": at})


def end(connection: sa.Connection, digest: bytes, at: datetime) -> None:
    """End a session.  Raises ``not-found``."""
    running = sa.and_(_session.c.digest == digest, _session.c.ended_at.is_(None))
    if authentic.update(connection, _session, running, {"ended_at": at}) != 1:
        raise NotFound("not-found", "This session is over already.")


def end_all(connection: sa.Connection, operator: str, at: datetime) -> int:
    """End the sessions of *operator*; return their number."""
    theirs = sa.and_(_session.c.operator == operator, _session.c.ended_at.is_(None))
    return authentic.update(connection, _session, theirs, {"ended_at": at})


def _from_row(row: authentic.Row) -> StoredSession:
    return StoredSession(**{name: row[name] for name in _COLUMNS})
