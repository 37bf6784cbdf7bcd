"""Trust anchors for EK certificates."""

from __future__ import annotations

from dataclasses import fields

import sqlalchemy as sa

from tang_attest.errors import NotFound
from tang_attest.ports import EkRoot
from tang_attest.store import tables
from tang_attest.store.sql import changed, insert_new

_root = tables.ek_root
_COLUMNS = tuple(field.name for field in fields(EkRoot))


def add(connection: sa.Connection, root: EkRoot) -> None:
    """Add *root*; one that is here already stays as it is."""
    insert_new(connection, _root, {name: getattr(root, name) for name in _COLUMNS})


def find(connection: sa.Connection, subject: bytes, fingerprint: str) -> list[EkRoot]:
    """The roots with that subject or fingerprint, and those whose subject is not known."""
    wanted = sa.or_(_root.c.subject == subject, _root.c.subject.is_(None), _root.c.fingerprint == fingerprint)
    return _read(connection, sa.select(_root).where(wanted))


def load(connection: sa.Connection) -> list[EkRoot]:
    """Every root, by label."""
    return _read(connection, sa.select(_root))


def _read(connection: sa.Connection, query: sa.Select[tuple[object, ...]]) -> list[EkRoot]:
    rows = connection.execute(query.order_by(_root.c.label, _root.c.fingerprint)).mappings()
    return [EkRoot(**{name: row[name] for name in _COLUMNS}) for row in rows]


def remove(connection: sa.Connection, fingerprint: str) -> None:
    """Remove a root.  Raises ``not-found``."""
    if changed(connection, _root.delete().where(_root.c.fingerprint == fingerprint)) != 1:
        raise NotFound("not-found", f"There is no root {fingerprint}.")
