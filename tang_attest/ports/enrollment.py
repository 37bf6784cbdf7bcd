"""Enrollment: tokens, trust anchors, and what an enrollment writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.decisions import NewEvidence
from tang_attest.ports.keys import EncryptedKey
from tang_attest.ports.machines import NewDevice
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.values.pcr import Selection


@dataclass(frozen=True, slots=True)
class Token:
    """A one-time enrollment token as the operator made it; the store knows only the SHA-256 of its text.

    Either ``policy`` names an existing policy, or ``record`` is true and a policy of ``selection`` is made from
    the first quote.  ``name`` restricts the token to one device name.
    """

    digest: bytes
    created_at: datetime
    created_by: str
    expires_at: datetime
    name: str | None
    policy: str | None
    record: bool
    selection: Selection
    cap_pcr: int
    allow_unverified_ek: bool
    force: bool
    learn_for_s: int
    labels: tuple[str, ...] = ()
    used_at: datetime | None = None
    revoked_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class EkRoot:
    """A trust anchor for EK certificates: DER, its SHA-256 in hex, and the operator's label.

    ``subject`` is :func:`tang_attest.protocol.endorsement.endorsement.subject_digest` of it, by which it is looked up.
    """

    fingerprint: str
    label: str
    der: bytes
    added_at: datetime
    subject: bytes | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Enrollment:
    """Everything one enrollment writes, in one transaction.  Exactly one of ``new_policy``, ``policy`` is given.

    ``evidence`` is what the initrd would have quoted before this first quote.
    """

    token_digest: bytes
    device: NewDevice
    key: EncryptedKey
    audit: AuditEntry
    new_policy: ReferencePolicy | None = None
    policy: str | None = None
    evidence: NewEvidence | None = None
