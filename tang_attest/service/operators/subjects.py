"""The subject of a signature: what an act does, as the store has its machines and policies now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tang_attest.errors import Conflict, NotFound
from tang_attest.ports.machines import Device
from tang_attest.ports.store import HasDevices, HasPolicies
from tang_attest.protocol.passkeys.text import values_digest
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.reference_state import ReferenceState
from tang_attest.protocol.values.pcr import PcrValues
from tang_attest.service.operators.acts import (
    Act,
    AllowUnlock,
    ApproveAnnounced,
    ApproveBoots,
    IssueToken,
    Reinstate,
    RemoveDevice,
    ResumeDevice,
    TrustPredictions,
)


class SubjectStore(HasDevices, HasPolicies, Protocol):
    """The roles of the store that subjects need."""


@dataclass(frozen=True, slots=True)
class ActSubject:
    """Members of the signed text, JSON-compatible, and the number of operators who have to sign it."""

    members: Mapping[str, Any]
    operators: int = 1


class Subjects:
    """Reads the subjects of acts; nothing is changed."""

    def __init__(self, store: SubjectStore) -> None:
        self._store = store

    async def of(self, act: Act) -> ActSubject:
        """Return the subject of *act*.

        Raises ``not-found``, ``observation-missing``, ``not-suspended``.
        """
        match act:
            case ApproveBoots():
                return await self._boots(act)
            case ApproveAnnounced() | Reinstate():
                return await self._state(act)
            case TrustPredictions():
                policy = await self._store.policies.get_policy(act.policy)
                return ActSubject({"act": act.kind, "policy": policy.name}, policy.conditions.operators)
            case ResumeDevice() | RemoveDevice() | AllowUnlock():
                return ActSubject(await self._device(act))
            case IssueToken():
                return ActSubject(await self._token(act))

    async def _boots(self, act: ApproveBoots) -> ActSubject:
        boots, needed = [], 1
        for name, number in act.boots:
            device = await self._store.devices.get_device(name)
            policy = await self._store.policies.get_policy(device.policy)
            needed = max(needed, policy.conditions.operators)
            seen = await self._store.policies.list_observations(name)
            observation = next((each for each in seen if each.id == number), None)
            if observation is None:
                raise NotFound("observation-missing", f"There is no observation {number} of '{name}'.")
            boots.append(
                {
                    "device": name,
                    "observation": number,
                    "policy": policy.name,
                    "selection": str(observation.snapshot.selection),
                    "values": _digest(observation.snapshot.values),
                }
            )
        limits = {
            "only_this_device": act.only_this_device,
            "once": act.once,
            "minutes": act.minutes,
            "accepted_uncovered": [part.value for part in act.accepted],
        }
        return ActSubject({"act": act.kind, "boots": boots, "limits": limits}, needed)

    async def _state(self, act: ApproveAnnounced | Reinstate) -> ActSubject:
        policy = await self._store.policies.get_policy(act.policy)
        members: dict[str, Any] = {
            "act": act.kind,
            "policy": policy.name,
            "label": act.label,
            "values": _digest(_state(policy, act.label).values),
        }
        if isinstance(act, ApproveAnnounced):
            members["accepted_uncovered"] = [part.value for part in act.accepted]
        return ActSubject(members, policy.conditions.operators)

    async def _device(self, act: ResumeDevice | RemoveDevice | AllowUnlock) -> dict[str, Any]:
        device = await self._store.devices.get_device(act.device)
        members: dict[str, Any] = {"act": act.kind, "device": device.name, "policy": device.policy}
        match act:
            case ResumeDevice():
                members["suspended_at"] = _suspended_at(device)
            case RemoveDevice():
                members["enrolled_at"] = device.enrolled_at.isoformat()
            case AllowUnlock():
                members["minutes"] = act.minutes
        return members

    async def _token(self, act: IssueToken) -> dict[str, Any]:
        if act.policy is not None:
            await self._store.policies.get_policy(act.policy)
        return {
            "act": act.kind,
            "device": act.name,
            "policy": act.policy,
            "minutes": act.minutes,
            "machines": act.machines,
            "labels": sorted(act.labels),
            "allow_unverified_ek": act.allow_unverified_ek,
        }


def policies_of(subject: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the policies that *subject* names, each once."""
    named = [boot["policy"] for boot in subject.get("boots", ())] or [subject.get("policy")]
    return tuple(dict.fromkeys(str(name) for name in named if name))


def _suspended_at(device: Device) -> str:
    if device.suspension is None:
        raise Conflict("not-suspended", f"Device '{device.name}' is not suspended.")
    return device.suspension.at.isoformat()


def _state(policy: ReferencePolicy, label: str) -> ReferenceState:
    for state in policy.states:
        if state.label == label:
            return state
    raise NotFound("not-found", f"Policy '{policy.name}' has no state '{label}'.")


def _digest(values: PcrValues) -> str:
    return values_digest({str(pcr): value.hex() for pcr, value in values.items()})
