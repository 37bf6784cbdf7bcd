"""Machines: devices and their status."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.keys import EncryptedKey, holder
from tang_attest.protocol.cap import Opened, untold
from tang_attest.protocol.coverage import BootPart
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.signed_values.signed_state import SignedState
from tang_attest.protocol.tpm import ClockInfo
from tang_attest.protocol.verification import RoundOutcome


@dataclass(frozen=True, slots=True)
class Learning:
    """One armed learning use: until when, and the values that must not differ (by PCR).

    ``accepted`` are parts of the boot that nothing covers, which the operator accepted for the state to come.
    """

    until: datetime
    stable: Mapping[int, bytes]
    accepted: tuple[BootPart, ...] = ()


@dataclass(frozen=True, slots=True)
class Suspension:
    """Suspension of a device: every use of its exchange keys is refused; ``by`` is an audit actor."""

    at: datetime
    by: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationStatus:
    """Status of the verification of a running machine.

    * ``since``: the time since which ``outcome`` and ``code`` are the same;
    * ``answered_at``: the time of the running system's last authentic evidence;
    * ``verified_at``: the time of the last good evidence, a permitted unlock included;
    * ``wanted_at``: the time of an operator's request for a round that has not been held yet.
    """

    outcome: RoundOutcome | None = None
    code: str | None = None
    since: datetime | None = None
    answered_at: datetime | None = None
    verified_at: datetime | None = None
    wanted_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class OpenedReport:
    """A machine's statement about the disks of one boot: the time, and the TPM's reset counter in that boot."""

    at: datetime
    reset_count: int
    opened: Opened


@dataclass(frozen=True, slots=True)
class Reach:
    """A TPM that this machine can ask itself: a TCTI, such as a virtual machine's, and the AK's handle there."""

    tcti: str
    ak_handle: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDevice:
    """A machine as it is added.

    ``ak_public`` is its TPM2B_PUBLIC (empty when only ``ak_spki`` is known, see ``device register --pem``),
    ``origin`` ``enrolled`` or ``registered``.  ``opened_reset_count`` is the TPM's reset counter when it last
    ran with open disks: at enrollment, and at each permitted unlock.  ``verified_only`` devices have no
    exchange key, and may share an AK with each other.
    """

    name: str
    ak_public: bytes
    ak_name: bytes
    ak_spki: bytes
    ak_scheme: str
    ak_hash: str
    ek_spki: bytes | None
    ek_certificate: bytes | None
    ek_verified: bool
    ek_issuer: str | None
    origin: str
    enrolled_at: datetime
    clock: ClockInfo | None = None
    learning: Learning | None = None
    opened_reset_count: int | None = None
    labels: tuple[str, ...] = ()
    reach: Reach | None = None
    verified_only: bool = False

    @property
    def holder(self) -> str:
        """Its name in its exchange keys: see :func:`tang_attest.ports.keys.holder`."""
        return holder(self.ak_name, self.ak_spki)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device(NewDevice):
    """A registered machine.

    * ``kids``: its exchange keys that answer, newest first;
    * ``last_state``: the label of the reference state that its last permitted unlock met;
    * ``signed``: the signed state that took part in it;
    * ``running_policy``: the policy it is verified against while it runs (none: its own, capped);
    * ``allowed_until``: the end of an operator's approval that it may unlock;
    * ``labels``: words by which rollouts and listings choose;
    * ``grade``: the grade of its newest evidence (:mod:`tang_attest.protocol.grade`);
    * ``evidence_digest``: that evidence's :attr:`NewEvidence.digest`;
    * ``told``: the last report of its running system about its disks;
    * ``learned_reset_count``: the TPM's reset counter in the boot whose state was learned: that boot opens
      nothing.
    """

    id: int
    policy: str
    last_seen_at: datetime | None = None
    last_code: str | None = None
    last_state: str | None = None
    signed: SignedState | None = None
    grade: Mapping[str, object] | None = None
    evidence_digest: bytes | None = None
    kids: tuple[str, ...] = ()
    running_policy: str | None = None
    suspension: Suspension | None = None
    allowed_until: datetime | None = None
    standing: VerificationStatus = VerificationStatus()
    told: OpenedReport | None = None
    learned_reset_count: int | None = None

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """Inputs that may steer its boot although nothing measures them, by its newest evidence."""
        found = (self.grade or {}).get("unmeasured")
        return tuple(map(str, found)) if isinstance(found, list) else ()

    @property
    def coverage(self) -> str:
        """Coverage of its newest evidence in one line, or ``unknown: `` and why."""
        found = (self.grade or {}).get("coverage")
        return str(found["line"]) if isinstance(found, dict) else "unknown: no evidence of a boot is kept"

    @property
    def uncovered(self) -> tuple[BootPart, ...]:
        """Parts of its newest boot that nothing covers."""
        found = (self.grade or {}).get("coverage")
        return tuple(BootPart(name) for name in found["uncovered"]) if isinstance(found, dict) else ()

    @property
    def accepted_uncovered(self) -> tuple[BootPart, ...]:
        """Those of them that the operator accepted."""
        found = (self.grade or {}).get("coverage")
        return tuple(BootPart(name) for name in found["accepted"]) if isinstance(found, dict) else ()

    @property
    def disks(self) -> Opened:
        """The way in which the newest boot opened its disks, as far as that boot reported."""
        if self.told is None:
            return untold("its running system told nothing yet")
        if self.clock is not None and self.clock.reset_count != self.told.reset_count:
            return untold("it booted since it told, and told nothing of that boot yet")
        return self.told.opened


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSearch:
    """Conditions on devices, all of which a device has to meet; an empty one is met by every device.

    * ``policies``: any of these;
    * ``labels``: all of these;
    * ``refused``: its last boot or its last round was refused, or it is suspended;
    * ``silent_since``: it gave no evidence since then, of a boot or of a round, and was enrolled before.
    """

    policies: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    refused: bool = False
    silent_since: datetime | None = None


EVERY_DEVICE: Final = DeviceSearch()


class DeviceStore(Protocol):
    """Devices: the records of enrolled and registered machines."""

    async def add_device(
        self, device: NewDevice, policy: str | ReferencePolicy, key: EncryptedKey | None, audit: AuditEntry
    ) -> Device:
        """Add a registered device, with its *key* if it has one, under an existing policy or one that is made
        for it.

        Raises ``name-taken``, ``device-exists``, ``not-found`` (policy).
        """

    async def list_devices(self, search: DeviceSearch = EVERY_DEVICE) -> Sequence[Device]:
        """Return the devices that meet *search*, by name."""

    async def get_device(self, name: str) -> Device:
        """Return the device *name*.  Raises ``not-found``."""

    async def remove_device(self, name: str, audit: AuditEntry) -> None:
        """Remove the device and destroy its exchange keys, in the file and in the write-ahead log too.

        Its observations go too, and the policy that its enrollment recorded unless another device uses it: so
        it can be enrolled again under its name.  The audit record stays.  Raises ``not-found``.
        """

    async def suspend_device(self, name: str, suspension: Suspension, audit: AuditEntry) -> None:
        """Refuse every use of the device's keys.  Raises ``not-found``, ``device-suspended``."""

    async def resume_device(self, name: str, audit: AuditEntry) -> None:
        """End the suspension.  Raises ``not-found``, ``not-suspended``."""

    async def allow_device(self, name: str, until: datetime, audit: AuditEntry) -> None:
        """Record an operator's approval that the device may unlock until *until*.  Raises ``not-found``."""

    async def label_devices(
        self,
        names: Sequence[str],
        add: Collection[str],
        remove: Collection[str],
        audits: Sequence[AuditEntry],
    ) -> None:
        """Add and remove labels, for all of *names* or none.

        Raises ``not-found``, and ``request-malformed`` for too many labels.
        """

    async def rename_device(self, name: str, new: str, audits: Sequence[AuditEntry]) -> None:
        """Give a device another name, also in states and policies that are for it alone, and in its history.

        The audit record keeps its entries.  Raises ``not-found``, ``name-taken``, and ``rollout-unfinished``.
        """

    async def move_device(self, name: str, policy: str, expected: str, audit: AuditEntry) -> None:
        """Bring a device from the policy *expected* under *policy*; a learning use that was armed ends.

        Raises ``not-found`` (either), and ``policy-changed`` when it is under another policy meanwhile.
        """

    async def arm_learning(self, device: str, learning: Learning | None, audit: AuditEntry) -> None:
        """Arm (or with ``None`` end) the one learning use of a device.  Raises ``not-found``."""

    async def set_running_policy(self, device: str, policy: str | None, audit: AuditEntry) -> None:
        """Set the policy that the device is verified against while it runs.

        Raises ``not-found`` (either).
        """

    async def seen(self, now: datetime) -> Mapping[str, int]:
        """Count devices by when they last gave evidence: ``hour``, ``day``, ``week`` ago, ``before``,
        ``never``.
        """
