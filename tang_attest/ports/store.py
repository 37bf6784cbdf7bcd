"""The store as a whole, and parts of it for use cases that need several roles."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from tang_attest.errors import Unavailable
from tang_attest.ports.admin import AdminTokenStore
from tang_attest.ports.attention import AttentionStore
from tang_attest.ports.audit import AuditStore
from tang_attest.ports.decisions import DecisionStore
from tang_attest.ports.enrollment import EnrollmentStore
from tang_attest.ports.keys import EncryptedKeyStore
from tang_attest.ports.machines import DeviceStore
from tang_attest.ports.notices import NoticeStore
from tang_attest.ports.operators import OperatorStore, SignedActStore
from tang_attest.ports.policies import PolicyStore
from tang_attest.ports.rounds import RoundStore

T = TypeVar("T")


async def if_ours(reading: Awaitable[T]) -> T | None:
    """Return the result of *reading*, or ``None`` if it met a row that this server did not write.

    For reads of one row of many: the store has logged and counted it, and the others go on.
    """
    try:
        return await reading
    except Unavailable as error:
        if error.code != "registry-tampered":
            raise
        return None


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """Figures of one queue since the start: transactions, the items in them, items that failed; and waiting
    now.
    """

    batches: int
    items: int
    failures: int
    waiting: int


class HasAdminTokens(Protocol):
    """A store of admin tokens."""

    @property
    def admin_tokens(self) -> AdminTokenStore:
        """The role."""


class HasAttention(Protocol):
    """A store of bounded reads for a person's page."""

    @property
    def attention(self) -> AttentionStore:
        """The role."""


class HasAudit(Protocol):
    """A store of the audit record."""

    @property
    def audit(self) -> AuditStore:
        """The role."""


class HasDecisions(Protocol):
    """A store of decisions."""

    @property
    def decisions(self) -> DecisionStore:
        """The role."""


class HasDevices(Protocol):
    """A store of devices."""

    @property
    def devices(self) -> DeviceStore:
        """The role."""


class HasEnrollment(Protocol):
    """A store of enrollment tokens and trust anchors."""

    @property
    def enrollment(self) -> EnrollmentStore:
        """The role."""


class HasKeys(Protocol):
    """A store of encrypted keys."""

    @property
    def keys(self) -> EncryptedKeyStore:
        """The role."""


class HasOperators(Protocol):
    """A store of the console's operators."""

    @property
    def operators(self) -> OperatorStore:
        """The role."""


class HasSignedActs(Protocol):
    """A store of acts that operators sign."""

    @property
    def signed_acts(self) -> SignedActStore:
        """The role."""


class HasNotices(Protocol):
    """A store of notices."""

    @property
    def notices(self) -> NoticeStore:
        """The role."""


class HasPolicies(Protocol):
    """A store of policies."""

    @property
    def policies(self) -> PolicyStore:
        """The role."""


class HasRounds(Protocol):
    """A store of rounds."""

    @property
    def rounds(self) -> RoundStore:
        """The role."""


class Store(
    HasAdminTokens,
    HasAttention,
    HasAudit,
    HasDecisions,
    HasDevices,
    HasEnrollment,
    HasKeys,
    HasNotices,
    HasOperators,
    HasPolicies,
    HasRounds,
    HasSignedActs,
    Protocol,
):
    """Every role.  Every write is one transaction that includes its audit entries and is durable on return.

    Races are decided by compare-and-set.  Roles raise :class:`~tang_attest.errors.Conflict`,
    :class:`~tang_attest.errors.NotFound`, and :class:`~tang_attest.errors.Unavailable` when the database is
    away; nothing else.
    """

    async def check(self) -> None:
        """Raise ``unavailable``, ``schema-old``, ``schema-new``, ``database-moved`` when it cannot be used."""

    def queues(self) -> Mapping[str, QueueFigures]:
        """Return the figures of each queue, by name."""

    def tampered(self) -> Mapping[str, int]:
        """Count the reads of rows that this server did not write, by table; every table is there."""

    def foreign_rows(self) -> Sequence[str]:
        """Return sentences on rows that were read lately and that this server did not write."""

    async def remember_versions(self) -> int:
        """From now on refuse rows that are older than the audit record says; return the number of rows that
        it names.

        Reads the whole record, in pages.
        """

    async def close(self) -> None:
        """Finish pending work and release the database."""
