"""Trust anchors for EK certificates."""

from __future__ import annotations

import sqlalchemy as sa

from tang_attest.errors import NotFound
from tang_attest.ports import EkRoot
from tang_attest.store import tables
from tang_attest.store.sql import changed, insert_new

_root = tables.ek_root


def add(connection: sa.Connection, root: EkRoot) -> None:
    """Add *root*; one that is here already stays as it is."""
    row = {"fingerprint": root.fingerprint, "label": root.label, "der": root.der, "added_at": root.added_at}
    insert_new(connection, _root, row)


def load(connection: sa.Connection) -> list[EkRoot]:
    """Every root, by label."""
    rows = connection.execute(sa.select(_root).order_by(_root.c.label, _root.c.fingerprint))
    return [EkRoot(row.fingerprint, row.label, row.der, row.added_at) for row in rows]


def remove(connection: sa.Connection, fingerprint: str) -> None:
    """Remove a root.  Raises ``not-found``."""
    if changed(connection, _root.delete().where(_root.c.fingerprint == fingerprint)) != 1:
        raise NotFound("not-found", f"There is no root {fingerprint}.")
