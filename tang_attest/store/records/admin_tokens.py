"""Bearer tokens of the admin API."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from tang_attest.errors import Conflict, NotFound
from tang_attest.ports.admin import AdminToken, Scope
from tang_attest.store.database import authentic, tables
from tang_attest.store.records import policies

_token = tables.admin_token


def add(connection: sa.Connection, token: AdminToken) -> None:
    """Add *token*.  Raises ``not-found`` when it is limited to a policy that is not there, ``name-taken``."""
    for policy in token.policies or ():
        policies.hold(connection, policy)
    row = {
        "digest": token.digest,
        "name": token.name,
        "scopes": list(token.scopes),
        "policies": None if token.policies is None else list(token.policies),
        "created_at": token.created_at,
        "created_by": token.created_by,
        "expires_at": token.expires_at,
        "revoked_at": token.revoked_at,
    }
    if authentic.insert(connection, _token, row) is None:
        raise Conflict("name-taken", f"There is, or was, an admin token '{token.name}'.")


def find(connection: sa.Connection, digest: bytes) -> AdminToken | None:
    """The token whose text has this SHA-256."""
    row = authentic.one(connection, _token, _token.c.digest == digest)
    return None if row is None else _from_row(row)


def load(connection: sa.Connection) -> list[AdminToken]:
    """Every token, newest first."""
    newest_first = [_token.c.created_at.desc(), _token.c.name]
    return [_from_row(row) for row in authentic.load_ours(connection, _token, order_by=newest_first)]


def revoke(connection: sa.Connection, name: str, at: datetime) -> None:
    """Revoke the token *name*.  Raises ``not-found`` when there is none that could still be used."""
    unrevoked = sa.and_(_token.c.name == name, _token.c.revoked_at.is_(None))
    if authentic.update(connection, _token, unrevoked, {"revoked_at": at}) != 1:
        raise NotFound("not-found", f"There is no admin token '{name}' that is not revoked.")


def _from_row(row: authentic.Row) -> AdminToken:
    return AdminToken(
        digest=row["digest"],
        name=row["name"],
        scopes=tuple(Scope(scope) for scope in row["scopes"]),
        policies=None if row["policies"] is None else tuple(row["policies"]),
        created_at=row["created_at"],
        created_by=row["created_by"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
    )
