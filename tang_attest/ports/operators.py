"""Operators of the console, their passkeys and sessions, and the acts that they sign."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class OperatorRole(StrEnum):
    """Rights of an operator; each role has those of the ones before it."""

    VIEWER = "viewer"  # see machines, policies, observations, the audit record
    APPROVER = "approver"  # approve and dismiss observations, allow unlocks, suspend and resume devices
    ADMIN = "admin"  # remove devices, create tokens, change policies

    def includes(self, other: OperatorRole) -> bool:
        """Return True if this role has every right of *other*."""
        roles = list(OperatorRole)
        return roles.index(self) >= roles.index(other)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """A person who uses the console.

    ``handle`` (32 random bytes) names them to their authenticators (WebAuthn, ``user.id``).
    """

    name: str
    handle: bytes
    role: OperatorRole
    created_at: datetime
    created_by: str
    removed_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Passkey:
    """A credential of an operator; ``public_key`` is a COSE_Key (RFC 9052) in CBOR.

    A revoked one signs nothing more, and stays: it verifies the records of what it signed.
    """

    credential_id: bytes
    operator: str
    public_key: bytes
    sign_count: int
    created_at: datetime
    revoked_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationLink:
    """A one-time link that registers a passkey; the store knows only the SHA-256 of its text."""

    digest: bytes
    operator: str
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None = None
