"""Rounds: verification of running machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.machines import Device, OpenedReport, Suspension
from tang_attest.ports.policies import ImaRequirement
from tang_attest.protocol.conditions import Conditions
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.tpm import ClockInfo
from tang_attest.protocol.verification import RoundOutcome


@dataclass(frozen=True, slots=True)
class PastRound:
    """Outcome of a past round; of rounds with equal outcomes only the first is kept, and those asked for."""

    device: str
    at: datetime
    outcome: RoundOutcome
    code: str
    details: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Watched:
    """A policy whose machines are verified continuously, or that has other conditions."""

    policy: str
    conditions: Conditions


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """Everything one round of verification writes, in one transaction.

    * ``clock``: that of the authentic quote; ``None`` without one that may move the device's clock.  Then the
      round is written only if no authentic evidence came since ``silent_since``;
    * ``behind_ms``: as in :class:`Decision`;
    * ``answer_digest``: the SHA-256 by which the same evidence is recognized until ``answer_expires_at``;
      ``None`` of a round without evidence;
    * ``suspend``: the suspension that the policy asks for now;
    * ``notify``: the ``hook:NAME`` and ``webhook:URL`` to notify when this changes the device's status;
    * ``told``: the machine's report about its disks; ``None`` without an authentic quote.
    """

    device_id: int
    at: datetime
    outcome: RoundOutcome
    code: str
    details: Mapping[str, object]
    clock: ClockInfo | None = None
    silent_since: datetime | None = None
    behind_ms: int = 0
    answer_digest: bytes | None = None
    answer_expires_at: datetime | None = None
    suspend: Suspension | None = None
    notify: tuple[str, ...] = ()
    told: OpenedReport | None = None


@dataclass(frozen=True, slots=True)
class Notification:
    """A notification to deliver: ``action`` is ``hook:NAME`` or ``webhook:URL``, ``body`` JSON-compatible."""

    id: int
    action: str
    body: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class RoundEffect:
    """Effect of a :class:`RoundRecord`: the outcome or its code, and whether the device was suspended now."""

    outcome: bool
    suspended: bool


class RoundStore(Protocol):
    """Rounds of verification of running machines, and their consequences."""

    async def record_round(self, verification: RoundRecord) -> RoundEffect | None:
        """Write the end of a round; return ``None`` when evidence came since ``silent_since``.

        Raises ``nonce-used`` for evidence that was written before, ``clock-backwards`` when newer evidence
        was written meanwhile and this one is further behind than it may be, ``key-unknown`` when the device
        is gone.
        """

    async def find_ima_requirement(self, digest: str) -> ImaRequirement | None:
        """Return the requirement with this digest."""

    async def ima_progress(self, device_id: int) -> Mapping[str, Any] | None:
        """Return the part of a device's list that was read:
        :meth:`tang_attest.protocol.ima.ImaProgress.as_json`.
        """

    async def keep_ima_progress(self, device_id: int, progress: Mapping[str, Any] | None) -> None:
        """Keep *progress*, or with ``None`` forget it."""

    async def list_requested(self) -> Sequence[str]:
        """Return the newest kid of each device for which an operator requested a round."""

    async def list_silent(self, policy: str, before: datetime, now: datetime, limit: int) -> Sequence[Device]:
        """Return devices of *policy*, not known as unreachable, whose running system gave no evidence since
        *before*.

        A clock that was set back makes old evidence look like that of a time after *now*; it counts as old.
        """

    async def take_notifications(self, limit: int) -> Sequence[Notification]:
        """Return the oldest notifications and remove them, so that no other server sends them too."""

    async def list_watched(self) -> Sequence[Watched]:
        """Return policies that have conditions, by name."""

    async def request_round(self, name: str, at: datetime | None) -> None:
        """Request a round of the device from the server that holds its agent; with ``None`` withdraw the
        request.

        Raises ``not-found``.
        """

    async def record_running(self, device: str, policy: ReferencePolicy, audit: AuditEntry) -> None:
        """Add *policy*, and verify the device against it; it goes when the device goes.  Raises
        ``name-taken``.
        """

    async def list_rounds(self, device: str, limit: int = 100) -> Sequence[PastRound]:
        """Return past rounds, newest first; also of a device that was removed."""
