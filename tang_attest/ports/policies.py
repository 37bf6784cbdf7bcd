"""Policies: what devices quoted, and what they may have measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from tang_attest.ports.decisions import Snapshot
from tang_attest.protocol.changes.rollout import RolloutOutcome


@dataclass(frozen=True, slots=True)
class Observation:
    """Authentic evidence that the policy refused: what a person may approve.  ``code`` is why it was refused."""

    id: int
    device: str
    at: datetime
    snapshot: Snapshot
    code: str
    reset_count: int


@dataclass(frozen=True, slots=True)
class LastEvidence:
    """What a device last quoted in its initrd."""

    device: str
    at: datetime
    snapshot: Snapshot
    permitted: bool


@dataclass(frozen=True, slots=True)
class RolloutDevice:
    """A device that passed under a rollout or was refused; see :class:`RolloutResult`."""

    device: str
    outcome: RolloutOutcome
    about: str
    at: datetime


@dataclass(frozen=True, slots=True)
class ImaRequirement:
    """What :meth:`tang_attest.protocol.ima.Requirement.as_json` made, and its digest."""

    digest: str
    document: Mapping[str, object]
