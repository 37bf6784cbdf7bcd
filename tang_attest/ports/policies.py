"""Policies: their evidence and observations, and requirements on measurement lists."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import datetime
from typing import Protocol

from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.decisions import Snapshot
from tang_attest.protocol.changes.change import PolicyChange
from tang_attest.protocol.changes.rollout import Rollout, RolloutOutcome, RolloutPhase
from tang_attest.protocol.conditions import Conditions
from tang_attest.protocol.coverage import BootPart
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.reference_state import Life, ReferenceState
from tang_attest.protocol.signed_values.signer import Signers


@dataclass(frozen=True, slots=True)
class Observation:
    """Authentic evidence that the policy refused, for an operator to approve; ``code`` is the code of the
    refusal.
    """

    id: int
    device: str
    at: datetime
    snapshot: Snapshot
    code: str
    _: KW_ONLY
    reset_count: int


@dataclass(frozen=True, slots=True)
class LastEvidence:
    """Last evidence of a device's initrd."""

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
    """Output of :meth:`tang_attest.protocol.ima.Requirement.as_json`, and its digest."""

    digest: str
    document: Mapping[str, object]


class PolicyStore(Protocol):
    """Policies with their states and rollouts, and the evidence that they were tried on."""

    async def add_policy(self, policy: ReferencePolicy, audit: AuditEntry) -> None:
        """Add a policy with its states.  Raises ``name-taken``."""

    async def remove_policy(self, name: str, audit: AuditEntry) -> None:
        """Remove a policy with its states and rollouts.

        Raises ``not-found``, and ``policy-in-use``, which names the devices, the registered EKs, the enrollment tokens that can still
        be used at the time of *audit*, and the admin tokens that are limited to it.
        """

    async def list_policies(self) -> Sequence[ReferencePolicy]:
        """Return every policy, by name."""

    async def get_policy(self, name: str) -> ReferencePolicy:
        """Return the policy *name*.  Raises ``not-found``."""

    async def add_state(self, policy: str, state: ReferenceState, audit: AuditEntry) -> None:
        """Append a reference state.

        Raises ``name-taken`` when the policy has that label already, and ``policy-changed`` for announced
        values that count at once, when the policy does not trust predictions any more.
        """

    async def move_state(
        self,
        policy: str,
        label: str,
        expected: Collection[Life],
        to: Life,
        audit: AuditEntry,
        *,
        accepted: Collection[BootPart] = (),
    ) -> None:
        """Move a state along its life.  Raises ``not-found``, and ``state-changed`` unless it is in
        *expected*.
        """

    async def trust_predictions(self, policy: str, trusted: bool, audit: AuditEntry) -> None:
        """Set if announced values count at once.  Raises ``not-found``."""

    async def change_signers(
        self, policy: str, change: Callable[[Signers], Signers], audit: AuditEntry
    ) -> None:
        """Replace the signers of a policy by *change* of those that it has then; *change* may be called again.

        Raises ``not-found``, and as *change*, which leaves everything as it was.
        """

    async def set_conditions(self, policy: str, conditions: Conditions, audit: AuditEntry) -> None:
        """Replace a policy's conditions.  Raises ``not-found``."""

    async def require_ima(self, policy: str, required: ImaRequirement | None, audit: AuditEntry) -> None:
        """Set the policy's requirement of measurement lists, or remove it.  Raises ``not-found``."""

    async def change_policy(
        self, policy: str, change: PolicyChange, states: Sequence[ReferenceState], audit: AuditEntry
    ) -> None:
        """Apply *change*, whose added states are *states*, for every device.

        Raises ``not-found`` (policy, retired state), ``name-taken`` (added state), ``state-changed`` (retired
        already).
        """

    async def start_rollout(
        self, rollout: Rollout, states: Sequence[ReferenceState], audit: AuditEntry
    ) -> None:
        """Add *rollout* with its *states*.

        Raises ``not-found`` (policy), ``name-taken`` (rollout, state), ``rollout-unfinished`` when the policy
        has one that is not over.
        """

    async def get_rollout(self, policy: str) -> Rollout | None:
        """Return the newest rollout of *policy*, over or not.  Raises ``not-found`` (policy)."""

    async def list_rollout_devices(self, rollout_id: int) -> Sequence[RolloutDevice]:
        """Return the devices that passed under a rollout or were refused, by name."""

    async def widen_rollout(self, rollout: Rollout, share: int, audit: AuditEntry) -> None:
        """Raise the share of a running rollout.  Raises ``rollout-changed`` unless it runs with a smaller
        one.
        """

    async def move_rollout(
        self, rollout: Rollout, to: RolloutPhase, why: str | None, audit: AuditEntry
    ) -> None:
        """Move *rollout* from the status it has *to* another, at the time and by the actor of *audit*.

        Running again forgets which devices were refused.  Finished, its change counts for every device;
        abandoned, for none: its states are retired.  Raises ``rollout-changed`` when it has another status
        meanwhile.
        """

    async def list_evidence(self, policy: str, *, with_logs: bool = False) -> Sequence[LastEvidence]:
        """Return the last evidence of each device of a policy, by name; without event logs unless asked for.

        Raises ``not-found``.
        """

    async def get_evidence(self, device: str, *, permitted: bool) -> LastEvidence | None:
        """Return the last evidence of one device that was permitted, or refused, with its log.

        Raises ``not-found`` (the device).
        """

    async def dismiss_observations(self, ids: Collection[int], audits: Sequence[AuditEntry]) -> None:
        """Delete observations, all or none.  Raises ``observation-missing``."""

    async def list_observations(
        self,
        device: str | None = None,
        limit: int = 100,
        before: int | None = None,
        policies: Collection[str] | None = None,
    ) -> Sequence[Observation]:
        """Return observations, newest first; only those with an id below *before*, or of devices under
        *policies*.

        Raises ``not-found`` (the device).
        """
