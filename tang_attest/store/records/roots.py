"""Trust anchors for EK certificates."""

from __future__ import annotations

from dataclasses import fields

import sqlalchemy as sa

from tang_attest.errors import NotFound
from tang_attest.ports.enrollment import EkRoot
from tang_attest.store.database import authentic, tables

_root = tables.ek_root
_COLUMNS = tuple(field.name for field in fields(EkRoot))


def add(connection: sa.Connection, root: EkRoot) -> None:
    """Add *root*; one that is here already stays as it is."""
    authentic.insert(connection, _root, {name: getattr(root, name) for name in _COLUMNS})


def find(connection: sa.Connection, subject: bytes, fingerprint: str) -> list[EkRoot]:
    """The roots with that subject or fingerprint, and those whose subject is not known."""
    wanted = sa.or_(_root.c.subject == subject, _root.c.subject.is_(None), _root.c.fingerprint == fingerprint)
    return _read(connection, wanted)


def load(connection: sa.Connection) -> list[EkRoot]:
    """Every root, by label."""
    return _read(connection)


def _read(connection: sa.Connection, *where: sa.ColumnElement[bool]) -> list[EkRoot]:
    rows = authentic.load(connection, _root, *where, order_by=[_root.c.label, _root.c.fingerprint])
    return [EkRoot(**{name: row[name] for name in _COLUMNS}) for row in rows]


def remove(connection: sa.Connection, fingerprint: str) -> None:
    """Remove a root, with a valid seal or without.  Raises ``not-found``."""
    if authentic.delete(connection, _root, _root.c.fingerprint == fingerprint) != 1:
        raise NotFound("not-found", f"There is no root {fingerprint}.")
