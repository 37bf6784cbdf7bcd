"""Acts that operators of the console sign."""

from __future__ import annotations

from collections.abc import Sequence

from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.operators import ActRequest, SignedActStore, StoredApproval
from tang_attest.store.records.operators import acts
from tang_attest.store.roles.role import Role


class SqlSignedActs(Role, SignedActStore):
    """:class:`~tang_attest.ports.operators.SignedActStore` over SQLAlchemy Core."""

    async def add_request(self, request: ActRequest) -> None:
        await self._database.write(lambda connection: acts.add_request(connection, request))

    async def find_request(self, number: str) -> ActRequest | None:
        return await self._database.read(lambda connection: acts.find_request(connection, number))

    async def list_approvals(self) -> Sequence[StoredApproval]:
        return await self._database.read(acts.load_pending)

    async def find_approval(self, subject: bytes) -> StoredApproval | None:
        return await self._database.read(lambda connection: acts.find_pending(connection, subject))

    async def save_approval(
        self, approval: StoredApproval, expected: StoredApproval | None, audit: AuditEntry
    ) -> None:
        await self._change(lambda connection: acts.save_pending(connection, approval, expected), audit)

    async def withdraw_approval(self, number: str, audit: AuditEntry) -> None:
        await self._change(lambda connection: acts.remove_pending(connection, number), audit)
