"""The audit record and its chain."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import sqlalchemy as sa

from tang_attest.ports.audit import EVERYTHING, Archive, AuditEntry, AuditSearch, AuditStore
from tang_attest.protocol.audit_chain import Row, Seal
from tang_attest.store.database.engine import Database
from tang_attest.store.records import (
    audit_chain,
    audit_log,
)
from tang_attest.store.roles.role import Role
from tang_attest.store.roles.writes import WriteQueue

#: Number of waits for transactions that write the audit record, and the pause between them; a commit takes
#: milliseconds.
_WRITERS_ASKED: Final = 10
_WRITERS_PAUSE_S: Final = 0.02


class SqlAudit(Role, AuditStore):
    """:class:`~tang_attest.ports.audit.AuditStore` over SQLAlchemy Core.

    ``append`` shares a write transaction and its flush with decisions.
    """

    def __init__(self, database: Database, writes: WriteQueue) -> None:
        super().__init__(database)
        self._writes = writes

    async def append(self, entry: AuditEntry) -> None:
        await self._writes.submit(entry)

    async def list_audit(
        self,
        device: str | None = None,
        limit: int = 100,
        before: int | None = None,
        search: AuditSearch = EVERYTHING,
    ) -> Sequence[tuple[int, AuditEntry]]:
        return await self._database.read(
            lambda connection: audit_log.newest(connection, device, limit, before, search)
        )

    async def list_archives(self) -> Sequence[Archive]:
        return await self._database.read(audit_chain.archives)

    async def newest_seal(self) -> Seal | None:
        return await self._database.read(audit_chain.newest_seal)

    async def list_seals(self, after: int, limit: int) -> Sequence[Seal]:
        return await self._database.read(lambda connection: audit_chain.seals(connection, after, limit))

    async def add_seal(self, seal: Seal) -> bool:
        return await self._database.write(lambda connection: audit_chain.add_seal(connection, seal))

    async def final_audit_id(self, after: int | None) -> int | None:

        def look(connection: sa.Connection) -> tuple[int | None, frozenset[str]]:
            newest = audit_chain.newest_id(connection)
            # In this order: a transaction that begins after the look draws a higher id.
            return newest, audit_chain.writers(connection)

        newest, writing = await self._database.read(look)
        if newest is None or (after is not None and newest <= after):
            return None
        for _ in range(_WRITERS_ASKED):
            if not writing:
                return newest
            await asyncio.sleep(_WRITERS_PAUSE_S)
            writing &= await self._database.read(audit_chain.writers)
        return None if writing else newest

    async def list_audit_rows(self, after: int | None, up_to: int, limit: int) -> Sequence[Row]:
        return await self._database.read(lambda connection: audit_chain.rows(connection, after, up_to, limit))

    async def unsealed_audit(self, after: int | None) -> tuple[int, datetime | None]:
        return await self._database.read(lambda connection: audit_chain.unsealed(connection, after))
