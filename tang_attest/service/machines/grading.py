"""Grades of machines whose stored grade says nothing about coverage: evidence that an older version of the
server kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace

from tang_attest.ports.machines import Device
from tang_attest.ports.store import HasPolicies, if_ours
from tang_attest.service.unlock.appraisal import grade_of


async def graded(store: HasPolicies, devices: Iterable[Device]) -> list[Device]:
    """Return *devices*, graded anew from their last permitted evidence where the grade has no coverage.

    Nothing is written.  A machine without evidence keeps the grade that it has.
    """
    return [device if _has_coverage(device) else await _graded(store, device) for device in devices]


def _has_coverage(device: Device) -> bool:
    return device.grade is not None and "coverage" in device.grade


async def _graded(store: HasPolicies, device: Device) -> Device:
    evidence = await if_ours(store.policies.get_evidence(device.name, permitted=True))
    if evidence is None:
        return device
    policy = await if_ours(store.policies.get_policy(device.policy))
    if policy is None:
        return device
    accepted = next((state.accepted for state in policy.states if state.label == device.last_state), ())
    found = await asyncio.to_thread(
        grade_of, evidence.snapshot, ek_verified=device.ek_verified, cap_pcr=policy.cap_pcr, accepted=accepted
    )
    return replace(device, grade=found)
