"""Tokens of the admin API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from tang_attest.ports.audit import AuditEntry


class Scope(StrEnum):
    """Scope of an admin token."""

    READ = "read"  # see devices, policies, observations, the audit record
    STAGE = "stage"  # add values that no machine has shown yet
    APPROVE = "approve"  # approve observations and announcements, retire and restore states
    ENROLL = "enroll"  # create and revoke enrollment tokens, register EKs
    OPERATE = "operate"  # label, suspend and resume devices
    REMOVE = "remove"  # remove devices: their disks then open by passphrase only


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminToken:
    """A bearer token of the admin API; the store knows only the SHA-256 of its text.

    ``policies`` are the names of those it is limited to, or ``None``: every policy.
    """

    digest: bytes
    name: str
    scopes: tuple[Scope, ...]
    policies: tuple[str, ...] | None
    created_at: datetime
    created_by: str
    expires_at: datetime
    revoked_at: datetime | None = None


class AdminTokenStore(Protocol):
    """Tokens of the admin API."""

    async def add_admin_token(self, token: AdminToken, audit: AuditEntry) -> None:
        """Add an admin token.  Raises ``name-taken``, ``not-found`` (a policy it is limited to)."""

    async def find_admin_token(self, digest: bytes) -> AdminToken | None:
        """Return the admin token whose text has this SHA-256, revoked and expired ones too."""

    async def list_admin_tokens(self) -> Sequence[AdminToken]:
        """Return every admin token, newest first."""

    async def revoke_admin_token(self, name: str, audit: AuditEntry) -> None:
        """Revoke an admin token for good, at the entry's time.

        Raises ``not-found``, also when it was revoked before.
        """
