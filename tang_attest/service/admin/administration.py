"""Use cases of an admin token's holder: the operator's, within the grant.

Scopes are checked where an operation begins (web/admin/operation.py), policies here.  A device or an
observation under a policy that the token is not for does not exist for its holder.  Nothing here can be
forced: acts that need ``--force`` on the command line are left to an operator.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Final, Generic, Protocol, TypeVar

from tang_attest.errors import Conflict, NotFound, Refused, TangAttestError
from tang_attest.ports.audit import EVERYTHING, AuditEntry, AuditSearch
from tang_attest.ports.keys import KeyStore
from tang_attest.ports.machines import EVERY_DEVICE, Device, DeviceSearch
from tang_attest.ports.policies import Observation
from tang_attest.ports.store import HasAudit
from tang_attest.ports.world import Clock, Randomness
from tang_attest.protocol.coverage import BootPart
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.reference_state import Life, ReferenceState
from tang_attest.protocol.values.pcr import PcrValues, Selection
from tang_attest.service.admin.changes import AdministeredChanges
from tang_attest.service.admin.fleet import AdministeredFleet, FleetStore
from tang_attest.service.admin.signers import AdministeredSigners
from tang_attest.service.admin.tokens import AdminClient
from tang_attest.service.policies.explanation import Explanation, Explanations
from tang_attest.service.policies.reference_values import (
    NO_BACKING,
    Approval,
    Backing,
    ReferenceValues,
    Waiting,
)

#: The most states of one policy that tokens staged and no machine has booted.  Each makes every appraisal a
#: little slower.
MAX_STAGED: Final = 256

#: Reads values over a policy's selection.  Raises ``values-invalid``.
ValuesOf = Callable[[Selection], PcrValues]

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Page(Generic[_Item]):
    """Some items in their order; ``more`` is true when there are others after them."""

    items: tuple[_Item, ...]
    more: bool


class AdministrationStore(FleetStore, HasAudit, Protocol):
    """The roles of the store that the admin API needs."""


class Administration:
    """The operator's use cases within a grant; each change is one transaction with its audit entry.

    ``changes`` are those of whole policies, ``signers`` those of signed values, ``fleet`` those of enrollment and machines.
    """

    def __init__(self, store: AdministrationStore, keys: KeyStore, clock: Clock, random: Randomness) -> None:
        self._store, self._clock = store, clock
        self._explanations = Explanations(store, clock)
        self.changes = AdministeredChanges(store, clock, random)
        self.signers = AdministeredSigners(store, clock)
        self.fleet = AdministeredFleet(store, keys, clock, random)

    # --- reading --------------------------------------------------------------------------------------------

    async def devices(
        self,
        asker: AdminClient,
        limit: int,
        after: str | None,
        *,
        search: DeviceSearch = EVERY_DEVICE,
        stale: timedelta | None = None,
    ) -> Page[Device]:
        """Return the machines that meet *search* and whose names come *after* one, by name.

        With *stale*, only machines that gave no evidence for so long.
        """
        if stale is not None:
            search = replace(search, silent_since=self._clock.now() - stale)
        every = await self._store.devices.list_devices(search)
        granted = (device for device in every if asker.grant.covers(device.policy))
        return _page([device for device in granted if after is None or device.name > after], limit)

    async def device(self, asker: AdminClient, name: str) -> Device:
        """Return one machine.  Raises ``not-found``."""
        device = await self._store.devices.get_device(name)
        if not asker.grant.covers(device.policy):
            raise NotFound("not-found", f"There is no device '{name}'.")
        return device

    async def policies(self, asker: AdminClient, limit: int, after: str | None) -> Page[ReferencePolicy]:
        """Return the policies whose names come *after* one, by name."""
        every = await self._store.policies.list_policies()
        granted = (policy for policy in every if asker.grant.covers(policy.name))
        return _page([policy for policy in granted if after is None or policy.name > after], limit)

    async def policy(self, asker: AdminClient, name: str) -> tuple[ReferencePolicy, list[str]]:
        """Return one policy, and the labels of its states that no machine needs any more.

        Raises ``policy-not-granted``, ``not-found``.
        """
        asker.grant.require_policy(name)
        return await self._store.policies.get_policy(name), await self._changes(asker).retirable(name)

    async def staged(self, asker: AdminClient) -> list[tuple[str, ReferenceState]]:
        """Return the states that wait for approval or for the first machine that boots them, each with its
        policy's name.
        """
        granted = (p for p in await self._store.policies.list_policies() if asker.grant.covers(p.name))
        waiting = (Life.PROPOSED, Life.STAGED)
        return [
            (policy.name, state) for policy in granted for state in policy.states if state.life in waiting
        ]

    async def observations(
        self,
        asker: AdminClient,
        limit: int,
        before: int | None,
        device: str | None,
        policy: str | None = None,
    ) -> Page[Observation]:
        """Return the observations, newest first, of one *device* or of those under one *policy*.

        Raises ``not-found`` (the device), ``policy-not-granted``.
        """
        policies = asker.grant.policies
        if device is not None:
            await self.device(asker, device)
        if policy is not None:
            asker.grant.require_policy(policy)
            policies = frozenset({policy})
        return _page(await self._store.policies.list_observations(device, limit + 1, before, policies), limit)

    async def observation(self, asker: AdminClient, number: int) -> Explanation:
        """Return one refused quote, explained.  Raises ``observation-missing``."""
        return await self._explanations.explain(await self._explanations.find(number, asker.grant.policies))

    async def audit(
        self,
        asker: AdminClient,
        limit: int,
        before: int | None,
        device: str | None,
        search: AuditSearch = EVERYTHING,
    ) -> Page[tuple[int, AuditEntry]]:
        """Return the entries that meet *search*, newest first.

        Raises ``policy-not-granted``: the record is about every policy.
        """
        asker.grant.require_every_policy()
        return _page(await self._store.audit.list_audit(device, limit + 1, before, search), limit)

    async def alike(self, asker: AdminClient, number: int) -> list[Waiting]:
        """Return the machines whose refused boot has the same difference as observation *number*, its own first.

        Raises as :meth:`ReferenceValues.waiting_alike`, ``observation-missing``.
        """
        seen = await self._explanations.find(number, asker.grant.policies)
        found = await self._changes(asker).waiting_alike(seen.device, number)
        return [each for each in found if asker.grant.covers(each.policy.name)]

    # --- changing -------------------------------------------------------------------------------------------

    async def stage(
        self,
        asker: AdminClient,
        policy_name: str,
        label: str,
        values_of: ValuesOf,
        valid_for: timedelta | None,
        *,
        backing: Backing = NO_BACKING,
    ) -> tuple[ReferenceState, bool]:
        """Return a state with the values, and True if it is new: staging the same again changes nothing.

        Raises ``policy-not-granted``, ``not-found``, ``values-invalid``, ``values-all-zero``, ``name-taken``
        (the label, with other values), ``state-retired`` (these values are: that takes the scope ``approve``
        back), ``uncovered``, ``announcements-full``.
        """
        asker.grant.require_policy(policy_name)
        policy = await self._store.policies.get_policy(policy_name)
        values = values_of(policy.selection)
        if known := _known(policy, label, values, self._clock.now()):
            return known, False
        _check_stageable(policy, values)
        try:
            changes = self._changes(asker)
            return await changes.stage(policy_name, label, values, valid_for=valid_for, backing=backing), True
        except Conflict:
            # Two equal requests may have come at once.
            policy = await self._store.policies.get_policy(policy_name)
            if known := _known(policy, label, values, self._clock.now()):
                return known, False
            raise

    async def approve_state(
        self, asker: AdminClient, policy: str, label: str, accepted: tuple[BootPart, ...] = ()
    ) -> ReferenceState:
        """Let an announced state count.

        Raises ``policy-not-granted``, ``not-found``, ``uncovered``, ``state-changed``.
        """
        asker.grant.require_policy(policy)
        return await self._changes(asker).approve_state(policy, label, accepted=accepted)

    async def retire(self, asker: AdminClient, policy: str, label: str) -> ReferenceState:
        """Let a state count no more.

        Raises ``policy-not-granted``, ``not-found``, ``state-changed``, ``state-in-use``.
        """
        asker.grant.require_policy(policy)
        await self._changes(asker).retire(policy, label)
        return await self._state(policy, label)

    async def restore(self, asker: AdminClient, policy: str, label: str) -> ReferenceState:
        """Let a retired state count again.  Raises ``policy-not-granted``, ``not-found``,
        ``state-changed``.
        """
        asker.grant.require_policy(policy)
        await self._changes(asker).restore(policy, label)
        return await self._state(policy, label)

    async def approve(
        self, asker: AdminClient, device_name: str, observation: int, label: str | None, approval: Approval
    ) -> ReferenceState:
        """Turn an observation into a state.  Raises as :meth:`ReferenceValues.approve`."""
        device = await self.device(asker, device_name)
        _, state = await self._changes(asker).approve(
            device.name, label, observation_id=observation, approval=approval
        )
        return state

    async def approve_observation(
        self, asker: AdminClient, number: int, label: str | None, approval: Approval
    ) -> ReferenceState:
        """Turn an observation into a state, whatever machine showed it.  Raises as :meth:`approve`."""
        seen = await self._explanations.find(number, asker.grant.policies)
        return await self.approve(asker, seen.device, number, label, approval)

    async def approve_alike(
        self,
        asker: AdminClient,
        number: int,
        shown: Collection[int],
        label: str | None,
        approval: Approval,
    ) -> list[tuple[Waiting, ReferenceState | TangAttestError]]:
        """Approve the observations *shown* that are alike *number*; a failure stands beside the other results.

        Raises as :meth:`alike`, and ``observation-missing`` when one of *shown* is not alike any more: nothing is
        approved then.
        """
        found = await self.alike(asker, number)
        if gone := sorted(set(shown) - {each.observation.id for each in found}):
            sentence = f"Observation {gone[0]} is not alike observation {number}, or does not wait any more."
            raise NotFound("observation-missing", sentence)
        chosen = [each for each in found if each.observation.id in shown]
        return await self._changes(asker).approve_alike(chosen, label, approval)

    def _changes(self, asker: AdminClient) -> ReferenceValues:
        return ReferenceValues(self._store, self._clock, asker.author)

    async def _state(self, policy: str, label: str) -> ReferenceState:
        states = (await self._store.policies.get_policy(policy)).states
        return next(state for state in states if state.label == label)


def _page(items: Sequence[_Item], limit: int) -> Page[_Item]:
    return Page(tuple(islice(items, limit)), len(items) > limit)


def _known(policy: ReferencePolicy, label: str, values: PcrValues, now: datetime) -> ReferenceState | None:
    """Return the state that makes staging superfluous: it has the values and counts now, for every device.

    A state that expires counts only under this label: the client that gave it the label knows of the expiry.
    """
    for state in policy.states:
        limits = state.limits
        unlimited = limits.device is None and limits.rollout is None and limits.uses_left is None
        lasts = limits.expires_at is None or state.label == label
        if state.values == values and unlimited and lasts and state.obstacle(now) is None:
            return state
    return None


def _check_stageable(policy: ReferencePolicy, values: PcrValues) -> None:
    for state in policy.states:
        if state.life is Life.RETIRED and state.values == values:
            raise Refused("state-retired", f"State '{state.label}' has these values and is retired.")
    if sum(state.life is Life.STAGED and state.origin == "imported" for state in policy.states) >= MAX_STAGED:
        raise Refused(
            "announcements-full", f"Policy '{policy.name}' has {MAX_STAGED} staged states that nobody booted."
        )
