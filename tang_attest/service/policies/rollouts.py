"""Rollouts: a change reaches some devices first, then more, then all; or it is stopped and taken back."""

from __future__ import annotations

from collections import Counter
from dataclasses import KW_ONLY, dataclass, replace

from tang_attest.errors import Conflict, Malformed, NotFound
from tang_attest.ports.policies import RolloutDevice
from tang_attest.ports.world import Clock, Randomness
from tang_attest.protocol.changes.change import PolicyChange
from tang_attest.protocol.changes.rollout import (
    WHOLE,
    Rollout,
    RolloutOutcome,
    RolloutPhase,
    abandoned,
    finished,
    judged_by,
)
from tang_attest.protocol.enrollment import check_name
from tang_attest.protocol.values.labels import check_labels
from tang_attest.service.audit.actors import Author
from tang_attest.service.policies.changes import ChangeStore, PolicyChanges, require_few, subjects
from tang_attest.service.policies.operators import require_operators
from tang_attest.service.policies.reference_values import retirable_states


@dataclass(frozen=True, slots=True)
class RolloutTerms:
    """First audience of a rollout, a ``share`` of 10,000 or a ``label``, and the number of them that may be
    refused.

    The share is drawn by ``salt``, at random by default; the same salt draws the same devices.
    """

    name: str
    share: int | None
    label: str | None
    limit: int
    salt: str | None = None


@dataclass(frozen=True, slots=True)
class RolloutStatus:
    """Devices of a rollout by outcome.

    ``devices`` counts those of the policy; ``waiting`` are in the audience and have no outcome yet;
    ``states`` counts the machines by the state that they booted last (``None``: never permitted), the most
    frequent first; ``retirable`` are the states that no machine needs any more.
    """

    rollout: Rollout
    devices: int
    passed: tuple[RolloutDevice, ...]
    refused: tuple[RolloutDevice, ...]
    waiting: tuple[str, ...]
    _: KW_ONLY
    states: tuple[tuple[str | None, int], ...]
    retirable: tuple[str, ...]


class Rollouts:
    """Rollouts, from the operator's side; each change is one transaction with its audit entry.

    To start, widen, resume or finish one raises ``operators-required`` under a policy that requires several.
    """

    def __init__(self, store: ChangeStore, clock: Clock, random: Randomness, author: Author) -> None:
        self._store, self._clock, self._random, self._author = store, clock, random, author
        self._changes = PolicyChanges(store, clock, author)

    async def start(
        self, policy_name: str, change: PolicyChange, terms: RolloutTerms, *, force: bool = False
    ) -> Rollout:
        """Let *change* count for its first audience.

        Raises ``not-found``, ``request-malformed`` (name, label, not one of share and label),
        ``rollout-unfinished``, ``name-taken``, and ``would-refuse`` (unless *force*) when more devices than
        the limit would be refused if they booted as they did last.
        """
        if (terms.share is None) == (terms.label is None):
            raise Malformed("request-malformed", "A rollout begins with a share or with a label.")
        rollout = Rollout(
            policy=policy_name,
            name=check_name(terms.name),
            change=change,
            salt=terms.salt or self._random.bytes(16).hex(),
            share=terms.share or 0,
            label=None if terms.label is None else check_labels([terms.label])[0],
            limit=terms.limit,
            started_at=self._clock.now(),
            started_by=self._author.actor,
        )
        await self._require_operators(policy_name)
        known = await self._store.policies.get_rollout(policy_name)
        if known is not None and not known.over:
            raise Conflict(
                "rollout-unfinished", f"Rollout '{known.name}' of policy '{policy_name}' is not over."
            )
        if not force:
            await self._require_few(rollout)
        details = {"policy": policy_name, "rollout": rollout.name, "change": change.dump(), **_terms(rollout)}
        entry = self._author.entry(rollout.started_at, "policy rollout start", None, details)
        await self._store.policies.start_rollout(rollout, self._changes.states(change), entry)
        return rollout

    async def widen(self, policy_name: str, share: int, *, force: bool = False) -> Rollout:
        """Let the change count for a larger share.

        Raises ``not-found``, ``rollout-changed`` unless it runs with a smaller one, ``would-refuse`` as
        :meth:`start`.
        """
        rollout = await self.under_way(policy_name)
        await self._require_operators(policy_name)
        wider = replace(rollout, share=share)
        if not force:
            await self._require_few(wider)
        entry = self._author.entry(
            self._clock.now(),
            "policy rollout widen",
            None,
            {"policy": policy_name, "rollout": rollout.name, **_terms(wider)},
        )
        await self._store.policies.widen_rollout(rollout, share, entry)
        return wider

    async def stop(self, policy_name: str, why: str | None) -> Rollout:
        """Reach no further device; a device that passed keeps the change.  Raises ``not-found``,
        ``rollout-changed``.
        """
        return await self._move(policy_name, {RolloutPhase.RUNNING}, RolloutPhase.STOPPED, "stop", why)

    async def resume(self, policy_name: str) -> Rollout:
        """Go on; refusals are counted from zero again.  Raises ``not-found``, ``rollout-changed``."""
        await self._require_operators(policy_name)
        return await self._move(policy_name, {RolloutPhase.STOPPED}, RolloutPhase.RUNNING, "resume", None)

    async def finish(self, policy_name: str, *, force: bool = False) -> Rollout:
        """Let the change count for every device of the policy.

        Raises ``not-found``, ``rollout-changed`` unless it runs, ``would-refuse`` (unless *force*) when a
        device would be refused that is not now.
        """
        rollout = await self.under_way(policy_name)
        await self._require_operators(policy_name)
        if not force:
            policy = finished(await self._store.policies.get_policy(policy_name), rollout)
            require_few(await self._changes.try_on(policy_name, lambda _: policy))
        return await self._move(policy_name, {RolloutPhase.RUNNING}, RolloutPhase.FINISHED, "finish", None)

    async def abandon(self, policy_name: str, why: str | None, *, force: bool = False) -> Rollout:
        """Take the change back: its states are retired.

        Raises ``not-found``, ``would-refuse`` (unless *force*) when a device would be refused that is not
        now, such as one that has passed.
        """
        rollout = await self.under_way(policy_name)
        if not force:
            policy = abandoned(await self._store.policies.get_policy(policy_name), rollout)
            require_few(await self._changes.try_on(policy_name, lambda _: policy))
        expected = {RolloutPhase.RUNNING, RolloutPhase.STOPPED}
        return await self._move(policy_name, expected, RolloutPhase.ABANDONED, "abandon", why)

    async def status(self, policy_name: str) -> RolloutStatus:
        """Return the devices by outcome in the newest rollout, over or not.  Raises ``not-found``."""
        policy, rollout = (
            await self._store.policies.get_policy(policy_name),
            await self._store.policies.get_rollout(policy_name),
        )
        if rollout is None:
            raise NotFound("not-found", f"Policy '{policy_name}' has no rollout.")
        device_outcomes = await self._store.policies.list_rollout_devices(rollout.id)
        found = await subjects(self._store, policy_name, device_outcomes)
        devices = [device for device, _ in found]
        states = Counter(device.last_state for device in devices)
        waiting = (s.name for _, s in found if s.outcome is None and rollout.includes(s))
        return RolloutStatus(
            rollout,
            len(devices),
            passed=tuple(entry for entry in device_outcomes if entry.outcome is RolloutOutcome.PASSED),
            refused=tuple(entry for entry in device_outcomes if entry.outcome is RolloutOutcome.REFUSED),
            waiting=() if rollout.over else tuple(waiting),
            states=tuple(sorted(states.items(), key=lambda item: (-item[1], item[0] or ""))),
            retirable=tuple(retirable_states(policy, devices)),
        )

    async def under_way(self, policy_name: str) -> Rollout:
        """Return the rollout of a policy that is not over.  Raises ``not-found``."""
        rollout = await self._store.policies.get_rollout(policy_name)
        if rollout is None or rollout.over:
            raise NotFound("not-found", f"Policy '{policy_name}' has no rollout under way.")
        return rollout

    async def _move(
        self, policy_name: str, expected: set[RolloutPhase], to: RolloutPhase, verb: str, why: str | None
    ) -> Rollout:
        rollout = await self.under_way(policy_name)
        if rollout.status not in expected:
            raise Conflict("rollout-changed", f"Rollout '{rollout.name}' is {rollout.status}.")
        details = {"policy": policy_name, "rollout": rollout.name, "why": why}
        entry = self._author.entry(self._clock.now(), f"policy rollout {verb}", None, details)
        await self._store.policies.move_rollout(rollout, to, why, entry)
        return replace(rollout, status=to)

    async def _require_operators(self, policy_name: str) -> None:
        require_operators(await self._store.policies.get_policy(policy_name), self._author)

    async def _require_few(self, rollout: Rollout) -> None:
        policy = await self._store.policies.get_policy(rollout.policy)
        if not rollout.id:
            policy = rollout.stage(policy)
        result = await self._changes.try_on(
            rollout.policy, lambda subject: judged_by(policy, rollout, subject)
        )
        require_few(result, rollout.limit)


def _terms(rollout: Rollout) -> dict[str, object]:
    return {"share": rollout.share / WHOLE, "label": rollout.label, "limit": rollout.limit}
