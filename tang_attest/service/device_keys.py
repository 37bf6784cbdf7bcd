"""Exchange keys that serve a device; an open key is not one of them."""

from __future__ import annotations

from dataclasses import dataclass

from tang_attest.errors import NotFound
from tang_attest.ports import Device, SealedKey, Store
from tang_attest.protocol.policy import ReferencePolicy


@dataclass(frozen=True, slots=True)
class DeviceKey:
    """An exchange key, the device it serves, and the device's policy, as the database has them now."""

    key: SealedKey
    device: Device
    policy: ReferencePolicy


async def find_device_key(store: Store, kid: str) -> DeviceKey:
    """The device's key with thumbprint *kid*.  Raises ``key-unknown``."""
    bound = await store.find_key(kid)
    if bound is None or bound.device is None or bound.policy is None:
        raise NotFound("key-unknown", "This server has no key with that identifier.")
    return DeviceKey(bound.key, bound.device, bound.policy)
