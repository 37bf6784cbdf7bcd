"""Searches for devices: each condition, and all together, on each database."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from tang_attest.ports.machines import DeviceSearch, Suspension
from tang_attest.ports.rounds import RoundRecord
from tang_attest.protocol.verification import RoundOutcome
from tang_attest.store import SqlStore
from tests.store.samples import NOW, decision, device, entry, key, policy

LATER = NOW + timedelta(days=10)


@pytest_asyncio.fixture
async def fleet(store: SqlStore) -> SqlStore:
    """Five machines; ``quiet`` was never seen, ``new`` is from yesterday."""
    for name in ("web", "db"):
        await store.policies.add_policy(policy(name), entry())
    machines = {
        "booted": ("web", NOW, ("a", "b")),
        "refused": ("web", NOW, ("a_b",)),
        "suspended": ("db", NOW, ("a",)),
        "quiet": ("db", NOW, ("ab",)),
        "new": ("db", LATER, ()),
    }
    ids = {}
    for name, (under, at, labels) in machines.items():
        made = replace(device(name), enrolled_at=at, labels=labels)
        ids[name] = (await store.devices.add_device(made, under, key(f"kid-{name}"), entry())).id
    for name, code, at in (
        ("booted", "ok", LATER),
        ("refused", "pcr-mismatch", NOW),
        ("suspended", "ok", LATER),
    ):
        audit = entry(
            "unlock", at=at, verdict="permitted" if code == "ok" else "refused", code=code, device=name
        )
        await store.decisions.decide(decision(ids[name], name, 1, audit=audit))
    await store.devices.suspend_device("suspended", Suspension(NOW, "operator:test", "lost"), entry())
    await store.rounds.record_round(
        RoundRecord(
            device_id=ids["quiet"],
            at=NOW,
            outcome=RoundOutcome.UNREACHABLE,
            code="device-unreachable",
            details={},
        )
    )
    return store


async def found(store: SqlStore, **search: Any) -> set[str]:
    devices = await store.devices.list_devices(DeviceSearch(**search))
    names = [each.name for each in devices]
    assert names == sorted(names)
    return set(names)


def ago(days: int) -> datetime:
    return LATER - timedelta(days=days)


@pytest.mark.parametrize(
    ("search", "names"),
    [
        ({}, {"booted", "refused", "suspended", "quiet", "new"}),
        ({"policies": ("web",)}, {"booted", "refused"}),
        ({"policies": ("web", "db"), "labels": ("a",)}, {"booted", "suspended"}),
        ({"policies": ("nosuch",)}, set()),
        ({"labels": ("a", "b")}, {"booted"}),
        ({"labels": ("a_b",)}, {"refused"}),  # no wildcard
        ({"labels": ("%",)}, set()),
        ({"refused": True}, {"refused", "suspended"}),
        ({"refused": True, "policies": ("web",)}, {"refused"}),
        ({"silent_since": ago(5)}, {"refused", "quiet"}),
        ({"silent_since": ago(11)}, set()),
        ({"silent_since": ago(5), "refused": True, "policies": ("web",), "labels": ("a_b",)}, {"refused"}),
    ],
)
async def test_search(fleet: SqlStore, search: dict[str, Any], names: set[str]) -> None:
    """A device has to meet all of them."""
    assert await found(fleet, **search) == names
