"""Changes of whole policies, dry runs and rollouts, for the holder of an admin token (see
service/admin/administration.py).

As there, nothing can be forced: a change that would refuse a machine that is not refused now needs an
operator.
"""

from __future__ import annotations

from tang_attest.ports.admin import Scope
from tang_attest.ports.store import if_ours
from tang_attest.ports.world import Clock, Randomness
from tang_attest.protocol.changes.dry_run import DryRun
from tang_attest.service.admin.tokens import AdminClient
from tang_attest.service.policies.changes import ChangeStore, PolicyChanges
from tang_attest.service.policies.rollouts import Rollouts, RolloutStatus, RolloutTerms


class AdministeredChanges:
    """Every method raises ``policy-not-granted`` first, and then what the operator's use case raises."""

    def __init__(self, store: ChangeStore, clock: Clock, random: Randomness) -> None:
        self._store, self._clock, self._random = store, clock, random

    async def dry_run(self, asker: AdminClient, policy: str, document: object) -> DryRun:
        """Return the effect of a change on the devices of a policy if each booted as it did last.

        Reasons in full need the scope to read.  Rules in the change can ask for any word of a log, so they
        need that scope too: raises ``scope-missing``.
        """
        changes = self._changes(asker, policy)
        change = await changes.parse(policy, document)
        if change.rules is not None:
            asker.grant.require(Scope.READ)
        result = await changes.dry_run(policy, change)
        return result if Scope.READ in asker.grant.scopes else result.without_details()

    async def apply(self, asker: AdminClient, policy: str, document: object) -> None:
        """Change a policy for everybody."""
        changes = self._changes(asker, policy)
        await changes.apply(policy, await changes.parse(policy, document), force=False)

    async def under_way(self, asker: AdminClient) -> list[RolloutStatus]:
        """Return the rollouts that are not over, by policy."""
        found = []
        for policy in await self._store.policies.list_policies():
            if asker.grant.covers(policy.name):
                newest = await if_ours(self._store.policies.get_rollout(policy.name))
                if newest is not None and not newest.over:
                    found.append(await self.status(asker, policy.name))
        return found

    async def status(self, asker: AdminClient, policy: str) -> RolloutStatus:
        """Return the devices by outcome in the newest rollout of a policy."""
        return await self._rollouts(asker, policy).status(policy)

    async def start(
        self, asker: AdminClient, policy: str, document: object, terms: RolloutTerms
    ) -> RolloutStatus:
        """Let a change count for its first audience."""
        rollouts = self._rollouts(asker, policy)
        await rollouts.start(policy, await self._changes(asker, policy).parse(policy, document), terms)
        return await rollouts.status(policy)

    async def widen(self, asker: AdminClient, policy: str, share: int) -> RolloutStatus:
        """Let the change count for a larger share, of 10,000."""
        rollouts = self._rollouts(asker, policy)
        await rollouts.widen(policy, share)
        return await rollouts.status(policy)

    async def stop(self, asker: AdminClient, policy: str, why: str | None) -> RolloutStatus:
        """Reach no further device."""
        rollouts = self._rollouts(asker, policy)
        await rollouts.stop(policy, why)
        return await rollouts.status(policy)

    async def resume(self, asker: AdminClient, policy: str) -> RolloutStatus:
        """Go on."""
        rollouts = self._rollouts(asker, policy)
        await rollouts.resume(policy)
        return await rollouts.status(policy)

    async def finish(self, asker: AdminClient, policy: str) -> RolloutStatus:
        """Let the change count for everybody."""
        rollouts = self._rollouts(asker, policy)
        await rollouts.finish(policy)
        return await rollouts.status(policy)

    async def abandon(self, asker: AdminClient, policy: str, why: str | None) -> RolloutStatus:
        """Take the change back."""
        rollouts = self._rollouts(asker, policy)
        await rollouts.abandon(policy, why)
        return await rollouts.status(policy)

    def _changes(self, asker: AdminClient, policy: str) -> PolicyChanges:
        asker.grant.require_policy(policy)
        return PolicyChanges(self._store, self._clock, asker.author)

    def _rollouts(self, asker: AdminClient, policy: str) -> Rollouts:
        asker.grant.require_policy(policy)
        return Rollouts(self._store, self._clock, self._random, asker.author)
