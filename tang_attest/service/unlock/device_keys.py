"""Exchange keys that serve a device; an open key is not one of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from tang_attest.errors import NotFound
from tang_attest.ports.decisions import Basis, BoundKey, DecisionStore, PolicyPcrs, Reading
from tang_attest.ports.keys import EncryptedKey
from tang_attest.ports.machines import Device
from tang_attest.ports.store import HasDecisions, HasDevices, HasPolicies
from tang_attest.protocol.changes.rollout import Rollout, RolloutSubject, judged_by
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.tpm import ClockInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedDevice:
    """A device and the policy that appraises it, read from the database now.

    ``policy`` is the stored one after :func:`judged_by`.  ``rollout`` is the one under way, and ``subject``
    the device's part in it.  ``basis`` identifies the rows on which a permit by ``policy`` rests.
    """

    device: Device
    policy: ReferencePolicy
    rollout: Rollout | None
    subject: RolloutSubject
    basis: Basis

    @property
    def identity(self) -> str:
        """The text that a challenge and the quote of a round are bound to; no kid has a colon."""
        return f"device:{self.device.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceKey(JudgedDevice):
    """An exchange key, its device, and the policy that appraises the device, read from the database now.

    ``reading`` is set if they were recalled instead: the moment at which they were read.
    """

    key: EncryptedKey
    reading: Reading | None = None

    @property
    def identity(self) -> str:
        """The thumbprint of the key, which the agent of the machine knows."""
        return self.key.kid


class JudgingStore(HasDecisions, HasDevices, HasPolicies, Protocol):
    """The roles of the store that hold a device and its policy."""


async def find_device_key(store: DecisionStore, kid: str) -> DeviceKey:
    """Return the device's key with thumbprint *kid*.  Raises ``key-unknown``."""
    found = _judged(await store.find_key(kid))
    if found is None:
        raise _unknown()
    return found


def recall_device_key(store: DecisionStore, kid: str) -> DeviceKey | None:
    """Return the device's key as it was read a moment ago, for a permit only; ``None`` when it has to be read."""
    return _judged(store.recall_key(kid))


def _judged(bound: BoundKey | None) -> DeviceKey | None:
    if bound is None or bound.device is None or bound.policy is None:
        return None
    subject = RolloutSubject(bound.device.name, bound.device.labels, bound.outcome)
    policy = judged_by(bound.policy, bound.rollout, subject)
    stored = bound.policy
    basis = Basis(stored.rules, bound.rollout, bound.device.labels, stored.name, stored.signers)
    return DeviceKey(
        key=bound.key,
        device=bound.device,
        policy=policy,
        rollout=bound.rollout,
        subject=subject,
        basis=basis,
        reading=bound.reading,
    )


async def find_judged_device(store: JudgingStore, name: str) -> JudgedDevice:
    """Return the device *name*, which needs no exchange key.  Raises ``not-found``."""
    device = await store.devices.get_device(name)
    if device.kids:
        return await find_device_key(store.decisions, device.kids[0])
    stored, rollout = await asyncio.gather(
        store.policies.get_policy(device.policy), store.policies.get_rollout(device.policy)
    )
    subject = RolloutSubject(name, device.labels)  # a device that never unlocks has no outcome in a rollout
    return JudgedDevice(
        device=device,
        policy=judged_by(stored, rollout, subject),
        rollout=rollout,
        subject=subject,
        basis=Basis(stored.rules, rollout, device.labels, stored.name, stored.signers),
    )


async def find_question(store: DecisionStore, kid: str) -> tuple[PolicyPcrs, ClockInfo | None]:
    """Return the PCRs required to use key *kid*, and the clock of its device's newest evidence.

    Raises ``key-unknown``.  A rollout changes the good values, never the PCRs.
    """
    found = await store.find_question(kid)
    if found is None:
        raise _unknown()
    return found


def _unknown() -> NotFound:
    return NotFound("key-unknown", "This server has no key with that identifier.")
