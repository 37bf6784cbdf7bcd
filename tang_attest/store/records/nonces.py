"""Used nonces, and rounds' evidence that counted.

Only used nonces are stored: a nonce itself proves its origin, its purpose and its end.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final

import sqlalchemy as sa

from tang_attest.store.database import tables
from tang_attest.store.database.batched import Batched, Insertion
from tang_attest.store.database.composed import Composed
from tang_attest.store.database.sql import among, changed

_nonce = tables.nonce

# SQLite has no array of bytes, and a query costs it little; a round trip costs more than a row.
_ONE: Final = Composed(sa.select(_nonce.c.digest).where(_nonce.c.digest == sa.bindparam("one")), "one")
_USED: Final = Composed(sa.select(_nonce.c.digest).where(among(_nonce.c.digest, "digests")), "digests")
#: Use up digests until their times.  The primary key fails the transaction for one that was used meanwhile.
USE: Final = Insertion(_nonce, "digest", "expires_at")
_USE: Final = Batched(USE)


def used(connection: sa.Connection, digests: Collection[bytes]) -> set[bytes]:
    """Those of *digests* that were used before."""
    if connection.dialect.name == "sqlite":
        return {digest for digest in digests if _ONE.rows(connection, one=digest)}
    return {digest for (digest,) in _USED.rows(connection, digests=list(digests))}


def use(connection: sa.Connection, used: Sequence[tuple[bytes, datetime]]) -> None:
    """Use up digests until their times; see :data:`USE`."""
    if used:
        _USE.write(connection, [{"digest": digest, "expires_at": at} for digest, at in used])


def prune(connection: sa.Connection, before: datetime) -> int:
    """Delete nonces that expired before *before*: they are refused as expired before this table is read."""
    return changed(connection, _nonce.delete().where(_nonce.c.expires_at < before))
