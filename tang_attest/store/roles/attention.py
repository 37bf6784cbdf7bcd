"""Bounded reads for a person's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tang_attest.ports.attention import Attention, AttentionStore, ChangeMark, StateUsers
from tang_attest.ports.machines import Device
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.store import attention
from tang_attest.store.roles.role import Role


class SqlAttention(Role, AttentionStore):
    """:class:`~tang_attest.ports.attention.AttentionStore` over SQLAlchemy Core."""

    async def attention(self, limit: int) -> Attention:
        return await self._database.read(lambda connection: attention.attention(connection, limit))

    async def page_devices(self, after: str, limit: int, beginning: str = "") -> Sequence[Device]:
        return await self._database.read(
            lambda connection: attention.page_devices(connection, after, limit, beginning)
        )

    async def page_policies(self, after: str, limit: int, beginning: str = "") -> Sequence[ReferencePolicy]:
        return await self._database.read(
            lambda connection: attention.page_policies(connection, after, limit, beginning)
        )

    async def state_users(
        self, policy: str, labels: Sequence[str], names: int
    ) -> Mapping[str | None, StateUsers]:
        return await self._database.read(
            lambda connection: attention.state_users(connection, policy, labels, names)
        )

    async def rollout_counts(self, rollout_id: int) -> Mapping[str, int]:
        return await self._database.read(lambda connection: attention.rollout_counts(connection, rollout_id))

    async def change_mark(self) -> ChangeMark:
        return await self._database.read(attention.change_mark)

    async def changed_devices(self, since: ChangeMark, limit: int) -> frozenset[str | None]:
        return await self._database.read(
            lambda connection: attention.changed_devices(connection, since, limit)
        )
