"""The use cases that signed acts run: those of an operator at the server, by another author."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Protocol

from tang_attest.errors import TangAttestError
from tang_attest.ports.keys import KeyStore
from tang_attest.ports.store import HasDevices, HasEnrollment, HasPolicies
from tang_attest.ports.world import Clock, Randomness
from tang_attest.protocol.policy import DEFAULT_CAP_PCR, DEFAULT_SELECTION
from tang_attest.protocol.values.pcr import Selection
from tang_attest.service.audit.actors import Author
from tang_attest.service.enrollment.tokens import EnrollmentTokens, TokenTerms
from tang_attest.service.machines.devices import DeviceAdministration
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
from tang_attest.service.policies.reference_values import Approval, ReferenceValues

#: Codes after which no further machine of an approval is tried: its request is another worker's.
_OVER = frozenset({"act-used", "act-changed", "unavailable"})


class DoingStore(HasDevices, HasEnrollment, HasPolicies, Protocol):
    """The roles of the store that acts need."""


class Doing:
    """Runs acts; the first change of each uses up its request."""

    def __init__(self, store: DoingStore, keys: KeyStore, clock: Clock, random: Randomness) -> None:
        self._store, self._keys, self._clock, self._random = store, keys, clock, random

    async def do(self, act: Act, author: Author) -> tuple[str, str | None]:
        """Run *act*; return one sentence, and the text of a token if the act made one.

        Raises what the use case raises.
        """
        values = ReferenceValues(self._store, self._clock, author)
        devices = DeviceAdministration(self._store.devices, self._keys, self._clock, author)
        token = None
        match act:
            case ApproveBoots():
                done = await self._approve(act, author)
            case ApproveAnnounced():
                await values.approve_state(act.policy, act.label, accepted=act.accepted)
                done = f"State '{act.label}' of policy '{act.policy}' counts."
            case Reinstate():
                await values.restore(act.policy, act.label)
                done = f"State '{act.label}' of policy '{act.policy}' counts again."
            case TrustPredictions():
                await values.trust_predictions(act.policy, trusted=True)
                done = f"Announced values count at once under policy '{act.policy}'."
            case ResumeDevice():
                await devices.resume(act.device)
                done = f"Device '{act.device}' is resumed."
            case AllowUnlock():
                until = await devices.allow(act.device, timedelta(minutes=act.minutes))
                done = f"Device '{act.device}' may unlock until {until:%Y-%m-%d %H:%M:%S} UTC."
            case RemoveDevice():
                await devices.remove(act.device)
                done = f"Device '{act.device}' is removed; its disks open by passphrase only."
            case IssueToken():
                tokens = EnrollmentTokens(self._store, self._clock, self._random, author)
                token, _ = await tokens.create(_terms(act))
                done = "The token is made; it is shown this once."
        return done, token

    async def _approve(self, act: ApproveBoots, author: Author) -> str:
        """Approve each boot; a state that covers several is made once.

        One that fails stands beside the others; the first error is raised if every one failed.
        """
        approval = Approval(
            only_this_device=act.only_this_device or (act.once and len(act.boots) > 1),
            once=act.once,
            valid_for=None if act.minutes is None else timedelta(minutes=act.minutes),
            accepted=act.accepted,
        )
        made: set[tuple[str, tuple[tuple[int, bytes], ...]]] = set()
        approved: list[str] = []
        errors: list[tuple[str, TangAttestError]] = []
        for name, number in act.boots:
            try:
                key = await self._key(name, number)
                if approval.only_this_device or key not in made:
                    author = await self._approve_one(act, approval, (name, number), author)
                    made.add(key)
                approved.append(name)
            except TangAttestError as error:
                if error.code in _OVER:
                    raise
                errors.append((name, error))
        if not approved:
            raise errors[0][1]
        failed = "".join(f" '{name}' is not: {error.sentence}" for name, error in errors)
        return f"Approved: {', '.join(approved)}.{failed}"

    async def _approve_one(
        self, act: ApproveBoots, approval: Approval, boot: tuple[str, int], author: Author
    ) -> Author:
        """Approve one boot; return the author of the next change, who has nothing to claim any more."""
        name, number = boot
        several = len(act.boots) > 1
        label = f"approved {self._clock.now():%Y-%m-%d %H:%M:%S} {number}" if several else None
        values = ReferenceValues(self._store, self._clock, author)
        await values.approve(name, label, observation_id=number, approval=approval)
        return replace(author, claim=None)

    async def _key(self, name: str, number: int) -> tuple[str, tuple[tuple[int, bytes], ...]]:
        device = await self._store.devices.get_device(name)
        seen = await self._store.policies.list_observations(name)
        values = next((each.snapshot.values for each in seen if each.id == number), {})
        return device.policy, tuple(sorted(values.items()))


def _terms(act: IssueToken) -> TokenTerms:
    return TokenTerms(
        act.name,
        act.policy,
        act.policy is None,
        Selection.parse(DEFAULT_SELECTION),
        DEFAULT_CAP_PCR,
        allow_unverified_ek=act.allow_unverified_ek,
        force=False,
        valid_for=timedelta(minutes=act.minutes),
        learn_for=timedelta(hours=24),
        labels=act.labels,
        proposes=act.policy is None,
        machines=act.machines,
        name_free=act.name is not None,
    )
