"""Explanation of a refused observation, for the operator who has to decide: value by value, and event by
event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import KW_ONLY, dataclass

from tang_attest.errors import Malformed, NotFound, Reason, Refused
from tang_attest.ports.decisions import Snapshot
from tang_attest.ports.policies import Observation
from tang_attest.ports.world import Clock
from tang_attest.protocol import eventlog
from tang_attest.protocol.eventlog.phases import measured_later, unexplained
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.reference_state import ReferenceState
from tang_attest.service.unlock.device_keys import JudgingStore, find_judged_device


@dataclass(frozen=True, slots=True)
class Explanation:
    """Findings about an observation.

    ``reasons`` are those of the policy *now*, empty when it would permit the evidence.  ``nearest`` is the
    approved state that differs least.  ``changes`` are the differences of its log from that of an approved
    boot, in the quoted PCRs; ``doubts`` are sentences about gaps in ``changes``, and about differences that
    may be forged.
    """

    observation: Observation
    policy: str
    reasons: tuple[Reason, ...]
    nearest: ReferenceState | None
    changes: tuple[eventlog.EventDifference, ...]
    _: KW_ONLY
    doubts: tuple[str, ...]

    @property
    def differences(self) -> tuple[int, ...]:
        """Return the PCRs in which the observation differs from :attr:`nearest`; all of them without one."""
        values = self.observation.snapshot.values
        return tuple(sorted(values)) if self.nearest is None else self.nearest.differences(values)


class Explanations:
    """Explains observations; it changes nothing."""

    def __init__(self, store: JudgingStore, clock: Clock) -> None:
        self._store, self._clock = store, clock

    async def find(self, observation_id: int, policies: Collection[str] | None = None) -> Observation:
        """Return the observation *observation_id* of a device under *policies* (``None``: any).

        Raises ``observation-missing``.
        """
        for observation in await self._store.policies.list_observations(
            None, 1, observation_id + 1, policies
        ):
            if observation.id == observation_id:
                return observation
        raise NotFound("observation-missing", f"There is no observation {observation_id}.")

    async def explain(self, observation: Observation) -> Explanation:
        """Return the findings about *observation*, appraised by the present policy."""
        name, snapshot = observation.device, observation.snapshot
        policy = (await find_judged_device(self._store, name)).policy
        counting = policy.counting(name, self._clock.now())
        nearest = min(counting, key=lambda state: len(state.differences(snapshot.values)), default=None)
        approved_log = await self._approved_log(name, nearest)
        # The sender of the log chose the time that it takes to read, so it is read beside the event loop.
        changes, doubts = await asyncio.to_thread(compare_logs, snapshot, approved_log)
        reasons = await asyncio.to_thread(self._reasons, policy, observation)
        return Explanation(observation, policy.name, reasons, nearest, changes, doubts=doubts)

    async def _approved_log(self, name: str, nearest: ReferenceState | None) -> bytes:
        """Return the log of the device's boot with the state *nearest*, else of its last permitted boot; or
        nothing.
        """
        permitted = await self._store.policies.get_evidence(name, permitted=True)
        known = [permitted.snapshot] if permitted else []
        # A boot that was refused and then approved is approved, even if it never happened again.
        known += [seen.snapshot for seen in await self._store.policies.list_observations(name)]
        for snapshot in known:
            if nearest is not None and snapshot.event_log and not nearest.differences(snapshot.values):
                return snapshot.event_log
        return permitted.snapshot.event_log if permitted else b""

    def _reasons(self, policy: ReferencePolicy, observation: Observation) -> tuple[Reason, ...]:
        snapshot = observation.snapshot
        if snapshot.selection != policy.selection:
            sentence = f"The observation is over {snapshot.selection}, the policy over {policy.selection}."
            return (Reason("selection-mismatch", sentence),)
        try:
            policy.judge(observation.device, snapshot.values, self._clock.now(), snapshot.event_log)
        except Refused as refusal:
            return refusal.reasons
        return ()


def compare_logs(
    seen: Snapshot, approved_log: bytes
) -> tuple[tuple[eventlog.EventDifference, ...], tuple[str, ...]]:
    """Return the differences of the log of *seen* from *approved_log*, and doubts about them."""
    if not seen.event_log:
        return (), ("the machine sent no event log, so only the values are known",)
    if not approved_log:
        return (), ("no event log of an approved boot is known that this one could be compared with",)
    bank, pcrs = seen.selection.bank, seen.selection.pcrs
    try:
        log = eventlog.parse(seen.event_log)
        changes = eventlog.difference(eventlog.parse(approved_log), log, bank, pcrs)
        lies = [mismatch.pcr for mismatch in unexplained(log, bank, seen.values)]
        later = measured_later(log, bank, seen.values)
    except Malformed as error:
        return (), (f"the event log cannot be read: {error.sentence.rstrip('.')}",)
    notes = tuple(
        f"PCR {pcr}: systemd measured {', '.join(words)} after the log" for pcr, words in later.items()
    )
    if not lies:
        return changes, notes
    named = ", ".join(map(str, lies))
    return changes, (
        *notes,
        f"the log does not lead to the quoted value of PCR {named}: it does not tell all, or not the truth",
    )
