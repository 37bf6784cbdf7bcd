"""Devices."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

import sqlalchemy as sa

from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.keys import EncryptedKey
from tang_attest.ports.machines import (
    EVERY_DEVICE,
    Device,
    DeviceSearch,
    DeviceStore,
    Learning,
    NewDevice,
    Suspension,
)
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.store import transfers
from tang_attest.store.records import (
    audit_log,
    devices,
    keys,
    policies,
)
from tang_attest.store.roles.role import Role


class SqlDevices(Role, DeviceStore):
    """:class:`~tang_attest.ports.machines.DeviceStore` over SQLAlchemy Core."""

    async def add_device(
        self, device: NewDevice, policy: str | ReferencePolicy, key: EncryptedKey | None, audit: AuditEntry
    ) -> Device:

        def work(connection: sa.Connection) -> Device:
            if isinstance(policy, str):
                policy_id = policies.find_id(connection, policy)
            else:
                policy_id = policies.add(connection, policy, recorded_for=device.name)
            device_id = devices.add(connection, device, policy_id)
            if key is not None:
                keys.add(connection, key, device_id)
            return devices.get(connection, device.name)

        return await self._change(work, audit)

    async def list_devices(self, search: DeviceSearch = EVERY_DEVICE) -> Sequence[Device]:
        return await self._database.read(lambda connection: devices.search(connection, search))

    async def get_device(self, name: str) -> Device:
        return await self._database.read(lambda connection: devices.get(connection, name))

    async def remove_device(self, name: str, audit: AuditEntry) -> None:
        await self._change(lambda connection: devices.remove(connection, name), audit)
        await self._database.erase_log()

    async def suspend_device(self, name: str, suspension: Suspension, audit: AuditEntry) -> None:
        await self._change(lambda connection: devices.suspend(connection, name, suspension), audit)

    async def resume_device(self, name: str, audit: AuditEntry) -> None:
        await self._change(lambda connection: devices.resume(connection, name), audit)

    async def allow_device(self, name: str, until: datetime, audit: AuditEntry) -> None:
        await self._change(lambda connection: devices.change(connection, name, allowed_until=until), audit)

    async def label_devices(
        self,
        names: Sequence[str],
        add: Collection[str],
        remove: Collection[str],
        audits: Sequence[AuditEntry],
    ) -> None:

        def work(connection: sa.Connection) -> None:
            devices.label(connection, names, add, remove)
            audit_log.append(connection, *audits)

        await self._database.write(work)

    async def rename_device(self, name: str, new: str, audits: Sequence[AuditEntry]) -> None:

        def work(connection: sa.Connection) -> None:
            transfers.rename(connection, name, new)
            audit_log.append(connection, *audits)

        await self._database.write(work)

    async def move_device(self, name: str, policy: str, expected: str, audit: AuditEntry) -> None:
        await self._change(lambda connection: transfers.move(connection, name, policy, expected), audit)

    async def arm_learning(self, device: str, learning: Learning | None, audit: AuditEntry) -> None:
        await self._change(lambda connection: devices.arm_learning(connection, device, learning), audit)

    async def set_running_policy(self, device: str, policy: str | None, audit: AuditEntry) -> None:

        def work(connection: sa.Connection) -> None:
            devices.change(connection, device, running_policy=policy)
            if policy is not None:
                policies.hold(connection, policy)

        await self._change(work, audit)

    async def seen(self, now: datetime) -> Mapping[str, int]:
        return await self._database.read(lambda connection: devices.seen(connection, now))
