"""Enrollment: tokens, trust anchors, and the records that an enrollment writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime
from typing import Protocol

from tang_attest.errors import Reason
from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.decisions import NewEvidence
from tang_attest.ports.keys import EncryptedKey
from tang_attest.ports.machines import Device, NewDevice
from tang_attest.protocol.coverage import BootPart
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.values.pcr import Selection


@dataclass(frozen=True, slots=True)
class Token:
    """An enrollment token as the operator made it; the store knows only the SHA-256 of its text.

    Either ``policy`` names an existing policy, or ``record`` is true and a policy of ``selection`` is made
    from the first quote.  ``name`` restricts the token to device names that match it
    (:func:`tang_attest.protocol.enrollment.check_name_pattern`).  It enrolls up to ``machines`` machines;
    ``uses`` of them did, and ``used_at`` is the time of the last possible use.  ``proposes`` is true for a selection
    that the machine's event log may replace by the one that fits its boot chain.  ``accepted_uncovered`` are
    parts of the boot that nothing has to cover.
    """

    digest: bytes
    created_at: datetime
    created_by: str
    expires_at: datetime
    name: str | None
    _: KW_ONLY
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
    accepted_uncovered: tuple[BootPart, ...] = ()
    proposes: bool = False
    machines: int = 1
    uses: int = 0

    @property
    def spent(self) -> Reason | None:
        """Return the reason that no use of it is left, or ``None``."""
        if self.used_at is None:
            return None
        if self.machines == 1:
            return Reason("token-used", "The token was used already.")
        return Reason("token-used-up", f"The token has enrolled the {self.machines} machines that it is for.")


@dataclass(frozen=True, slots=True)
class EkRoot:
    """A trust anchor for EK certificates: DER, its SHA-256 in hex, and the operator's label.

    ``subject`` is :func:`tang_attest.protocol.endorsement.endorsement.subject_digest` of it, by which it is
    looked up.
    """

    fingerprint: str
    label: str
    der: bytes
    added_at: datetime
    subject: bytes | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredEk:
    """An EK that an operator registered before its machine enrolls.

    ``ek_sha256`` is :func:`tang_attest.protocol.endorsement.registered.ek_digest` of it.  Its machine enrolls
    under ``name`` and ``policy`` alone, once: ``used_at`` is the time.  ``without_token`` lets it do so without
    a token.
    """

    ek_sha256: bytes
    name: str
    policy: str
    labels: tuple[str, ...] = ()
    without_token: bool = False
    added_at: datetime
    added_by: str
    used_at: datetime | None = None

    @property
    def terms(self) -> tuple[str, str, tuple[str, ...], bool]:
        """Return the terms that a repeated registration has to have, too."""
        return self.name, self.policy, self.labels, self.without_token


@dataclass(frozen=True, slots=True)
class Enrollment:
    """Everything one enrollment writes, in one transaction.  Exactly one of ``new_policy``, ``policy`` is
    given.

    ``token_digest`` and ``registered_ek`` name the token and the registered EK that are used; at least one of
    them is given.  ``evidence`` is the evidence that the initrd would have given before this first quote.
    """

    token_digest: bytes | None
    device: NewDevice
    key: EncryptedKey
    audit: AuditEntry
    new_policy: ReferencePolicy | None = None
    _: KW_ONLY
    policy: str | None = None
    evidence: NewEvidence | None = None
    registered_ek: bytes | None = None


class EnrollmentStore(Protocol):
    """Enrollment tokens, trust anchors for EK certificates, and the enrollment that uses a token up."""

    async def find_token(self, digest: bytes) -> Token | None:
        """Return the token whose text has this SHA-256."""

    async def enroll(self, enrollment: Enrollment) -> Device:
        """Count a use of the token and add device, key and (perhaps) policy.

        Raises ``token-used``, ``token-used-up``, ``token-revoked``, ``name-taken`` (device or new policy), ``device-exists``
        (same AK or same EK Name), ``not-found`` (policy), ``ek-not-registered`` (used or taken back
        meanwhile).  A name that is registered for another EK is taken.
        """

    async def add_token(self, token: Token, audit: AuditEntry) -> None:
        """Add a token.  Raises ``not-found`` (its policy)."""

    async def list_tokens(self) -> Sequence[Token]:
        """Return every token, newest first."""

    async def revoke_token(self, digest: bytes, audit: AuditEntry) -> None:
        """Revoke a token that can still be used, for good, at the entry's time.

        Raises ``not-found``, ``token-used``, ``token-used-up``.
        """

    async def find_registered_ek(self, ek_sha256: bytes) -> RegisteredEk | None:
        """Return the registration of the EK with this digest."""

    async def list_registered_eks(self) -> Sequence[RegisteredEk]:
        """Return every registered EK, by name."""

    async def register_eks(
        self, registered_eks: Sequence[RegisteredEk], audit: Sequence[AuditEntry]
    ) -> Sequence[RegisteredEk]:
        """Register EKs, all or none; return the new ones, whose *audit* entries alone are written.

        One that is registered with the same terms stays as it is.  Raises ``ek-registered`` (other terms, or
        the name is another EK's), ``not-found`` (policy).
        """

    async def unregister_ek(self, ek_sha256: bytes, audit: AuditEntry) -> None:
        """Take a registration back.  The device that it enrolled stays.  Raises ``not-found``."""

    async def add_ek_root(self, root: EkRoot, audit: AuditEntry) -> None:
        """Add a trust anchor; one that is there already stays as it is."""

    async def find_ek_roots(self, subject: bytes, fingerprint: str) -> Sequence[EkRoot]:
        """Return the trust anchors with that subject or fingerprint, and those whose subject is not known."""

    async def list_ek_roots(self) -> Sequence[EkRoot]:
        """Return every trust anchor, by label."""

    async def remove_ek_root(self, fingerprint: str, audit: AuditEntry) -> None:
        """Remove a trust anchor.  Raises ``not-found``."""
