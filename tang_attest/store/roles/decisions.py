"""The request path of an unlock."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from tang_attest.ports.decisions import BoundKey, Decision, DecisionStore, PolicyPcrs
from tang_attest.protocol.tpm import ClockInfo
from tang_attest.store.database.batch import Batcher
from tang_attest.store.database.engine import Database
from tang_attest.store.records import (
    keys,
    nonces,
)
from tang_attest.store.roles.role import Role
from tang_attest.store.roles.writes import WriteQueue


class SqlDecisions(Role, DecisionStore):
    """:class:`~tang_attest.ports.decisions.DecisionStore` over SQLAlchemy Core.

    Calls of ``find_*`` that meet share a read transaction; ``decide`` shares a write transaction and its
    flush with other decisions and audit entries.
    """

    def __init__(self, database: Database, writes: WriteQueue) -> None:
        super().__init__(database)
        self._writes = writes
        self.finds: Batcher[keys.Wanted, keys.Found] = Batcher(self._find)

    async def find_key(self, kid: str) -> BoundKey | None:
        found = await self.finds.submit(keys.Wanted(kid))
        return found if isinstance(found, BoundKey) else None

    async def find_pcrs(self, kid: str) -> PolicyPcrs | None:
        found = await self.finds.submit(keys.Wanted(kid, keys.Part.PCRS))
        return found if isinstance(found, PolicyPcrs) else None

    async def find_clock(self, kid: str) -> ClockInfo | None:
        found = await self.finds.submit(keys.Wanted(kid, keys.Part.CLOCK))
        return found if isinstance(found, ClockInfo) else None

    async def decide(self, decision: Decision) -> None:
        await self._writes.submit(decision)

    async def prune(self, before: datetime) -> int:
        return await self._database.write(lambda connection: nonces.prune(connection, before))

    async def _find(self, wanted: Sequence[keys.Wanted]) -> Sequence[keys.Found | Exception]:
        return await self._database.read(lambda connection: keys.find(connection, wanted))
