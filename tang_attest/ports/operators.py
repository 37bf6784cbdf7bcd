"""Operators of the console, their passkeys and sessions, and the acts that they sign."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from tang_attest.ports.audit import AuditEntry


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


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSession:
    """A session; ``digest`` is the SHA-256 of its secret, ``challenge`` that of the challenge of its sign-in."""

    digest: bytes
    operator: str
    challenge: bytes
    created_at: datetime
    used_at: datetime
    ended_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ActRequest:
    """An act that waits for the signature of ``operator`` in the session with the digest ``session``.

    ``act`` is JSON-compatible, ``text`` is signed.
    """

    number: str
    operator: str
    session: bytes
    act: Mapping[str, object]
    text: str
    created_at: datetime
    used_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredApproval:
    """An approval that waits for further operators; ``signatures`` are as the audit record has them.

    ``subject`` (32 bytes) is the digest of what each operator signs.
    """

    number: str
    subject: bytes
    act: Mapping[str, object]
    needed: int
    signatures: Sequence[Mapping[str, object]]
    created_at: datetime


class OperatorStore(Protocol):
    """Operators, their links, passkeys and sessions.  Every method raises ``registry-tampered``."""

    async def add_operator(self, operator: Operator, link: RegistrationLink, audit: AuditEntry) -> None:
        """Add an operator with their first link.  Raises ``name-taken``, also for one that was removed."""

    async def get_operator(self, name: str) -> Operator:
        """Return the operator *name*.  Raises ``not-found``, also for one that was removed."""

    async def list_operators(self) -> Sequence[Operator]:
        """Return the operators that were not removed, by name."""

    async def reset_operator(self, name: str, link: RegistrationLink, audit: AuditEntry) -> None:
        """Revoke passkeys and links, end sessions, and add *link*.  Raises ``not-found``."""

    async def remove_operator(self, name: str, audit: AuditEntry) -> None:
        """Remove an operator; revoke passkeys and links, and end sessions.  Raises ``not-found``."""

    async def set_operator_role(self, name: str, role: OperatorRole, audit: AuditEntry) -> None:
        """Give an operator another role.  Raises ``not-found``."""

    async def find_link(self, digest: bytes) -> RegistrationLink | None:
        """Return the link whose text has this SHA-256, used and expired ones too."""

    async def list_links(self) -> Sequence[RegistrationLink]:
        """Return the links that were not used."""

    async def add_passkey(self, link: bytes, passkey: Passkey, audit: AuditEntry) -> None:
        """Add a passkey, and use up the link with the digest *link*.

        Raises ``link-used``, ``passkey-invalid`` when the credential is known already.
        """

    async def find_passkey(self, credential_id: bytes) -> Passkey | None:
        """Return a passkey, revoked ones too."""

    async def list_passkeys(self) -> Sequence[Passkey]:
        """Return every passkey whose row this server wrote, revoked ones too."""

    async def add_session(
        self, session: StoredSession, credential_id: bytes, sign_count: int, audit: AuditEntry
    ) -> None:
        """Add a session, opened by an assertion with *sign_count*; forget sessions that ended long ago.

        Raises ``passkey-unknown`` when the passkey was revoked, ``passkey-invalid`` when the assertion opened
        a session before, or one with the same count or a higher one was seen.
        """

    async def find_session(self, digest: bytes) -> tuple[StoredSession, Operator] | None:
        """Return a session and its operator, ended ones and removed ones too."""

    async def use_session(self, digest: bytes, at: datetime) -> None:
        """Note that a session was used."""

    async def end_session(self, digest: bytes, audit: AuditEntry) -> None:
        """End a session.  Raises ``not-found`` when it is over."""

    async def end_sessions(self, name: str, audit: AuditEntry) -> int:
        """End every session of an operator; return their number.  Raises ``not-found``."""

    async def list_sessions(self) -> Sequence[StoredSession]:
        """Return the sessions that were not ended, expired ones too."""


class SignedActStore(Protocol):
    """Requests for signatures, and approvals that wait for further operators."""

    async def add_request(self, request: ActRequest) -> None:
        """Add a request; forget expired ones of before that were never signed."""

    async def find_request(self, number: str) -> ActRequest | None:
        """Return a request, used and expired ones too."""

    async def list_approvals(self) -> Sequence[StoredApproval]:
        """Return the approvals that wait for further operators, oldest first, expired ones too."""

    async def find_approval(self, subject: bytes) -> StoredApproval | None:
        """Return the pending approval of *subject*."""

    async def save_approval(
        self, approval: StoredApproval, expected: StoredApproval | None, audit: AuditEntry
    ) -> None:
        """Add a pending approval, or replace *expected*.  Raises ``act-changed``."""

    async def withdraw_approval(self, number: str, audit: AuditEntry) -> None:
        """Delete a pending approval.  Raises ``not-found``."""
