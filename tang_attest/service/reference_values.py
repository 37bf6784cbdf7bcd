"""The operator's side of policies: what a machine's software may look like to its TPM."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from tang_attest.errors import Conflict, NotFound, Refused
from tang_attest.ports import AuditEntry, Clock, Learning, Observation, Store
from tang_attest.protocol.enrollment import check_name
from tang_attest.protocol.pcr import PcrValues, Selection
from tang_attest.protocol.policy import (
    ReferencePolicy,
    ReferenceState,
    check_policy_selection,
    moving_pcrs,
    reference_state,
)


class ReferenceValues:
    """Changes to policies; each is one transaction with its audit entry."""

    def __init__(self, store: Store, clock: Clock, operator: str) -> None:
        self._store, self._clock = store, clock
        self._actor = f"operator:{operator}"

    async def create_policy(self, name: str, selection: Selection, cap_pcr: int) -> ReferencePolicy:
        """An empty policy: it refuses everyone until it has a state.

        Raises ``request-malformed``, ``selection-invalid``, ``name-taken``.
        """
        policy = ReferencePolicy(check_name(name), check_policy_selection(selection), cap_pcr, ())
        details: dict[str, object] = {"policy": name, "selection": str(selection)}
        await self._store.add_policy(policy, self._entry("policy create", None, details))
        return policy

    async def record(
        self, policy_name: str, label: str | None, values: PcrValues, *, force: bool
    ) -> ReferenceState:
        """Add a state from values the operator brings.

        Raises ``not-found``, ``values-invalid``, ``values-all-zero``, ``name-taken``.
        """
        policy = await self._store.get_policy(policy_name)
        return await self._add(policy, label or self._label("imported"), values, "imported", None, force)

    async def approve(
        self, device_name: str, label: str | None, *, observation_id: int | None, force: bool
    ) -> tuple[Observation, ReferenceState]:
        """Turn a refused but authentic quote of *device_name* (the newest, or the one named) into a state.

        Raises ``not-found``, ``observation-missing``, ``capped`` (unless *force*: the running system's values
        would let it unlock at any time), ``values-all-zero``, ``name-taken``, ``selection-mismatch`` when the
        policy's selection changed since.
        """
        device = await self._store.get_device(device_name)
        policy = await self._store.get_policy(device.policy)
        observation = self._pick(
            await self._store.list_observations(device_name), device_name, observation_id
        )
        if observation.selection != policy.selection:
            raise Conflict(
                "selection-mismatch",
                f"Observation {observation.id} is over {observation.selection}, the policy over {policy.selection}.",
            )
        if not force and any(observation.values.get(policy.cap_pcr, b"")):
            raise Refused(
                "capped", f"Observation {observation.id} was made after PCR {policy.cap_pcr} was extended."
            )
        chosen = label or self._label("approved")
        state = await self._add(policy, chosen, observation.values, "observed", device_name, force)
        return observation, state

    async def learn(self, device_name: str, window: timedelta) -> Learning:
        """Arm one learning use: the next authentic unlock quote is recorded if only moving PCRs differ.

        Without any state in the policy there is nothing the stable PCRs could be compared with: raises
        ``policy-empty``.  Raises ``selection-invalid`` when the selection has no moving PCR.
        """
        device = await self._store.get_device(device_name)
        policy = await self._store.get_policy(device.policy)
        moving = moving_pcrs(policy.selection)
        if not moving:
            raise Refused(
                "selection-invalid", f"{policy.selection} has no PCR that has to be learned; approve instead."
            )
        stable = device.learning.stable if device.learning else self._stable(policy, moving)
        learning = Learning(self._clock.now() + window, stable)
        details: dict[str, object] = {"until": learning.until.isoformat()}
        await self._store.arm_learning(
            device_name, learning, self._entry("device learn", device_name, details)
        )
        return learning

    def _stable(self, policy: ReferencePolicy, moving: tuple[int, ...]) -> PcrValues:
        if not policy.states:
            raise Refused("policy-empty", f"Policy '{policy.name}' has no reference state yet.")
        return {pcr: value for pcr, value in policy.states[-1].values.items() if pcr not in moving}

    def _pick(
        self, newest_first: Sequence[Observation], device: str, observation_id: int | None
    ) -> Observation:
        for observation in newest_first:
            if observation_id in (None, observation.id):
                return observation
        which = "no observation" if observation_id is None else f"no observation {observation_id}"
        raise NotFound("observation-missing", f"There is {which} of '{device}'.")

    async def _add(
        self,
        policy: ReferencePolicy,
        label: str,
        values: PcrValues,
        origin: str,
        device: str | None,
        force: bool,
    ) -> ReferenceState:
        for known in policy.states:
            if known.values == values:
                raise Conflict(
                    "values-known", f"State '{known.label}' of policy '{policy.name}' has these values."
                )
        state = reference_state(policy.selection, label, values, origin, cap_pcr=policy.cap_pcr, force=force)
        details: dict[str, object] = {
            "policy": policy.name,
            "label": label,
            "origin": origin,
            "values": {str(pcr): value.hex() for pcr, value in state.values.items()},
        }
        await self._store.add_state(policy.name, state, self._entry("policy state add", device, details))
        return state

    def _label(self, word: str) -> str:
        return f"{word} {self._clock.now():%Y-%m-%d %H:%M:%S}"

    def _entry(self, event: str, device: str | None, details: dict[str, object]) -> AuditEntry:
        return AuditEntry(self._clock.now(), event, self._actor, "done", device=device, details=details)
