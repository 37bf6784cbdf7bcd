"""Everything in a database that rests on the server's secret, under another one: in one transaction, or not
at all.

Keys are encrypted anew, with the same holder; rows get seals with the same serial and version; the chain over
the audit record is made anew over the same rows, after it was checked.  A row without a valid seal before has
none afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa

from tang_attest.errors import Refused
from tang_attest.ports.audit import AuditEntry
from tang_attest.protocol.audit_chain import Seal, SealCheck
from tang_attest.store.database import tables
from tang_attest.store.database.authentic import Authenticity
from tang_attest.store.maintenance import resealing
from tang_attest.store.records import audit_chain, audit_log

_PAGE = 1000

#: The JWE of a key, under the new secret.  Raises ``internal`` when it does not open under the old one.
Rewrap = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Side:
    """The keys of one secret: the seals of rows, and the key of the audit record's chain."""

    rows: Authenticity
    chain: bytes


@dataclass(frozen=True, slots=True)
class Rekeyed:
    """Number of rows under the new secret, number of rows left out because their seals were not valid, and
    the chain's heads.
    """

    rows: int
    foreign: int
    old_head: Seal | None
    new_head: Seal | None


def rekey(connection: sa.Connection, old: Side, new: Side, rewrap: Rewrap, entry: AuditEntry) -> Rekeyed:
    """Move everything from *old* to *new*, and append *entry*.  Raises ``audit-changed``, ``internal``."""
    # The archived part stays under the old secret: its hash is where the chain goes on, under both.
    archived = audit_chain.archived_head(connection, old.rows)
    old_head, new_head = _rekey_chain(connection, old.chain, new.chain, archived)
    foreign = len(resealing.look(connection, old.rows)[1])
    rows = resealing.reseal(connection, old.rows, new.rows, {tables.sealed_key.name: {"sealed": rewrap}})
    audit_log.append(connection, entry)
    return Rekeyed(rows, foreign, old_head, new_head)


def _rekey_chain(
    connection: sa.Connection, old: bytes, new: bytes, archived: Seal | None
) -> tuple[Seal | None, Seal | None]:
    before = after = archived
    while page := audit_chain.seals(connection, before.seq if before else 0, _PAGE):
        for seal in page:
            known = SealCheck(old, before, seal)
            made = SealCheck(new, after, seal)
            first = before.last_id if before else None
            while rows := audit_chain.rows(connection, first, seal.last_id, _PAGE):
                for row in rows:
                    known.add(row)
                    made.add(row)
                first = rows[-1][0]
            if not known.holds():
                raise Refused("audit-changed", f"The rows up to seal {seal.seq} are not what was sealed.")
            before, after = seal, audit_chain.rehash(connection, seal, made.digest())
    return before, after
