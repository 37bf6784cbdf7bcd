"""What an appraisal writes: nonce, clock, audit, and perhaps an observation, a learned state, or new evidence.

Rules of this module:

* Decisions of one batch share a transaction and are written one after the other, as if each were alone.
* One that loses a race is an exception among the results; it has undone what it wrote, and its neighbors stand.
* The nonce comes first: evidence that is replayed while the original is under way is ``nonce-used``, although its
  clock did not move either.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

import sqlalchemy as sa

from tang_attest.errors import Conflict, NotFound, TangAttestError
from tang_attest.ports import AuditEntry, Decision, Observation, Snapshot
from tang_attest.protocol.quote import advance
from tang_attest.protocol.reference_state import COUNTING
from tang_attest.protocol.tpm import ClockInfo
from tang_attest.store import audit_log, devices, evidence, locks, policies, rollouts, tables
from tang_attest.store.sql import changed, insert_new

_device = tables.device
_nonce = tables.nonce
_observation = tables.observation

#: Observations kept for each device.  One has an event log of up to 128 KiB, and a machine that is refused
#: tries again for as long as it has power.
OBSERVATIONS_KEPT: Final = 32


def _rose(stored: sa.Column[int], new: str) -> sa.ColumnElement[bool]:
    """What ``advance(stored, new) > 0`` of tang_attest.protocol.quote says.  The sum is positive before the modulo,
    because databases disagree about the rest.
    """
    distance = (sa.bindparam(new, type_=sa.BigInteger()) - stored + 2**32 + 2**31) % 2**32
    return distance > 2**31


# Clock and counters of one device only move forward (TPM 2.0 part 1, section 36).  Two quotes of one device may
# have been verified against the same stored clock; the condition is checked again in the statement that moves
# it, under the row's lock, so the older of the two meets no row whenever the newer was first.
_MOVES_FORWARD: Final = sa.or_(
    _device.c.clock.is_(None),
    _rose(_device.c.reset_count, "new_reset_count"),
    sa.and_(
        _device.c.reset_count == sa.bindparam("new_reset_count"),
        sa.or_(
            _device.c.restart_count == sa.bindparam("new_restart_count"),
            _rose(_device.c.restart_count, "new_restart_count"),
        ),
        _device.c.clock < sa.bindparam("new_clock", type_=_device.c.clock.type),
    ),
)
_SEEN: Final = (
    _device.update()
    .where(_device.c.id == sa.bindparam("device_id"), _MOVES_FORWARD)
    .values(
        clock=sa.bindparam("new_clock", type_=_device.c.clock.type),
        reset_count=sa.bindparam("new_reset_count"),
        restart_count=sa.bindparam("new_restart_count"),
        clock_safe=sa.bindparam("new_safe"),
        last_seen_at=sa.bindparam("seen_at"),
        last_code=sa.bindparam("seen_code"),
        opened_reset_count=sa.func.coalesce(
            sa.bindparam("opened_reset_count", type_=sa.BigInteger()), _device.c.opened_reset_count
        ),
        last_state=sa.func.coalesce(sa.bindparam("met", type_=sa.Text()), _device.c.last_state),
        verified_at=sa.func.coalesce(
            sa.bindparam("good_at", type_=_device.c.verified_at.type), _device.c.verified_at
        ),
    )
)
# Whoever was suspended since it was read gets nothing any more; a refusal is written all the same.
_SEEN_UNLESS_SUSPENDED: Final = _SEEN.where(_device.c.suspended_at.is_(None))
# A state that was retired since it was read permits nothing any more.
_STILL_COUNTS: Final = sa.exists().where(
    tables.reference_state.c.policy_id == _device.c.policy_id,
    tables.reference_state.c.label == sa.bindparam("met", type_=sa.Text()),
    tables.reference_state.c.life.in_(sorted(COUNTING)),
)
_SEEN_AND_MET: Final = _SEEN_UNLESS_SUSPENDED.where(_STILL_COUNTS)
# The learning use is one: taking it is part of the same compare-and-set.
_SEEN_AND_LEARNED: Final = _SEEN_UNLESS_SUSPENDED.where(_device.c.learning.is_not(None)).values(learning=None)


def write(connection: sa.Connection, items: Sequence[Decision | AuditEntry]) -> list[TangAttestError | None]:
    """Write *items*; for each ``None``, or why it was not written."""
    entries: list[AuditEntry] = []
    outcomes: list[TangAttestError | None] = []
    locks.take(connection, [item for item in items if isinstance(item, Decision)])
    for item in items:
        if isinstance(item, AuditEntry):
            entries.append(item)
            outcomes.append(None)
            continue
        outcomes.append(_write_one(connection, item, entries))
    if entries:
        audit_log.append(connection, *entries)
    return outcomes


def _write_one(
    connection: sa.Connection, decision: Decision, entries: list[AuditEntry]
) -> TangAttestError | None:
    if not use_nonce(connection, decision):
        entries.append(replace(decision.audit, verdict="refused", code="nonce-used"))
        return Conflict("nonce-used", "The nonce was used before.")
    if lost := _see_and_meet(connection, decision):
        # Ours alone: inserted above, and not committed yet.
        connection.execute(_nonce.delete().where(_nonce.c.digest == decision.nonce_digest))
        return lost
    if decision.rollout is not None:
        stop = rollouts.write_result(connection, decision.device_id, decision.rollout, decision.audit)
        entries.extend([decision.audit, stop] if stop else [decision.audit])
    else:
        entries.append(decision.audit)
    if decision.learned is not None:
        policies.add_learned_state(connection, _policy_id(connection, decision), decision.learned)
    if decision.observation is not None:
        _observe(connection, decision, decision.observation)
    if decision.evidence is not None:
        evidence.keep(connection, decision.device_id, decision.audit.at, decision.evidence)
    return None


def _see_and_meet(connection: sa.Connection, decision: Decision) -> TangAttestError | None:
    """Move the device, and the state that permitted it when it is staged or has counted uses; both or neither."""
    if stopped := rollouts.check_still_counts(connection, decision.rollout):
        return stopped
    met = decision.met
    if met is None or not met.changes_when_met:
        return None if see_device(connection, decision) else _why_not_seen(connection, decision)
    savepoint = connection.begin_nested()
    try:
        policies.meet(connection, _policy_id(connection, decision), met)
    except Conflict as lost:
        savepoint.rollback()
        return lost
    if see_device(connection, decision):
        savepoint.commit()
        return None
    savepoint.rollback()
    return _why_not_seen(connection, decision)


def _policy_id(connection: sa.Connection, decision: Decision) -> int:
    query = sa.select(_device.c.policy_id).where(_device.c.id == decision.device_id)
    return int(connection.scalar(query) or 0)  # 0 is no policy: the device is gone, which see_device notices


def use_nonce(connection: sa.Connection, decision: Decision) -> bool:
    """Use the nonce up; false when somebody did.  The primary key decides, not a look before."""
    row = {"digest": decision.nonce_digest, "expires_at": decision.nonce_expires_at}
    return insert_new(connection, _nonce, row)


def see_device(connection: sa.Connection, decision: Decision) -> bool:
    """Move the device's clock and take its learning use; false when that is not allowed, or it is gone."""
    values = {
        "device_id": decision.device_id,
        "new_clock": decision.clock.clock,
        "new_reset_count": decision.clock.reset_count,
        "new_restart_count": decision.clock.restart_count,
        "new_safe": decision.clock.safe,
        "seen_at": decision.audit.at,
        "seen_code": decision.audit.code,
        "opened_reset_count": decision.clock.reset_count if decision.audit.verdict == "permitted" else None,
        "met": decision.met.label if decision.met else None,
        "good_at": decision.audit.at if decision.audit.verdict == "permitted" else None,
    }
    return connection.execute(_statement(decision), values).rowcount == 1


def _statement(decision: Decision) -> sa.Update:
    if decision.met is not None:
        return _SEEN_AND_MET
    if decision.learned is not None:
        return _SEEN_AND_LEARNED
    return _SEEN if decision.audit.verdict == "refused" else _SEEN_UNLESS_SUSPENDED


def _why_not_seen(connection: sa.Connection, decision: Decision) -> TangAttestError:
    row = connection.execute(
        sa.select(
            _device.c.clock,
            _device.c.reset_count,
            _device.c.restart_count,
            _device.c.learning,
            _device.c.suspended_at,
        ).where(_device.c.id == decision.device_id)
    ).one_or_none()
    if row is None:
        return NotFound("key-unknown", "The device was removed while its evidence was appraised.")
    if moves_forward((row.reset_count, row.restart_count, row.clock), decision.clock):
        if row.suspended_at is not None:
            return Conflict("device-suspended", "The device was suspended while its evidence was appraised.")
        if decision.met is not None:
            label = decision.met.label
            return Conflict(
                "state-retired", f"State '{label}' was retired while this evidence was appraised."
            )
        if decision.learned is not None and row.learning is None:
            return Conflict(
                "pcr-mismatch", "The one learning use was taken while this evidence was appraised."
            )
    return Conflict("clock-backwards", "Newer evidence of this device was accepted meanwhile.")


def moves_forward(stored: tuple[int | None, int | None, int | None], new: ClockInfo) -> bool:
    """What ``_MOVES_FORWARD`` says; *stored* are the reset count, the restart count and the clock."""
    reset_count, restart_count, clock = stored
    if reset_count is None or restart_count is None or clock is None:
        return True
    if reset_count != new.reset_count:
        return advance(reset_count, new.reset_count) > 0
    return advance(restart_count, new.restart_count) >= 0 and clock < new.clock


def _observe(connection: sa.Connection, decision: Decision, observed: Snapshot) -> None:
    row = {
        "device_id": decision.device_id,
        "at": decision.audit.at,
        "selection": observed.selection,
        "pcr_values": observed.values,
        "code": decision.audit.code,
        "reset_count": decision.clock.reset_count,
        "event_log": observed.event_log,
    }
    connection.execute(_observation.insert(), row)
    mine = _observation.c.device_id == decision.device_id
    kept = (
        sa.select(_observation.c.id).where(mine).order_by(_observation.c.id.desc()).limit(OBSERVATIONS_KEPT)
    )
    connection.execute(_observation.delete().where(mine, _observation.c.id.not_in(kept)))


def observations(
    connection: sa.Connection,
    device: str | None,
    limit: int,
    before: int | None = None,
    under: Collection[str] | None = None,
) -> list[Observation]:
    """The newest observations, perhaps only those of *device*, *before* an id, or of devices *under* policies."""
    query = (
        sa.select(_observation, _device.c.name).join(_device).order_by(_observation.c.id.desc()).limit(limit)
    )
    if device is not None:
        query = query.where(_device.c.id == devices.find_id(connection, device))
    if before is not None:
        query = query.where(_observation.c.id < before)
    if under is not None:
        named = sa.select(tables.policy.c.id).where(tables.policy.c.name.in_(under))
        query = query.where(_device.c.policy_id.in_(named))
    return [_observation_of(row) for row in connection.execute(query).mappings()]


def prune(connection: sa.Connection, before: datetime) -> int:
    """Forget nonces that expired before *before*: they are refused as expired before anybody looks here."""
    return changed(connection, _nonce.delete().where(_nonce.c.expires_at < before))


def _observation_of(row: sa.RowMapping) -> Observation:
    return Observation(
        id=row["id"],
        device=row["name"],
        at=row["at"],
        snapshot=Snapshot(row["selection"], row["pcr_values"], row["event_log"]),
        code=row["code"],
        reset_count=row["reset_count"],
    )
