"""Exchange and signing keys at rest."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.keys import EncryptedKey, EncryptedKeyStore
from tang_attest.store.database.batch import Batcher
from tang_attest.store.database.engine import Database
from tang_attest.store.records import (
    devices,
    keys,
)
from tang_attest.store.roles.role import Role


class SqlKeys(Role, EncryptedKeyStore):
    """:class:`~tang_attest.ports.keys.EncryptedKeyStore` over SQLAlchemy Core.

    Calls of ``server_keys`` that meet share a read transaction.
    """

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.loads: Batcher[None, Sequence[EncryptedKey]] = Batcher(self._load)

    async def add_key(self, key: EncryptedKey, device: str | None, audit: AuditEntry) -> None:

        def work(connection: sa.Connection) -> None:
            keys.add(connection, key, None if device is None else devices.find_id(connection, device))

        await self._change(work, audit)

    async def list_keys(self) -> Sequence[tuple[EncryptedKey, str | None]]:
        return await self._database.read(keys.load)

    async def get_key(self, kid: str) -> tuple[EncryptedKey, str | None]:
        return await self._database.read(lambda connection: keys.get(connection, kid))

    async def server_keys(self) -> Sequence[EncryptedKey]:
        return await self.loads.submit(None)

    async def count_signing_keys(self) -> tuple[int, int]:
        return await self._database.read(keys.count)

    async def rotate_keys(self, kids: Sequence[str], at: datetime, audit: AuditEntry) -> None:
        await self._change(lambda connection: keys.rotate(connection, kids, at), audit)

    async def retire_key(self, kid: str, at: datetime, audit: AuditEntry) -> None:
        await self._change(lambda connection: keys.retire(connection, kid, at), audit)

    async def reinstate_key(self, kid: str, audit: AuditEntry) -> None:
        await self._change(lambda connection: keys.reinstate(connection, kid), audit)

    async def _load(self, callers: Sequence[None]) -> Sequence[Sequence[EncryptedKey]]:
        """Return one answer, the same for every caller."""
        return [await self._database.read(keys.load_server)] * len(callers)
