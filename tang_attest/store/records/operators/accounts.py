"""Operators, and the links that register their passkeys."""

from __future__ import annotations

from dataclasses import asdict, fields
from datetime import datetime

import sqlalchemy as sa

from tang_attest.errors import Conflict, NotFound
from tang_attest.ports.operators import Operator, OperatorRole, Passkey, RegistrationLink
from tang_attest.store.database import authentic, tables
from tang_attest.store.records.operators import passkeys, sessions

_operator, _link = tables.operator, tables.operator_link
_OPERATOR_COLUMNS = tuple(field.name for field in fields(Operator))
_LINK_COLUMNS = tuple(field.name for field in fields(RegistrationLink))


def add(connection: sa.Connection, operator: Operator, link: RegistrationLink) -> None:
    """Add *operator* and *link*.  Raises ``name-taken``."""
    if authentic.insert(connection, _operator, asdict(operator)) is None:
        raise Conflict("name-taken", f"There is, or was, an operator '{operator.name}'.")
    _add_link(connection, link)


def find(connection: sa.Connection, name: str) -> Operator | None:
    """The operator *name*, removed or not."""
    row = authentic.one(connection, _operator, _operator.c.name == name)
    return None if row is None else operator_of(row)


def get(connection: sa.Connection, name: str) -> Operator:
    """The operator *name*.  Raises ``not-found``, also for a removed one."""
    found = find(connection, name)
    if found is None or found.removed_at is not None:
        raise NotFound("not-found", f"There is no operator '{name}'.")
    return found


def load(connection: sa.Connection) -> list[Operator]:
    """The operators that were not removed, by name."""
    there = _operator.c.removed_at.is_(None)
    return [
        operator_of(row)
        for row in authentic.load_ours(connection, _operator, there, order_by=[_operator.c.name])
    ]


def set_role(connection: sa.Connection, name: str, role: OperatorRole) -> None:
    """Give the operator *name* a role.  Raises ``not-found``."""
    _change(connection, name, {"role": role.value})


def reset(connection: sa.Connection, name: str, link: RegistrationLink) -> None:
    """Withdraw all that lets *name* in, and add *link*.  Raises ``not-found``."""
    get(connection, name)
    _withdraw(connection, name, link.created_at)
    _add_link(connection, link)


def remove(connection: sa.Connection, name: str, at: datetime) -> None:
    """Remove the operator *name*, and withdraw all that lets them in.  Raises ``not-found``."""
    _change(connection, name, {"removed_at": at})
    _withdraw(connection, name, at)


def find_link(connection: sa.Connection, digest: bytes) -> RegistrationLink | None:
    """The link whose text has this SHA-256."""
    row = authentic.one(connection, _link, _link.c.digest == digest)
    return None if row is None else _link_of(row)


def load_links(connection: sa.Connection) -> list[RegistrationLink]:
    """The links that were not used, oldest first."""
    unused = _link.c.used_at.is_(None)
    rows = authentic.load_ours(connection, _link, unused, order_by=[_link.c.created_at, _link.c.digest])
    return [_link_of(row) for row in rows]


def register(connection: sa.Connection, link: bytes, passkey: Passkey) -> None:
    """Use up a link, and add the passkey that it registers.  Raises ``link-used``, ``passkey-invalid``."""
    get(connection, passkey.operator)
    unused = sa.and_(_link.c.digest == link, _link.c.operator == passkey.operator, _link.c.used_at.is_(None))
    if authentic.update(connection, _link, unused, {"used_at": passkey.created_at}) != 1:
        raise Conflict("link-used", "This link was used before, or a newer one replaced it.")
    passkeys.add(connection, passkey)


def operator_of(row: authentic.Row) -> Operator:
    """The operator of a row."""
    return Operator(**{name: row[name] for name in _OPERATOR_COLUMNS} | {"role": OperatorRole(row["role"])})


def _change(connection: sa.Connection, name: str, changes: dict[str, object]) -> None:
    there = sa.and_(_operator.c.name == name, _operator.c.removed_at.is_(None))
    if authentic.update(connection, _operator, there, changes) != 1:
        raise NotFound("not-found", f"There is no operator '{name}'.")


def _withdraw(connection: sa.Connection, name: str, at: datetime) -> None:
    """Revoke the passkeys and links of *name*, and end their sessions."""
    passkeys.revoke(connection, name, at)
    unused = sa.and_(_link.c.operator == name, _link.c.used_at.is_(None))
    authentic.update(connection, _link, unused, {"used_at": at})
    sessions.end_all(connection, name, at)


def _add_link(connection: sa.Connection, link: RegistrationLink) -> None:
    if authentic.insert(connection, _link, asdict(link)) is None:
        raise Conflict("name-taken", "There is this link already.")


def _link_of(row: authentic.Row) -> RegistrationLink:
    return RegistrationLink(**{name: row[name] for name in _LINK_COLUMNS})
