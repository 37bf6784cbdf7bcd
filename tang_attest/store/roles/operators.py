"""Operators of the console."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.operators import (
    Operator,
    OperatorRole,
    OperatorStore,
    Passkey,
    RegistrationLink,
    StoredSession,
)
from tang_attest.store.records.operators import accounts, passkeys, sessions
from tang_attest.store.roles.role import Role


class SqlOperators(Role, OperatorStore):
    """:class:`~tang_attest.ports.operators.OperatorStore` over SQLAlchemy Core."""

    async def add_operator(self, operator: Operator, link: RegistrationLink, audit: AuditEntry) -> None:
        await self._change(lambda connection: accounts.add(connection, operator, link), audit)

    async def get_operator(self, name: str) -> Operator:
        return await self._database.read(lambda connection: accounts.get(connection, name))

    async def list_operators(self) -> Sequence[Operator]:
        return await self._database.read(accounts.load)

    async def reset_operator(self, name: str, link: RegistrationLink, audit: AuditEntry) -> None:
        await self._change(lambda connection: accounts.reset(connection, name, link), audit)

    async def remove_operator(self, name: str, audit: AuditEntry) -> None:
        await self._change(lambda connection: accounts.remove(connection, name, audit.at), audit)

    async def set_operator_role(self, name: str, role: OperatorRole, audit: AuditEntry) -> None:
        await self._change(lambda connection: accounts.set_role(connection, name, role), audit)

    async def find_link(self, digest: bytes) -> RegistrationLink | None:
        return await self._database.read(lambda connection: accounts.find_link(connection, digest))

    async def list_links(self) -> Sequence[RegistrationLink]:
        return await self._database.read(accounts.load_links)

    async def add_passkey(self, link: bytes, passkey: Passkey, audit: AuditEntry) -> None:
        await self._change(lambda connection: accounts.register(connection, link, passkey), audit)

    async def find_passkey(self, credential_id: bytes) -> Passkey | None:
        return await self._database.read(lambda connection: passkeys.find(connection, credential_id))

    async def list_passkeys(self) -> Sequence[Passkey]:
        return await self._database.read(passkeys.load)

    async def add_session(
        self, session: StoredSession, credential_id: bytes, sign_count: int, audit: AuditEntry
    ) -> None:

        def work(connection: sa.Connection) -> None:
            sessions.add(connection, session)
            passkeys.use(connection, session.operator, credential_id, sign_count)

        await self._change(work, audit)

    async def find_session(self, digest: bytes) -> tuple[StoredSession, Operator] | None:

        def work(connection: sa.Connection) -> tuple[StoredSession, Operator] | None:
            session = sessions.find(connection, digest)
            operator = None if session is None else accounts.find(connection, session.operator)
            return None if session is None or operator is None else (session, operator)

        return await self._database.read(work)

    async def use_session(self, digest: bytes, at: datetime) -> None:
        await self._database.write(lambda connection: sessions.use(connection, digest, at))

    async def end_session(self, digest: bytes, audit: AuditEntry) -> None:
        await self._change(lambda connection: sessions.end(connection, digest, audit.at), audit)

    async def end_sessions(self, name: str, audit: AuditEntry) -> int:

        def work(connection: sa.Connection) -> int:
            accounts.get(connection, name)
            return sessions.end_all(connection, name, audit.at)

        return await self._change(work, audit)

    async def list_sessions(self) -> Sequence[StoredSession]:
        return await self._database.read(sessions.load)
