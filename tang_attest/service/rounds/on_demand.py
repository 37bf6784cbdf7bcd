"""Rounds on demand of an operator: with a TPM that this machine reaches itself, or through the machine's
agent.

With an agent the database is the meeting place: the request for a round is written to the device's row, the
server that holds the agent's poll sees it, and the outcome is read from the row again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Final, Protocol

from tang_attest.errors import Reason, Unavailable
from tang_attest.ports.machines import Device, Reach
from tang_attest.ports.rounds import PastRound
from tang_attest.ports.store import HasDecisions, HasDevices, HasPolicies, HasRounds
from tang_attest.ports.world import Clock
from tang_attest.protocol.challenge import verify_digest
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.quote import Evidence
from tang_attest.protocol.values.pcr import Selection
from tang_attest.protocol.verification import RoundOutcome, recordable, running_selection
from tang_attest.service.rounds.verify import Round, RoundVerifier, default_selection, parse_values
from tang_attest.service.unlock.device_keys import JudgedDevice, find_judged_device

#: Seconds between two reads of the device's row.
LOOK_S: Final = 0.2


class Quoter(Protocol):
    """Fetches quotes from TPMs that this machine reaches."""

    async def quote(self, reach: Reach, selection: Selection, qualifying: bytes, nonce: str) -> Evidence:
        """Return evidence over *selection* with *qualifying* data.  Raises ``tpm-unreachable``,
        ``program-missing``.
        """


class OnDemandStore(HasDecisions, HasDevices, HasPolicies, HasRounds, Protocol):
    """The roles of the store that a round on demand needs."""


class OnDemandRounds:
    """Holds rounds on demand."""

    def __init__(self, store: OnDemandStore, verify: RoundVerifier, quoter: Quoter, clock: Clock) -> None:
        self._store, self._verify, self._quoter, self._clock = store, verify, quoter, clock

    async def once(self, name: str, reach: Reach | None, patience_s: float) -> Round:
        """Hold a round with *name* and return it; *reach* overrides that of the registration.

        Raises ``not-found``, ``program-missing``, and errors that are no verdict on the machine
        (``clock-backwards``).
        """
        device, since = await self._store.devices.get_device(name), self._clock.now()
        if reach := reach or device.reach:
            return await self._directly(device, reach, since)
        return await self._through_agent(device, since, patience_s)

    async def record(
        self, name: str, reach: Reach | None, selection: Selection | None, patience_s: float, actor: str
    ) -> ReferencePolicy:
        """Verify *name* from now on against the values that it has now.

        Raises ``not-found``, ``name-taken``, ``device-unreachable``, ``tpm-unreachable``,
        ``selection-invalid``, and what verification of the evidence raises.  Through an agent the selection
        is that of the policy in force.
        """
        device = await self._store.devices.get_device(name)
        if reach := reach or device.reach:
            bound = await find_judged_device(self._store, name)
            selection = selection or default_selection(bound.policy)
            challenge = await self._verify.challenge_for(bound, selection)
            evidence = await self._quote(bound, reach, selection, challenge.nonce)
            return await self._verify.record(bound, selection, evidence, actor)
        ended = await self._through_agent(device, self._clock.now(), patience_s)
        if ended.outcome is RoundOutcome.UNREACHABLE:
            raise Unavailable(ended.reasons[0].code, ended.reasons[0].sentence)
        past = (await self._store.rounds.list_rounds(name, 1))[0]
        found, quoted = parse_values(past)
        settled = running_selection(found)
        cap_pcr = (await self._store.policies.get_policy(device.policy)).cap_pcr
        values = recordable(quoted, settled, cap_pcr, explained=_is_explained(past))
        return await self._verify.record_values(device, settled, values, actor)

    async def _directly(self, device: Device, reach: Reach, since: datetime) -> Round:
        bound = await find_judged_device(self._store, device.name)
        challenge = await self._verify.challenge_for(bound)
        try:
            evidence = await self._quote(bound, reach, challenge.selection, challenge.nonce)
        except Unavailable as away:
            if away.code != "tpm-unreachable":
                raise
            await self._note_unreachable(device, bound.policy, since)
            return Round(device.name, RoundOutcome.UNREACHABLE, away.reasons)
        # Looked up again: an operator may have changed the policy, or suspended the machine, meanwhile.
        bound = await find_judged_device(self._store, device.name)
        return await self._verify.respond_for(bound, evidence, fetched=True)

    async def _quote(self, bound: JudgedDevice, reach: Reach, selection: Selection, nonce: str) -> Evidence:
        return await self._quoter.quote(reach, selection, verify_digest(nonce, bound.identity), nonce)

    async def _through_agent(self, device: Device, since: datetime, patience_s: float) -> Round:
        before = device.standing.answered_at
        await self._store.rounds.request_round(device.name, since)
        try:
            async with asyncio.timeout(patience_s):
                now = await self._answered(device.name, before)
        except TimeoutError:
            await self._store.rounds.request_round(device.name, None)
            policy = await self._store.policies.get_policy(device.policy)
            await self._note_unreachable(device, policy, since)
            sentence = f"No evidence of '{device.name}' that counts came within {patience_s:.0f} s."
            return Round(device.name, RoundOutcome.UNREACHABLE, (Reason("device-unreachable", sentence),))
        kept = await self._store.rounds.list_rounds(device.name, 1)
        return Round(device.name, now.standing.outcome or RoundOutcome.UNREACHABLE, _reasons(kept[0]))

    async def _answered(self, name: str, before: datetime | None) -> Device:
        """Return the device once its last answer is not that of *before*; another process writes the row."""
        while True:
            device = await self._store.devices.get_device(name)
            if device.standing.answered_at != before:
                return device
            await asyncio.sleep(LOOK_S)

    async def _note_unreachable(self, device: Device, policy: ReferencePolicy, since: datetime) -> None:
        """Write to the history, unless the policy itself counts misses: a miss of ours is not its
        "unreachable".
        """
        if policy.conditions.watch is None:
            await self._verify.unreachable(device, policy, since)


def _is_explained(past: PastRound) -> bool:
    """Return True when the quoted cap PCR results from caps alone."""
    disks = past.details.get("disks")
    return isinstance(disks, dict) and disks.get("explained") is True


def _reasons(past: PastRound) -> tuple[Reason, ...]:
    """Return the stored reasons of a past round."""
    kept = past.details.get("reasons")
    return tuple(_reason(fields) for fields in kept) if isinstance(kept, list) else ()


def _reason(fields: Mapping[str, object]) -> Reason:
    data = tuple((name, value) for name, value in fields.items() if name not in ("code", "sentence"))
    return Reason(str(fields["code"]), str(fields["sentence"]), data)
