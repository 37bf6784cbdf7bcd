"""Changes of a policy as a whole: tried on the last evidence of every device, then applied to all at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

from tang_attest.errors import Conflict, Malformed
from tang_attest.ports.machines import Device
from tang_attest.ports.policies import RolloutDevice
from tang_attest.ports.store import HasDevices, HasPolicies
from tang_attest.ports.world import Clock
from tang_attest.protocol.changes.change import PolicyChange, parse_change
from tang_attest.protocol.changes.dry_run import DryRun, Trial, dry_run
from tang_attest.protocol.changes.rollout import RolloutSubject, judged_by
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.reference_state import ReferenceState
from tang_attest.service.audit.actors import Author
from tang_attest.service.policies.operators import require_operators

#: The most names in a sentence.
_NAMED = 3


class ChangeStore(HasDevices, HasPolicies, Protocol):
    """The roles of the store that a change of a policy needs."""


class PolicyChanges:
    """Applies changes of a policy; each is one transaction with its audit entry."""

    def __init__(self, store: ChangeStore, clock: Clock, author: Author) -> None:
        self._store, self._clock, self._author = store, clock, author

    async def parse(self, policy_name: str, document: object) -> PolicyChange:
        """Return the change that *document* asks for.  Raises ``not-found``, ``change-invalid``."""
        return parse_change(document, await self._store.policies.get_policy(policy_name))

    async def dry_run(self, policy_name: str, change: PolicyChange) -> DryRun:
        """Return the effect of *change* on the devices of a policy if each booted as it did last.  Raises
        ``not-found``.
        """
        policy = change.apply(await self._store.policies.get_policy(policy_name))
        rollout = await self._store.policies.get_rollout(policy_name)
        return await self.try_on(policy_name, lambda subject: judged_by(policy, rollout, subject))

    async def apply(self, policy_name: str, change: PolicyChange, *, force: bool) -> None:
        """Apply *change* to every device of the policy.

        Raises ``not-found``, ``change-invalid`` if it holds signed values back, ``would-refuse`` (unless *force*) when a
        device would be refused that is not now, ``name-taken`` and ``state-changed`` when the policy changed since the
        change was read, and ``operators-required``.
        """
        require_operators(await self._store.policies.get_policy(policy_name), self._author)
        if change.signed:
            raise Malformed(
                "change-invalid",
                "signed: labels of signed values wait for a rollout; start one with this change.",
            )
        if not force:
            require_few(await self.dry_run(policy_name, change))
        details = {"policy": policy_name, "change": change.dump()}
        entry = self._author.entry(self._clock.now(), "policy change", None, details)
        await self._store.policies.change_policy(policy_name, change, self.states(change), entry)

    async def try_on(self, policy_name: str, then: Callable[[RolloutSubject], ReferencePolicy]) -> DryRun:
        """Return the effect if each device of a policy came under *then*, and booted as it did last."""
        policy, rollout = (
            await self._store.policies.get_policy(policy_name),
            await self._store.policies.get_rollout(policy_name),
        )
        device_outcomes = await self._store.policies.list_rollout_devices(rollout.id) if rollout else ()
        judges = [
            (device, judged_by(policy, rollout, subject), then(subject))
            for device, subject in await subjects(self._store, policy_name, device_outcomes)
        ]
        # Logs are large, and only rules read them.
        ruled = any(now.rules or after.rules for _, now, after in judges)
        found = await self._store.policies.list_evidence(policy_name, with_logs=ruled)
        evidence = {last.device: last.snapshot for last in found}
        trials = []
        for device, now, after in judges:
            last = evidence.get(device.name)
            selection, values, log = (
                (last.selection, last.values, last.event_log) if last else (None, {}, b"")
            )
            trials.append(Trial(device.name, selection, values, log, now, then=after, signed=device.signed))
        # Parsing a log for each device takes seconds in a fleet.
        return await asyncio.to_thread(dry_run, trials, self._clock.now())

    def states(self, change: PolicyChange) -> tuple[ReferenceState, ...]:
        """Return the states that *change* adds, made now."""
        now = self._clock.now()
        actor = self._author.actor
        return tuple(replace(state, created_at=now, created_by=actor) for state in change.states())


async def subjects(
    store: ChangeStore, policy_name: str, device_outcomes: Iterable[RolloutDevice]
) -> list[tuple[Device, RolloutSubject]]:
    """Return the devices of a policy, by name, each with its part in the rollout that has the outcomes
    *device_outcomes*.
    """
    outcomes = {entry.device: entry.outcome for entry in device_outcomes}
    devices = [device for device in await store.devices.list_devices() if device.policy == policy_name]
    return [(each, RolloutSubject(each.name, each.labels, outcomes.get(each.name))) for each in devices]


def require_few(result: DryRun, allowed: int = 0) -> None:
    """Raise ``would-refuse`` when more than *allowed* devices would be refused that are not now."""
    names = result.refused_devices
    if len(names) <= allowed:
        return
    shown = ", ".join(names[:_NAMED])
    if len(names) > _NAMED:
        shown += f" and {len(names) - _NAMED:,} more"
    sentence = f"{len(names):,} of {result.devices:,} devices would be refused: {shown}."
    raise Conflict("would-refuse", sentence)
