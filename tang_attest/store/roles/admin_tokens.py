"""Tokens of the admin API."""

from __future__ import annotations

from collections.abc import Sequence

from tang_attest.ports.admin import AdminToken, AdminTokenStore
from tang_attest.ports.audit import AuditEntry
from tang_attest.store.records import (
    admin_tokens,
)
from tang_attest.store.roles.role import Role


class SqlAdminTokens(Role, AdminTokenStore):
    """:class:`~tang_attest.ports.admin.AdminTokenStore` over SQLAlchemy Core."""

    async def add_admin_token(self, token: AdminToken, audit: AuditEntry) -> None:
        await self._change(lambda connection: admin_tokens.add(connection, token), audit)

    async def find_admin_token(self, digest: bytes) -> AdminToken | None:
        return await self._database.read(lambda connection: admin_tokens.find(connection, digest))

    async def list_admin_tokens(self) -> Sequence[AdminToken]:
        return await self._database.read(admin_tokens.load)

    async def revoke_admin_token(self, name: str, audit: AuditEntry) -> None:
        await self._change(lambda connection: admin_tokens.revoke(connection, name, audit.at), audit)
