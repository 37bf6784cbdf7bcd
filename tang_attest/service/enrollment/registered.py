"""EKs that are registered before their machines enroll, from the operator's side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from tang_attest.errors import NotFound, Reason
from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.enrollment import RegisteredEk
from tang_attest.ports.store import HasDevices, HasEnrollment, HasPolicies
from tang_attest.ports.world import Clock
from tang_attest.protocol.endorsement.registered import EkEntry, ek_digest, fault, raise_faults, repeated
from tang_attest.service.audit.actors import Author


class RegisteringStore(HasDevices, HasEnrollment, HasPolicies, Protocol):
    """The roles of the store that registered EKs need."""


class RegisteredEks:
    """Registers EKs and takes registrations back; each change is one transaction with its audit entries.

    A refusal names only machines under policies that are *shown*; by default all are.
    """

    def __init__(
        self,
        store: RegisteringStore,
        clock: Clock,
        author: Author,
        *,
        shown: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._store, self._clock, self._author, self._shown = store, clock, author, shown

    async def register(self, entries: Sequence[EkEntry]) -> Sequence[RegisteredEk]:
        """Register the EKs of *entries*, all or none; return the new ones.

        One that is registered with the same terms stays as it is, used or not.  An EK whose device is enrolled
        already counts as used.  Raises ``ek-list-invalid`` with the fault of each line, ``ek-registered``.
        """
        raise_faults(repeated(entries))
        entries = list({entry.ek_sha256: entry for entry in reversed(entries)}.values())[::-1]
        used = await self._check(entries)
        now = self._clock.now()
        new = [
            RegisteredEk(
                ek_sha256=entry.ek_sha256,
                name=entry.name,
                policy=entry.policy,
                labels=entry.labels,
                without_token=entry.without_token,
                added_at=now,
                added_by=self._author.actor,
                used_at=now if entry.ek_sha256 in used else None,
            )
            for entry in entries
        ]
        audit = [self._entry("ek register", each) for each in new]
        return await self._store.enrollment.register_eks(new, audit)

    async def unregister(self, named: str) -> RegisteredEk:
        """Take the registration of a device name or of an EK (64 hex digits) back; its device stays.

        Raises ``not-found``.
        """
        for each in await self._store.enrollment.list_registered_eks():
            if named in (each.name, each.ek_sha256.hex()):
                entry = self._entry("ek unregister", each)
                await self._store.enrollment.unregister_ek(each.ek_sha256, entry)
                return each
        raise NotFound("not-found", f"No EK is registered for '{named}'.")

    async def _check(self, entries: Sequence[EkEntry]) -> set[bytes]:
        """Compare *entries* with the registry; return the EKs of those that are enrolled already."""
        policies = {policy.name for policy in await self._store.policies.list_policies()}
        devices = {device.name: device for device in await self._store.devices.list_devices()}
        owners = {ek_digest(device.ek_spki): device.name for device in devices.values() if device.ek_spki}
        registered = await self._store.enrollment.list_registered_eks()
        known = {each.ek_sha256: each for each in registered}
        names = {each.name: each for each in registered}
        reasons: list[Reason] = []
        used = set()
        for entry in entries:
            mine, other = known.get(entry.ek_sha256), names.get(entry.name)
            owner = owners.get(entry.ek_sha256)
            if entry.policy not in policies:
                reasons.append(fault(entry.line, f"There is no policy '{entry.policy}'."))
            elif mine is not None and mine.terms != (
                entry.name,
                entry.policy,
                entry.labels,
                entry.without_token,
            ):
                known_as = f", as '{mine.name}'" if self._shown(mine.policy) else ""
                reasons.append(fault(entry.line, f"The EK is registered with other terms{known_as}."))
            elif mine is None and other is not None:
                reasons.append(fault(entry.line, f"The name '{entry.name}' is registered for another EK."))
            elif owner is not None and owner != entry.name:
                held_by = f"device '{owner}'" if self._shown(devices[owner].policy) else "another device"
                reasons.append(fault(entry.line, f"The EK is that of {held_by}."))
            elif owner is None and mine is None and entry.name in devices:
                reasons.append(
                    fault(entry.line, f"There is a device '{entry.name}' with another EK already.")
                )
            elif owner is not None:
                used.add(entry.ek_sha256)
        raise_faults(reasons)
        return used

    def _entry(self, event: str, each: RegisteredEk) -> AuditEntry:
        details: Mapping[str, object] = {
            "ek_sha256": each.ek_sha256.hex(),
            "policy": each.policy,
            "labels": list(each.labels),
            "without_token": each.without_token,
        }
        return self._author.entry(self._clock.now(), event, each.name, details)
