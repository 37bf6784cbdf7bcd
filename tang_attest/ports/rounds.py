"""Rounds: verification of running machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from tang_attest.ports.machines import OpenedReport, Suspension
from tang_attest.protocol.conditions import Conditions
from tang_attest.protocol.tpm import ClockInfo
from tang_attest.protocol.verification import RoundOutcome


@dataclass(frozen=True, slots=True)
class PastRound:
    """How a round of verification ended; of rounds that end alike only the first is kept, and those asked for."""

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

    ``clock`` is that of the authentic quote, and ``None`` without one that may move the device's; then the round is
    written only if nothing authentic came since ``silent_since``.  ``behind_ms`` is as in :class:`Decision`.
    ``answer_digest`` is the SHA-256 by which the same evidence is known again until ``answer_expires_at``, ``None`` of a
    round without evidence.  ``suspend`` is what the policy wants to happen now,
    ``notify`` the ``hook:NAME`` and ``webhook:URL`` to tell when this changes how the device stands.  ``told`` is what
    the machine told of its disks; ``None`` without an authentic quote.
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
    """Somebody to tell: ``action`` is ``hook:NAME`` or ``webhook:URL``, ``body`` JSON-compatible."""

    id: int
    action: str
    body: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class RoundEffect:
    """What a :class:`RoundRecord` changed: the outcome or its code, and whether the device was suspended now."""

    outcome: bool
    suspended: bool
