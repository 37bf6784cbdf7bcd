"""Write the results of an appraisal: nonce, clock, audit, and perhaps an observation, a learned state, or new
evidence.

Rules of this module:

* Decisions of one batch share a transaction and end as if they were written one after the other.
* One that loses a race is an exception among the results; it wrote nothing, and its neighbors stand.
* The nonce comes first: evidence that is replayed is ``nonce-used``, although its clock did not move either.
* Conditions that held when the evidence was appraised are looked at again here, under the row's lock
  (locks.py).  A decision by recalled rows is written only if nothing changed in them since, and then has nothing
  more to look at; else it is ``policy-changed``, and the evidence is appraised again.
* Two quotes of one boot may overtake each other: the older one stands, and moves no clock back.  One of an
  earlier boot than the newest evidence's does not stand.
* The common part of all decisions is written once for the batch, at its end: a statement costs more than a
  row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import sqlalchemy as sa

from tang_attest.errors import Conflict, NotFound, TangAttestError
from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.decisions import Basis, Decision
from tang_attest.protocol.changes.rollout import Rollout
from tang_attest.protocol.conditions import Conditions
from tang_attest.protocol.policy import learned_now
from tang_attest.protocol.quote import advance
from tang_attest.protocol.reference_state import ReferenceState
from tang_attest.protocol.signed_values.signer import Signers
from tang_attest.protocol.tpm import ClockInfo
from tang_attest.store import locks
from tang_attest.store.database import authentic, tables
from tang_attest.store.database.batched import Batched, Update
from tang_attest.store.database.failures import Tampered
from tang_attest.store.locked import LockedRows
from tang_attest.store.records import (
    audit_log,
    devices,
    evidence,
    nonces,
    observations,
    policies,
    rollouts,
)

_device = tables.device

#: The common part of all decisions.  The audit record is the last: PostgreSQL numbers its entries in their order.
_WRITE: Final = Batched(nonces.USE, Update(_device, *locks.MOVED, authentic.SEAL), audit_log.APPEND)


def write(connection: sa.Connection, items: Sequence[Decision | AuditEntry]) -> list[TangAttestError | None]:
    """Write *items*; for each ``None``, or why it was not written."""
    batch = _Batch(connection, [item for item in items if isinstance(item, Decision)])
    outcomes = [batch.add(item) for item in items]
    batch.write()
    return outcomes


def are_brief(items: Sequence[Decision | AuditEntry]) -> bool:
    """Return True if short statements write *items*: none has an event log, which takes a millisecond to seal."""
    return not any(isinstance(item, Decision) and (item.evidence or item.observation) for item in items)


class _Batch:
    """The rows that *decisions* are about, as they are once the decisions before are written."""

    def __init__(self, connection: sa.Connection, decisions: Sequence[Decision]) -> None:
        self._connection = connection
        self._devices: dict[int, dict[str, Any]] = {}
        self._held = LockedRows({})
        self._rollouts: dict[int, Rollout | Tampered] = {}
        if decisions:
            self._held = held = locks.take(connection, decisions)
            self._devices = {key: dict(row) for key, row in held.devices.items() if isinstance(row, dict)}
            if held.rolling:
                self._rollouts = rollouts.under_way_if_ours(connection, held.rolling)
        self._accepted: list[Decision] = []
        self._entries: list[AuditEntry] = []

    def add(self, item: Decision | AuditEntry) -> TangAttestError | None:
        """Take *item*; or why it is not to be written."""
        if isinstance(item, AuditEntry):
            self._entries.append(item)
            return None
        if item.nonce_digest in self._held.used:
            if item.replay_in_full:
                self._entries.append(replace(item.audit, verdict="refused", code="nonce-used"))
            return Conflict("nonce-used", "The nonce was used before.")
        if lost := (
            self._outdated(item)
            or rollouts.check_still_counts(self._connection, item.rollout)
            or self._obstacle(item)
        ):
            return lost
        row = self._devices[item.device_id]
        if item.met is not None and item.met.changes_when_met:
            try:
                policies.meet(self._connection, row["policy_id"], item.met)
            except (Conflict, Tampered) as lost:
                return lost
        self._accept(item, row)
        return None

    def write(self) -> None:
        """Write what was taken and is not written yet."""
        if not self._accepted:
            if self._entries:
                audit_log.append(self._connection, *self._entries)
            return
        used = [{"digest": each.nonce_digest, "expires_at": each.nonce_expires_at} for each in self._accepted]
        moved = sorted({decision.device_id for decision in self._accepted})
        changes = [self._moved(device_id) for device_id in moved]
        _WRITE.write(self._connection, used, changes, audit_log.rows(self._connection, *self._entries))

    def _moved(self, device_id: int) -> dict[str, Any]:
        """The row of :data:`_WRITE` for a device."""
        before, after = self._held.devices[device_id], self._devices[device_id]
        assert isinstance(before, authentic.Row)  # noqa: S101 - for the type checker: none but these are accepted
        changes = {name: after[name] for name in locks.MOVED if after[name] != before[name]}
        written = authentic.after(self._connection, _device, before, changes)
        return {name: written[name] for name in ("id", *locks.MOVED, authentic.SEAL)}

    def _outdated(self, item: Decision) -> TangAttestError | None:
        """Return the reason that the rows which *item* was appraised by do not count."""
        if isinstance(foreign := self._held.devices.get(item.device_id), Tampered):
            return foreign
        if item.reading is not None and not self._held.stands(item):
            return Conflict("policy-changed", "The registry was changed since its rows were recalled.")
        return None

    def _obstacle(self, decision: Decision) -> TangAttestError | None:
        """Return the change since the appraisal that refuses the evidence."""
        row = self._devices.get(decision.device_id)
        if row is None:
            return NotFound("key-unknown", "The device was removed while its evidence was appraised.")
        if is_step_back(devices.clock_of(row), decision.clock, behind_ms=decision.behind_ms):
            return Conflict("clock-backwards", "Newer evidence of this device was accepted meanwhile.")
        gives = decision.met is not None or decision.learned is not None
        # A refusal is written all the same.
        if row["suspended_at"] is not None and (gives or decision.audit.verdict != "refused"):
            return Conflict("device-suspended", "The device was suspended while its evidence was appraised.")
        if decision.met is not None and (lost := self._lost(decision, decision.met, row)):
            return lost
        if decision.learned is not None and row["learning"] is None:
            return Conflict(
                "pcr-mismatch", "The one learning use was taken while this evidence was appraised."
            )
        return None

    def _lost(self, decision: Decision, met: ReferenceState, row: dict[str, Any]) -> TangAttestError | None:
        """The reason that the state *met* does not permit any more, or not in this boot."""
        policy, rollout = self._held.policies.get(row["policy_id"]), self._rollouts.get(row["policy_id"])
        if self._held.stands(decision):
            # Looked at only if the decision raises a version in it.
            return policy if isinstance(policy, Tampered) else _learned(decision, met, row)
        assert policy is not None  # noqa: S101 - for the type checker: the look has it for these
        if isinstance(policy, Tampered) or isinstance(rollout, Tampered):
            return policy if isinstance(policy, Tampered) else rollout  # type: ignore[return-value]  # one of both
        conditions = Conditions.from_json(policy["conditions"])
        seen_at = row["verified_at"] or row["enrolled_at"]
        if reason := conditions.obstacle(row["name"], row["allowed_until"], seen_at, decision.audit.at):
            return Conflict(reason.code, reason.sentence)
        signers = policy["signers"] or Signers()
        basis = Basis(policy["rules"], rollout, tuple(row["labels"]), policy["name"], signers)
        if decision.basis not in (None, basis):
            sentence = f"The policy of '{row['name']}' was changed while this evidence was appraised."
            return Conflict("policy-changed", sentence)
        return self._withdrawn(decision, met, row)

    def _withdrawn(
        self, decision: Decision, met: ReferenceState, row: dict[str, Any]
    ) -> TangAttestError | None:
        """The reason that the key or the state *met* does not count any more, or not in this boot."""
        if decision.audit.kid in self._held.retired:
            return Conflict("key-retired", "The key was retired while its evidence was appraised.")
        if (row["policy_id"], met.label) not in self._held.counting:
            sentence = f"State '{met.label}' was retired while this evidence was appraised."
            return Conflict("state-retired", sentence)
        return _learned(decision, met, row)

    def _accept(self, decision: Decision, row: dict[str, Any]) -> None:
        connection, entry = self._connection, _under_name(decision.audit, row["name"])
        self._held.used.add(decision.nonce_digest)
        self._accepted.append(decision)
        self._entries.append(entry)
        row.update(last_seen_at=entry.at, last_code=entry.code)
        if moves_forward(devices.clock_of(row), decision.clock):
            row.update(devices.clock_columns(decision.clock))
        if entry.verdict == "permitted":
            row.update(opened_reset_count=decision.clock.reset_count, verified_at=entry.at)
        if decision.met is not None:
            row["last_state"] = decision.met.label
            row["signed"] = None if decision.met.signed is None else decision.met.signed.as_json()
            self._raise_version(decision, row["policy_id"])
        if decision.learned is not None:
            row.update(learning=None, learned_reset_count=decision.clock.reset_count)
            policies.add_learned_state(connection, row["policy_id"], decision.learned)
        if decision.rollout is not None:
            stop = rollouts.write_result(connection, decision.device_id, decision.rollout, entry)
            self._entries.extend([stop] if stop else [])
        if decision.observation is not None:
            observations.keep(connection, decision, decision.observation)
        if decision.evidence is not None:
            evidence.keep(connection, decision.device_id, entry.at, decision.evidence)

    def _raise_version(self, decision: Decision, policy_id: int) -> None:
        """Write the version that *decision* permits, if it is the highest yet."""
        signed = None if decision.met is None else decision.met.signed
        if signed is None or not decision.raises_version:
            return
        policy = self._held.policies[policy_id]
        if isinstance(policy, Tampered):
            return
        raised = (policy["signers"] or Signers()).raised(signed, decision.audit.at)
        self._held.policies[policy_id] = policies.write_signers(self._connection, policy_id, raised)
        self._held.changed.add(policy_id)


def _learned(decision: Decision, met: ReferenceState, row: dict[str, Any]) -> TangAttestError | None:
    """The reason that the state *met* does not count in the boot of *decision*, for the device of *row*."""
    reason = learned_now(met, row["learned_reset_count"], decision.clock.reset_count)
    return None if reason is None else Conflict(reason.code, reason.sentence)


def _under_name(entry: AuditEntry, name: str) -> AuditEntry:
    """Return *entry* with the name of its device now: it may have been renamed during the appraisal."""
    if entry.device in (None, name):
        return entry
    return replace(entry, device=name, actor=f"device:{name}")


def is_step_back(stored: ClockInfo | None, new: ClockInfo, *, behind_ms: int) -> bool:
    """Return True if evidence with the clock *new* may not stand beside the newest, whose clock is *stored*.

    Evidence of the same boot may be up to *behind_ms* older.
    """
    if stored is None or moves_forward(stored, new):
        return False
    return behind_ms == 0 or _boot(stored) != _boot(new) or stored.clock - new.clock > behind_ms


def moves_forward(stored: ClockInfo | None, new: ClockInfo) -> bool:
    """Return True if *new* is later than *stored*, the clock of the newest evidence.

    Clock and counters of one TPM only move forward (TPM 2.0 part 1, section 36).
    """
    if stored is None:
        return True
    if stored.reset_count != new.reset_count:
        return advance(stored.reset_count, new.reset_count) > 0
    return advance(stored.restart_count, new.restart_count) >= 0 and stored.clock < new.clock


def _boot(clock: ClockInfo) -> tuple[int, int]:
    """A boot, or a part of one between two suspensions."""
    return clock.reset_count, clock.restart_count
