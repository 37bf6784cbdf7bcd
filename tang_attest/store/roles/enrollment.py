"""Enrollment tokens, trust anchors, and enrollments."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.enrollment import EkRoot, Enrollment, EnrollmentStore, RegisteredEk, Token
from tang_attest.ports.machines import Device
from tang_attest.store.records import audit_log, eks, tokens
from tang_attest.store.roles.role import Role


class SqlEnrollment(Role, EnrollmentStore):
    """:class:`~tang_attest.ports.enrollment.EnrollmentStore` over SQLAlchemy Core."""

    async def find_token(self, digest: bytes) -> Token | None:
        return await self._database.read(lambda connection: tokens.find(connection, digest))

    async def enroll(self, enrollment: Enrollment) -> Device:
        return await self._database.write(lambda connection: tokens.enroll(connection, enrollment))

    async def add_token(self, token: Token, audit: AuditEntry) -> None:
        await self._change(lambda connection: tokens.add(connection, token), audit)

    async def list_tokens(self) -> Sequence[Token]:
        return await self._database.read(tokens.load)

    async def revoke_token(self, digest: bytes, audit: AuditEntry) -> None:
        await self._change(lambda connection: tokens.revoke(connection, digest, audit.at), audit)

    async def find_registered_ek(self, ek_sha256: bytes) -> RegisteredEk | None:
        return await self._database.read(lambda connection: eks.find(connection, ek_sha256))

    async def list_registered_eks(self) -> Sequence[RegisteredEk]:
        return await self._database.read(eks.load)

    async def register_eks(
        self, registered_eks: Sequence[RegisteredEk], audit: Sequence[AuditEntry]
    ) -> Sequence[RegisteredEk]:
        def register(connection: sa.Connection) -> list[RegisteredEk]:
            new = []
            for each, entry in zip(registered_eks, audit, strict=True):
                if eks.add(connection, each):
                    audit_log.append(connection, entry)
                    new.append(each)
            return new

        return await self._database.write(register)

    async def unregister_ek(self, ek_sha256: bytes, audit: AuditEntry) -> None:
        await self._change(lambda connection: eks.remove(connection, ek_sha256), audit)

    async def add_ek_root(self, root: EkRoot, audit: AuditEntry) -> None:
        await self._change(lambda connection: eks.add_root(connection, root), audit)

    async def find_ek_roots(self, subject: bytes, fingerprint: str) -> Sequence[EkRoot]:
        return await self._database.read(lambda connection: eks.find_roots(connection, subject, fingerprint))

    async def list_ek_roots(self) -> Sequence[EkRoot]:
        return await self._database.read(eks.load_roots)

    async def remove_ek_root(self, fingerprint: str, audit: AuditEntry) -> None:
        await self._change(lambda connection: eks.remove_root(connection, fingerprint), audit)
