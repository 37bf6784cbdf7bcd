"""Policies and their reference values, from the operator's side."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final, Protocol

from tang_attest.errors import Conflict, NotFound, Refused, TangAttestError
from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.decisions import Snapshot
from tang_attest.ports.machines import Device, DeviceSearch, Learning
from tang_attest.ports.policies import Observation
from tang_attest.ports.store import HasDevices, HasPolicies, if_ours
from tang_attest.ports.world import Clock
from tang_attest.protocol.coverage import BootPart, acceptance, assess, require_covered
from tang_attest.protocol.enrollment import check_name
from tang_attest.protocol.policy import ReferencePolicy, check_policy_selection
from tang_attest.protocol.reference_state import (
    COUNTING,
    MAX_LABEL,
    Life,
    ReferenceState,
    StateLimits,
    check_label,
    moving_pcrs,
    reference_state,
)
from tang_attest.protocol.values.pcr import PcrValues, Selection
from tang_attest.service.audit.actors import Author
from tang_attest.service.policies.candidates import choose
from tang_attest.service.policies.operators import require_operators


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """Limits of an approval: only this machine, one boot, until some time; by default none.

    ``accepted`` are parts of the boot that nothing covers, and that are approved all the same.
    """

    only_this_device: bool = False
    once: bool = False
    valid_for: timedelta | None = None
    force: bool = False
    accepted: tuple[BootPart, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Backing:
    """The event log of the boot that had imported values, if there is one, and the gaps in it that are
    accepted.

    ``accepted`` is as in :class:`Approval`.
    """

    event_log: bytes = b""
    accepted: tuple[BootPart, ...] = ()


NO_BACKING: Final = Backing()


@dataclass(frozen=True, slots=True)
class Waiting:
    """A machine, its policy, and the observation by which it waits for an approval."""

    device: Device
    policy: ReferencePolicy
    observation: Observation


class ReferenceValueStore(HasDevices, HasPolicies, Protocol):
    """The roles of the store that reference values needs."""


class ReferenceValues:
    """Changes to policies; each is one transaction with its audit entry.

    A gap in the coverage that was accepted for a state of a policy that counts is accepted for its next
    states, too: an update changes the values, and not the software that measures them.
    """

    def __init__(self, store: ReferenceValueStore, clock: Clock, author: Author) -> None:
        self._store, self._clock, self._author = store, clock, author

    async def create_policy(self, name: str, selection: Selection, cap_pcr: int) -> ReferencePolicy:
        """Create an empty policy: it refuses every device until it has a state.

        Raises ``request-malformed``, ``selection-invalid``, ``name-taken``.
        """
        policy = ReferencePolicy(check_name(name), check_policy_selection(selection), cap_pcr, ())
        details: dict[str, object] = {"policy": name, "selection": str(selection)}
        await self._store.policies.add_policy(policy, self._entry("policy create", None, details))
        return policy

    async def remove_policy(self, name: str) -> None:
        """Remove a policy that nothing uses, with its states and rollouts.  Raises ``not-found``,
        ``policy-in-use``.
        """
        await self._store.policies.remove_policy(name, self._entry("policy remove", None, {"policy": name}))

    async def trust_predictions(self, policy: str, trusted: bool) -> None:
        """Set whether values that machines announce for their next boot count at once.

        Raises ``not-found``, ``operators-required``.
        """
        if trusted:
            require_operators(await self._store.policies.get_policy(policy), self._author)
        details: dict[str, object] = {"policy": policy, "trusted": trusted}
        await self._store.policies.trust_predictions(
            policy, trusted, self._entry("policy trust-predictions", None, details)
        )

    # --- new states -----------------------------------------------------------------------------------------

    async def record(
        self,
        policy_name: str,
        label: str | None,
        values: PcrValues,
        *,
        force: bool,
        backing: Backing = NO_BACKING,
    ) -> ReferenceState:
        """Add an active state from the operator's values.

        Raises ``not-found``, ``request-malformed`` (label), ``values-invalid``, ``values-all-zero``,
        ``uncovered``, ``values-known``, ``name-taken``, ``operators-required``.
        """
        policy = await self._signed(policy_name)
        state = await self._imported(policy, label, values, backing, force=force)
        return await self._add(policy, state, None)

    async def stage(
        self,
        policy_name: str,
        label: str | None,
        values: PcrValues,
        *,
        valid_for: timedelta | None = None,
        force: bool = False,
        backing: Backing = NO_BACKING,
    ) -> ReferenceState:
        """Add a state that no machine has quoted yet; the first that does makes it active.  Raises as
        :meth:`record`.
        """
        policy = await self._signed(policy_name)
        state = await self._imported(policy, label, values, backing, force=force)
        expires_at = None if valid_for is None else self._clock.now() + valid_for
        state = replace(state, life=Life.STAGED, limits=StateLimits(expires_at=expires_at))
        return await self._add(policy, state, None)

    async def approve(
        self,
        device_name: str,
        label: str | None,
        *,
        observation_id: int | None = None,
        approval: Approval = Approval(),
    ) -> tuple[Observation, ReferenceState]:
        """Turn a refused but authentic quote of *device_name* (by its number, or the only candidate) into a
        state.

        Raises ``not-found``, ``observation-missing``, ``observation-ambiguous`` (:func:`choose`), ``capped``
        (unless forced: the running system's values would let it unlock at any time), ``values-all-zero``,
        ``operators-required``, ``uncovered``, ``values-known``, ``name-taken``, and ``selection-mismatch`` when the policy's
        selection changed since.
        """
        device, policy, observation = await self._candidate(
            device_name, observation_id, capped=approval.force
        )
        require_operators(policy, self._author)
        observed = observation.snapshot
        if observed.selection != policy.selection:
            raise Conflict(
                "selection-mismatch",
                f"Observation {observation.id} is over {observed.selection}, the policy over {policy.selection}.",
            )
        if not approval.force and any(observed.values.get(policy.cap_pcr, b"")):
            raise Refused(
                "capped", f"Observation {observation.id} was made after PCR {policy.cap_pcr} was extended."
            )
        limits = self._limits(device, approval)
        announced = _proposed(policy, observed.values) if limits == StateLimits() else None
        known = policy.accepted(device_name, self._clock.now())
        accepted = await _check_covered(observed, {policy.cap_pcr}, (*known, *approval.accepted))
        if announced:
            await self._approve_announced(policy.name, announced.label, device_name, accepted)
            return observation, await self._state(policy.name, announced.label)
        state = self._make(
            policy, label or self._label("approved"), observed.values, "observed", approval.force
        )
        return observation, await self._add(
            policy, replace(state, limits=limits, accepted=accepted), device_name
        )

    async def _candidate(
        self, name: str, observation_id: int | None, *, capped: bool
    ) -> tuple[Device, ReferencePolicy, Observation]:
        """Return a machine, its policy, and the observation that an approval of it means."""
        device = await self._store.devices.get_device(name)
        policy = await self._store.policies.get_policy(device.policy)
        newest_first = await self._store.policies.list_observations(name)
        if observation_id is None:
            return device, policy, choose(device, newest_first, policy.cap_pcr, capped=capped)
        return device, policy, self._named(newest_first, name, observation_id)

    async def waiting_alike(
        self, name: str, observation_id: int | None = None, *, capped: bool = False
    ) -> list[Waiting]:
        """Return the machines whose refused boot differs from what was approved as that of *name* does, itself first.

        Alike are machines in which the same PCRs have the same new values, under any policy.  A machine for which
        no single observation can be meant is not among them.  Raises as :meth:`approve` about *name*.
        """
        first = Waiting(*await self._candidate(name, observation_id, capped=capped))
        wanted = self._news(first)
        found = [first]
        if not wanted[1]:  # its values are approved already, and so may be those of anybody
            return found
        for device in await self._store.devices.list_devices(DeviceSearch(refused=True)):
            if device.name == name:
                continue
            try:
                candidate = await if_ours(self._candidate(device.name, None, capped=capped))
            except (Conflict, NotFound):
                continue
            if candidate is None:
                continue
            other = Waiting(*candidate)
            if other.observation.snapshot.selection == other.policy.selection and self._news(other) == wanted:
                found.append(other)
        return found

    def _news(self, waiting: Waiting) -> tuple[str, PcrValues]:
        """Return the bank, and the values that no state near them has, by PCR."""
        values = waiting.observation.snapshot.values
        counting = waiting.policy.counting(waiting.device.name, self._clock.now())
        differing = min((state.differences(values) for state in counting), key=len, default=tuple(values))
        return waiting.policy.selection.bank, {pcr: values[pcr] for pcr in differing}

    async def approve_alike(
        self, machines: Sequence[Waiting], label: str | None, approval: Approval
    ) -> list[tuple[Waiting, ReferenceState | TangAttestError]]:
        """Approve each of *machines*, as they were returned; a state that covers several is made once.

        An approval that fails stands beside the others.  One for a single boot is for each machine alone.
        """
        if approval.once:
            approval = replace(approval, only_this_device=True)
        base = label or self._label("approved")
        done: list[tuple[Waiting, ReferenceState | TangAttestError]] = []
        made: dict[tuple[str, tuple[tuple[int, bytes], ...]], ReferenceState] = {}
        for number, each in enumerate(machines):
            key = each.policy.name, tuple(sorted(each.observation.snapshot.values.items()))
            if key in made and not approval.only_this_device:
                done.append((each, made[key]))
                continue
            # A policy has each label once, and machines under it may need several states.
            suffix = f" {each.observation.id}" if number else ""
            own = base[: MAX_LABEL - len(suffix)].rstrip() + suffix
            try:
                _, made[key] = await self.approve(
                    each.device.name, own, observation_id=each.observation.id, approval=approval
                )
                done.append((each, made[key]))
            except TangAttestError as error:
                done.append((each, error))
        return done

    async def dismiss(self, observations: Sequence[Observation]) -> None:
        """Forget refused evidence that nobody is going to approve.  Raises ``observation-missing``."""
        entries = [
            self._entry(
                "observation dismiss",
                seen.device,
                {"observation": seen.id, "code": seen.code, "observed_at": seen.at.isoformat()},
            )
            for seen in observations
        ]
        await self._store.policies.dismiss_observations([seen.id for seen in observations], entries)

    # --- a state's life -------------------------------------------------------------------------------------

    async def approve_state(
        self, policy_name: str, label: str, *, accepted: tuple[BootPart, ...] = ()
    ) -> ReferenceState:
        """Let an announced state count.

        Raises ``not-found``, ``uncovered``, ``operators-required``, and ``state-changed`` unless it waits for approval.

        Its coverage is that of the last permitted boot of the machine that announced it: an update changes
        the values, and not the software that measures them.
        """
        policy = await self._signed(policy_name)
        state = next((state for state in policy.states if state.label == label), None)
        if state is not None and state.life is Life.PROPOSED:
            seen = await self._last_boot(policy, state)
            if seen is not None:
                known = (*state.accepted, *policy.accepted("", self._clock.now()))
                accepted = await _check_covered(seen, {policy.cap_pcr}, (*known, *accepted))
        await self._approve_announced(policy_name, label, None, accepted)
        return await self._state(policy_name, label)

    async def _last_boot(self, policy: ReferencePolicy, state: ReferenceState) -> Snapshot | None:
        kind, _, device = (state.created_by or "").partition(":")
        if kind != "device":
            return None
        try:
            evidence = await self._store.policies.get_evidence(device, permitted=True)
        except NotFound:
            return None
        same = evidence is not None and evidence.snapshot.selection == policy.selection
        return evidence.snapshot if evidence is not None and same else None

    async def _approve_announced(
        self, policy: str, label: str, device: str | None, accepted: tuple[BootPart, ...]
    ) -> None:
        details: dict[str, object] = {"policy": policy, "label": label}
        if accepted:
            details["accepted_uncovered"] = [part.value for part in accepted]
        entry = self._entry("policy state approve", device, details)
        await self._store.policies.move_state(
            policy, label, {Life.PROPOSED}, Life.STAGED, entry, accepted=accepted
        )

    async def retire(self, policy_name: str, label: str, *, force: bool = False) -> None:
        """Let a state count no more; an announced one is rejected with it.

        Raises ``not-found``, ``state-changed`` when it is retired, ``state-in-use`` (unless *force*) when a
        machine's last unlock was with it: its next boot would be refused.
        """
        users = await self.users_of(policy_name, label)
        if users and not force:
            names = ", ".join(users[:3]) + (f" and {len(users) - 3} more" if len(users) > 3 else "")
            raise Conflict("state-in-use", f"State '{label}' is what {names} booted last.")
        expected = {Life.PROPOSED, Life.STAGED, Life.ACTIVE}
        await self._move(policy_name, label, expected, Life.RETIRED, "policy state retire")

    async def restore(self, policy_name: str, label: str) -> None:
        """Let a retired state count again.  Raises ``not-found``, ``state-changed``, ``operators-required``."""
        await self._signed(policy_name)
        await self._move(policy_name, label, {Life.RETIRED}, Life.ACTIVE, "policy state restore")

    async def users_of(self, policy_name: str, label: str) -> list[str]:
        """Return the machines whose last permitted unlock met the state *label*, by name."""
        devices = await self._store.devices.list_devices()
        return [
            device.name for device in devices if (device.policy, device.last_state) == (policy_name, label)
        ]

    async def retirable(self, policy_name: str) -> list[str]:
        """Return the active states that every machine of the policy has moved on from, oldest first.

        There is none while a machine has not unlocked yet: it may need any state.  Raises ``not-found``.
        """
        policy = await self._store.policies.get_policy(policy_name)
        devices = [
            device for device in await self._store.devices.list_devices() if device.policy == policy_name
        ]
        return retirable_states(policy, devices)

    # --- learning -------------------------------------------------------------------------------------------

    async def learn(
        self, device_name: str, window: timedelta, accepted: tuple[BootPart, ...] = ()
    ) -> Learning:
        """Arm one learning use: the next authentic unlock quote is recorded if only moving PCRs differ.

        It is not recorded when its event log shows that nobody covers kernel, initrd or command line, but for
        the parts that are *accepted*, now or when the use was armed before.

        Without a state in the policy the stable PCRs could be compared with nothing: raises ``policy-empty``.
        Raises ``selection-invalid`` when the selection has no moving PCR, and ``operators-required``.
        """
        device = await self._store.devices.get_device(device_name)
        policy = await self._signed(device.policy)
        moving = moving_pcrs(policy.selection)
        if not moving:
            raise Refused(
                "selection-invalid", f"{policy.selection} has no PCR that has to be learned; approve instead."
            )
        stable = device.learning.stable if device.learning else self._stable(policy, moving)
        before = device.learning.accepted if device.learning else ()
        chosen = tuple(part for part in BootPart if part in {*before, *accepted})
        learning = Learning(self._clock.now() + window, stable, chosen)
        details: dict[str, object] = {"until": learning.until.isoformat()}
        if chosen:
            details["accepted_uncovered"] = [part.value for part in chosen]
        await self._store.devices.arm_learning(
            device_name, learning, self._entry("device learn", device_name, details)
        )
        return learning

    def _stable(self, policy: ReferencePolicy, moving: tuple[int, ...]) -> PcrValues:
        counting = [s for s in policy.states if s.life in COUNTING and s.limits.rollout is None]
        if not counting:
            raise Refused("policy-empty", f"Policy '{policy.name}' has no reference state that counts.")
        return {pcr: value for pcr, value in counting[-1].values.items() if pcr not in moving}

    async def _signed(self, name: str) -> ReferencePolicy:
        """Return the policy *name*.  Raises ``not-found``, and ``operators-required`` unless enough signed."""
        policy = await self._store.policies.get_policy(name)
        require_operators(policy, self._author)
        return policy

    def _named(self, newest_first: Sequence[Observation], device: str, observation_id: int) -> Observation:
        for observation in newest_first:
            if observation.id == observation_id:
                return observation
        raise NotFound("observation-missing", f"There is no observation {observation_id} of '{device}'.")

    async def _imported(
        self, policy: ReferencePolicy, label: str | None, values: PcrValues, backing: Backing, *, force: bool
    ) -> ReferenceState:
        state = self._make(policy, label or self._label("imported"), values, "imported", force)
        seen = Snapshot(policy.selection, values, backing.event_log)
        known = policy.accepted("", self._clock.now())
        return replace(
            state, accepted=await _check_covered(seen, {policy.cap_pcr}, (*known, *backing.accepted))
        )

    def _limits(self, device: Device, approval: Approval) -> StateLimits:
        return StateLimits(
            device=device.name if approval.only_this_device else None,
            expires_at=None if approval.valid_for is None else self._clock.now() + approval.valid_for,
            uses_left=1 if approval.once else None,
        )

    def _make(
        self, policy: ReferencePolicy, label: str, values: PcrValues, origin: str, force: bool
    ) -> ReferenceState:
        state = reference_state(
            policy.selection, check_label(label), values, origin, cap_pcr=policy.cap_pcr, force=force
        )
        return replace(state, created_at=self._clock.now(), created_by=self._author.actor)

    async def _add(
        self, policy: ReferencePolicy, state: ReferenceState, device: str | None
    ) -> ReferenceState:
        for known in policy.states:
            if known.values == state.values and known.life in COUNTING and known.limits == StateLimits():
                raise Conflict(
                    "values-known", f"State '{known.label}' of policy '{policy.name}' has these values."
                )
        details = describe_state(policy.name, state)
        await self._store.policies.add_state(
            policy.name, state, self._entry("policy state add", device, details)
        )
        return state

    async def _move(
        self,
        policy: str,
        label: str,
        expected: Collection[Life],
        to: Life,
        event: str,
        device: str | None = None,
    ) -> None:
        details: dict[str, object] = {"policy": policy, "label": label}
        await self._store.policies.move_state(
            policy, label, expected, to, self._entry(event, device, details)
        )

    async def _state(self, policy: str, label: str) -> ReferenceState:
        states = (await self._store.policies.get_policy(policy)).states
        return next(state for state in states if state.label == label)

    def _label(self, word: str) -> str:
        return f"{word} {self._clock.now():%Y-%m-%d %H:%M:%S}"

    def _entry(self, event: str, device: str | None, details: dict[str, object]) -> AuditEntry:
        return self._author.entry(self._clock.now(), event, device, details)


def retirable_states(policy: ReferencePolicy, devices: Sequence[Device]) -> list[str]:
    """See :meth:`ReferenceValues.retirable`; *devices* are all those of *policy*."""
    in_use = {device.last_state for device in devices}
    if not devices or None in in_use:
        return []
    active = [state.label for state in policy.states if state.life is Life.ACTIVE]
    return [label for label in active if label not in in_use]


def describe_state(policy: str, state: ReferenceState) -> dict[str, object]:
    """Return a state in the form of the audit record."""
    limits = state.limits
    return {
        "policy": policy,
        "label": state.label,
        "origin": state.origin,
        "life": state.life.value,
        "device": limits.device,
        "expires_at": None if limits.expires_at is None else limits.expires_at.isoformat(),
        "uses": limits.uses_left,
        **({"accepted_uncovered": [part.value for part in state.accepted]} if state.accepted else {}),
        "values": {str(pcr): value.hex() for pcr, value in sorted(state.values.items())},
    }


async def _check_covered(
    seen: Snapshot, loose: set[int], accepted: tuple[BootPart, ...]
) -> tuple[BootPart, ...]:
    """Return the parts whose acceptance means something for *seen*.  Raises ``uncovered``."""
    found = await asyncio.to_thread(assess, seen.event_log, seen.selection, seen.values, loose=loose)
    require_covered(found, accepted)
    return acceptance(found, accepted)


def _proposed(policy: ReferencePolicy, values: PcrValues) -> ReferenceState | None:
    """Return the announced state that waits for approval and has these values."""
    same = (state for state in policy.states if state.values == values and state.life is Life.PROPOSED)
    return next(same, None)
