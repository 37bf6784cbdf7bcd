"""The audit record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One decision or change: who, when, what, about whom, and why.

    ``event`` is a short verb phrase (``unlock``, ``enroll``, ``device remove``), ``actor`` a person
    (``operator:NAME``) or a machine (``device:NAME``), ``verdict`` ``permitted``, ``refused`` or ``done``,
    ``code`` a code of :mod:`tang_attest.errors` or ``ok``, ``details`` JSON-compatible, without secrets.
    """

    at: datetime
    event: str
    actor: str
    verdict: str
    code: str = "ok"
    device: str | None = None
    kid: str | None = None
    address: str | None = None
    request_id: str | None = None
    details: Mapping[str, object] = field(default_factory=dict)
