"""Devices, from the operator's side: registration, labels, suspension, removal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from tang_attest.errors import Malformed, NotFound
from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.keys import KeyStore
from tang_attest.ports.machines import Device, DeviceStore, NewDevice, Reach, Suspension
from tang_attest.ports.world import Clock
from tang_attest.protocol.enrollment import check_name
from tang_attest.protocol.policy import (
    DEFAULT_CAP_PCR,
    DEFAULT_SELECTION,
    ReferencePolicy,
    check_policy_selection,
)
from tang_attest.protocol.tpm import AttestationKey
from tang_attest.protocol.values.labels import check_labels
from tang_attest.protocol.values.pcr import Selection
from tang_attest.protocol.values.points import DEFAULT_CURVE
from tang_attest.protocol.verification import check_reach
from tang_attest.service.audit.actors import Author


class DeviceAdministration:
    """Registers and changes devices; each change is one transaction with its audit entry."""

    def __init__(self, store: DeviceStore, keys: KeyStore, clock: Clock, author: Author) -> None:
        self._store, self._keys, self._clock, self._author = store, keys, clock, author

    async def register(
        self,
        name: str,
        ak: AttestationKey,
        policy: str | None,
        *,
        reach: Reach | None = None,
        selection: Selection | None = None,
        verified_only: bool = False,
    ) -> Device:
        """Add a machine whose AK an operator brings; nothing proves that a certain TPM holds it.

        Without *policy* it gets an empty one of its own, over *selection*, which is removed with it.  A
        machine that is *verified_only* gets no exchange key, so it unlocks nothing; it needs a *reach*, and
        may share its AK with other machines of this kind.  Raises ``name-taken``, ``device-exists``,
        ``not-found`` (policy), ``setting-invalid``.
        """
        if verified_only and reach is None:
            raise Malformed("setting-invalid", "A machine without an exchange key is asked over a TCTI only.")
        if reach is not None:
            check_reach(reach.tcti, reach.ak_handle)
        now = self._clock.now()
        device = NewDevice(
            name=check_name(name),
            ak_public=ak.public,
            ak_name=ak.name,
            ak_spki=ak.spki,
            ak_scheme=ak.scheme,
            ak_hash=ak.hash_name,
            ek_spki=None,
            ek_certificate=None,
            ek_verified=False,
            ek_issuer=None,
            origin="registered",
            enrolled_at=now,
            reach=reach,
            verified_only=verified_only,
        )
        key = None if verified_only else await self._keys.create_exchange(DEFAULT_CURVE, now, device.holder)
        under: str | ReferencePolicy
        if policy is not None:
            under = policy
        else:
            chosen = check_policy_selection(selection or Selection.parse(DEFAULT_SELECTION))
            under = ReferencePolicy(name, chosen, DEFAULT_CAP_PCR, ())
        return await self._store.add_device(
            device, under, key, replace(self._entry("device register", name), kid=key.kid if key else None)
        )

    async def sharers(self, device: Device) -> Sequence[str]:
        """Return the names of the other devices with the AK of *device*."""
        same = [other.name for other in await self._store.list_devices() if other.ak_spki == device.ak_spki]
        return [name for name in same if name != device.name]

    async def suspend(self, name: str, reason: str) -> None:
        """Suspend a device: its keys answer no one until :meth:`resume`.  Raises ``not-found``,
        ``device-suspended``.
        """
        suspension = Suspension(self._clock.now(), self._author.actor, check_reason(reason))
        entry = self._entry("device suspend", name, {"reason": reason})
        await self._store.suspend_device(name, suspension, entry)

    async def resume(self, name: str) -> None:
        """Let the keys of a device answer again.  Raises ``not-found``, ``not-suspended``."""
        await self._store.resume_device(name, self._entry("device resume", name))

    async def enrolled_at(self, name: str) -> datetime | None:
        """Return the time since which a device has this *name* and its TPM; ``None`` if there is no such device."""
        try:
            return (await self._store.get_device(name)).enrolled_at
        except NotFound:
            return None

    async def allow(self, name: str, window: timedelta) -> datetime:
        """Allow a machine to unlock for *window*; return the time of its end.  Raises ``not-found``."""
        until = self._clock.now() + window
        entry = self._entry("device allow", name, {"until": until.isoformat()})
        await self._store.allow_device(name, until, entry)
        return until

    async def set_running_policy(self, name: str, policy: str | None) -> None:
        """Set the policy that a machine is verified against while it runs; ``None``: its own policy, capped.
        Raises ``not-found``.
        """
        entry = self._entry("device running-policy", name, {"policy": policy})
        await self._store.set_running_policy(name, policy, entry)

    async def label(self, names: Sequence[str], add: Sequence[str], remove: Sequence[str]) -> None:
        """Add and remove labels, on all of *names* or none.  Raises ``not-found``, ``request-malformed``."""
        added, removed = check_labels(add), check_labels(remove)
        details = {"add": list(added), "remove": list(removed)}
        distinct = sorted(set(names))
        entries = [self._entry("device label", name, details) for name in distinct]
        await self._store.label_devices(distinct, added, removed, entries)

    async def remove(self, name: str) -> None:
        """Forget a machine and destroy its exchange keys: its disks open by passphrase only, for good."""
        await self._store.remove_device(name, self._entry("device remove", name))

    def _entry(
        self, event: str, device: str | None, details: Mapping[str, object] | None = None
    ) -> AuditEntry:
        return self._author.entry(self._clock.now(), event, device, details or {})


def check_reason(text: str) -> str:
    """Return *text* if it is a reason of 1 to 200 printable characters.  Raises ``request-malformed``."""
    if not 1 <= len(text) <= 200 or not text.isprintable():
        raise Malformed("request-malformed", "A reason has 1 to 200 printable characters.")
    return text
