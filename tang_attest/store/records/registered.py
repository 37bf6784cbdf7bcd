"""EKs that an operator registered before their machines enroll."""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime

import sqlalchemy as sa

from tang_attest.errors import Conflict, NotFound
from tang_attest.ports.enrollment import RegisteredEk
from tang_attest.store.database import authentic, tables
from tang_attest.store.records import policies

_registered = tables.registered_ek
_COLUMNS = tuple(field.name for field in fields(RegisteredEk))


def add(connection: sa.Connection, new: RegisteredEk) -> bool:
    """Register an EK; return False if it is registered with the same terms.

    Raises ``ek-registered``, ``not-found`` (policy).
    """
    policies.find_id(connection, new.policy)
    row = {name: getattr(new, name) for name in _COLUMNS} | {"labels": list(new.labels)}
    if authentic.insert(connection, _registered, row) is not None:
        return True
    known = find(connection, new.ek_sha256)
    if known is None:
        raise Conflict("ek-registered", f"The name '{new.name}' is registered for another EK.")
    if known.terms != new.terms:
        raise Conflict("ek-registered", f"The EK is registered with other terms, as '{known.name}'.")
    return False


def find(connection: sa.Connection, ek_sha256: bytes) -> RegisteredEk | None:
    """The registration of the EK with this digest."""
    row = authentic.one(connection, _registered, _registered.c.ek_sha256 == ek_sha256)
    return None if row is None else _from_row(row)


def load(connection: sa.Connection) -> list[RegisteredEk]:
    """Every registered EK, by name."""
    return [_from_row(row) for row in authentic.load(connection, _registered, order_by=[_registered.c.name])]


def use(connection: sa.Connection, ek_sha256: bytes, at: datetime) -> None:
    """Use a registration.  Raises ``ek-not-registered`` when it was used or taken back meanwhile."""
    unused = sa.and_(_registered.c.ek_sha256 == ek_sha256, _registered.c.used_at.is_(None))
    if authentic.update(connection, _registered, unused, {"used_at": at}) != 1:
        raise Conflict("ek-not-registered", "The registration of this EK was used or taken back meanwhile.")


def check_name(connection: sa.Connection, name: str, ek_sha256: bytes | None) -> None:
    """Raise ``name-taken`` if *name* is registered for another EK whose machine has not come yet."""
    row = authentic.one(connection, _registered, _registered.c.name == name, _registered.c.used_at.is_(None))
    if row is not None and row["ek_sha256"] != ek_sha256:
        raise Conflict("name-taken", f"The name '{name}' is registered for another TPM.")


def remove(connection: sa.Connection, ek_sha256: bytes) -> None:
    """Take a registration back.  Raises ``not-found``."""
    if authentic.delete(connection, _registered, _registered.c.ek_sha256 == ek_sha256) != 1:
        raise NotFound("not-found", "There is no such registered EK.")


def _from_row(row: authentic.Row) -> RegisteredEk:
    return RegisteredEk(**{name: row[name] for name in _COLUMNS} | {"labels": tuple(row["labels"])})
