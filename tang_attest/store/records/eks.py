"""Endorsement keys: those that an operator registered, and trust anchors for the certificates of others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from datetime import datetime

import sqlalchemy as sa

from tang_attest.errors import Conflict, NotFound
from tang_attest.ports.enrollment import EkRoot, RegisteredEk
from tang_attest.store.database import authentic, tables
from tang_attest.store.records import policies

_registered = tables.registered_ek
_root = tables.ek_root
_COLUMNS = tuple(field.name for field in fields(RegisteredEk))
_ROOT_COLUMNS = tuple(field.name for field in fields(EkRoot))
_BY_LABEL = (_root.c.label, _root.c.fingerprint)


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
        # Without its name: the asker may not be allowed to know it.
        raise Conflict("ek-registered", "The EK is registered with other terms.")
    return False


def find(connection: sa.Connection, ek_sha256: bytes) -> RegisteredEk | None:
    """The registration of the EK with this digest."""
    row = authentic.one(connection, _registered, _registered.c.ek_sha256 == ek_sha256)
    return None if row is None else _from_row(row)


def load(connection: sa.Connection) -> list[RegisteredEk]:
    """Every registered EK, by name."""
    return [
        _from_row(row) for row in authentic.load_ours(connection, _registered, order_by=[_registered.c.name])
    ]


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


# --- trust anchors ------------------------------------------------------------------------------------------


def add_root(connection: sa.Connection, root: EkRoot) -> None:
    """Add *root*; one that is here already stays as it is."""
    authentic.insert(connection, _root, {name: getattr(root, name) for name in _ROOT_COLUMNS})


def find_roots(connection: sa.Connection, subject: bytes, fingerprint: str) -> list[EkRoot]:
    """The roots with that subject or fingerprint, and those whose subject is not known."""
    wanted = sa.or_(_root.c.subject == subject, _root.c.subject.is_(None), _root.c.fingerprint == fingerprint)
    return _roots(authentic.load(connection, _root, wanted, order_by=_BY_LABEL))


def load_roots(connection: sa.Connection) -> list[EkRoot]:
    """Every root, by label; without rows that are not ours."""
    return _roots(authentic.load_ours(connection, _root, order_by=_BY_LABEL))


def _roots(rows: Iterable[authentic.Row]) -> list[EkRoot]:
    return [EkRoot(**{name: row[name] for name in _ROOT_COLUMNS}) for row in rows]


def remove_root(connection: sa.Connection, fingerprint: str) -> None:
    """Remove a root, with a valid seal or without.  Raises ``not-found``."""
    if authentic.delete(connection, _root, _root.c.fingerprint == fingerprint) != 1:
        raise NotFound("not-found", f"There is no root {fingerprint}.")
