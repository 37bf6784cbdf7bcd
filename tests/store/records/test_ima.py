"""IMA in the registry: requirements by digest, and how far each machine's list was read."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tang_attest.errors import NotFound
from tang_attest.ports.policies import ImaRequirement
from tang_attest.protocol.conditions import Conditions, Watch
from tang_attest.store import SqlStore
from tests.store.samples import device, entry, key, policy

FIRST = ImaRequirement("11" * 32, {"ignore": ["/a"]})
SECOND = ImaRequirement("22" * 32, {"sums": {"/b": [f"sha256:{'33' * 32}"]}})


async def test_requirements(store: SqlStore) -> None:
    """Policies share one, keep their other conditions, and the last that lets go of it removes it."""
    await store.policies.add_policy(policy("a"), entry())
    await store.policies.add_policy(policy("b"), entry())
    watched = Conditions(watch=Watch(), stale_after_s=5)
    await store.policies.set_conditions("a", watched, entry())
    for name in ("a", "b"):
        await store.policies.require_ima(name, FIRST, entry())
    assert (await store.policies.get_policy("a")).conditions == replace(watched, ima=FIRST.digest)
    assert await store.rounds.find_ima_requirement(FIRST.digest) == FIRST
    await store.policies.require_ima("a", SECOND, entry())
    assert await store.rounds.find_ima_requirement(FIRST.digest) == FIRST
    await store.policies.require_ima("b", None, entry())
    assert await store.rounds.find_ima_requirement(FIRST.digest) is None
    assert await store.rounds.find_ima_requirement(SECOND.digest) == SECOND
    assert (await store.policies.get_policy("b")).conditions == Conditions()
    with pytest.raises(NotFound):
        await store.policies.require_ima("c", FIRST, entry())
    assert await store.rounds.find_ima_requirement(FIRST.digest) is None


async def test_progress(store: SqlStore) -> None:
    """The last one counts, also of two at once; a device that is gone has none."""
    await store.policies.add_policy(policy(), entry())
    known = await store.devices.add_device(device(), "policy", key(), entry())
    assert await store.rounds.ima_progress(known.id) is None
    await asyncio.gather(*(store.rounds.keep_ima_progress(known.id, {"offset": n}) for n in range(4)))
    await store.rounds.keep_ima_progress(known.id, {"offset": 9})
    assert await store.rounds.ima_progress(known.id) == {"offset": 9}
    await store.rounds.keep_ima_progress(known.id, None)
    assert await store.rounds.ima_progress(known.id) is None
    await store.rounds.keep_ima_progress(known.id, {"offset": 1})
    await store.devices.remove_device("pi-b", entry())
    await store.rounds.keep_ima_progress(known.id, {"offset": 2})
    assert await store.rounds.ima_progress(known.id) is None
