"""Refusals independent of the boot: a suspension, a retired key, and a policy that requires approval by an
operator.

A suspended machine learns that only after its TPM has signed: the code would show an unauthenticated client
that the machine is suspected, and an attacker with its disk that the theft was noticed.
"""

from __future__ import annotations

from datetime import datetime

from tang_attest.errors import Refused
from tang_attest.ports.keys import EncryptedKey
from tang_attest.ports.machines import Device
from tang_attest.protocol.policy import ReferencePolicy


def check_not_suspended(device: Device) -> None:
    """Raise ``device-suspended``.  The store checks again in the transaction that decides."""
    if device.suspension is not None:
        when = f"{device.suspension.at:%Y-%m-%d %H:%M}"
        raise Refused("device-suspended", f"Device '{device.name}' is suspended since {when} UTC.")


def check_not_retired(key: EncryptedKey) -> None:
    """Raise ``key-retired``.  The store checks again in the transaction that decides."""
    if key.retired_at is not None:
        raise Refused(
            "key-retired", f"The key of this disk was retired at {key.retired_at:%Y-%m-%d %H:%M} UTC."
        )


def check_admitted(policy: ReferencePolicy, device: Device, now: datetime) -> None:
    """Raise ``approval-required`` or ``device-stale`` when an operator has to allow an unlock that *policy*
    permits.
    """
    seen_at = device.standing.verified_at or device.enrolled_at
    obstacle = policy.conditions.obstacle(device.name, device.allowed_until, seen_at, now)
    if obstacle is not None:
        raise Refused.because(obstacle)
