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
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

import sqlalchemy as sa

from tang_attest.ports.decisions import Decision
from tang_attest.store.database import authentic, tables
from tang_attest.store.database.failures import Tampered
from tang_attest.store.database.sql import among

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
_DEVICES = authentic.form(_device).lock.where(among(_device.c.id, "ids"))
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
    return {
        values.id: _checked(connection, _device, values)
        for values in connection.execute(_DEVICES, {"ids": sorted(device_ids)})
    }


def take(connection: sa.Connection, decisions: Sequence[Decision]) -> tuple[Rows, Rows, set[int]]:
    """Lock the devices of *decisions*, their policies, then the states that they change.

    Devices and policies by id, and the ids of policies that have a rollout that is not over.  Policies are
    there only if one of the decisions permits something.
    """
    ids = sorted({decision.device_id for decision in decisions})
    rows = take_devices(connection, ids)
    permitted = {decision.device_id for decision in decisions if decision.met is not None}
    ours = [row for row in rows.values() if isinstance(row, authentic.Row)]
    judging = sorted({row["policy_id"] for row in ours if row["id"] in permitted})
    raising = any(decision.raises_version for decision in decisions)
    judges, rolling = _hold_policies(connection, judging, change=raising) if judging else ({}, set())
    met = (decision.met for decision in decisions)
    labels = sorted({state.label for state in met if state is not None and state.changes_when_met})
    if labels and connection.dialect.name != "sqlite":
        connection.execute(_STATES, {"ids": ids, "labels": labels})
    return rows, judges, rolling


def _hold_policies(connection: sa.Connection, ids: Sequence[int], *, change: bool) -> tuple[Rows, set[int]]:
    bound = {"ids": ids}
    if connection.dialect.name != "sqlite":
        connection.execute(_CHANGE_POLICIES if change else _HOLD_POLICIES, bound)
    found = connection.execute(_POLICIES, bound).all()
    rows = {values.id: _checked(connection, _policy, values[:-1]) for values in found}
    return rows, {values.id for values in found if values.rollout_id is not None}


def _checked(connection: sa.Connection, table: sa.Table, values: Any) -> authentic.Row | Tampered:
    try:
        return authentic.check(connection, table, values)
    except Tampered as error:
        return error
