"""The write queue: decisions and audit entries that arrive together share a transaction and its flush to the
disk.
"""

from __future__ import annotations

from collections.abc import Sequence

from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.decisions import Decision
from tang_attest.store import decisions
from tang_attest.store.database.batch import Batcher
from tang_attest.store.database.engine import Database
from tang_attest.store.database.failures import is_away

Written = Decision | AuditEntry


class WriteQueue(Batcher[Written, None]):
    """Writes items in one transaction, or each in its own when one of them spoils it for all."""

    def __init__(self, database: Database) -> None:
        super().__init__(self._write)
        self._database = database

    async def _write(self, items: Sequence[Written]) -> Sequence[Exception | None]:
        try:
            return await self._write_together(items)
        except Exception as error:
            if is_away(error) or len(items) == 1:
                raise
        return [await self._write_alone(item) for item in items]

    async def _write_together(self, items: Sequence[Written]) -> Sequence[Exception | None]:
        write = self._database.write_briefly if decisions.are_brief(items) else self._database.write
        return await write(lambda connection: decisions.write(connection, items))

    async def _write_alone(self, item: Written) -> Exception | None:
        try:
            return (await self._write_together([item]))[0]
        except Exception as error:  # noqa: BLE001 - the caller of this item gets it
            return error
