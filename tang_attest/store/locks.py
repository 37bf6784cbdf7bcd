"""Locks on the rows of a batch of decisions, taken beforehand and in one order: devices, policies, states.

Two replicas write batches that share devices, and states that are being rolled out.  If each took its locks
as it reaches the rows, the two could wait for each other in a circle, and PostgreSQL would end one of them.
SQLite has one writer at a time, and nothing to order.

A policy is locked against changes only (FOR SHARE): decisions do not wait for each other there.  A batch that raises
the highest version of a signer changes its policies, and locks them all for that.  A transaction that changes a policy, a state of it or its rollout takes the policy's row first
(:func:`tang_attest.store.records.policies.take`), so a change that was committed is seen by every decision
that is committed after it.

Rows read under the lock stay true until the transaction ends, also of a device's nonces: each is valid
for one device (its kid is part of it), so the transaction that uses it up holds that device's row.

A decision by recalled rows (recalled.py) stands if its reading is that of now.  All locks are taken before that is
read, in a statement of its own: one that waits for a lock sees the other tables as they were before the wait.
Every change that takes something away holds the row of the device or of the policy, so none is committed between
the look and the decision.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from tang_attest.ports.decisions import Decision
from tang_attest.store.database import authentic, tables, versioned
from tang_attest.store.database.composed import Composed
from tang_attest.store.database.failures import Tampered
from tang_attest.store.database.sql import among
from tang_attest.store.records.keys import reading_of

_device = tables.device
_policy = tables.policy
_rollout = tables.rollout
_state = tables.reference_state

#: Columns of its device's row that a decision may change.
MOVED: Final = (
    "clock",
    "reset_count",
    "restart_count",
    "clock_safe",
    "last_seen_at",
    "last_code",
    "opened_reset_count",
    "learned_reset_count",
    "last_state",
    "signed",
    "verified_at",
    "learning",
)
# FOR NO KEY UPDATE: the lock that an UPDATE of these columns takes; rows that refer to a device can still be
# added.
_DEVICES = Composed(authentic.form(_device).lock.where(among(_device.c.id, "ids")), "ids")
_HOLD_POLICIES = (
    sa.select(_policy.c.id)
    .where(among(_policy.c.id, "ids"))
    .order_by(_policy.c.id)
    .with_for_update(read=True)
)
# FOR NO KEY UPDATE: in place of the above, never after it: two that hold it would wait for each other.
_CHANGE_POLICIES = (
    sa.select(_policy.c.id)
    .where(among(_policy.c.id, "ids"))
    .order_by(_policy.c.id)
    .with_for_update(key_share=True)
)
# Not in one statement with the lock: it would see a rollout as it was before the wait.
_POLICIES = (
    sa.select(*authentic.form(_policy).raw, _rollout.c.id.label("rollout_id"))
    .select_from(_policy.outerjoin(_rollout, _rollout.c.under_way == _policy.c.id))
    .where(among(_policy.c.id, "ids"))
)
_STATES = (
    sa.select(_state.c.id)
    .where(
        among(_state.c.label, "labels"),
        _state.c.policy_id.in_(sa.select(_device.c.policy_id).where(among(_device.c.id, "ids"))),
    )
    .order_by(_state.c.id)
    .with_for_update(key_share=True)
)


#: Rows by id, or the errors about them.
Rows = dict[int, authentic.Row | Tampered]


def take_devices(connection: sa.Connection, device_ids: Collection[int]) -> Rows:
    """Lock devices, in the order of their ids.  A device that was removed has no row."""
    found = _DEVICES.rows(connection, ids=sorted(device_ids))
    return {
        values[0]: _checked(connection, _device, values) for values in found
    }  # the id is the first column


@dataclass(frozen=True, slots=True)
class LockedRows:
    """Rows that are locked for a batch of decisions.

    ``policies`` are those of decisions that permit and do not stand by their reading; ``rolling`` are the ids of
    those that have a rollout that is not over.  ``version`` is the registry's, if one of the decisions has a
    reading.
    """

    devices: Rows
    policies: Rows
    rolling: set[int]
    version: int | None

    def stands(self, decision: Decision) -> bool:
        """Return True if *decision* rests on recalled rows, and nothing has changed in them since."""
        row = self.devices.get(decision.device_id)
        if decision.reading is None or self.version is None or not isinstance(row, authentic.Row):
            return False
        return reading_of(self.version, row) == decision.reading


def take(connection: sa.Connection, decisions: Sequence[Decision]) -> LockedRows:
    """Lock the devices of *decisions*, the policies of those that permit, then the states that they change; then
    read what the decisions rest on.
    """
    ids = sorted({decision.device_id for decision in decisions})
    permits = [decision for decision in decisions if decision.met is not None]
    rows = take_devices(connection, ids)
    locking = connection.dialect.name != "sqlite"
    if locking and (judging := _policies_of(rows, permits)):
        raising = any(decision.raises_version for decision in decisions)
        connection.execute(_CHANGE_POLICIES if raising else _HOLD_POLICIES, {"ids": judging})
    met = (decision.met for decision in permits)
    labels = sorted({state.label for state in met if state is not None and state.changes_when_met})
    if locking and labels:
        connection.execute(_STATES, {"ids": ids, "labels": labels})
    recalled = any(decision.reading is not None for decision in decisions)
    held = LockedRows(rows, {}, set(), versioned.read(connection) if recalled else None)
    if asking := _policies_of(rows, [each for each in permits if not held.stands(each)]):
        found = connection.execute(_POLICIES, {"ids": asking}).all()
        held.policies.update({each.id: _checked(connection, _policy, each[:-1]) for each in found})
        held.rolling.update(each.id for each in found if each.rollout_id is not None)
    return held


def _policies_of(rows: Rows, decisions: Sequence[Decision]) -> list[int]:
    """Ids of the policies of the devices of *decisions*, in the order of their locks."""
    found = (rows.get(decision.device_id) for decision in decisions)
    return sorted({row["policy_id"] for row in found if isinstance(row, authentic.Row)})


def _checked(connection: sa.Connection, table: sa.Table, values: Any) -> authentic.Row | Tampered:
    try:
        return authentic.check(connection, table, values)
    except Tampered as error:
        return error
