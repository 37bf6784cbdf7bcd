"""Policies, states, rollouts and evidence."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import sqlalchemy as sa

from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.policies import ImaRequirement, LastEvidence, Observation, PolicyStore, RolloutDevice
from tang_attest.protocol.changes.change import PolicyChange
from tang_attest.protocol.changes.rollout import Rollout, RolloutPhase
from tang_attest.protocol.conditions import Conditions
from tang_attest.protocol.coverage import BootPart
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.reference_state import Life, ReferenceState
from tang_attest.protocol.signed_values.signer import Signers
from tang_attest.store import transfers
from tang_attest.store.records import (
    audit_log,
    evidence,
    ima,
    observations,
    policies,
    rollouts,
)
from tang_attest.store.roles.role import Role


class SqlPolicies(Role, PolicyStore):
    """:class:`~tang_attest.ports.policies.PolicyStore` over SQLAlchemy Core."""

    async def add_policy(self, policy: ReferencePolicy, audit: AuditEntry) -> None:
        await self._change(lambda connection: policies.add(connection, policy), audit)

    async def remove_policy(self, name: str, audit: AuditEntry) -> None:
        await self._change(lambda connection: transfers.remove_policy(connection, name, audit.at), audit)

    async def list_policies(self) -> Sequence[ReferencePolicy]:
        return await self._database.read(policies.load)

    async def get_policy(self, name: str) -> ReferencePolicy:
        return await self._database.read(lambda connection: policies.get(connection, name))

    async def add_state(self, policy: str, state: ReferenceState, audit: AuditEntry) -> None:

        def work(connection: sa.Connection) -> None:
            policy_id = policies.find_id(connection, policy)
            if state.origin == "predicted" and state.life is Life.STAGED:
                policies.require_trust(connection, policy)
            policies.add_state(connection, policy_id, policy, state)

        await self._change(work, audit)

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

        def work(connection: sa.Connection) -> None:
            found = policies.take(connection, policy)
            policies.move_state(connection, found, label, expected, to, accepted=accepted)

        await self._change(work, audit)

    async def trust_predictions(self, policy: str, trusted: bool, audit: AuditEntry) -> None:
        await self._change(lambda connection: policies.trust_predictions(connection, policy, trusted), audit)

    async def change_signers(
        self, policy: str, change: Callable[[Signers], Signers], audit: AuditEntry
    ) -> None:
        await self._change(lambda connection: policies.change_signers(connection, policy, change), audit)

    async def set_conditions(self, policy: str, conditions: Conditions, audit: AuditEntry) -> None:
        await self._change(lambda connection: policies.set_conditions(connection, policy, conditions), audit)

    async def require_ima(self, policy: str, required: ImaRequirement | None, audit: AuditEntry) -> None:
        await self._change(lambda connection: ima.require(connection, policy, required), audit)

    async def change_policy(
        self, policy: str, change: PolicyChange, states: Sequence[ReferenceState], audit: AuditEntry
    ) -> None:
        await self._change(lambda connection: rollouts.change(connection, policy, change, states), audit)

    async def start_rollout(
        self, rollout: Rollout, states: Sequence[ReferenceState], audit: AuditEntry
    ) -> None:
        await self._change(lambda connection: rollouts.start(connection, rollout, states), audit)

    async def get_rollout(self, policy: str) -> Rollout | None:
        return await self._database.read(lambda connection: rollouts.newest(connection, policy))

    async def list_rollout_devices(self, rollout_id: int) -> Sequence[RolloutDevice]:
        return await self._database.read(lambda connection: rollouts.device_outcomes(connection, rollout_id))

    async def widen_rollout(self, rollout: Rollout, share: int, audit: AuditEntry) -> None:
        await self._change(lambda connection: rollouts.widen(connection, rollout, share), audit)

    async def move_rollout(
        self, rollout: Rollout, to: RolloutPhase, why: str | None, audit: AuditEntry
    ) -> None:
        await self._change(lambda connection: rollouts.move(connection, rollout, to, why, audit), audit)

    async def list_evidence(self, policy: str, *, with_logs: bool = False) -> Sequence[LastEvidence]:
        return await self._database.read(
            lambda connection: evidence.load(connection, policy, with_logs=with_logs)
        )

    async def get_evidence(self, device: str, *, permitted: bool) -> LastEvidence | None:
        return await self._database.read(
            lambda connection: evidence.get(connection, device, permitted=permitted)
        )

    async def dismiss_observations(self, ids: Collection[int], audits: Sequence[AuditEntry]) -> None:

        def work(connection: sa.Connection) -> None:
            observations.remove(connection, ids)
            audit_log.append(connection, *audits)

        await self._database.write(work)

    async def list_observations(
        self,
        device: str | None = None,
        limit: int = 100,
        before: int | None = None,
        policies: Collection[str] | None = None,
    ) -> Sequence[Observation]:
        return await self._database.read(
            lambda connection: observations.load(connection, device, limit, before, policies)
        )
