"""Passkeys of operators."""

from __future__ import annotations

from dataclasses import asdict, fields
from datetime import datetime

import sqlalchemy as sa

from tang_attest.errors import Conflict, Refused
from tang_attest.ports.operators import Passkey
from tang_attest.store.database import authentic, tables

_passkey = tables.passkey
_COLUMNS = tuple(field.name for field in fields(Passkey))


def add(connection: sa.Connection, passkey: Passkey) -> None:
    """Add *passkey*.  Raises ``passkey-invalid`` for a credential that is known already."""
    if authentic.insert(connection, _passkey, asdict(passkey)) is None:
        raise Conflict("passkey-invalid", "This passkey is registered already.")


def find(connection: sa.Connection, credential_id: bytes) -> Passkey | None:
    """The passkey with this credential id, revoked or not."""
    row = authentic.one(connection, _passkey, _passkey.c.credential_id == credential_id)
    return None if row is None else _from_row(row)


def load(connection: sa.Connection) -> list[Passkey]:
    """Every passkey, oldest first; without rows that are not ours."""
    oldest_first = [_passkey.c.created_at, _passkey.c.credential_id]
    return [_from_row(row) for row in authentic.load_ours(connection, _passkey, order_by=oldest_first)]


def revoke(connection: sa.Connection, operator: str, at: datetime) -> None:
    """Revoke every passkey of *operator*."""
    theirs = sa.and_(_passkey.c.operator == operator, _passkey.c.revoked_at.is_(None))
    authentic.update(connection, _passkey, theirs, {"revoked_at": at})


def use(connection: sa.Connection, operator: str, credential_id: bytes, sign_count: int) -> None:
    """Count an assertion of *operator*, under the row's lock.

    A count that does not rise is that of a copied passkey; one that is always 0 is not counted (WebAuthn
    Level 2, 6.1.1).  Raises ``passkey-unknown`` for one that is revoked, ``passkey-invalid``.
    """
    theirs = sa.and_(
        _passkey.c.credential_id == credential_id,
        _passkey.c.operator == operator,
        _passkey.c.revoked_at.is_(None),
    )
    found = authentic.load(connection, _passkey, theirs, lock=True)
    if not found:
        raise Refused("passkey-unknown", "This passkey was revoked, or its operator removed.")
    known = found[0]["sign_count"]
    if (sign_count or known) and sign_count <= known:
        sentence = f"The passkey's counter is {sign_count}, and was {known} before: it may have been copied."
        raise Refused("passkey-invalid", sentence)
    if sign_count != known:
        authentic.update(connection, _passkey, theirs, {"sign_count": sign_count})


def _from_row(row: authentic.Row) -> Passkey:
    return Passkey(**{name: row[name] for name in _COLUMNS})
