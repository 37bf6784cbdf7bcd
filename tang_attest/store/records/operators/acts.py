"""Requests for signatures, and approvals that wait for further operators."""

from __future__ import annotations

from dataclasses import asdict, fields
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa

from tang_attest.errors import Conflict, NotFound
from tang_attest.ports.operators import ActRequest, StoredApproval
from tang_attest.store.database import authentic, tables

_request, _pending = tables.act_request, tables.pending_approval
_REQUEST_COLUMNS = tuple(field.name for field in fields(ActRequest))
_PENDING_COLUMNS = tuple(field.name for field in fields(StoredApproval))
#: The age at which a request is forgotten, by which it has long expired on every server's clock.
_FORGOTTEN: Final = timedelta(days=1)


def add_request(connection: sa.Connection, request: ActRequest) -> None:
    """Add *request*, and forget old ones that were never signed."""
    unsigned = sa.and_(_request.c.created_at < request.created_at - _FORGOTTEN, _request.c.used_at.is_(None))
    authentic.delete(connection, _request, unsigned)
    authentic.insert(connection, _request, asdict(request))


def find_request(connection: sa.Connection, number: str) -> ActRequest | None:
    """The request *number*, used or not."""
    row = authentic.one(connection, _request, _request.c.number == number)
    return None if row is None else ActRequest(**{name: row[name] for name in _REQUEST_COLUMNS})


def use_request(connection: sa.Connection, number: str, at: datetime) -> None:
    """Use up a request, and forget old ones.  Raises ``act-used``."""
    unused = sa.and_(_request.c.number == number, _request.c.used_at.is_(None))
    if authentic.update(connection, _request, unused, {"used_at": at}) != 1:
        raise Conflict("act-used", "This signature was used before.")
    authentic.delete(connection, _request, _request.c.created_at < at - _FORGOTTEN)


def load_pending(connection: sa.Connection) -> list[StoredApproval]:
    """The pending approvals, oldest first."""
    rows = authentic.load_ours(connection, _pending, order_by=[_pending.c.created_at, _pending.c.number])
    return [_approval_of(row) for row in rows]


def find_pending(connection: sa.Connection, subject: bytes) -> StoredApproval | None:
    """The pending approval of *subject*."""
    row = authentic.one(connection, _pending, _pending.c.subject == subject)
    return None if row is None else _approval_of(row)


def save_pending(
    connection: sa.Connection, approval: StoredApproval, expected: StoredApproval | None
) -> None:
    """Add *approval*, or put it in the place of *expected*.  Raises ``act-changed``."""
    if expected is not None:
        same = sa.and_(
            _pending.c.number == expected.number, _pending.c.signatures == list(expected.signatures)
        )
        if authentic.delete(connection, _pending, same) != 1:
            raise _changed()
    if authentic.insert(connection, _pending, asdict(approval)) is None:
        raise _changed()


def remove_pending(connection: sa.Connection, number: str) -> None:
    """Delete a pending approval.  Raises ``not-found``."""
    if authentic.delete(connection, _pending, _pending.c.number == number) != 1:
        raise NotFound("not-found", "This approval does not wait any more.")


def complete_pending(connection: sa.Connection, number: str) -> None:
    """Delete the pending approval that an act completes.  Raises ``act-changed``."""
    if authentic.delete(connection, _pending, _pending.c.number == number) != 1:
        raise _changed()


def _changed() -> Conflict:
    return Conflict("act-changed", "The pending approval was changed meanwhile.")


def _approval_of(row: authentic.Row) -> StoredApproval:
    return StoredApproval(**{name: row[name] for name in _PENDING_COLUMNS})
