"""Operators of the console, from the side of the server's shell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.operators import Operator, OperatorRole, OperatorStore, RegistrationLink
from tang_attest.ports.world import Clock, Randomness
from tang_attest.protocol.enrollment import check_name
from tang_attest.protocol.values.base64url import b64u
from tang_attest.service.audit.actors import Author
from tang_attest.service.enrollment.enroll import token_digest
from tang_attest.service.operators.sessions import is_open

#: The time in which a link has to be used.
LINK_LIFE: Final = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class NewLink:
    """A one-time link, shown once: its text (43 characters), and the end of its validity."""

    token: str
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorEntry:
    """One operator in a list: the number of passkeys that sign in, and of sessions that are open."""

    name: str
    role: OperatorRole
    passkeys: int
    sessions: int
    created_at: datetime
    created_by: str
    link_expires_at: datetime | None


class Operators:
    """Adds, changes and removes operators; each change is one transaction with its audit entry."""

    def __init__(self, store: OperatorStore, clock: Clock, random: Randomness, author: Author) -> None:
        self._store, self._clock, self._random, self._author = store, clock, random, author

    async def add(self, name: str, role: OperatorRole) -> NewLink:
        """Add an operator; return the link that registers their passkey.

        Raises ``request-malformed`` (name), ``name-taken``: a name is never given twice.
        """
        now = self._clock.now()
        operator = Operator(
            name=check_name(name),
            handle=self._random.bytes(32),
            role=role,
            created_at=now,
            created_by=self._author.actor,
        )
        made, link = self._link(name, now)
        entry = self._entry("operator add", now, {"name": name, "role": role.value})
        await self._store.add_operator(operator, link, entry)
        return made

    async def reset(self, name: str) -> NewLink:
        """Revoke an operator's passkeys, links and sessions; return a new link.  Raises ``not-found``."""
        now = self._clock.now()
        made, link = self._link(name, now)
        await self._store.reset_operator(name, link, self._entry("operator reset", now, {"name": name}))
        return made

    async def remove(self, name: str) -> None:
        """Remove an operator, with their passkeys, links and sessions.  Raises ``not-found``.

        The public keys stay: they verify the records of what the operator signed.
        """
        entry = self._entry("operator remove", self._clock.now(), {"name": name})
        await self._store.remove_operator(name, entry)

    async def set_role(self, name: str, role: OperatorRole) -> None:
        """Give an operator another role, in open sessions too.  Raises ``not-found``."""
        details = {"name": name, "role": role.value}
        entry = self._entry("operator role", self._clock.now(), details)
        await self._store.set_operator_role(name, role, entry)

    async def sign_out(self, name: str) -> int:
        """End every session of an operator; return their number.  Raises ``not-found``."""
        entry = self._entry("operator sign-out", self._clock.now(), {"name": name})
        return await self._store.end_sessions(name, entry)

    async def list_operators(self) -> Sequence[OperatorEntry]:
        """Return the operators that are not removed, by name."""
        now = self._clock.now()
        passkeys = Counter(each.operator for each in await self._store.list_passkeys() if not each.revoked_at)
        running = [each for each in await self._store.list_sessions() if is_open(each, now)]
        sessions = Counter(each.operator for each in running)
        links = {each.operator: each.expires_at for each in await self._store.list_links()}
        return [
            OperatorEntry(
                name=each.name,
                role=each.role,
                passkeys=passkeys[each.name],
                sessions=sessions[each.name],
                created_at=each.created_at,
                created_by=each.created_by,
                link_expires_at=until if (until := links.get(each.name)) and until > now else None,
            )
            for each in await self._store.list_operators()
        ]

    def _link(self, name: str, now: datetime) -> tuple[NewLink, RegistrationLink]:
        text, expires_at = b64u(self._random.bytes(32)), now + LINK_LIFE
        stored = RegistrationLink(
            digest=token_digest(text), operator=name, created_at=now, expires_at=expires_at
        )
        return NewLink(text, expires_at), stored

    def _entry(self, event: str, now: datetime, details: Mapping[str, object]) -> AuditEntry:
        return self._author.entry(now, event, None, details)
