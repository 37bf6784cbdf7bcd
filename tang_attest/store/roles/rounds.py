"""Rounds of verification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.machines import Device
from tang_attest.ports.policies import ImaRequirement
from tang_attest.ports.rounds import Notification, PastRound, RoundEffect, RoundRecord, RoundStore, Watched
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.store import verifications
from tang_attest.store.database.batch import Batcher
from tang_attest.store.database.engine import Database
from tang_attest.store.records import (
    devices,
    ima,
    policies,
)
from tang_attest.store.roles.role import Role


class SqlRounds(Role, RoundStore):
    """:class:`~tang_attest.ports.rounds.RoundStore` over SQLAlchemy Core.

    Rounds that end together share a write transaction and its flush to the disk.
    """

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.ends: Batcher[RoundRecord, RoundEffect | None] = Batcher(self._write)

    async def record_round(self, verification: RoundRecord) -> RoundEffect | None:
        return await self.ends.submit(verification)

    async def find_ima_requirement(self, digest: str) -> ImaRequirement | None:
        return await self._database.read(lambda connection: ima.find_required(connection, digest))

    async def ima_progress(self, device_id: int) -> Mapping[str, Any] | None:
        return await self._database.read(lambda connection: ima.load_progress(connection, device_id))

    async def keep_ima_progress(self, device_id: int, progress: Mapping[str, Any] | None) -> None:
        await self._database.write(lambda connection: ima.keep_progress(connection, device_id, progress))

    async def list_requested(self) -> Sequence[str]:
        return await self._database.read(verifications.wanted)

    async def list_silent(self, policy: str, before: datetime, now: datetime, limit: int) -> Sequence[Device]:
        return await self._database.read(
            lambda connection: verifications.silent(connection, policy, before, now, limit)
        )

    async def take_notifications(self, limit: int) -> Sequence[Notification]:
        return await self._database.write(
            lambda connection: verifications.take_notifications(connection, limit)
        )

    async def list_watched(self) -> Sequence[Watched]:
        return await self._database.read(policies.load_conditions)

    async def request_round(self, name: str, at: datetime | None) -> None:
        await self._database.write(lambda connection: devices.change(connection, name, wanted_at=at))

    async def record_running(self, device: str, policy: ReferencePolicy, audit: AuditEntry) -> None:

        def work(connection: sa.Connection) -> None:
            policies.add(connection, policy, recorded_for=device)
            devices.change(connection, device, running_policy=policy.name)

        await self._change(work, audit)

    async def list_rounds(self, device: str, limit: int = 100) -> Sequence[PastRound]:
        return await self._database.read(lambda connection: verifications.newest(connection, device, limit))

    async def _write(self, items: Sequence[RoundRecord]) -> Sequence[RoundEffect | Exception | None]:
        return await self._database.write(lambda connection: verifications.write(connection, items))
