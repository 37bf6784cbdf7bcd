"""A device under another name, or under another policy."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Protocol

from tang_attest.errors import Conflict, Reason
from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.machines import Device
from tang_attest.ports.store import HasDevices, HasPolicies
from tang_attest.ports.world import Clock
from tang_attest.protocol.changes.dry_run import DryRun, Trial, dry_run
from tang_attest.protocol.changes.rollout import RolloutSubject, judged_by
from tang_attest.protocol.enrollment import check_name
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.service.audit.actors import Author
from tang_attest.service.policies.operators import require_operators


@dataclass(frozen=True, slots=True)
class Move:
    """A device that was moved: ``before`` is the policy that it left, ``after`` the one that it is under.

    * ``permitted``: true if the new policy permits the last boot that the old one permitted, ``None`` if nothing
      shows that;
    * ``reason``: the reason for which it does not;
    * ``left``: labels of the states of ``before`` that are for this device alone;
    * ``disused``: no device is under ``before`` any more.
    """

    before: ReferencePolicy
    after: ReferencePolicy
    permitted: bool | None
    reason: Reason | None
    _: KW_ONLY
    left: tuple[str, ...]
    unarmed: bool
    disused: bool


class TransferStore(HasDevices, HasPolicies, Protocol):
    """The roles of the store that a transfer needs."""


class DeviceTransfers:
    """Renames and moves devices; each change is one transaction with its audit entries."""

    def __init__(self, store: TransferStore, clock: Clock, author: Author) -> None:
        self._store, self._clock, self._author = store, clock, author

    async def rename(self, name: str, new: str) -> Device:
        """Give a device another name; its keys, states and history stay its own.

        Raises ``not-found``, ``request-malformed`` (the new name), ``name-taken``, ``rollout-unfinished``.
        """
        check_name(new)
        entries = [
            self._entry("device rename", name, {"to": new}),
            self._entry("device rename", new, {"from": name}),
        ]
        await self._store.devices.rename_device(name, new, entries)
        return await self._store.devices.get_device(new)

    async def move(self, name: str, policy: str, *, force: bool = False) -> Move:
        """Bring a device under another policy.

        Raises ``not-found`` (either), ``policy-same``, ``policy-unfit`` when the machine's quotes do not fit the
        policy, ``would-refuse`` (unless *force*) when it would refuse the machine's last boot,
        ``policy-changed``, and ``operators-required`` by the policy that it leaves.  With *force*, other PCRs of the same bank fit.
        """
        device = await self._store.devices.get_device(name)
        before = await self._store.policies.get_policy(device.policy)
        after = await self._store.policies.get_policy(policy)
        require_operators(before, self._author)
        _check_fits(device, before, after, force=force)
        tried = await self._try(device, before, after)
        reason = tried.refused[0].reason if tried.refused else None
        if reason is not None and not force:
            sentence = f"Policy '{policy}' would refuse the last boot of '{name}': {reason.sentence}"
            raise Conflict("would-refuse", sentence)
        details = {"from": before.name, "to": policy, "forced": force}
        await self._store.devices.move_device(
            name, policy, before.name, self._entry("device move", name, details)
        )
        return Move(
            before,
            after,
            None if tried.unknown else reason is None and not tried.already,
            reason or (tried.already[0].reason if tried.already else None),
            left=tuple(state.label for state in before.states if state.limits.device == name),
            unarmed=device.learning is not None,
            disused=all(each.policy != before.name for each in await self._store.devices.list_devices()),
        )

    async def _try(self, device: Device, before: ReferencePolicy, after: ReferencePolicy) -> DryRun:
        """Judge the last permitted boot by both policies."""
        subject = RolloutSubject(device.name, device.labels)
        now, then = [
            judged_by(policy, await self._store.policies.get_rollout(policy.name), subject)
            for policy in (before, after)
        ]
        last = await self._store.policies.get_evidence(device.name, permitted=True)
        selection, values, log = (
            (last.snapshot.selection, last.snapshot.values, last.snapshot.event_log)
            if last
            else (None, {}, b"")
        )
        trial = Trial(device.name, selection, values, log, now, then=then)
        return await asyncio.to_thread(dry_run, [trial], self._clock.now())

    def _entry(self, event: str, device: str, details: Mapping[str, object]) -> AuditEntry:
        return self._author.entry(self._clock.now(), event, device, details)


def _check_fits(device: Device, before: ReferencePolicy, after: ReferencePolicy, *, force: bool) -> None:
    """Raise ``policy-same`` or ``policy-unfit``.

    The cap cannot be forced: an initrd extends the PCR that it was made for, and under another cap the running
    system could quote what its initrd quoted.
    """
    if after.name == before.name:
        raise Conflict("policy-same", f"Device '{device.name}' is under policy '{after.name}' already.")
    if after.cap_pcr != before.cap_pcr:
        sentence = (
            f"Policy '{after.name}' caps PCR {after.cap_pcr}; "
            f"the initrd of '{device.name}' extends PCR {before.cap_pcr}."
        )
        raise Conflict("policy-unfit", sentence)
    same_bank = after.selection.bank == before.selection.bank
    if not same_bank or (after.selection != before.selection and not force):
        sentence = (
            f"Policy '{after.name}' is over {after.selection}; '{device.name}' quotes {before.selection}."
        )
        raise Conflict("policy-unfit", sentence)
