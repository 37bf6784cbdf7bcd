"""The base of every role: a database, and changes that are written with their audit entry."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import sqlalchemy as sa

from tang_attest.ports.audit import AuditEntry
from tang_attest.store.database.engine import Database
from tang_attest.store.records import audit_log

T = TypeVar("T")


class Role:
    """Runs functions over a connection to *database*, each in a transaction of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def _change(self, work: Callable[[sa.Connection], T], entry: AuditEntry) -> T:
        """Run *work* and append *entry* in one transaction."""

        def both(connection: sa.Connection) -> T:
            result = work(connection)
            audit_log.append(connection, entry)
            return result

        return await self._database.write(both)
