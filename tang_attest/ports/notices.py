"""Notices: events that want a person, grouped, and their messages on the way to receivers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol, TypeVar

from tang_attest.ports.audit import AuditEntry

T = TypeVar("T")


class NoticeKind(StrEnum):
    """Kind of event, by which receivers choose: those of the setting ``notify``."""

    BOOT = "boot"  # a refused boot waits at its prompt
    ANNOUNCEMENT = "announcement"  # announced values wait for an approval
    UNLOCK = "unlock"  # an unlock waits for a person
    APPROVAL = "approval"  # a signed approval waits for another operator
    SUSPENSION = "suspension"
    SILENCE = "silence"  # a running machine gives no evidence
    ROLLOUT = "rollout"  # a rollout was stopped
    RECORD = "record"  # the audit record does not hold
    CERTIFICATE = "certificate"  # a certificate ends soon


@dataclass(frozen=True, slots=True, kw_only=True)
class Occurrence:
    """One event.

    * ``key``: equal keys are one group, of which there is one message and later counts;
    * ``subject``: the machine, policy, rollout or certificate that it is about; ``identity`` tells two events about one
      subject apart, and is empty where a repetition is no news (a machine tries again at its prompt);
    * ``sentence``, ``action``: what happened, and what to do; without values of PCRs, texts of logs and secrets;
    * ``page``: the console's page on which it is decided, a path; ``None`` for one that follows from the subject;
    * ``known_until``: the group is remembered so long, so that the same event is no news.
    """

    kind: NoticeKind
    key: str
    subject: str
    at: datetime
    sentence: str
    action: str
    identity: str = ""
    page: str | None = None
    known_until: datetime | None = None


@dataclass(slots=True)
class NoticeGroup:
    """Equal events.

    ``members`` has the name and the last time (ISO 8601) of each event by its identity; ``beyond`` counts events that
    had no room there.  ``page`` is as the events have it.  The last of ``step`` messages was made at
    ``told_at``; the next is due at ``due_at``.
    """

    key: str
    kind: NoticeKind
    sentence: str
    action: str
    first_at: datetime
    _: KW_ONLY
    known_until: datetime
    due_at: datetime | None
    members: dict[str, tuple[str, str]] = field(default_factory=dict)
    beyond: int = 0
    step: int = 0
    told_at: datetime | None = None
    page: str | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message on its way to one receiver, after *tries* that failed."""

    id: int
    receiver: str
    message: Mapping[str, object]
    tries: int


class NoticeBook(Protocol):
    """Groups and messages within one transaction, which no other server is in at the same time."""

    def cursor(self) -> int | None:
        """Return the number of the last audit entry that was looked at."""

    def move_cursor(self, to: int) -> None:
        """Set the number."""

    def checked_at(self) -> datetime | None:
        """Return the time of the last check of the audit record."""

    def mark_checked(self, at: datetime) -> None:
        """Set that time."""

    def group(self, key: str) -> NoticeGroup | None:
        """Return the group with this key."""

    def count_groups(self, kind: NoticeKind) -> int:
        """Return the number of groups of a kind."""

    def keep(self, group: NoticeGroup) -> None:
        """Add or change a group."""

    def due(self, now: datetime) -> Sequence[NoticeGroup]:
        """Return the groups that have a message due."""

    def forget(self, now: datetime) -> None:
        """Forget groups that have no message due and are not remembered any more."""

    def send(self, receiver: str, message: Mapping[str, object], now: datetime, most: int) -> int:
        """Add a message to a receiver; drop its oldest ones beyond *most*, and return their number."""


class NoticeStore(Protocol):
    """Groups of events, and messages to receivers."""

    async def notice_cursor(self) -> int | None:
        """Return the number of the last audit entry that was looked at."""

    async def list_notable(
        self, after: int, up_to: int, since: datetime, limit: int
    ) -> Sequence[tuple[int, AuditEntry]]:
        """Return entries by number, from *since* on, without unlocks that were permitted."""

    async def has_due_notices(self, now: datetime) -> bool:
        """Return True if a group has a message due, or can be forgotten."""

    async def update_notices(self, work: Callable[[NoticeBook], T]) -> T:
        """Run *work* in one transaction."""

    async def list_due_receivers(self, now: datetime) -> Collection[str]:
        """Return the receivers with a message to deliver now."""

    async def claim_delivery(self, receiver: str, now: datetime, until: datetime) -> Delivery | None:
        """Return the oldest message to deliver to *receiver*; no other server gets it before *until*."""

    async def finish_delivery(self, number: int, audit: AuditEntry) -> None:
        """Remove a message that was delivered or given up."""

    async def postpone_delivery(self, number: int, tries: int, until: datetime) -> None:
        """Try a message again later, after *tries* that failed."""
