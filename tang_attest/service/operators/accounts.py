"""Operators of the console, from the side of the server's shell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from tang_attest.ports.operators import OperatorRole


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

    async def add(self, name: str, role: OperatorRole) -> NewLink:
        """Add an operator; return the link that registers their passkey.

        Raises ``request-malformed`` (name), ``name-taken``: a name is never given twice.
        """
        raise NotImplementedError

    async def reset(self, name: str) -> NewLink:
        """Revoke an operator's passkeys, links and sessions; return a new link.  Raises ``not-found``."""
        raise NotImplementedError

    async def remove(self, name: str) -> None:
        """Remove an operator, with their passkeys, links and sessions.  Raises ``not-found``.

        The public keys stay: they verify the records of what the operator signed.
        """
        raise NotImplementedError

    async def set_role(self, name: str, role: OperatorRole) -> None:
        """Give an operator another role, in open sessions too.  Raises ``not-found``."""
        raise NotImplementedError

    async def sign_out(self, name: str) -> int:
        """End every session of an operator; return their number.  Raises ``not-found``."""
        raise NotImplementedError

    async def list_operators(self) -> Sequence[OperatorEntry]:
        """Return the operators that are not removed, by name."""
        raise NotImplementedError
