"""Conditions of policies and requirements on measurement lists, from the operator's side."""

from __future__ import annotations

from collections.abc import Mapping

from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.policies import ImaRequirement, PolicyStore
from tang_attest.ports.world import Clock
from tang_attest.protocol.conditions import Conditions, check_new_actions
from tang_attest.protocol.ima import Requirement
from tang_attest.service.audit.actors import Author
from tang_attest.service.policies.operators import require_operators


class PolicyConditions:
    """Sets a policy's conditions; each change is one transaction with its audit entry."""

    def __init__(self, store: PolicyStore, clock: Clock, author: Author) -> None:
        self._store, self._clock, self._author = store, clock, author

    async def set(self, policy: str, conditions: Conditions) -> None:
        """Set a policy's conditions.

        Only an operator at the server lowers the number of operators who have to sign: raises
        ``operators-required`` for others, ``not-found``, and ``setting-invalid`` for a new webhook's URL.
        """
        before = await self._store.get_policy(policy)
        if conditions.operators < before.conditions.operators and not self._author.at_server:
            require_operators(before, self._author)
        check_new_actions(before.conditions.watch, conditions.watch)
        details = {"policy": policy, **conditions.as_json()}
        await self._store.set_conditions(policy, conditions, self._entry("policy conditions", details))

    async def require_ima(self, policy: str, requirement: Requirement | None) -> None:
        """Set a policy's requirement on the measurement lists of its machines, or remove it.  Raises
        ``not-found``.
        """
        required = None if requirement is None else ImaRequirement(requirement.digest, requirement.as_json())
        details = {"policy": policy, "ima": required and required.digest}
        await self._store.require_ima(policy, required, self._entry("policy ima", details))

    def _entry(self, event: str, details: Mapping[str, object]) -> AuditEntry:
        return self._author.entry(self._clock.now(), event, None, details)
