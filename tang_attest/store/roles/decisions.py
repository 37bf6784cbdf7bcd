"""The request path of an unlock."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from tang_attest.ports.decisions import BoundKey, Decision, DecisionStore, PolicyPcrs
from tang_attest.protocol.tpm import ClockInfo
from tang_attest.store.database.batch import Batcher
from tang_attest.store.database.engine import Database
from tang_attest.store.recalled import RecalledKeys
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
        self._recalled = RecalledKeys()
        self.finds: Batcher[keys.Wanted, keys.Found] = Batcher(self._find)

    async def find_key(self, kid: str) -> BoundKey | None:
        found = await self.finds.submit(keys.Wanted(kid))
        return found if isinstance(found, BoundKey) else None

    def recall_key(self, kid: str) -> BoundKey | None:
        return self._recalled.recall(kid)

    async def find_question(self, kid: str) -> tuple[PolicyPcrs, ClockInfo | None] | None:
        found = await self.finds.submit(keys.Wanted(kid, keys.Part.QUESTION))
        return found if isinstance(found, tuple) else None

    async def find_pcrs(self, kid: str) -> PolicyPcrs | None:
        found = await self.find_question(kid)
        return None if found is None else found[0]

    async def find_clock(self, kid: str) -> ClockInfo | None:
        found = await self.find_question(kid)
        return None if found is None else found[1]

    async def decide(self, decision: Decision) -> None:
        await self._writes.submit(decision)

    async def prune(self, before: datetime) -> int:
        return await self._database.write(lambda connection: nonces.prune(connection, before))

    async def _find(self, wanted: Sequence[keys.Wanted]) -> Sequence[keys.Found | Exception]:
        kids = {each.kid for each in wanted}
        kept = {kid: known for kid in kids if (known := self._recalled.kept(kid)) is not None}
        if len(kept) == len(kids) and all(each.part is keys.Part.QUESTION for each in wanted):
            asked = await self._database.look(lambda connection: keys.ask(connection, kept))
            if len(asked) == len(kids):
                return self._without_missing(wanted, [asked[each.kid] for each in wanted])
        found, read = await self._database.read(lambda connection: keys.find(connection, wanted, kept))
        for bound, reading in read.values():
            self._recalled.keep(bound, reading)
        return self._without_missing(wanted, found)

    def _without_missing(
        self, wanted: Sequence[keys.Wanted], found: Sequence[keys.Found]
    ) -> Sequence[keys.Found]:
        """Return *found*; forget the keys that are gone, and those with a foreign row."""
        for each, fact in zip(wanted, found, strict=True):
            if fact is None or isinstance(fact, Exception):
                self._recalled.forget(each.kid)
        return found
